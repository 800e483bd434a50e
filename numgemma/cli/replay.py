"""Recompute each step of a dump from the dump's own tensors: whose fault it is, with nothing inherited.

It works with all points, with what modules return, or with the outputs of layers alone; it needs no other engine.
"""

import sys
from pathlib import Path

from numgemma.cli.common import Prompt, add_adapter, add_ids, add_image_mask, add_precision, parse_ids, read_inputs
from numgemma.cli.report import add_report, write_json, write_report
from numgemma.debug.blame.replay import replay
from numgemma.debug.blame.words import render
from numgemma.debug.noise.floor import read_floor
from numgemma.debug.noise.rounding import as_run
from numgemma.debug.readers import read_any, summary
from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.model import load


def add_arguments(parser):
    add_subject(parser)
    add_precision(parser)
    parser.add_argument(
        "--floor", metavar="F", default="auto", help="noise of the whole run, by `numgemma floor` (default: auto)"
    )
    parser.add_argument("--points", nargs="+", metavar="GLOB", default=["*"], help="report only these (default: all)")
    parser.add_argument("--all", action="store_true", help="print every point, not a dozen")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument(
        "--graft", metavar="POINT", help="also run numgemma with the dump's tensor there: does the rest recover?"
    )
    add_report(parser)


def add_subject(parser):
    """What replay and whatif are told: the checkpoint, the dump, and what the dump may lack."""
    parser.add_argument("ckpt", type=Path, metavar="CKPT")
    add_adapter(parser)
    parser.add_argument("dump", type=Path, metavar="DUMP", help="a dump, or what another engine wrote")
    group = parser.add_mutually_exclusive_group()
    add_ids(group, "token ids, where the dump has none")
    group.add_argument(
        "--inputs", type=Path, metavar="FILE", help="ids and media: what Transformers' processor returns"
    )
    parser.add_argument("--map", type=Path, metavar="FILE", help="names of another engine's dump -> ours")
    add_image_mask(parser)


def run(args):
    given = subject(args)
    floor = None if args.floor == "auto" else read_floor(args.floor)
    found = replay(**given, floor=floor, points=args.points, graft=args.graft)
    print(render(found, args.all))
    truth = Dump(given["dump"].meta, found.base.truth, found.base.axes)
    write_report(args, given["model"], truth, given["dump"], replay=found)
    if args.json:
        write_json(args.json, found)
    return found.exit_code


def subject(args):
    """The arguments that `replay` and `whatif` share."""
    model = load(args.ckpt, image_mask=args.image_mask, adapters=args.adapter)
    dump = as_run(read_any(args.dump, args.map, model.outline), model, getattr(args, "precision", None))
    if summary(dump):
        print(summary(dump))
    prompt = prompt_of(args, dump, model)
    return {"model": model, "dump": dump, "ids": prompt.ids, "media": prompt.media, "told": progress()}


def prompt_of(args, dump, model) -> Prompt:
    if args.ids is not None:
        return Prompt(parse_ids(args.ids))
    if args.inputs is not None:
        prompts = read_inputs(Path(args.inputs), model)
        if len(prompts) > 1:
            raise InputError(f"{args.inputs}: holds {len(prompts)} prompts; a dump is that of one.")
        return prompts[0]
    if dump.meta.get("ids") is None:
        raise InputError(f"{args.dump}: does not say which token ids were run; give them with --ids or --inputs.")
    return Prompt(dump.meta["ids"])


def progress():
    """Shows on a terminal what is being run."""

    def show(text):
        print(f"\r{text:60}", end="\r", file=sys.stderr, flush=True)

    return show if sys.stderr.isatty() else lambda text: None
