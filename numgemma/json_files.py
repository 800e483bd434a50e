"""Files that are read whole: what the file system refuses, and JSON that is none, end in one sentence."""

import json
import os
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numgemma.errors import InputError

MOST = 100_000_000  # bytes of a JSON file that are read
AGAIN = "download it again"


@contextmanager
def explained(path: str | Path, advice: str = "check the path and its permissions, and that the download is complete"):
    """Turns what the file system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; {advice}.") from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ: json.loads would silently keep the last of two."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {twice!r:.120} stands there twice")
    return value


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not JSON ({error}); {AGAIN}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{what} is not a JSON object; {AGAIN}.")
    return value


def read_object(path: Path, advice: str) -> dict[str, Any]:
    with explained(path, advice), open(path, "rb") as file:
        raw = file.read(min(os.fstat(file.fileno()).st_size, MOST))
    return parse_object(raw, f"{path}: the file")
