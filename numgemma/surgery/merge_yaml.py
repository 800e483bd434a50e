"""The recipe of an element-wise merge as mergekit's YAML, where mergekit can say it.

A parameter is one number, or a list of filters, each with a number or with one number for each layer: mergekit takes
the first filter that is part of a tensor's name, and of a list of L numbers the i-th for layer i of L.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np

from numgemma.errors import InputError
from numgemma.surgery.certain import ABOUT, confidence
from numgemma.surgery.homes import decoder_layer
from numgemma.surgery.lineage import Lineage
from numgemma.surgery.partners import scope
from numgemma.surgery.recipe import quoted
from numgemma.surgery.relations import Relation

METHODS = {"ties": "ties", "dare": "dare_linear", "dare, elected": "dare_ties"}
SAME = 0.01  # by which numbers differ that are written as one
Number = Callable[[Relation], float]


def is_merge(found: Lineage) -> bool:
    """Whether tensors were mixed, element by element."""
    return any(r.kind in ("blend", "thinned") for r in found.tensors.values())


def to_mergekit(found: Lineage, name: str) -> str:
    """The YAML of which `mergekit-yaml` makes this child, but for what it draws at random and how it rounds.

    Raises InputError with the first tensor that mergekit would not make.
    """
    for tensor, r in found.tensors.items():
        if reason := beyond(tensor, r, found):
            raise InputError(f"{found.child}: is no merge that mergekit can say, for {tensor} {reason}; no recipe.")
    method = method_of(found)
    models = [parent for parent in found.parents if parent != found.base or method in ("linear", "slerp")]
    lines = [f"# mergekit-yaml {name} DIR, then: numgemma lint DIR", f"merge_method: {method}"]
    if method == "slerp":
        models = [share.parent for share in next(r for r in found.tensors.values() if r.t is not None).shares]
    if method != "linear":
        lines.append(f"base_model: {quoted(models[0] if method == 'slerp' else str(found.base or base_of(found)))}")
    lines.append("models:")
    for model in models:
        lines.append(f"- model: {quoted(model)}")
        if method != "slerp":
            lines += ["  parameters:", *parameter("weight", found, partial(weight, model), "    ")]
        if method in METHODS.values():
            lines += parameter("density", found, partial(density, model), "    ")
    lines += ["parameters:", *whole(method, found, models)]
    return "\n".join([*lines, f"dtype: {found.dtype}"]) + "\n"


def whole(method: str, found: Lineage, models: list[str]) -> list[str]:
    """Parameters of the merge as such."""
    if method == "slerp":
        return parameter("t", found, lambda r: point(r, models), "  ")
    thin = [r for r in found.tensors.values() if r.kind == "thinned"]
    normal = method == "ties" and all(abs(sum(share.weight for share in r.shares) - 1) < SAME for r in thin)
    lam = [r.scale for r in thin if abs(r.scale - 1) > 0.02]
    return [f"  normalize: {str(normal).lower()}", *([f"  lambda: {short(float(np.median(lam)))}"] if lam else [])]


def beyond(tensor: str, r: Relation, found: Lineage) -> str | None:
    """Why mergekit would not make a tensor of tensors in the same place."""
    if r.kind not in ("copy", "blend", "thinned"):
        return f"is {r.kind}"
    if r.how in ("rows", "slerp by rows", "largest", "some"):
        return f"is mixed by {r.how}, which no method of it does"
    if confidence(r) == ABOUT:
        return f"is {r.error:.0%} off"
    moved = [s for s in (r.source, *(share.source for share in r.shares)) if s != tensor]
    return f"is from {moved[0]}" if moved else None


def method_of(found: Lineage) -> str:
    thinned = {METHODS[r.how] for r in found.tensors.values() if r.kind == "thinned"}
    slerps = any(r.t is not None for r in found.tensors.values())
    if len(thinned) + slerps > 1:
        raise InputError(f"{found.child}: was made by more than one method; no recipe of mergekit says that.")
    if thinned:
        return thinned.pop()
    if slerps:
        return "slerp"
    blends = [r for r in found.tensors.values() if r.kind == "blend"]
    over = all(found.base in [s.parent for s in r.shares] for r in blends)
    return "task_arithmetic" if found.base and over else "linear"


def base_of(found: Lineage) -> str:
    return next(str(r.parent) for r in found.tensors.values() if r.kind == "thinned")


# the numbers of one tensor


def weight(model: str, r: Relation) -> float:
    if r.kind == "copy":
        return float(model == r.parent)
    return next((share.weight for share in r.shares if share.parent == model), 0.0)


def density(model: str, r: Relation) -> float:
    return next((share.density for share in r.shares if share.parent == model), 1.0)


def point(r: Relation, models: list[str]) -> float:
    """t of a slerp; of vectors too alike for an angle, the share of the second."""
    return r.t if r.t is not None else weight(models[1], r)


def parameter(key: str, found: Lineage, number: Number, indent: str) -> list[str]:
    """One number for all, or filters by name: the rest of a kind's tensors follow the value that is most frequent."""
    leaves: dict[str, dict[int, float]] = defaultdict(dict)
    for name, r in found.tensors.items():
        if r.also and r.kind == "copy":
            continue  # the same in all, whatever their weights
        place = scope(name)
        layer = decoder_layer(place)
        leaf = name if layer is None else name.removeprefix(place).removeprefix(".")
        leaves[leaf][-1 if layer is None else layer] = number(r)
    every = np.concatenate([list(by.values()) for by in leaves.values()])
    usual = float(np.median(every))
    if np.abs(every - usual).max() <= SAME:
        return [f"{indent}{key}: {short(usual)}"]
    lines = [f"{indent}{key}:"]
    depth = len(found.slots)
    for leaf, by in sorted(leaves.items(), key=lambda item: -1 in item[1]):  # names within layers first
        held = np.array(list(by.values()))
        if np.abs(held - usual).max() > SAME:
            lines += [f"{indent}- filter: {quoted(leaf)}", f"{indent}  value: {listed(by, depth)}"]
    return [*lines, f"{indent}- value: {short(usual)}"]


def listed(by: dict[int, float], depth: int) -> str:
    """One number, or one for each layer; a layer without such a tensor gets its neighbour's."""
    held = np.array(list(by.values()))
    if np.ptp(held) <= SAME:
        return short(float(np.median(held)))
    return f"[{', '.join(short(by[min(by, key=lambda j: abs(j - i))]) for i in range(depth))}]"


def short(x: float) -> str:
    return f"{x:.4f}".rstrip("0").rstrip(".") if abs(x) >= 5e-5 else "0"
