"""A tensor that is another but for a few directions: a merged adapter, or one direction taken out (abliteration).

The difference D = y - x of a matrix has rank r, plus what rounding adds.  Of a sketch's R rows in m columns rounding
alone has no singular value above f (sqrt(R) + sqrt(m)), where f is its RMS; those above are the rank.  Taking out the
direction u of what a matrix writes is D = -a u (u'x); of what it reads, D = -a (x v) v'.  a = 1 takes out all of it.
"""

import math
from dataclasses import replace

import numpy as np

from numgemma.surgery.mixture import EXPLAINED, Source
from numgemma.surgery.relations import Relation, rms
from numgemma.surgery.rounding import digits, floor
from numgemma.surgery.sketch import Sketch, plain

HIGHER = 1.3  # times the largest singular value of rounding, at least, is one that counts
FREE = 0.7  # of the numbers, at most, may be spent on the directions that explain them
MOST_SIZE = 0.7  # of the tensor, at most, may an edit be
SHOWN = 2.0  # times what rounding leaves, at least, is an edit that can be judged
LINES = 1 << 14  # rows that are looked at, at most


def edited(child: Sketch, source: Source) -> Relation | None:
    """The child as the source and a difference of low rank; None where it is not shown to be that."""
    parent, one = source
    step = max(1, child.height // LINES)
    Y, X = plain(child.rows[::step]), plain(one.rows[::step])
    bits = min(digits(child), digits(one))
    D, least = Y - X, floor(Y.reshape(-1), X.reshape(-1, 1), np.ones(1), bits)
    size = rms(D)
    if min(D.shape) < 4 or not SHOWN * least < size < MOST_SIZE * rms(X):
        return None
    rank, left, u = directions(D, least)
    R, m = D.shape
    if not rank or left > EXPLAINED * least or rank * (R + m - rank) > FREE * R * m:
        return None
    removed, how = taken_out(child, one, u, least) if rank == 1 and step == 1 else (None, "")
    found = Relation("edited", parent, one.name, error=left / rms(Y), floor=least / rms(Y), rank=rank, how=how)
    return replace(found, size=size / rms(Y), removed=removed)


def directions(D: np.ndarray, least: float) -> tuple[int, float, np.ndarray]:
    """(rank, RMS of what is left, first direction of the rows' side).  D: R m"""
    R, m = D.shape
    u, sizes, _ = np.linalg.svd(D, full_matrices=False)
    rank = int((sizes > HIGHER * least * (math.sqrt(R) + math.sqrt(m))).sum())
    free = max(1, R * m - rank * (R + m - rank))
    return rank, float(np.sqrt((sizes[rank:] ** 2).sum() / free)), u[:, 0]


def taken_out(child: Sketch, source: Sketch, u: np.ndarray, least: float) -> tuple[float | None, str]:
    """How much of what the source writes along u, or reads along v, is gone; and which of both it is."""
    v = np.linalg.svd(plain(child.columns) - plain(source.columns), full_matrices=False)[2][0]
    wrote = along(u, plain(child.rows), plain(source.rows), least)
    read = along(v, plain(child.columns).T, plain(source.columns).T, least)
    return (read, "columns") if wrote is None and read is not None else (wrote, "rows" if wrote is not None else "")


def along(u: np.ndarray, Y: np.ndarray, X: np.ndarray, least: float) -> float | None:
    """a, where Y - X = -a u (u'X) to within what rounding leaves; None elsewhere.  u: R, X: R m"""
    part = u @ X
    amount = float(-(u @ (Y - X)) @ part / max(part @ part, 1e-300))
    return amount if rms(Y - X + amount * np.outer(u, part)) < EXPLAINED * least else None
