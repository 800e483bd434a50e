"""Faults of a model that is split over several devices: a sum lacks one's share, or has it twice.

Each rank holds some heads, or some columns of the MLP, and the all-reduce adds up what they give.
"""

import numpy as np

from numgemma import ops
from numgemma.debug.faults.attending import ATTENTION
from numgemma.debug.faults.fault import Rewired, fault

MLP = "numgemma.layers.feedforward", "mlp"
RANKS = tuple((n, rank) for n in (2, 4) for rank in range(n))
TIMES = {"missing": 0, "double": 2}


def share(x, n, rank, times):
    """Columns of which those of one rank count so many times.  x: T C -> T C"""
    width = x.shape[-1] // n
    weight = np.ones(x.shape[-1], x.dtype)
    weight[rank * width : (rank + 1) * width] = x.dtype.type(times)
    return x * weight


def attention_of_ranks(n, rank, times):
    """Attention whose o_proj adds up another set of heads."""

    def change(original, x, w, tap):
        def equation(y, seen):
            return ops.linear(share(seen["context"].reshape(len(x), -1), n, rank, times), w["o_proj.weight"])

        return original(tap=Rewired(tap, {"o_proj": equation}))

    return change


def mlp_of_ranks(n, rank, times):
    """An MLP whose down_proj adds up another set of columns."""

    def change(original, w, tap):
        def equation(y, seen):
            inner = ops.gated_gelu(seen["gate_proj"], seen["up_proj"])
            return ops.linear(share(inner, n, rank, times), w["down_proj.weight"])

        return original(tap=Rewired(tap, {"down_proj": equation}))

    return change


def dense(spec, model):
    """Whether the layer has the MLP that this is about: that of Gemma 3n is another function.

    It goes by the name: another fault may stand in the place of the function while this one is tried beside it.
    """
    part = model.family.parts.get("mlp")
    there = f"layers.{spec.index}.mlp.down_proj.weight" in model.weights
    return there and part is not None and (part.__module__, part.__name__) == MLP


for n, rank in RANKS:
    for how, times in TIMES.items():
        what = f"rank {rank} of {n} is {'missing in' if how == 'missing' else 'twice in'} the sum of"
        fault(
            f"S01-{how}{rank + 1}of{n}",
            f"{what} o_proj",
            "add up what every rank gives, once: one all-reduce after o_proj",
            shows=f"{ATTENTION}.o_proj",
            swaps="layers.attention.attention",
            at=lambda spec, model, n=n: spec.N % n == 0,
        )(attention_of_ranks(n, rank, times))
        fault(
            f"S02-{how}{rank + 1}of{n}",
            f"{what} down_proj",
            "add up what every rank gives, once: one all-reduce after down_proj",
            shows="layers.*.mlp.down_proj",
            swaps="layers.feedforward.mlp",
            at=dense,
        )(mlp_of_ranks(n, rank, times))
