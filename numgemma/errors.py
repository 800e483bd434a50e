"""The one exception whose text is meant for the user, and what its text offers."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Input that cannot be used.  Its text is one sentence that names the file and the next step.

    The command line prints the text and exits with 2; a caller of the library may catch it.
    """


class NonFiniteError(InputError):
    """A NaN or an infinity came up in the computation; the command line exits with 4."""


def meant(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: "; perhaps X is meant", or "" where none is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f"; perhaps {near[0]} is meant" if near else ""
