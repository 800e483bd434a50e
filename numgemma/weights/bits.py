"""Codes of a few bits, taken out of bytes and words; and the tables of small floating-point numbers.

All formats but GGUF's pack a row as one little-endian stream of bits: code i stands in bits i b to (i + 1) b - 1.
"""

import numpy as np

# E2M1, sign in the highest bit: 0, 1/2, 1, 3/2, 2, 3, 4, 6
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def stream(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` codes of each row.  words: n W, any integers  ->  n count, int32"""
    raw = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    if bits == 8:
        return raw[:, :count].astype(np.int32)
    if 8 % bits == 0:  # no code crosses a byte
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        return ((raw[:, :, None] >> shifts) & (2**bits - 1)).reshape(len(raw), -1)[:, :count].astype(np.int32)
    ones = np.unpackbits(raw, axis=1, bitorder="little")[:, : count * bits].reshape(len(raw), count, bits)
    return ones.astype(np.int32) @ (1 << np.arange(bits, dtype=np.int32))


def as_nibbles(words: np.ndarray, count: int) -> np.ndarray:
    """The bytes that hold the codes of four bits of each row, as they lie.  words: n W  ->  n count/2"""
    return words.view(np.uint8).reshape(len(words), -1)[:, : count // 2]


def nibbles(raw: np.ndarray, high_first: bool = False) -> np.ndarray:
    """Two codes of each byte, the low one first or the high one.  n B  ->  n 2B"""
    pair = (raw >> 4, raw & 15) if high_first else (raw & 15, raw >> 4)
    return np.stack(pair, -1).reshape(len(raw), -1)


def power_of_two(exponents: np.ndarray) -> np.ndarray:
    """2^(e - 127), the scale of the MX formats (E8M0).  255 is not a number."""
    return np.where(exponents == 255, np.nan, np.exp2(exponents.astype(np.float64) - 127)).astype(np.float32)


def grouped(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Codes times the scale of their group along the row.  n I, n G  ->  n I"""
    width = -(-codes.shape[1] // scales.shape[1])
    return codes * np.repeat(scales, width, 1)[:, : codes.shape[1]]
