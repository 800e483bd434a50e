"""Files and folders that are written whole or not at all.

What grows stands beside its target as .NAME.RANDOM.partial, and is locked for as long as its writer lives.  A partial
that nobody locks was left by a killed writer; the next one who writes to that name removes it.
"""

import ctypes
import errno
import glob
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from numgemma.errors import InputError

try:
    import fcntl
except ModuleNotFoundError:  # in a browser, where nobody else writes
    fcntl = None  # type: ignore[assignment]

AT_FDCWD, NOREPLACE, EXCHANGE = -100, 1, 2  # of Linux's renameat2


def target(path):
    """Where a new file goes: through links, and never over a folder or a device.  Raises InputError."""
    try:
        found = Path(os.path.realpath(path))
        found.is_dir()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written ({said(error)}); choose another name.") from None
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


def said(error):
    """What the system says of an error, without the path that stands before it already."""
    return getattr(error, "strerror", None) or str(error)


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


# what is not yet whole


def begin(path: Path, folder=False) -> tuple[Path, int]:
    """A new partial beside `path`, and the descriptor that holds its lock; what killed writers left is removed."""
    sweep(path)
    make = tempfile.mkdtemp if folder else mkfile
    while True:
        partial = make(prefix=f".{stem(path)}.", suffix=".partial", dir=path.parent)
        lock = locked(partial)
        if lock is not None:
            return Path(partial), lock


def mkfile(**place):
    handle, name = tempfile.mkstemp(**place)
    os.close(handle)
    return name


def stem(path):
    """The name, short enough to bear a suffix."""
    return os.fsdecode(os.fsencode(path.name)[:200])


def locked(path, certainly=False):
    """A descriptor that locks a file or a folder; None where another holds it, or it has gone.

    On a file system without locks it locks nothing; None where the lock should be certain.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.lstat(path)):  # and not removed between the two
            return handle
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK and not certainly:
            return handle
    os.close(handle)
    return None


def sweep(path: Path):
    """Remove the partials of a name that nobody is writing; a folder that was being replaced goes back."""
    place = path.parent / f".{glob.escape(stem(path))}.*"
    for found in map(Path, glob.glob(f"{place}.replaced")):
        if (lock := locked(found, certainly=True)) is not None:
            with closing(lock):
                if os.path.lexists(path):
                    remove(found)
                else:
                    os.rename(found, path)
    for found in map(Path, glob.glob(f"{place}.partial")):
        if (lock := locked(found, certainly=True)) is not None:
            with closing(lock):
                remove(found)


@contextmanager
def closing(handle):
    try:
        yield
    finally:
        os.close(handle)


def remove(path: Path):
    """A file or a folder, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):  # another user's
        path.unlink(missing_ok=True)


# files


@contextmanager
def whole(path):
    """A temporary path to write to; it becomes `path` when the block ends, and is gone when the block fails.

    Raises InputError where it cannot be written.
    """
    path = target(path)
    with writing(path):
        partial, lock = begin(path)
        with closing(lock):
            try:
                yield partial
                partial.chmod(0o666 & ~umask())
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)


@contextmanager
def writing(path):
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({said(error)}); {remedy(error)}.") from error


def write_whole(path, text):
    """A text file."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


# folders


def inventory(folder: Path):
    """What a folder holds, so that a change shows: the names, and each one's place on the disk, size and time."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            state = os.lstat(os.path.join(place, name))
            size = 0 if name in folders else state.st_size
            found[os.path.join(os.path.relpath(place, folder), name)] = (state.st_ino, size, state.st_mtime_ns)
    return found


@contextmanager
def becoming(path: Path, replaces=None):
    """A directory to fill, which becomes `path` when all of it is there, and goes without a trace otherwise.

    replaces: the inventory of a folder that may make room; None: nothing may.  Raises InputError where something else
    stands there by the end, and leaves that alone.
    """
    with writing(path):
        partial, lock = begin(path, folder=True)
        with closing(lock):
            try:
                yield partial
                partial.chmod(0o777 & ~umask())
                take_place(partial, path, replaces)
            finally:
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def passing(name):
    """A folder among the system's temporary files; it goes with the block, or with the next one of that name."""
    place = Path(tempfile.gettempdir()) / name
    with writing(place):
        folder, lock = begin(place, folder=True)
    with closing(lock):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def take_place(partial: Path, path: Path, replaces=None):
    """Rename, never over what was not there at the start; what is replaced has the partial's name then, or none."""
    if replaces is not None and os.path.lexists(path):
        change_places(partial, path)
        if partial.exists() and inventory(partial) != replaces:
            change_places(partial, path)
            raise InputError(f"{path}: has changed while its successor was written, and is kept; choose another -o.")
        return
    try:
        if not rename(partial, path, NOREPLACE):
            if os.path.lexists(path):
                raise FileExistsError
            os.rename(partial, path)  # never over a file, or a folder that holds anything
    except OSError as error:
        if not os.path.lexists(path):
            raise
        raise InputError(f"{path}: is there by now, and is not replaced; choose another -o, or --force.") from error


def change_places(a: Path, b: Path):
    """Two folders change names: in one step, or where the system has none, in three that `sweep` can undo."""
    if rename(a, b, EXCHANGE):
        return
    aside = a.with_suffix(".replaced")
    os.rename(b, aside)
    lock = locked(aside)
    try:
        os.rename(a, b)
        os.rename(aside, a)
    except OSError:
        if not os.path.lexists(b):
            os.rename(aside, b)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def rename(old: Path, new: Path, flag: int) -> bool:
    """A rename with a flag of Linux's renameat2; False where the system or the file system knows no such thing."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number))
