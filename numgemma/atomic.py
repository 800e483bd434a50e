"""Files that are written whole or not at all."""

import errno
import os
from contextlib import contextmanager
from pathlib import Path

from numgemma.errors import InputError


def target(path):
    """Where a new file goes: through links, and never over a folder or a device.  Raises InputError."""
    found = Path(os.path.realpath(path))
    if found.is_dir():
        raise InputError(f"{path}: cannot be written, it is a folder; name a file in it, or choose another name.")
    if found.exists() and not found.is_file():
        raise InputError(f"{path}: cannot be written, it is there and is no file; choose another name.")
    if found.parent.exists() and not found.parent.is_dir():
        raise InputError(f"{path}: cannot be written, {found.parent} is a file and no folder; choose another name.")
    if not found.parent.is_dir():
        raise InputError(f"{path}: cannot be written, there is no folder {found.parent}; create it.")
    return found


def remedy(error: OSError, full="free some space", otherwise="choose another name"):
    """The next step where a file cannot be written: to free space helps where there is none."""
    return full if error.errno in (errno.ENOSPC, errno.EDQUOT) else otherwise


@contextmanager
def whole(path):
    """A temporary path to write to; it becomes `path` when the block ends, and is gone when the block fails.

    Raises InputError where it cannot be written.
    """
    path = target(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); {remedy(error)}.") from error
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path, text):
    """A text file."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
