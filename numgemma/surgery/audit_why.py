"""Why a tensor is wrong: each cause undone, and named where that leaves what the format costs, or what rounding does.

Everything is tried on a few rows, so that a wrong embedding table costs no more than a wrong norm.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from numgemma.surgery.relations import rounded
from numgemma.weights.packed import Packed

ROWS = 64  # of a matrix that are looked at
WIDEST = 8192  # rows of a matrix among which a row is looked for
SIMILAR = 0.9  # cosine of two rows that are the same
MOST = 3  # causes that are told of one tensor


class Sample(NamedTuple):
    """Some rows of a wrong tensor and of the original, float64, and where they are from."""

    w: np.ndarray  # n I
    W: np.ndarray
    at: np.ndarray  # rows in the tensor, all axes but the last flattened
    steps: np.ndarray | None
    enough: float  # relative error at which a cause is believed
    name: str
    original: Mapping[str, Any]


def causes(name, w, W, original: Mapping[str, Any], cost: float | None) -> tuple[str, ...]:
    """What explains the difference, the best first; empty where nothing known does."""
    s = sample(name, w, W, original, cost)
    found = list(constant(s)) or [cause for look in LOOKS for cause in look(s)]
    rest = [cause for look in (twice, touched, unrelated) for cause in look(s)]
    return tuple(found[:MOST] or rest[:1])


def sample(name, w, W, original, cost):
    rows = math.prod(w.shape[:-1]) if len(w.shape) > 1 else 1
    at = np.unique(np.linspace(0, rows - 1, min(rows, ROWS)).astype(np.int64))
    steps = stacked(w, at, lambda m, r: m.steps(r)) if isinstance(w, Packed) and w.step else None
    return Sample(rows_of(w, at), rows_of(W, at), at, steps, max(2 * (cost or 0.0), 0.02), name, original)


def rows_of(w, at):
    """Rows of a tensor, all its axes but the last flattened.  -> n I, float64"""
    if len(w.shape) < 2:
        return np.asarray(w, np.float64).reshape(1, -1)
    return stacked(w, at, lambda m, r: np.asarray(m[r], np.float64))


def stacked(w, at, read):
    if len(w.shape) == 2:
        return read(w, at)
    O = w.shape[-2]
    return np.concatenate([read(w[int(e)], at[at // O == e] % O) for e in np.unique(at // O)])


def left(y, x) -> float:
    """Relative error of y against x."""
    size = float(np.vdot(x, x))
    return math.sqrt(float(np.vdot(y - x, y - x)) / size) if size else math.inf


# what can be the matter


def constant(s: Sample) -> Iterator[str]:
    value = s.w.flat[0]
    if (s.w.size > 1 or value in (0, 1)) and (s.w == value).all() and not (value == s.W).all():
        yield f"is {value:g} everywhere: the tensor was not exported, and kept its initial value"


SHIFTS = {1: "is 1 + w: a norm in the convention of Gemma 3", -1: "is w - 1: a norm less one"}
SHIFTS |= {2: "is 2 + w: a norm to which 1 was added twice"}


def convention(s: Sample) -> Iterator[str]:
    if len(s.w) == 1:
        for shift, told in SHIFTS.items():
            if left(s.w - shift, s.W) < 0.01 < left(s.w, s.W):
                yield told


def factor(s: Sample) -> Iterator[str]:
    """One factor for all, or one for each row."""
    gain = float(np.vdot(s.w, s.W) / max(np.vdot(s.w, s.w), 1e-300))
    if left(gain * s.w, s.W) < s.enough and abs(gain - 1) > 0.04:
        yield f"is {rounded(1 / gain, 0.003 / abs(gain)):g} times the original: a scale is lost or doubled"
        return
    size = np.maximum((s.w * s.w).sum(1), 1e-300)
    rows = (s.w * s.W).sum(1) / size
    if len(rows) > 3 and np.std(rows) > 0.02 * abs(np.mean(rows)) and left(rows[:, None] * s.w, s.W) < s.enough:
        yield "has each row under a factor of its own: the scales of the rows, or of the experts, are lost or doubled"


def by_columns(s: Sample) -> Iterator[str]:
    """One factor for each column: channels rescaled for quantising, as AWQ does, and the norm before them not."""
    gains = (s.w * s.W).sum(0) / np.maximum((s.w * s.w).sum(0), 1e-300)
    if len(s.w) >= 8 and np.std(gains) > 0.05 * abs(np.mean(gains)) and left(gains * s.w, s.W) < s.enough:
        yield "has each column under a factor of its own: its channels were rescaled, and what makes them was not"


def ends_early(s: Sample) -> Iterator[str]:
    """Rows of zeros where the original has some, and the others right."""
    empty = ~s.w.any(1) & s.W.any(1)
    if 0 < empty.mean() < 1 and left(s.w[~empty], s.W[~empty]) < s.enough:
        yield f"has zeros in about {100 * empty.mean():.0f} % of its rows, from row {s.at[empty][0]} on or before"


def offsets(s: Sample) -> Iterator[str]:
    """One number more or less for each group of a row."""
    for width in (16, 32, 64, 128):
        if s.w.shape[1] % width == 0 and len(s.w) > 1:
            w, W = (x.reshape(len(x), -1, width) for x in (s.w, s.W))
            shift = (W - w).mean(-1, keepdims=True)
            if left(w + shift, W) < s.enough < left(w, W):
                yield f"is off by a number of its own in every {width} weights: the minima of the groups are wrong"
                return


def by_groups(s: Sample) -> Iterator[str]:
    """One factor for each group of a row: scales of groups lost or exchanged."""
    for width in (16, 32, 64, 128):
        if s.w.shape[1] % width == 0 and s.w.shape[1] > width:
            w, W = (x.reshape(len(x), -1, width) for x in (s.w, s.W))
            gains = (w * W).sum(-1, keepdims=True) / np.maximum((w * w).sum(-1, keepdims=True), 1e-300)
            if left(gains * w, W) < s.enough and np.std(gains) > 0.05:
                yield f"has every {width} weights under a factor of their own: the scales of the groups are wrong"
                return


def zero_point(s: Sample) -> Iterator[str]:
    if s.steps is None:
        return
    for shift in (1, -1):
        if left(s.w + shift * s.steps, s.W) < s.enough:
            side = "below" if shift > 0 else "above"
            yield f"is {side} the original by one step everywhere: the zero point is off by one"


def excess(s: Sample) -> Iterator[str]:
    """Codes that were stored as two's complement and are read less a half of their range, or the reverse."""
    if s.steps is None:
        return
    for half in (2, 4, 8, 16, 32, 128):
        signed = np.where(s.w > (half - 0.5) * s.steps, s.w - 2 * half * s.steps, s.w)
        if left(signed, s.W) < min(s.enough, left(s.w, s.W) / 2):
            yield "has its codes in two's complement, and their sign was taken for a number"
            return
        if left(np.where(s.w < 0, s.w + half * s.steps, s.w - half * s.steps), s.W) < s.enough:
            yield "has its codes in two's complement where the format subtracts a half, or the reverse"
            return


def nibbles(s: Sample) -> Iterator[str]:
    """The halves of bytes in another order within a block."""
    for block in (16, 32, 64, 256):
        if s.w.shape[1] % block:
            continue
        halves, pairs = np.arange(block).reshape(2, -1).T.ravel(), np.arange(block).reshape(-1, 2).T.ravel()
        orders = {"neighbours": halves, "halves of a block": pairs, "neighbours exchanged": np.arange(block) ^ 1}
        for told, order in orders.items():
            moved = s.w.reshape(len(s.w), -1, block)[..., order].reshape(s.w.shape)
            if left(moved, s.W) < s.enough:
                yield f"has its four-bit codes in another order within blocks of {block}: {told}"
                return


def transposed(s: Sample) -> Iterator[str]:
    W = s.original[s.name]
    if len(W.shape) == 2 and W.shape[0] == W.shape[1]:
        turned = np.stack([np.asarray(W[:], np.float64)[:, i] for i in s.at]) if W.shape[0] <= WIDEST else None
        if turned is not None and left(s.w, turned) < s.enough:
            yield "is transposed"


def halves_of_experts(s: Sample) -> Iterator[str]:
    """gate and up, one above the other, exchanged."""
    W = s.original[s.name]
    if s.name.endswith("gate_up_proj") and len(W.shape) == 3:
        rows = s.at // W.shape[1] * W.shape[1] + (s.at + W.shape[1] // 2) % W.shape[1]
        if left(s.w, rows_of(W, rows)) < s.enough:
            yield "has gate and up exchanged"


def another(s: Sample) -> Iterator[str]:
    """What another tensor of the original's holds."""
    shape = tuple(s.original[s.name].shape)
    for name, other in s.original.items():
        if name != s.name and tuple(other.shape) == shape and left(s.w, rows_of(other, s.at)) < s.enough:
            yield f"holds what the original has as {name}"
            return


def rows_moved(s: Sample) -> Iterator[str]:
    """The original's rows in another order: heads, experts, or a table read the other way."""
    W = s.original[s.name]
    rows = math.prod(W.shape[:-1])
    if len(W.shape) < 2 or not 1 < rows <= WIDEST:
        return
    every = rows_of(W, np.arange(rows))
    likeness = unit(s.w) @ unit(every).T
    nearest = likeness.argmax(1)
    if (likeness.max(1) > SIMILAR).mean() > 0.9 and not np.array_equal(nearest, s.at):
        first = int(np.flatnonzero(nearest != s.at)[0])
        what = "experts in another order" if len(W.shape) == 3 and W.shape[-2] > 1 else "rows in another order"
        yield f"has the original's {what}: row {s.at[first]} is its row {nearest[first]}"


def columns_moved(s: Sample) -> Iterator[str]:
    """Columns in another order, or L slices of P packed as P of L."""
    if len(s.w) < 8 or s.w.shape[1] > WIDEST:
        return
    likeness = unit(s.w.T) @ unit(s.W.T).T
    nearest = likeness.argmax(1)
    if (likeness.max(1) > SIMILAR).mean() > 0.9 and not np.array_equal(nearest, np.arange(len(nearest))):
        first = int(np.flatnonzero(nearest != np.arange(len(nearest)))[0])
        yield f"has the original's columns in another order: column {first} is its column {nearest[first]}"


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)


def low_rank(s: Sample) -> Iterator[str]:
    """A difference of few directions: a merged adapter, or one direction removed."""
    if len(s.w) < 16 or s.steps is not None:
        return
    sizes = np.linalg.svd(s.w - s.W, compute_uv=False) ** 2
    rank = int(np.searchsorted(np.cumsum(sizes), 0.99 * sizes.sum()) + 1)
    if 4 * rank <= min(s.w.shape):
        told = "one direction was removed or added" if rank == 1 else "as a merged adapter leaves it"
        yield f"differs by {left(s.w, s.W):.2g}, in a matrix of rank {rank}: {told}"


def twice(s: Sample) -> Iterator[str]:
    if s.steps is not None and correlation(s) > 0.75:
        yield "errs by more than one rounding: quantised from weights that were quantised before, or to another grid"


def correlation(s):
    return float(np.vdot(s.w, s.W) / math.sqrt(float(np.vdot(s.w, s.w) * np.vdot(s.W, s.W)) or 1.0))


def touched(s: Sample) -> Iterator[str]:
    if s.steps is None and 0 < left(s.w, s.W) < 0.5:
        yield f"was changed by {left(s.w, s.W):.2g}"


def unrelated(s: Sample) -> Iterator[str]:
    if abs(correlation(s)) < 0.05 and s.w.size > 1000:
        yield "has nothing to do with the original: another revision, or another model"


LOOKS = (
    *(convention, factor, by_columns, ends_early, zero_point, excess, offsets, halves_of_experts, another, nibbles),
    *(transposed, rows_moved, columns_moved, by_groups, low_rank),
)
