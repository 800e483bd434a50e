"""The one exception whose text is meant for the user, and how a text is made fit to be shown, and what it offers."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 280  # characters of a message
HEAD = 150  # of them before what is cut out: the file's name stands first, the next step last

# What would move the cursor, set a window's title or turn the text around; and halves of characters.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, kept: str = "") -> str:
    """The text with control characters as \\u001b and the like, which JSON reads back; `kept` stay as they are."""
    return UNSEEN.sub(lambda found: found[0] if found[0] in kept else f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """A message on one line, its middle cut out where it is too long."""
    text = visible(" ".join(re.split(r"[ \t\n\r\f\v]+", text.strip())))
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)  # code points that are no characters too
    return text if len(text) <= LONGEST else f"{text[:HEAD].rstrip()} ... {text[HEAD + 5 - LONGEST :].lstrip()}"


class InputError(ValueError):
    """Input that cannot be used.  Its text is one sentence that names the file and the next step.

    Whatever the sentence quotes, it is one line without control characters, of at most LONGEST characters.
    The command line prints the text and exits with 2; a caller of the library may catch it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


class NonFiniteError(InputError):
    """A NaN or an infinity came up in the computation; the command line exits with 4."""


def meant(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: "; perhaps X is meant", or "" where none is near."""
    near = get_close_matches(name[:200], list(known), n=1, cutoff=0.75)
    return f"; perhaps {near[0]} is meant" if near else ""
