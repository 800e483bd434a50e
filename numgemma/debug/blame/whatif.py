"""What the fault is: the catalogue tried on the steps that went wrong, until one mistake reproduces the wrong numbers.

A fault is a candidate for a step if it can show there, or between the step and the recorded points before it.  Only
the layers in question are computed again, from the dump's own tensors; a candidate that turns every local fault into
noise is the answer.  Where one is not enough, pairs are tried.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import combinations

import numpy as np

from numgemma import ops
from numgemma.debug.blame.limits import size_of
from numgemma.debug.blame.one_step import RUNS, TOWERS, Local, Rerun, again, layers_of
from numgemma.debug.blame.replay import Replay, Step, counted, locally, subject_of, wired
from numgemma.debug.blame.spans import closed, in_parts, in_words, mixed, until, wrong_tokens
from numgemma.debug.compare.hints import hints
from numgemma.debug.compare.result import FAULT, Hint, plain
from numgemma.debug.compare.scoring import NOISE_TO, SUSPECT_TO
from numgemma.debug.faults import CATALOGUE, Fault, applied
from numgemma.debug.faults.fault import LAYERS, of_sort
from numgemma.debug.measure import overlap
from numgemma.debug.measure.discrete import layer_of
from numgemma.dump import Dump
from numgemma.prompt.media import NO_MEDIA, is_empty

SCHEMA = "numgemma.whatif/1"
KEPT = 3  # candidates for the first step that are followed up in a search for pairs
HELPS = 1.5  # a fault that divides an error by so much may be part of the answer


@dataclass(frozen=True)
class Candidate:
    """One or two faults that reproduce the dump's numbers, and where they act."""

    faults: tuple[str, ...]
    # "all", "full", "sliding", "shared" or indices; None: outside the layers.  Of two faults: one such of each.
    layers: str | tuple | None
    xfloor: float  # the largest error that is left where there was a local fault
    says: str
    explains: int  # local faults that become noise
    of: int  # local faults of the dump
    spares: int  # layers in which the faults could act and do not
    tokens: tuple[int, ...] = ()  # on which alone the fault acts; (): on all

    @property
    def rank(self):
        """The best comes first: explains most, needs no exceptions, is one fault, fits closest."""
        return self.of - self.explains, bool(self.tokens), self.spares, len(self.faults), self.xfloor


@dataclass(frozen=True)
class WhatIf:
    """The candidates, best first; none where nothing reproduces the dump, but what the first bad tensor looks like."""

    replay: Replay
    candidates: tuple[Candidate, ...]
    hints: tuple[Hint, ...] = ()

    def to_json(self):
        head = {"schema": SCHEMA, "verdict": self.verdict, "first": self.replay.first}
        head |= {"candidates": [asdict(c) for c in self.candidates]}
        return plain(head | {"hints": [asdict(hint) for hint in self.hints]})

    @property
    def verdict(self):
        """One sentence."""
        if self.candidates:
            return self.candidates[0].says
        if not self.replay.bad():
            return f"Nothing to explain: {self.replay.verdict}."
        looks = f"  What {self.hints[0].point} looks like: {self.hints[0].says}." if self.hints else ""
        return f"No known fault, and no pair, reproduces these numbers: {self.replay.verdict}.{looks}"


@dataclass(frozen=True)
class Outcome:
    """What one or two faults make of the steps of some layers: the errors that are left, in units of the floor."""

    faults: tuple[Fault, ...]
    left: dict[str, float]
    tokens: tuple[int, ...] = ()  # on which alone they act; (): on all


@ops.using("numpy")
def whatif(model, dump, *, ids=None, media=NO_MEDIA, told=None) -> WhatIf:
    """Name the known faults that reproduce a dump.  Arguments as those of `replay`."""
    told = told or (lambda text: None)
    subject = subject_of(model, dump, ids, media)
    found = locally(subject, told=told)
    candidates = tuple(explain(subject, found, told))
    if candidates:
        return WhatIf(found, candidates)
    return WhatIf(wired(subject, found, told), (), tuple(looks(subject, found)))


def looks(subject: Rerun, found: Replay) -> list[Hint]:
    """What the first bad tensor looks like in terms of the right one."""
    step = next((s for s in found.bad() if s.rel is not None and s.floor), None)
    if step is None or not overlap.whole(subject.dump, step.name) or step.name not in found.base.truth:
        return []
    truth = Dump({}, {step.name: found.base.truth[step.name]}, found.base.axes)
    given = Dump({}, {step.name: subject.dump[step.name].reshape(truth[step.name].shape)})
    return hints(step.name, truth, given, found.base.axes[step.name], SUSPECT_TO * step.floor["rel"])


def explain(subject: Rerun, found: Replay, told=lambda text: None) -> list[Candidate]:
    """Candidates for the local faults of a replay, best first."""
    bad = [step for step in found.bad() if step.rel is not None]
    if not bad or (found.first and bad[0].state != FAULT):
        return []
    trial = Trial(
        replace(subject, model=replace(subject.model, dtype=np.dtype(subject.precision))), found.base, bad, told
    )
    told(f"{len(trial.possible(bad[0]))} faults that can show at {bad[0].name}")
    fitting = [o for o in trial.singles(bad[0]) if trial.fixes(o, bad[0])]
    whole = [trial.everywhere(o.faults) for o in fitting]
    if not any(trial.explained(o) == len(bad) for o in whole):
        told("faults of some tokens alone")
        whole += trial.spanned(bad[0])
    if not any(trial.explained(o) == len(bad) for o in whole):
        told("pairs of faults")
        whole += trial.second(whole) if whole else trial.pairs(bad[0])
    ranked = sorted((trial.candidate(o) for o in whole), key=lambda c: c.rank)
    complete = [c for c in ranked if c.explains == c.of]
    return complete or ranked


@dataclass(frozen=True)
class Trial:
    """The bad steps of a dump, and faults tried on them."""

    subject: Rerun
    base: Local
    bad: list[Step]
    told: Callable[[str], None] = lambda text: None  # called before each fault is tried

    def possible(self, step) -> list[Fault]:
        """The faults that can show first at a step, or at an unrecorded point of it."""
        names = (step.name, *step.between)
        return [fault for fault in CATALOGUE.values() if any(self.can_show(fault, name) for name in names)]

    def can_show(self, fault, name):
        model = self.subject.model
        past = len(self.subject.ids) > (model.outline.window or math.inf)
        if not (fault.shown_by(name) and fault.media(self.subject.media)) or (fault.past_window and not past):
            return False
        layer = layer_of(name)
        return bool(fault.places(model)) if layer is None else layer in fault.places(model)

    def outcome(self, faults, layers, runs=0) -> Outcome:
        """The steps of some layers under faults.  What an `across` fault does in earlier layers is computed too."""
        model = self.subject.model
        for fault in faults:
            layers = layers | {p for p in fault.places(model) if fault.across and p is not None}
        ids = [fault.id for fault in faults]
        after = again(self.subject, self.base, layers, lambda: applied(model, *ids), runs)
        measured = {name: m for name, m in after.errors.items() if name in self.base.errors}
        return Outcome(tuple(faults), {name: self.left(after, name, m) for name, m in measured.items()})

    def spanned(self, step) -> list[Outcome]:
        """Single faults that fix a step if they act on the tokens alone that are wrong."""
        limits = {s.name: s.floor["worst_token"] for s in self.bad if s.floor}
        every = wrong_tokens(self.subject, self.base, limits, limits)
        first = wrong_tokens(self.subject, self.base, limits.keys() & {step.name}, limits)
        spans = {closed(t): None for t in (every, first) if t} | {t: None for t in (every, first) if t}
        for tokens in spans:
            found = [self.on_span(fault, step, tokens, limits) for fault in self.possible(step)]
            if fitting := [o for o in found if o and self.fixes(o, step)]:
                return fitting
        return []

    def on_span(self, fault, step, tokens, limits) -> Outcome | None:
        """A fault that acts on these tokens alone, or on the first of them; None where it does not help."""
        self.told(f"{fault.id} on some tokens")
        model = self.subject.model

        def under():
            return applied(model, fault.id)

        after = again(self.subject, self.base, self.where([fault]), under)
        some = mixed(self.subject, self.base, after, tokens)
        quick = self.of_span(fault, some, tokens)
        helps = quick.left.get(step.name, np.inf) < step.xfloor / HELPS
        if not is_text(self.subject.media) or not (helps or step.between):
            return quick if helps else None
        try:
            some = in_parts(self.subject, self.base, after, tokens, under)
        except (ValueError, IndexError):  # a fault of the layer table or of a mask may not fit the cache of a right run
            return quick if helps else None
        exact = self.of_span(fault, some, tokens)
        fewer = () if self.fixes(exact, step) else until(self.subject, some, step.name, tokens, limits[step.name])
        if not fewer:
            return exact
        return self.of_span(fault, in_parts(self.subject, self.base, after, fewer, under), fewer)

    def of_span(self, fault, some, tokens) -> Outcome:
        return Outcome((fault,), {name: self.left(some, name, m) for name, m in some.errors.items()}, tokens)

    def left(self, after, name, m):
        """The error that is left at a step, in units of the floor."""
        return np.inf if m.rel is None else size_of(self.subject, after, name)[0]

    def singles(self, step) -> Iterator[Outcome]:
        return (self.tried([fault], step) for fault in self.possible(step))

    def tried(self, faults, step) -> Outcome:
        """The step under faults.  Where they help and do not quite fix it, it may be that they make more noise."""
        self.told(" and ".join(fault.id for fault in faults))
        quick = self.outcome(faults, layers_of([step]))
        left = quick.left.get(step.name, np.inf)
        unsure = not self.fixes(quick, step) and left < step.xfloor / HELPS
        return self.outcome(faults, layers_of([step]), RUNS) if unsure else quick

    def fixes(self, outcome, step):
        """Whether a step is as the faults make it: what was far above the floor is near it."""
        left = outcome.left.get(step.name, np.inf)
        return left <= NOISE_TO or left <= min(SUSPECT_TO, step.xfloor / 10)

    def everywhere(self, faults) -> Outcome:
        """The faults wherever they can act, or something is bad."""
        return self.outcome(faults, self.where(faults), RUNS)

    def where(self, faults) -> set:
        """The layers where faults can act, or something is bad."""
        places = {p for fault in faults for p in fault.places(self.subject.model) if p is not None}
        return layers_of(self.bad) | places | {TOWERS}

    def pairs(self, step) -> list[Outcome]:
        """Pairs that together fix a step which no fault fixes alone."""
        tried = (self.tried(pair, step) for pair in combinations(self.possible(step), 2))
        return [self.everywhere(o.faults) for o in tried if self.fixes(o, step)]

    def second(self, whole) -> list[Outcome]:
        """Faults that explain what the best single ones leave over."""
        found = []
        for first in sorted(whole, key=lambda o: -self.explained(o))[:KEPT]:
            rest = next(step for step in self.bad if not self.fixes(first, step))
            for other in self.possible(rest):
                if other not in first.faults:
                    both = self.tried([*first.faults, other], rest)
                    found += [self.everywhere(both.faults)] if self.fixes(both, rest) else []
        return found

    def explained(self, outcome):
        return sum(self.fixes(outcome, step) for step in self.bad)

    def hit(self, outcome, fault) -> tuple:
        """The layers where a fault acts in the dump: all where it can, but those that it would make worse."""
        bad = {layer_of(step.name) for step in self.bad}
        worse = {layer_of(name) for name, left in outcome.left.items() if left > SUSPECT_TO} - bad
        return tuple(p for p in fault.places(self.subject.model) if p is not None and p not in worse)

    def candidate(self, outcome) -> Candidate:
        fixed = [step for step in self.bad if self.fixes(outcome, step)]
        xfloor = max((outcome.left[step.name] for step in fixed), default=np.inf)
        hit = [sort_of(self.hit(outcome, fault), self.subject.model) for fault in outcome.faults]
        span = in_words(outcome.tokens, self.subject.dump)
        says = sentence(outcome.faults, hit, xfloor, len(self.bad) - len(fixed), span)
        names = tuple(fault.id for fault in outcome.faults)
        layers = hit[0] if len(hit) == 1 else tuple(hit)
        counts = len(fixed), len(self.bad), self.spares(outcome)
        return Candidate(names, layers, float(xfloor), says, *counts, outcome.tokens)

    def spares(self, outcome):
        """In how many layers the faults could act and do not."""
        model = self.subject.model
        return sum(len(f.places(model)) - len(self.hit(outcome, f)) for f in outcome.faults if f.layered)


def is_text(media):
    """Whether a run was given nothing but tokens, so that it can be made again in parts."""
    return is_empty(media) and not media.named


def sort_of(layers, model):
    """A set of layers by its name, where it has one."""
    if not layers:
        return None
    return next((sort for sort in LAYERS if of_sort(sort, model) == list(layers)), layers)


def sentence(faults, hit, xfloor, unexplained, span=""):
    """What is wrong and where, how well that fits, and what to do."""
    what = "; and ".join(f"{fault.id}: {fault.says}{named(layers)}" for fault, layers in zip(faults, hit, strict=True))
    rest = f"; {counted(unexplained, 'local fault')} left" if unexplained else ""
    it = "it" if len(faults) == 1 else "both"
    fix = "; and ".join(dict.fromkeys(fault.fix for fault in faults))
    return f"{what}{span}. Residual after applying {it}: {xfloor:.2g} x floor{rest}. Fix: {fix}."


def named(layers):
    if layers in (None, "all"):
        return ""
    if isinstance(layers, str):
        return f", in {layers} layers"
    return f", in layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
