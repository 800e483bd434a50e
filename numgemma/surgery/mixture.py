"""What a tensor is the sum of: weights by least squares, judged by what rounding alone would leave.

A mixture y = w1 x1 + w2 x2 + ... is fitted on the values that a sketch keeps.  The RMS that a right fit leaves is known
beforehand (rounding.py), and a fit that leaves more is not the whole story.  A weight is known to within

    give = max(1, beyond) sqrt(diag (X'T²X)^-1)

where T is 1 / the rounding of each number, and beyond the RMS of the rest in that measure; so parents that differ by
less than their rounding cannot be told apart, and a large `give` says so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from numgemma.surgery.relations import ENOUGH, Relation, Share, rms
from numgemma.surgery.rounding import digits, floor, powers
from numgemma.surgery.sketch import Sketch, plain

EXPLAINED = 1.5  # times the floor, at most, after a fit that is right
CLEAR = 3.0  # times what rounding does, at least, lies between sources of which the weights can be told
BETTER = 60.0  # chi squared, at least, by which a mixture beats every single source
SHARE = 1e-3  # squared: of a tensor's size, below which no number is taken to be known
SMALL = 3e-3  # a weight below is none
MOST_GIVE = 0.05  # a weight known no better is not told
PURE = 0.02  # of the difference between sources, at most, may a mixture that was trained on leave
MOST_THERE = 0.9  # of the values are not 0, at least, where the few others are left out
PER_LINE = 8  # lines, at least, before they are taken to have weights of their own
HOPELESS = 2.0  # times what is allowed, at least, do so many lines leave where no other need be fitted
LERP = 0.9995  # cosine from which on a slerp is computed as a linear blend, by those who make them

Source = tuple[str, Sketch]  # a parent, and a tensor of it


@dataclass(frozen=True, eq=False)
class Fit:
    """y as a sum.  weights, give: of each column of X.  left: RMS of the rest.  floor: what rounding leaves of it."""

    weights: np.ndarray
    give: np.ndarray
    left: float
    floor: float


def least_squares(y: np.ndarray, X: np.ndarray, bits: int) -> Fit:
    """The weights that leave least, each number counting by how well it is known.  y: n, X: n k

    Small numbers are rounded least and tell most: where sources differ by no more than the rounding of their large
    numbers, rounding follows their difference, and would draw the weights to simple fractions.
    """
    noise = powers(y, X, np.linalg.lstsq(X, y, rcond=1e-13)[0], bits)
    for _ in range(2):  # once more, with what is left beyond rounding
        trust = 1 / np.sqrt(noise + (SHARE**2 * rms(y)) ** 2 + 1e-300)
        weights, spread = weighted(y, X, trust)
        excess = np.mean((y - X @ weights) ** 2) - EXPLAINED**2 * np.mean(noise)
        if excess <= 0:
            break
        noise = noise + excess
    left = rms(y - X @ weights) * math.sqrt(len(y) / max(1, len(y) - X.shape[1]))
    beyond = rms((y - X @ weights) * trust)
    return Fit(weights, max(1.0, beyond) * spread, left, floor(y, X, weights, bits))


def weighted(y, X, trust) -> tuple[np.ndarray, np.ndarray]:
    """Weights and their standard deviations, of numbers known to 1 / trust."""
    A = X * trust[:, None]
    sizes = np.sqrt((A * A).sum(0)) + 1e-300
    inverse = np.linalg.pinv((A / sizes).T @ (A / sizes), rcond=1e-13)
    weights = np.linalg.lstsq(A / sizes, y * trust, rcond=1e-13)[0] / sizes
    return weights, np.sqrt(np.maximum(np.diag(inverse), 0)) / sizes


def distinct(sources: Sequence[Source]) -> list[Source]:
    """Of sources of equal bytes the first."""
    groups: dict[tuple, Source] = {}
    for parent, one in sources:
        groups.setdefault((one.digest, one.dtype), (parent, one))
    return list(groups.values())


def blend(child: Sketch, sources: Sequence[Source]) -> Relation | None:
    """The child as a sum of at least two of these tensors of its shape; None where it is not shown to be one."""
    y, X = child.values, np.stack([one.values for _, one in sources], 1)
    bits = min([digits(child), *(digits(one) for _, one in sources)])
    if MOST_THERE < (y != 0).mean() < 1:  # zeros, and NaN in their place, are no sum of anything
        y, X = y[y != 0], X[y != 0]
    kept, fit = pruned(y, X, bits)
    if len(kept) < 2 or len(y) - len(kept) < ENOUGH or not told(child, y, X, kept, fit, bits):
        return None
    shares = [
        Share(sources[i][0], sources[i][1].name, float(w), float(give))
        for i, w, give in zip(kept, fit.weights, fit.give, strict=True)
    ]
    found = mixture(shares, "linear", fit.left / rms(y), fit.floor / rms(y))
    return slerp(found, child, [sources[i] for i in kept]) if len(kept) == 2 else found


def mixture(shares: Sequence[Share], how: str, error: float, least: float, kind: str = "blend") -> Relation:
    """A relation to several, under the name of the one of which there is most."""
    most = max(shares, key=lambda share: abs(share.weight))
    return Relation(kind, most.parent, most.source, how=how, shares=tuple(shares), error=error, floor=least)


def pruned(y: np.ndarray, X: np.ndarray, bits: int) -> tuple[list[int], Fit]:
    """The columns that have a part in y, and their fit: the one with the least weight goes until none is small."""
    kept = list(range(X.shape[1]))
    while True:
        fit = least_squares(y, X[:, kept], bits)
        excess = np.abs(fit.weights) - np.maximum(4 * fit.give, SMALL)
        if excess.min() > 0 or len(kept) == 1:
            return kept, fit
        kept.pop(int(excess.argmin()))


def told(child: Sketch, y, X, kept, fit: Fit, bits: int) -> bool:
    """Whether a mixture is shown: it leaves what rounding leaves, far less than any single source, and its sources lie
    so far apart that their rounding does not decide.

    Where training or noise came after it, it still has to explain nearly all of the difference to every source.
    """
    n = len(y)
    nearest = min(least_squares(y, X[:, [i]], bits).left for i in kept)
    apart = 1 / (math.sqrt(n) * np.maximum(fit.give, 1e-300))  # RMS of what no other source has, in units of noise
    if max(fit.give) > MOST_GIVE or (fit.left <= EXPLAINED * fit.floor and min(apart) < CLEAR):
        return False
    if (nearest**2 - fit.left**2) * n < BETTER * max(fit.left, 0.5 * fit.floor) ** 2:
        return False
    chance = 10 ** (-12 / max(1, child.distinct - len(kept) - 1))
    most = max(EXPLAINED * fit.floor, PURE * nearest)
    return bool(fit.left <= most and fit.left <= chance * y.std())


# slerp


def angles(weights: np.ndarray, x0: np.ndarray, x1: np.ndarray) -> tuple[float, float, float]:
    """(t, radius, cosine) of w0 x0 + w1 x1: with lengths taken off, a point of the plane of both.

    SLERP's weights are sin((1-t) a) / sin a and sin(t a) / sin a for the angle a between both: a point at radius 1.
    """
    cosine = float(np.clip(x0 @ x1 / max(np.linalg.norm(x0) * np.linalg.norm(x1), 1e-300), -1, 1))
    angle = math.acos(cosine)
    w0, w1 = map(float, weights)
    along, across = w0 + w1 * cosine, w1 * math.sin(angle)
    t = math.atan2(across, along) / angle if angle > 1e-6 else w1 / (w0 + w1 or 1)
    return t, math.hypot(along, across), cosine


def even(sketch: Sketch) -> np.ndarray:
    """Values of the whole tensor, each counted once."""
    step = max(1, sketch.height * sketch.rows.shape[1] // (1 << 18))
    return plain(sketch.rows[::step]).reshape(-1)


def slerp(found: Relation, child: Sketch, sources: Sequence[Source]) -> Relation:
    """The same, as a slerp, where its weights are a slerp's and no linear blend's of sum 1."""
    x0, x1 = (even(one) for _, one in sources)
    weights, give = (np.array([getattr(share, what) for share in found.shares]) for what in ("weight", "give"))
    t, radius, cosine = angles(weights, x0, x1)
    sampled = 0.0 if x0.size == child.size else (1 - cosine**2) / math.sqrt(len(x0))
    slack = 4 * float(give.max()) + 2e-3
    if cosine > LERP or (weights < 0).any() or abs(weights.sum() - 1) <= slack:
        return found
    if abs(radius - 1) > slack + 4 * sampled * abs(weights[0] * weights[1]):
        return found
    return replace(found, how="slerp", t=t)


# weights that differ from row to row


def blend_by_rows(child: Sketch, sources: Sequence[Source]) -> Relation | None:
    """A blend in which every row has weights of its own; as a slerp by rows where one t explains them."""
    Y, X = plain(child.columns), np.stack([plain(one.columns) for _, one in sources], 2)  # some rows, whole
    if len(Y) < PER_LINE or Y.shape[1] < 4 * X.shape[2]:
        return None
    bits = min([digits(child), *(digits(one) for _, one in sources)])
    fits = [least_squares(y, x, bits) for y, x in zip(Y[:PER_LINE], X[:PER_LINE], strict=True)]
    left, least = unexplained(fits)
    if left > HOPELESS * EXPLAINED * least:
        return None
    fits += [least_squares(y, x, bits) for y, x in zip(Y[PER_LINE:], X[PER_LINE:], strict=True)]
    left, least = unexplained(fits)
    weights, give = np.stack([f.weights for f in fits]), np.stack([f.give for f in fits])
    if left > EXPLAINED * least or np.median(give) > MOST_GIVE or not used(weights, give):
        return None
    shares = [
        Share(parent, one.name, float(w), float(g))
        for (parent, one), w, g in zip(sources, weights.mean(0), np.median(give, 0), strict=True)
    ]
    found = mixture(shares, "rows", left / rms(Y), least / rms(Y))
    return slerp_by_rows(found, weights, X)


def unexplained(fits: Sequence[Fit]) -> tuple[float, float]:
    """What all of them leave, and what rounding leaves of them: RMS."""
    left, least = (rms(np.array([getattr(fit, name) for fit in fits])) for name in ("left", "floor"))
    return left, least


def used(weights: np.ndarray, give: np.ndarray) -> bool:
    """Whether more than one source is in it, with weights that do differ by row."""
    varied = weights.std(0) > 4 * np.median(give, 0)
    return bool((np.abs(weights).mean(0) > SMALL).sum() > 1 and varied.any())


def slerp_by_rows(found: Relation, weights: np.ndarray, X: np.ndarray) -> Relation:
    if X.shape[2] != 2:
        return found
    points = np.array([angles(w, x[:, 0], x[:, 1]) for w, x in zip(weights, X, strict=True)])
    if np.abs(points[:, 1] - 1).max() < 0.02 and points[:, 0].std() < 0.02:
        return replace(found, how="slerp by rows", t=float(np.median(points[:, 0])))
    return found
