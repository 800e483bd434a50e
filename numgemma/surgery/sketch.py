"""A tensor in a few numbers: a hash of its bytes, and enough of its values to find it again where it was changed.

A matrix is remembered by all of its rows in a few columns, and by all of its columns in a few rows.  Which few depends
on the width alone, so two tensors of one width can be compared row by row although their heights differ.  One pass
over a file makes the sketches of all its tensors; a checkpoint of 16 GB takes about 150 MB.

What is stored as codes is sketched as the numbers that they mean, and remembers how far its format moved these.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from numgemma.checkpoint import gguf_file, join_files, open_checkpoint, open_files
from numgemma.incoming import read_object
from numgemma.opening import resolve
from numgemma.ops import threads
from numgemma.smallfloats import BFLOAT16, cast
from numgemma.weights.packed import Packed, parts_of
from numgemma.weights.quantised import unpacked
from numgemma.weights.safetensors import release

FEW = 32  # columns that stand for a row, rows that stand for a column
SAMPLE = 4096  # values, at most, from all over a tensor
PIECE = 1 << 24  # bytes read at a time by each thread
PLAIN = {"bfloat16": BFLOAT16, "float16": np.dtype("f2"), "float32": np.dtype("f4")}  # floats in several tensors
UNKNOWN = 0.2  # of its size a number may have moved, where the format does not tell its steps


@dataclass(frozen=True, eq=False)
class Sketch:
    """What is remembered of one tensor, which is taken for a matrix: a vector is a column, more axes are rows."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    digest: bytes
    rows: np.ndarray  # [R, few]: every row
    columns: np.ndarray  # [few, C]: every column; empty for a vector
    whole: np.ndarray | Packed  # the tensor itself, on disk where it is from a file: for a second look at a part of it
    moved: float = 0.0  # RMS of how far codes lie from the numbers that they were made of; 0 of floats

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def height(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        return self.size // max(1, self.height)

    @cached_property
    def values(self) -> np.ndarray:
        """Some values as float64, the same ones of every tensor of this shape; NaN and infinity as 0.

        Of a matrix also one whole row and one whole column: no block of lines is without a value among them.
        """
        step = max(1, math.ceil(self.height / max(1, SAMPLE // max(1, self.rows.shape[1]))))
        parts = [self.rows[::step]]
        if self.width > 1:
            parts += [self.rows[:, len(self.rows[0]) // 2], self.columns[len(self.columns) // 2]]
        return np.concatenate([plain(part).reshape(-1) for part in parts])

    @cached_property
    def distinct(self) -> int:
        """How many different values there are in the sample: a constant tensor says nothing of where it is from."""
        return len(np.unique(self.values))


def plain(x: np.ndarray) -> np.ndarray:
    """As float64, without NaN and infinities."""
    return np.nan_to_num(x.astype(np.float64), nan=0, posinf=0, neginf=0)


@cache
def places(n: int) -> np.ndarray:
    """The few of n lines that stand for all: the same for every tensor, and in no step with heads or blocks."""
    return np.sort(np.random.default_rng(n).choice(n, min(n, FEW), replace=False))


def some_rows(one: Sketch, most: int, wide: int) -> list[np.ndarray]:
    """Rows from all over a matrix, read once more; of a stack, of its first, its middle and its last matrix.

    -> at most `most` rows of at most `wide` numbers, of each
    """
    stack = one.whole if len(one.shape) == 3 else [one.whole]
    chosen = [stack[i] for i in sorted({0, len(stack) // 2, len(stack) - 1})]
    found = [plain(matrix[:: max(1, len(matrix) // most)][:most, :wide]) for matrix in chosen]
    let_go(one.whole)
    return found


def as_matrix(x):
    if isinstance(x, Packed) and x.ndim > 1:
        return x.lines()
    return np.asarray(x).reshape(-1, x.shape[-1] if x.ndim > 1 else 1)


def sketch(name: str, x: np.ndarray | Packed, progress: Callable[[int], None] = lambda size: None) -> Sketch:
    """One pass over a tensor.  Memory holds one piece of it."""
    m, dtype = as_matrix(x), PLAIN.get(x.dtype, np.dtype("f4")) if isinstance(x, Packed) else x.dtype
    if not x.size:
        return Sketch(name, x.shape, dtype, b"", np.empty((0, 1)), np.empty((0, 0)), x)
    kept = places(m.shape[1])
    rows = np.empty((len(m), len(kept)), dtype)
    digest = hashlib.blake2b(digest_size=16)
    step = max(1, PIECE // (m.shape[1] * dtype.itemsize))
    for start in range(0, len(m), step):
        piece = cast(m[start : start + step], dtype) if isinstance(m, Packed) else m[start : start + step]
        digest.update(piece.reshape(-1).view(np.uint8).data)
        rows[start : start + step] = bits(piece)[:, kept].view(dtype)
        let_go(m if isinstance(m, Packed) else piece)
        progress(x.nbytes * len(piece) // len(m))
    columns = m[places(len(m))] if m.shape[1] > 1 else np.empty((0, 1), dtype)
    let_go(m)  # a page that is touched brings its neighbours along
    return Sketch(name, x.shape, dtype, digest.digest(), rows, columns, x, moved(m))


def moved(m) -> float:
    """How far a format moves the numbers that it stores: rounding by s moves one by s / sqrt(12)."""
    if not isinstance(m, Packed) or m.dtype in PLAIN:
        return 0.0
    some = places(len(m))
    steps = m.steps(some)
    sizes = UNKNOWN * plain(m[some]) if steps is None else plain(np.asarray(steps)) / math.sqrt(12)
    return float(np.sqrt(np.mean(sizes * sizes)))


def let_go(x) -> None:
    for part in parts_of(x):
        release(part)


def bits(x: np.ndarray) -> np.ndarray:
    """As plain integers, which NumPy gathers much faster than bfloat16."""
    return x.view(f"u{x.dtype.itemsize}")


def stored(path: str | Path) -> Mapping[str, np.ndarray | Packed]:
    """Short name -> tensor, of a checkpoint of whatever model: codes need the config.json beside them, floats none."""
    path = resolve(path)
    if gguf_file(path):
        return open_checkpoint(path).weights.tensors
    tensors = join_files(path, open_files(path)).tensors
    config = (path if path.is_dir() else path.parent) / "config.json"
    return unpacked(path, tensors, read_object(config, "correct it") if config.exists() else {})


def read_sketches(path: str | Path, progress: Callable[[int], None] = lambda size: None) -> dict[str, Sketch]:
    """Short name -> sketch of every tensor of a checkpoint, of whatever model.  Two threads share the work."""
    tensors = stored(path)
    made = threads.in_turn(lambda name: sketch(name, tensors[name], progress), tensors, 2)
    return {one.name: one for one in made}


def total_bytes(path: str | Path) -> int:
    """Of all tensors of a checkpoint."""
    return sum(tensor.nbytes for tensor in stored(path).values())
