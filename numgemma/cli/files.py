"""Pictures, recordings and clips on the command line: the options, and how they join a prompt or a chat."""

import sys
from collections.abc import Callable
from pathlib import Path

from numgemma.cli.numbers import whole_number
from numgemma.prompt import processor
from numgemma.prompt.chat import KINDS
from numgemma.prompt.images import BUDGETS


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
        type=whole_number,
        metavar="N",
        help=f"at most so many for each picture and each frame of a clip: {budgets} (default: as the checkpoint says)",
    )


def given_files(args) -> processor.Files:
    """The files of each kind that the options name."""
    return {kind: getattr(args, kind) for kind in KINDS}


def remark(files: processor.Files, settings: Callable[[], processor.Processor]):
    """Say on the terminal of which recordings the model hears a part.  settings: asked for where there are some"""
    if files.get("audio"):
        for sentence in processor.cut_short(files["audio"], settings()):
            print(f"numgemma: {sentence}", file=sys.stderr)
