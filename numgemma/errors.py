"""The one exception whose text is meant for the user."""


class InputError(ValueError):
    """Input that cannot be used.  Its text is one sentence that names the file and the next step.

    The command line prints the text and exits with 2; a caller of the library may catch it.
    """


class NonFiniteError(InputError):
    """A NaN or an infinity came up in the computation; the command line exits with 4."""
