"""One token's product with codes of four bits that lie transposed, as GPTQ and AWQ store them: [in, out].

What lies beside each other in the file are outputs, so the lanes of a processor go over these.  The sum of a group
waits in a few numbers of each column; its scale and its zero point are taken once:

    y_o  +=  s_go (sum_i q_io x_i  -  z_go sum_i x_i)          i in group g
"""

from functools import partial

import numpy as np

from numgemma.ops.compiled import kernel
from numgemma.ops.kernels import PLAIN, number
from numgemma.ops.threads import in_shares

SHARE = 1 << 16  # codes that are worth waking a thread for
TILE = 2048  # columns, or 256 words of eight, whose sums stay in a core's first cache


def times(kind, arrays, x):
    """W x.  arrays: words, scales, zero points, as GPTQ or AWQ has them   x: I, float32  ->  O"""
    words, scales, zeros = arrays
    y = np.empty(scales.shape[1], np.float32)
    sums, n = x.reshape(len(scales), -1).sum(1, dtype=np.float32), words.shape[1]
    if kind == "awq":
        words, zeros = (as_bytes(some) for some in (words, zeros))
    in_shares(partial(KERNELS[kind], words, scales, zeros, x, sums, y), n, max(1, SHARE // (8 * len(words))))
    return y


def as_bytes(words):
    """Words as their bytes, read-only as they are.  n W  ->  n 4W"""
    return words.view(np.uint8)


@kernel(PLAIN)
def gptq(words, scales, zeros, x, sums, y, first, end):
    """A word holds eight codes of a column."""
    height, held = len(words) // len(sums), np.empty(TILE, np.float32)
    for start in range(first, end, TILE):
        stop = min(start + TILE, end)
        y[start:stop] = 0
        for g in range(len(sums)):
            held[: stop - start] = 0
            for r in range(g * height, (g + 1) * height):
                eight_below(words[r, start:stop], x[8 * r : 8 * r + 8], held)
            for o in range(start, stop):
                y[o] += number(scales[g, o]) * (held[o - start] - zeros[g, o] * sums[g])


@kernel(PLAIN)
def code(word, n):
    """The n-th code of a word, as a number."""
    return np.float32(np.int32(np.uint32(word) >> np.uint32(4 * n) & np.uint32(15)))


@kernel(PLAIN)
def eight_below(row, x, held):
    """To each column's sum the eight codes of its word, times eight numbers."""
    x0, x1, x2, x3, x4, x5, x6, x7 = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
    for o in range(len(row)):
        w = row[o]
        low = code(w, 0) * x0 + code(w, 1) * x1 + code(w, 2) * x2 + code(w, 3) * x3
        high = code(w, 4) * x4 + code(w, 5) * x5 + code(w, 6) * x6 + code(w, 7) * x7
        held[o] += low + high


@kernel(PLAIN)
def awq(words, scales, zeros, x, sums, y, first, end):
    """A word holds a code of each of eight columns, those of even ones before those of odd ones: two in a byte."""
    height, held = len(words) // len(sums), np.empty((2, TILE // 2), np.float32)
    for start in range(first, end, TILE // 8):
        stop = min(start + TILE // 8, end)
        y[8 * start : 8 * stop] = 0
        for g in range(len(sums)):
            held[:, : 4 * (stop - start)] = 0
            for i in range(g * height, (g + 1) * height, 4):
                four_below(words[i : i + 4, 4 * start : 4 * stop], x[i : i + 4], held[0], held[1])
            for k in range(4 * start, 4 * stop):
                for n in range(2):
                    o, zero = 8 * (k // 4) + 4 * (k % 2) + k % 4 // 2 + 2 * n, zeros[g, k] >> 4 * n & 15
                    y[o] += number(scales[g, o]) * (held[n, k - 4 * start] - as_float(zero) * sums[g])


@kernel(PLAIN)
def four_below(rows, x, low, high):
    """To the sums of two columns a byte their codes in four rows, times four numbers."""
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    a, b, c, d = rows[0], rows[1], rows[2], rows[3]
    for k in range(rows.shape[1]):
        low[k] += (
            as_float(a[k] & 15) * x0 + as_float(b[k] & 15) * x1 + as_float(c[k] & 15) * x2 + as_float(d[k] & 15) * x3
        )
        high[k] += (
            as_float(a[k] >> 4) * x0 + as_float(b[k] >> 4) * x1 + as_float(c[k] >> 4) * x2 + as_float(d[k] >> 4) * x3
        )


@kernel(PLAIN)
def as_float(code):
    """By way of 32 bits: numba's own whole numbers have 64, which no processor makes floats in many lanes at once."""
    return np.float32(np.int32(code))


KERNELS = {"gptq": gptq, "awq": awq}
