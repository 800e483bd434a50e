"""One token's product with a matrix of codes, which become numbers in a register, as fast as the codes are read.

A group's scale goes before the sum, and what all its codes have added goes with the sum of x over the group:

    sum_i s (q_i - c) x_i  =  s (sum_i q_i x_i  -  c sum_i x_i)

GGUF's blocks are in blocks.py, codes of four bits by groups here.  The definition decodes rows and multiplies.  Loops
go over the length of what they are given: one over a constant is unrolled before it can be put in lanes.
"""

from functools import partial

import numpy as np

from numgemma.ops import blocks, columns, relay
from numgemma.ops.columns import as_float
from numgemma.ops.compiled import kernel
from numgemma.ops.kernels import SUMS, number
from numgemma.ops.threads import in_shares

SHARE = 1 << 16  # numbers of a matrix that are worth waking a thread for


def times(x, w):
    """W x, or None where no kernel knows how W lies.  x: I, float32   w: Packed, O I  ->  O"""
    kind, *arrays = w.raw or ("",)
    known = kind in KERNELS or kind in blocks.KERNELS or kind in columns.KERNELS
    if not known or not np.isfinite(x).all():  # infinity would meet its like in the two sums
        return None
    arrays = [as_bits(array) for array in arrays]
    if kind in columns.KERNELS:
        return columns.times(kind, arrays, x)
    rows = [array[w.first : w.first + len(w)] for array in arrays]  # of one matrix of a stack, its own
    if kind in blocks.KERNELS:
        return relay.times_codes(kind, rows[0], x, x.reshape(-1, blocks.SIXTEEN).sum(1, dtype=np.float32))
    y = np.empty(len(w), np.float32)
    share = partial(KERNELS[kind], *rows, *by_groups(x, rows[1].shape[1]), y)
    in_shares(share, len(w), max(1, SHARE // len(x)))
    return y


def by_groups(x, groups):
    """The numbers of x with even places above those with odd ones, and the sums over groups."""
    return np.ascontiguousarray(x.reshape(-1, 2).T), x.reshape(groups, -1).sum(1, dtype=np.float32)


def as_bits(x):
    """Read-only, and bfloat16 and float16 as integers of their own, as kernels take them."""
    kinds = {"bfloat16": np.uint16, "float16": np.int16}
    x = x.view(kinds.get(x.dtype.name, x.dtype))
    x.flags.writeable = False
    return x


@kernel(SUMS)
def of_nibbles(codes, low, high):
    """The low four bits of each byte times one half of the numbers, and the high four times the other."""
    s = np.float32(0)
    for i in range(len(codes)):
        s += as_float(codes[i] & 15) * low[i] + as_float(codes[i] >> 4) * high[i]
    return s


# four bits by groups, neighbours in a byte, the low ones first


@kernel(SUMS)
def zeroed(codes, scales, zeros, pairs, sums, y, first, end):
    """w = (q - z) s"""
    (even, odd), width = (pairs[0], pairs[1]), pairs.shape[1] // len(sums)
    for o in range(first, end):
        total = np.float32(0)
        for g in range(len(sums)):
            at = slice(g * width, (g + 1) * width)
            s = of_nibbles(codes[o, at], even[at], odd[at])
            total += number(scales[o, g]) * (s - zeros[o, g] * sums[g])
        y[o] = total


@kernel(SUMS)
def biased(codes, scales, biases, pairs, sums, y, first, end):
    """w = q s + b"""
    (even, odd), width = (pairs[0], pairs[1]), pairs.shape[1] // len(sums)
    for o in range(first, end):
        total = np.float32(0)
        for g in range(len(sums)):
            at = slice(g * width, (g + 1) * width)
            s = of_nibbles(codes[o, at], even[at], odd[at])
            total += number(scales[o, g]) * s + number(biases[o, g]) * sums[g]
        y[o] = total


KERNELS = {"zeroed": zeroed, "biased": biased}
