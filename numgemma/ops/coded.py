"""One token's product with a matrix of codes, which become numbers in a register, as fast as the codes are read.

A block's scale goes before the sum, and what all its codes have added goes with the sum of x over the block:

    sum_i d (q_i - c) x_i  =  d (sum_i q_i x_i  -  c sum_i x_i)

The formats are those of weights/gguf.py, and codes of four bits by groups.  The definition decodes rows and multiplies.
Loops go over the length of what they are given: one over a constant is unrolled before it can be put in lanes.
"""

from functools import partial

import numpy as np

from numgemma.ops.compiled import kernel
from numgemma.ops.kernels import PLAIN, SUMS, from_float16, number
from numgemma.ops.threads import in_shares

SHARE = 1 << 16  # numbers of a matrix that are worth waking a thread for
SIXTEEN = 16  # numbers of x whose sum is taken once for all rows


def times(x, w):
    """W x, or None where no kernel knows how W lies.  x: I, float32   w: Packed, O I  ->  O"""
    kind, *arrays = w.raw or ("",)
    if kind not in KERNELS or not np.isfinite(x).all():  # infinity would meet its like in the two sums
        return None
    y = np.empty(len(w), np.float32)
    codes, *scales = (as_bits(array) for array in arrays)
    given = by_groups(x, len(scales[0][0])) if scales else (x, x.reshape(-1, SIXTEEN).sum(1, dtype=np.float32))
    share = partial(KERNELS[kind], codes[w.first : w.first + len(w)], *scales, *given, y)
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


@kernel(PLAIN)
def half(row, at):
    """The float16 at a byte of a row."""
    return from_float16(np.uint32(row[at]) | np.uint32(row[at + 1]) << np.uint32(8))


@kernel(PLAIN)
def as_float(code):
    """By way of 32 bits: numba's own whole numbers have 64, which no processor makes floats in many lanes at once."""
    return np.float32(np.int32(code))


# GGUF: blocks of 32 weights under one scale


@kernel(SUMS)
def q8_0(rows, x, sums, y, first, end):
    for o in range(first, end):
        row, total = rows[o], np.float32(0)
        for b in range(len(x) // 32):
            total += half(row, 34 * b) * of_bytes(row[34 * b + 2 : 34 * b + 34], x[32 * b :])
        y[o] = total


@kernel(SUMS)
def of_bytes(codes, x):
    """Codes with a sign times as many numbers."""
    s = np.float32(0)
    for i in range(len(codes)):
        s += as_float(np.int8(codes[i])) * x[i]
    return s


@kernel(SUMS)
def q4_0(rows, x, sums, y, first, end):
    for o in range(first, end):
        row, total = rows[o], np.float32(0)
        for b in range(len(x) // 32):
            s = of_nibbles(row[18 * b + 2 : 18 * b + 18], x[32 * b : 32 * b + 16], x[32 * b + 16 : 32 * b + 32])
            total += half(row, 18 * b) * (s - np.float32(8) * (sums[2 * b] + sums[2 * b + 1]))
        y[o] = total


@kernel(SUMS)
def of_nibbles(codes, low, high):
    """The low four bits of each byte times one half of the numbers, and the high four times the other."""
    s = np.float32(0)
    for i in range(len(codes)):
        s += as_float(codes[i] & 15) * low[i] + as_float(codes[i] >> 4) * high[i]
    return s


# GGUF: blocks of 256 weights, whose groups have scales of their own in few bits


@kernel(PLAIN)
def scale_and_least(row, at, j):
    """Of the eight scales and eight minima of Q4_K and Q5_K those of a group, six bits each in twelve bytes."""
    if j < 4:
        return np.float32(row[at + j] & 63), np.float32(row[at + j + 4] & 63)
    scale = row[at + j + 4] & 15 | row[at + j - 4] >> 6 << 4
    least = row[at + j + 4] >> 4 | row[at + j] >> 6 << 4
    return np.float32(scale), np.float32(least)


@kernel(SUMS)
def q4_k(rows, x, sums, y, first, end):
    for o in range(first, end):
        row, total = rows[o], np.float32(0)
        for b in range(len(x) // 256):
            at, scaled, least = 144 * b, np.float32(0), np.float32(0)
            for two in range(4):  # groups of 32, in the halves of the same bytes
                found = of_halves(row[at + 16 + 32 * two : at + 48 + 32 * two], x[256 * b + 64 * two :])
                for j, s in enumerate(found):
                    scale, m = scale_and_least(row, at + 4, 2 * two + j)
                    n = 16 * b + 4 * two + 2 * j
                    scaled += scale * s
                    least += m * (sums[n] + sums[n + 1])
            total += half(row, at) * scaled - half(row, at + 2) * least
        y[o] = total


@kernel(SUMS)
def of_halves(codes, x):
    """The low four bits of 32 bytes times 32 numbers, and the high four times the next 32."""
    low = high = np.float32(0)
    for i in range(len(codes)):
        low += as_float(codes[i] & 15) * x[i]
        high += as_float(codes[i] >> 4) * x[32 + i]
    return low, high


@kernel(SUMS)
def q5_k(rows, x, sums, y, first, end):
    for o in range(first, end):
        row, total = rows[o], np.float32(0)
        for b in range(len(x) // 256):
            at, scaled, least = 176 * b, np.float32(0), np.float32(0)
            fifth = row[at + 16 : at + 48]
            for two in range(4):
                codes = row[at + 48 + 32 * two : at + 80 + 32 * two]
                found = of_five_bits(codes, fifth, np.uint8(2 * two), x[256 * b + 64 * two :])
                for j, s in enumerate(found):
                    scale, m = scale_and_least(row, at + 4, 2 * two + j)
                    n = 16 * b + 4 * two + 2 * j
                    scaled += scale * s
                    least += m * (sums[n] + sums[n + 1])
            total += half(row, at) * scaled - half(row, at + 2) * least
        y[o] = total


@kernel(SUMS)
def of_five_bits(codes, fifth, bit, x):
    """As of_halves; the fifth bits of both stand beside each other in another byte."""
    low = high = np.float32(0)
    for i in range(len(codes)):
        two = fifth[i] >> bit
        low += as_float((codes[i] & 15) | (two & 1) << 4) * x[i]
        high += as_float(codes[i] >> 4 | (two >> 1 & 1) << 4) * x[32 + i]
    return low, high


@kernel(SUMS)
def q6_k(rows, x, sums, y, first, end):
    for o in range(first, end):
        row, total = rows[o], np.float32(0)
        for b in range(len(x) // 256):
            at, scaled = 210 * b, np.float32(0)
            for g in range(4):  # half of 128 weights, and in it 16 of each 32
                h, part = g // 2, 16 * (g % 2)
                low, high = row[at + 64 * h + part :], row[at + 128 + 32 * h + part : at + 144 + 32 * h + part]
                for j, s in enumerate(of_six_bits(low, high, x[256 * b + 128 * h + part :])):
                    n = 8 * h + 2 * j + g % 2
                    scaled += np.float32(np.int8(row[at + 192 + n])) * (s - np.float32(32) * sums[16 * b + n])
            total += half(row, at + 208) * scaled
        y[o] = total


@kernel(SUMS)
def of_six_bits(low, high, x):
    """Four times 16 weights, 32 apart, whose upper two bits share a byte: the sums of code times x."""
    s0 = s1 = s2 = s3 = np.float32(0)
    for i in range(len(high)):
        a, b, upper = low[i], low[32 + i], high[i]
        s0 += as_float((a & 15) | (upper & 3) << 4) * x[i]
        s1 += as_float((b & 15) | (upper >> 2 & 3) << 4) * x[32 + i]
        s2 += as_float(a >> 4 | (upper >> 4 & 3) << 4) * x[64 + i]
        s3 += as_float(b >> 4 | upper >> 6 << 4) * x[96 + i]
    return s0, s1, s2, s3


# four bits by groups, neighbours in a byte, the low ones first


@kernel(SUMS)
def centred(codes, scales, centre, pairs, sums, y, first, end):
    """w = (q - centre) s"""
    (even, odd), width = (pairs[0], pairs[1]), pairs.shape[1] // len(sums)
    for o in range(first, end):
        total = np.float32(0)
        for g in range(len(sums)):
            at = slice(g * width, (g + 1) * width)
            s = of_nibbles(codes[o, at], even[at], odd[at])
            total += number(scales[o, g]) * (s - centre[0] * sums[g])
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


KERNELS = {"Q8_0": q8_0, "Q4_0": q4_0, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k, "centred": centred, "biased": biased}
