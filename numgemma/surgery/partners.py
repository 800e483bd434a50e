"""Which layer of each parent a layer of the child may be mixed from: the one whose matrices go up and down with it.

A mixture of several is like each of them only a little: 0.3 a + 0.7 b of unrelated a and b has a correlation of 0.39
with a.  Over the thousands of values of a layer that is far above chance, so layers are compared as wholes.
"""

import re
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from numgemma.surgery.relations import ENOUGH, squeezed, standard
from numgemma.surgery.sketch import Sketch

CERTAIN = 60.0  # n r^2 of unrelated tensors is 1 on average; above this, layers are related

Sketches = Mapping[str, Sketch]


def scope(name: str) -> str:
    """The layer that a tensor is in, as layers.3 or vision_tower.encoder.layers.3; or its tower; or nothing."""
    found = re.match(r"(?:.*\.)?layers\.\d+(?=\.)|\w+_tower(?=\.)", name)
    return found[0] if found else ""


def stem(place: str) -> str:
    return re.sub(r"\d+$", "", place)


def partners(child: Sketches, parent: Sketches) -> dict[str, str]:
    """Scope of the child -> the scope of the parent that is most like it; its own where none is."""
    votes: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    theirs = by_leaf(parent)
    for key, mine in by_leaf(child).items():
        if key in theirs:
            likeness = alike([one for _, one in mine], [one for _, one in theirs[key]])
            for (place, _), row in zip(mine, likeness, strict=True):
                for (other, _), score in zip(theirs[key], row, strict=True):
                    votes[place][other] += float(score)
    return {place: nearest(place, votes.get(place, {})) for place in {scope(name) for name in child}}


def nearest(place: str, votes: Mapping[str, float]) -> str:
    most = max(votes.values(), default=0.0)
    if most < CERTAIN or votes.get(place, 0.0) > 0.9 * most:
        return place
    return max(votes, key=lambda other: votes[other])


def by_leaf(sketches: Sketches) -> dict[tuple, list[tuple[str, Sketch]]]:
    """(kind of scope, name in it, shape) -> the matrices of that kind, with their scopes."""
    groups = defaultdict(list)
    for name, one in sketches.items():
        place = scope(name)
        if one.width > 1 and one.distinct >= ENOUGH and place:
            groups[stem(place), name.removeprefix(place), squeezed(one.shape)].append((place, one))
    return groups


def alike(mine: list[Sketch], theirs: list[Sketch]) -> np.ndarray:
    """n r^2 for every pair, n values with a correlation of r."""
    a, b = (np.stack([standard(one.values) for one in some]) for some in (mine, theirs))
    return a.shape[1] * (a @ b.T) ** 2


def sources(name: str, one: Sketch, homes: Mapping[str, Mapping[str, str]], parents: Mapping[str, Sketches]):
    """The tensors of that name and shape in the layers that its own may be mixed from: (parent, sketch) of each."""
    place = scope(name)
    found = []
    for parent, held in parents.items():
        source = held.get(homes[parent].get(place, place) + name.removeprefix(place))
        if source is not None and source.shape == one.shape:
            found.append((parent, source))
    return found
