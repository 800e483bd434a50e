"""bitsandbytes: four bits by a table (nf4, fp4), or int8 by rows.

    weight U8, the codes of the flattened matrix, high nibble first    w = quant_map[q] absmax[i / blocksize]
    absmax nested:      absmax = nested_quant_map[absmax] nested_absmax[i / nested_blocksize] + nested_offset
    weight I8, SCB F32                                                  w = q SCB / 127

The shape is lost in the tensor and stands in the state, as JSON in bytes.
"""

import json
import math

import numpy as np

from numgemma.errors import InputError
from numgemma.weights.packed import Packed, agree

STATE = "weight.quant_state.bitsandbytes__"
TABLES = {"weight.quant_map", "weight.absmax"}
UNREAD = ("weight_format",)


def claims(leaves) -> bool:
    return "SCB" in leaves or any(name.startswith("weight.") for name in leaves)


def read(where, leaves, settings) -> Packed:
    """One module's weight."""
    agree(where, "weight" in leaves)
    if "SCB" in leaves:
        q, scale = leaves["weight"], leaves["SCB"]
        agree(where, q.dtype == np.int8, q.ndim == 2, scale.shape == q.shape[:1])
        unit = np.float32(1 / 127)

        def decode_rows(at):
            return q[at].astype(np.float32) * scale[at, None] * unit

        return Packed(q.shape, "bnb-int8", decode_rows, (q, scale), lambda at: scale[at, None] * unit)
    state = read_state(where, leaves)
    (O, I), block = state["shape"], state["blocksize"]
    codes, table, absmax = leaves["weight"].ravel(), leaves["weight.quant_map"], sizes(where, leaves, state)
    agree(where, codes.dtype == np.uint8, table.shape == (16,), absmax.ndim == 1)
    if codes.size * 2 < O * I or len(absmax) * block < O * I:
        raise InputError(f"{where}: holds {codes.size * 2} codes where {[O, I]} needs {O * I}; download it again.")

    def decode(at):
        places = np.arange(O)[at, None] * I + np.arange(I)
        pairs = codes[places >> 1]
        q = np.where(places & 1, pairs & 15, pairs >> 4)
        return table[q] * absmax[places // block]

    widest = np.float32(np.diff(np.sort(table)).max())

    def step(at):
        return widest * np.abs(absmax[(np.arange(O)[at, None] * I + np.arange(I)) // block])

    return Packed((O, I), f"bnb-{state['quant_type']}", decode, (codes, leaves["weight.absmax"]), step)


def read_state(where, leaves):
    found = [x for name, x in leaves.items() if name.startswith(STATE)]
    try:
        state = json.loads(found[0].tobytes())
        good = len(state["shape"]) == 2 and all(type(n) is int and n > 0 for n in [*state["shape"], state["blocksize"]])
        kind = state["quant_type"] in ("nf4", "fp4")
        if not good or not kind or math.prod(state["shape"]) >= 2**62 or not leaves.keys() >= TABLES:
            raise ValueError
    except (IndexError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{where}: has no readable quantisation state beside its codes; save it again.") from None
    return state


def sizes(where, leaves, state):
    """The largest of each block, float32."""
    absmax = leaves["weight.absmax"]
    if absmax.dtype != np.uint8:
        return absmax
    try:
        table, outer = leaves["weight.nested_quant_map"], leaves["weight.nested_absmax"]
        block, offset = state["nested_blocksize"], np.float32(state["nested_offset"])
        return table[absmax] * outer[np.arange(len(absmax)) // block] + offset
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
        raise InputError(f"{where}: the scales of its scales are not all there; download it again.") from None
