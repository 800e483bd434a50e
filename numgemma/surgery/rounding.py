"""How far rounding moves the numbers of a tensor: what a right explanation of it leaves, and no less.

Rounding to p bits moves a number between 2^(e-1) and 2^e by 2^(e-p) / sqrt(12), in the mean square.
"""

import math

import numpy as np

from numgemma.smallfloats import finfo
from numgemma.surgery.sketch import Sketch


def digits(sketch: Sketch) -> int:
    """Bits of a number of this tensor; as of bfloat16 where a wider type holds nothing else."""
    if sketch.dtype == np.float32:
        raw = np.ascontiguousarray(sketch.rows).view(np.uint32)
        return 24 if (raw & 0xFFFF).any() else 8
    return finfo(sketch.dtype).nmant + 1 if is_float(sketch) else 64


def is_float(sketch: Sketch) -> bool:
    """Whether its numbers are told as finely as a mixture needs: no integers, and no codes."""
    return sketch.dtype.kind not in "iub" and not sketch.moved


def rounding(x: np.ndarray, bits: int) -> np.ndarray:
    """The standard deviation of what rounding to that many bits does to each number."""
    return np.ldexp(12**-0.5, np.frexp(x)[1] - bits)


def powers(y: np.ndarray, X: np.ndarray, weights: np.ndarray, bits: int) -> np.ndarray:
    """The mean square of what rounding leaves of each y = X weights: of the sum, and of its terms.  y: n, X: n k

    A merge that is computed in bfloat16 rounds its terms; in float32 only the sum is rounded, and less is left.
    """
    return rounding(y, bits) ** 2 + rounding(X, bits) ** 2 @ weights**2


def floor(y: np.ndarray, X: np.ndarray, weights: np.ndarray, bits: int) -> float:
    """The RMS of what rounding leaves of a right fit."""
    return math.sqrt(float(powers(y, X, weights, bits).mean()))
