"""Safetensors files as read-only arrays on a memory map, and a checkpoint directory as a tree of weights.

The format is read here, not by the `safetensors` library: every tensor stays a view on the file (bfloat16 too), so a
10 GB checkpoint opens at once, and a header that lies ends in a sentence.  Nothing is ever unpickled.
"""

import hashlib
import json
import math
import mmap
import os
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from numpy.lib.array_utils import byte_bounds

from numgemma.errors import InputError

CODES = {"BF16": ml_dtypes.bfloat16, "F16": "<f2", "F32": "<f4", "F64": "<f8"}
CODES |= {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
DTYPES = {name: np.dtype(code) for name, code in CODES.items()}

MAX_HEADER = 100_000_000  # the format's own limit, in bytes
MAX_TENSORS = 100_000  # in one file; the largest Gemma has about two thousand
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
AGAIN = "download it again"
FITS = "check that config.json belongs to these weights"


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
        raw = file.read(min(os.fstat(file.fileno()).st_size, MAX_HEADER))
    return parse_object(raw, f"{path}: the file")


# one .safetensors file: 8 bytes of header length, a JSON header, the tensors end to end


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
    length = int.from_bytes(file.read(8), "little")
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
    with explained(path), open(path, "rb") as file:
        return parse_header(path, file)


def open_safetensors(path: str | Path) -> TensorFile:
    """Tensors as read-only views on one map of the file: a page is read when it is used."""
    with explained(path), open(path, "rb") as file:
        header = parse_header(path, file)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data = np.frombuffer(mapped, np.uint8)[header.data_start :]
    tensors = {name: data[e.start : e.stop].view(e.dtype).reshape(e.shape) for name, e in header.entries.items()}
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


# a checkpoint: config.json beside one such file, or beside shards that an index lists


def short_name(stored: str) -> str:
    """The name without its prefix: model.language_model.norm.weight -> norm.weight."""
    return re.sub(r"^(model\.language_model|language_model\.model|language_model|model)\.", "", stored)


@dataclass(frozen=True, eq=False)
class Weights:
    """A read-only tree: w.at("layers.3").at("self_attn")["q_proj.weight"]; iterates over the names below its scope."""

    tensors: Mapping[str, np.ndarray]
    source: str | Path = "these weights"
    scope: str = ""  # ends in a dot when not empty
    entered: Callable[[str], object] = str  # is told of each scope that is entered; `streaming` listens

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self:
            raise InputError(f"{self.source}: has no tensor {self.scope + name!r}; {FITS}.")
        return self.tensors[self.scope + name]

    def __contains__(self, name: str) -> bool:
        return self.scope + name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self.scope) for name in self.tensors if name.startswith(self.scope))

    def at(self, scope: str) -> "Weights":
        self.entered(self.scope + scope)
        return replace(self, scope=f"{self.scope}{scope}.")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    folder: Path  # of config.json
    config: dict[str, Any]
    weights: Weights
    header_hashes: dict[str, str]  # file name -> sha256 of its header
    generation_config: dict[str, Any] | None = None


def read_weight_map(index: Path) -> dict[str, str]:
    weight_map = read_object(index, AGAIN).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no weight_map of tensor names to shards; {AGAIN}.")
    for shard in weight_map.values():
        # a plain file name: an index must not make us open files elsewhere
        if not isinstance(shard, str) or not re.fullmatch(r"[\w .-]+\.safetensors", shard):
            raise InputError(
                f"{index}: {reprlib.repr(shard)} is not the name of a .safetensors file beside it; {AGAIN}."
            )
    return weight_map


def open_shards(index: Path) -> dict[str, TensorFile]:
    weight_map = read_weight_map(index)
    files = {shard: open_safetensors(index.parent / shard) for shard in sorted(set(weight_map.values()))}
    listed = set(weight_map.items())
    found = {(name, shard) for shard, file in files.items() for name in file.tensors}
    for name, shard in sorted(listed ^ found):
        fault = "is listed for, but not in," if (name, shard) in listed else "is in, but not listed for,"
        raise InputError(f"{index}: tensor {name!r:.120} {fault} {shard}; download both again.")
    return files


def open_files(path: Path) -> dict[str, TensorFile]:
    """All tensor files of a checkpoint by name; a single file wins over an index, as in Transformers."""
    if not os.path.isdir(path):
        return {path.name: open_safetensors(path)}
    with explained(path):
        names = sorted(os.listdir(path))
    if SINGLE in names:
        return {SINGLE: open_safetensors(path / SINGLE)}
    if INDEX in names:
        return open_shards(path / INDEX)
    for name in names:
        if name.endswith((".bin", ".pt", ".pth", ".ckpt")):
            raise InputError(f"{path}: {name} is not unpickled, as that can run any code; convert it to safetensors.")
    raise InputError(f"{path}: has neither {SINGLE} nor {INDEX}; name the .safetensors file or its directory.")


def join_files(path: Path, files: dict[str, TensorFile]) -> Weights:
    stored: dict[str, str] = {}
    tensors: dict[str, np.ndarray] = {}
    for file in files.values():
        for name, tensor in file.tensors.items():
            short = short_name(name)
            if short in stored:
                raise InputError(f"{path}: {stored[short]!r} and {name!r} are both {short!r}; remove one of them.")
            stored[short], tensors[short] = name, tensor
    return Weights(MappingProxyType(tensors), path)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A directory, or one .safetensors file with its config.json beside it."""
    path = Path(path)
    files = open_files(path)
    folder = path if path.is_dir() else path.parent
    config = read_object(folder / "config.json", "copy config.json from the model's repository, beside the weights")
    generation = folder / "generation_config.json"
    generation_config = read_object(generation, "check its permissions") if generation.exists() else None
    hashes = {name: file.header_hash for name, file in files.items()}
    return Checkpoint(folder, config, join_files(path, files), hashes, generation_config)


def check_tensors(weights: Weights, expected: Mapping[str, tuple[int, ...]], ignored: Iterable[str] = ()) -> None:
    """Every tensor is there in its shape and read, or matches one of the regular expressions in `ignored`."""
    pattern = re.compile("|".join(f"(?:{one})" for one in ignored) or r"(?!)")
    found = {name: weights[name].shape for name in weights}
    wrong = [name for name in expected if name in found and found[name] != tuple(expected[name])]
    faults = {
        "missing": [repr(name) for name in expected if name not in found],
        "of the wrong shape": [f"{name!r} is {list(found[name])}, not {list(expected[name])}" for name in wrong],
        "read by nobody": [repr(name) for name in found if name not in expected and not pattern.fullmatch(name)],
    }
    lines = [
        f"tensors {fault}: {len(some)} ({', '.join(some[:3])}{', ...' if len(some) > 3 else ''})"
        for fault, some in faults.items()
        if some
    ]
    if lines:
        raise InputError(f"{weights.source}: {'; '.join(lines)}; {FITS}.")
