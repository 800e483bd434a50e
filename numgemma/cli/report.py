"""--html and --png, for the verbs that compare."""

from pathlib import Path

from numgemma.debug.report import Subject, write_html, write_png
from numgemma.errors import InputError
from numgemma.model import Model, load


def add_report(parser):
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="write a report: one page, complete in itself")
    parser.add_argument("--png", type=Path, metavar="DIR", help="the report's pictures as PNG files")


def write_report(args, model: Model | str | None, a, b, diff=None, replay=None):
    """What --html and --png ask for, of two dumps.  model: whose tokenizer gives the tokens their texts."""
    if not (args.html or args.png):
        return
    paths = (args.a, args.b) if diff else (args.ckpt, args.dump)
    title = f"{Path(paths[1]).name} against {Path(paths[0]).name}"
    subject = Subject(diff, a, b, replay, words(model, a, b), paths, title)
    if args.html:
        write_html(args.html, subject)
    if args.png:
        write_png(args.png, subject)


def words(model, *dumps):
    """The text of every token; nothing where there is no tokenizer or no dump knows its ids."""
    ids = next((dump.meta["ids"] for dump in dumps if dump.meta.get("ids")), ())
    try:
        return (load(model) if isinstance(model, str) else model).tokenizer.pieces(ids) if model else ()
    except InputError:
        return ()
