"""The 2^k sums that a number can be, where each of k differences was kept or dropped; and the weights of the sums.

Row S of a table holds what each difference is multiplied by where those in S are kept:

    added      c_i                     DARE, and TIES without its mean
    averaged   s w_i / (sum of w in S)     TIES: one alone is there as a whole, whatever its weight

A factor c_i is where y - b over d_i has its mode, for many numbers hold one difference alone.  Of a mean these are all
s; its weights are told by numbers that hold two: (y - b) / s lies between d_i and d_j, w_i / (w_i + w_j) of the way.
Both are then fitted on all numbers, each as the sum that it is nearest to.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

NEAR = 2.0  # times the slack of a number, at most, is it off from its sum
ALIKE = 0.05  # by which the factors of a mean may differ
FEW = 20  # numbers that hold two, at least, of which a mean's weights are fitted
ROUNDS = 3  # of assigning numbers to sums, and fitting the weights on them
STEPS = 60  # of the likeliest shares
FAR = 1e-3  # how well, at least, some mask fits a number that is counted


class Law(NamedTuple):
    """What a number can be.  table: o k, of 2^k subsets; factors: of each alone; weights: as a recipe tells them."""

    table: np.ndarray
    factors: np.ndarray
    weights: np.ndarray
    scale: float
    mean: bool


@cache
def subsets(k: int) -> np.ndarray:
    """All of k, or some, or none: row S has bit i of S in column i.  -> 2^k k, bool"""
    return (np.arange(1 << k)[:, None] >> np.arange(k) & 1).astype(bool)


def added(factors: np.ndarray) -> Law:
    return Law(subsets(len(factors)) * factors, factors, factors, 1.0, False)


def averaged(weights: np.ndarray, scale: float) -> Law:
    weights = weights / weights.sum()
    parts = subsets(len(weights)) * weights
    table = scale * parts / np.maximum(parts.sum(1, keepdims=True), 1e-300)
    return Law(table, np.full(len(weights), scale), weights, scale, True)


def nearest(law: Law, delta, d) -> tuple[np.ndarray, np.ndarray]:
    """Which sum each number is nearest to, and how far from it.  delta: n, d: k n -> n, n"""
    off = np.abs(delta - law.table @ d)
    which = off.argmin(0)
    return which, off[which, np.arange(len(which))]


def explained(law: Law, delta, d, slack) -> float:
    return float((nearest(law, delta, d)[1] <= NEAR * slack).mean()) if len(delta) else 1.0


def laws(delta, d, slack) -> list[Law]:
    """What explains y - b best, as sums and, if that can be, as means."""
    moved = np.abs(delta) > slack
    if not moved.any():
        return [added(np.zeros(len(d)))]
    factors = np.array([mode(delta[moved] / one[moved], slack[moved] / np.abs(one[moved])) for one in d])
    found, law = [], added(factors)
    for _ in range(ROUNDS):
        law = added_again(law, delta, d, slack)
    found.append(law)
    if len(d) > 1 and np.abs(factors - factors.mean()).max() <= ALIKE * abs(factors.mean()):
        found += mean_of(float(factors.mean()), delta, d, slack, moved)
    return found


def added_again(law: Law, delta, d, slack) -> Law:
    """The factors once more, by least squares over the numbers that are one of the sums."""
    which, off = nearest(law, delta, d)
    use = (off <= NEAR * slack) & (which > 0)
    if use.sum() < 2 * len(d):
        return law
    parts = (subsets(len(d))[which].T * d)[:, use] / slack[use]
    return added(np.linalg.lstsq(parts.T, delta[use] / slack[use], rcond=None)[0])


def mean_of(scale: float, delta, d, slack, moved) -> list[Law]:
    """TIES' mean, where its weights can be told: from pairs first, then from all."""
    single = (np.abs(delta - scale * d) <= slack * max(1, abs(scale))).any(0)
    several = moved & ~single
    if several.sum() < FEW:
        return []
    ratios = [1.0]
    for i in range(1, len(d)):
        between = scale * (d[0] - d[i])[several]
        clear = np.abs(between) > NEAR * slack[several]
        part = (delta[several] - scale * d[i][several])[clear] / between[clear]
        share = mode(part, (slack[several][clear] / np.abs(between[clear])))
        ratios.append((1 - share) / share if 0.01 < share < 0.99 else 1.0)
    law = averaged(np.array(ratios), scale)
    for _ in range(ROUNDS):
        law = mean_again(law, delta, d, slack)
    return [law]


def mean_again(law: Law, delta, d, slack) -> Law:
    """Weights and scale once more: where S is kept, the sum over S of w_i (s d_i - (y - b)) is 0."""
    which, off = nearest(law, delta, d)
    kept = subsets(len(d))[which].T
    close = off <= NEAR * slack
    use = close & (kept.sum(0) > 1)
    if use.sum() < FEW:
        return law
    parts = (kept * (law.scale * d - delta))[:, use] / slack[use]
    weights = np.linalg.eigh(parts @ parts.T)[1][:, 0]
    if (weights <= 0).any() and (weights >= 0).any():
        return law
    whole = averaged(np.abs(weights), 1.0).table[which].T * d
    fits, part = delta[close] / slack[close], whole.sum(0)[close] / slack[close]
    return averaged(np.abs(weights), float(fits @ part / max(part @ part, 1e-300)))


def mode(ratios: np.ndarray, widths: np.ndarray) -> float:
    """Where most ratios lie together, each known to within its width; their weighted mean there."""
    if not len(ratios):
        return 0.0
    order = np.argsort(ratios)
    r, w = ratios[order], widths[order]
    width = float(np.median(w))
    stop = np.searchsorted(r, r + 2 * width)
    at = int((stop - np.arange(len(r))).argmax())
    near = slice(at, int(stop[at]))
    return float(np.average(r[near], weights=w[near] ** -2.0))


def likeliest(parts: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, float]:
    """The shares kept that make what is seen likeliest, where of the kept only those of their sum's sign stay; and how
    many of the numbers with two or more are what such an election can leave.  parts: k n, what each adds; which: n

    A number that is not there was dropped, or outvoted: each of the 2^k masks that leave what is seen is weighed.
    """
    sets = subsets(len(parts))
    fits = (elected(parts) * (1 << np.arange(len(parts)))[:, None]).sum(1) == which
    able, several = fits.any(0), sets[which].sum(1) > 1
    return weighed(fits[:, able]), float(able[several].mean()) if several.any() else 0.0


def likeliest_of_all(parts: np.ndarray, delta: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The same shares from all numbers, also those of which it is not certain what is left in them.

    noise: n, the standard deviation of delta: a mask counts by how near to delta is what it leaves.
    """
    off = (delta - (elected(parts) * parts).sum(1)) / noise
    fits = np.exp(-0.5 * off**2)
    return weighed(fits[:, fits.max(0) > FAR])


def elected(parts: np.ndarray) -> np.ndarray:
    """Who stays of each of the 2^k masks: those of the sign of the mask's sum.  k n -> 2^k k n, bool"""
    sets = subsets(len(parts))
    return sets[:, :, None] & (np.sign(parts) == np.sign(sets @ parts)[:, None])


def weighed(fits: np.ndarray) -> np.ndarray:
    """How often each of k is kept, from how well each of the 2^k masks fits each number.  fits: 2^k n -> k"""
    sets = subsets(len(fits).bit_length() - 1)
    shares = np.full(sets.shape[1], 0.5)
    for _ in range(STEPS if fits.size else 0):
        likely = fits * np.where(sets, shares, 1 - shares).prod(1)[:, None]
        shares = (sets.T @ (likely / likely.sum(0))).mean(1)
    return shares
