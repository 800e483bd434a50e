"""A stored matrix in a format of its own: rows become float32 when they are read, and nothing else is ever decoded.

The model sees what an array would show it: a shape, a length, rows by slice or by index; of three axes the first picks
a matrix.  What a row is in the file, and how it decodes, the files beside this one say.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from numgemma.errors import InputError


def agree(where, *holds):
    """Raises InputError where the shapes and dtypes of codes, and of what decodes them, do not fit each other."""
    if not all(holds):
        raise InputError(f"{where}: its codes and what decodes them do not fit each other; download it again.")


def is_order(order, I, groups) -> bool:
    """Whether these are the groups of I columns."""
    return order.shape == (I,) and order.dtype.kind in "iu" and 0 <= order.min() <= order.max() < groups


@dataclass(frozen=True)
class Entering:
    """What a file has measured for engines that round what enters a product, one number for all tokens.

    scale: what a code of one stands for; 0: nothing is rounded.  zero: the code of nought.  out: the same as scale, of
    what comes out.
    """

    scale: float
    zero: float = 0.0
    out: float = 0.0


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix O I, or a stack of them E O I, as some format stores it.

    dtype: the format's name.  decode: rows, as a slice or as indices among all E O -> float32, n I.  parts: the arrays
    in the file that hold it, for those who count bytes or ask for pages.  step: the same rows -> how far apart the
    values lie that each weight can have, n I or n 1; None where the format does not tell.
    """

    shape: tuple[int, ...]
    dtype: str
    decode: Callable[[slice | np.ndarray], np.ndarray]
    parts: tuple[np.ndarray, ...]
    step: Callable[[slice | np.ndarray], np.ndarray] | None = None
    first: int = 0  # this matrix's first row among those that decode knows
    raw: tuple[Any, ...] = ()  # how it lies, and the arrays, where ops/coded.py can multiply with that
    enters: Entering | tuple[Entering | None, ...] | None = None  # of a stack, of each of its matrices

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))
    nbytes = property(lambda self: sum(part.nbytes for part in self.parts))

    def __len__(self):
        return self.shape[0]

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        """w[3:9], w[ids]: float32 rows; w[e] of a stack: a matrix of the same kind; w[:, :64]: some columns of it."""
        if isinstance(key, tuple):
            return self.columns(*key)
        if self.ndim == 3:
            e = range(len(self))[key]
            mine = self.enters[e] if isinstance(self.enters, tuple) else self.enters
            return replace(self, shape=self.shape[1:], first=self.first + e * self.shape[1], enters=mine)
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self.decode(slice(self.first + start, self.first + max(start, stop), step))
        if np.ndim(key) == 0:
            return self[np.array([range(len(self))[key]])][0]
        ids = np.asarray(key)
        if ids.dtype == bool or (ids.size and not 0 <= ids.min() <= ids.max() < len(self)):
            raise IndexError(f"rows {ids} of a matrix of {len(self)}")
        return self.decode(self.first + ids.reshape(-1)).reshape(*ids.shape, self.shape[1])

    def lines(self):
        """A stack of matrices as one, E O I -> EO I; a matrix as it is."""
        return replace(self, shape=(math.prod(self.shape[:-1]), self.shape[-1]))

    def columns(self, rows, some):
        """The matrix with some of its columns; all rows."""
        if rows != slice(None) or self.ndim != 2:
            raise IndexError("columns are taken of whole matrices")
        kept = len(range(*some.indices(self.shape[1])))
        return replace(self, shape=(len(self), kept), decode=lambda at: self.decode(at)[:, some], step=None, raw=())

    def __array__(self, dtype=None, copy=None):
        """All of it, decoded: for those who look at a whole tensor and know that it fits."""
        rows = self.decode(slice(self.first, self.first + math.prod(self.shape[:-1])))
        return rows.reshape(self.shape).astype(dtype or np.float32, copy=False)

    def astype(self, dtype, copy=True):
        """The same matrix; its rows rounded to that dtype, as loading them into a model of that precision would."""
        kept = np.dtype(dtype)
        return replace(self, decode=lambda at: self.decode(at).astype(kept).astype(np.float32), raw=())

    def steps(self, rows) -> np.ndarray | None:
        """How far apart the values lie that the weights of these rows can have.  rows: a slice, or indices"""
        if self.step is None:
            return None
        at = np.arange(self.first, self.first + len(self))[rows]
        return self.step(at)


def stacked(matrices: Sequence, dtype: str) -> Packed:
    """E matrices that the file holds one by one, as one of E O I."""
    pile = piled(matrices, (len(matrices), *matrices[0].shape), dtype)
    return replace(pile, enters=tuple(entering(w) for w in matrices))


def joined(pairs: Sequence[Sequence], dtype: str) -> Packed:
    """Of each of E pairs one matrix above the other, as gate and up are: E pairs of O I  ->  E 2O I"""
    O, I = pairs[0][0].shape
    pile = piled([w for pair in pairs for w in pair], (len(pairs), 2 * O, I), dtype)
    return replace(pile, enters=tuple(wider(entering(gate), entering(up)) for gate, up in pairs))


def entering(w) -> Entering | None:
    """What the file has measured of what enters a matrix."""
    return getattr(w, "enters", None)


def wider(a: Entering | None, b: Entering | None) -> Entering | None:
    """What gate and up, which are multiplied at once, both have room for; None where one of them has no scale."""
    return None if a is None or b is None else max(a, b, key=lambda one: one.scale)


def piled(matrices: Sequence, shape: tuple[int, ...], dtype: str) -> Packed:
    """Matrices one above the other, seen as one tensor of that shape."""
    starts = np.cumsum([0, *(len(w) for w in matrices)])

    def gather(read, at):
        rows = np.arange(starts[-1])[at]
        which = np.searchsorted(starts, rows, "right") - 1
        y = np.empty((len(rows), shape[-1]), np.float32)
        for m in np.unique(which):
            mine = which == m
            y[mine] = read(matrices[m], rows[mine] - starts[m])
        return y

    told = all(isinstance(w, Packed) and w.step for w in matrices)
    step = (lambda at: gather(lambda w, rows: w.steps(rows), at)) if told else None
    parts = tuple(part for w in matrices for part in parts_of(w))
    return Packed(shape, dtype, lambda at: gather(lambda w, rows: w[rows], at), parts, step)


def parts_of(w) -> tuple[np.ndarray, ...]:
    """The arrays in the file that hold a stored tensor: itself, or what it is decoded from."""
    return getattr(w, "parts", (w,))


def format_of(w) -> str:
    """How a stored tensor is stored: Q4_K, or the name of its dtype."""
    return w.dtype if isinstance(w, Packed) else str(w.dtype)
