"""A lineage in a few lines, as its author would tell the recipe: 0.7 a + 0.3 b everywhere but norms, which are a's.

Tensors that were made in one way are one line, and where their weights agree to within what each is known to, the
weights are told once, from all of them: the mean, each counted by 1 / give^2.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from numgemma.surgery.certain import ABOUT, LIKELY, SURE, confidence, give
from numgemma.surgery.edits import highest
from numgemma.surgery.findings import ranges
from numgemma.surgery.homes import decoder_layer
from numgemma.surgery.inventory import component, described, parents_of
from numgemma.surgery.lineage import MIXED, Lineage
from numgemma.surgery.mixture import EXPLAINED
from numgemma.surgery.partners import scope
from numgemma.surgery.relations import Relation

CLOSE = 6e-3  # by which weights may differ that are one
MOST_KINDS = 5  # kinds of tensors that are named before their number is told
FEW = 3  # values that are listed


@dataclass(frozen=True)
class Line:
    """One way in which tensors were made."""

    text: str  # with the parents' names
    where: str  # which tensors, in words
    tensors: tuple[str, ...]
    numbers: int
    error: float  # the largest of them
    confidence: str  # of the least certain, but for a fiftieth of the numbers
    weights: dict[str, float] = field(default_factory=dict)  # of a mixture: parent -> weight, where one holds for all
    densities: dict[str, float] = field(default_factory=dict)  # of thinned differences
    t: float | None = None  # of a slerp


def summary(found: Lineage, labels: dict[str, str]) -> list[Line]:
    """The recipe, what holds for most numbers first.  labels: parent -> how to call it"""
    lines = []
    for names in sorted(groups(found), key=lambda some: -numbers(found, some)):
        relations = [found.tensors[name] for name in names]
        least = of_most(found, names)
        text = told(names, relations, labels, found)
        line = Line(text, "", tuple(names), numbers(found, names), max(r.error for r in relations), least)
        lines.append(replace(line, **as_numbers(relations)))
    return placed(lines, found)


def of_most(found: Lineage, names: list[str]) -> str:
    """How certain a line is: as its tensors are, a few small ones aside."""
    total, worse = numbers(found, names), 0
    for level in (ABOUT, LIKELY):
        worse += numbers(found, [name for name in names if confidence(found.tensors[name]) == level])
        if worse > total / 50:
            return level
    return SURE


def as_numbers(relations: list[Relation]) -> dict:
    """The numbers of a mixture, where they hold for all of these."""
    first = relations[0]
    if not first.shares or len(agreeing(relations)) > 1:
        return {}
    some = pooled(relations)
    if first.t is not None:
        return {"t": float(some[0])}
    parents = [share.parent for share in first.shares]
    found = {"weights": dict(zip(parents, map(float, some[::2]), strict=True))}
    if first.kind == "thinned":
        found["densities"] = dict(zip(parents, map(float, some[1::2]), strict=True))
    return found


@dataclass(frozen=True, eq=False)
class Account:
    """A lineage with its recipe, for machines: the parents under their own names."""

    found: Lineage

    def to_json(self) -> dict[str, Any]:
        lines = summary(self.found, {parent: parent for parent in self.found.parents})
        return self.found.to_json() | {"recipe": [asdict(line) for line in lines]}


def numbers(found: Lineage, names: Iterable[str]) -> int:
    return sum(int(np.prod(found.shapes[name])) for name in names)


# which tensors go together


def groups(found: Lineage) -> list[list[str]]:
    by_way: dict[tuple, list[str]] = defaultdict(list)
    for name, r in found.tensors.items():
        by_way[way(r)].append(name)
    out = []
    for names in by_way.values():
        parts = agreeing([found.tensors[name] for name in names])
        out += [[names[i] for i in part] for part in parts] if len(parts) <= 3 else [names]
    return out


def way(r: Relation) -> tuple:
    """All but the numbers; and the experts, which are themselves the answer."""
    parents = tuple(parents_of(r)) + ((r.parent,) if r.kind == "edited" else ())
    if r.kind == "experts":
        return r.kind, r.how, parents, r.experts
    if r.kind in MIXED:
        return r.kind, r.how, parents, r.axis
    if r.kind == "fresh":
        return r.kind, r.how, r.constant is None
    return "one", described(r), tuple(sorted({*parents, *r.also})), only_near(r)


def only_near(r: Relation) -> bool:
    """Whether rounding does not explain what is left of a copy: it is no copy, however near."""
    return confidence(r) == ABOUT or bool(r.floor and r.error > EXPLAINED * r.floor)


def values(r: Relation) -> np.ndarray:
    if r.kind == "edited":
        return np.array([r.removed if r.removed is not None else 0.0, float(r.removed is not None)])
    if r.t is not None:
        return np.array([r.t])
    return np.array([x for share in r.shares for x in (share.weight, share.density)])


def agreeing(relations: list[Relation]) -> list[list[int]]:
    """Those whose numbers agree, the best known first."""
    found: list[list[int]] = []
    for i in sorted(range(len(relations)), key=lambda i: give(relations[i])):
        here = values(relations[i])
        for part in found:
            slack = max(CLOSE, 4 * give(relations[i]) + 4 * give(relations[part[0]]))
            if np.all(np.abs(here - values(relations[part[0]])) <= slack):
                part.append(i)
                break
        else:
            found.append([i])
    return [sorted(part) for part in found]


def pooled(relations: list[Relation]) -> np.ndarray:
    trust = np.array([give(r) ** -2.0 for r in relations])
    return np.average([values(r) for r in relations], axis=0, weights=trust)


# in words


def told(names: list[str], relations: list[Relation], labels: dict[str, str], found: Lineage) -> str:
    first = relations[0]
    if first.kind not in MIXED:
        return single(relations, labels) + not_edited(names, relations, found)
    if first.kind == "experts":
        return experts_told(first, labels)
    if len(agreeing(relations)) > 1 and first.kind != "edited":
        return varying(names, relations, labels)
    if first.kind == "edited":
        return edit_told(relations, labels)
    return mixture_told(first, pooled(relations), labels, found.base)


def single(relations: list[Relation], labels: dict[str, str]) -> str:
    r = relations[0]
    parents = [labels[p] for p in dict.fromkeys([*parents_of(r), *sorted(r.also)])]
    if r.kind == "fresh":
        values = sorted({x.constant for x in relations if x.constant is not None})
        listed = ", ".join(f"{x:g}" for x in values[:FEW]) + ", ..." * (len(values) > FEW)
        unknown = "not told: too few values, or changed too much" if r.how else "from no parent"
        return f"one value everywhere ({listed}), which says nothing" if values else unknown
    if r.also and r.kind == "copy":
        return f"the same in {' and '.join(parents)}: not told apart"
    text = described(r)
    if r.kind == "changed":
        return f"like {parents[0]}, and changed beyond telling"
    if only_near(r):
        least, most = (f(x.error for x in relations) for f in (min, max))
        return f"nearest to {' + '.join(parents)} ({text}), with {least:.0%} to {most:.0%} not explained"
    return " + ".join(parents) if text == "copy" else f"{text} {' + '.join(parents)}"


def not_edited(names: list[str], relations: list[Relation], found: Lineage) -> str:
    """Of tensors that are near one, and not explained: up to which rank a difference was looked for."""
    near = [n for n, r in zip(names, relations, strict=True) if (r.kind, r.source, confidence(r)) == ("copy", n, ABOUT)]
    least = min((highest(found.shapes[n]) for n in near if len(found.shapes[n]) > 1), default=0)
    return f"; no difference of rank {least} or less" if least else ""


def mixture_told(r: Relation, numbers: np.ndarray, labels: dict[str, str], base: str | None) -> str:
    names = [labels[share.parent] for share in r.shares]
    if r.t is not None:
        return f"{r.how} from {names[0]} to {names[1]}, t = {short(numbers[0])}"
    weights, kept = numbers[::2], numbers[1::2]
    if r.kind == "thinned":
        over = labels[str(r.parent)]
        parts = [
            f"{short(w)} ({n} - {over}), {short(k)} of it kept" for n, w, k in zip(names, weights, kept, strict=True)
        ]
        manner = {
            "ties": "TIES: the largest, signs elected",
            "largest": "the largest",
            "some": "by no rule that is known",
        }
        manner |= {"dare": "DARE: at random, rescaled", "dare, elected": "DARE: at random, rescaled, signs elected"}
        scale = f", all times {short(r.scale)}" if abs(r.scale - 1) > 0.02 else ""
        return f"{summed([over, *parts])} ({manner[r.how]}{scale})"
    if base in [share.parent for share in r.shares] and abs(weights.sum() - 1) < 0.02:
        parts = [
            f"{short(w)} ({n} - {labels[str(base)]})"
            for n, w, share in zip(names, weights, r.shares, strict=True)
            if share.parent != base
        ]
        return summed([labels[str(base)], *parts])
    text = summed([f"{short(w)} {n}" for n, w in zip(names, weights, strict=True)])
    return text + (" on average, with other weights in each row" if r.how == "rows" else "")


def summed(parts: list[str]) -> str:
    """Terms as a sum; one that begins with a minus is taken away."""
    return " + ".join(parts).replace("+ -", "- ")


def short(x: float) -> str:
    return f"{x:.3f}".rstrip("0").rstrip(".") if abs(x) >= 0.0005 else "0"


def varying(names: list[str], relations: list[Relation], labels: dict[str, str]) -> str:
    """Weights that differ from layer to layer: as a list, by branch."""
    first = relations[0]
    what = f"{first.how} from" if first.t is not None else f"{first.how or first.kind} of"
    head = f"{what} {' to '.join(labels[s.parent] for s in first.shares)}"
    if first.t is None and len({len(values(r)) for r in relations}) > 1:
        return head
    rows: dict[str, dict[int, list[Relation]]] = defaultdict(lambda: defaultdict(list))
    for name, r in zip(names, relations, strict=True):
        layer = decoder_layer(scope(name))
        rows[branch(name)][-1 if layer is None else layer].append(r)
    lists = [
        f"{part}: {', '.join(short(pooled(some)[0]) for _, some in sorted(by.items()))}" for part, by in rows.items()
    ]
    what = "t" if first.t is not None else f"weights of {labels[first.shares[0].parent]}"
    return f"{head}, with {what} by layer ({'; '.join(lists)})"


def branch(name: str) -> str:
    leaf = name.removeprefix(scope(name)).removeprefix(".")
    return leaf.split(".")[0] if leaf.startswith(("self_attn", "mlp", "experts")) else "the rest"


def experts_told(r: Relation, labels: dict[str, str]) -> str:
    parent = labels[str(r.parent)]
    if r.how == "merged":
        return f"experts merged from {parent}'s: {'; '.join('+'.join(map(str, own)) or 'new' for own in r.experts)}"
    own = [e[0] if e else None for e in r.experts]
    known = [e for e in own if e is not None]
    listed = ranges(known) if known == sorted(known) else ", ".join("new" if e is None else str(e) for e in own)
    return f"experts {listed} of {parent}" + (", which this tensor does not follow" if r.how == "astray" else "")


def edit_told(relations: list[Relation], labels: dict[str, str]) -> str:
    first = relations[0]
    sizes, ranks = [r.size for r in relations], sorted({r.rank for r in relations})
    size = f"{min(sizes):.2g} to {max(sizes):.2g} of it" if len(relations) > 1 else f"{sizes[0]:.2g} of it"
    parent = labels[str(first.parent)]
    if first.removed is not None:
        what = "writes" if first.how == "rows" else "reads"
        mean = float(np.mean([r.removed for r in relations if r.removed is not None]))
        amount = "all" if abs(mean - 1) < 5e-3 else short(mean)
        return f"{parent}, less {amount} of what it {what} along one direction ({size})"
    listed = ranges(ranks)
    each = " in each expert" if first.axis else ""
    return f"{parent} and a difference of rank {listed}{each} ({size}), as a merged adapter leaves it"


# where


def placed(lines: list[Line], found: Lineage) -> list[Line]:
    """The first line, if it holds for most, is everywhere else than the others are."""
    total, out = sum(line.numbers for line in lines), []
    for i, line in enumerate(lines):
        most = i == 0 and 2 * line.numbers > total and len(lines) > 1
        where = "everywhere" if len(lines) == 1 else "everywhere else" if most else kinds_of(line.tensors, found)
        out.append(replace(line, where=where))
    return out


def kinds_of(names: tuple[str, ...], found: Lineage) -> str:
    """Kinds of tensors, all of a kind or with their layers."""
    every: dict[str, int] = defaultdict(int)
    for name in found.tensors:
        every[component(name)] += 1
    mine: dict[str, list[str]] = defaultdict(list)
    for name in names:
        mine[component(name)].append(name)
    said = [text_of(kind, some, every[kind]) for kind, some in mine.items()]
    more = [f"{len(said) - MOST_KINDS} more kinds"] if len(said) > MOST_KINDS else []
    return ", ".join(said[:MOST_KINDS] + more)


def text_of(kind: str, names: list[str], total: int) -> str:
    name = kind.removeprefix("layers: ")
    if len(names) == total:
        return name
    layers = {decoder_layer(scope(n)) for n in names} - {None}
    return f"{name} of layers {ranges(i for i in layers if i is not None)}" if layers else f"{len(names)} of {name}"
