"""What the fault is: the catalogue tried on the steps that went wrong, until one mistake reproduces the wrong numbers.

A fault is a candidate for a step if it can show there, or between the step and the recorded points before it.  Only
the layers in question are computed again, from the dump's own tensors; a candidate that turns every local fault into
noise, and none that is right into a wrong one, is the answer.  Where one fault everywhere is not enough, it is tried on
some tokens and in some layers, then one of its own in each layer, then pairs.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np

from numgemma import ops
from numgemma.debug.blame.budget import Clock, OutOfTime
from numgemma.debug.blame.one_step import Rerun
from numgemma.debug.blame.other import alongside
from numgemma.debug.blame.replay import Replay, counted, locally, subject_of, wired
from numgemma.debug.blame.spans import in_words
from numgemma.debug.blame.trial import Outcome, Trial
from numgemma.debug.compare.hints import hints
from numgemma.debug.compare.result import FAULT, Hint, plain
from numgemma.debug.compare.scoring import SUSPECT_TO
from numgemma.debug.faults.fault import LAYERS, of_sort
from numgemma.debug.measure import overlap
from numgemma.debug.measure.precision import dtype_of
from numgemma.dump import Dump
from numgemma.prompt.media import NO_MEDIA

SCHEMA = "numgemma.whatif/1"
PAIRS = "pairs of faults"
ASK = (
    "If the engine ran other tokens too (a rejected draft, an earlier turn, others of a batch), it may have read their "
    "keys: give those ids with --other."
)


@dataclass(frozen=True)
class Candidate:
    """One or more faults that reproduce the dump's numbers, and where they act."""

    faults: tuple[str, ...]
    # "all", "full", "sliding", "shared" or indices; None: outside the layers.  Of two faults: one such of each.
    layers: str | tuple | None
    xfloor: float  # the largest error that is left where there was a local fault
    says: str
    explains: int  # local faults that become noise
    of: int  # local faults of the dump
    spares: int  # layers in which the faults could act and do not
    tokens: tuple[int, ...] = ()  # on which alone the fault acts; (): on all
    breaks: int = 0  # steps that the dump has right, and that would be wrong

    @property
    def rank(self):
        """The best comes first: explains most, breaks nothing, needs no exceptions, is one fault, fits closest."""
        return self.of - self.explains, self.breaks, bool(self.tokens), self.spares, len(self.faults), self.xfloor


@dataclass(frozen=True)
class WhatIf:
    """The candidates, best first; none where nothing reproduces the dump, but what the first bad tensor looks like."""

    replay: Replay
    candidates: tuple[Candidate, ...]
    hints: tuple[Hint, ...] = ()
    not_tried: tuple[str, ...] = ()  # for want of time
    other: bool = False  # whether another sequence was given

    def to_json(self):
        head = {"schema": SCHEMA, "verdict": self.verdict, "first": self.replay.first}
        head |= {"candidates": [asdict(c) for c in self.candidates], "not_tried": self.not_tried}
        return plain(head | {"hints": [asdict(hint) for hint in self.hints]})

    @property
    def verdict(self):
        """One sentence."""
        if self.candidates:
            return self.candidates[0].says
        if not self.replay.bad():
            return f"Nothing to explain: {self.replay.verdict}."
        if self.not_tried:
            return f"No known fault was found in the time there was: {self.replay.verdict}."
        ask = "" if self.other or ".self_attn." not in (self.replay.first or "") else f"  {ASK}"
        looks = f"  What {self.hints[0].point} looks like: {self.hints[0].says}." if self.hints else ""
        return f"No known fault, and no pair, reproduces these numbers: {self.replay.verdict}.{looks}{ask}"


@ops.using("numpy")
def whatif(model, dump, *, ids=None, media=NO_MEDIA, told=None, budget=None, other=None) -> WhatIf:
    """Name the known faults that reproduce a dump.  Arguments as those of `replay`.

    budget: seconds for the search; what it did not allow is in `not_tried`.  other: ids of another sequence that the
    engine ran (a rejected draft after the tokens before it, an earlier turn, another of the batch), whose keys and
    values may have been read: only so can those faults be tried.
    """
    clock = Clock(budget, told or (lambda text: None))
    subject = subject_of(model, dump, ids, media)
    found = locally(subject, told=clock.show)
    with alongside(subject, other):
        candidates, left_out = explain(subject, found, clock.told)
    if candidates or left_out:
        return WhatIf(found, candidates, not_tried=left_out)
    return WhatIf(wired(subject, found, clock.show), (), tuple(looks(subject, found)), other=other is not None)


def looks(subject: Rerun, found: Replay) -> list[Hint]:
    """What the first bad tensor looks like in terms of the right one."""
    step = next((s for s in found.bad() if s.rel is not None and s.floor), None)
    if step is None or not overlap.whole(subject.dump, step.name) or step.name not in found.base.truth:
        return []
    truth = Dump({}, {step.name: found.base.truth[step.name]}, found.base.axes)
    given = Dump({}, {step.name: subject.dump[step.name].reshape(truth[step.name].shape)})
    return hints(step.name, truth, given, found.base.axes[step.name], SUSPECT_TO * step.floor["rel"])


def explain(subject: Rerun, found: Replay, told=lambda text: None) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """Candidates for the local faults of a replay, best first; and what there was no time to try."""
    bad = [step for step in found.bad() if step.rel is not None]
    if not bad or (found.first and bad[0].state != FAULT):
        return (), ()
    trial = Trial(
        replace(subject, model=replace(subject.model, dtype=dtype_of(subject.precision))), found.base, bad, told
    )
    outcomes: list[Outcome] = []
    left_out = searched(trial, outcomes)
    ranked = sorted((candidate(trial, o) for o in outcomes), key=lambda c: c.rank)
    best = [c for c in ranked if c.explains == c.of and not c.breaks] or [c for c in ranked if c.explains == c.of]
    return tuple(best or ranked), left_out


def searched(trial: Trial, outcomes: list[Outcome]) -> tuple[str, ...]:
    """Fills the outcomes, the simplest way first, until one explains all.  -> what there was no time for"""
    first = trial.bad[0]
    ways = {"faults of the other sequence's rows": lambda: trial.borrowed(first)} if trial.other else {}
    ways |= {
        f"each of {len(trial.possible(first))} faults that can show at {first.name}": lambda: trial.singles(first),
        "faults of one picture or sound alone": lambda: trial.of_one_picture(list(outcomes)),
        "faults of some tokens alone": lambda: trial.spanned(first),
        "faults of one layer, or one kind of layer": lambda: trial.in_some_layers(first),
        "a fault of its own in each layer": trial.apart,
        PAIRS: lambda: trial.pairs(first) if all(o.tokens or o.hits for o in outcomes) else trial.second(outcomes),
    }
    for i, (what, way) in enumerate(ways.items()):
        if any(trial.complete(o) or (what == PAIRS and trial.explained(o) == len(trial.bad)) for o in outcomes):
            break
        try:
            trial.told(what)
            for outcome in way():
                outcomes.append(outcome)
        except OutOfTime:
            return tuple(ways)[i:]
    return ()


def candidate(trial: Trial, outcome: Outcome) -> Candidate:
    """An outcome as an answer."""
    model, bad = trial.subject.model, trial.bad
    fixed = [step for step in bad if trial.fixes(outcome, step)]
    xfloor = max((outcome.left[step.name] for step in fixed), default=np.inf)
    hit = [sort_of(trial.hit(outcome, fault), model) for fault in outcome.faults]
    span, breaks = in_words(outcome.tokens, trial.subject.dump), trial.breaks(outcome)
    return Candidate(
        faults=tuple(fault.id for fault in outcome.faults),
        layers=hit[0] if len(hit) == 1 else tuple(hit),
        xfloor=float(xfloor),
        says=sentence(outcome.faults, hit, xfloor, (len(bad) - len(fixed), breaks), span),
        explains=len(fixed),
        of=len(bad),
        spares=sum(len(f.places(model)) - len(trial.hit(outcome, f)) for f in outcome.faults if f.layered),
        tokens=outcome.tokens,
        breaks=breaks,
    )


def sort_of(layers, model):
    """A set of layers by its name, where it has one."""
    if not layers:
        return None
    return next((sort for sort in LAYERS if of_sort(sort, model) == list(layers)), layers)


def sentence(faults, hit, xfloor, rest, span=""):
    """What is wrong and where, how well that fits, and what to do.  rest: local faults left, right steps made wrong"""
    what = "; and ".join(f"{fault.id}: {fault.says}{named(layers)}" for fault, layers in zip(faults, hit, strict=True))
    unexplained, breaks = rest
    more = f"; {counted(unexplained, 'local fault')} left" if unexplained else ""
    more += f"; {counted(breaks, 'step')} that the dump has right would be wrong" if breaks else ""
    it = {1: "it", 2: "both"}.get(len(faults), "all")
    fix = "; and ".join(dict.fromkeys(fault.fix for fault in faults))
    return f"{what}{span}. Residual after applying {it}: {xfloor:.2g} x floor{more}. Fix: {fix}."


def named(layers):
    if layers in (None, "all"):
        return ""
    if isinstance(layers, str):
        return f", in {layers} layers"
    return f", in layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
