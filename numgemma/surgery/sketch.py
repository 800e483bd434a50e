"""A tensor in a few numbers: a hash of its bytes, and enough of its values to find it again where it was changed.

A matrix is remembered by all of its rows in a few columns, and by all of its columns in a few rows.  Which few depends
on the width alone, so two tensors of one width can be compared row by row although their heights differ.  One pass
over a file makes the sketches of all its tensors; a checkpoint of 16 GB takes about 150 MB.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from numgemma.checkpoint import join_files, open_files
from numgemma.opening import resolve
from numgemma.ops import threads
from numgemma.weights.safetensors import release

FEW = 32  # columns that stand for a row, rows that stand for a column
SAMPLE = 4096  # values, at most, from all over a tensor
PIECE = 1 << 24  # bytes read at a time by each thread


@dataclass(frozen=True, eq=False)
class Sketch:
    """What is remembered of one tensor, which is taken for a matrix: a vector is a column, more axes are rows."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    digest: bytes
    rows: np.ndarray  # [R, few]: every row
    columns: np.ndarray  # [few, C]: every column; empty for a vector
    whole: np.ndarray  # the tensor itself, on disk where it is from a file: for a second look at a part of it

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
    stack = one.whole.reshape(-1, *one.shape[-2:])
    chosen = sorted({0, len(stack) // 2, len(stack) - 1})
    found = [plain(stack[i, :: max(1, stack.shape[1] // most)][:most, :wide]) for i in chosen]
    release(one.whole)
    return found


def as_matrix(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1)


def sketch(name: str, x: np.ndarray, progress: Callable[[int], None] = lambda size: None) -> Sketch:
    """One pass over a tensor.  Memory holds one piece of it."""
    m = as_matrix(x)
    if not x.size:
        return Sketch(name, x.shape, x.dtype, b"", np.empty((0, 1)), np.empty((0, 0)), x)
    kept = places(m.shape[1])
    rows = np.empty((len(m), len(kept)), x.dtype)
    digest = hashlib.blake2b(digest_size=16)
    step = max(1, PIECE // (m.shape[1] * x.dtype.itemsize))
    for start in range(0, len(m), step):
        piece = m[start : start + step]
        digest.update(piece.reshape(-1).view(np.uint8).data)
        rows[start : start + step] = bits(piece)[:, kept].view(x.dtype)
        release(piece)
        progress(piece.nbytes)
    columns = m[places(len(m))] if m.shape[1] > 1 else np.empty((0, 1), x.dtype)
    release(m)  # a page that is touched brings its neighbours along
    return Sketch(name, x.shape, x.dtype, digest.digest(), rows, columns, x)


def bits(x: np.ndarray) -> np.ndarray:
    """As plain integers, which NumPy gathers much faster than bfloat16."""
    return x.view(f"u{x.dtype.itemsize}")


def read_sketches(path: str | Path, progress: Callable[[int], None] = lambda size: None) -> dict[str, Sketch]:
    """Short name -> sketch of every tensor of a checkpoint, of whatever model.  Two threads share the work."""
    weights = join_files(Path(path), open_files(resolve(path)))
    made = threads.in_turn(lambda name: sketch(name, weights[name], progress), weights, 2)
    return {one.name: one for one in made}


def total_bytes(path: str | Path) -> int:
    """Of all tensors of a checkpoint."""
    return sum(file.tensors[name].nbytes for file in open_files(resolve(path)).values() for name in file.tensors)
