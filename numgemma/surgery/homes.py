"""Where a layer of the child is from as a whole, and what that decides between equals.

Of several tensors with the same bytes, the one is meant in the layer that the others of its own layer are from.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from numgemma.surgery.partners import scope, stem
from numgemma.surgery.relations import FRESH, Relation
from numgemma.surgery.sketch import Sketch

Home = tuple[str, str]  # a parent, and a scope in it


def decoder_layer(scope: str) -> int | None:
    found = re.fullmatch(r"(?:decoder\.)?layers\.(\d+)", scope)
    return int(found[1]) if found else None


def home_layers(options: dict[str, list[Relation]], child: Mapping[str, Sketch]) -> dict[str, Home]:
    """Scope of the child -> where at least half of it is from; of equals, what goes on from the layer before."""
    votes: dict[str, Counter[Home]] = defaultdict(Counter)
    for name, some in options.items():
        for home in dict.fromkeys(home for r in some for home in homes_of(r)):
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


def homes_of(r: Relation) -> list[Home]:
    """The layers that a tensor is from: of a mixture, all that are in it."""
    shares = [(share.parent, scope(share.source)) for share in r.shares]
    return [*([(r.parent, scope(r.source))] if r.parent and r.source else []), *shares]


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

    best = min(options, key=rank, default=FRESH)
    also = {r.parent for r in options if r.parent != best.parent and (r.exact, r.kind) == (best.exact, best.kind)}
    return replace(best, also=tuple(sorted(map(str, also)))) if also else best
