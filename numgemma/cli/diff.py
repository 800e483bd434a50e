"""Compare two dumps: say where B first parts from A, and show the telling points."""

import json
import os
import tempfile
from pathlib import Path

from numgemma.debug.diff import diff, render
from numgemma.dump import read_dump
from numgemma.errors import InputError


def add_arguments(parser):
    parser.add_argument("a", metavar="A", help="the reference dump")
    parser.add_argument("b", metavar="B", help="the dump measured against it")
    parser.add_argument("--points", nargs="+", metavar="GLOB", default=["*"], help="compare only these (default: all)")
    parser.add_argument("--all", action="store_true", help="print every point, not a dozen")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole comparison as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the error against depth")


def run(args):
    found = diff(read_dump(args.a), read_dump(args.b), args.points)
    print(render(found, args.all))
    if args.json:
        write_text(args.json, json.dumps(found.to_json(), indent=1, allow_nan=False))
    if args.plot and found.points:
        from numgemma.debug.plot import plot

        plot(found, args.plot, f"{Path(args.b).name} against {Path(args.a).name}")
    return found.exit_code


def write_text(path, text):
    """The whole file or none."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --json.") from error
