"""How far apart the values lie that a block of a GGUF file can hold: its scale times the distance of two codes.

A weight that was rounded to such a block lies within half a step of the original.  Of the types with codebooks no step
is told.
"""

import numpy as np

SCALE_FIRST = {"Q4_0": (32, 1), "Q4_1": (32, 1), "Q5_0": (32, 1), "Q5_1": (32, 1), "Q8_0": (32, 1), "IQ4_NL": (32, 24)}
BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "IQ4_NL": 18, "MXFP4": 17}
BYTES |= {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210, "IQ4_XS": 136}


def told(kind: str) -> bool:
    """Whether blocks of that type tell how far apart their values lie."""
    return kind in BYTES


def steps(kind: str, blocks: np.ndarray) -> np.ndarray:
    """The step at every weight.  blocks: n B, whole rows as they lie in the file  ->  n I

    kind: the type's name, one that `told` knows.  Where a table of values has gaps of several widths, the widest.
    """
    if kind in SCALE_FIRST:
        weights, gap = SCALE_FIRST[kind]
        return spread(half(blocks, BYTES[kind], 0) * gap, weights)
    scales = {"Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k, "Q5_K": q4_k, "Q6_K": q6_k, "IQ4_XS": iq4_xs, "MXFP4": mxfp4}
    return scales[kind](blocks.reshape(len(blocks), -1, BYTES[kind]))


def half(blocks, size, at):
    """The float16 at a byte of each block.  n B  ->  n blocks"""
    cut = blocks.reshape(len(blocks), -1, size)[..., at : at + 2]
    return np.ascontiguousarray(cut).view(np.float16)[..., 0].astype(np.float32)


def spread(scales, weights):
    """One step for each group -> one for each weight, as a size."""
    return np.abs(np.repeat(scales.reshape(len(scales), -1), weights, 1))


def scaled(blocks, at, codes, weights):
    """A block's float16 at a byte, times the codes of its groups.  blocks: n b B   codes: n b g"""
    d = half(blocks.reshape(len(blocks), -1), blocks.shape[-1], at)
    return spread(d[..., None] * codes.astype(np.float32), weights)


def q2_k(blocks):
    return scaled(blocks, 80, blocks[..., :16] & 15, 16)


def q3_k(blocks):
    low = np.concatenate([blocks[..., 96:104] & 15, blocks[..., 96:104] >> 4], -1)
    high = np.concatenate([blocks[..., 104:108] >> shift & 3 for shift in (0, 2, 4, 6)], -1)
    return scaled(blocks, 108, (low | high << 4).astype(np.int32) - 32, 16)


def q4_k(blocks):
    """Q4_K and Q5_K: eight scales of six bits in twelve bytes, the last four in the gaps that the first leave."""
    first = blocks[..., 4:8] & 63
    last = blocks[..., 12:16] & 15 | blocks[..., 4:8] >> 6 << 4
    return scaled(blocks, 0, np.concatenate([first, last], -1), 32)


def q6_k(blocks):
    return scaled(blocks, 208, blocks[..., 192:208].view(np.int8), 16)


def iq4_xs(blocks):
    low = np.stack([blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4], -1).reshape(*blocks.shape[:-1], 8)
    words = np.ascontiguousarray(blocks[..., 2:4]).view(np.uint16)
    high = words >> (2 * np.arange(8, dtype=np.uint16)) & 3
    return scaled(blocks, 0, 24 * ((low | high << 4).astype(np.int32) - 32), 32)


def mxfp4(blocks):
    return spread(4 * np.exp2(blocks[..., 0].astype(np.float64) - 128).astype(np.float32), 32)
