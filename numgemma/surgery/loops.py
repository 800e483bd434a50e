"""How much a text repeats itself: a stack that was never trained further tends to fall into a loop."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GRAM = 4  # tokens


@dataclass(frozen=True)
class Repetition:
    """share: of all runs of `gram` tokens, how many were there before; then the longest stretch that repeats itself."""

    tokens: int
    gram: int
    share: float
    start: int  # of the stretch
    length: int  # of the stretch, in tokens; 0: there is none
    period: int  # it repeats its first `period` tokens

    @property
    def times(self) -> float:
        return self.length / self.period if self.period else 0.0


def repetition(ids: Sequence[int], gram: int = GRAM) -> Repetition:
    """Of token ids, those of the prompt left out."""
    x = np.asarray(ids, dtype=np.int64)
    return Repetition(len(x), gram, repeated_share(x, gram), *longest_loop(x))


def repeated_share(x: np.ndarray, gram: int) -> float:
    """The share of the runs of `gram` tokens that stood there before; 0 for a text that has no such run."""
    if len(x) < gram:
        return 0.0
    runs = np.lib.stride_tricks.sliding_window_view(x, gram)
    return 1 - len(np.unique(runs, axis=0)) / len(runs)


def longest_loop(x: np.ndarray) -> tuple[int, int, int]:
    """(start, length, period) of the longest stretch that goes at least twice through the same tokens."""
    best = (0, 0, 0)
    for period in range(1, len(x) // 2 + 1):
        start, run = longest_run(x[period:] == x[:-period])
        if run >= period and run + period > best[1]:
            best = (start, run + period, period)
    return best


def longest_run(same: np.ndarray) -> tuple[int, int]:
    """(start, length) of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    if not len(starts):
        return 0, 0
    i = int((stops - starts).argmax())
    return int(starts[i]), int(stops[i] - starts[i])


def described(r: Repetition) -> str:
    """In one line."""
    if not r.length:
        return f"repetition: {r.share:.0%} of {r.gram}-grams were there before; no loop in {r.tokens} tokens"
    return (
        f"repetition: {r.share:.0%} of {r.gram}-grams were there before; longest loop: "
        f"{r.period} token{'s' * (r.period > 1)} {r.times:.1f} times, from token {r.start} of {r.tokens}"
    )
