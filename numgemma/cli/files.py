"""Pictures, recordings and clips on the command line: the options, and how they join a prompt or a chat."""

import sys
from pathlib import Path

from numgemma import processor
from numgemma.chat import KINDS, Attachment
from numgemma.errors import InputError
from numgemma.images import BUDGETS


def add_files(group):
    """The options of files; `group` is a parser or one of its groups."""
    where = "in the order of the placeholders; where the text has none at all, they go before it"
    for kind, what in (("image", "a picture"), ("audio", "a recording"), ("video", "a clip")):
        order = where if kind == "image" else "likewise"
        text = f"{what}, which takes the place of <|{kind}|> in the text; may be repeated, {order}"
        group.add_argument(f"--{kind}", action="append", type=Path, default=[], metavar="FILE", help=text)
    budgets = ", ".join(map(str, BUDGETS))
    group.add_argument(
        "--soft-tokens",
        type=int,
        metavar="N",
        help=f"at most so many for each picture and each frame of a clip: {budgets} (default: as the checkpoint says)",
    )


def given_files(args) -> processor.Files:
    """The files of each kind that the options name."""
    return {kind: getattr(args, kind) for kind in KINDS}


def chat_files(attachments: list[Attachment], given: processor.Files, where) -> processor.Files:
    """Files in the order of a chat's items: the one that an item names, or else the next of those given."""
    queues = {kind: iter(given[kind]) for kind in KINDS}
    files: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for item in attachments:
        source = next(queues[item.kind], None) if item.source is None else item.source
        if not isinstance(source, Path):
            raise InputError(f'{where}: an item of type {item.kind} names no file; add its "path", or --{item.kind}.')
        files[item.kind].append(source)
    for kind, queue in queues.items():
        if left := len(list(queue)):
            raise InputError(f'{where}: has no item for {left} --{kind}; add {{"type": "{kind}"}} to a content list.')
    return files


def join(text, files: processor.Files, args, folder, config, tokenizer, encode):
    """The arrays of a text with placeholders, and its files."""
    settings = processor.read_processor(folder)
    if args.soft_tokens is not None:
        settings = processor.with_budget(settings, args.soft_tokens)
    marks = processor.read_marks(config, tokenizer)
    found = processor.prepare(text, files, settings, marks, encode)
    for sentence in processor.cut_short(files.get("audio", ()), settings):
        print(f"numgemma: {sentence}", file=sys.stderr)
    return found


def place(text, files: processor.Files, config, tokenizer):
    """A plain prompt with a placeholder for each file: its own, or one before it."""
    bos = config.text.bos_token_id
    name = None if bos is None else tokenizer.rust.id_to_token(bos)
    return processor.placed(text, files, processor.read_marks(config, tokenizer), name)
