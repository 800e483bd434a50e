"""Task vectors of which some numbers were dropped: what TIES and DARE leave of one, two or three models.

Both add differences to a base b, d_i = x_i - b, of which a mask m_i keeps only a share, the density:

    DARE   y = b + sum of (w_i / density_i) m_i d_i      m_i at random; `elected`: only those of the larger sum's sign
    TIES   y = b + s (sum of w_i m_i d_i) / (sum of w_i m_i)      m_i the largest numbers; only those of that sign

So every number of y - b is one of 2^k fixed sums of its k differences, to within rounding: a row of a table that k
weights fill (sums.py).  The weights are those whose table explains nearly all numbers, and would not explain them in
another order; and whether the kept are the largest says which method it was.  Numbers whose differences lie below their
rounding are not asked.
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
from numgemma.surgery.sums import Law, added, averaged, explained, laws, likeliest, likeliest_of_all, nearest, subsets

MOST = 3  # models, at most: of more, numbers lie so close to some sum that nothing is shown
CLEAR = 6  # times what rounding does, at least, is a difference that is asked
ENOUGH = 100  # such numbers, at least
EXPLAINED = 0.98  # of them, at least
BY_CHANCE = 0.7  # of them, at most, may be explained in another order
APART = 2.5  # times that by which numbers are off, at least, lie the sums of a number that can tell
DROPPED = 0.02  # of some model's, at least: else nothing was thinned
NOTHING = 0.002  # of the numbers, at least, are the base's: a mask of each model left them all out
FEW = 20  # numbers, at least, of which it is told how two differences are added, or which were dropped
SHARP = 0.005  # of the kept and the dropped, at most, on the wrong side of a threshold: then the size decided
EDGE = 0.01  # of the threshold, within which it does not: differences in bfloat16 are often equal
BLIND = 5.0  # standard deviations, at most, between the ranks of the kept and of the dropped: then it was not the size
AGREED = 0.97  # of the sums, at least, are what an election of signs leaves: then there was one
LOOSE = 0.02  # of a difference, by which a number may be off where the factor is known from elsewhere
BORROWED = 0.25  # what a weight is said to be known to, that was taken from other tensors and only fits


def thinned(child: Sketch, base: Source, others: Sequence[Source]) -> Relation | None:
    """The child as a base and thinned differences of one to three others; None where it is not shown to be that."""
    if not 1 <= len(others) <= MOST:
        return None
    y, b = child.values, base[1].values
    d = np.stack([one.values - b for _, one in others])
    all_slack = slack_of(y, child, base, others)
    clear = (np.abs(d) > CLEAR * all_slack).all(0)
    delta, d_clear, slack = (y - b)[clear], d[:, clear], all_slack[clear]
    if len(delta) < ENOUGH or (np.abs(delta) <= slack).mean() < NOTHING:
        return None
    law = max(laws(delta, d_clear, slack), key=lambda one: explained(one, delta, d_clear, slack))
    if explained(law, delta, d_clear, slack) < EXPLAINED or by_chance(law, delta, d_clear, slack) > BY_CHANCE:
        return None
    largest = np.abs(b + law.table @ d).max(0)  # whichever it is: else kept numbers, which are larger, are asked less
    off = off_by(law, delta, d_clear, slack)
    within = slack_of(largest, child, base, others) * min(4.0, APART * off)
    which, asked = masks(law, y - b, d, within)
    kept = subsets(len(d))[which[asked]]
    if asked.sum() < ENOUGH or kept.mean(0).min() > 1 - DROPPED:
        return None
    if len(d) > 1 and (kept.sum(1) > 1).sum() < FEW:  # nothing says how two would be added
        return None
    found = judged(law, d[:, asked], which[asked])
    if found is not None and found.how in ("ties", "largest"):
        found = found._replace(**densities(law, y - b, d, within, elected=found.how == "ties"))
    if found is not None and found.how == "dare":
        found = found._replace(**drawn(law, y - b, d, within))
    if found is not None and found.how == "dare, elected":
        shares = likeliest_of_all(law.weights[:, None] * d, y - b, all_slack * off / 2)
        found = found._replace(densities=list(map(float, shares)), weights=list(map(float, law.weights * shares)))
    return None if found is None else related(found, base, others, rms(all_slack[clear]) / 2 / rms(y), int(asked.sum()))


def slack_of(y: np.ndarray, child: Sketch, base: Source, others: Sequence[Source]) -> np.ndarray:
    """Twice what rounding does to each number of y - b - (some differences).  y: the child's, or what that can be"""
    sources = [base[1], *(one for _, one in others)]
    bits = min(digits(one) for one in (child, *sources))
    return 2 * np.sqrt(sum(rounding(x, bits) ** 2 for x in (y, *(one.values for one in sources))))


def off_by(law: Law, delta, d, slack) -> float:
    """Times the slack, how far nearly all numbers are at most from their sum: less where only the child was rounded."""
    return float(np.quantile(nearest(law, delta, d)[1] / slack, EXPLAINED))


def by_chance(law: Law, delta, d, slack) -> float:
    """How many of the numbers that are not the base's would be explained in another order."""
    moved = np.abs(delta) > slack
    order = np.random.default_rng(0).permutation(int(moved.sum()))
    return explained(law, delta[moved][order], d[:, moved], slack[moved])


class Manner(NamedTuple):
    how: str
    weights: list[float]
    densities: list[float]
    scale: float = 1.0
    give: float = 0.0  # of the densities


def related(found: Manner, base: Source, others: Sequence[Source], least: float, asked: int) -> Relation:
    shares = [
        Share(parent, one.name, weight, found.give or asked**-0.5, density)
        for (parent, one), weight, density in zip(others, found.weights, found.densities, strict=True)
    ]
    made = mixture(shares, found.how, least, least, "thinned")
    return replace(made, parent=base[0], source=base[1].name, scale=found.scale)


def thinned_alike(child: Sketch, base: Source, others: Sequence[Source], like: Relation) -> Relation | None:
    """A short vector as thinned in the way that the rest of its layer is; None where some number is not of that way."""
    y, b = child.values, base[1].values
    d = np.stack([one.values - b for _, one in others])
    slack, law = slack_of(y, child, base, others), law_of(like)
    left = np.abs(y - b - law.table @ d).min(0)
    most = slack * (1 + np.abs(law.table).max()) + LOOSE * np.abs(d).max(0)
    if (left > most).any():
        return None
    shares = [
        replace(share, source=one.name, give=BORROWED) for share, (_, one) in zip(like.shares, others, strict=True)
    ]
    error, least = rms(left) / rms(y), rms(slack) / rms(y)
    return replace(like, source=base[1].name, shares=tuple(shares), error=error, floor=least)


def law_of(like: Relation) -> Law:
    """The sums that a relation tells of: weights of a mean sum to 1."""
    weights, kept = (np.array([getattr(share, what) for share in like.shares]) for what in ("weight", "density"))
    if like.how == "ties" and abs(weights.sum() - 1) < 1e-6:
        return averaged(weights, like.scale)
    return added(weights if like.how in ("ties", "largest") else weights / np.maximum(kept, 1e-9))


def masks(law: Law, delta, d, apart) -> tuple[np.ndarray, np.ndarray]:
    """Which sum each number is, and which numbers can tell: those whose sums lie so far apart.  -> n, n"""
    ways = np.sort(law.table @ d, 0)
    return nearest(law, delta, d)[0], (np.diff(ways, axis=0) > apart).all(0)


def judged(law: Law, d, which) -> Manner | None:
    """The method by which numbers were kept; None where no known one keeps so.  d: k n, which: n"""
    kept = subsets(len(d))[which].T
    seen, fits = likeliest(law.weights[:, None] * d, which)
    elected = len(d) > 1 and fits >= AGREED
    use = one_sign(law, d) if elected else np.ones(len(which), bool)
    if use.sum() < FEW:
        return None
    limits = [threshold(np.abs(one[use]), k[use]) for one, k in zip(d, kept, strict=True)]
    if all(limit.wrong <= SHARP for limit in limits):
        if law.mean and not elected:
            return None
        if len(d) == 1:
            return Manner("ties", [1.0], [], float(law.factors[0]))
        return Manner("ties" if elected else "largest", list(map(float, law.weights)), [], law.scale)
    if law.mean:
        return None
    shares = seen if elected else kept.mean(1)
    random = all(limit.bias <= BLIND for limit in limits)
    how = "some" if not random else "dare, elected" if elected else "dare"
    give = (len(which) / 2) ** -0.5 if elected else 0.0  # who was outvoted tells less
    return Manner(how, list(map(float, law.weights * shares)), list(map(float, shares)), give=give)


def one_sign(law: Law, d) -> np.ndarray:
    """Where all differences draw to one side: there an election drops none."""
    up = law.factors[:, None] * d > 0
    return up.all(0) | ~up.any(0)


def drawn(law: Law, delta, d, apart) -> dict[str, Any]:
    """How many were kept at random: of each model, where the sums with it lie apart from those without."""
    ways, sets, which = law.table @ d, subsets(len(d)), nearest(law, delta, d)[0]
    found = []
    for i in range(len(d)):
        use = np.abs(ways[sets[:, i], None] - ways[~sets[:, i]]).min((0, 1)) > apart
        found.append((float(sets[which[use], i].mean()), int(use.sum())))
    shares = [share for share, _ in found]
    give = min(n for _, n in found) ** -0.5
    return {"densities": shares, "weights": list(map(float, law.weights * shares)), "give": give}


def densities(law: Law, delta, d, apart, elected: bool) -> dict[str, Any]:
    """How many of the largest were kept, from where they end: numbers whose sums are barely apart tell that too."""
    which, asked = masks(law, delta, d, apart)
    if elected:
        asked &= one_sign(law, d)
    found = []
    for one, k in zip(np.abs(d), subsets(len(d))[which].T, strict=True):
        limit = threshold(one[asked], k[asked])
        found.append([float((one >= x).mean()) for x in limit[:2]])
    give = max(float(asked.sum()) ** -0.5, *(float(np.ptp(some)) for some in found))
    return {"densities": [float(np.mean(some)) for some in found], "give": give}


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
