"""Discrete choices: which experts a token goes to, which token comes next.

Where two candidates are nearly equal, noise alone turns one choice into the other.  Such a flip is a tie and no fault,
and what it changes further on says nothing about the rounding there: those tokens are judged apart.
"""

import re

import numpy as np

from numgemma.debug.measure.metrics import unequal_tokens
from numgemma.graph import unstacked

SIGMAS = 3  # a flip is a tie where the true margin is less than so many standard deviations of its noise
NOTED = 6  # margins up to so many are kept in a floor


def layer_of(name) -> int | None:
    """The decoder layer of a point; None outside the layers."""
    found = re.match(r"layers\.(\d+)\.", unstacked(name))
    return int(found[1]) if found else None


def leaf_of(name):
    """The name inside its layer."""
    return re.sub(r"^layers\.\d+\.", "", unstacked(name))


Place = tuple[bool, int, str]  # whether it is of a stack that reads another, the number of the layer, its scope


def place_of(name) -> Place:
    """Which layer a point is of, in the order in which they run; those outside come before all."""
    found = re.match(r"((decoder\.|encoder\.language_model\.|)layers\.(\d+))\.", name)
    return (found[2] == "decoder.", int(found[3]), found[1]) if found else (False, -1, "")


def touched(name, flips, tokens, graph):
    """Which tokens of a point a flip before it has changed.  flips: place -> token numbers  ->  T, True where touched

    A layer's choice changes the same tokens alone; attention carries it to later ones from the next layer on.  Where it
    is causal, what lies before the first flip is untouched everywhere; a canvas sees all.
    """
    mask = np.zeros(tokens, bool)
    for place, where in flips.items():
        router = f"{place[2]}.router"
        if name == f"{router}.weights" or graph.hands_on(f"{router}.ids", name):
            causal = stack_of(name) == stack_of(router) != "decoder."
            mask[list(where) if place == place_of(name) else slice(min(where) if causal else None, None)] = True
    return mask


def stack_of(name):
    return name.removesuffix(unstacked(name))


def flips_of_experts(name, a, b, axes):
    """Tokens of a point that chose others; the order in which experts are listed does not count."""
    return [int(t) for t in np.flatnonzero(unequal_tokens(a, b, axes, name.endswith("router.ids")))]


def margins(scores, chosen):
    """How far the last chosen candidate lies above the first that was not.  scores: T E  ->  T, and the two: T 2"""
    order = np.argsort(-np.asarray(scores, np.float64), axis=-1, kind="stable")[:, chosen - 1 : chosen + 1]
    return gap(scores, order), order


def gap(scores, pair):
    """Score of the first of two candidates above the second.  scores: T E   pair: T 2  ->  T"""
    both = np.take_along_axis(scores, pair, -1).astype(np.float64)
    return both[:, 0] - both[:, 1]


def close_calls(margin, gaps):
    """Tokens whose choice noise may turn: token -> margin in standard deviations.  margin: T   gaps: runs T, with NaN

    gaps: the same margins in runs with noise; NaN where an earlier flip had touched the token.  A token's deviation is
    taken to be at least that of the median token, for a handful of runs may agree by chance.
    """
    counts = np.isfinite(gaps).sum(0)
    squares = np.nansum((gaps - margin) ** 2, axis=0)
    own = np.sqrt(squares / np.maximum(counts, 1))
    usual = float(np.median(own[counts > 0])) if (counts > 0).any() else 0.0
    sigma = np.where(counts > 0, np.maximum(own, usual), np.inf)  # never seen untouched: anything may happen
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(margin == 0, 0.0, margin / sigma)
    return {int(t): float(ratio[t]) for t in np.flatnonzero(ratio < NOTED)}
