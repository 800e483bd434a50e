"""What one point is called, here: FAULT, INHERITED, TIE, NOISE, ... where a floor was measured, else SAME or DIFFERS.

The points come in order of execution, and `Course` keeps what happened on the way: which points are at fault, so that
what is computed from them is INHERITED, and which tokens chose other experts, so that they are judged apart: what
only they explain is INHERITED too.  (A replay marks its steps INHERITED by a run of its own: blame/replay.py.)
"""

from dataclasses import asdict, replace

import numpy as np

from numgemma.debug.compare.pair import Pair
from numgemma.debug.compare.result import (
    BIT_EXACT,
    DIFFERS,
    FAULT,
    GOOD,
    INHERITED,
    MISSING,
    NON_FINITE,
    NOT_COMPARABLE,
    SAME,
    TIE,
    UNMEASURED,
    PointDiff,
)
from numgemma.debug.compare.scoring import Bench, Limits, from_table, score, state_of, widened, with_step
from numgemma.debug.measure import metrics
from numgemma.debug.measure.discrete import SIGMAS, Place, flips_of_experts, place_of, touched
from numgemma.debug.measure.precision import TOLERANCES, Tolerance
from numgemma.graph import Graph, unstacked

LAST = ("norm", "lm_head", "logits")


class Course:
    """What has happened on the way through the points: who is at fault, and which tokens chose other experts."""

    def __init__(self, graph: Graph, near, told=()):
        """near: place -> tokens whose experts noise may turn.  told: places whose experts both dumps recorded"""
        self.graph, self.near = graph, near
        self.faults: list[str] = []
        self.flips: dict[Place, list[int]] = {}
        self.possible = {place: tokens for place, tokens in near.items() if place not in told}

    def arrive(self, name):
        """Flips that no dump recorded, but noise may have caused, count from their layer on."""
        place, last = place_of(name), unstacked(name) in LAST
        for where in [w for w in self.possible if last or place >= w]:
            self.flips.setdefault(where, self.possible.pop(where))

    def fault_or_inherited(self, name) -> str:
        """FAULT, or INHERITED where a point that is at fault hands its error on to this one."""
        if any(self.graph.hands_on(fault, name) for fault in self.faults):
            return INHERITED
        self.faults.append(name)
        return FAULT

    def touched(self, name, tokens):
        """Which tokens of a point a flip before it has changed."""
        return touched(name, self.flips, tokens, self.graph)

    def displaced(self, name, tokens):
        """Tokens that both runs may have the same earlier flip in: their margins are not the truth's."""
        place = place_of(name)
        before = {where: near for where, near in self.near.items() if not place[2] or where < place}
        return touched(name, before, tokens, self.graph)


def told_by(bank: Bench | None) -> dict | None:
    """The config.json of the model whose floor it is."""
    return next((floor.model.get("config_json") for floor in bank.floors), None) if bank else None


def near_ties(bank: Bench | None) -> dict[Place, list[int]]:
    """Place -> tokens whose experts noise may turn."""
    found: dict[Place, list[int]] = {}
    floors = bank.floors if bank else ()
    for choice in {name for floor in floors for name in floor.close} - {"logits"}:
        tokens = {t for floor in floors for t in floor.close.get(choice, ())}
        if bank and (near := sorted(t for t in tokens if bank.sigmas(choice, t) < SIGMAS)):
            found[place_of(choice)] = near
    return found


def by_table(pair: Pair, row: Tolerance, tolerance: float) -> PointDiff:
    """The state and numbers of one point, by a table of tolerances.  tolerance: the relative error to allow"""
    m = pair.measure
    if pair.apart:
        return pair.without_numbers(MISSING if pair.missing else NOT_COMPARABLE, pair.apart)
    if pair.choices:
        state = SAME if m.rel == 0 else DIFFERS
        return PointDiff(**vars(m), name=pair.name, state=state, tolerance=0.0, tolerance_that_passes=m.rel)
    if pair.unknown:
        return PointDiff(name=pair.name, state=MISSING, reason=UNKNOWN)
    least = metrics.least_tolerance(m, row)
    state = SAME if least is not None and least <= tolerance else DIFFERS
    return PointDiff(**vars(m), name=pair.name, state=state, tolerance=tolerance, tolerance_that_passes=least)


UNKNOWN = "no value of it is in both"


def by_floor(pair: Pair, bank: Bench, course: Course) -> PointDiff:
    """The state and numbers of one point, by the size of its errors against those of noise alone."""
    if pair.apart:
        return pair.without_numbers(UNMEASURED if pair.missing else NOT_COMPARABLE, pair.apart)
    if pair.choices:
        return of_choices(pair, bank, course)
    if pair.unknown:
        return PointDiff(name=pair.name, state=UNMEASURED, reason=UNKNOWN)
    course.arrive(pair.name)
    m = pair.measure
    if m.rel is None:
        course.faults.append(pair.name)
        return PointDiff(**vars(m), name=pair.name, state=NON_FINITE)
    limits = limits_of(pair, bank)
    xfloor, by = score(m, limits)
    state, reason = state_of(m, xfloor), ""
    gone = tokens_gone(pair, bank, course)
    if gone.any() and state not in GOOD:
        state, xfloor, by, limits, reason = beside_flips(pair, gone, limits, bank)
    if state == FAULT:
        state = course.fault_or_inherited(pair.name)
    judged = PointDiff(**vars(m), name=pair.name, state=state, reason=reason, xfloor=xfloor, by=by)
    least = metrics.least_tolerance(m, TOLERANCES[bank.precision])
    return replace(judged, floor=asdict(limits), tolerance_that_passes=least)


# -- experts, and other integers


def of_choices(pair: Pair, bank: Bench, course: Course) -> PointDiff:
    """Integers are equal, or judged by how near the choice was."""
    m = pair.measure
    state, reason = (NON_FINITE if m.rel is None else BIT_EXACT), ""
    if m.rel:
        state, reason = of_flips(pair, bank, course)
    return PointDiff(**vars(m), name=pair.name, state=state, reason=reason, tolerance=0.0, tolerance_that_passes=m.rel)


def of_flips(pair: Pair, bank: Bench, course: Course) -> tuple[str, str]:
    """Whether tokens that chose others were free to do so.  -> state, reason"""
    name, tokens = pair.name, len(pair.values[0])
    flips = flips_of_experts(name, *pair.values, pair.axes)
    gone, displaced = course.touched(name, tokens), course.displaced(name, tokens)
    fresh = [t for t in flips if not gone[t] and (bank.sigmas(name, t) < SIGMAS or not displaced[t])]
    far = [t for t in fresh if bank.sigmas(name, t) >= SIGMAS]
    if name.endswith("router.ids"):
        course.flips[place_of(name)] = flips
    some = f"tokens {', '.join(map(str, (far or fresh or flips)[:5]))} choose otherwise"
    if not fresh:
        return INHERITED, f"{some} after an earlier flip"
    if not far:
        return TIE, f"{some}, between two that are nearly equal"
    state = course.fault_or_inherited(name)
    return state, some if state == INHERITED else f"{some}, and not for noise"


# -- what noise alone makes of a point


def limits_of(pair: Pair, bank: Bench, rough=False) -> Limits:
    """What noise alone makes of this point; by the table of tolerances where the floor does not have it."""
    limits = bank.limits(pair.name, rough) or from_table(TOLERANCES[bank.precision])
    if not pair.whole:
        limits = for_few(limits, pair.values[0], pair.axes)
    return with_step(limits, pair.measure, pair.slack)


def for_few(limits: Limits, x, axes) -> Limits:
    """Limits for an array that is only a part of the point."""
    token, channel = metrics.split_axes(axes)
    sizes = [max(1, int(np.prod([x.shape[i] for i in kept]))) for kept in (token, channel)]
    return widened(limits, [x.size, *(x.size // n for n in sizes)])


# -- beside tokens that chose other experts


def tokens_gone(pair: Pair, bank: Bench, course: Course) -> np.ndarray:
    """Tokens of a point that a flip has changed, here or in the floor's runs; none where it is known in part."""
    token, _ = metrics.split_axes(pair.axes)
    if not (token and pair.whole):
        return np.zeros(1, bool)
    gone = course.touched(pair.name, pair.values[0].shape[token[0]])
    reach = bank.reach(pair.name)
    gone[reach:] |= reach is not None
    gone[list(pair.turned)] = True
    return gone


def beside_flips(pair: Pair, gone, limits: Limits, bank: Bench):
    """Judge a point by the tokens that no flip has touched.  -> state, xfloor, by, limits, reason

    Where there are none left, by the floor of runs that had flips too; without such, nothing can be said.
    """
    if gone.all():
        limits = limits_of(pair, bank, rough=True)
        xfloor, by = score(pair.measure, limits)
        state = state_of(pair.measure, xfloor)
        return state if bank.rough(pair.name) or state in GOOD else INHERITED, xfloor, by, limits, "all after a flip"
    token, _ = metrics.split_axes(pair.axes)
    x, y = (np.compress(~gone, side, axis=token[0]) for side in pair.values)
    limits = for_few(limits, x, pair.axes)
    clean = metrics.measure(x, y, pair.axes, TOLERANCES[bank.precision].channel_floor)
    xfloor, by = score(clean, limits)
    state = state_of(clean, xfloor)
    reason = "tokens that chose other experts are judged apart"
    return INHERITED if state in GOOD else state, xfloor, by, limits, reason
