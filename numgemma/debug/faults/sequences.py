"""Faults of keys and values that are other tokens': a rejected draft's, an earlier turn's, another sequence's.

Their numbers are in no dump of this run.  But who knows the other token ids can have them computed: `of_other` runs
that sequence, and `beside` it these faults can act; without it they can act nowhere.  What both begin with is the same
in both; what the other has after that are its rows:

    ids    2 7 4 8 1      what the dump is of
    other  2 7 9 9        what else the engine ran: here two tokens were drafted, 9 9, and rejected
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from numgemma.cache import Kept
from numgemma.debug.faults.attending import ATTENTION
from numgemma.debug.faults.fault import fault, swapped
from numgemma.prompt.media import NO_MEDIA


@dataclass
class Other:
    """The other sequence, and its keys and values: layer -> k S K H, v S K H, of all its tokens."""

    tokens: int
    shared: int  # so many tokens both begin with
    windows: dict  # layer -> how far it sees, of those that make keys
    exact: dict
    noisy: list[dict] = field(default_factory=list)  # the same of right runs that round
    drawn: int | None = None  # which of these is read; None: the exact one, and of a run that rounds any
    start: int = 0  # of the pass that is run now
    passes: int = 0  # that were run so far

    def rows(self, layer, dtype):
        """k and v of one layer, for a run in that dtype."""
        drawn = self.passes if self.drawn is None and dtype != np.float64 and self.noisy else self.drawn
        kvs = self.exact if drawn is None else self.noisy[drawn % len(self.noisy)]
        return tuple(side.astype(dtype) for side in kvs[layer])


KNOWN: list[Other] = []  # the last one counts


@contextmanager
def beside(other: Other) -> Iterator[None]:
    """The faults of this file can act, for as long as this lasts."""

    def noted(original, start):
        other.start, other.passes = start, other.passes + 1
        return original()

    KNOWN.append(other)
    try:
        with swapped("families.family.started", noted):
            yield
    finally:
        KNOWN.remove(other)


def kept_by(model, ids) -> dict:
    """The keys and values that a run makes of these tokens, those too that its sliding layers forget."""
    kvs: dict = {}
    with swapped("forget", lambda original: None, model.family):
        model.forward(np.asarray(ids), NO_MEDIA, model.run(kvs))
    return {layer: tuple(kept) for layer, kept in kvs.items()}


def shared(ids, others) -> int:
    """How many tokens both begin with."""
    return next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), min(len(ids), len(others)))


def known(spec, model):
    return bool(KNOWN) and spec is not None and spec.kv_from in KNOWN[-1].exact


@dataclass(frozen=True)
class Own:
    """What a pass attends to by right.  first: the position of the oldest row   start: that of the first query"""

    k: np.ndarray  # S K H
    v: np.ndarray
    mask: np.ndarray  # T S
    first: int
    start: int

    def replaced(self, rows, end):
        """The other's rows at all positions before `end`, as far as it has them."""
        n = min(end, len(rows[0])) - self.first
        if n <= 0:
            return self.k, self.v, self.mask
        k, v = (np.concatenate([x[self.first :][:n], own[n:]]) for x, own in zip(rows, (self.k, self.v), strict=True))
        return k, v, self.mask


def attending(change):
    """Attention to other rows: change(own, the other's k and v, where they part, window) -> k, v, mask."""

    def attention(original, x, spec):
        other = KNOWN[-1]

        def attend(original, k, v, mask):
            own = Own(k, v, np.asarray(mask), other.start + len(x) - len(k), other.start)
            k, v, mask = change(own, other.rows(spec.kv_from, k.dtype), other.shared, spec.window)
            return original(k=k, v=v, mask=mask)

        with swapped("ops.attend", attend):
            return original()

    return attention


def earlier_rows(own, rows, begin, window):
    return own.replaced(rows, own.start)


def all_rows(own, rows, begin, window):
    return own.replaced(rows, len(rows[0]))


def seen_ahead(own, rows, begin, window):
    """Rows that were taken back, and that no newer token has overwritten, are not masked."""
    T = len(own.mask)
    k, v = (x[own.start + T :] for x in rows)
    if own.start < begin or not len(k):
        return own.k, own.v, own.mask
    mask = np.concatenate([own.mask, np.ones((T, len(k)), bool)], 1)
    return np.concatenate([own.k, k]), np.concatenate([own.v, v]), mask


def left_between(own, rows, begin, window):
    """Rows that were taken back stay, and newer ones come after them."""
    if own.start < begin:
        return own.k, own.v, own.mask
    more = len(rows[0]) - begin
    (k, v), slots = inserted((own.k, own.v), rows, own.first, begin)
    queries = own.start + more + np.arange(len(own.mask))[:, None]
    mask = slots <= queries
    return k, v, mask if window is None else mask & (slots > queries - window)


def left_at_first(own, rows, begin, window):
    """Nothing of the other sequence was removed."""
    return left_between(own, rows, 0, window)


def inserted(own, rows, first, begin):
    """Own rows, the oldest at position `first`, and between them the other's from `begin` on.  -> k and v, slots"""
    cut, more = max(0, begin - first), len(rows[0]) - begin
    both = [np.concatenate([x[:cut], y[begin:], x[cut:]]) for x, y in zip(own, rows, strict=True)]
    before, after = np.split(first + np.arange(len(own[0])), [cut])
    return both, np.concatenate([before, begin + np.arange(more), after + more])


def counted_on(at_first):
    """The cache still has the other's rows, and a token's position is the number of rows before it.

    at_first: all of them stand before the first token; else those that are not shared stand where the two part.
    """

    def started(original, dtype, kvs, start):
        other = KNOWN[-1]
        begin = 0 if at_first else other.shared
        if start < begin:
            return original()
        if max(map(len, kvs.values()), default=0) <= start:  # else they are in it since an earlier pass
            for layer, window in other.windows.items():
                rows = other.rows(layer, dtype)
                own = tuple(kvs[layer]) if layer in kvs else [side[:0] for side in rows]
                kvs[layer] = newest(inserted(own, rows, start - len(own[0]), begin)[0], window)
        return original(start=start + other.tokens - begin)

    return started


def newest(rows, window):
    """A cache of k and v with what a later token can see."""
    k, v = rows if window is None else (side[max(0, len(side) - (window - 1)) :] for side in rows)
    return Kept(k, v, 0, len(k))


SHOWN = {"shows": f"{ATTENTION}.scores", "swaps": "layers.attention.attention", "at": known}
COUNTED = {"shows": f"rotary_emb.*.cos {ATTENTION}.q_rope", "swaps": "families.family.started", "at": known}

fault(
    "C03-stays",
    "rows that were taken back stay in the cache, before those of newer tokens",
    "take the rows of rejected tokens out of every layer's cache before the next pass",
    later=True,
    **SHOWN,
)(attending(left_between))

fault(
    "C03-counted",
    "rows that were taken back stay in the cache, and positions count them",
    "take the rows of rejected tokens out of every layer's cache, and count positions without them",
    later=True,
    across=True,
    **COUNTED,
)(counted_on(at_first=False))

fault(
    "C03-ahead",
    "rows that were taken back are seen where no newer token has overwritten them",
    "mask the keys past the newest token, however long the buffer was filled before",
    later=True,
    **SHOWN,
)(attending(seen_ahead))

fault(
    "C03-turn",
    "the rows of an earlier sequence are still in the cache",
    "begin a sequence with an empty cache",
    **SHOWN,
)(attending(left_at_first))

fault(
    "C03-turn-counted",
    "the rows of an earlier sequence are still in the cache, and positions count them",
    "begin a sequence with an empty cache, at position 0",
    across=True,
    **COUNTED,
)(counted_on(at_first=True))

fault(
    "C04",
    "a later pass reads another sequence's rows of the earlier tokens",
    "look every sequence's earlier rows up in its own place of the cache",
    later=True,
    **SHOWN,
)(attending(earlier_rows))

fault(
    "C04-all",
    "a sequence reads another one's rows, also of its own tokens",
    "write and read the rows of a sequence in its own place of the cache",
    **SHOWN,
)(attending(all_rows))
