"""Rows of codes as float32, for products with many tokens: the bits of the decoders in weights/, much sooner.

blocks.py, coded.py and columns.py multiply one token with the same codes as they lie.  rows: O bytes  ->  out: O I
"""

from functools import partial

import numpy as np

from numgemma.ops import columns
from numgemma.ops.blocks import half, scale_and_least
from numgemma.ops.coded import as_bits
from numgemma.ops.columns import as_float
from numgemma.ops.compiled import kernel
from numgemma.ops.kernels import PLAIN, number
from numgemma.ops.threads import in_shares

LEAST = 1 << 15  # numbers that are worth waking a thread for
TILE = 32  # rows that are written side by side


# GGUF


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


# four bits by groups, neighbours in a byte, the low ones first


@kernel(PLAIN)
def nibbles(codes, zero, scale, y):
    """(q - zero) scale of a group's codes."""
    for i in range(len(codes)):
        y[2 * i] = (as_float(codes[i] & 15) - zero) * scale
        y[2 * i + 1] = (as_float(codes[i] >> 4) - zero) * scale


@kernel(PLAIN)
def zeroed(codes, scales, zeros, out, first, end):
    """w = (q - z) s"""
    width = out.shape[1] // scales.shape[1]
    for o in range(first, end):
        for g in range(scales.shape[1]):
            at = g * width
            nibbles(codes[o, at // 2 : (at + width) // 2], zeros[o, g], number(scales[o, g]), out[o, at : at + width])


@kernel(PLAIN)
def biased(codes, scales, biases, out, first, end):
    """w = q s + b, rounded twice: one after the other, or the compiler would make one step of them"""
    width = out.shape[1] // scales.shape[1]
    for o in range(first, end):
        for g in range(scales.shape[1]):
            at, bias = g * width, number(biases[o, g])
            y = out[o, at : at + width]
            nibbles(codes[o, at // 2 : (at + width) // 2], np.float32(0), number(scales[o, g]), y)
            for i in range(width):
                y[i] += bias


# the same transposed, as columns.py says: some rows side by side, as a word of the file has one code of each or eight


@kernel(PLAIN)
def gptq(words, scales, zeros, out, first, end):
    width = out.shape[1] // len(scales)
    for start in range(first, end, TILE):
        for r in range(len(words)):
            g = 8 * r // width
            for o in range(start, min(start + TILE, end)):
                s, z = number(scales[g, o]), zeros[g, o]
                for n in range(8):
                    out[o, 8 * r + n] = (columns.code(words[r, o], n) - z) * s


@kernel(PLAIN)
def awq(words, scales, zeros, at, out, first, end):
    """at: the column that is the first row of `out`, for a word holds eight columns"""
    width = out.shape[1] // len(scales)
    for o in range(first, end):
        k, n = (at + o) // 8, (at + o) % 8 // 2 + 4 * ((at + o) % 2)  # even columns before odd ones
        for g in range(len(scales)):
            s, z = number(scales[g, at + o]), columns.code(zeros[g, k], n)
            for i in range(g * width, (g + 1) * width):
                out[o, i] = (columns.code(words[i, k], n) - z) * s


BLOCKS = {
    "Q8_0": q8_0,
    "Q4_0": q4_0,
    "Q4_K": lambda rows, out, *share: k_blocks(rows, out, 144, 0, *share),
    "Q5_K": lambda rows, out, *share: k_blocks(rows, out, 176, 32, *share),
    "Q6_K": q6_k,
}


def decoded(w, rows, out):
    """Some rows of a stored matrix of codes into `out`, by a kernel where one knows them.  w: Packed, O I  ->  n I"""
    if not 0 <= rows.start <= rows.stop <= len(w) or out.shape != (rows.stop - rows.start, w.shape[1]):
        raise IndexError(f"{rows} of {len(w)} rows into {out.shape}")  # a kernel does not look where it reads
    kind, *arrays = w.raw or ("",)
    at = slice(w.first + rows.start, w.first + rows.stop)
    share = share_of(kind, [as_bits(array) for array in arrays], at)
    if share is None:
        out[:] = w[rows]
    else:
        in_shares(partial(share, out), len(out), max(1, LEAST // w.shape[1]))
    return out


def share_of(kind, arrays, at):
    """What decodes a share of these rows, (out, first, end); None where no kernel knows how they lie."""
    if kind in BLOCKS:
        return partial(BLOCKS[kind], arrays[0][at])
    if kind in ("zeroed", "biased"):
        return partial({"zeroed": zeroed, "biased": biased}[kind], *(array[at] for array in arrays))
    if kind == "gptq":
        return partial(gptq, *(array[:, at] for array in arrays))
    return partial(awq, *arrays, at.start) if kind == "awq" else None
