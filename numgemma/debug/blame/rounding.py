"""Engines that round what enters a product: their own arithmetic, on the definitions.

llama.cpp on the CPU rounds each row of x to the partner of the weight's type, multiplies integers, and adds up in
float32; its GELU goes through half precision.  On such a run plain float32 is off by percents, and so is another run
that is right: one unit in the last place turns a code, and the next layers see it.  So one asks whether any of a few
runs that differ by noise alone hits the engine's numbers; one that does proves the engine right on that file.
"""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager

import ml_dtypes
import numpy as np

from numgemma.debug.faults.fault import swapped
from numgemma.trace import Tap
from numgemma.weights.gguf_steps import BYTES, half
from numgemma.weights.packed import format_of

ENGINES = ("llama.cpp", "llama.cpp-f32")
BY_32 = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4"}


def rows_in(x, block):
    """Rows cut into blocks, and how to put them together again; the last is filled with zeros."""
    wide = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % block)])
    return wide.reshape(*x.shape[:-1], -1, block), lambda y: y.reshape(wide.shape)[..., : x.shape[-1]]


def q8_0(x):
    """Q8_0: blocks of 32, codes from the largest; their scale enters the product as half precision."""
    blocks, joined = rows_in(x, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    codes = half_away(blocks * inverse)
    return joined(codes * scale.astype(np.float16).astype(np.float32))


def q8_k(x):
    """Q8_K: blocks of 256, codes from the number of the largest size, with its sign."""
    blocks, joined = rows_in(x, 256)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    inverse = np.divide(np.float32(-127), largest, out=np.zeros_like(largest), where=largest != 0)
    codes = np.minimum(np.float32(127), np.rint(blocks * inverse))
    return joined(np.divide(codes, inverse, out=np.zeros_like(codes), where=inverse != 0))


def half_away(x):
    """To integers, halves away from zero, as C rounds."""
    return np.copysign(np.floor(np.abs(x) + np.float32(0.5)), x)


def through(dtype):
    return lambda x: x.astype(dtype).astype(np.float32)


def partner(form: str) -> Callable | None:
    """What llama.cpp makes of x before it is multiplied with a weight of that format; None: nothing."""
    if form in ("float32", "float64"):
        return None
    if form in ("float16", "bfloat16"):
        return through(np.float16 if form == "float16" else ml_dtypes.bfloat16)
    return q8_0 if form in BY_32 else q8_k


def linear_of_llama(original, x, w):
    form = format_of(w)
    rounded = partner(form)
    if rounded is None or x.dtype != np.float32:
        return original(x, w)
    y = original(rounded(x), w)
    return y + offsets(x, w) if form in ("Q4_1", "Q5_1") else y


def offsets(x, w):
    """What a type with a minimum adds: it multiplies the sum of a block, and that was rounded to half precision too.

    x: ... I   w: O I, as Q4_1 or Q5_1  ->  ... O
    """
    blocks, _ = rows_in(q8_0(x), 32)
    exact, _ = rows_in(q8_0_unrounded(x), 32)
    lost = exact.sum(-1).astype(np.float16).astype(np.float32) - blocks.sum(-1)
    raw = w.parts[0][w.first : w.first + len(w)]
    least = half(raw, BYTES[format_of(w)], 2)
    return lost @ least.T


def q8_0_unrounded(x):
    """Q8_0's codes under their own scale, before that becomes half precision."""
    blocks, joined = rows_in(x, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return joined(half_away(blocks * inverse) * scale)


def gelu_of_llama(original, x):
    """A table over half precision between -10 and 10; beyond, nothing and x itself."""
    table = original(through(np.float16)(x)).astype(np.float16).astype(np.float32)
    return np.where(x <= -10, np.float32(0), np.where(x >= 10, x, table))


def gated_of_llama(original, gate, up):
    from numgemma import ops

    return gelu_of_llama(ops.gelu_tanh, gate) * up


class Halved(Tap):
    """A tap that rounds attention's probabilities to half precision, as a product with a cache of halves does."""

    def __init__(self, tap):
        self.tap = tap

    def watches(self, name):
        return True

    def __call__(self, name, x, axes=""):
        x = self.tap(name, x, axes)
        return through(np.float16)(x) if name == "probs" else x


def attend_of_llama(original, q, k, v, mask, tap):
    """Keys and values of half precision, and what is multiplied with them too."""
    q, k, v = (through(np.float16)(x) for x in (q, k, v))
    return original(q, k, v, mask, Halved(tap))


@contextmanager
def rounded_as(engine: str):
    """For as long as this lasts, a run in float32 rounds as an engine does.

    llama.cpp: with the cache of half precision that it has by default; llama.cpp-f32: run with -ctk f32 -ctv f32.
    """
    changes: dict[str, Callable] = {"ops.linear": linear_of_llama, "ops.gated_gelu": gated_of_llama}
    if engine == "llama.cpp":
        changes["ops.attend"] = attend_of_llama
    with ExitStack() as stack:
        for path, change in changes.items():
            stack.enter_context(swapped(path, change))
        yield
