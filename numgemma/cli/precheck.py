"""Before two dumps are compared: were they made of the same tokens, by the same model, in the same way?

Exit code 3 where a comparison would mean nothing.  `diff` looks at the same things first.
"""

from pathlib import Path

from numgemma.cli.report import write_json
from numgemma.debug.compare.fitted import fitted
from numgemma.debug.compare.precheck import precheck, render
from numgemma.debug.readers import read_any


def add_arguments(parser):
    parser.add_argument("a", type=Path, metavar="A", help="the reference dump")
    parser.add_argument("b", type=Path, metavar="B", help="the dump to be measured against it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings as JSON")


def run(args):
    found = precheck(*fitted(read_any(args.a), read_any(args.b)))
    print(render(found))
    if args.json:
        write_json(args.json, found)
    return found.exit_code
