"""--json, --html and --png, for the verbs that compare; each says which files it has written."""

import json
from pathlib import Path

from numgemma.atomic import write_whole
from numgemma.cli import terminal
from numgemma.debug.report import Subject, write_html, write_png
from numgemma.errors import InputError
from numgemma.incoming import STANDARD
from numgemma.model import Model, load


def add_report(parser):
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="write a report: one page, complete in itself")
    parser.add_argument("--png", type=Path, metavar="DIR", help="the report's pictures as PNG files")


def write_json(path, found):
    """The whole of what was found; to standard output where the path is "-"."""
    text = json.dumps(found.to_json(), indent=1, allow_nan=False)
    if path == STANDARD:
        terminal.print_alone(text)
        return
    write_whole(path, text)
    written(path)


def written(*paths):
    for path in paths:
        print(f"{path}: written")


def write_report(args, model: Model | str | None, a, b, diff=None, replay=None):
    """What --html and --png ask for, of two dumps.  model: whose tokenizer gives the tokens their texts."""
    if not (args.html or args.png):
        return
    first, second = (args.a, args.b) if diff else (args.ckpt, args.dump)
    paths = str(first), str(second)
    title = f"{Path(paths[1]).name} against {Path(paths[0]).name}"
    subject = Subject(diff, a, b, replay, words(model, a, b), paths, title)
    if args.html:
        write_html(args.html, subject)
        written(args.html)
    if args.png:
        written(*write_png(args.png, subject))


def words(model, *dumps):
    """The text of every token; nothing where there is no tokenizer or no dump knows its ids."""
    ids = next((dump.meta["ids"] for dump in dumps if dump.meta.get("ids")), ())
    try:
        return (load(model) if isinstance(model, str) else model).tokenizer.pieces(ids) if model else ()
    except InputError:
        return ()
