"""Which parent, and which layer of it, every tensor of a checkpoint came from: found by what it holds, not by its name.

Names decide only between equals: of several tensors with the same bytes, the one in the layer that the others of its
own layer are from; and a single number, which says nothing by itself, is a copy where its layer's matrices are.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numgemma.errors import InputError
from numgemma.surgery.blocks import assembled
from numgemma.surgery.relations import (
    FOR_BYTES,
    FRESH,
    LOOSE,
    Relation,
    by_digest,
    byte_copies,
    fresh,
    likenesses,
    supported,
    tiled_vectors,
)
from numgemma.surgery.sketch import Sketch, read_sketches, total_bytes

SCHEMA = "numgemma.lineage/1"

Sketches = dict[str, Sketch]


@dataclass(frozen=True)
class Origin:
    """Where one decoder layer of the child is from.

    relation: copy (all tensors, none changed), scaled or converted (all of them), altered (some), fresh.
    """

    slot: int
    parent: str | None
    layer: int | None
    relation: str
    error: float = 0.0  # the largest of its tensors


@dataclass(frozen=True, eq=False)
class Lineage:
    """What a checkpoint is made of."""

    child: str
    parents: tuple[str, ...]
    tensors: dict[str, Relation]
    shapes: dict[str, tuple[int, ...]]
    slots: tuple[Origin, ...]
    layers: dict[str, int]  # parent -> how many decoder layers it has

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "child": self.child,
            "parents": list(self.parents),
            "slots": [asdict(origin) for origin in self.slots],
            "tensors": [tensor_json(name, self.shapes[name], r) for name, r in self.tensors.items()],
        }


def tensor_json(name: str, shape: tuple[int, ...], r: Relation) -> dict[str, Any]:
    facts = asdict(r)
    return {"name": name, "shape": list(shape), "relation": facts.pop("kind")} | facts


def lineage(
    child: str | Path, parents: Iterable[str | Path], progress: Callable[[int, int], None] = lambda done, total: None
) -> Lineage:
    """Where every tensor of the child is from.  Any safetensors checkpoint will do, of whatever model.

    Raises InputError where a file cannot be read or a parent is named twice.
    """
    names = [str(parent) for parent in parents]
    if len(set(names)) < len(names):
        raise InputError(f"{max(names, key=names.count)}: is named twice among the parents; name each once.")
    count = counter([child, *names], progress)
    held = {name: read_sketches(name, count) for name in names}
    return trace_back(str(child), read_sketches(child, count), held)


def counter(paths, progress: Callable[[int, int], None]) -> Callable[[int], None]:
    """Adds up what is read, and reports it."""
    total, done = sum(total_bytes(path) for path in paths), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    return count


def trace_back(name: str, child: Sketches, parents: dict[str, Sketches]) -> Lineage:
    """The same from sketches."""
    options = candidates(child, parents)
    homes = home_layers(options, child)
    tensors = {tensor: chosen(tensor, options.get(tensor, []), homes) for tensor in child}
    for tensor, one in child.items():
        if tensors[tensor] is FRESH:
            tensors[tensor] = by_place(tensor, one, homes, parents) or fresh(one)
    layers = {parent: depth(held) for parent, held in parents.items()}
    slots = tuple(origin(i, tensors, homes) for i in range(depth(child)))
    return Lineage(name, tuple(parents), tensors, {n: s.shape for n, s in child.items()}, slots, layers)


def candidates(child: Sketches, parents: dict[str, Sketches]) -> dict[str, list[Relation]]:
    """Tensor -> what it can be, for tensors that speak for themselves: equal bytes first, then likeness, then parts."""
    index = by_digest(parents)
    found = {name: byte_copies(one, index) for name, one in child.items() if one.distinct >= FOR_BYTES}
    found = {name: some for name, some in found.items() if some}
    found |= likenesses((one for name, one in child.items() if name not in found), parents)
    found = {name: some for name, some in found.items() if some}
    found |= {name: some for name, one in child.items() if name not in found and (some := tiled_vectors(one, parents))}
    rest = [one for name, one in child.items() if name not in found and one.size]
    found |= {name: [relation] for name, relation in assembled(rest, parents).items()}
    return found | likenesses((one for one in rest if one.name not in found and one.width > 1), parents, LOOSE)


# names: which layer a tensor belongs to


def scope(name: str) -> str:
    """The layer that a tensor is in, as layers.3 or vision_tower.encoder.layers.3; or its tower; or nothing."""
    found = re.match(r"(?:.*\.)?layers\.\d+(?=\.)|\w+_tower(?=\.)", name)
    return found[0] if found else ""


def decoder_layer(scope: str) -> int | None:
    found = re.fullmatch(r"(?:decoder\.)?layers\.(\d+)", scope)
    return int(found[1]) if found else None


def depth(sketches: Sketches) -> int:
    found = [decoder_layer(scope(name)) for name in sketches]
    return max((i for i in found if i is not None), default=-1) + 1


Home = tuple[str, str]  # a parent, and a scope in it


def home_layers(options: dict[str, list[Relation]], child: Sketches) -> dict[str, Home]:
    """Scope of the child -> where at least half of it is from; of equals, what goes on from the layer before."""
    votes: dict[str, Counter[Home]] = defaultdict(Counter)
    for name, some in options.items():
        for home in {(r.parent, scope(r.source)) for r in some if r.parent and r.source}:
            if stem(home[1]) == stem(scope(name)):  # layers come from layers, and each tower from its like
                votes[scope(name)][home] += child[name].size
    sizes: Counter[str] = Counter()
    for name, one in child.items():
        sizes[scope(name)] += one.size
    homes: dict[str, Home] = {}
    for place in sorted(votes, key=natural):
        most = max(votes[place].values())
        if 2 * most < sizes[place] and place:
            continue
        equals = [home for home, n in votes[place].items() if n == most]
        parent, last = homes.get(moved(place, -1), ("", ""))
        following = parent, moved(last, 1)
        homes[place] = following if following in equals else min(equals, key=lambda h: (h[1] != place, natural(h[1])))
    return homes


def stem(place: str) -> str:
    return re.sub(r"\d+$", "", place)


def natural(place: str) -> list[Any]:
    """A key that sorts layers.2 before layers.10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", place)]


def moved(place: str, by: int) -> str:
    """layers.3 -> layers.4"""
    return re.sub(r"\d+$", lambda n: str(int(n[0]) + by), place)


def chosen(name: str, options: list[Relation], homes: dict[str, Home]) -> Relation:
    """Of what a tensor can be, the one where the rest of its layer is from, then the one of its own name."""
    home, leaf = homes.get(scope(name)), name.removeprefix(scope(name))

    def rank(r: Relation):
        source = r.source or ""
        at_home = (r.parent, scope(source)) == home
        return not at_home, source.removeprefix(scope(source)) != leaf, r.parent != (home or ("",))[0], r.error

    return min(options, key=rank, default=FRESH)


def by_place(name: str, one: Sketch, homes: dict[str, Home], parents: dict[str, Sketches]) -> Relation | None:
    """What cannot speak for itself is compared with its namesake in the layer that its own layer is from."""
    home = homes.get(scope(name))
    if home is None:
        return None
    source = parents[home[0]].get(home[1] + name.removeprefix(scope(name)))
    return supported(one, home[0], source) if source and one.size else None


def origin(slot: int, tensors: dict[str, Relation], homes: dict[str, Home]) -> Origin:
    """What one decoder layer is, from what its tensors are."""
    place = next((p for p in homes if decoder_layer(p) == slot), f"layers.{slot}")
    own = [r for name, r in tensors.items() if decoder_layer(scope(name)) == slot]
    layer = decoder_layer(homes[place][1]) if place in homes else None
    if layer is None:
        return Origin(slot, None, None, "fresh")
    at_home = all((r.parent, scope(r.source or "")) == homes[place] for r in own)
    kinds = {r.kind for r in own}
    relation = kinds.pop() if at_home and len(kinds) == 1 and kinds <= {"copy", "scaled", "converted"} else "altered"
    return Origin(slot, homes[place][0], layer, relation, max(r.error for r in own))
