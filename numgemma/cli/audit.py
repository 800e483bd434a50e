"""Judge a file by the weights it was made from, tensor by tensor: quantised, merged or edited; nothing is run."""

import shutil
import sys
from pathlib import Path

from numgemma.atomic import write_whole
from numgemma.cli.report import write_json, written
from numgemma.surgery.audit import EXTRA, FAITHFUL, MISSING, WRONG, Verdict
from numgemma.surgery.audit_files import audit_files
from numgemma.surgery.findings import spelled

SHOWN = 20  # tensors that a terminal is given; the page and the JSON have all


def add_arguments(parser):
    parser.add_argument("file", metavar="FILE", help="a checkpoint in any format that is read: GGUF, safetensors, ...")
    parser.add_argument("--against", metavar="ORIGINAL", required=True, help="the checkpoint it was made from")
    parser.add_argument(
        "--adapter", metavar="DIR", action="append", default=[], help="FILE should be ORIGINAL with this merged in"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all tensors as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="write one page with the error by layer")


def run(args):
    found = audit_files(args.file, args.against, args.adapter, told())
    print(render(found))
    if args.json:
        write_json(args.json, found)
    if args.html:
        from numgemma.surgery.audit_page import to_html

        write_whole(args.html, to_html(found))
        written(args.html)
    return 0 if found.faithful else 1


def told():
    """Shows on a terminal how many tensors are done, and nothing in a pipe."""
    if not sys.stderr.isatty():
        return lambda done, of: None

    def show(done, of):
        print(f"\r{done} of {of} tensors ", end="\n" if done == of else "", file=sys.stderr, flush=True)

    return show


def render(found):
    """A table of formats, what is not faithful with its causes, and the verdict."""
    lines = [*found.notes, *by_format(found), ""]
    bad = [v for v in found.tensors if v.state not in (FAITHFUL, EXTRA)]
    for v in sorted(bad, key=lambda v: (v.state not in (WRONG, MISSING), -(v.rel or 0)))[:SHOWN]:
        lines += line(v)
    if len(bad) > SHOWN:
        lines.append(f"and {len(bad) - SHOWN} more; --json or --html has them all")
    if extra := found.of(EXTRA):
        lines.append(f"{len(extra)} tensors that the original does not have: {spelled(v.name for v in extra)}")
    return "\n".join([*lines, verdict(found)])


def by_format(found):
    """A line for each format: tensors, bits a weight, the usual error."""
    forms = dict.fromkeys(v.format for v in found.tensors if v.format)
    rows = [("format", "tensors", "median error", "largest", "cost")]
    for form in forms:
        some = [v for v in found.tensors if v.format == form]
        errors = sorted(v.rel for v in some if v.rel is not None) or [0.0]
        cost = next((f"{v.cost:.2g}" for v in some if v.cost), "exact")
        rows.append((form, str(len(some)), f"{errors[len(errors) // 2]:.2g}", f"{errors[-1]:.2g}", cost))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def line(v: Verdict):
    wide = max(40, shutil.get_terminal_size().columns)
    numbers = [f"error {v.rel:.2g}"] if v.rel is not None else []
    numbers += [f"{v.beyond:.0%} beyond half a step"] if v.beyond else []
    yield f"{v.state:<8} {v.name}  {v.format}  {', '.join(numbers)}".rstrip()[:wide]
    yield from (f"         {cause}" for cause in v.causes)


def verdict(found):
    bad = len(found.of(WRONG)) + len(found.of(MISSING))
    if not bad:
        return f"faithful: {len(found.of(FAITHFUL))} of {len(found.tensors)} tensors are, none is wrong or missing"
    first = next(v for v in found.tensors if v.state in (WRONG, MISSING))
    why = f": {first.causes[0]}" if first.causes else ""
    return f"not faithful: {len(found.of(WRONG))} wrong, {len(found.of(MISSING))} missing; first {first.name}{why}"
