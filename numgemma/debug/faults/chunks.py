"""Faults of a pass that is not the first: a later chunk of a prompt, a cached step, a pass after a rewind.

In a run of one pass they change nothing; whatif tries them on the tokens that are wrong.
"""

import numpy as np

from numgemma.debug.faults.attending import ATTENTION, slides
from numgemma.debug.faults.fault import fault


def with_later_mask(change):
    """Attention under another mask where there are earlier tokens: change(mask: T S, earlier keys) -> T S."""

    def attention(original, x, spec, kvs, mask):
        mask = np.asarray(mask)
        earlier = mask.shape[1] - len(x)
        return original(mask=change(mask.copy(), earlier)) if earlier > 0 else original()

    return attention


def itself_alone(mask, earlier):
    mask[:, :earlier] = False
    return mask


def counted_from_zero(mask, earlier):
    T, S = mask.shape
    return mask & (np.arange(S) <= np.arange(T)[:, None])


def all_of_the_chunk(mask, earlier):
    mask[:, earlier:] = True
    return mask


def without_the_oldest(rows):
    """Each query lacks its oldest keys."""

    def change(mask, earlier):
        return mask & (np.cumsum(mask, 1) > np.minimum(rows, mask.sum(1, keepdims=True) - 1))

    return change


SHOWN = {"shows": f"{ATTENTION}.scores", "swaps": "layers.attention.attention", "later": True}

fault(
    "C01-itself",
    "a later chunk sees its own tokens alone, not the cache",
    "let the mask of a chunk span the keys of all passes before",
    **SHOWN,
)(with_later_mask(itself_alone))

fault(
    "C01-zero",
    "a later chunk's mask counts its queries from 0",
    "count queries from the length of the cache: query i of a chunk sees keys up to start + i",
    **SHOWN,
)(with_later_mask(counted_from_zero))

fault(
    "C01-both",
    "a later chunk's tokens see the tokens after them in the chunk",
    "keep the mask causal inside a chunk",
    **SHOWN,
)(with_later_mask(all_of_the_chunk))

for rows in (1, 2, 3):
    fault(
        f"C02-{rows}",
        f"the window lacks its oldest {'key' if rows == 1 else f'{rows} keys'} after a rewind",
        "keep as many keys more than the window as may be rewound, or compute them again",
        at=slides,
        past_window=True,
        **SHOWN,
    )(with_later_mask(without_the_oldest(rows)))
