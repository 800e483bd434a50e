"""From a suspicion to an answer: all that is asked of a dump, in the order in which a person would, and one verdict.

Same, noise, a dump that is not what it seems, or: the engine computes X wrongly at Y, for this reason.  The whole has
a time; what it did not allow is said.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from numgemma.debug.blame.budget import Clock, OutOfTime
from numgemma.debug.blame.emulate import PROVEN, Emulation, answered, own_arithmetic
from numgemma.debug.blame.replay import Replay, counted, precision_of, replay
from numgemma.debug.blame.whatif import WhatIf, whatif
from numgemma.debug.compare.diff import diff, verdict
from numgemma.debug.compare.fitted import last_token
from numgemma.debug.compare.precheck import precheck
from numgemma.debug.compare.result import FAULT, SUSPECT, Diff, plain
from numgemma.debug.measure import overlap
from numgemma.debug.measure.precision import dtype_of, rounding_of
from numgemma.debug.noise.floor import Floor, cached_floor
from numgemma.debug.noise.rounding import as_run
from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.graph import graph_of_dumps, lines_in_words
from numgemma.notebook import html_table, record
from numgemma.prompt.media import NO_MEDIA

SCHEMA = "numgemma.doctor/1"
SAME, NOISE, DUMP, ENGINE, UNKNOWN = "same", "noise", "dump", "engine", "unknown"
EXIT = {SAME: 0, NOISE: 0, DUMP: 3, ENGINE: 1, UNKNOWN: 1}
MOST_WRONG = 0.6  # share of steps with faults of their own, from which the weights are doubted
LARGEST_TABLE = 1 << 28  # numbers of an embedding in which tokens are looked up


@dataclass(frozen=True)
class Told:
    """One thing that was done, and what came of it."""

    step: str
    says: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """kind: same, noise, dump (it is not what it seems), engine (it computes something wrongly), unknown."""

    kind: str
    says: str
    cause: str = ""  # the known fault, in a sentence
    confidence: str = ""
    command: str = ""  # what shows it
    steps: tuple[Told, ...] = ()
    left_out: tuple[str, ...] = ()  # for want of time
    truth: Dump | None = field(default=None, repr=False)
    diff: Diff | None = field(default=None, repr=False)
    replay: Replay | None = field(default=None, repr=False)
    whatif: WhatIf | None = field(default=None, repr=False)

    @property
    def exit_code(self) -> int:
        """0 same or noise, 1 the engine is wrong, 3 the dump says nothing of the engine, 4 non-finite values."""
        return 4 if self.diff is not None and self.diff.nonfinite else EXIT[self.kind]

    def _repr_html_(self) -> str:
        says = " ".join(filter(None, (self.says, self.cause)))
        return html_table(says, ("step", "outcome", "seconds"), [(s.step, s.says, s.seconds) for s in self.steps])

    def records(self) -> list[dict[str, Any]]:
        """A flat dict for each step that was taken: what `pandas.DataFrame` takes."""
        return [record(vars(s)) for s in self.steps]

    def to_json(self) -> dict[str, Any]:
        keys = ("kind", "says", "cause", "confidence", "command", "left_out")
        parts = {key: getattr(self, key) for key in ("diff", "replay", "whatif")}
        head = {"schema": SCHEMA} | {key: getattr(self, key) for key in keys}
        head |= {"steps": [vars(step) for step in self.steps]}
        return plain(head | {key: part and part.to_json() for key, part in parts.items()})


class Visit:
    """The steps done so far, and the time left for more."""

    def __init__(self, budget: float | None, say: Callable[[str, str], None], told: Callable[[str], None]):
        self.told = Clock(budget, told).told
        self.say = say
        self.steps: list[Told] = []
        self.left_out: list[str] = []

    def do(self, name: str, work: Callable[[], Any], says: Callable[[Any], str]) -> Any:
        """What work() returns, told in a line; None where there was no time for it."""
        begun = time.monotonic()
        try:
            self.told(name)
            found = work()
        except OutOfTime:
            self.left_out.append(name)
            return None
        step = Told(name, says(found), round(time.monotonic() - begun, 2))
        self.steps.append(step)
        self.say(step.step, step.says)
        return found


def nothing(*words) -> None:
    """Said to nobody."""


def doctor(model, dump, *, ids=None, media=NO_MEDIA, budget=None, other=None, say=nothing, told=nothing) -> Diagnosis:
    """Precheck, floor, diff, replay, whatif, as far as they are needed.

    ids: for a dump that carries none.  budget: seconds for the whole.  other: as `whatif` has it.  say(step, outcome):
    called after each step.  told(text): called before each run of the model.  Raises InputError where nothing can be
    compared at all.
    """
    ids = dump.meta.get("ids") if ids is None else ids
    if ids is None:
        raise InputError("The dump does not say which token ids were run; give them with --ids.")
    visit = Visit(budget, say, told)
    media = model.media_of(dump) if media is NO_MEDIA else media
    dump = last_token(as_run(dump, model), len(ids))
    asked = Asked(model, dump, [int(i) for i in ids], media, precision_of(dump), other)
    return replace(examined(asked, visit), steps=tuple(visit.steps), left_out=tuple(visit.left_out))


@dataclass(frozen=True)
class Asked:
    """What a diagnosis is of."""

    model: Any
    dump: Dump
    ids: list[int]
    media: Any
    precision: str
    other: Any = None  # ids of what else the engine ran

    def truth(self, visit: Visit) -> Dump:
        """numgemma's own run in float64: the points that the dump has, and the logits."""
        exact = replace(self.model, dtype=np.dtype("float64"))
        dump = Dump(exact.describe(self.ids, media=self.media))
        exact.record_into(dump, self.ids, [*self.dump, "logits"], media=self.media)
        visit.told()
        return dump

    def floor(self, visit: Visit) -> Floor:
        rounded = replace(self.model, dtype=np.dtype("float32"))
        media = {} if self.media is NO_MEDIA else {"media": self.media}
        return cached_floor(rounded, self.ids, self.precision, lambda run: visit.told(f"floor, run {run}"), **media)

    def own_arithmetic(self, visit: Visit) -> Emulation | None:
        return own_arithmetic(self.model, self.dump, self.ids, self.media, visit.told)


def examined(asked: Asked, visit: Visit) -> Diagnosis:
    truth = visit.do("our own run", lambda: asked.truth(visit), lambda t: f"{len(t)} points in float64")
    if truth is None:
        return Diagnosis(kind=UNKNOWN, says="There was no time for one run of the model; give more with --budget.")
    checked = visit.do("precheck", lambda: precheck(truth, asked.dump), told_of_precheck)
    if checked is not None and not checked.comparable:
        return Diagnosis(kind=DUMP, says=not_what_it_seems(checked.reason), truth=truth)
    own: Emulation | None = None
    if rounding_of(asked.precision):
        own = visit.do("emulation", lambda: asked.own_arithmetic(visit), told_of_emulation)
        if own is not None and own.state == PROVEN:
            found = diff(own.record, as_run(asked.dump, precision=dtype_of(asked.precision).name))
            if found.verdict == "same":  # what could not be compared is no proof
                return Diagnosis(kind=NOISE, says=own.sentence, truth=own.record, diff=found)
    floor = visit.do("floor", lambda: asked.floor(visit), lambda f: f"the noise of {f.precision}, {f.runs} runs")
    found = diff(truth, asked.dump, floor=() if floor is None else floor)
    visit.do("diff", lambda: found, verdict)
    known = Diagnosis(kind=UNKNOWN, says=verdict(found), truth=truth, diff=found)
    if found.verdict == "not comparable":
        return replace(known, kind=DUMP, says=not_what_it_seems(found.reason))
    if found.overwritten:
        return replace(known, kind=DUMP)
    if found.verdict == "same":
        return all_is_well(known)
    with answered(own):
        return blamed(asked, visit, known, floor)


def told_of_precheck(found) -> str:
    off = [f.says for f in found.findings if f.state == "differs"]
    return found.reason or ("; ".join(off[:2]) if off else "nothing speaks against comparing")


def told_of_emulation(found) -> str:
    return found.verdict if found else "no point that a run of that arithmetic could be held to"


def not_what_it_seems(reason) -> str:
    return f"Your dump is not what you think: {reason}."


def all_is_well(known: Diagnosis) -> Diagnosis:
    assert known.diff is not None
    exact = all(p.rel == 0 for p in known.diff.points if p.rel is not None)
    suspects = known.diff.count(SUSPECT)
    more = f"; {counted(suspects, 'point')} SUSPECT, none clear" if suspects else ""
    scope = counted(len(known.diff.points), "point")
    says = f"The engine and numgemma agree at {scope}{' exactly' if exact else ', but for rounding'}{more}."
    return replace(known, kind=SAME if exact else NOISE, says=says)


# -- whose fault


def blamed(asked: Asked, visit: Visit, known: Diagnosis, floor: Floor | None) -> Diagnosis:
    """What replay and whatif say of a dump that differs."""
    given: dict[str, Any] = {"ids": asked.ids, "media": asked.media, "told": visit.told}
    model, dump = asked.model, asked.dump
    again = visit.do("replay", lambda: replay(model, dump, floor=floor, **given), lambda r: r.verdict)
    if again is None:
        return replace(known, says=f"{known.says}  There was no time to tell whose fault it is.")
    known = replace(known, replay=again)
    if again.overwritten:
        return replace(known, kind=DUMP, says=verdict_of_reuse(again))
    if text := other_tokens(asked) or other_weights(again):
        return replace(known, kind=DUMP, says=not_what_it_seems(text))
    if not again.bad():
        return replace(known, says=no_step(known))
    named = visit.do("whatif", lambda: whatif(model, dump, other=asked.other, **given), lambda w: w.verdict)
    visit.left_out += named.not_tried if named else ()
    return concluded(replace(known, whatif=named), dump)


def verdict_of_reuse(again: Replay) -> str:
    (name, other), *_ = again.overwritten.items()
    return not_what_it_seems(f"{name} holds {other}, a buffer that was overwritten before it was written out")


def no_step(known: Diagnosis) -> str:
    assert known.diff is not None
    return (
        f"{known.diff.first} differs, and no recorded step computes it wrongly: the error comes in between points that "
        "were not recorded, or it grows out of rounding; record more points"
    )


def other_tokens(asked: Asked) -> str:
    """Says so where the embeddings are right rows of the table, and of other tokens."""
    name, dump, w = "embed_tokens", asked.dump, asked.model.weights
    if name not in dump or not overlap.whole(dump, name) or "embed_tokens.weight" not in w:
        return ""
    table, x = w["embed_tokens.weight"], np.asarray(dump[name], np.float32)
    if table.size > LARGEST_TABLE or x.ndim != 2 or x.shape[1] != table.shape[1]:
        return ""
    rows = np.asarray(table, np.float32)
    size = np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
    likeness = (x @ rows.T) / size / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    found = likeness.argmax(1)
    same_row = np.take_along_axis(likeness, np.array(asked.ids)[:, None], 1)[:, 0] > 0.999
    off = np.flatnonzero(~same_row & (likeness.max(1) > 0.9999))
    if not len(off):
        return ""
    t = int(off[0])
    return f"at position {t} it ran token {found[t]}, not {asked.ids[t]} ({counted(len(off), 'token')} of {len(found)})"


def other_weights(again: Replay) -> str:
    """Says so where steps are wrong nearly everywhere: no one line of code does that."""
    measured = [s for s in again.points if s.rel is not None and not s.name.endswith(("router.ids", ".cos", ".sin"))]
    wrong = [s for s in measured if s.state == FAULT]
    if len(measured) < 8 or len(wrong) < MOST_WRONG * len(measured):
        return ""
    return f"{len(wrong)} of {len(measured)} steps are wrong by themselves, so it ran other weights, or another config"


def concluded(known: Diagnosis, dump) -> Diagnosis:
    """The engine is wrong: where, and if a known fault makes the same numbers, why."""
    assert known.replay is not None
    step = known.replay.bad()[0]
    where = line_of(step, graph_of_dumps(*filter(None, (known.truth, dump))))
    clear = step.state != SUSPECT
    says = f"The engine {'computes' if clear else 'may compute'} {step.arrow} wrongly{where}"
    says += f": {step.xfloor:.2g} x what rounding makes of that step alone." if step.xfloor is not None else "."
    found = known.whatif
    if found is None or not found.candidates:
        tried = "the cause is none of the known ones" + (" that were tried" if found and found.not_tried else "")
        why = f"the place is sure, {tried}" if found else "the cause was not looked for"
        how = why if clear else f"low: {why}"
        return replace(known, kind=ENGINE, says=says, confidence=how, command=f"replay @ --points {step.name} --all")
    best, *others = found.candidates
    return replace(
        known,
        kind=ENGINE,
        says=says,
        cause=best.says,
        confidence=confidence(best, [c for c in others if c.explains == best.explains]),
        command="whatif @",
    )


def confidence(best, rivals) -> str:
    """How sure the cause is, and why."""
    if best.breaks:
        return f"partial: {counted(best.breaks, 'step')} that the dump has right would be wrong with it"
    if best.explains < best.of:
        return f"partial: it explains {best.explains} of {counted(best.of, 'local fault')}"
    if rivals:
        return f"good, but {counted(len(rivals), 'other known fault')} would make the same numbers"
    what = "that one fault" if len(best.faults) == 1 else "these faults"
    return f"high: with {what} put in, numgemma makes the same numbers, to {best.xfloor:.2g} x rounding"


def line_of(step, graph) -> str:
    """numgemma's line for a step; where points between were not recorded, the lines of all of them."""
    file, lines = graph.lines(step.name, step.between if step.sources else ())
    return f" (numgemma's line for it: numgemma/{file}, {lines_in_words(lines)})" if file else ""
