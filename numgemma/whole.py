"""Files that are written whole or not at all."""

import os
from contextlib import contextmanager
from pathlib import Path

from numgemma.errors import InputError


@contextmanager
def whole(path):
    """A temporary path to write to; it becomes `path` when the block ends, and is gone when the block fails.

    Raises InputError where it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another file.") from error
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path, text):
    """A text file."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
