"""A safetensors file as read-only arrays on a memory map: 8 bytes of header length, a JSON header, tensors end to end.

The format is read here, not by the `safetensors` library: every tensor stays a view on the file (bfloat16 too), so a
10 GB checkpoint opens at once, and a header that lies ends in a sentence.  Nothing is ever unpickled.
"""

import hashlib
import math
import mmap
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds

from numgemma.errors import InputError
from numgemma.incoming import AGAIN, explained, open_regular, parse_object
from numgemma.smallfloats import BFLOAT16, FLOAT8, computable

CODES: dict[str, Any] = {"BF16": BFLOAT16, "F16": "<f2", "F32": "<f4", "F64": "<f8"}
CODES |= {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
CODES |= {"U64": "<u8", "U32": "<u4", "U16": "<u2"} | FLOAT8
DTYPES = {name: np.dtype(code) for name, code in CODES.items()}

MAX_HEADER = 100_000_000  # the format's own limit, in bytes
MAX_TENSORS = 100_000  # in one file; the largest Gemma has about two thousand


class Entry(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # bytes, counted from Header.data_start
    stop: int


@dataclass(frozen=True)
class Header:
    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int
    sha256: str  # of the header's bytes: names a checkpoint without reading its data


class TensorFile(NamedTuple):
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    header_hash: str


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def is_shape(value: Any, itemsize: int) -> bool:
    """What NumPy can hold: it refuses (0, 2**62, 2**62) although no byte is needed."""
    counts = isinstance(value, list) and len(value) <= 64 and all(map(is_count, value))
    return counts and math.prod(n or 1 for n in value) * itemsize < 2**63


def parse_entry(fields: Any, what: str) -> Entry:
    try:
        kind, shape, (start, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise InputError(f"{what} lacks a dtype, a shape or two data_offsets in the header; {AGAIN}.") from None
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise InputError(f"{what} has dtype {reprlib.repr(kind)}, not one of {', '.join(DTYPES)}; convert it to BF16.")
    if not is_shape(shape, dtype.itemsize):
        raise InputError(f"{what} has an impossible shape, {reprlib.repr(shape)}; {AGAIN}.")
    if not (is_count(start) and is_count(stop) and start <= stop):
        raise InputError(f"{what} has impossible data_offsets, {reprlib.repr([start, stop])}; {AGAIN}.")
    due = math.prod(shape) * dtype.itemsize
    if stop - start != due:
        raise InputError(f"{what} has {stop - start} bytes where {shape} of {kind} needs {due}; {AGAIN}.")
    return Entry(dtype, tuple(shape), start, stop)


def check_layout(path: str | Path, entries: dict[str, Entry], size: int) -> None:
    """The tensors fill the data of the file end to end, as the format demands."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            fault = "overlaps the tensor before it" if entry.start < end else "leaves a hole before it"
            raise InputError(f"{path}: tensor {name!r:.120} {fault}; {AGAIN}.")
        end = entry.stop
    if end > size:
        raise InputError(f"{path}: is cut short, {size} of {end} bytes of tensors are there; {AGAIN}.")
    if end < size:
        raise InputError(f"{path}: holds {size - end} bytes after its last tensor; {AGAIN}.")


def read_raw_header(path: str | Path, file: BinaryIO, size: int) -> bytes:
    first = file.read(8)
    if first == b"version ":
        raise InputError(f"{path}: is a pointer of Git LFS, not the weights; run `git lfs pull` in its folder.")
    length = int.from_bytes(first, "little")
    if size < 8 or length > min(size - 8, MAX_HEADER):
        fault = "is not a safetensors file, or is cut off in its header"
        raise InputError(f"{path}: {fault}; {AGAIN}, or convert it to safetensors if it is of another format.")
    raw = file.read(length)
    if raw.count(b'"data_offsets"') > MAX_TENSORS:  # counted before parsing, which would take seconds and gigabytes
        raise InputError(f"{path}: names more than {MAX_TENSORS} tensors; split it into shards.")
    return raw


def parse_header(path: str | Path, file: BinaryIO) -> Header:
    size = os.fstat(file.fileno()).st_size
    raw = read_raw_header(path, file, size)
    entries = parse_object(raw, f"{path}: the header")
    metadata = entries.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())):
        raise InputError(f"{path}: __metadata__ in the header is not an object of strings; {AGAIN}.")
    parsed = {name: parse_entry(fields, f"{path}: tensor {name!r:.120}") for name, fields in entries.items()}
    data_start = 8 + len(raw)
    check_layout(path, parsed, size - data_start)
    return Header(parsed, metadata, data_start, hashlib.sha256(raw).hexdigest())


def read_header(path: str | Path) -> Header:
    """The checked header of a safetensors file; the data is not touched."""
    with open_regular(path) as file, explained(path):
        return parse_header(path, file)


def open_safetensors(path: str | Path) -> TensorFile:
    """Tensors as read-only views on one map of the file: a page is read when it is used."""
    with open_regular(path) as file, explained(path):
        header = parse_header(path, file)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data = np.frombuffer(mapped, np.uint8)[header.data_start :]
    tensors = {n: computable(data[e.start : e.stop].view(e.dtype).reshape(e.shape)) for n, e in header.entries.items()}
    return TensorFile(tensors, header.metadata, header.sha256)


def release(x: np.ndarray) -> None:
    """Let go of the pages of a mapped array, so that a checkpoint larger than memory can stream by; they come back."""
    whole = x
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    mapped = getattr(whole.base, "obj", whole.base)  # NumPy holds the map, or a memoryview of it
    if not isinstance(mapped, mmap.mmap) or not x.size:
        return
    low, high = byte_bounds(x)
    start = (low - byte_bounds(whole)[0]) // mmap.PAGESIZE * mmap.PAGESIZE
    mapped.madvise(mmap.MADV_DONTNEED, start, high - byte_bounds(whole)[0] - start)
