"""Files that come in: regular ones alone, of bounded size, and JSON read strictly.

A FIFO where a file should be would block for ever, a device would never end.
"""

import json
import os
import re
import stat
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from numgemma.errors import InputError

MOST = 100_000_000  # bytes of a file that is read as a whole: what the safetensors format allows a header
STANDARD = Path("-")  # in a file's place: standard input, or standard output
ADVICE = "check the path and its permissions, and that the download is complete"
AGAIN = "download it again"


@contextmanager
def explained(path: str | Path, advice: str = ADVICE):
    """Turns what the file system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; {advice}.") from None
    except UnicodeEncodeError:
        raise InputError(f"{path}: is no name of a file; {advice}.") from None


def open_regular(path: str | Path, advice: str = ADVICE) -> BinaryIO:
    """A regular file, open for reading.  Raises InputError where it is none, or cannot be read."""
    if "\0" in str(path):
        raise InputError(f"{path}: is no name of a file; {advice}.")
    with explained(path, advice):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        mode = os.fstat(handle).st_mode
        if stat.S_ISREG(mode):
            return open(handle, "rb")
    os.close(handle)
    what = "Is a directory" if stat.S_ISDIR(mode) else "is no regular file, and might never end"
    raise InputError(f"{path}: {what}; {advice}.")


def read_bytes(path: str | Path, advice: str = ADVICE, most: int = MOST) -> bytes:
    """A whole file, or standard input where the path is "-"."""
    if Path(path) == STANDARD:
        where, raw = "standard input", read_standard_input(most + 1)
    else:
        where = str(path)
        with open_regular(path, advice) as file, explained(path, advice):
            raw = file.read(min(os.fstat(file.fileno()).st_size, most) + 1)  # room is taken for what is asked
    if len(raw) > most:
        raise InputError(f"{where}: is larger than {most:,} bytes, which nothing that belongs here is.")
    return raw


def read_standard_input(most):
    if sys.stdin is None or sys.stdin.closed:
        raise InputError("standard input: is closed; name a file instead of -.")
    with explained("standard input", "name a file instead of -"):
        return sys.stdin.buffer.read(most)


def read_text(path: str | Path, advice: str = ADVICE) -> str:
    """A text file, or standard input where the path is "-"."""
    raw = read_bytes(path, advice)
    try:
        return raw.decode().removeprefix("\ufeff")  # editors on Windows put this in front
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8.") from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ: json.loads would silently keep the last of two."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {twice!r:.120} stands there twice")
    return value


def parse_json(raw: bytes | str, what: str, advice: str = AGAIN) -> Any:
    """Any JSON value, whose objects have no key twice.  `what` begins the error's sentence."""
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8")
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise InputError(f"{what} is not JSON (it is nested too deep); {advice}.") from None
    except ValueError as error:
        raise InputError(f"{what} is not JSON ({error}); {advice}.") from None


def parse_object(raw: bytes | str, what: str, advice: str = AGAIN) -> dict[str, Any]:
    value = parse_json(raw, what, advice)
    if not isinstance(value, dict):
        raise InputError(f"{what} is not a JSON object; {advice}.")
    return value


def read_object(path: Path, advice: str) -> dict[str, Any]:
    return parse_object(read_bytes(path, advice), f"{path}: the file")


NAME = 200  # characters of a tensor's or a module's name that a pattern is held against


def pattern_of(pattern: str, what: str) -> re.Pattern[str]:
    """A regular expression that stands in a file.  `what` begins the error's sentence.

    Python's go back over what they have read: with a repeated group for ever, with many repetitions for long.  Neither
    is needed to name modules, whose names are short.
    """
    if re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 3:
        raise InputError(f"{what} {pattern!r:.80} repeats a group, or more than three times; name the modules apart.")
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        raise InputError(f"{what} {pattern!r:.80} is no regular expression; correct it.") from None


@contextmanager
def by_library(sentence: str, advice: str):
    """What a library raises on a file that is not of its format: anything at all, which becomes one sentence.

    A library in Rust may panic, and that is no Exception: it would pass through all that answers one.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # Ctrl-C, and the like
        raise InputError(f"{sentence} ({first_line(error)}); {advice}.") from None


def first_line(error):
    return str(error).splitlines()[0][:100] if str(error).strip() else type(error).__name__
