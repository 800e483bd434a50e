"""Is this file a faithful copy of that one?  Tensor by tensor, from the weights alone; nothing is run.

A weight that was rounded lies within half a step of the original, where the step follows from the file's own scale.
So a quantised tensor is judged by how many of its weights lie farther, by its error against what its bits should cost,
and by the best factor between both.  A tensor of floats is judged to its last bit.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np

from numgemma.ops.threads import in_parallel
from numgemma.surgery.audit_why import causes
from numgemma.weights.packed import Packed, format_of

SCHEMA = "numgemma.audit/1"
FAITHFUL, COARSE, WRONG, MISSING, EXTRA = "FAITHFUL", "COARSE", "WRONG", "MISSING", "EXTRA"

# Relative error (RMS) of normally distributed weights, as the formats' own tools leave it.  Real weights have heavier
# tails, and cost up to half as much again.
# fmt: off
COSTS = {
    "Q8_0": 0.0054, "Q6_K": 0.018, "Q5_K": 0.036, "Q5_1": 0.038, "Q5_0": 0.043, "Q4_K": 0.072, "Q4_1": 0.078,
    "Q4_0": 0.087, "IQ4_NL": 0.077, "IQ4_XS": 0.077, "Q3_K": 0.15, "IQ3_S": 0.167, "IQ3_XXS": 0.2, "Q2_K": 0.295,
    "TQ1_0": 0.81, "TQ2_0": 0.81, "MXFP4": 0.117, "NVFP4": 0.096, "mxfp4": 0.114, "nvfp4": 0.096,
    "int2": 0.45, "int3": 0.2, "int4": 0.095, "int5": 0.046, "int6": 0.023, "int7": 0.012, "int8": 0.007,
    "float8_e4m3fn": 0.027, "float8_e5m2": 0.054, "awq-int4": 0.085, "gptq-int4": 0.09, "gptq-int3": 0.2,
    "gptq-int8": 0.007, "mlx-2bit": 0.4, "mlx-3bit": 0.19, "mlx-4bit": 0.091, "mlx-5bit": 0.045, "mlx-6bit": 0.022,
    "mlx-8bit": 0.006, "mlx-mxfp4": 0.117, "mlx-mxfp8": 0.028, "mlx-nvfp4": 0.096, "bnb-nf4": 0.094,
    "bnb-fp4": 0.123, "bnb-int8": 0.007, "mobile-int8": 0.007, "mobile-int4": 0.11, "mobile-int2": 0.5,
}
# fmt: on
UNKNOWN_COST = 0.2  # of types with codebooks that are listed nowhere
DEAR, TOO_DEAR = 2.0, 4.0  # times the cost: more than the bits should take; more than they can
BEYOND = 0.51  # of a step: farther than rounding alone can move a weight
# share of weights beyond it: some tools divide in bfloat16, whose steps near 127 are coarse
MANY, MANY_OF_INT8 = 0.08, 0.25
FACTOR = 0.05  # how far the best factor may be from 1, at least
BLOCK = 1 << 18  # numbers that are looked at at a time: what is made of them stays in a core's cache
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # half a unit in the last place


@dataclass(frozen=True)
class Verdict:
    """What one tensor is to the original of its name.

    rel: RMS of the difference over that of the original.  cost: what the format should take.  beyond: share of weights
    farther than half a step; None where the format has no step.  gain: the factor that brings the file's values
    nearest to the original's.  cos: the cosine between both.  causes: what explains a wrong one, sentences.
    """

    name: str
    state: str
    format: str = ""
    shape: tuple[int, ...] = ()
    rel: float | None = None
    cost: float | None = None
    beyond: float | None = None
    gain: float | None = None
    cos: float | None = None
    causes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audit:
    """All tensors, in the original's order, and those that only the file has."""

    file: str
    original: str
    tensors: tuple[Verdict, ...]
    notes: tuple[str, ...] = field(default=())

    def of(self, state) -> list[Verdict]:
        return [v for v in self.tensors if v.state == state]

    @property
    def faithful(self) -> bool:
        """Whether nothing is wrong, and nothing is missing."""
        return not self.of(WRONG) and not self.of(MISSING)

    def to_json(self) -> dict[str, Any]:
        counts = {state: len(self.of(state)) for state in (FAITHFUL, COARSE, WRONG, MISSING, EXTRA)}
        head = {"schema": SCHEMA, "file": self.file, "original": self.original, "faithful": self.faithful}
        return head | {"counts": counts, "notes": list(self.notes), "tensors": [asdict(v) for v in self.tensors]}


def audit(
    file: Mapping[str, Any],
    original: Mapping[str, Any],
    names=("the file", "the original"),
    optional: Callable[[str], bool] = lambda name: False,
    told: Callable[[int, int], object] = lambda done, of: None,
) -> Audit:
    """Judge each tensor of `file` by the original's of the same name.

    file, original: name -> array or Packed.  optional: whether the model runs without a tensor, as it does without the
    keys of layers that share another's.  told: is called after each tensor with how many are done, and of how many.
    """
    found = []
    for done, name in enumerate(original, 1):
        if name in file:
            found.append(judged(name, file[name], original[name]))
            if found[-1].state == WRONG and not found[-1].causes:
                why = causes(name, file[name], original[name], original, found[-1].cost)
                found[-1] = replace(found[-1], causes=why)
        elif not optional(name):
            found.append(Verdict(name, MISSING, shape=tuple(original[name].shape)))
        told(done, len(original))
    extra = [name for name in file if name not in original]
    found += [Verdict(name, EXTRA, format_of(file[name]), tuple(file[name].shape)) for name in extra]
    return Audit(str(names[0]), str(names[1]), tuple(beside_their_kind(found)))


def judged(name, w, W) -> Verdict:
    """One tensor against its original."""
    shape, form = tuple(w.shape), format_of(w)
    if math.prod(shape) != math.prod(W.shape) or shape[-1:] != tuple(W.shape)[-1:]:
        same = f"has the shape {list(shape)}, and the original {list(W.shape)}"
        return Verdict(name, WRONG, form, shape, causes=(same,))
    rounding = ROUNDING.get(form)
    sums = added_up(in_parallel(lambda block: tallied(block, rounding), list(blocks(w, W))))
    if sums.broken:
        return Verdict(name, WRONG, form, shape, causes=("holds NaN or infinity",))
    verdict = Verdict(name, FAITHFUL, form, shape, sums.rel, None, sums.beyond, sums.gain, sums.cos)
    if not isinstance(w, Packed):
        exact = sums.differing == 0
        return replace(verdict, state=FAITHFUL if exact else WRONG, beyond=None)
    cost = COSTS.get(form, UNKNOWN_COST)
    return replace(verdict, state=state_of(verdict, cost), cost=cost)


def state_of(v: Verdict, cost) -> str:
    many = MANY_OF_INT8 if "int8" in v.format else MANY
    off = v.gain is None or abs(v.gain - 1) > max(FACTOR, cost / 2)
    if off or v.rel > TOO_DEAR * cost or (v.beyond or 0) > many:
        return WRONG
    return COARSE if v.rel > DEAR * cost else FAITHFUL


def beside_their_kind(verdicts):
    """A tensor that cost twice what others of its format cost in this file is coarse, whatever the table says."""
    usual: dict[str, list[float]] = {}
    for v in verdicts:
        if v.cost and v.rel:
            usual.setdefault(v.format, []).append(v.rel)
    for v in verdicts:
        dear = v.state == FAITHFUL and v.cost and v.rel and len(usual[v.format]) > 4
        coarse = dear and v.rel > max(DEAR * median(usual[v.format]), 1.5 * v.cost)
        yield replace(v, state=COARSE) if coarse else v


@dataclass
class Tally:
    """What is added up over the blocks of a tensor, in float64.  A tensor of no numbers has none."""

    ww: float = 0.0
    WW: float = 0.0
    wW: float = 0.0
    dd: float = 0.0
    far: int = 0
    stepped: int = 0
    differing: int = 0
    broken: bool = False

    @property
    def rel(self):
        return math.sqrt(self.dd / self.WW) if self.WW else float(self.dd > 0)

    @property
    def beyond(self):
        return self.far / self.stepped if self.stepped else None

    @property
    def gain(self):
        return self.wW / self.ww if self.ww else 1.0 if not self.WW else None

    @property
    def cos(self):
        size = math.sqrt(self.ww * self.WW)
        return self.wW / size if size else None


def tallied(block, rounding) -> Tally:
    """Of some rows of two matrices.  rounding: of what half a unit in the last place is, for floats"""
    w, W, at = block
    steps = w.steps(at) if isinstance(w, Packed) else None
    a, b = np.asarray(w[at], np.float64), np.asarray(W[at], np.float64)
    d = a - b
    size = np.abs(d)
    least = 0.0 if rounding is None else rounding * np.abs(b) + 2.0**-24  # half precision has subnormals
    far = 0 if steps is None else int((size > BEYOND * steps + 1e-7 * np.abs(b)).sum())
    return Tally(
        ww=inner(a, a),
        WW=inner(b, b),
        wW=inner(a, b),
        dd=inner(d, d),
        far=far,
        stepped=0 if steps is None else d.size,
        differing=int((~(size <= least)).sum()),  # a NaN differs
        broken=not np.isfinite(d).all(),
    )


def inner(a, b) -> float:
    """Their inner product, without BLAS, whose threads would fight with those here."""
    return float(np.einsum("ij,ij->", a, b))


def added_up(tallies) -> Tally:
    """In the order of the blocks, whichever thread had them: the same sums on any number of threads."""
    columns = zip(*(astuple(tally) for tally in tallies), strict=True)
    return Tally(*(sum(column) for column in columns))


def blocks(w, W):
    """(matrix of w, matrix of W, rows), a few rows at a time."""
    for a, b in zip(matrices(w), matrices(W), strict=True):
        rows = max(1, BLOCK // max(1, a.shape[1]))
        yield from ((a, b, slice(i, i + rows)) for i in range(0, len(a), rows))


def matrices(w):
    """A tensor as matrices: a stack is several, a vector one row."""
    if len(w.shape) == 3:
        return [w[e] for e in range(len(w))]
    return [w if len(w.shape) == 2 else w.reshape(1, -1) if len(w.shape) < 2 else w.reshape(len(w), -1)]
