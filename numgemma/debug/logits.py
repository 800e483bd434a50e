"""How two runs differ in what they would say next: probabilities, and the tokens at the top."""

from dataclasses import dataclass

import numpy as np

TOP = (1, 5, 10)
BLOCK = 2**22  # logits taken at a time: 32 MB as float64


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
    ab, ba, flips = [], [], []
    overlap: dict[str, list[float]] = {str(k): [] for k in TOP if k <= a.shape[1]}
    error = size = 0.0
    rows = max(1, BLOCK // a.shape[1])
    for start in range(0, len(a), rows):
        x, y = (np.asarray(side[start : start + rows], np.float64) for side in (a, b))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return None
        p, q = log_softmax(x), log_softmax(y)
        ab += kl(p, q).tolist()
        ba += kl(q, p).tolist()
        for k, shares in overlap.items():
            shares += top_overlap(x, y, int(k)).tolist()
        flips += list(flipped(x, y, start))
        x, y = (side - side.mean(-1, keepdims=True) for side in (x, y))
        error, size = error + float(((x - y) ** 2).sum()), size + float((x**2).sum())
    worst = int(np.argmax(ab))
    return LogitsDiff(
        point=point,
        kl_ab=float(np.mean(ab)),
        kl_ba=float(np.mean(ba)),
        kl_worst=ab[worst],
        kl_worst_at=worst,
        overlap={k: float(np.mean(shares)) for k, shares in overlap.items()},
        centred=float(np.sqrt(error / size)) if size else 0.0,
        flips=flips,
        tokens=len(a),
    )


def log_softmax(x):
    """x - log sum exp(x) over the last axis."""
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl(p, q):
    """Kullback-Leibler divergence from p to q, of log-probabilities.  T V  ->  T, in nats"""
    return np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0)


def top_overlap(x, y, k):
    """Which share of a token's k highest logits both have.  x, y: T V  ->  T"""
    last = x.shape[-1] - k
    tops = [np.argpartition(side, last, axis=-1)[:, last:] for side in (x, y)]
    return np.array([len(np.intersect1d(*rows)) / k for rows in zip(*tops, strict=True)])


def flipped(x, y, start):
    """Every token whose highest logit is another one's."""
    tops = x.argmax(-1), y.argmax(-1)
    for t in np.flatnonzero(tops[0] != tops[1]):
        i, j = int(tops[0][t]), int(tops[1][t])
        yield Flip(token=start + int(t), a=i, b=j, margin=float(x[t, i] - x[t, j]))
