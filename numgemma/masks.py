"""Who attends to whom.

Every mask of this family lets a query see one unbroken run of keys, so a mask is two numbers per query.  That is what
lets a prompt of 128K tokens run: its map of T x S would have 17 billion places.  `np.asarray(mask)` is the map.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Spans:
    """Query t attends to keys first[t] to end[t] - 1.  As an array it is T S, True where a query may attend."""

    first: np.ndarray  # T
    end: np.ndarray  # T
    S: int

    @property
    def shape(self):
        return len(self.first), self.S

    def __array__(self, dtype=None, copy=None):
        keys = np.arange(self.S)
        return (self.first[:, None] <= keys) & (keys < self.end[:, None])

    def __getitem__(self, queries: slice):
        return Spans(self.first[queries], self.end[queries], self.S)


def causal_mask(positions, first, window):
    """Spans of queries at `positions`; keys stand at first, first + 1, ... up to the last query.  positions: T

    A query sees the last `window` positions, its own included; all earlier ones where window is None.
    """
    end = positions + 1 - first
    begin = np.zeros_like(end) if window is None else np.maximum(0, end - window)
    return Spans(begin, end, int(end[-1]))


def image_mask(blocks, window, before=0):
    """The causal mask, but the tokens of one image see each other.  blocks: T

    blocks numbers the images; -1 is no image.  The window still ends how far back a token sees.  `before` keys of
    earlier tokens stand ahead of these.
    """
    T = len(blocks)
    begins = np.flatnonzero(np.diff(blocks, prepend=blocks[:1] - 1))
    block_end = np.repeat(np.append(begins[1:], T), np.diff(np.append(begins, T)))
    end = before + np.where(blocks >= 0, block_end, np.arange(1, T + 1))
    return Spans(np.maximum(0, before + np.arange(1, T + 1) - window), end, before + T)


def far_image_mask(blocks, window, before=0):
    """As `image_mask`, but the tokens of one image see each other past the window too.  window None: there is none

    What Gemma4UnifiedModel of Transformers 5.23 and 5.24 computes, and on full layers too; nobody trained a model so.
    """
    near = image_mask(blocks, len(blocks) + before if window is None else window, before)
    begins = np.concatenate([[True], blocks[1:] != blocks[:-1]])
    block_first = before + np.maximum.accumulate(np.where(begins, np.arange(len(blocks)), 0))
    return Spans(np.where(blocks >= 0, np.minimum(near.first, block_first), near.first), near.end, near.S)


def band_mask(T, radius):
    """A query sees the tokens up to `radius` places before it and after it, both ends included, and itself."""
    at = np.arange(T)
    return Spans(np.maximum(0, at - radius), np.minimum(T, at + radius + 1), T)


def everything(T, S):
    """Every query sees every key."""
    return Spans(np.zeros(T, int), np.full(T, S), S)
