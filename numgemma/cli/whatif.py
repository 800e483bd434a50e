"""Name the fault: try the known mistakes on the steps that went wrong, until one reproduces the dump's numbers."""

from pathlib import Path

from numgemma.cli.common import add_other, add_precision, parse_ids
from numgemma.cli.numbers import finite
from numgemma.cli.replay import add_subject, subject
from numgemma.cli.report import write_json
from numgemma.debug.blame.whatif import whatif
from numgemma.debug.blame.words import render_whatif


def add_arguments(parser):
    add_subject(parser)
    add_precision(parser)
    add_other(parser)
    parser.add_argument("--budget", type=finite, metavar="SECONDS", help="for the search; what was not tried is said")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the candidates as JSON, best first")


def other_ids(args):
    return None if args.other is None else parse_ids(args.other)


def run(args):
    found = whatif(**subject(args), budget=args.budget, other=other_ids(args))
    print(render_whatif(found))
    if args.json:
        write_json(args.json, found)
    return found.replay.exit_code
