"""--json, --html and --png, for the verbs that compare; each says which files it has written."""

import json
import shlex
from pathlib import Path

from numgemma.atomic import write_whole
from numgemma.cli import terminal
from numgemma.debug.report import Subject, write_html, write_png
from numgemma.debug.report.subject import FLIPS
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
    known = words(model, a, b)
    texts, command = spelled(model, diff), command_of(args)
    subject = Subject(diff, a, b, replay, known, paths, title, spelled=texts, command=command)
    if args.html:
        write_html(args.html, subject)
        written(args.html)
    if args.png:
        written(*write_png(args.png, subject))


def command_of(args) -> str:
    """The command that is running, as one would type it."""
    return shlex.join(["numgemma", *args.words])


def words(model, *dumps):
    """The text of every token; nothing where there is no tokenizer or no dump knows its ids."""
    return pieces(model, next((dump.meta["ids"] for dump in dumps if dump.meta.get("ids")), ()))


def spelled(model, diff) -> dict[int, str]:
    """The texts of the tokens that one side finds likeliest where the other finds another."""
    flips = [flip for found in (diff.logits if diff else ()) for flip in found.flips[:FLIPS]]
    ids = sorted({id for flip in flips for id in (flip.a, flip.b)})
    return dict(zip(ids, pieces(model, ids), strict=False))


def pieces(model: Model | str | None, ids):
    """The text of each id; nothing where there is no tokenizer, or it knows one of them not."""
    try:
        return (load(model) if isinstance(model, str) else model).tokenizer.pieces(ids) if model else ()
    except InputError:
        return ()
