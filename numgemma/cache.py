"""What a run keeps of earlier tokens: keys and values, by layer.

`kvs` is a dict: layer index -> Kept.  A sliding layer keeps one window, a layer that shares another's keys has no
entry.  Rows in use are never written again: `k, v = kvs[i]` are views that stay right when tokens are added or
dropped.  To go on from one cache in two ways, deepcopy it.

Tokens that turn out to be wrong are taken back with `rewind`.  A sliding layer must not have forgotten by then what it
sees again without them: keep all until it is known how many stay, `beside` helps; rewind; then forget.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

SPARE = 256  # rows of room, at least, behind those in use


@dataclass
class Kept:
    """Keys and values of one layer, oldest first: rows first to end - 1 of two buffers with room behind."""

    k: np.ndarray  # rows K H
    v: np.ndarray
    first: int
    end: int

    def __iter__(self) -> Iterator[np.ndarray]:
        yield self.k[self.first : self.end]
        yield self.v[self.first : self.end]

    def __len__(self):
        return self.end - self.first


def empty(rows, dtype):
    """A cache whose keys and values will be stored in `dtype`, whatever the run computes in.  rows: the layer table"""
    makers = [spec for spec in rows if spec.kv_from == spec.index]
    return {spec.index: Kept(no_rows(spec, dtype), no_rows(spec, dtype), 0, 0) for spec in makers}


def no_rows(spec, dtype):
    """What keys or values of a layer are before the first token.  -> 0 K H"""
    return np.empty((0, spec.K, spec.H), dtype)


def append(kvs, index, k, v):
    """Put keys and values of new tokens after those of earlier ones.  k, v: T K H"""
    if index not in kvs:
        kvs[index] = Kept(k, v, 0, len(k))
        return
    held = kvs[index]
    if held.end + len(k) > len(held.k):
        held = kvs[index] = moved(held, len(k))
    for buffer, new in ((held.k, k), (held.v, v)):
        buffer[held.end : held.end + len(new)] = new  # rounds to the buffer's dtype
    held.end += len(k)


def drop(kvs, index, rows):
    """Forget the oldest rows; their memory is freed when most of a buffer lies unused."""
    held = kvs[index]
    held.first += rows
    if len(held.k) > 2 * (len(held) + SPARE):
        kvs[index] = moved(held, 0)


def moved(held, new):
    """The same rows in buffers with room for `new` more, and for half as many again: so a token costs no copy."""
    rows = len(held) + new
    k, v = (np.empty_like(old, order="C", shape=(rows + max(SPARE, rows // 2), *old.shape[1:])) for old in held)
    k[: len(held)], v[: len(held)] = held
    return Kept(k, v, 0, len(held))


def beside(kvs):
    """The same keys and values in a cache that may forget: this one goes on to hold them."""
    return {index: replace(held) for index, held in kvs.items()}


def rewind(kvs, rows):
    """Take back the newest rows of every layer: the tokens that made them have not run."""
    for held in kvs.values():
        if rows > len(held):
            raise ValueError(f"{rows} rows are to be taken back, and {len(held)} are held")
        held.end -= rows
