"""Tensors that say too little by themselves, a scalar or a short vector: told by what the rest of their layer is.

Layer 3's scalar beside layer 3's matrices is its copy, beside a blend of them a blend; what fits none of these is told
to be like a parent's, or to be new.  Where its layer was changed in a way that nothing explains, because a parent is
not there or the base, a short vector may have been changed in that way too: then it is not told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from numgemma.surgery.certain import SURE, UNTOLD, confidence
from numgemma.surgery.homes import Home
from numgemma.surgery.mixture import EXPLAINED, Source, mixture
from numgemma.surgery.partners import CERTAIN, scope
from numgemma.surgery.relations import ENOUGH, FRESH, NEAR, Relation, Share, fresh, rms, standard, supported
from numgemma.surgery.rounding import is_float, rounding
from numgemma.surgery.sketch import Sketch
from numgemma.surgery.thinned import BORROWED, thinned_alike

BY_CHANCE = 16.0  # n r^2, at most, of tensors that have nothing in common: four standard deviations
WELL_KNOWN = 5e-3  # a weight that is known better


def follow(
    tensors: dict[str, Relation],
    child: Mapping[str, Sketch],
    near: Mapping[str, Sequence[Source]],
    homes: dict[str, Home],
    parents: Mapping[str, Mapping[str, Sketch]],
) -> dict[str, Relation]:
    """The same relations, with those of tensors that were not told, or not well, from what is beside them."""
    tensors = undoubted(tensors, child, near)
    usual, found = usual_mixtures(tensors, child), dict(tensors)
    lost = {n: r for n in child if tensors[n].kind == "fresh" and (r := beyond_telling(child[n], near[n]))}
    changed = changed_scopes(tensors | lost)
    for name, one in child.items():
        like, r = usual.get(scope(name)) or usual.get(""), tensors[name]
        if like and (r.kind == "fresh" or loose(r, one)):
            found[name] = in_step(one, near[name], like, r) or r
        elif like and r.kind == "blend":
            found[name] = called_alike(r, near[name], like)
        if found[name].kind == "fresh":
            placed = by_place(name, one, homes, parents)
            if placed and not placed.exact and scope(name) in changed:
                placed = None  # a number that is only near says nothing there
            found[name] = placed or lost.get(name) or fresh(one)
            if found[name].kind == "fresh" and (like or scope(name) in changed or alike(one, near[name]) > BY_CHANCE):
                found[name] = not_told(found[name], near[name])
    return found


def called_alike(r: Relation, near: Sequence[Source], like: Relation) -> Relation:
    """The same blend with its sources called as in the rest of the layer, where two parents have the same tensor."""
    held, mine, due = dict(near), [s.parent for s in r.shares], [s.parent for s in like.shares]
    names = {}
    for parent in mine:
        if parent not in due:
            twins = [other for other in due if other not in mine and other in held]
            names[parent] = next((other for other in twins if held[other].digest == held[parent].digest), parent)
    shares = tuple(replace(s, parent=names.get(s.parent, s.parent)) for s in r.shares)
    return replace(
        r, parent=names.get(str(r.parent), r.parent), shares=tuple(sorted(shares, key=lambda s: order(s, due)))
    )


def order(share: Share, due: Sequence[str]) -> int:
    return due.index(share.parent) if share.parent in due else len(due)


def loose(r: Relation, one: Sketch) -> bool:
    """A blend of so few values that its weights are not well known; a vector that is nearly some parent's."""
    if r.kind == "blend":
        return max(share.give for share in r.shares) > WELL_KNOWN
    return r.kind in ("copy", "scaled") and one.width == 1 and not r.exact and r.error > EXPLAINED * r.floor


def usual_mixtures(tensors: dict[str, Relation], child: Mapping[str, Sketch]) -> dict[str, Relation]:
    """Scope -> the mixture that most of its numbers are; under "" that of the whole model.

    A blend that does not explain its own tensor, for want of a parent, explains no other.
    """
    found: dict[str, Relation] = {}
    mixed = [n for n, r in tensors.items() if r.kind == "thinned" or (r.kind == "blend" and confidence(r) == SURE)]
    for name in sorted(mixed, key=lambda n: -child[n].size):
        found.setdefault(scope(name), tensors[name])
        found.setdefault("", tensors[name])
    return found


def undoubted(
    tensors: dict[str, Relation], child: Mapping[str, Sketch], near: Mapping[str, Sequence[Source]]
) -> dict[str, Relation]:
    """The same without blends of vectors in layers of which a matrix is not explained: short ones fit too easily."""
    doubted = {
        scope(name)
        for name, r in tensors.items()
        if child[name].width > 1
        and (
            (r.kind == "fresh" and alike(child[name], near[name]) > BY_CHANCE)
            or (r.kind in ("copy", "scaled") and not r.new and confidence(r) != SURE)
        )
    }
    return {
        name: FRESH if r.kind == "blend" and child[name].width == 1 and scope(name) in doubted else r
        for name, r in tensors.items()
    }


def changed_scopes(tensors: Mapping[str, Relation]) -> set[str]:
    """Where some tensor is a mixture, or not all of it is explained."""
    return {scope(n) for n, r in tensors.items() if r.kind in ("blend", "thinned") or confidence(r) != SURE}


def by_place(
    name: str, one: Sketch, homes: dict[str, Home], parents: Mapping[str, Mapping[str, Sketch]]
) -> Relation | None:
    """What cannot speak for itself is compared with its namesake in the layer that its own layer is from."""
    home = homes.get(scope(name))
    if home is None:
        return None
    source = parents[home[0]].get(home[1] + name.removeprefix(scope(name)))
    return supported(one, home[0], source) if source and one.size else None


def everywhere(one: Sketch, near) -> Relation | None:
    """A copy, where all parents that are mixed have the very same in that place."""
    if len(near) < 2 or any((source.digest, source.dtype) != (one.digest, one.dtype) for _, source in near):
        return None
    parents = [parent for parent, _ in near]
    return Relation("copy", parents[0], near[0][1].name, exact=True, also=tuple(parents[1:]))


def likenesses(one: Sketch, near: Sequence[Source]) -> list[float]:
    """The correlation with each of them."""
    return [float(standard(one.values) @ standard(source.values)) for _, source in near]


def alike(one: Sketch, near: Sequence[Source]) -> float:
    """n r^2 with the one that is most like it: 1 on average, where there is nothing in common."""
    return max((r * r for r in likenesses(one, near)), default=0.0) * len(one.values)


def beyond_telling(one: Sketch, near: Sequence[Source]) -> Relation | None:
    """What goes up and down with a parent's tensor in that place, and is nothing that can be named."""
    found = likenesses(one, near)
    if one.distinct < ENOUGH or not near or max(found) ** 2 * len(one.values) < CERTAIN:
        return None
    parent, source = near[int(np.argmax(found))]
    return Relation("changed", parent, source.name, error=float((1 - max(found) ** 2) ** 0.5))


def not_told(r: Relation, near: Sequence[Source]) -> Relation:
    """The same with the mark that it may well be of a parent: a constant says nothing in any case."""
    return replace(r, how=UNTOLD) if near and r.constant is None else r


def in_step(child: Sketch, sources: Sequence[Source], like: Relation, r: Relation) -> Relation | None:
    """A scalar or a short vector as the mixture that the rest of its layer is; None where that does not give it."""
    if r.kind == "fresh" and (same := everywhere(child, sources)):
        return same
    held: Mapping[str, Sketch] = dict(sources)
    shares = like.shares
    if not is_float(child) or not shares or any(share.parent not in held for share in shares):
        return None
    if like.kind == "thinned":
        others = [(share.parent, held[share.parent]) for share in shares]
        return thinned_alike(child, (str(like.parent), held[str(like.parent)]), others, like)
    X = np.stack([held[share.parent].values for share in shares], 1)
    ways = [np.array([share.weight for share in shares])]
    if like.t is not None:  # a slerp of vectors that point the same way is a linear blend
        ways.append(np.array([1 - like.t, like.t]))
    for weights in ways:
        left = rms(child.values - X @ weights)
        give = rms(X @ np.array([share.give for share in shares]))
        if left <= 3 * rms(rounding(child.values, 8)) + give and left <= NEAR * rms(child.values) + give:
            made = [
                Share(share.parent, held[share.parent].name, float(w), BORROWED)
                for share, w in zip(shares, weights, strict=True)
            ]
            how = "linear" if len(ways) == 1 or weights is ways[1] else like.how
            least = 3 * rms(rounding(child.values, 8)) / rms(X)
            return replace(mixture(made, how, left / rms(X), least), t=like.t if how != "linear" else None)
    return None
