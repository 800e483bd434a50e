"""A GGUF file: its keys, and its tensors as they lie in the file, decoded row by row by the package `gguf`.

The header is read here.  The package's own reader makes an object of every string, and Gemma's vocabulary has 780,000
of them: 28 s and 1.5 GB where skipping them takes a tenth of a second.  What a list of strings holds is read when asked
for.
"""

import math
import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from numgemma.errors import InputError
from numgemma.extras import package
from numgemma.incoming import AGAIN, explained, open_regular
from numgemma.smallfloats import BFLOAT16, computable
from numgemma.weights.gguf_steps import steps, told
from numgemma.weights.packed import Packed

MAGIC = b"GGUF"
SCALARS = ("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")  # by type; 8 is text, 9 a list
TEXT, LIST = 8, 9
PLAIN = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16, "F64": np.dtype("<f8")}
PLAIN |= {"I8": np.dtype("i1"), "I16": np.dtype("<i2"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
MAX_TENSORS, MAX_KEYS, MAX_NAME = 100_000, 10_000, 65_535
SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, eq=False)
class Gguf:
    """One file, or all parts of a split one.  keys: of the metadata; tensors: under llama.cpp's names"""

    keys: Mapping[str, Any]
    tensors: dict[str, Packed | np.ndarray]
    header_hash: str


class Cursor:
    """A place in the header; never beyond the end of the file."""

    def __init__(self, data, path):
        self.data, self.path, self.at = data, path, 0

    def take(self, code):
        """One little-endian number."""
        try:
            (value,) = struct.unpack_from("<" + code, self.data, self.at)
        except struct.error:
            raise InputError(f"{self.path}: is a GGUF file cut off in its header; {AGAIN}.") from None
        self.at += struct.calcsize("<" + code)
        return value

    def skip(self, size):
        start = self.at
        if size > len(self.data) - start:
            raise InputError(f"{self.path}: is a GGUF file cut off in its header; {AGAIN}.")
        self.at += size
        return start

    def text(self):
        size = self.take("Q")
        start = self.skip(size)
        return bytes(self.data[start : start + size]).decode("utf-8", "replace")

    def name(self):
        """A text that is the name of something."""
        start, size = self.at, self.take("Q")
        if size > MAX_NAME:
            raise InputError(f"{self.path}: has a name of {size} bytes in its header; {AGAIN}.")
        self.at = start
        return self.text()


@dataclass(frozen=True, eq=False)
class Texts:
    """A list of strings that stays in the file until somebody asks for it."""

    data: Any
    path: Path
    at: int
    count: int

    def __len__(self):
        return self.count

    def __iter__(self) -> Iterator[str]:
        cursor = Cursor(self.data, self.path)
        cursor.at = self.at
        return (cursor.text() for _ in range(self.count))


def read_value(cursor, kind):
    if kind == TEXT:
        return cursor.text()
    if kind == LIST:
        return read_list(cursor)
    code = SCALARS[kind] if kind < len(SCALARS) else None
    if code is None:
        raise InputError(f"{cursor.path}: has a value of an unknown type, {kind}, in its header; {AGAIN}.")
    return cursor.take(code)


def read_list(cursor):
    kind, count = cursor.take("I"), cursor.take("Q")
    if kind == TEXT:
        return skipped_texts(cursor, count)
    code = SCALARS[kind] if kind < len(SCALARS) else None
    if code is None:
        raise InputError(f"{cursor.path}: has a list of an unknown type, {kind}, in its header; {AGAIN}.")
    start = cursor.skip(count * struct.calcsize("<" + code))
    return np.frombuffer(cursor.data, "<" + code, count, start)


def skipped_texts(cursor, count):
    """The place of a list of strings; the cursor goes on behind it."""
    found = Texts(cursor.data, cursor.path, cursor.at, count)
    data, at, end = cursor.data, cursor.at, len(cursor.data)
    length = struct.Struct("<Q").unpack_from
    if count > end:  # every string takes eight bytes at least
        raise InputError(f"{cursor.path}: claims {count} strings in its header; {AGAIN}.")
    for _ in range(count):
        if at + 8 > end:
            raise InputError(f"{cursor.path}: is a GGUF file cut off in its header; {AGAIN}.")
        at += 8 + length(data, at)[0]
    if at > end:
        raise InputError(f"{cursor.path}: is a GGUF file cut off in its header; {AGAIN}.")
    cursor.at = at
    return found


def open_gguf(path: Path) -> Gguf:
    """The file, with all its parts where it is the first of several.  Raises InputError where it is damaged."""
    split = SPLIT.fullmatch(path.name)
    if not split:
        return open_part(path)
    parts = [path.with_name(f"{split[1]}-{i + 1:05}-of-{split[3]}.gguf") for i in range(int(split[3]))]
    files = [open_part(part) for part in parts]
    tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
    if len(tensors) != sum(len(file.tensors) for file in files):
        raise InputError(f"{path}: two of its {len(parts)} parts hold the same tensor; {AGAIN}.")
    return Gguf(files[0].keys, tensors, files[0].header_hash)


def open_part(path: Path) -> Gguf:
    import hashlib

    with open_regular(path) as file, explained(path):
        if os.fstat(file.fileno()).st_size < 24 or file.read(4) != MAGIC:
            raise InputError(f"{path}: is not a GGUF file, or is cut off; {AGAIN}.")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = Cursor(data, path)
    cursor.at = 4
    version, count, keys = cursor.take("I"), cursor.take("Q"), cursor.take("Q")
    check_counts(path, version, count, keys)
    found = {cursor.name(): read_value(cursor, cursor.take("I")) for _ in range(keys)}
    entries = [read_entry(cursor) for _ in range(count)]
    header_hash = hashlib.sha256(data[: cursor.at]).hexdigest()
    alignment = found.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment < 1 << 20:
        raise InputError(f"{path}: general.alignment is {alignment!r:.40}; {AGAIN}.")
    start = -(-cursor.at // alignment) * alignment
    raw = np.frombuffer(data, np.uint8)
    tensors = {name: tensor(path, raw, start + at, name, shape, kind) for name, shape, kind, at in entries}
    if len(tensors) < len(entries):
        raise InputError(f"{path}: names a tensor twice; {AGAIN}.")
    return Gguf(found, tensors, header_hash)


def check_counts(path, version, tensors, keys):
    if version not in (2, 3):
        told = "is big-endian" if version in (2 << 24, 3 << 24) else f"has version {version}"
        raise InputError(f"{path}: {told}, and little-endian GGUF of version 2 or 3 is read here; convert it again.")
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise InputError(f"{path}: claims {tensors} tensors and {keys} keys; {AGAIN}.")


def read_entry(cursor):
    name, axes = cursor.name(), cursor.take("I")
    if not 0 < axes <= 4:
        raise InputError(f"{cursor.path}: is damaged as a GGUF file: tensor {name!r:.80} has {axes} axes; {AGAIN}.")
    sizes = [cursor.take("Q") for _ in range(axes)]
    shape = tuple(reversed(sizes))  # the innermost comes first in the file
    return name, shape, cursor.take("I"), cursor.take("Q")


def tensor(path, raw, start, name, shape, kind):
    """A view on the file: an array where the type is plain, else rows to be decoded."""
    quants, what = package("gguf", "weights"), f"{path}: tensor {name!r:.80}"
    try:
        q = quants.GGMLQuantizationType(kind)
        block, size = quants.GGML_QUANT_SIZES[q]
    except (ValueError, KeyError):
        raise InputError(f"{what} has the unknown type {kind}; a newer package `gguf` may know it.") from None
    if shape[-1] % block:
        raise InputError(f"{what} has rows of {shape[-1]}, no multiple of {q.name}'s {block}; {AGAIN}.")
    width = shape[-1] // block * size
    rows = math.prod(shape[:-1])
    if start + rows * width > len(raw):
        raise InputError(f"{what} ends after the end of the file; {AGAIN}.")
    mine = raw[start : start + rows * width]
    if q.name in PLAIN:
        return computable(mine.view(PLAIN[q.name]).reshape(shape))
    if q.name in ("Q1_0", "Q2_0"):
        raise InputError(f"{path}: tensor {name!r:.80} is {q.name}, which is not read; quantise to another type.")
    by_rows = mine.reshape(rows, width)
    decode = quants.quants.dequantize
    step = (lambda at: steps(q.name, by_rows[at])) if told(q.name) else None
    rows_of = lambda at: np.asarray(decode(by_rows[at], q), np.float32)  # noqa: E731
    return Packed(shape, q.name, rows_of, (by_rows,), step, raw=(q.name, by_rows))
