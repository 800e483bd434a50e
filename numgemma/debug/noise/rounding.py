"""Engines that round what enters a product: their own arithmetic, on the definitions.

Engines on graphics cards multiply codes by codes where a file has int8 or FP8 weights: each token's x is rounded to the
same kind of code, under a scale of its own, or under the module's where the file has measured one (static scales).  Of
NVFP4 sixteen numbers have a scale of their own, rounded itself under the module's.  Google's mobile files have scales
of what enters and of what comes out, and Transformers rounds both.

llama.cpp on the CPU rounds each row of x to the partner of the weight's type, multiplies integers, and adds up in
float32; its GELU goes through half precision.  On such a run plain float32 is off by percents, and so is another run
that is right: one unit in the last place turns a code, and the next layers see it.  So one asks whether any of a few
runs that differ by noise alone hits the engine's numbers; one that does proves the engine right on that file.
"""

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import numpy as np

from numgemma import ops
from numgemma.debug.measure.precision import PAIRS, declared, in_full
from numgemma.debug.noise.perturb import clipped_linear
from numgemma.dump import Dump
from numgemma.smallfloats import BFLOAT16, kept
from numgemma.trace import Tap
from numgemma.weights.gguf_steps import BYTES, half
from numgemma.weights.packed import Packed, format_of

LEAST = np.float32(2.0**-3)  # the scale of sixteen numbers that are too small for one
ONE_IN = 512  # the share of what is rounded that goes the other way, where that is asked for
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


def int8_token(x):
    """Codes of eight bits from the largest of a token.  x: ... I  ->  ... I   (vLLM's dynamic int8)"""
    return int8(x, np.abs(x).max(-1, keepdims=True) / np.float32(127))


def int8_given(x, told):
    """The same under the file's own scale and zero point.  told: Entering"""
    return int8(x, told.scale, told.zero)


def int8(x, scale, zero=0.0):
    """Codes of eight bits under a scale; what is beyond them becomes the last one.  zero: the code of nought"""
    zero = np.float32(zero)
    codes = np.rint(np.divide(x, scale, out=np.zeros_like(x), where=scale > 0) + zero)
    return (np.clip(codes, -128, 127) - zero) * scale


def fp8_token(x):
    """E4M3 numbers, of which a token's largest is the largest there is.  x: ... I  ->  ... I   (vLLM's per token)"""
    return fp8(x, np.maximum(np.abs(x).max(-1, keepdims=True) / np.float32(448), np.float32(1 / (448 * 512))))


def fp8_given(x, told):
    """The same under the file's own scale.  told: Entering"""
    return fp8(x, told.scale)


def fp8(x, scale):
    """E4M3 numbers under a scale; what is beyond them becomes the last one."""
    return e4m3(x / scale) * scale


def e4m3(x):
    return np.clip(x, -448, 448).astype("float8_e4m3fn").astype(np.float32)


def nvfp4_given(x, told):
    """E2M1 numbers; of sixteen the largest is 6 under their scale, an E4M3 number under the file's one for all.

    x: ... I   told: Entering  ->  ... I   (equals compressed-tensors' forward_quantize of a local dynamic group)
    """
    blocks, joined = rows_in(x, 16)
    for_all = np.float32(1 / np.float64(told.scale))
    scales = e4m3(np.abs(blocks).max(-1, keepdims=True) / np.float32(6) * for_all)
    scales = np.where(scales == 0, LEAST, scales) / for_all
    return joined(e2m1(blocks / scales) * scales)


def e2m1(x):
    """To the nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6, and of two the even one."""
    size = np.minimum(np.abs(x), 6)
    step = np.where(size < 2, 0.5, np.where(size < 4, 1, 2)).astype(x.dtype)
    return np.copysign(np.rint(size / step) * step, x)


def mobile(x, scale):
    """Codes of eight bits under a scale, in the stream's own dtype; 0: as it is.  (equals Transformers' apply_srq)"""
    s = x.dtype.type(scale)
    if not s:
        return x
    with np.errstate(over="ignore"):  # a narrow dtype has no number for what is far beyond the codes
        codes = np.rint(x / s).astype(np.float32)
    return np.clip(codes, -128, 127).astype(x.dtype) * s


def through(dtype):
    return lambda x: kept(x, dtype).astype(x.dtype)


def partner(form: str) -> Callable | None:
    """What llama.cpp makes of x before it is multiplied with a weight of that format; None: nothing."""
    if form in ("float32", "float64"):
        return None
    if form in ("float16", "bfloat16"):
        return through(np.dtype(np.float16) if form == "float16" else BFLOAT16)
    codes = q8_0 if form in BY_32 else q8_k
    return lambda x: codes(x.astype(np.float32)).astype(x.dtype)


# -- which way a number goes that lies between two

Ways = Callable[[np.ndarray, np.ndarray], np.ndarray]  # x, x rounded -> what becomes of it


def nearest(x, rounded):
    return rounded


def some_other_way(rng) -> Ways:
    """Ways of a run in which some numbers are rounded to their neighbour on the other side.

    One unit in the last place turns one number in a hundred thousand: too few to show in a few runs, and enough that
    it happens in the next.
    """

    def ways(x, rounded):
        other = 2 * x.astype(rounded.dtype) - rounded
        return np.where(rng.random(x.shape, np.float32) < 1 / ONE_IN, other, rounded)

    return ways


# -- llama.cpp's operations


def linear_of_llama(original, ways, x, w):
    form = format_of(w)
    rounded = partner(form)
    if rounded is None:
        return original(x, w)
    y = original(ways(x, rounded(x)), w)
    return y + offsets(x.astype(np.float32), w).astype(y.dtype) if form in ("Q4_1", "Q5_1") else y


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


def gelu_of_llama(gelu, x):
    """A table over half precision between -10 and 10; beyond, nothing and x itself."""
    table = through(np.float16)(gelu(through(np.float16)(x)))
    return np.where(x <= -10, x.dtype.type(0), np.where(x >= 10, x, table))


def gated_of_llama(original, ways, gate, up):
    return gelu_of_llama(ops.gelu_tanh, gate) * up


class Halved(Tap):
    """A tap that rounds attention's probabilities to half precision, as a product with a cache of halves does."""

    def __init__(self, tap, ways):
        self.tap, self.ways = tap, ways

    def watches(self, name):
        return True

    def __call__(self, name, x, axes=""):
        x = self.tap(name, x, axes)
        return self.ways(x, through(np.float16)(x)) if name == "probs" else x


def attend_of_llama(original, ways, q, k, v, mask, tap=Tap()):
    """Keys and values of half precision, and what is multiplied with them too."""
    q, k, v = (ways(x, through(np.float16)(x)) for x in (q, k, v))
    return original(q, k, v, mask, Halved(tap, ways))


# -- products of codes


def linear_of_codes(form, by_token, given, original, ways, x, w):
    """Codes times codes, in numbers that hold both exactly enough; only the result is rounded to the stream's dtype.

    by_token, given: what is made of x with a scale for each token, and with the file's own where it has one for all;
    None: an engine that leaves x as it is where the file has none.
    """
    if format_of(w) != form or (by_token is None and w.enters is None):
        return original(x, w)
    narrow, wide = x.astype(np.float32), x.dtype if x.dtype.itemsize > 4 else np.dtype(np.float32)
    rounded = by_token(narrow) if w.enters is None else given(narrow, w.enters)
    return original(ways(x, rounded.astype(wide)), w).astype(x.dtype)


def linear_of_mobile(original, ways, x, w):
    """What enters and what comes out, each under the file's own scale."""
    if not format_of(w).startswith("mobile") or w.enters is None:
        return original(x, w)
    y = original(ways(x, mobile(x, w.enters.scale)), w)
    return ways(y, mobile(y, w.enters.out))


def clipped(original, ways, x, w, inner, outer):
    """A clipped product is one too."""
    return clipped_linear(x, w, inner, outer)


F32: dict[str, Callable] = {"linear": linear_of_llama, "gated_gelu": gated_of_llama, "clipped_linear": clipped}
CHANGES: dict[str, dict[str, Callable]] = {
    "": {},
    "llama.cpp-f32": F32,
    "llama.cpp": F32 | {"attend": attend_of_llama},
    "int8": {"linear": partial(linear_of_codes, "int8", int8_token, int8_given), "clipped_linear": clipped},
    "fp8": {"linear": partial(linear_of_codes, "float8_e4m3fn", fp8_token, fp8_given), "clipped_linear": clipped},
    "nvfp4": {"linear": partial(linear_of_codes, "nvfp4", None, nvfp4_given), "clipped_linear": clipped},
    "mobile": {"linear": linear_of_mobile, "clipped_linear": clipped},
}


@contextmanager
def rounded_as(rounding: str, ways: Ways = nearest):
    """For as long as this lasts, runs round what enters a product as an engine does.

    rounding: one of precision.ROUNDINGS, or "" for nothing at all.  ways: which way each number goes.
    """
    original = {name: getattr(ops, name) for name in CHANGES[rounding]}
    try:
        for name, change in CHANGES[rounding].items():
            setattr(ops, name, partial(change, original[name], ways))
        yield
    finally:
        for name, op in original.items():
            setattr(ops, name, op)


# -- which runs rounded so


def as_run(dump: Dump, model=None, precision: str | None = None) -> Dump:
    """The dump, with the precision that its run had: the one given, or llama.cpp's where it ran a model of codes.

    precision: a dtype, a pair as "float32:llama.cpp", or its second half; what was given once stays.  Raises
    InputError for one not known.
    """
    if precision is None:
        engine = (dump.meta.get("engine") or {}).get("name")
        said = dump.meta.get("precision_given") or declared(dump) in PAIRS
        if engine != "llama.cpp" or said or not of_codes(model):
            return dump
        precision = engine
    meta = {"precision": in_full(precision), "precision_given": True}
    return Dump(dump.meta | meta, dump.arrays, dump.axes)


def of_codes(model) -> bool:
    """Whether some of a model's weights are llama.cpp's codes, whose names are in capitals."""
    weights = model.weights.tensors.values() if model is not None else ()
    return any(isinstance(w, Packed) and w.dtype.isupper() for w in weights)
