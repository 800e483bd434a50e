"""Whether a fix without training brings a stack back into its parent's range: each known one tried on runs of it.

A fix is tried as edits of a run, so no file is written for it:

* per-layer inputs zeroed, from the first seam on;
* per-layer inputs by destination: slot i of L gets what layer i l / L of the parent gets, which has l layers;
* writes halved: what layers that are there twice add to the stream counts half, from the first seam on.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from numgemma.model import Edits, Model
from numgemma.surgery.lineage import Origin
from numgemma.surgery.seams import Drift, Fix, Seams, as_it_is, seam
from numgemma.trace import NONE

RAW = "as it is"
INPUTS = "per_layer_inputs"
WRITES = ("post_attention_layernorm", "post_feedforward_layernorm")


def fixes(map_: Sequence[Origin]) -> dict[str, Fix]:
    """Every fix by its name, the child as it is first."""
    first = next((i for i in range(len(map_)) if seam(map_, i)), len(map_))
    homes = [(o.parent, o.layer) for o in map_]
    twice = [i for i in range(len(map_)) if homes.count(homes[i]) > 1 and i >= first]
    return {
        RAW: as_it_is,
        "per-layer inputs zeroed": lambda model, parents, ids: zeroed(model, first),
        "per-layer inputs by destination": by_destination,
        "writes halved": lambda model, parents, ids: halved(twice),
    }


def has_inputs(model: Model) -> bool:
    return bool(model.outline.per_layer)


def zeroed(model: Model, first: int) -> Edits:
    def edit(x):  # T L P
        return np.concatenate([x[:, :first], np.zeros_like(x[:, first:])], axis=1)

    return {INPUTS: edit} if has_inputs(model) else NONE


def by_destination(model: Model, parents: dict[str, Model], ids: Sequence[int]) -> Edits:
    if not has_inputs(model) or len(parents) != 1:
        return NONE
    (parent,) = parents.values()
    held: dict[str, Any] = {}
    parent.record_into(Keeper(held), ids, [INPUTS])

    def edit(x):  # T L P
        at = np.arange(x.shape[1]) * held[INPUTS].shape[1] // x.shape[1]
        return held[INPUTS][:, at].astype(x.dtype)

    return {INPUTS: edit}


class Keeper:
    """A Recorder's sink that keeps points by name."""

    def __init__(self, held: dict[str, Any]):
        self.start, self.held = 0, held

    def keep(self, name: str, x: np.ndarray, axes: str) -> None:
        self.held[name] = x


def halved(slots: Sequence[int]) -> Edits:
    return {f"layers.{i}.{name}": half for i in slots for name in WRITES}


def half(x: np.ndarray) -> np.ndarray:
    return x * x.dtype.type(0.5)


# what came of them


def ranked(found: Seams) -> list[Drift]:
    """The slots beyond their parent's range, the farthest first."""
    return sorted((s for s in found.slots if s.outside), key=lambda s: -s.excess)


def verdict(tried: dict[str, Seams]) -> str:
    """Whether any of them brings every slot back, in a sentence."""
    back = [name for name, found in tried.items() if not ranked(found) and name != RAW]
    if not ranked(tried[RAW]):
        return "The child does not leave its parent's range, so there is nothing to mend."
    if back:
        return (
            f"Back in its parent's range with: {', '.join(back)}. That says nothing of what it computes: read a text."
        )
    return "No fix without training brings every slot back into its parent's range."
