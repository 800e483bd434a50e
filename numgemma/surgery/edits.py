"""A tensor that is another but for a few directions: a merged adapter, or one direction taken out (abliteration).

The difference D = y - x of a matrix has rank r, plus what rounding adds.  Of a sketch's R rows in m columns rounding
alone has no singular value above f (sqrt(R) + sqrt(m)), where f is its RMS; those above are the rank.  Taking out the
direction u of what a matrix writes is D = -a u (u'x); of what it reads, D = -a (x v) v'.  a = 1 takes out all of it.

A sketch has 32 columns, so it shows a rank of about 22 at most.  Where a difference is small and of no such rank, some
rows of both files are read once more: 256 of them show a rank of up to 172, in a tenth of a second.  Experts stand in
one stack, and each has directions of its own: of these three are looked at, each by itself.
"""

import math
from dataclasses import replace

import numpy as np

from numgemma.surgery.mixture import EXPLAINED, Source
from numgemma.surgery.relations import Relation, rms
from numgemma.surgery.rounding import digits, floor
from numgemma.surgery.sketch import FEW, Sketch, plain, some_rows

HIGHER = 1.3  # times the largest singular value of rounding, at least, is one that counts
FREE = 0.7  # of the numbers, at most, may be spent on the directions that explain them
MOST_SIZE = 0.7  # of the tensor, at most, may an edit be
SHOWN = 2.0  # times what rounding leaves, at least, is an edit that can be judged
LINES = 1 << 14  # rows of a sketch that are looked at, at most
LOOK, WIDE = 256, 2048  # rows that are read once more, and numbers of each


def edited(child: Sketch, source: Source) -> Relation | None:
    """The child as the source and a difference of low rank; None where it is not shown to be that."""
    parent, one = source
    step = max(1, child.height // LINES)
    Y, X = plain(child.rows[::step]), plain(one.rows[::step])
    bits = min(digits(child), digits(one))
    least = floor(Y.reshape(-1), X.reshape(-1, 1), np.ones(1), bits)
    if min(Y.shape) < 4 or not SHOWN * least < rms(Y - X) < MOST_SIZE * rms(X):
        return None
    few, stack = of_few(Y, X, bits), is_stack(child.shape)
    each = of_each(child, one, bits) if looks_again(child.shape) and (few is None or stack) else None
    few = each or few
    if few is None:
        return None
    rank, left, least = few
    removed, how = taken_out(child, one, least * rms(Y)) if rank == 1 and step == 1 else (None, "")
    axis = "experts" if stack and each else ""
    found = Relation("edited", parent, one.name, error=left, floor=least, rank=rank, how=how, axis=axis)
    return replace(found, size=rms(Y - X) / rms(Y), removed=removed)


def looks_again(shape: tuple[int, ...]) -> bool:
    """Whether whole rows tell more than the few columns of a sketch; of experts, also their own rows."""
    return is_stack(shape) or (len(shape) == 2 and shape[1] > FEW)


def is_stack(shape: tuple[int, ...]) -> bool:
    """Experts, each a matrix by itself; no convolution, whose last axes are a few taps."""
    return len(shape) == 3 and min(shape[1:]) >= FEW // 2


def highest(shape: tuple[int, ...]) -> int:
    """The highest rank of a difference that is told, for a tensor of that shape."""
    height, width = shape[-2:] if looks_again(shape) else (math.prod(shape[:-1]), shape[-1])
    return most_rank(min(height, LOOK), min(width, WIDE)) if looks_again(shape) else most_rank(height, min(width, FEW))


def most_rank(R: int, m: int) -> int:
    """The highest r of which r (R + m - r) numbers are no more than may be spent on it."""
    return int((R + m - math.sqrt((R + m) ** 2 - 4 * FREE * R * m)) / 2)


def of_few(Y: np.ndarray, X: np.ndarray, bits: int) -> tuple[int, float, float] | None:
    """(rank, what is left, what rounding leaves, both over the RMS of Y) of Y - X; None where it has no low rank."""
    D, least = Y - X, floor(Y.reshape(-1), X.reshape(-1, 1), np.ones(1), bits)
    R, m = D.shape
    sizes = np.linalg.svd(D, compute_uv=False)
    rank = int((sizes > HIGHER * least * (math.sqrt(R) + math.sqrt(m))).sum())
    left = float(np.sqrt((sizes[rank:] ** 2).sum() / max(1, R * m - rank * (R + m - rank))))
    if not 0 < rank <= most_rank(R, m) or left > EXPLAINED * least:
        return None
    return rank, left / rms(Y), least / rms(Y)


def of_each(child: Sketch, source: Sketch, bits: int) -> tuple[int, float, float] | None:
    """The same from whole rows, of a matrix or of some of a stack; None where one of them has no low rank."""
    pairs = zip(some_rows(child, LOOK, WIDE), some_rows(source, LOOK, WIDE), strict=True)
    found = [of_few(Y, X, bits) for Y, X in pairs if (Y != X).any()]  # an expert that was never trained is as it was
    known = [few for few in found if few is not None]
    return max(known, default=None) if len(known) == len(found) else None


def taken_out(child: Sketch, source: Sketch, least: float) -> tuple[float | None, str]:
    """How much of what the source writes along u, or reads along v, is gone; and which of both it is."""
    u = np.linalg.svd(plain(child.rows) - plain(source.rows), full_matrices=False)[0][:, 0]
    v = np.linalg.svd(plain(child.columns) - plain(source.columns), full_matrices=False)[2][0]
    wrote = along(u, plain(child.rows), plain(source.rows), least)
    read = along(v, plain(child.columns).T, plain(source.columns).T, least)
    return (read, "columns") if wrote is None and read is not None else (wrote, "rows" if wrote is not None else "")


def along(u: np.ndarray, Y: np.ndarray, X: np.ndarray, least: float) -> float | None:
    """a, where Y - X = -a u (u'X) to within what rounding leaves; None elsewhere.  u: R, X: R m"""
    part = u @ X
    amount = float(-(u @ (Y - X)) @ part / max(part @ part, 1e-300))
    return amount if rms(Y - X + amount * np.outer(u, part)) < EXPLAINED * least else None
