"""How certain a relation is, in three words: sure, likely, about.

It is judged by what the fit leaves against what rounding leaves, and by what its numbers are known to.  A tensor from
no parent is sure by itself; where the rest of its layer is changed, `followers.py` marks it as not told.
"""

from numgemma.surgery.mixture import EXPLAINED
from numgemma.surgery.relations import Relation

SURE, LIKELY, ABOUT = "sure", "likely", "about"
UNTOLD = "not told"  # `how` of a fresh tensor that may well be of a parent
FINEST = 1e-4  # no weight is known better
FEW_ASKED = 0.045  # what a density is known to within, beyond which no rule is certain: below 500 numbers
GOOD, FAIR = 5e-3, 0.03  # relative error of what rounding was not judged for


def confidence(r: Relation) -> str:
    """sure: rounding explains what is left; likely: nearly; about: a good part of the tensor is not explained."""
    if r.kind == "changed" or (r.kind, r.how) == ("fresh", UNTOLD):
        return ABOUT
    if r.kind == "thinned" and (r.how == "some" or give(r) > FEW_ASKED):
        return LIKELY
    if r.kind in ("copy", "scaled") and r.new:
        return LIKELY
    if r.exact or (r.kind == "fresh") or (r.floor and r.error <= EXPLAINED * r.floor):
        return SURE
    if r.error <= GOOD:
        return SURE if not r.floor else LIKELY
    return LIKELY if r.error <= FAIR else ABOUT


def give(r: Relation) -> float:
    """What the weights and densities of a mixture are known to, the worst of them."""
    return max([FINEST, *(share.give for share in r.shares)])
