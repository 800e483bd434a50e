"""Rows of GGUF's blocks as float32, for products with many tokens: the bits of the package `gguf`, much sooner.

The formats are those of weights/gguf.py, whose decoding is the definition; blocks.py multiplies one token with them as
they lie.  rows: O bytes  ->  out: O I
"""

from functools import partial

import numpy as np

from numgemma.ops.blocks import half, scale_and_least
from numgemma.ops.compiled import kernel
from numgemma.ops.kernels import PLAIN
from numgemma.ops.threads import in_shares

LEAST = 1 << 15  # numbers that are worth waking a thread for


@kernel(PLAIN)
def q8_0(rows, out, first, end):
    for o in range(first, end):
        for b in range(out.shape[1] // 32):
            d, codes = half(rows[o], 34 * b), rows[o, 34 * b + 2 : 34 * b + 34]
            for i in range(len(codes)):
                out[o, 32 * b + i] = d * np.float32(np.int8(codes[i]))


@kernel(PLAIN)
def q4_0(rows, out, first, end):
    for o in range(first, end):
        for b in range(out.shape[1] // 32):
            d, codes, y = half(rows[o], 18 * b), rows[o, 18 * b + 2 : 18 * b + 18], out[o, 32 * b : 32 * b + 32]
            for i in range(len(codes)):
                y[i] = d * (np.float32(codes[i] & 15) - np.float32(8))
                y[i + len(codes)] = d * (np.float32(codes[i] >> 4) - np.float32(8))


@kernel(PLAIN)
def group(d, m, codes, shift, fifth, j, y):
    """32 weights of Q4_K and Q5_K.  d: what a code is worth; m: the least; fifth: bytes with the fifth bits, or none"""
    for i in range(len(y)):
        q = codes[i] >> shift & 15
        if len(fifth):
            q |= (fifth[i] >> j & 1) << 4
        y[i] = d * np.float32(q) - m


@kernel(PLAIN)
def k_blocks(rows, out, size, upper, first, end):
    """Q4_K and Q5_K.  size: bytes of a block; upper: of these, with fifth bits"""
    for o in range(first, end):
        for b in range(out.shape[1] // 256):
            block = rows[o, size * b : size * b + size]
            d, m, fifth = half(block, 0), half(block, 2), block[16 : 16 + upper]
            for j in range(8):
                at = 16 + upper + 32 * (j // 2)
                scale, least = scale_and_least(block, 4, j)
                y = out[o, 256 * b + 32 * j : 256 * b + 32 * j + 32]
                group(d * scale, m * least, block[at : at + 32], 4 * (j % 2), fifth, j, y)


@kernel(PLAIN)
def q6_k(rows, out, first, end):
    """The low four bits of 128 weights in 64 bytes, their upper two in 32; a scale for sixteen."""
    for o in range(first, end):
        for b in range(out.shape[1] // 256):
            block = rows[o, 210 * b : 210 * b + 210]
            d = half(block, 208)
            for j in range(16):
                half_, k = j // 8, j % 8 // 2  # which 128 weights, and which 32 of them
                low, high = 64 * half_ + 32 * (k % 2) + 16 * (j % 2), 128 + 32 * half_ + 16 * (j % 2)
                y, scale = out[o, 256 * b + 16 * j : 256 * b + 16 * j + 16], d * np.float32(np.int8(block[192 + j]))
                for i in range(len(y)):
                    q = block[low + i] >> 4 * (k // 2) & 15 | (block[high + i] >> 2 * k & 3) << 4
                    y[i] = scale * (np.float32(q) - np.float32(32))


KERNELS = {
    "Q8_0": q8_0,
    "Q4_0": q4_0,
    "Q4_K": lambda rows, out, *share: k_blocks(rows, out, 144, 0, *share),
    "Q5_K": lambda rows, out, *share: k_blocks(rows, out, 176, 32, *share),
    "Q6_K": q6_k,
}


def decoded(w, rows, out):
    """Some rows of a stored matrix of codes into `out`, by a kernel where one knows them.  w: Packed, O I  ->  n I"""
    kind, codes = w.raw if len(w.raw) == 2 else ("", None)
    if kind not in KERNELS:
        out[:] = w[rows]
        return out
    mine = codes[w.first : w.first + len(w)][rows]
    mine.flags.writeable = False
    in_shares(partial(KERNELS[kind], mine, out), len(mine), max(1, LEAST // w.shape[1]))
    return out
