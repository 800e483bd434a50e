"""One token's product with blocks of GGUF's codes, which become numbers in a register, as fast as they are read.

A block's scale goes before the sum, and what all its codes have added goes with the sum of x over the block:

    sum_i d (q_i - c) x_i  =  d (sum_i q_i x_i  -  c sum_i x_i)

The formats are those of weights/gguf.py; the definition decodes rows and multiplies.  rows: O bytes   x: I
sums: of x by sixteens   y: O
"""

import numpy as np

from numgemma.ops.compiled import kernel
from numgemma.ops.kernels import PLAIN, apart, from_float16
from numgemma.ops.lanes import (
    above,
    added,
    bits,
    codes,
    everywhere,
    halves,
    numbers,
    signed,
    split,
    total,
    unsigned,
    zeros,
)

SIXTEEN = 16  # numbers of x whose sum is taken once for all rows


@kernel(PLAIN)
def half(row, at):
    """The float16 at a byte of a row."""
    return from_float16(np.uint32(row[at]) | np.uint32(row[at + 1]) << np.uint32(8))


# 32 weights under one scale


@kernel(PLAIN)
def q8_0(rows, x, sums, y, first, end):
    apart()
    for o in range(first, end):
        row, all_lanes = rows[o], zeros()
        for b in range(len(x) // 32):
            q = signed(codes(row, 34 * b + 2))
            all_lanes = added(all_lanes, everywhere(half(row, 34 * b)), q, numbers(x, 32 * b))
        y[o] = total(all_lanes)


@kernel(PLAIN)
def q4_0(rows, x, sums, y, first, end):
    apart()
    for o in range(first, end):
        row, all_lanes, least = rows[o], zeros(), np.float32(0)
        for b in range(len(x) // 32):
            d, q = half(row, 18 * b), unsigned(halves(row, 18 * b + 2))
            all_lanes = added(all_lanes, everywhere(d), q, numbers(x, 32 * b))
            least += d * (sums[2 * b] + sums[2 * b + 1])
        y[o] = total(all_lanes) - np.float32(8) * least


# 256 weights, whose groups have scales of their own in few bits


@kernel(PLAIN)
def scale_and_least(row, at, j):
    """Of the eight scales and eight minima of Q4_K and Q5_K those of a group, six bits each in twelve bytes."""
    if j < 4:
        return np.float32(row[at + j] & 63), np.float32(row[at + j + 4] & 63)
    scale = row[at + j + 4] & 15 | row[at + j - 4] >> 6 << 4
    least = row[at + j + 4] >> 4 | row[at + j] >> 6 << 4
    return np.float32(scale), np.float32(least)


@kernel(PLAIN)
def q4_k(rows, x, sums, y, first, end):
    apart()
    for o in range(first, end):
        row, all_lanes, least = rows[o], zeros(), np.float32(0)
        for b in range(len(x) // 256):
            at = 144 * b
            d, m = half(row, at), half(row, at + 2)
            for j in range(0, 8, 2):  # two groups of 32 in the halves of the same bytes
                both = codes(row, at + 16 + 16 * j)
                n, group = 256 * b + 32 * j, 16 * b + 2 * j
                scale, low = scale_and_least(row, at + 4, j)
                all_lanes = added(all_lanes, everywhere(d * scale), unsigned(bits(both, 0, 15)), numbers(x, n))
                least += m * low * (sums[group] + sums[group + 1])
                scale, low = scale_and_least(row, at + 4, j + 1)
                all_lanes = added(all_lanes, everywhere(d * scale), unsigned(bits(both, 4, 15)), numbers(x, n + 32))
                least += m * low * (sums[group + 2] + sums[group + 3])
        y[o] = total(all_lanes) - least


@kernel(PLAIN)
def q5_k(rows, x, sums, y, first, end):
    """As q4_k; the fifth bits of all groups stand above each other in 32 bytes."""
    apart()
    for o in range(first, end):
        row, all_lanes, least = rows[o], zeros(), np.float32(0)
        for b in range(len(x) // 256):
            at = 176 * b
            d, m, fifth = half(row, at), half(row, at + 2), codes(row, at + 16)
            for j in range(0, 8, 2):
                both = codes(row, at + 48 + 16 * j)
                n, group = 256 * b + 32 * j, 16 * b + 2 * j
                scale, low = scale_and_least(row, at + 4, j)
                q = above(bits(both, 0, 15), bits(fifth, j, 1), 4)
                all_lanes = added(all_lanes, everywhere(d * scale), unsigned(q), numbers(x, n))
                least += m * low * (sums[group] + sums[group + 1])
                scale, low = scale_and_least(row, at + 4, j + 1)
                q = above(bits(both, 4, 15), bits(fifth, j + 1, 1), 4)
                all_lanes = added(all_lanes, everywhere(d * scale), unsigned(q), numbers(x, n + 32))
                least += m * low * (sums[group + 2] + sums[group + 3])
        y[o] = total(all_lanes) - least


@kernel(PLAIN)
def q6_k(rows, x, sums, y, first, end):
    """The low four bits of 128 weights in 64 bytes, their upper two in 32; a scale for sixteen."""
    apart()
    for o in range(first, end):
        row, all_lanes, least = rows[o], zeros(), np.float32(0)
        for b in range(len(x) // 256):
            at, d = 210 * b, half(row, 210 * b + 208)
            for h in range(2):
                low, high, upper = codes(row, at + 64 * h), codes(row, at + 64 * h + 32), codes(row, at + 128 + 32 * h)
                for k, q in enumerate(
                    (
                        above(bits(low, 0, 15), bits(upper, 0, 3), 4),
                        above(bits(high, 0, 15), bits(upper, 2, 3), 4),
                        above(bits(low, 4, 15), bits(upper, 4, 3), 4),
                        above(bits(high, 4, 15), bits(upper, 6, 3), 4),
                    )
                ):
                    j = 8 * h + 2 * k
                    one = d * np.float32(np.int8(row[at + 192 + j]))
                    two = d * np.float32(np.int8(row[at + 193 + j]))
                    x_here = numbers(x, 256 * b + 16 * j)
                    all_lanes = added(all_lanes, split(one, two), unsigned(q), x_here)
                    least += one * sums[16 * b + j] + two * sums[16 * b + j + 1]
        y[o] = total(all_lanes) - np.float32(32) * least


KERNELS = {"Q8_0": q8_0, "Q4_0": q4_0, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k}
