"""Whose fault a wrong tensor is: every step of a dump recomputed from the dump's own tensors before it.

A point whose local error is noise was computed rightly, however wrong it is: what is wrong came in.  The first point
with a local fault is where to look.  It needs no other engine, only the checkpoint and the dump.
"""

import re
from dataclasses import dataclass, field, replace

import numpy as np

from numgemma import ops
from numgemma.debug.blame.emulate import PROVEN, Emulation, own_arithmetic
from numgemma.debug.blame.limits import limits_at, size_of
from numgemma.debug.blame.one_step import RUNS, Local, Rerun, fed, fits, local
from numgemma.debug.blame.wiring import Wire, edges
from numgemma.debug.compare.fitted import last_token
from numgemma.debug.compare.result import (
    BIT_EXACT,
    FAULT,
    INHERITED,
    NOISE,
    NON_FINITE,
    SUSPECT,
    TIE,
    UNMEASURED,
    plain,
    short,
)
from numgemma.debug.compare.reused import overwritten
from numgemma.debug.compare.scoring import bench, score, state_of
from numgemma.debug.measure import overlap
from numgemma.debug.measure.metrics import Measure
from numgemma.debug.measure.precision import TOLERANCES, coarser, declared, shown_by_bits
from numgemma.debug.noise.floor import Floor, cached_floor, check_floor
from numgemma.debug.noise.rounding import as_run
from numgemma.dump import Dump, made_by
from numgemma.errors import InputError
from numgemma.notebook import html_table, record
from numgemma.prompt.media import NO_MEDIA
from numgemma.trace import selects

SCHEMA = "numgemma.replay/1"


@dataclass(frozen=True, kw_only=True)
class Step(Measure):
    """One point of the dump: what is wrong with the step that made it.  The numbers of a Measure are the local ones."""

    name: str
    state: str
    reason: str = ""
    xfloor: float | None = None  # the largest of its errors (metrics.gated), in units of the step's noise
    by: str | None = None  # which of them
    floor: dict[str, float] | None = None  # the noise of each
    sources: tuple[str, ...] = ()  # the recorded points that it was computed from
    between: tuple[str, ...] = ()  # points between, which the dump does not have
    edge: Wire | None = None  # an arrow that explains it: it is right of another point than the one that is due
    global_rel: float | None = None  # against numgemma's own run: what was inherited is in it
    global_xfloor: float | None = None

    @property
    def arrow(self):
        """The step by its name, with its sources where it spans several operations."""
        return arrow(self.name, self.sources) if self.between and self.sources else self.name


@dataclass(frozen=True, kw_only=True)
class Graft:
    """What became of the points after one whose tensor was put into numgemma's own run."""

    point: str
    verdict: str
    points: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The steps of a dump, in order of execution, and what they come to."""

    verdict: str
    first: str | None
    points: tuple[Step, ...]
    precision: str
    engine: str = ""
    layer_kinds: tuple[str, ...] = ()
    graft: Graft | None = None
    overwritten: dict[str, str] = field(default_factory=dict)  # points that hold another point's numbers
    proven: bool = False  # a run of the engine's own arithmetic has all of these numbers
    base: Local = field(default_factory=Local, repr=False, compare=False)  # what whatif goes on from

    @property
    def exit_code(self):
        """0 no local fault, 1 a local fault, 4 non-finite values."""
        states = {step.state for step in self.points}
        return 4 if NON_FINITE in states else 1 if FAULT in states else 0

    def bad(self):
        """The steps with a fault of their own; where there is none, those that are suspect."""
        return [s for s in self.points if s.state == FAULT] or [s for s in self.points if s.state == SUSPECT]

    def _repr_html_(self):
        head = ("step", "state", "local error", "times floor", "whole error")
        rows = [(s.arrow, s.state, *map(short, (s.rel, s.xfloor, s.global_rel))) for s in self.points]
        return html_table(self.verdict, head, rows)

    def records(self):
        """A flat dict for each step, in order of execution: what `pandas.DataFrame` takes."""
        return [record({"name": s.name, "state": s.state} | vars(s)) for s in self.points]

    def to_json(self):
        """A tree of plain values; numbers that are not finite, or not defined, are None."""
        head = {"schema": SCHEMA, "verdict": self.verdict, "first": self.first, "precision": self.precision}
        graft = self.graft and {
            "point": self.graft.point,
            "verdict": self.graft.verdict,
            "points": [step_json(s) for s in self.graft.points],
        }
        about = {"engine": self.engine, "overwritten": self.overwritten, "proven": self.proven, "graft": graft}
        return plain(head | about | {"points": [step_json(s) for s in self.points]})


def step_json(step):
    tree = {"name": step.name, "state": step.state, "local_rel": step.rel, "xfloor": step.xfloor} | vars(step)
    tree.pop("rel")
    tree["edge"] = step.edge and vars(step.edge)
    return tree


@ops.using("numpy")  # whose rounding the measured noise perturbs
def replay(model, dump, *, ids=None, media=NO_MEDIA, floor=None, points=("*",), graft=None, told=None) -> Replay:
    """Recompute each step of a dump from the dump's own inputs to it.

    ids: for a dump that carries none.  floor: a debug.floor.Floor, to tell INHERITED from NOISE; measured where it is
    needed and none is given.  points: globs; only these steps are reported.  graft: a point whose tensor is put into
    numgemma's own run, to see whether what comes after recovers.  told(text): called before each run of the model.
    A dump whose run rounded what entered a product is replayed with that rounding (noise/rounding.py).
    Raises InputError where the dump cannot be this model's.
    """
    told = told or (lambda text: None)
    subject = subject_of(model, dump, ids, media)
    found = wired(subject, locally(subject, points, told), told)
    if found.first:
        steps = inherited(subject, found.points, floor_of(subject, floor, told), told)
        found = replace(found, points=steps, verdict=verdict(steps), overwritten=reused(subject, steps))
    return replace(found, graft=grafted(subject, graft, floor_of(subject, floor, told), told)) if graft else found


def reused(subject, steps) -> dict[str, str]:
    """Points of the dump that hold other points' numbers, where that is all that is wrong."""
    limit = TOLERANCES[subject.precision].rel
    wrong = [s.name for s in steps if s.state == FAULT and (s.global_rel or 0.0) > limit and s.name in subject.dump]
    if not wrong or any(not overlap.whole(subject.dump, name) for name in wrong):
        return {}
    right = [s.name for s in steps if s.global_rel is not None and s.global_rel <= limit]
    points: dict[str, np.ndarray] = {}
    sizes = {subject.dump[name].size for name in wrong}
    subject.run("float64", lambda name, y, axes: points.setdefault(name, y) if y.size in sizes else y)
    tensors = {name: subject.dump[name] for name in wrong}
    return overwritten(tensors, right, points.items(), limit, subject.graph.hands_on)


def locally(subject, points=("*",), told=lambda text: None) -> Replay:
    """The local errors alone, which need no run of numgemma's own and no floor of one."""
    base = local(subject, told=lambda run: told(f"step by step, run {run + 1} of {RUNS + 1}"))
    steps = tuple(s for s in judged(subject, base) if selects(points, s.name))
    if not any(s.rel is not None or s.nonfinite for s in steps):
        raise InputError(f"No point of the dump can be recomputed: {unusable(steps)}.")
    own = own_arithmetic(subject.model, subject.dump, subject.ids, subject.media, told)
    steps = excused(steps, own)
    first = first_fault(steps)
    proven = own is not None and own.state == PROVEN and first is None
    return Replay(
        verdict=own.verdict if own and proven else verdict(steps),
        proven=proven,
        first=first.name if first else None,
        points=steps,
        precision=subject.precision,
        engine=made_by(subject.dump.meta),
        layer_kinds=tuple(subject.model.outline.layer_kinds),
        base=base,
    )


def excused(steps, own: Emulation | None):
    """The same steps; where a run of the engine's own arithmetic has its numbers, what looks wrong is NOISE."""
    if own is None or own.state != PROVEN:
        return steps
    known = {p.name for p in own.points}
    right = {"state": NOISE, "reason": "the engine's own arithmetic gives it"}
    return tuple(replace(s, **right) if s.name in known and s.state in (SUSPECT, FAULT) else s for s in steps)


def wired(subject, found, told=lambda text: None) -> Replay:
    """The same, with the wrong arrows behind its local faults where there are any."""
    if not found.first:
        return found
    told("other points in the place of those that are due")
    wrong = edges(subject, found.base, [s for s in found.points if s.state == FAULT])
    steps = tuple(with_edge(s, wrong[s.name]) if s.name in wrong else s for s in found.points)
    return replace(found, points=steps, verdict=verdict(steps))


def with_edge(step, edge):
    return replace(step, edge=edge, reason=f"{step.reason}; {edge}" if step.reason else str(edge))


def first_fault(steps):
    return next((s for s in steps if s.state in (FAULT, NON_FINITE)), None)


def subject_of(model, dump, ids=None, media=NO_MEDIA) -> Rerun:
    """A dump and the model to recompute it with.  Raises InputError where they cannot belong together."""
    ids = dump.meta.get("ids") if ids is None else ids
    if ids is None:
        raise InputError("The dump does not say which token ids were run; give them with --ids.")
    positions = dump.meta.get("positions")
    if positions is not None and list(positions) != list(range(len(ids))):
        raise InputError("The dump's positions do not start at 0 and count up; replay needs the whole sequence.")
    media = model.media_of(dump) if media is NO_MEDIA else media
    model = replace(model, config=model.family.as_run(model.config, dump))
    dump = as_run(dump, model)
    return Rerun(model, last_token(dump, len(ids)), np.asarray(ids), precision_of(dump), media)


def precision_of(dump) -> str:
    """The precision that the dump declares, or the coarser one that nearly all of its values show.

    That some operations round more than the rest is no precision, but a fault to be found.
    """
    shown = [p for p in (shown_by_bits(dump[name]) for name in dump) if p]
    coarse = max(set(shown), key=shown.count, default=declared(dump))
    unanimous = shown.count(coarse) >= 0.9 * len(shown)
    return coarser(declared(dump), coarse) if unanimous else coarser(declared(dump))


def unusable(steps):
    """Why, from the first of them."""
    return f"at {steps[0].name}, {steps[0].reason}" if steps else "it has none that --points selects"


# -- local


def judged(subject, base):
    """A Step for every point of the dump, by local error alone; what the model never computed comes last."""
    dump = subject.dump
    order = [n for n in base.axes if n in base.errors] + [n for n in dump if n not in base.errors]
    place = {name: i for i, name in enumerate(order)}
    for name in order:
        sources, between = subject.graph.step(name, dump)
        way = {"name": name, "sources": tuple(sorted(sources, key=lambda s: place[s])), "between": tuple(between)}
        if name not in base.errors:
            reason = base.reasons.get(name, "numgemma has no such point in this model")
            yield Step(state=UNMEASURED, reason=reason, **way)
        elif base.errors[name].rel is None:
            reason = "" if base.errors[name].nonfinite else "values too large to compare"
            yield Step(state=NON_FINITE, reason=reason, **way, **vars(base.errors[name]))
        else:
            yield scored(subject, base, name, way)


def scored(subject, base, name, way):
    m, reason = base.errors[name], base.reasons.get(name, "")
    xfloor, by = size_of(subject, base, name)
    state = TIE if reason.endswith("a tie") and xfloor == 0 else state_of(m, xfloor)
    return Step(
        state=state, reason=reason, xfloor=xfloor, by=by, floor=vars(limits_at(subject, base, name)), **way, **vars(m)
    )


# -- what was inherited


def floor_of(subject, floor, told) -> Floor:
    """The floor of the whole run: the one given, or measured now.  Raises InputError where it is of another run."""
    if isinstance(floor, Floor):
        check_floor(floor, subject.ids, subject.media)
        return floor
    model = replace(subject.model, dtype=np.dtype("float32"))
    media = {} if subject.media is NO_MEDIA else {"media": subject.media}
    return cached_floor(model, subject.ids, subject.precision, lambda run: told(f"the noise floor, run {run}"), **media)


def inherited(subject, steps, floor, told):
    """The same steps; those that are locally right, but not what numgemma's own run has, are INHERITED."""
    told("numgemma's own run")
    errors = global_errors(subject, bench([floor], ["float64", subject.precision]))
    return tuple(marked(step, *errors.get(step.name, (None, None))) for step in steps)


def marked(step, rel, xfloor):
    off = xfloor is not None and state_of(Measure(rel=rel), xfloor) in (SUSPECT, FAULT)
    state = INHERITED if off and step.state in (BIT_EXACT, NOISE, TIE) else step.state
    return replace(step, state=state, global_rel=rel, global_xfloor=xfloor)


def global_errors(subject, judge, put_in=None):
    """Point -> relative error of the dump against numgemma's own run, and in units of the floor.

    put_in: a dump whose tensors the run goes on with.
    """
    found = {}
    dump = subject.dump
    channel_floor = TOLERANCES[subject.precision].channel_floor

    def look(name, y, axes):
        if name in dump and y.dtype.kind not in "iu" and fits(overlap.full_shape(dump, name), y.shape):
            m = overlap.measure(name, Dump({}, {name: y}, {name: axes}), dump, channel_floor)
            limits = judge.limits(name)
            if m.rel is not None:
                found[name] = m.rel, score(m, limits)[0] if limits else None
        return y if put_in is None else fed(put_in, name, y)

    subject.run("float64", look)
    return found


# -- words


def verdict(steps):
    """One sentence: the first local fault, or that there is none."""
    measured, found = [s for s in steps if s.state != UNMEASURED], first_fault(steps)
    rest = f"; {counted(len(steps) - len(measured), 'point')} UNMEASURED" if len(measured) < len(steps) else ""
    if found is None:
        return no_fault(measured) + rest
    later = sum(s.state == INHERITED for s in steps[steps.index(found) + 1 :])
    others = sum(s.state in (FAULT, NON_FINITE) for s in steps) - 1
    what = found.reason or "NaN or infinity" if found.state == NON_FINITE else f"{found.xfloor:.2g} x floor"
    what += f", {found.edge}" if found.edge else ""
    more = f"; {counted(others, 'more local fault')}" if others else ""
    more += f"; {counted(later, 'later point')} INHERITED" if any(s.global_rel is not None for s in steps) else ""
    return f"first local fault: {found.arrow}, {what}{more}{rest}"


def no_fault(measured):
    suspects = [s for s in measured if s.state == SUSPECT]
    worst = max(measured, key=lambda s: s.xfloor or 0)
    size, steps = f"{worst.xfloor:.2g} x floor", counted(len(measured), "step")
    if suspects:
        return f"no clear local fault in {steps}; {len(suspects)} SUSPECT, most {worst.arrow}, {size}"
    return f"no local fault in {steps}: the largest is {size}"


def counted(n, word):
    return f"{n} {word}{'' if n == 1 else 's'}"


def arrow(name, sources):
    """A step by its name: `layers.4.self_attn.{k_norm -> o_proj}`; sources in another layer keep their whole names."""
    layer = re.match(r".*layers\.\d+\.", name)
    near = [s for s in sources if layer and s.startswith(layer[0])]
    depth = common_depth([p.split(".") for p in [name, *near]]) if near else 0
    scope = "".join(f"{part}." for part in name.split(".")[:depth])
    return f"{scope}{{{', '.join(s.removeprefix(scope) for s in sources)} -> {name.removeprefix(scope)}}}"


def common_depth(paths):
    """How many of their first parts all paths share, short of a whole path."""
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == paths[0][shared] for p in paths):
        shared += 1
    return shared


# -- graft


def grafted(subject, point, floor, told) -> Graft:
    """numgemma's own run with the dump's tensor at `point`: which points after it are then as in the dump."""
    dump = subject.dump
    if point not in dump or not overlap.whole(dump, point):
        raise InputError(f"The dump has no whole tensor '{point}' to graft; it has {', '.join(list(dump)[:4])}, ...")
    told(f"numgemma's own run, with {point} of the dump")
    judge = bench([floor], ["float64", subject.precision])
    put_in = Dump(dump.meta, {point: dump[point]}, dump.axes)
    before, after = global_errors(subject, judge), global_errors(subject, judge, put_in)
    names = list(after)
    if point not in names:
        raise InputError(f"numgemma computes no point '{point}' in this model, so nothing can be grafted there.")
    steps = []
    for name in names[names.index(point) + 1 :]:
        (was, was_x), (rel, xfloor) = before[name], after[name]
        state = state_of(Measure(rel=rel), xfloor) if xfloor is not None else UNMEASURED
        steps.append(Step(name=name, state=state, rel=rel, xfloor=xfloor, global_rel=was, global_xfloor=was_x))
    off = [s for s in steps if s.state in (SUSPECT, FAULT)]
    says = f"with {point} of the dump put in, "
    if not off:
        return Graft(point=point, verdict=says + f"all {len(steps)} points after it recover", points=tuple(steps))
    tail = f"{len(off)} of {len(steps)} points after it are still off, first {off[0].name}, {off[0].xfloor:.2g} x floor"
    return Graft(point=point, verdict=says + tail, points=tuple(steps))
