"""Many prompts with many checkpoints and engines: a verdict for each pair, and what all of them say together.

The rows go to OUT.jsonl, one for each pair as it is finished; the same command goes on where the file ends. An engine
is one of ours by its precision, hf (Transformers), hf:bfloat16, or a folder with a dump for each prompt; each is judged
by the checkpoint's own run in float64.
"""

import sys
from pathlib import Path

from numgemma import ops
from numgemma.cli.numbers import finite, whole_number
from numgemma.cli.report import write_json, written
from numgemma.debug.sweep import Order, Trends, sweep
from numgemma.debug.sweep.page import write_html
from numgemma.debug.sweep.pair import Way
from numgemma.debug.sweep.prompts import random_questions, read_questions
from numgemma.debug.sweep.trends import VERDICTS, Contestant
from numgemma.errors import InputError
from numgemma.model import load
from numgemma.streaming import available_memory
from numgemma.trace import EVERYTHING_BUT_MAPS

SHARE = 0.8  # of the memory that is free, for all workers together
SHOWN = 3  # prompts and points of each engine that a terminal is given
LONGEST = 128  # tokens of a random prompt


def add_arguments(parser):
    parser.add_argument("ckpt", nargs="+", metavar="CKPT")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompts", type=Path, metavar="FILE.jsonl", help="a text, ids or a chat a line; - is standard input"
    )
    prompts.add_argument("--random", type=whole_number, metavar="N", help="N prompts of random ids")
    parser.add_argument(
        "--longest", type=whole_number, default=LONGEST, metavar="T", help=f"tokens of those ({LONGEST})"
    )
    parser.add_argument("--seed", type=whole_number, default=0, metavar="S", help="of those (0)")
    parser.add_argument("--engines", nargs="+", default=["float32"], metavar="E", help="default: float32")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT.jsonl", help="the rows; goes on where it ends"
    )
    parser.add_argument(
        "--floor", action="store_true", help="judge by the noise of each prompt, which takes nine more runs"
    )
    parser.add_argument(
        "--points", nargs="+", metavar="GLOB", default=list(EVERYTHING_BUT_MAPS), help="compare only these"
    )
    parser.add_argument("--map", metavar="FILE", help="names of other engines' dumps -> ours")
    parser.add_argument("--backend", choices=ops.BACKENDS, default="numpy", help="what computes (default: numpy)")
    add_workers(parser.add_argument_group("workers (extra `sweep`)"))
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="write a page with all of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")


def add_workers(group):
    group.add_argument(
        "--workers", type=whole_number, default=2, metavar="N", help="processes (2); 0: this one, without Dask"
    )
    group.add_argument("--scheduler", metavar="ADDRESS", help="a Dask cluster that stands already, as tcp://host:8786")
    group.add_argument(
        "--memory",
        type=finite,
        metavar="GB",
        help="of each worker, beside the weights it maps (default: its share of what is free)",
    )


def run(args):
    order = order_of(args)
    found = sweep(order, args.out, say, progress())
    print(render(found))
    if found.exit_code == 1 and not args.floor:
        print("A floor tells noise from fault: the same command with --floor and another -o.")
    if args.html:
        write_html(args.html, found, f"Sweep {args.out.name}", verdict(found))
        written(args.html)
    if args.json:
        write_json(args.json, found)
    return found.exit_code


def order_of(args) -> Order:
    check_numbers(args)
    memory = memory_of(args)
    if memory is not None:
        say(f"{args.workers} workers, each with at most {memory / 1e9:.1f} GB beside the weights that it maps")
    way = Way(tuple(args.points), args.floor, args.map, args.backend, memory)
    return Order(args.ckpt, list(dict.fromkeys(args.engines)), questions(args), way, args.workers, args.scheduler)


def check_numbers(args):
    for name, least in (("workers", 0), ("longest", 1), ("seed", 0), ("random", 1), ("memory", 0.1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name} is {value:g}; it should be {least:g} or more.")


def memory_of(args) -> int | None:
    """Bytes for each worker.  Those of another's cluster have what it gives them, and this process what it has."""
    if args.scheduler is not None or args.workers == 0:
        return None
    return int(1e9 * args.memory if args.memory is not None else SHARE * available_memory() / args.workers)


def questions(args):
    if args.prompts is not None:
        return read_questions(args.prompts)
    if args.random is not None:
        return list(random_questions([load(path) for path in args.ckpt], args.random, args.longest, args.seed))
    return None


def say(text):
    print(text, flush=True)


def progress():
    """Shows on a terminal how many pairs are done, and nothing in a pipe."""
    if not sys.stderr.isatty():
        return lambda done, of: None

    def show(done, of):
        print(f"\r{done} of {of} pairs ", end="\n" if done == of else "", file=sys.stderr, flush=True)

    return show


def render(found: Trends) -> str:
    """A table of all engines, and a few lines for each that is not all the same."""
    rows = [("checkpoint, engine", *VERDICTS), *((c.name, *map(str, c.counts.values())) for c in found.contestants)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["", *("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows), ""]
    for c in found.contestants:
        lines += [f"{c.name}: {line}" for line in remarks(c)]
    return "\n".join([*lines, verdict(found)])


def remarks(c: Contestant):
    """What stands out."""
    if c.firsts:
        yield "first to fail: " + ", ".join(f"{point} ({n} prompts)" for point, n in c.firsts[:SHOWN])
    if c.layers:
        layer, (median, most) = max(c.layers.items(), key=lambda item: item[1])
        yield f"layer {layer} drifts most: {median:.1e} in the median prompt, {most:.1e} in the worst"
    for row in c.judged[:SHOWN]:
        where = f"{row['worst']['rel'] or 0:.1e} at {row['worst']['point']}"
        yield f"worst: {row['prompt']:.40}, {row['tokens']} tokens, {where}"
    if c.trend:
        yield c.trend.says
    for row in [row for row in c.rows if not row["worst"]][:SHOWN]:
        yield f"{row['prompt']:.40}: {row['verdict']}: {row['reason']}"


def verdict(found: Trends) -> str:
    """One sentence."""
    counts = {v: sum(c.counts[v] for c in found.contestants) for v in VERDICTS}
    said = ", ".join(f"{n} {v}" for v, n in counts.items() if n)
    return f"{len(found.rows)} pairs: {said}"
