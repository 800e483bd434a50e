"""Measure the noise floor: how large an error rounding alone makes at every point, for one prompt.

A run in float64 is the truth; eight runs in the given precision, each rounding and summing in a way of its own, are
measured against it.  The result is a small file, kept in a cache, that `diff --floor auto` and `replay` find there.
"""

import sys
from pathlib import Path

from numgemma.cli.common import Prompt, add_adapter, add_image_mask, add_prompt, read_prompts
from numgemma.cli.numbers import finite
from numgemma.debug.blame.budget import Clock, OutOfTime
from numgemma.debug.blame.emulate import own_arithmetic
from numgemma.debug.measure.precision import in_full, of_run
from numgemma.debug.noise.floor import RUNS, cached_floor
from numgemma.debug.noise.rounding import as_run
from numgemma.debug.readers import read_any
from numgemma.errors import InputError
from numgemma.model import load


def add_arguments(parser):
    parser.add_argument("ckpt", type=Path, metavar="CKPT")
    add_adapter(parser)
    parser.add_argument(
        "dump", type=Path, metavar="DUMP", nargs="?", help="take the token ids and the precision from this dump"
    )
    add_prompt(parser, required=False)
    parser.add_argument(
        "--precision",
        nargs="+",
        metavar="P",
        help="float32, bfloat16, float16; llama.cpp or llama.cpp-f32, with a cache of half precision or of float32, "
        "for its runs of quantised files; int8, fp8 or nvfp4, where such weights are multiplied as codes; "
        "mobile, Google's files in Transformers (default: that of DUMP, or float32)",
    )
    add_image_mask(parser)
    parser.add_argument("--budget", type=finite, metavar="SECONDS", help="stop then; the finished runs are kept")
    parser.add_argument("-o", "--out", metavar="FILE.json", type=Path, help="write it here too, not to the cache alone")


def run(args):
    model = load(args.ckpt, image_mask=args.image_mask, adapters=args.adapter)
    dump = as_run(read_any(args.dump, config=model.outline), model) if args.dump else None
    precisions = [in_full(p) for p in args.precision or [of_run(dump) if dump else "float32"]]
    if args.out and len(precisions) > 1:
        raise InputError("--out takes one floor; give one --precision, or leave the files in the cache.")
    (prompt,) = prompts(args, model, dump)
    for precision in precisions:
        clock = Clock(args.budget, told(precision))
        try:
            found = cached_floor(model, prompt.ids, precision, told=clock.told, media=prompt.media)
        except OutOfTime:
            raise InputError(
                f"--budget: {args.budget:g} seconds are over before all {RUNS} runs in {precision} were done; "
                "those that were are kept: give the same command again to go on."
            ) from None
        print(summary(found))
        say_whether_right(model, dump and as_run(dump, precision=precision), prompt)
        if args.out:
            found.save(args.out)
            print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} KB")
    return 0


def say_whether_right(model, dump, prompt):
    """Of a dump whose run rounded its inputs: whether a run that does the same has its numbers."""
    own = own_arithmetic(model, dump, prompt.ids, prompt.media, str) if dump else None
    if own:
        print(own.verdict)


def prompts(args, model, dump):
    """The one prompt: from the options, or else the ids of the dump."""
    given = any(getattr(args, option) is not None for option in ("prompt", "chat", "ids", "inputs"))
    if given:
        found = read_prompts(args, model)
        if len(found) > 1:
            raise InputError(f"{args.inputs}: holds {len(found)} prompts; a floor is that of one.")
        return found
    if dump is None:
        raise InputError("A floor is that of one prompt; give --prompt, --chat, --ids or --inputs, or a DUMP.")
    if dump.meta.get("ids") is None:
        raise InputError(f"{args.dump}: does not say which token ids were run; give them with --ids or --inputs.")
    return [Prompt(dump.meta["ids"], media=model.media_of(dump))]


def told(precision):
    """Shows on a terminal how far it has come."""

    def show(run):
        what = "the truth, in float64" if run == "0" else f"{precision}, run {run} of {RUNS}"
        print(f"\r{what:40}", end="\n" if run == str(RUNS) else "", file=sys.stderr, flush=True)

    return show if sys.stderr.isatty() else lambda run: None


def summary(found):
    """What the noise is at the end, and where it is largest."""
    worst = max(found.points, key=lambda name: found.points[name].rel[1])
    last = next(reversed(found.points))
    tokens = f" over {len(found.ids)} tokens" if found.ids else ""
    lines = [f"The floor of {found.precision}{tokens}: {len(found.points)} points, {found.runs} runs."]
    for name in dict.fromkeys((last, worst)):
        n = found.points[name]
        sizes = f"{n.rel[0]:.1e} (95 %: {n.rel[1]:.1e}), worst token {n.worst_token[1]:.1e}"
        lines.append(f"{name}: {sizes}, worst channel {n.worst_channel[1]:.1e}")
    close = sum(len(calls) for name, calls in found.close.items() if name != "logits")
    if close:
        lines.append(f"{close} choices of experts are so close that noise may turn them")
    return "\n".join(lines)
