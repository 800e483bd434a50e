"""How finely a run rounds: what its dump declares, and what the bits of its values show.

A precision is a dtype, or a pair: that of the stream, and how an engine rounds what enters each product, as
"float32:llama.cpp" (noise/rounding.py computes that).
"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from numgemma.errors import InputError, meant
from numgemma.smallfloats import BFLOAT16, kept

# From one number to the next, relative to the number: 2^-(bits of the significand).
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
DTYPES = {name: BFLOAT16 if name == "bfloat16" else np.dtype(name) for name in EPS}  # finest first

# Of each rounding of inputs, the dtypes of the streams that engines run it with; the first where none is named.
ROUNDINGS = {
    "llama.cpp": ("float32",),  # with its cache of half precision
    "llama.cpp-f32": ("float32",),  # run with -ctk f32 -ctv f32
    "int8": ("bfloat16", "float16", "float32"),  # for weights of int8: a scale for each token
    "fp8": ("bfloat16", "float16", "float32"),  # for weights of FP8: the same
    "nvfp4": ("bfloat16", "float16", "float32"),  # for weights of NVFP4: a scale for sixteen numbers
    "mobile": ("bfloat16", "float16", "float32"),  # for Google's mobile files: their own scales, in and out
}
PAIRS = tuple(f"{dtype}:{rounding}" for rounding, dtypes in ROUNDINGS.items() for dtype in dtypes)
EPS |= {pair: EPS[pair.partition(":")[0]] for pair in PAIRS}

POINTS = 40  # of a dump that are looked at, evenly spread
SAMPLE = 4096  # numbers of each
ENOUGH = 16  # distinct numbers: fewer (ones, zeros) are exact in every precision and show nothing


@dataclass(frozen=True)
class Tolerance:
    """The largest relative error of a tensor, of a token and of a channel that still counts as the same."""

    rel: float
    worst_token: float
    worst_channel: float
    # A channel much quieter than the rest is measured against this share of the tensor's RMS, not against its own.
    # It grows with the rounding step because a matmul spreads its noise evenly over its outputs: in bfloat16 a channel
    # at 1 % of the tensor's RMS is all noise, and would always read as a fault.
    channel_floor: float


# What is allowed where no floor was measured.  Finest first; the coarser precision of the two dumps counts.
TOLERANCES = {
    "float64": Tolerance(1e-10, 1e-9, 1e-7, 1e-3),
    "float32": Tolerance(2e-5, 1e-4, 1e-2, 1e-3),
    "float16": Tolerance(4e-3, 2e-2, 4e-1, 1e-2),
    # One rounding is 0.17 %; some dozens of layers of them add up to a few percent in a model that is right.
    "bfloat16": Tolerance(3e-2, 1e-1, 8e-1, 1e-1),
}
# Eight bits for each number that enters a product: llama.cpp is 0.4 to 4.2 % off at the logits of small models.
TOLERANCES |= dict.fromkeys(PAIRS, Tolerance(5e-2, 1.5e-1, 1.0, 1e-1))


def in_full(word: str) -> str:
    """A precision by its name or, of a pair, by how inputs are rounded.  Raises InputError for one that is not known"""
    found = next((pair for pair in PAIRS if word == rounding_of(pair)), word)
    if found not in TOLERANCES:
        known = ", ".join([*DTYPES, *ROUNDINGS])
        raise InputError(f"Precision '{word:.40}' is not known; known are {known}.")
    return found


def dtype_of(precision: str) -> np.dtype:
    """Of the stream."""
    return np.dtype(precision.partition(":")[0])


def rounding_of(precision: str) -> str:
    """How what enters a product is rounded: one of ROUNDINGS, or "" where it is not."""
    return precision.partition(":")[2]


def declared(dump) -> str:
    return dump.meta.get("precision") or "float32"


def coarser(*precisions: str) -> str:
    """The precision that rounds most.  Raises InputError for one that has no tolerances."""
    for precision in precisions:
        if precision not in TOLERANCES:
            raise InputError(
                f"A dump is of precision '{precision:.40}', which has no tolerances; known are float64, float32, "
                f"float16, bfloat16, and these with a format of codes, as bfloat16:fp8{meant(precision, TOLERANCES)}."
            )
    return max(precisions, key=list(TOLERANCES).index)


def shown_by_bits(x) -> str | None:
    """The coarsest precision in which the values of an array are exact; None where they show nothing."""
    if x.dtype.kind in "iub" or not x.size:
        return None
    if x.dtype.name in ("bfloat16", "float16"):
        return x.dtype.name
    some = np.asarray(x.reshape(-1)[: 64 * SAMPLE : max(1, min(64, x.size // SAMPLE))])[:SAMPLE]
    if len(np.unique(some[some != 0])) < ENOUGH:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        for name, dtype in reversed(DTYPES.items()):
            if np.array_equal(kept(some, dtype).astype(some.dtype), some, equal_nan=True):
                return name
    return None


def of_run(dump) -> str:
    """The precision that a run had: the coarser of what its dump declares and what most of its points show.

    A bfloat16 run that was widened for the file still is a bfloat16 run, whatever its dtype says.
    """
    names = list(dump)
    shown = (shown_by_bits(dump[name]) for name in names[:: 1 + len(names) // POINTS])
    counts = Counter(name for name in shown if name is not None)
    return coarser(declared(dump), *(name for name, _ in counts.most_common(1)))


def decimal_step(dump) -> float:
    """RMS of the error that writing values with a few decimals makes; 0 where values are kept whole.

    fidelity "rounded:4dp": values stand on multiples of 10^-4, evenly off by up to half of that.
    """
    found = re.search(r"rounded:(\d+)dp", str(dump.meta.get("fidelity", "exact")))
    return 10.0 ** -int(found[1]) / 12**0.5 if found else 0.0
