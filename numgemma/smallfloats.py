"""Floats of 16 and 8 bits that NumPy has not: ml_dtypes', where it is installed, and their bits, where it is not.

NumPy knows "bfloat16", "float8_e4m3fn" and "float8_e5m2" by these names once this file is imported.  Without ml_dtypes,
as in a browser, bfloat16 still is read and written, by its bits: it is the upper half of a float32, which is what it
becomes when it is read.  Nothing is computed in it then, and float8 is not read.
"""

from typing import Any

import numpy as np

try:
    import ml_dtypes
except ModuleNotFoundError:
    FLOAT8: dict[str, np.dtype] = {}
    BFLOAT16: np.dtype = np.dtype([("bfloat16", "<u2")])  # like no type that computes, so that nothing does by accident
    finfo: Any = np.finfo
else:
    FLOAT8 = {"F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)}
    BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
    finfo = ml_dtypes.finfo

COMPUTES = bool(FLOAT8)  # whether NumPy can add and multiply in bfloat16
ADVICE = "" if COMPUTES else "; install ml_dtypes for bfloat16"


def cast(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """x.astype(dtype), where dtype may be BFLOAT16 too: the nearest one, of two the even one, and a NaN stays one."""
    if COMPUTES or dtype != BFLOAT16:
        return x.astype(dtype)
    return nearest(np.asarray(x, np.float32)).view(BFLOAT16)


def nearest(x: np.ndarray) -> np.ndarray:
    """The 16 bits of the bfloat16 nearest to each float32."""
    bits = np.array(x, "<f4", ndmin=1).view("<u4")
    half = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16  # what is cut off is more than a half, or one and odd: carry
    nan = 0x7FC0 | (bits >> 16 & 0x8000)
    return np.where(bits & 0x7FFFFFFF > 0x7F800000, nan, half).astype("<u2").reshape(np.shape(x))


def kept(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """x as it comes back when it was stored in that dtype."""
    return computable(cast(x, dtype))


def computable(x: np.ndarray) -> np.ndarray:
    """What can be computed with: bfloat16 as float32 where NumPy cannot compute in it, all else as it is."""
    if COMPUTES or x.dtype != BFLOAT16:
        return x
    return (x.view("<u2").astype("<u4") << 16).view("<f4")


def is_finite(x: np.ndarray) -> np.ndarray:
    """np.isfinite; of bfloat16 by its bits, which takes an eighth of the time."""
    if x.dtype == BFLOAT16:
        return (x.view(np.uint16) & 0x7F80) != 0x7F80
    return np.isfinite(x)
