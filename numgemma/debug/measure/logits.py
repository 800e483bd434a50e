"""How two runs differ in what they would say next: probabilities, and the tokens at the top."""

import math
import mmap
from dataclasses import dataclass

import numpy as np

from numgemma.debug.measure import metrics

TOP = (1, 5, 10)
BLOCK = 2**15  # logits taken at a time: 256 KB as float64; a few such arrays stay in a core's cache


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A token whose likeliest successor is another one.  margin: a's logit of its own choice above that of b's."""

    token: int
    a: int
    b: int
    margin: float
    tie: bool = False  # the margin is inside the noise


@dataclass(frozen=True, kw_only=True)
class LogitsDiff:
    """The logits of two runs.  kl_ab: KL divergence from a to b in nats, of the mean token; overlap: by k, 0 to 1."""

    point: str
    kl_ab: float
    kl_ba: float
    kl_worst: float
    kl_worst_at: int
    overlap: dict[str, float]
    centred: float  # relative error once each token's mean is taken out, which no probability depends on
    flips: list[Flip]
    tokens: int
    xfloor: float | None = None  # kl_ab against that of noise alone


def compare(a, b, point="logits") -> LogitsDiff | None:
    """Logits against logits.  a, b: T V; None where a value is not finite or there are none"""
    if a.size == 0 or a.shape != b.shape or a.ndim != 2:
        return None
    T, V = a.shape
    ks = [k for k in TOP if k <= V]
    ab, ba, overlap = np.zeros(T), np.zeros(T), np.ones((T, len(ks)))
    flips: list[Flip] = []
    error = size = 0.0
    rows = max(1, BLOCK // V)
    for start in range(0, T, rows):
        part = slice(start, start + rows)
        x, y = (np.asarray(side[part], wide(side.dtype)) for side in (a, b))
        size += centred_squares(x)
        if not metrics.same_bits(a[part], b[part]):
            best = x.argmax(-1)[:, None], y.argmax(-1)[:, None]
            ab[part], ba[part], off = divergences(x, y, *best)
            error += off
            tops = highest(x, ks[-1]), highest(y, ks[-1])
            overlap[part] = np.transpose([shared(*tops, k) for k in ks])
            flips += flipped(x, *best, start)
        if not math.isfinite(size + error):
            return None
        if (done := (start + rows) * V) % metrics.CHUNK < rows * V:  # not after every row: it takes a while
            metrics.advise((a, b), slice(max(0, done - 2 * metrics.CHUNK), done), mmap.MADV_DONTNEED)
    metrics.advise((a, b), slice(None), mmap.MADV_DONTNEED)
    worst = int(ab.argmax())
    return LogitsDiff(
        point=point,
        kl_ab=float(ab.mean()),
        kl_ba=float(ba.mean()),
        kl_worst=float(ab[worst]),
        kl_worst_at=worst,
        overlap={str(k): float(share) for k, share in zip(ks, overlap.mean(0), strict=True)},
        centred=math.sqrt(error / size) if size else 0.0,
        flips=flips,
        tokens=T,
    )


def wide(dtype):
    return np.promote_types(dtype, np.float32)


def pieces(*arrays):
    """Their columns in pieces that stay in a core's cache, as float64."""
    for start in range(0, arrays[0].shape[1], BLOCK):
        yield [np.asarray(x[:, start : start + BLOCK], np.float64) for x in arrays]


def centred_squares(x):
    """The sum of squares of each token's logits about their mean.  x: T V"""
    sums, squares = np.sum([[u.sum(-1), np.vecdot(u, u)] for (u,) in pieces(x)], axis=0)
    return about_mean(sums, squares, x.shape[1])


def about_mean(sums, squares, n):
    with np.errstate(invalid="ignore", over="ignore"):  # infinity shows in what comes back
        return float(np.maximum(squares - sums * sums / n, 0.0).sum())


def divergences(x, y, best_x, best_y):
    """KL divergence from x to y and back, of logits, and the centred squares of x - y.  x, y: T V  ->  T, T, number

    best: places of the highest logits.  T 1
    """
    high_x, high_y = (np.take_along_axis(z, at, -1).astype(np.float64) for z, at in ((x, best_x), (y, best_y)))
    sums = np.zeros((6, len(x)))
    with np.errstate(invalid="ignore", over="ignore"):
        for u, v in pieces(x, y):
            d = u - v
            p, q = np.exp(u - high_x), np.exp(v - high_y)
            sums += [p.sum(-1), q.sum(-1), np.vecdot(p, d), np.vecdot(q, d), d.sum(-1), np.vecdot(d, d)]
        gap = high_x[:, 0] - high_y[:, 0] + np.log(sums[0]) - np.log(sums[1])  # of log sum exp
        ab, ba = np.maximum(sums[2] / sums[0] - gap, 0.0), np.maximum(gap - sums[3] / sums[1], 0.0)
    return ab, ba, about_mean(sums[4], sums[5], x.shape[1])


def highest(x, k):
    """Places of the k highest of every row, the highest first.  x: T V  ->  T k

    Of a long row only those stretches are looked at that hold the k highest maxima.
    """
    V = x.shape[1]
    width = math.isqrt(V)
    whole = V // width * width
    if whole // width <= 4 * k:
        places = np.broadcast_to(np.arange(V), x.shape)
    else:
        maxima = x[:, :whole].reshape(len(x), -1, width).max(-1)
        best = np.sort(np.argpartition(maxima, -k)[:, -k:])
        inside = (best[:, :, None] * width + np.arange(width)).reshape(len(x), -1)
        places = np.concatenate([inside, np.broadcast_to(np.arange(whole, V), (len(x), V - whole))], axis=1)
    values = np.take_along_axis(x, places, -1)
    top = np.sort(np.argpartition(values, -k)[:, -k:])
    order = np.argsort(-np.take_along_axis(values, top, -1), kind="stable")  # of equal ones the first
    return np.take_along_axis(places, np.take_along_axis(top, order, -1), -1)


def shared(tops_x, tops_y, k):
    """Which share of a token's k highest logits both have.  tops: T K, the highest first  ->  T"""
    return (tops_x[:, :k, None] == tops_y[:, None, :k]).any(-1).mean(-1)


def flipped(x, best_x, best_y, start):
    """Every token whose highest logit is another one's.  best: places of the highest.  T 1"""
    for t in np.flatnonzero(best_x != best_y):
        i, j = int(best_x[t, 0]), int(best_y[t, 0])
        yield Flip(token=start + int(t), a=i, b=j, margin=float(x[t, i] - x[t, j]))
