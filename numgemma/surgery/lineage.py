"""Which parent, and which layer of it, every tensor of a checkpoint came from: found by what it holds, not by its name.

Names decide only between equals: of several tensors with the same bytes, the one in the layer that the others of its
own layer are from; and a single number, which says nothing by itself, is a copy where its layer's matrices are.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numgemma.errors import InputError
from numgemma.surgery import experts
from numgemma.surgery.blocks import assembled
from numgemma.surgery.experts import Routing
from numgemma.surgery.followers import follow
from numgemma.surgery.homes import Home, chosen, decoder_layer, home_layers, homes_of
from numgemma.surgery.mixture import EXPLAINED
from numgemma.surgery.mixtures import explained
from numgemma.surgery.partners import partners, scope, sources
from numgemma.surgery.relations import (
    FOR_BYTES,
    LOOSE,
    Relation,
    by_digest,
    byte_copies,
    likenesses,
    tiled_vectors,
)
from numgemma.surgery.sketch import Sketch, read_sketches, total_bytes

SCHEMA = "numgemma.lineage/1"

Sketches = dict[str, Sketch]


@dataclass(frozen=True)
class Origin:
    """Where one decoder layer of the child is from.

    relation: copy (all tensors, none changed), scaled or converted (all of them), blend, thinned, edited or experts
    (some so, and the rest copied), altered (anything else), fresh.
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
    dtype: str = "bfloat16"  # of most of its numbers
    base: str | None = None  # which of the parents differences are to
    routings: tuple[Routing, ...] = ()  # layers whose experts are not the parent's in their places

    @property
    def faults(self) -> list[str]:
        """Where router, scales and matrices tell of different experts: such a child computes something else."""
        return [f"{r.place}: {text}" for r in self.routings for _, text in r.faults]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "child": self.child,
            "parents": list(self.parents),
            "base": self.base,
            "faults": self.faults,
            "slots": [asdict(origin) for origin in self.slots],
            "tensors": [tensor_json(name, self.shapes[name], r) for name, r in self.tensors.items()],
        }


def tensor_json(name: str, shape: tuple[int, ...], r: Relation) -> dict[str, Any]:
    facts = asdict(r)
    return {"name": name, "shape": list(shape), "relation": facts.pop("kind")} | facts


def lineage(
    child: str | Path,
    parents: Iterable[str | Path],
    progress: Callable[[int, int], None] = lambda done, total: None,
    base: str | Path | None = None,
) -> Lineage:
    """Where every tensor of the child is from.  Any checkpoint will do, of whatever model and in whatever format.

    Through codes copies, multiples and moved lines are told, and no mixtures: those need more digits.
    base: what the parents were trained from, if that is known; it may be among them.
    Raises InputError where a file cannot be read or a parent is named twice.
    """
    names = [str(parent) for parent in parents]
    if len(set(names)) < len(names):
        raise InputError(f"{max(names, key=names.count)}: is named twice among the parents; name each once.")
    names += [str(base)] if base is not None and str(base) not in names else []
    count = counter([child, *names], progress)
    held = {name: read_sketches(name, count) for name in names}
    return trace_back(str(child), read_sketches(child, count), held, None if base is None else str(base))


def counter(paths, progress: Callable[[int, int], None]) -> Callable[[int], None]:
    """Adds up what is read, and reports it."""
    total, done = sum(total_bytes(path) for path in paths), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    return count


def trace_back(name: str, child: Sketches, parents: dict[str, Sketches], base: str | None = None) -> Lineage:
    """The same from sketches."""
    beside = {parent: partners(child, held) for parent, held in parents.items()}
    near = {tensor: sources(tensor, one, beside, parents) for tensor, one in child.items()}
    options = candidates(child, parents, near, base)
    routings, sorted_out = expert_layers(child, parents, beside)
    options |= {tensor: [r] for tensor, r in sorted_out.items() if not any(o.exact for o in options.get(tensor, []))}
    homes = home_layers(options, child)
    tensors = {tensor: chosen(tensor, options.get(tensor, []), homes) for tensor in child}
    tensors = follow(tensors, child, near, homes, parents)
    layers = {parent: depth(held) for parent, held in parents.items()}
    slots = tuple(origin(i, tensors, homes) for i in range(depth(child)))
    shapes = {n: s.shape for n, s in child.items()}
    dtypes = Counter({str(s.dtype): 0 for s in child.values()})
    for one in child.values():
        dtypes[str(one.dtype)] += one.size
    dtype = max(dtypes, key=lambda d: dtypes[d], default="bfloat16")
    return Lineage(name, tuple(parents), tensors, shapes, slots, layers, dtype, base, routings)


def candidates(child: Sketches, parents: dict[str, Sketches], near, base: str | None) -> dict[str, list[Relation]]:
    """Tensor -> what it can be, for tensors that speak for themselves: equal bytes first, then likeness, then mixtures
    of tensors in the same place, then parts of others.

    near: tensor -> (parent, sketch) of those in its place.
    """
    index = by_digest(parents)
    found = {name: byte_copies(one, index) for name, one in child.items() if one.distinct >= FOR_BYTES}
    found = {name: some for name, some in found.items() if some}
    alike = likenesses((one for name, one in child.items() if name not in found), parents)
    found |= {name: some for name, some in alike.items() if some}
    for name, one in child.items():
        if not any(r.exact for r in found.get(name, [])):
            is_copy = any(r.error <= EXPLAINED * r.floor for r in found.get(name, []))
            if r := explained(one, near[name], base, is_copy):
                found[name] = [r]
    found |= {name: some for name, one in child.items() if name not in found and (some := tiled_vectors(one, parents))}
    rest = [one for name, one in child.items() if name not in found and one.size]
    found |= {name: [relation] for name, relation in assembled(rest, parents).items()}
    return found | likenesses((one for one in rest if one.name not in found and one.width > 1), parents, LOOSE)


def expert_layers(child: Sketches, parents: dict[str, Sketches], beside) -> tuple[tuple[Routing, ...], dict]:
    """Layers whose experts are not all in their places, and what their tensors are."""
    routings: list[Routing] = []
    found: dict[str, Relation] = {}
    mine = by_scope(child)
    for parent, held in parents.items():
        theirs = by_scope(held)
        for place, own in mine.items():
            source = theirs.get(beside[parent].get(place, place), {})
            known = experts.routing(place, own, parent, source)
            if known and place not in {r.place for r in routings}:
                routings.append(known)
                made = experts.relations(known, source)
                found |= {f"{place}.{leaf}": relation for leaf, relation in made.items()}
    return tuple(routings), found


def by_scope(sketches: Sketches) -> dict[str, Sketches]:
    groups: dict[str, Sketches] = defaultdict(dict)
    for name, one in sketches.items():
        groups[scope(name)][name.removeprefix(scope(name)).removeprefix(".")] = one
    return groups


# names: which layer a tensor belongs to


def depth(sketches: Sketches) -> int:
    found = [decoder_layer(scope(name)) for name in sketches]
    return max((i for i in found if i is not None), default=-1) + 1


MIXED = ("blend", "thinned", "edited", "experts")


def origin(slot: int, tensors: dict[str, Relation], homes: dict[str, Home]) -> Origin:
    """What one decoder layer is, from what its tensors are."""
    place = next((p for p in homes if decoder_layer(p) == slot), f"layers.{slot}")
    own = [r for name, r in tensors.items() if decoder_layer(scope(name)) == slot]
    layer = decoder_layer(homes[place][1]) if place in homes else None
    if layer is None:
        return Origin(slot, None, None, "fresh")
    kinds = {r.kind for r in own}
    relation = "altered"
    if all(homes[place] in homes_of(r) for r in own):
        changed = kinds - {"copy"} if kinds & set(MIXED) else kinds
        relation = (
            changed.pop() if len(changed) == 1 and changed <= {*MIXED, "copy", "scaled", "converted"} else relation
        )
    return Origin(slot, homes[place][0], layer, relation, max(r.error for r in own))
