"""How likely a model finds a given text: the number that people quote, from exact arithmetic.

A long text runs in windows: each begins `stride` tokens after the one before, and only the tokens that no window before
it has scored count, so that each has all of a window, or nearly, in front of it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from numgemma.errors import InputError
from numgemma.prompt.media import NO_MEDIA

CHUNK = 256  # tokens whose logits are in memory at once
SCHEMA = "numgemma.score/1"


@dataclass(frozen=True, eq=False)
class Score:
    """nll: T, in nats, of each token after those before it; nan for the first, which nothing precedes.

    kl: T, the divergence of the other model's next-token distribution from this one's at the same place, in nats: the
    cost of reading the text with the other.  nan where there is none; None without another model.
    """

    ids: np.ndarray
    nll: np.ndarray
    other: np.ndarray | None = None  # the other model's nll
    kl: np.ndarray | None = None

    @property
    def mean(self) -> float:
        """Nats a token."""
        return float(np.nanmean(self.nll))

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.mean, 700))

    def to_json(self) -> dict:
        found = {"schema": SCHEMA, "tokens": len(self.ids), "scored": int(np.isfinite(self.nll).sum())}
        found |= {"nll": self.mean, "perplexity": self.perplexity, "ids": self.ids.tolist(), "by_token": told(self.nll)}
        if self.kl is None or self.other is None:
            return found
        theirs = Score(self.ids, self.other)
        against = {"nll": theirs.mean, "perplexity": theirs.perplexity, "by_token": told(self.other)}
        return found | {"against": against, "kl": float(np.nanmean(self.kl)), "kl_by_token": told(self.kl)}


def told(numbers):
    """For JSON, which has no NaN."""
    return [None if math.isnan(x) else float(x) for x in numbers]


def score(model, ids, against=None, window=2048, stride=None, progress: Callable = lambda done, of: None) -> Score:
    """Score a text.  ids: T

    against: another Model of the same vocabulary, whose distribution is compared at every place.  window: tokens that
    run together; stride: how far the windows are apart, half a window by default.  progress: called with how many
    tokens are scored, and of how many.  Raises InputError where something does not fit.
    """
    model.check_part("head", "gives no logits")
    ids, stride = model.checked(ids), stride or max(1, window // 2)
    if len(ids) < 2:
        raise InputError("A text of one token has nothing to score; give two or more.")
    if not window > 1 or not 0 < stride < window:
        raise InputError(f"A stride of {stride} in windows of {window} leaves tokens out; give 1 to {window - 1}.")
    if against is not None and against.outline.vocabulary != model.outline.vocabulary:
        raise InputError(
            f"The vocabularies have {model.outline.vocabulary} and {against.outline.vocabulary} tokens; "
            "a divergence needs the same tokens on both sides."
        )
    nll, other, kl = (np.full(len(ids), np.nan) for _ in range(3))
    for first, fresh, stop in windows(len(ids), window, stride):
        sides = [distributions(m, ids[first:stop]) for m in (model, against) if m is not None]
        for parts in zip(*sides, strict=True):
            at = first + parts[0][0] + 1 + np.arange(len(parts[0][1]))  # the tokens that these rows foretell
            keep = (at >= fresh) & (at < stop)
            rows = [logp[keep] for _, logp in parts]
            nll[at[keep]] = -rows[0][np.arange(keep.sum()), ids[at[keep]]]
            if against is not None:
                other[at[keep]] = -rows[1][np.arange(keep.sum()), ids[at[keep]]]
                kl[at[keep]] = (np.exp(rows[0]) * (rows[0] - rows[1])).sum(-1)
            progress(min(int(at[-1]) + 1, len(ids)), len(ids))
    return Score(ids, nll) if against is None else Score(ids, nll, other, kl)


def windows(tokens, window, stride) -> Iterator[tuple[int, int, int]]:
    """(first token of a window, the first that no window before it scored, its end)."""
    first, fresh = 0, 1
    while fresh < tokens:
        stop = min(first + window, tokens)
        yield first, fresh, stop
        first, fresh = first + stride, stop


def distributions(model, ids) -> Iterator[tuple[int, np.ndarray]]:
    """Log-probabilities of what comes next, in parts: (place of the first row, t V), through the cache.  ids: T"""
    kvs: dict = {}
    for start in range(0, len(ids), CHUNK):
        logits = model.forward(ids[start : start + CHUNK], NO_MEDIA, model.run(kvs, start)).astype(np.float64)
        top = logits.max(-1, keepdims=True)
        yield start, logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
