"""Task vectors of which some numbers were dropped: what TIES and DARE leave.

Both add differences to a base b, d_i = x_i - b, of which a mask m_i keeps only a share, the density:

    DARE   y = b + sum of (w_i / density_i) m_i d_i      m_i at random; `elected`: only those of the larger sum's sign
    TIES   y = b + s (sum of w_i m_i d_i) / (sum of w_i m_i)      m_i the largest numbers; only those of that sign

So with one or two models every number of y - b is 0, c1 d1, c2 d2 or a fixed sum of both, to within rounding.  c_i is
where y - b over d_i has its mode; what is neither 0 nor one of these gives the sum, by least squares; and whether the
kept are the largest says which method it was.  Numbers whose differences lie below their rounding are not asked.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from numgemma.surgery.mixture import Source, mixture
from numgemma.surgery.relations import Relation, Share, rms
from numgemma.surgery.rounding import digits, rounding
from numgemma.surgery.sketch import Sketch

CLEAR = 6  # times what rounding does, at least, is a difference that is asked
ENOUGH = 100  # such numbers, at least
EXPLAINED = 0.98  # of them, at least
DROPPED = 0.02  # of them, at least: else nothing was thinned
SHARP = 0.005  # of the kept and the dropped, at most, on the wrong side of a threshold: then the size decided
EDGE = 0.01  # of the threshold, within which it does not: differences in bfloat16 are often equal
BLIND = 5.0  # standard deviations, at most, between the ranks of the kept and of the dropped: then it was not the size
AGREED = 0.97  # of the sums, at least, are of differences with one sign: then signs were elected
LOOSE = 0.02  # of a difference, by which a number may be off where the factor is known from elsewhere
BORROWED = 0.25  # what a weight is said to be known to, that was taken from other tensors and only fits
FEW = 20  # sums from which on their weights are fitted


def thinned(child: Sketch, base: Source, others: Sequence[Source]) -> Relation | None:
    """The child as a base and thinned differences of one or two others; None where it is not shown to be that."""
    if not 1 <= len(others) <= 2:
        return None
    y, b = child.values, base[1].values
    d = np.stack([one.values - b for _, one in others])
    bits = min(digits(one) for one in (child, base[1], *(one for _, one in others)))
    slack = 2 * np.sqrt(sum(rounding(x, bits) ** 2 for x in (y, b, *(b + d))))
    clear = (np.abs(d) > CLEAR * slack).all(0)
    if clear.sum() < ENOUGH:
        return None
    all_slack, delta, d_clear, slack = slack, (y - b)[clear], d[:, clear], slack[clear]
    zero = np.abs(delta) <= slack
    if zero.mean() < DROPPED:
        return None
    factors = np.array([mode(delta[~zero] / one[~zero], slack[~zero] / np.abs(one[~zero])) for one in d_clear])
    sums = factors if len(d) == 1 else of_both(delta, d_clear, slack, zero, factors)
    ways = options(d_clear, factors, sums)
    if (np.abs(delta - ways).min(0) <= 2 * slack).mean() < EXPLAINED:
        return None
    kept, asked = masks(delta, ways, 4 * slack)
    if asked.sum() < ENOUGH:
        return None
    found = judged(d, d_clear[:, asked], kept[:, asked], factors, sums)
    if found.how in ("ties", "largest"):
        found = found._replace(**densities(y - b, d, all_slack, factors, sums, elected=found.how == "ties"))
    shares = [
        Share(parent, one.name, weight, max(found.give, 1 / float(np.sqrt(asked.sum()))), density)
        for (parent, one), weight, density in zip(others, found.weights, found.densities, strict=True)
    ]
    least = rms(slack) / 2 / rms(y)
    return replace(
        mixture(shares, found.how, least, least, "thinned"), parent=base[0], source=base[1].name, scale=found.scale
    )


def thinned_alike(child: Sketch, base: Source, others: Sequence[Source], like: Relation) -> Relation | None:
    """A short vector as thinned in the way that the rest of its layer is; None where some number is not of that way."""
    y, b = child.values, base[1].values
    d = np.stack([one.values - b for _, one in others])
    bits = min(digits(one) for one in (child, base[1], *(one for _, one in others)))
    slack = 2 * np.sqrt(sum(rounding(x, bits) ** 2 for x in (y, b, *(b + d))))
    weights, kept = (np.array([getattr(share, what) for share in like.shares]) for what in ("weight", "density"))
    factors = weights / kept if like.how.startswith("dare") else np.full(len(d), like.scale)
    sums = factors if like.how.startswith("dare") else weights * like.scale
    left = np.abs(y - b - options(d, factors, sums)).min(0)
    most = slack * (1 + np.abs(factors).max()) + LOOSE * np.abs(d).max(0)
    if (left > most).any():
        return None
    shares = [
        replace(share, source=one.name, give=BORROWED) for share, (_, one) in zip(like.shares, others, strict=True)
    ]
    error, least = rms(left) / rms(y), rms(slack) / rms(y)
    return replace(like, source=base[1].name, shares=tuple(shares), error=error, floor=least)


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


def of_both(delta, d, slack, zero, factors) -> np.ndarray:
    """The weights of numbers in which both differences are kept: of those that are neither 0 nor one alone."""
    single = (np.abs(delta - factors[:, None] * d) <= slack * np.maximum(1, np.abs(factors))[:, None]).any(0)
    both = ~(zero | single)
    return robust(delta[both], d[:, both]) if both.sum() >= FEW else factors


def options(d: np.ndarray, factors, sums) -> np.ndarray:
    """What a number of y - b can be: nothing, each difference alone, both.  -> o n"""
    alone = factors[:, None] * d
    return np.stack([np.zeros(d.shape[1]), *alone, *([sums @ d] if len(d) == 2 else [])])


def masks(delta, ways, apart) -> tuple[np.ndarray, np.ndarray]:
    """Which numbers each difference is kept in, and which can tell: those whose options lie so far apart.  -> k n, n"""
    pairs = [(i, j) for i in range(len(ways)) for j in range(i)]
    asked = np.all([np.abs(ways[i] - ways[j]) > apart for i, j in pairs], axis=0)
    which = np.abs(delta - ways).argmin(0)
    kept = [which == 1] if len(ways) == 2 else [(which == 1) | (which == 3), (which == 2) | (which == 3)]
    return np.stack(kept), asked


def robust(delta: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Least squares, three times, each without those that fitted worst before."""
    use = np.ones(len(delta), bool)
    for _ in range(3):
        weights = np.linalg.lstsq(d[:, use].T, delta[use], rcond=None)[0]
        left = np.abs(delta - weights @ d)
        use = left <= 4 * np.median(left) + 1e-300
    return weights


class Manner(NamedTuple):
    how: str
    weights: list[float]
    densities: list[float]
    scale: float = 1.0
    give: float = 0.0  # of the densities


def one_sign(d, kept, factors) -> tuple[np.ndarray, bool]:
    """Where both differences have one sign, and whether they are kept together only there: then signs were elected."""
    if len(d) < 2:
        return np.ones(d.shape[1], bool), False
    agree, both = (factors[0] * d[0] > 0) == (factors[1] * d[1] > 0), kept.all(0)
    return agree, bool(both.any() and agree[both].mean() >= AGREED)


def judged(d, asked, kept, factors, sums) -> Manner:
    """The method by which numbers were kept, and its weights.  d: all numbers, asked: those that can tell; k n"""
    agree, elected = one_sign(asked, kept, factors)
    use = agree if elected else np.ones_like(agree)
    limits = [threshold(np.abs(one[use]), k[use]) for one, k in zip(asked, kept, strict=True)]
    if any(limit.wrong > SHARP for limit in limits):
        shares, random = [float(k[use].mean()) for k in kept], all(limit.bias <= BLIND for limit in limits)
        how = "some" if not random else "dare, elected" if elected else "dare"
        return Manner(how, list(map(float, factors * shares)), shares)
    if len(d) == 1:
        return Manner("ties", [1.0], [], float(factors[0]))
    if elected and abs(sums.sum() - factors.mean()) < 0.05 * abs(factors.mean()):  # a mean of those that are kept
        return Manner("ties", list(map(float, sums / sums.sum())), [], float(factors.mean()))
    return Manner("ties" if elected else "largest", list(map(float, sums)), [])


def densities(delta, d, slack, factors, sums, elected: bool) -> dict[str, Any]:
    """How many of the largest were kept, from where they end: numbers whose options are barely apart tell that too."""
    kept, asked = masks(delta, options(d, factors, sums), 1.5 * slack)
    if elected:
        asked &= one_sign(d, kept, factors)[0]
    found = []
    for one, k in zip(np.abs(d), kept, strict=True):
        limit = threshold(one[asked], k[asked])
        found.append([float((one >= x).mean()) for x in limit[:2]])
    return {"densities": [float(np.mean(some)) for some in found], "give": max(float(np.ptp(some)) for some in found)}


class Limit(NamedTuple):
    dropped: float  # the largest that was dropped, or 0
    kept: float  # the smallest that was kept
    wrong: float  # the share of numbers on the wrong side of both, and not beside them
    bias: float  # by how many standard deviations the kept are larger, or smaller, than the dropped


def threshold(sizes: np.ndarray, kept: np.ndarray) -> Limit:
    """The size from which on numbers were kept: between two, of which nothing was asked."""
    order = np.argsort(sizes)
    r, k = sizes[order], kept[order]
    below = np.concatenate([[0], np.cumsum(k)])  # kept although smaller
    above = (~k).sum() - np.concatenate([[0], np.cumsum(~k)])  # dropped although as large
    at = int((below + above).argmin())
    high = float(r[at]) if at < len(k) else float(r[-1]) * 2
    low = float(r[at - 1]) if at else 0.0
    wrong = k & (r < low * (1 - EDGE)) | ~k & (r > high * (1 + EDGE))
    n, some = len(k), int(k.sum())
    deviation = n * math.sqrt((n + 1) / 12 / max(1, some * (n - some))) if 0 < some < n else math.inf
    bias = abs(float(np.flatnonzero(k).mean() - (n - 1) / 2)) * n / max(1, n - some) / deviation if some else 0.0
    return Limit(low, high, float(wrong.mean()), bias)
