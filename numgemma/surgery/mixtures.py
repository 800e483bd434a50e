"""What a tensor is, where no single source explains it: the ways in which people mix, from the simplest on.

A way is believed only where it leaves what rounding leaves; where none does, nothing is said.  The order matters where
several would do: a sum of whole tensors, then sums by rows, thinned differences to a base, a difference of few
directions.
"""

from collections.abc import Sequence
from itertools import combinations

from numgemma.surgery.edits import edited
from numgemma.surgery.mixture import EXPLAINED, Source, blend, blend_by_rows, distinct
from numgemma.surgery.relations import ENOUGH, Relation
from numgemma.surgery.rounding import is_float
from numgemma.surgery.sketch import Sketch
from numgemma.surgery.thinned import MOST as MODELS
from numgemma.surgery.thinned import thinned

MOST = 8  # sources of one tensor that are tried


def explained(child: Sketch, sources: Sequence[Source], base: str | None, is_copy: bool) -> Relation | None:
    """The child's tensor as a mixture of these, or an edit of one of them.

    base: which parent differences are to.  is_copy: it may be one, within rounding, and only a sum can be better.
    """
    if not is_float(child) or child.distinct < ENOUGH:
        return None
    ranked = sorted((s for s in sources if is_float(s[1])), key=lambda s: s[0] != base)  # of equals, the base
    several = distinct(ranked)[:MOST]
    found = blend(child, several) if len(several) > 1 else None
    if is_copy or (found and found.error <= EXPLAINED * found.floor):
        return found
    if child.width > 1:
        for way in (by_rows, thinned_over, of_low_rank):
            if other := way(child, several, base):
                return other
    elif other := thinned_over(child, several, base):
        return other
    return found


def by_rows(child, several, base):
    return blend_by_rows(child, several) if len(several) > 1 else None


def thinned_over(child, several, base):
    """Over the base that is told; without one, over each parent in turn: of one other, of two, of three."""
    named = [s for s in several if s[0] == base]
    for one in named or several:
        others = [s for s in several if s is not one]
        for count in range(1, MODELS + 1):
            for some in combinations(others, count):
                if found := thinned(child, one, some):
                    return found
    return None


def of_low_rank(child, several, base):
    found = [r for s in several if (r := edited(child, s))]
    return min(found, key=lambda r: r.rank, default=None)
