"""Compare two dumps point by point, and say where they first part.

`a` is the reference and `b` the candidate.  With a floor (floor.py) a point is BIT-EXACT, NOISE, SUSPECT or FAULT by
the size of its errors against that of rounding alone; INHERITED where it is off but reads a point that is, so that the
error may come from there (`replay` tells); TIE where noise turned a choice; NON-FINITE, UNMEASURED or NOT COMPARABLE
where there is no number.  Without a floor a table of tolerances decides: SAME, DIFFERS, MISSING or NOT COMPARABLE.

A point that one dump should have and does not is never a pass.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np

from numgemma.debug.blame.inherit import hands_on
from numgemma.debug.compare import hints
from numgemma.debug.compare.name_map import NameMap, aligned
from numgemma.debug.compare.precheck import DIFFERS as OTHER
from numgemma.debug.compare.precheck import UNKNOWN, precheck
from numgemma.debug.compare.result import (
    BAD,
    BIT_EXACT,
    DIFFERS,
    FAULT,
    GOOD,
    INHERITED,
    LOGITS,
    MISSING,
    NON_FINITE,
    NOT_COMPARABLE,
    SAME,
    TIE,
    UNMEASURED,
    Diff,
    PointDiff,
)
from numgemma.debug.compare.scoring import Bench, Limits, bench, from_table, score, state_of, widened, with_step
from numgemma.debug.compare.third_run import Truth, check_truth
from numgemma.debug.compare.words import render, verdict
from numgemma.debug.measure import logits, metrics, overlap
from numgemma.debug.measure.discrete import SIGMAS, flips_of_experts, layer_of, touched
from numgemma.debug.measure.precision import TOLERANCES, coarser, declared, of_run
from numgemma.debug.noise.floor import Floor
from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.trace import selects

__all__ = ["Diff", "PointDiff", "diff", "render", "verdict"]

SAME_NAMES = NameMap()
THREADS = 2  # that measure points
HINTED = 2  # points that are off, and not for another's sake, that hints are looked for


def diff(
    a: Dump,
    b: Dump,
    points: Sequence[str] = ("*",),
    *,
    tolerance: float | None = None,
    floor: Floor | Sequence[Floor] = (),
    truth: Dump | None = None,
    mapping: NameMap = SAME_NAMES,
    allow_missing: Sequence[str] = (),
) -> Diff:
    """Compare candidate b with reference a on the points that the globs select.

    tolerance: the relative error to allow where no floor decides, in place of the one for the coarser of the two
    precisions; those for the worst token and channel scale with it.  floor: of the precision of each dump that rounds
    noticeably.  truth: a third run, to say which side is off.  mapping: names of a -> names of b.  allow_missing:
    globs of points that need not be in both.
    Raises InputError for a precision that has no tolerances, and for a floor of another run.
    """
    floors = (floor,) if isinstance(floor, Floor) else tuple(floor)
    checked = precheck(a, b, mapped=bool(mapping))
    b, left_out = aligned(a, b, mapping) if mapping else (b, 0)
    table = coarser(*map(declared, (a, b)))
    runs = tuple(of_run(dump) for dump in (a, b)) if floors or truth is not None else ()
    bank = bench(floors, runs) if floors else None
    check_floors(floors, a, b)
    if truth is not None:
        check_truth(truth, a)
    about = {
        "warnings": [f.says for f in checked.findings if f.state == OTHER and not f.fatal and f.what != "precision"]
        + [f.says for f in checked.findings if f.state == UNKNOWN and f.what == "token ids"],
        "precision": table,
        "tolerance": TOLERANCES[table].rel if tolerance is None else tolerance,
        "engines": (engine(a), engine(b)),
        "layer_kinds": kinds(a) or kinds(b),
        "floor": bank and {"precision": bank.precision, "runs": bank.floors[0].runs, "sides": len(bank.floors)},
        "left_out": left_out,
    }
    names = [name for name in joined(a, b) if selects(points, name) and mapping.compares(name)]
    reason = checked.reason
    if not reason and not any(name in a and name in b for name in names):
        reason = f"no point is in both: A has {len(a)} points, B has {len(b)} (check --points)"
    if reason:
        return Diff(verdict="not comparable", reason=reason, **about)
    third = None if truth is None else Truth(truth, runs, floors)
    return compared(a, b, names, bank, third, mapping, allow_missing, about)


def compared(a, b, names, bank, truth: Truth | None, mapping, allow_missing, about) -> Diff:
    """The comparison of two dumps of one prompt."""
    skipped = {
        side: [name for name in names if name not in dump and not selects(dump.meta.get("coverage", ["*"]), name)]
        for side, dump in (("a", a), ("b", b))
    }
    names = [name for name in names if name not in skipped["a"] + skipped["b"]]
    course = Course(names, near_ties(bank) if bank else {}, a, b)
    channel_floor = TOLERANCES[bank.precision if bank else about["precision"]].channel_floor
    rows = []
    for name, m in zip(names, in_threads(lambda name: measured(name, a, b, channel_floor), names), strict=True):
        p = point(name, m, a, b, bank, course, about["precision"], about["tolerance"])
        if p.state in (MISSING, UNMEASURED) and selects(allow_missing, name):
            p = replace(p, allowed=True)
        if truth and p.rel is not None:
            p = replace(p, truth=truth.sides(name, a, b))
        if mapping and mapping.in_b(name) != name:
            p = replace(p, name_b=mapping.in_b(name))
        rows.append(p)
    bad = [p for states in BAD for p in rows if p.state in states and not p.allowed]
    return Diff(
        verdict="differs" if bad else "same",
        first=bad[0].name if bad else None,
        points=rows,
        nonfinite=[p.name for p in rows if p.nonfinite],
        not_recorded=skipped,
        logits=compare_logits(a, b, names, bank, course),
        hints=[hint for p in off(rows)[:HINTED] for hint in looks_like(p, a, b, about["tolerance"])],
        **about,
    )


class Course:
    """What has happened on the way through the points: who is at fault, and which tokens chose other experts."""

    def __init__(self, names, near, a, b):
        """near: layer -> tokens whose experts noise may turn."""
        self.names, self.near = set(names), near
        self.faults: list[str] = []
        self.flips: dict[int, list[int]] = {}
        told = {layer_of(name) for name in a if name.endswith("router.ids") and name in b}
        self.possible = {layer: tokens for layer, tokens in near.items() if layer not in told}

    def arrive(self, name):
        """Flips that no dump recorded, but noise may have caused, count from their layer on."""
        layer = layer_of(name)
        for where in [w for w in self.possible if (layer is None and name in LAST) or (layer or -1) >= w]:
            self.flips.setdefault(where, self.possible.pop(where))

    def inherits(self, name):
        return any(hands_on(fault, name, self.names) for fault in self.faults)

    def displaced(self, name, tokens):
        """Tokens that both runs may have the same earlier flip in: their margins are not the truth's."""
        layer = layer_of(name)
        before = {where: near for where, near in self.near.items() if layer is None or where < layer}
        return touched(name, before, tokens)


LAST = ("norm", "lm_head", "logits")


def near_ties(bank: Bench):
    """Layer -> tokens whose experts noise may turn."""
    found: dict[int, list[int]] = {}
    for choice in {name for floor in bank.floors for name in floor.close} - {"logits"}:
        tokens = {t for floor in bank.floors for t in floor.close.get(choice, ())}
        if near := sorted(t for t in tokens if bank.sigmas(choice, t) < SIGMAS):
            found[layer_of(choice) or 0] = near
    return found


def in_threads(work, names):
    """work(name) of each, in order: NumPy lets others run while it computes, and the disk is read meanwhile."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(work, names)


def point(name, m, a, b, bank: Bench | None, course: Course, precision, tolerance) -> PointDiff:
    """The state and numbers of one point.  m: what `measured` returned"""
    if name not in a or name not in b:
        missing = f"missing in {'A' if name not in a else 'B'}"
        return without_numbers(name, UNMEASURED if bank else MISSING, missing, a, b)
    x, axes, y, axes_y = overlap.both(name, a, b)
    for what, of_a, of_b in (("shape", list(x.shape), list(y.shape)), ("axes", axes, axes_y)):
        if of_a != of_b:
            return without_numbers(name, NOT_COMPARABLE, f"{what} {of_a} in A and {of_b} in B", a, b)
    if m is None:
        return integers(name, x, y, axes, bank, course)
    row = TOLERANCES[bank.precision if bank else precision]
    least = metrics.least_tolerance(m, row)
    if m.rel is None and not m.nonfinite and (overlap.part(a, name) or overlap.part(b, name)):
        return PointDiff(name=name, state=UNMEASURED if bank else MISSING, reason="no value of it is in both")
    if bank:
        return by_floor(name, m, least, a, b, axes, bank, course)
    state = SAME if least is not None and least <= tolerance else DIFFERS
    return PointDiff(**vars(m), name=name, state=state, tolerance=tolerance, tolerance_that_passes=least)


def measured(name, a, b, channel_floor):
    """The numbers of a floating point tensor, whole or known in part, the weights of experts in one order.

    None where the dumps have no such tensor in common.
    """
    if name not in a or name not in b:
        return None
    x, axes, y, axes_y = overlap.both(name, a, b)
    if x.shape != y.shape or axes != axes_y or x.dtype.kind in "iub" or y.dtype.kind in "iub":
        return None
    if overlap.part(a, name) or overlap.part(b, name):
        return overlap.measure(name, a, b, channel_floor)
    if name.endswith("router.weights"):
        x, y = metrics.in_one_order(name, a, b)
        return metrics.measure(x, y, a.axes[name], channel_floor)
    return metrics.measure(x, y, axes, channel_floor)


def integers(name, x, y, axes, bank: Bench | None, course: Course) -> PointDiff:
    """Choices and other integers: equal, or judged by how near the choice was."""
    any_order = name.endswith("router.ids")
    m = metrics.measure_exact(x, y, axes, any_order)
    if bank is None or m.rel is None:
        state = (NON_FINITE if bank else DIFFERS) if m.rel != 0 else SAME
        return PointDiff(**vars(m), name=name, state=state, tolerance=0.0, tolerance_that_passes=m.rel)
    state, reason = BIT_EXACT, ""
    if m.rel:
        state, reason = judge_flips(name, flips_of_experts(name, x, y, axes), len(x), bank, course)
    return PointDiff(**vars(m), name=name, state=state, reason=reason, tolerance=0.0, tolerance_that_passes=m.rel)


def judge_flips(name, flips, tokens, bank: Bench, course: Course):
    """Whether tokens that chose others were free to do so.  -> state, reason"""
    gone, displaced = touched(name, course.flips, tokens), course.displaced(name, tokens)
    fresh = [t for t in flips if not gone[t] and (bank.sigmas(name, t) < SIGMAS or not displaced[t])]
    far = [t for t in fresh if bank.sigmas(name, t) >= SIGMAS]
    if name.endswith("router.ids"):
        course.flips[layer_of(name) or 0] = flips
    some = ", ".join(map(str, (far or fresh or flips)[:5]))
    if not fresh:
        return INHERITED, f"tokens {some} choose otherwise after an earlier flip"
    if not far:
        return TIE, f"tokens {some} choose otherwise, between two that are nearly equal"
    if course.inherits(name):
        return INHERITED, f"tokens {some} choose otherwise"
    course.faults.append(name)
    return FAULT, f"tokens {some} choose otherwise, and not for noise"


def by_floor(name, m, least, a, b, axes, bank: Bench, course: Course) -> PointDiff:
    """The state of a floating point tensor, by the size of its errors against the floor."""
    course.arrive(name)
    common = {"name": name, "tolerance_that_passes": least}
    if m.rel is None:
        course.faults.append(name)
        return PointDiff(**vars(m), **common, state=NON_FINITE)
    limits = limits_of(name, m, a, b, axes, bank)
    xfloor, by = score(m, limits)
    state, reason = state_of(m, xfloor), ""
    gone = tokens_gone(name, a, b, axes, bank, course)
    if gone.any() and state not in GOOD:
        state, xfloor, by, limits, reason = beside_flips(name, m, a, b, axes, gone, limits, bank)
    if state == FAULT:
        if course.inherits(name):
            state = INHERITED
        else:
            course.faults.append(name)
    return PointDiff(**vars(m), **common, state=state, reason=reason, xfloor=xfloor, by=by, floor=asdict(limits))


def limits_of(name, m, a, b, axes, bank: Bench, rough=False) -> Limits:
    """What noise alone makes of this point; by the table of tolerances where the floor does not have it."""
    limits = bank.limits(name, rough) or from_table(TOLERANCES[bank.precision])
    if not (overlap.whole(a, name) and overlap.whole(b, name)):
        limits = for_few(limits, overlap.both(name, a, b)[0], axes)
    return with_step(limits, m, max(overlap.step(dump, name) for dump in (a, b)))


def for_few(limits: Limits, x, axes) -> Limits:
    """Limits for an array that is only a part of the point."""
    token, channel = metrics.split_axes(axes)
    sizes = [max(1, int(np.prod([x.shape[i] for i in kept]))) for kept in (token, channel)]
    return widened(limits, [x.size, *(x.size // n for n in sizes)])


def tokens_gone(name, a, b, axes, bank: Bench, course: Course):
    """Tokens of a point that a flip has changed, here or in the floor's runs; none where it is known in part."""
    token, _ = metrics.split_axes(axes)
    if not token or overlap.part(a, name) or overlap.part(b, name):
        return np.zeros(1, bool)
    gone = touched(name, course.flips, a[name].shape[token[0]])
    gone[bank.reach(name) :] |= bank.reach(name) is not None
    ids = name.removesuffix("weights") + "ids"
    if name.endswith("router.weights") and ids in a and ids in b:  # they are recorded before the ids
        gone[flips_of_experts(ids, a[ids], b[ids], a.axes[ids])] = True
    return gone


def beside_flips(name, m, a, b, axes, gone, limits, bank: Bench):
    """Judge a point by the tokens that no flip has touched.  -> state, xfloor, by, limits, reason

    Where there are none left, by the floor of runs that had flips too; without such, nothing can be said.
    """
    reason = "tokens that chose other experts are judged apart"
    token, _ = metrics.split_axes(axes)
    if gone.all():
        limits = limits_of(name, m, a, b, axes, bank, rough=True)
        xfloor, by = score(m, limits)
        state = state_of(m, xfloor)
        return state if bank.rough(name) or state in GOOD else INHERITED, xfloor, by, limits, "all after a flip"
    x, y = metrics.in_one_order(name, a, b)
    x, y = (np.compress(~gone, side, axis=token[0]) for side in (x, y))
    limits = for_few(limits, x, axes)
    clean = metrics.measure(x, y, axes, TOLERANCES[bank.precision].channel_floor)
    xfloor, by = score(clean, limits)
    state = state_of(clean, xfloor)
    return INHERITED if state in GOOD else state, xfloor, by, limits, reason


def without_numbers(name, state, reason, a, b):
    """A point that cannot be compared; its values are still searched for NaN and infinity."""
    sides = tuple(side for side, d in (("a", a), ("b", b)) if name in d and metrics.first_nonfinite(d[name]))
    return PointDiff(name=name, state=state, reason=reason, nonfinite=sides)


def compare_logits(a, b, names, bank: Bench | None, course: Course):
    """The probabilities that both runs end in, before and after the soft cap, where both have all of them."""
    both = [name for name in LOGITS if name in names and name in a and name in b]
    both = [name for name in both if not (overlap.part(a, name) or overlap.part(b, name))]
    found = []
    for name, compared in zip(both, in_threads(lambda n: logits.compare(a[n], b[n], n), both), strict=True):
        if compared is None:
            continue
        if bank:
            gone = touched("logits", course.flips, compared.tokens)
            near = [f.token for f in compared.flips if gone[f.token] or bank.sigmas("logits", f.token) < SIGMAS]
            kl = bank.kl(name)
            compared = replace(
                compared,
                flips=[replace(f, tie=f.token in near) for f in compared.flips],
                xfloor=(compared.kl_ab / kl) ** 0.5 if kl else None,  # KL grows with the square of the error
            )
        found.append(compared)
    return found


def looks_like(p: PointDiff, a, b, tolerance):
    """Hints on a point that is off."""
    if p.rel is None or overlap.part(a, p.name) or overlap.part(b, p.name):
        return []
    limit = 1.5 * p.floor["rel"] if p.floor else tolerance
    return hints.hints(p.name, a, b, a.axes[p.name], limit)


def off(rows):
    return [p for p in rows if p.state in (FAULT, DIFFERS) and p.tolerance != 0.0 and p.rel]


def joined(a, b):
    """Names of both dumps in order of execution: a's order, and what only b has after its last common predecessor."""
    after: dict[str | None, list[str]] = {}
    last = None
    for name in b:
        if name in a:
            last = name
        else:
            after.setdefault(last, []).append(name)
    return after.get(None, []) + [n for name in a for n in (name, *after.get(name, ()))]


def check_floors(floors, a, b):
    """A floor belongs to one prompt, its pictures and sound, and one checkpoint."""
    given = [dump.meta["inputs"] for dump in (a, b) if "inputs" in dump.meta]
    for floor in floors:
        if given and floor.inputs not in given:
            raise InputError(
                "the floor is of other pictures or sound than the dumps; measure one with `numgemma floor`."
            )
        for dump in (a, b):
            ids = dump.meta.get("ids")
            if ids is not None and list(ids) != list(floor.ids):
                raise InputError("the floor is of another prompt than the dumps; measure one with `numgemma floor`.")
        configs = {(dump.meta.get("model") or {}).get("config") for dump in (a, b)} - {None}
        if configs and floor.model.get("config") not in configs:
            raise InputError("the floor is of another model than the dumps; measure one with `numgemma floor`.")


def engine(dump):
    found = dump.meta.get("engine") or {}
    words = (found.get("name", ""), found.get("version", ""), dump.meta.get("precision", ""))
    return " ".join(word for word in words if word)


def kinds(dump):
    return (dump.meta.get("model") or {}).get("layer_kinds") or []
