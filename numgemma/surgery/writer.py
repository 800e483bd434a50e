"""Writes a checkpoint of any size, piece by piece: whole or not at all.

All shapes are known beforehand, so a file's header comes first and its tensors follow; memory holds one piece of one.
The files grow in a directory with a temporary name, config.json last (nothing loads a directory without it); then the
directory is renamed.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from numgemma.atomic import becoming, inventory, writing
from numgemma.checkpoint import INDEX, SINGLE
from numgemma.errors import InputError
from numgemma.weights.safetensors import DTYPES, release

CODES = {dtype: code for code, dtype in DTYPES.items()}
PIECE = 1 << 25  # bytes held at a time, about
SHARD = 5 * 10**9  # bytes of tensors per file, where nothing else is asked for
Content = bytes | Path | Callable[[Path], None]
METADATA = {"format": "pt"}  # Transformers refuses a file that does not say it

# Files beside the weights that a child takes over from its parent, byte for byte.
COMPANIONS = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "processor_config.json", "preprocessor_config.json"),
    *("video_preprocessor_config.json", "generation_config.json"),
)


# and these, wherever there are any
BESIDES = ("LICENSE*", "NOTICE*", "USE_POLICY*", "additional_chat_templates/*.jinja")


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written: its form, and what makes its bytes, one array after another, when they are needed."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Callable[[], Iterable[np.ndarray]]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


def copied(x: np.ndarray) -> Tensor:
    """A stored tensor as it is, byte for byte."""
    flat, step = x.reshape(-1), PIECE // x.dtype.itemsize

    def pieces():
        for start in range(0, flat.size, step):
            yield flat[start : start + step]
            release(flat[start : start + step])

    return Tensor(x.shape, x.dtype, pieces)


def by_rows(shape: tuple[int, ...], dtype: np.dtype, rows: Callable[[int, int], np.ndarray]) -> Tensor:
    """A tensor of which rows(start, stop) makes a part."""
    step = max(1, PIECE // max(1, math.prod(shape[1:]) * dtype.itemsize))

    def pieces():
        for start in range(0, shape[0], step):
            yield rows(start, min(start + step, shape[0])).astype(dtype, copy=False)

    return Tensor(shape, dtype, pieces)


def in_one(x: np.ndarray) -> Tensor:
    """A tensor that fits in memory and is there."""
    return Tensor(x.shape, x.dtype, lambda: [x])


def companions(folder: Path) -> dict[str, Path]:
    """The files that a child of this checkpoint takes over."""
    others = sorted(file for pattern in BESIDES for file in folder.glob(pattern))
    files = [folder / name for name in COMPANIONS] + others
    return {str(file.relative_to(folder)): file for file in files if file.is_file()}


def write_checkpoint(
    target: str | Path,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    files: Mapping[str, Content],
    shard: int = SHARD,
    force: bool = False,
    parents: Iterable[Path] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Write a checkpoint directory.  tensors: stored name -> Tensor.  Returns the names of its tensor files.

    files: others to put beside the weights, as bytes, by path, or by what writes them into the folder at the end.
    shard: most bytes of tensors in one file.
    force: replace a checkpoint that is there, at the end.  parents: directories that are still needed.
    Raises InputError, and leaves nothing, where the target is taken, the disk too small or full, or a tensor not made.
    """
    target = Path(target)
    with writing(target):
        check_target(target, force, parents)
        there = inventory(target) if target.exists() else None
    total = sum(tensor.nbytes for tensor in tensors.values())
    check_space(target, total)
    groups = shards(tensors, shard)
    with becoming(target, replaces=there) as folder:
        done = 0
        for name, group in groups.items():
            for written in write_shard(folder / name, group):
                done += written
                progress(done, total)
        if len(groups) > 1:
            put(folder / INDEX, index(groups, tensors, total))
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            put(folder / name, content)
        put(folder / "config.json", as_json(config))
        for content in files.values():
            if callable(content):
                content(folder)
    return list(groups)


def check_target(target: Path, force: bool, parents: Iterable[Path]) -> None:
    if not target.parent.is_dir():
        raise InputError(f"{target.parent}: no such directory; create it, or choose another -o.")
    if not (target.exists() or target.is_symlink()):
        return
    if not force:
        raise InputError(f"{target}: is there already; choose another -o, or replace it with --force.")
    if not target.is_dir() or target.is_symlink() or (any(target.iterdir()) and not (target / "config.json").exists()):
        raise InputError(f"{target}: is no checkpoint directory, so --force does not replace it; choose another -o.")
    for parent in parents:
        if target.resolve() in (parent.resolve(), *parent.resolve().parents):
            raise InputError(f"{target}: holds the parent {parent}, which --force would delete; choose another -o.")


def check_space(target: Path, total: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < total + (1 << 26):  # 64 MB for headers, tokenizer and the like
        raise InputError(
            f"{target}: needs {total / 1e9:.2f} GB where {free / 1e9:.2f} GB are free; make room, or choose another -o."
        )


def shards(tensors: Mapping[str, Tensor], limit: int) -> dict[str, dict[str, Tensor]]:
    """File name -> its tensors, in their order; a tensor above the limit has a file to itself."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > limit:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> Iterator[int]:
    """Write one safetensors file; yields the bytes of each piece as it goes."""
    # wide numbers first, so that every tensor starts at a multiple of its item size
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    with open(path, "wb") as file:
        file.write(header(ordered))
        for name, tensor in ordered.items():
            due = tensor.nbytes
            for piece in tensor.pieces():
                raw = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
                if piece.dtype != tensor.dtype or raw.size > due:
                    raise ValueError(f"{name}: a piece of {piece.dtype} {piece.shape} does not belong in {tensor}")
                file.write(raw.data)
                due -= raw.size
                yield raw.size
            if due:
                raise ValueError(f"{name}: {due} bytes are missing")
        file.flush()
        os.fsync(file.fileno())


def header(tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": METADATA}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw = raw.ljust(-(-len(raw) // 8) * 8)  # so that the data is aligned
    return len(raw).to_bytes(8, "little") + raw


def index(groups: Mapping[str, Mapping[str, Tensor]], tensors: Mapping[str, Tensor], total: int) -> bytes:
    weight_map = {name: file for file, group in groups.items() for name in group}
    numbers = sum(tensor.size for tensor in tensors.values())
    return as_json({"metadata": {"total_parameters": numbers, "total_size": total}, "weight_map": weight_map})


def as_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def put(path: Path, content: Content) -> None:
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
