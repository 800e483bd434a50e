"""Runs that are right and yet not equal: operations whose results are rounded, and summed, as another engine might.

Two correct engines differ in the order of their sums, in the last bit of their exp and tanh, and in what they keep
wide for how long.  Here every operation's result is moved by one unit in the last place, up or down, at a few random
places; one that is made of others, where these are.  That is enough for two runs to have rounding errors that know
nothing of each other after a layer or two, and too little to make the errors larger.  A product in float32 is summed in
two parts, cut at a random place, and loses as much more as a library that sums in a less lucky order.
"""

from contextlib import contextmanager

import numpy as np

from numgemma import ops
from numgemma.ops.definitions import clip

ONE_IN = 32  # the share of results that move

# These choose or copy numbers and round none.
EXACT = ("each", "embed", "relu", "narrow", "choose_experts")

INTEGERS = {2: np.int16, 4: np.int32, 8: np.int64}


@contextmanager
def perturbed(seed):
    """For as long as this lasts, all operations of the model round and sum in a way of their own."""
    rng = np.random.default_rng(seed)
    original = {name: getattr(ops, name) for name in ops.__all__ if name not in EXACT}
    try:
        for name, op in original.items():
            setattr(ops, name, jittered(split(op, rng) if name == "linear" else op, rng))
        ops.clipped_linear, ops.gated_gelu = clipped_linear, gated_gelu
        yield
    finally:
        for name, op in original.items():
            setattr(ops, name, op)


def jittered(op, rng):
    """The same operation with some of its results one unit in the last place off."""

    def other(*args, **kwargs):
        y = op(*args, **kwargs)
        return tuple(jitter(part, rng) for part in y) if isinstance(y, tuple) else jitter(y, rng)

    return other


def clipped_linear(x, w, inner, outer):
    return clip(ops.linear(clip(x, *inner), w), *outer)


def gated_gelu(gate, up):
    return ops.gelu_tanh(gate) * up


def split(linear, rng):
    """The same product, summed in two parts.  Narrow precisions are left alone: they sum in float32 and round after.

    What a sum loses goes with the size of what is summed, however small the sum: so it is drawn relative to the RMS of
    all products of that x.
    """

    def other(x, w):
        if x.dtype.itemsize < 4 or x.shape[-1] < 2:
            return linear(x, w)
        cut = int(rng.integers(1, x.shape[-1]))
        y = linear(x[..., :cut], w[:, :cut]) + linear(x[..., cut:], w[:, cut:])
        lost = np.finfo(y.dtype).eps * np.sqrt((y * y).mean(-1, keepdims=True))
        return y + lost * rng.standard_normal(y.shape, y.dtype)

    return other


def jitter(x, rng):
    """Move one number in ONE_IN to its neighbour, up or down.  Zeros stay: they are what a mask has hidden."""
    if x.dtype.kind in "iub":
        return x
    drawn = rng.integers(0, 2 * ONE_IN, x.shape, np.uint8)
    step = ((drawn == 0).view(np.int8) - (drawn == 1).view(np.int8)) * (x != 0)
    integers = INTEGERS[x.dtype.itemsize]  # neighbours in magnitude are neighbours as integers
    return (np.ascontiguousarray(x).view(integers) + step.astype(integers)).view(x.dtype)
