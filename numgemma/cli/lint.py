"""Check a checkpoint against every rule of the family, and say all that is wrong or odd with it."""

import json
import shutil
import textwrap
from pathlib import Path

from numgemma.cli.building import progress
from numgemma.surgery.lint import lint, structure, to_json

WIDE = 120


def add_arguments(parser):
    parser.add_argument("ckpt", type=Path, metavar="CKPT")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--no-values", action="store_true", help="look at config, names and shapes alone; no weight is read"
    )


def run(args):
    found = structure(args.ckpt) if args.no_values else lint(args.ckpt, progress())
    report = to_json(args.ckpt, found)
    print(json.dumps(report, indent=1, ensure_ascii=False) if args.json else render(found, report["counts"]))
    return 1 if report["counts"]["error"] else 0


def render(found, counts):
    """A line for each finding, then how many there are."""
    width = min(WIDE, shutil.get_terminal_size().columns)
    lines = [line for finding in found for line in wrapped(finding, width)]
    said = [f"{n} {severity}{'s' if n > 1 else ''}" for severity, n in counts.items() if n]
    return "\n".join([*lines, ", ".join(said) or "nothing wrong, nothing odd"])


def wrapped(finding, width):
    return textwrap.wrap(
        f"{finding.severity:<9}{finding.text}", max(40, width), subsequent_indent=" " * 9, break_on_hyphens=False
    )
