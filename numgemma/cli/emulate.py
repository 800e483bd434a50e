"""Ask whether an engine computes a file as it should: run the engine's own arithmetic, and look for its numbers."""

import sys
from pathlib import Path

from numgemma.cli.numbers import whole_number
from numgemma.cli.replay import add_subject, subject
from numgemma.cli.report import write_json
from numgemma.debug.blame.emulate import RUNS, TURNED, emulate
from numgemma.debug.measure.precision import ROUNDINGS
from numgemma.errors import InputError

SHOWN = 12


def add_arguments(parser):
    add_subject(parser)
    parser.add_argument(
        "--engine",
        choices=ROUNDINGS,
        default="llama.cpp",
        help="whose arithmetic (llama.cpp, dumped with -fa off; -f32: with -ctk f32 -ctv f32; int8, fp8, nvfp4: of "
        "engines that multiply such weights as codes; mobile: Transformers, of Google's files)",
    )
    parser.add_argument(
        "--runs", type=whole_number, default=RUNS, metavar="N", help=f"with noise of the last place ({RUNS})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every point and run as JSON")


def run(args):
    if args.runs < 1:
        raise InputError(f"--runs is {args.runs}; give 1 or more.")
    given = subject(args) | {"told": told(args.runs + TURNED * (args.runs > 1))}
    found = emulate(**given, engine=args.engine, runs=args.runs)
    print(render(found))
    if args.json:
        write_json(args.json, found)
    return found.exit_code


def told(runs):
    """Shows on a terminal which run is under way, and nothing in a pipe."""
    if not sys.stderr.isatty():
        return lambda run: None
    return lambda run: print(f"\rrun {run + 1} of {runs} ", end="\r", file=sys.stderr, flush=True)


def render(found):
    """The verdict, and the points that are farthest from every run."""
    rows = [("point", "nearest run", "right runs differ by")]
    far = sorted(found.points, key=lambda p: -p.nearest)[:SHOWN]
    rows += [(p.name, f"{p.nearest:.2g}", f"{p.spread:.2g}") for p in found.points if p in far]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([found.verdict, "", *lines])
