"""The rows of a sweep in a file, one JSON object a line: each is there once, whatever is killed and begun again.

A line is written whole and reaches the disk before the next pair is taken up.  What a kill leaves of a line is cut off
by whoever opens the file next.  One process writes at a time.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from numgemma.atomic import remedy, target
from numgemma.debug.sweep.pair import SCHEMA
from numgemma.dump import all_typed
from numgemma.errors import InputError
from numgemma.incoming import MOST, parse_object

ROW: dict[str, Any] = dict.fromkeys(("key", "checkpoint", "engine", "prompt", "verdict", "reason"), str)
ROW |= {"tokens": int, "first": str | None, "worst": dict[str, Any] | None, "layers": dict[int, float]}
ROW |= {"kl": float | None, "nonfinite": bool}
POINT: dict[str, Any] = {"point": str, "rel": float | None, "size": float | None}


class Ledger:
    """The file, open and locked; a context manager.  rows: key -> row, of all sweeps that were written there.

    Raises InputError where it cannot be written, holds something else, or another sweep is writing it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}

    def __enter__(self):
        self.handle = self.opened(target(self.path))
        try:
            self.read()
        except BaseException:
            os.close(self.handle)
            raise
        return self

    def opened(self, path: Path) -> int:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            step = remedy(error, otherwise="choose another -o")
            raise InputError(f"{self.path}: {error.strerror}; {step}.") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise InputError(f"{self.path}: another sweep is writing it; wait for it, or choose another -o.") from None
        return handle

    def read(self):
        size = os.fstat(self.handle).st_size
        if size > MOST:
            raise InputError(f"{self.path}: is larger than {MOST:,} bytes; begin another file with -o.")
        whole, _, torn = os.pread(self.handle, size, 0).rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
            self.take(line, number)
        if torn:  # a kill came between its first byte and its last
            if not torn.startswith(b"{"):
                raise InputError(f"{self.path}: is no file of a sweep; choose another -o.")
            os.ftruncate(self.handle, size - len(torn))

    def take(self, line: bytes, number: int):
        again = "choose another -o, or remove the line"
        where = f"{self.path}, line {number}"
        row = parse_object(line, f"{where}: the row", again)
        if row.get("schema") != SCHEMA:
            raise InputError(f"{where}: is no row of a sweep ({SCHEMA}); {again}.")
        row = all_typed(row, ROW, f"{where}: ", ROW)
        if row["worst"] is not None:
            row["worst"] = all_typed(row["worst"], POINT, f"{where}: worst: ", POINT)
        row["layers"] = {str(layer): rel for layer, rel in row["layers"].items()}
        self.rows.setdefault(row["key"], row)

    def add(self, row: dict[str, Any]) -> bool:
        """Write a row; False where that pair has one."""
        if row["key"] in self.rows:
            return False
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        size = os.fstat(self.handle).st_size
        try:
            if os.write(self.handle, line) != len(line):
                raise OSError(28, "No space left on device")
            os.fsync(self.handle)
        except OSError as error:
            os.ftruncate(self.handle, size)
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); free some space.") from None
        self.rows[row["key"]] = row
        return True

    def __exit__(self, *_):
        os.close(self.handle)
