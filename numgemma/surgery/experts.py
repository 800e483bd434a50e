"""Which experts of a parent a layer's experts are: kept, dropped, reordered, merged; and whether the router follows.

An expert is a block of rows of gate_up_proj and of down_proj, a row of router.proj.weight and a number of
router.per_expert_scale.  All four have to tell of the same experts: a router that sends tokens to another expert than
its rows were trained for is broken, and nothing but a comparison with the parent shows it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from numgemma.surgery.relations import NEAR, Relation
from numgemma.surgery.sketch import Sketch, plain

STACKS = ("experts.gate_up_proj", "experts.down_proj")
ROUTER, SCALES = "router.proj.weight", "router.per_expert_scale"
SAMPLE = 1 << 12  # numbers of one expert that are looked at
ALIKE = 0.98  # correlation of an expert with itself, rounded or trained on a little
PART = 0.25  # correlation from which on an expert is taken for a part of a merged one
MERGED = 0.98  # correlation of a merged expert with the sum of its parts


@dataclass(frozen=True)
class Routing:
    """One layer of experts: of each expert those of the parent it is made of, by its matrices; and who disagrees.

    faults: sentences, each with the tensor that it is about.
    """

    place: str
    parent: str
    total: int  # experts of the parent
    experts: tuple[tuple[int, ...], ...]
    faults: tuple[tuple[str, str], ...]


def blocks(sketch: Sketch) -> np.ndarray:
    """A row of numbers for each expert, the same ones of each.  -> E n, centred and of length one"""
    E = sketch.shape[0]
    values = sketch.rows.reshape(E, -1)
    values = plain(values[:, :: max(1, values.shape[1] // SAMPLE)])
    values = values - values.mean(1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-300)


def made_of(child: Sketch, source: Sketch) -> tuple[tuple[int, ...], ...]:
    """Of each expert of the child, the source's that it is, or is merged of; () where it is none of them."""
    theirs = blocks(source)
    return tuple(parts(one, theirs) for one in blocks(child))


def parts(one: np.ndarray, theirs: np.ndarray) -> tuple[int, ...]:
    likeness = theirs @ one
    best = int(likeness.argmax())
    if likeness[best] >= ALIKE:
        return (best,)
    several = np.flatnonzero(likeness >= max(PART, 6 / np.sqrt(len(one))))
    if len(several) < 2 or len(several) > len(one) // 8:
        return ()
    weights = np.linalg.lstsq(theirs[several].T, one, rcond=None)[0]
    return tuple(int(i) for i in several) if weights @ theirs[several] @ one >= MERGED else ()


def routing(place: str, child: Mapping[str, Sketch], parent: str, source: Mapping[str, Sketch]) -> Routing | None:
    """What the experts of one layer are, from all that tells of them.  child, source: the layer's tensors by leaf."""
    if not all(leaf in child and leaf in source for leaf in (*STACKS, ROUTER, SCALES)):
        return None
    pairs = [(child[leaf], source[leaf]) for leaf in STACKS]
    if any(a.shape[1:] != b.shape[1:] or len(a.shape) != 3 or not a.size for a, b in pairs):
        return None
    first, second = (made_of(a, b) for a, b in pairs)
    if sum(map(bool, first)) * 2 < len(first) and sum(map(bool, second)) * 2 < len(second):
        return None
    experts = tuple(a or b for a, b in zip(first, second, strict=False))
    faults = [*disagreeing(STACKS[1], second, experts), *router_rows(child[ROUTER], source[ROUTER], experts)]
    faults += scales(child[SCALES], source[SCALES], experts)
    same_number = len(experts) == source[ROUTER].shape[0]
    if not faults and same_number and all(own in ((), (e,)) for e, own in enumerate(experts)):
        return None  # none of them has moved: each tensor is told by itself
    return Routing(place, parent, source[ROUTER].shape[0], experts, tuple(faults))


def disagreeing(leaf: str, found, experts):
    """Blocks of one stack that are of another expert than those of the other stack."""
    wrong = [e for e, (a, b) in enumerate(zip(found, experts, strict=False)) if a and b and a != b]
    if len(found) != len(experts):
        yield leaf, f"{leaf} has {len(found)} experts, and {STACKS[0]} has {len(experts)}"
    if wrong:
        e = wrong[0]
        text = f"expert {e} has in {leaf} expert {said(found[e])} of the parent, and in {STACKS[0]} expert"
        yield leaf, f"{text} {said(experts[e])}"


def router_rows(child: Sketch, source: Sketch, experts):
    """A router's row follows its expert: it is no other's, unless it is its own as well."""
    if len(child.shape) != 2 or len(source.shape) != 2 or child.shape[1] != source.shape[1]:
        return
    if child.shape[0] != len(experts):
        yield ROUTER, f"{ROUTER} has {child.shape[0]} rows for {len(experts)} experts"
        return
    mine, theirs = plain(child.rows), plain(source.rows)
    for e, own in enumerate(experts):
        other = int(np.abs(theirs - mine[e]).max(1).argmin())
        if own and same(mine[e], theirs[other]) and not any(same(mine[e], theirs[i]) for i in own):
            text = f"row {e} of {ROUTER} is that of expert {other}, and the matrices there are those of"
            yield ROUTER, f"{text} expert {said(own)}"
            return


def scales(child: Sketch, source: Sketch, experts):
    """An expert's factor follows it: the factors are not all some expert's, and some of them another's."""
    if child.size != len(experts):
        yield SCALES, f"{SCALES} has {child.size} numbers for {len(experts)} experts"
        return
    mine, theirs = plain(child.rows).reshape(-1), plain(source.rows).reshape(-1)
    known = all(any(same(x, y) for y in theirs) for x in mine)
    for e, own in enumerate(experts):
        if known and own and not any(same(mine[e], theirs[i]) for i in own):
            other = next(i for i, y in enumerate(theirs) if same(mine[e], y))
            text = f"number {e} of {SCALES} is that of expert {other}, and the matrices there are those of"
            yield SCALES, f"{text} expert {said(own)}"
            return


def same(a, b) -> bool:
    return bool(np.abs(a - b).max() <= NEAR * np.abs(b).max())


def said(own: tuple[int, ...]) -> str:
    return " + ".join(map(str, own))


def relations(found: Routing, source: Mapping[str, Sketch]) -> dict[str, Relation]:
    """Leaf -> what each of the four tensors is."""
    merged = any(len(own) > 1 for own in found.experts)
    out = {}
    for leaf in (*STACKS, ROUTER, SCALES):
        faulty = any(tensor == leaf for tensor, _ in found.faults)
        new = sum(not own for own in found.experts)
        how = "astray" if faulty else "merged" if merged else "kept"
        out[leaf] = Relation(
            "experts", found.parent, source[leaf].name, axis="rows", new=new, how=how, experts=found.experts
        )
    return out
