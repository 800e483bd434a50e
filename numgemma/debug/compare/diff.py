"""Compare two dumps point by point, and say where they first part.

`a` is the reference and `b` the candidate.  With a floor (floor.py) a point is BIT-EXACT, NOISE, SUSPECT or FAULT by
the size of its errors against that of rounding alone; INHERITED where it is off but reads a point that is, so that the
error may come from there (`replay` tells); TIE where noise turned a choice; NON-FINITE, UNMEASURED or NOT COMPARABLE
where there is no number.  Without a floor a table of tolerances decides: SAME, DIFFERS, MISSING or NOT COMPARABLE.

A point that one dump should have and does not is never a pass.
"""

from collections.abc import Sequence
from dataclasses import replace

from numgemma.debug.compare import hints
from numgemma.debug.compare.fitted import fitted
from numgemma.debug.compare.name_map import NameMap, aligned
from numgemma.debug.compare.pair import in_threads, paired
from numgemma.debug.compare.precheck import DIFFERS as OTHER
from numgemma.debug.compare.precheck import UNKNOWN, precheck
from numgemma.debug.compare.result import (
    BAD,
    DIFFERS,
    FAULT,
    GOOD,
    INHERITED,
    LOGITS,
    MISSING,
    UNMEASURED,
    Diff,
    PointDiff,
)
from numgemma.debug.compare.reused import overwritten
from numgemma.debug.compare.scoring import Bench, bench
from numgemma.debug.compare.states import Course, by_floor, by_table, near_ties, told_by
from numgemma.debug.compare.third_run import Truth, check_truth
from numgemma.debug.compare.words import render, verdict
from numgemma.debug.measure import logits, overlap
from numgemma.debug.measure.discrete import SIGMAS, place_of
from numgemma.debug.measure.precision import TOLERANCES, coarser, declared, of_run
from numgemma.debug.noise.floor import Floor
from numgemma.dump import Dump, made_by
from numgemma.errors import InputError
from numgemma.graph import graph_of_dumps, in_order, joined
from numgemma.trace import selects

__all__ = ["Diff", "PointDiff", "diff", "render", "verdict"]

SAME_NAMES = NameMap()
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
    a, b = fitted(a, b)
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
    told = {place_of(name) for name in a if name.endswith("router.ids") and name in b}
    graph = graph_of_dumps(a, b, config=told_by(bank)) if bank else in_order(names)
    course = Course(graph, near_ties(bank), told)
    row = TOLERANCES[bank.precision if bank else about["precision"]]
    rows = []
    for pair in in_threads(lambda name: paired(name, a, b, row.channel_floor), names):
        p = by_floor(pair, bank, course) if bank else by_table(pair, row, about["tolerance"])
        allowed = p.state in (MISSING, UNMEASURED) and selects(allow_missing, p.name)
        sides = truth.sides(p.name, a, b) if truth and p.rel is not None else None
        other = mapping.in_b(p.name) if mapping.in_b(p.name) != p.name else None
        rows.append(replace(p, allowed=allowed, truth=sides, name_b=other))
    bad = [p for states in BAD for p in rows if p.state in states and not p.allowed]
    about["overwritten"] = reused(rows, bad, a, b, about["tolerance"], told_by(bank))
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


def reused(rows, bad, a, b, tolerance, config) -> dict[str, str]:
    """Points of B that hold other points' numbers, where that is all that is wrong."""
    if not bad or any(p.state not in (FAULT, DIFFERS) or p.rel is None or overlap.part(b, p.name) for p in bad):
        return {}
    wrong = {p.name: b[p.name] for p in rows if p.state in (FAULT, DIFFERS, INHERITED) and p.rel}
    right = [p.name for p in rows if p.state in GOOD]
    graph = graph_of_dumps(a, b, config=config)
    return overwritten(wrong, right, ((name, a[name]) for name in a), tolerance, graph.hands_on)


def compare_logits(a, b, names, bank: Bench | None, course: Course):
    """The probabilities that both runs end in, before and after the soft cap, where both have all of them."""
    both = [name for name in LOGITS if name in names and name in a and name in b]
    both = [name for name in both if not (overlap.part(a, name) or overlap.part(b, name))]
    found = []
    for name, compared in zip(both, in_threads(lambda n: logits.compare(a[n], b[n], n), both), strict=True):
        if compared is None:
            continue
        if bank:
            gone = course.touched("logits", compared.tokens)
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
    return " ".join(word for word in (made_by(dump.meta), dump.meta.get("precision", "")) if word)


def kinds(dump):
    return (dump.meta.get("model") or {}).get("layer_kinds") or []
