"""Whether a wrong step is right of other inputs: an arrow that comes from another point, or does not come at all.

Each point that the step should read is exchanged for another one of the dump, and the step computed once more.  What
then agrees with the dump has been wired so.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from numgemma.debug.blame.alone import again, layers_of
from numgemma.debug.blame.limits import size_of
from numgemma.debug.blame.one_step import TOWERS
from numgemma.debug.compare.scoring import NOISE_TO
from numgemma.debug.measure import overlap
from numgemma.debug.measure.discrete import layer_of
from numgemma.dump import Dump

TRIES = 48  # computations of a layer or two, for all the faults of a dump together
NEAREST = 12  # points that are tried in the place of one


@dataclass(frozen=True)
class Wire:
    """An arrow that goes wrong.  due: the points that should be read; read: those that are, None where none are."""

    due: str
    read: str | None

    def __str__(self):
        verb = "are" if ", " in self.due else "is"
        return f"reads {self.read} where {self.due} {verb} due" if self.read else f"does not read {self.due}"


def edges(subject, base, steps) -> dict[str, Wire]:
    """The wrong arrows behind some steps with a fault of their own, by the step's name; the first steps first."""
    found, left = {}, TRIES
    for step in steps:
        if TOWERS in layers_of([step]) or not usable(subject.dump, step.name):
            continue  # a tower runs as a whole, too long for so many tries; a choice is too little to tell inputs by
        for edge, given in islice(exchanges(subject, step), left):
            left -= 1
            if fits(subject, base, step, given):
                found[step.name] = edge
                break
    return found


def fits(subject, base, step, given) -> bool:
    """Whether a step is right of what is given in the place of some points that are due."""
    dump = Dump(subject.dump.meta, {**subject.dump.arrays, **given}, subject.dump.axes)
    layers = layers_of([step]) | {layer_of(due) for due in given} - {None}
    after = again(replace(subject, dump=dump), base, layers, wanted={step.name})
    return after.errors[step.name].rel is not None and size_of(subject, after, step.name)[0] <= NOISE_TO


def exchanges(subject, step) -> Iterator[tuple[Wire, dict[str, np.ndarray]]]:
    """What the step may have read: an arrow, and by the points that are due what may stand in their place."""
    dump = subject.dump
    due = [name for name in step.sources if usable(dump, name)]
    yield from ((Wire(name, None), {name: np.zeros_like(dump[name])}) for name in due)
    yield from donors(subject, step, due)
    for name in due:
        yield from ((Wire(name, other), {name: dump[other]}) for other in others(subject, step, name))
        yield from slices(subject, step, name)


def usable(dump, name):
    return overlap.whole(dump, name) and dump[name].dtype.kind not in "iub" and bool(np.isfinite(dump[name]).all())


def others(subject, step, due) -> list[str]:
    """Points of the same shape, of the same layers, the ones before and from outside: the nearest, and they first."""
    dump, graph = subject.dump, subject.graph
    near = [layer for layer in (layer_of(step.name), layer_of(due)) if layer is not None]
    layers = {None, *near, *(layer - 1 for layer in near)}

    def may_be(name):
        late = name in (step.name, due) or name not in graph or graph.hands_on(step.name, name)
        return not late and layer_of(name) in layers and alike(dump, name, due) and usable(dump, name)

    return sorted(filter(may_be, dump), key=lambda name: abs(graph.order[name] - graph.order[due]))[:NEAREST]


def alike(dump, a, b):
    return a in dump and dump.axes[a] == dump.axes[b] and dump[a].shape == dump[b].shape


def donors(subject, step, due):
    """Of all that comes from one other layer, as shared keys and values do, the same from each layer before it."""
    dump, own = subject.dump, layer_of(step.name)
    for layer in {layer for name in due if (layer := layer_of(name)) is not None} - {own}:
        some = [name for name in due if layer_of(name) == layer]
        for other in range(layer - 1, max(-1, layer - 1 - NEAREST), -1):
            pairs = {name: name.replace(f"layers.{layer}.", f"layers.{other}.") for name in some}
            if len(some) > 1 and all(alike(dump, read, name) for name, read in pairs.items()):
                edge = Wire(", ".join(pairs), ", ".join(pairs.values()))
                yield edge, {name: dump[read] for name, read in pairs.items()}


def slices(subject, step, due):
    """Of what holds something for every layer, what it holds for a layer beside the step's."""
    x, axes, layer = subject.dump[due], subject.dump.axes[due].split(), layer_of(step.name)
    if "L" not in axes or layer is None:
        return
    along = axes.index("L")
    for other in (layer - 1, layer + 1):
        if 0 <= other < x.shape[along]:
            edge = Wire(f"layer {layer} of {due}", f"layer {other}")
            yield edge, {due: np.roll(x, layer - other, along)}
