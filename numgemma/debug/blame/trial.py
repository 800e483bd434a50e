"""Known faults tried on the steps of a dump that went wrong: everywhere, in one layer, on some tokens, in pairs.

Only the layers in question are computed again, from the dump's own tensors.  Each way of trying is a generator of
outcomes, so that a search that is stopped keeps what it has found.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from numgemma.debug.blame.alone import HEAD, again, layers_of
from numgemma.debug.blame.limits import size_of
from numgemma.debug.blame.one_step import RUNS, TOWERS, Local, Rerun
from numgemma.debug.blame.other import in_noisy_parts, reads_other
from numgemma.debug.blame.replay import Step
from numgemma.debug.blame.spans import closed, mixed, parts, tokens_of, until, which_one, wrong_tokens
from numgemma.debug.compare.scoring import NOISE_TO, SUSPECT_TO
from numgemma.debug.faults import CATALOGUE, Fault, applied
from numgemma.debug.faults.sequences import KNOWN
from numgemma.debug.measure.discrete import layer_of
from numgemma.prompt.media import is_empty

KEPT = 3  # candidates for the first step that are followed up in a search for pairs
HELPS = 1.5  # a fault that divides an error by so much may be part of the answer

Hits = tuple[tuple[int, ...], ...]  # by fault the layers where it acts; (): wherever it can


@dataclass(frozen=True)
class Outcome:
    """What a few faults make of the steps of some layers: the errors that are left, in units of the floor."""

    faults: tuple[Fault, ...]
    left: dict[str, float]
    tokens: tuple[int, ...] = ()  # on which alone they act; (): on all
    hits: Hits = ()


@contextmanager
def acting(model, faults, hits: Hits = ()):
    """Runs of the model make these mistakes, each in its own layers."""
    with ExitStack() as stack:
        for i, fault in enumerate(faults):
            stack.enter_context(applied(model, fault.id, layers=list(hits[i]) if hits and hits[i] else None))
        yield


@dataclass(frozen=True)
class Trial:
    """The bad steps of a dump, and faults tried on them."""

    subject: Rerun
    base: Local
    bad: list[Step]
    told: Callable[[str], None] = lambda text: None  # called before each fault is tried
    some: Callable[[Fault], bool] = lambda fault: True  # that are tried

    def possible(self, step) -> list[Fault]:
        """The faults that can show first at a step, or at an unrecorded point of it, in a run of one pass."""
        return [fault for fault in self.possible_later(step) if not fault.later]

    def possible_later(self, step) -> list[Fault]:
        """Those that show in passes after the first too."""
        names = (step.name, *step.between)
        tried = [fault for fault in CATALOGUE.values() if self.some(fault)]
        return [fault for fault in tried if any(self.can_show(fault, name) for name in names)]

    def can_show(self, fault, name):
        model = self.subject.model
        past = len(self.subject.ids) > (model.outline.window or math.inf)
        if not (fault.shown_by(name) and fault.media(self.subject.media)) or (fault.past_window and not past):
            return False
        layer = layer_of(name)
        return bool(fault.places(model)) if layer is None else layer in fault.places(model)

    def outcome(self, faults, layers, runs=0, hits: Hits = (), wanted=None) -> Outcome:
        """The steps of some layers under faults.  wanted: names of those that are measured; None: all"""
        layers = self.reaching(faults, layers)
        after = again(self.subject, self.base, layers, lambda: acting(self.subject.model, faults, hits), runs, wanted)
        measured = {name: m for name, m in after.errors.items() if name in self.base.errors}
        return Outcome(tuple(faults), {name: self.left(after, name, m) for name, m in measured.items()}, hits=hits)

    def reaching(self, faults, layers) -> set:
        """The layers that must run under faults: with those where an `across` fault does what shows in a later one."""
        across = [fault for fault in faults if fault.across]
        return layers | {p for fault in across for p in fault.places(self.subject.model) if p is not None}

    @property
    def other(self) -> bool:
        """Whether the rows of another sequence are known."""
        return bool(KNOWN)

    def borrowed(self, step) -> Iterator[Outcome]:
        """Faults that read the rows of another sequence: everywhere, or on some tokens."""
        few = replace(self, some=reads_other)
        yield from few.singles(step)
        yield from few.spanned(step)

    def spanned(self, step) -> Iterator[Outcome]:
        """Single faults that fix a step if they act on the tokens alone that are wrong."""
        limits = {s.name: s.floor["worst_token"] for s in self.bad if s.floor}
        every = wrong_tokens(self.subject, self.base, limits, limits)
        first = wrong_tokens(self.subject, self.base, limits.keys() & {step.name}, limits)
        spans = {closed(t): None for t in (every, first) if t} | {t: None for t in (every, first) if t}
        spans |= {(*t, t[-1] + 1): None for t in list(spans)[:1] if t[-1] + 1 < len(self.subject.ids)}  # a mask's last
        spans |= {(t[0] - 1, *t): None for t in list(spans)[:1] if t[0] > 0}  # its first, right by chance
        for tokens in spans:
            found = (self.on_span(fault, step, tokens, limits) for fault in self.possible_later(step))
            fits = False
            for outcome in found:
                if outcome and self.fixes(outcome, step):
                    fits = True
                    yield outcome
            if fits:
                return

    def on_span(self, fault, step, tokens, limits) -> Outcome | None:
        """A fault that acts on these tokens alone, or on the first of them; None where it does not help.

        The layers of the step alone say whether it may; all that the fault touches are computed only then.
        """
        self.told(f"{fault.id} on some tokens")
        near = again(self.subject, self.base, self.near(fault, step), self.under(fault), wanted={step.name})
        quick = self.of_span(fault, mixed(self.subject, self.base, near, tokens), tokens)
        helps = quick.left.get(step.name, np.inf) < step.xfloor / HELPS
        if is_text(self.subject.media) and (helps or step.between or fault.later):
            try:
                return self.through_cache(fault, step, tokens, limits, near)
            except (ValueError, IndexError):  # a fault of a table or of a mask may not fit the cache of a right run
                pass
        if not helps:
            return None
        return self.of_span(fault, mixed(self.subject, self.base, self.far(fault), tokens), tokens)

    def near(self, fault, step) -> set:
        """The layers that say what a fault makes of a step."""
        return self.reaching([fault], layers_of([step]))

    def far(self, fault) -> Local:
        """All steps that a fault touches, and where something is bad."""
        return again(self.subject, self.base, self.where([fault]), self.under(fault))

    def under(self, fault):
        return lambda: applied(self.subject.model, fault.id)

    def through_cache(self, fault, step, tokens, limits, near) -> Outcome | None:
        """A fault in some passes of a run through the cache, if that fixes the step.

        near: the step under the fault on all tokens.
        """
        tried = list(self.in_passes(fault, step, tokens, near))
        fitting = [passes for passes, _, fits in tried if fits]
        _, last, _ = tried[-1]
        if not fitting and (tokens := until(self.subject, last, step.name, tokens, limits[step.name])):
            fitting = [passes for passes, _, fits in self.in_passes(fault, step, tokens, near) if fits][:1]
        after = self.far(fault) if fitting else near
        some = (in_noisy_parts(self.subject, self.base, after, passes, fault, self.under(fault)) for passes in fitting)
        return max((self.of_span(fault, found, tokens) for found in some), key=self.explained, default=None)

    def in_passes(self, fault, step, tokens, near) -> Iterator[tuple[list, Local, bool]]:
        """Passes that a run may have gone through, what a fault in them makes of the step, and whether it fixes it."""
        layers = self.near(fault, step)
        for passes in parts(tokens, len(self.subject.ids), self.subject.dump):
            found = in_noisy_parts(self.subject, self.base, near, passes, fault, self.under(fault), layers)
            yield passes, found, self.fixes(self.of_span(fault, found, tokens), step)

    def of_span(self, fault, some, tokens) -> Outcome:
        return Outcome((fault,), {name: self.left(some, name, m) for name, m in some.errors.items()}, tokens)

    def left(self, after, name, m):
        """The error that is left at a step, in units of the floor."""
        return np.inf if m.rel is None else size_of(self.subject, after, name)[0]

    def singles(self, step) -> Iterator[Outcome]:
        """Faults that fix a step, wherever they can act."""
        tried = (self.tried([fault], step) for fault in self.possible(step))
        return (self.everywhere(o.faults) for o in tried if self.fixes(o, step))

    def of_one_picture(self, found: list[Outcome]) -> Iterator[Outcome]:
        """Faults that fix all, if they act on some of several pictures or sounds alone: those with bad steps."""
        hit = {which_one(step.name) for step in self.bad} - {""}
        for outcome in [o for o in found if hit and not o.tokens and self.breaks(o)]:
            left = {
                name: self.left(self.base, name, self.base.errors[name]) if which_one(name) not in {*hit, ""} else size
                for name, size in outcome.left.items()
            }
            yield replace(outcome, left=left, tokens=tokens_of(sorted(hit), self.subject.dump))

    def in_some_layers(self, step) -> Iterator[Outcome]:
        """Faults that fix a step over several layers, if they act in those of one kind, or in one of them."""
        reached = layers_of([step])
        for fault in self.possible(step):
            for hit in self.parts_of(fault, reached):
                if self.fixes(self.tried([fault], step, (hit,)), step):
                    yield self.everywhere((fault,), (hit,))

    def parts_of(self, fault, reached) -> Iterator[tuple[int, ...]]:
        """The places of a fault by kind of layer, and one by one; without those where it is all of them."""
        rows = self.subject.model.outline.layers
        places = [p for p in fault.places(self.subject.model) if p in reached] if fault.layered else []
        kinds = [
            tuple(p for p in places if rows[p].kind == kind) for kind in dict.fromkeys(rows[p].kind for p in places)
        ]
        yield from (hit for hit in kinds if len(kinds) > 1)
        if not fault.by_kind:
            yield from ((p,) for p in places if (p,) not in kinds)

    def apart(self) -> Iterator[Outcome]:
        """A fault of its own in each layer that has local faults: as few faults as may be."""
        groups: dict[int | None, list[Step]] = {}
        for step in self.bad:
            groups.setdefault(layer_of(step.name), []).append(step)
        if len(groups) < 2 or any(layers_of(steps) - {layer, HEAD, TOWERS} for layer, steps in groups.items()):
            return
        fitting = {layer: self.fitting(layer, steps) for layer, steps in groups.items()}
        chosen: dict[str, list[int | None]] = {}
        open_ = [layer for layer in groups if fitting[layer]]
        while open_:
            names = dict.fromkeys(name for layer in open_ for name in fitting[layer])
            best = max(names, key=lambda name: sum(name in fitting[layer] for layer in open_))
            chosen[best] = [layer for layer in open_ if best in fitting[layer]]
            open_ = [layer for layer in open_ if layer not in chosen[best]]
        if len(chosen) > 1:
            hits = tuple(tuple(p for p in layers if p is not None) for layers in chosen.values())
            yield self.everywhere(tuple(CATALOGUE[name] for name in chosen), hits)

    def fitting(self, layer, steps) -> list[str]:
        """Faults that fix all these steps of one layer, if they act there alone."""
        hits = () if layer is None else ((layer,),)
        possible = [f for f in self.possible(steps[0]) if layer is None or layer in f.places(self.subject.model)]
        tried = (self.tried([fault], steps[0], hits) for fault in possible)
        return [o.faults[0].id for o in tried if all(self.fixes(o, step) for step in steps)]

    def tried(self, faults, step, hits: Hits = ()) -> Outcome:
        """The step under faults.  Where they help and do not quite fix it, it may be that they make more noise."""
        where = f" in {'; '.join(', '.join(map(str, hit)) for hit in hits)}" if hits else ""
        self.told(" and ".join(fault.id for fault in faults) + where)
        layers, wanted = layers_of([step]), {bad.name for bad in self.bad}
        quick = self.outcome(faults, layers, 0, hits, wanted)
        left = quick.left.get(step.name, np.inf)
        unsure = not self.fixes(quick, step) and left < step.xfloor / HELPS
        return self.outcome(faults, layers, RUNS, hits, wanted) if unsure else quick

    def fixes(self, outcome, step):
        """Whether a step is as the faults make it: what was far above the floor is near it."""
        left = outcome.left.get(step.name, np.inf)
        return left <= NOISE_TO or left <= min(SUSPECT_TO, step.xfloor / 10)

    def everywhere(self, faults, hits: Hits = ()) -> Outcome:
        """The faults wherever they can act, or in the layers of hits; judged there, and where something is bad."""
        self.told(f"{' and '.join(fault.id for fault in faults)} in all layers")
        return self.outcome(tuple(faults), self.where(faults), RUNS, hits)

    def where(self, faults) -> set:
        """The layers where faults can act, or something is bad."""
        places = {p for fault in faults for p in fault.places(self.subject.model) if p is not None}
        return layers_of(self.bad) | places | {TOWERS}

    def pairs(self, step) -> Iterator[Outcome]:
        """Pairs that together fix a step which no fault fixes alone."""
        tried = (self.tried(pair, step) for pair in combinations(self.possible(step), 2))
        return (self.everywhere(o.faults) for o in tried if self.fixes(o, step))

    def second(self, whole) -> Iterator[Outcome]:
        """Faults that explain what the best single ones leave over."""
        for first in sorted(whole, key=lambda o: -self.explained(o))[:KEPT]:
            rest = next((step for step in self.bad if not self.fixes(first, step)), None)
            for other in self.possible(rest) if rest and not (first.tokens or first.hits) else ():
                if other not in first.faults:
                    both = self.tried([*first.faults, other], rest)
                    if self.fixes(both, rest):
                        yield self.everywhere(both.faults)

    def explained(self, outcome) -> int:
        """How many of the local faults become noise."""
        return sum(self.fixes(outcome, step) for step in self.bad)

    def hit(self, outcome, fault) -> tuple:
        """The layers where a fault acts in the dump: all where it can, but those that it would make worse."""
        if outcome.hits and (chosen := outcome.hits[outcome.faults.index(fault)]):
            return chosen
        bad = {layer_of(step.name) for step in self.bad}
        worse = {layer_of(name) for name, left in outcome.left.items() if left > SUSPECT_TO} - bad
        return tuple(p for p in fault.places(self.subject.model) if p is not None and p not in worse)

    def breaks(self, outcome) -> int:
        """How many steps that the dump has right would be wrong, in the layers where the faults act or after them."""
        hit = {None} | {p for fault in outcome.faults for p in self.hit(outcome, fault)}
        bad = {step.name for step in self.bad}
        wrong = [name for name, left in outcome.left.items() if left > SUSPECT_TO and name not in bad]
        wrong = [name for name in wrong if layer_of(name) in hit]
        return sum(self.left(self.base, name, self.base.errors[name]) <= NOISE_TO for name in wrong)

    def complete(self, outcome) -> bool:
        return self.explained(outcome) == len(self.bad) and not self.breaks(outcome)


def is_text(media):
    """Whether a run was given nothing but tokens, so that it can be made again in parts."""
    return is_empty(media) and not media.named
