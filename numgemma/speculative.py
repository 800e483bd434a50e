"""Speculative decoding: a drafter guesses k tokens, the target checks them in one pass; nothing changes but the time.

    a round:  k drafts, each from the one before it (families/drafter)
              one pass of the target over the newest token and its drafts: k + 1 rows of logits
              the target chooses from each row as it would alone; drafts stay for as long as it chooses the same
              keys of refused drafts are taken back

A draft x is fixed when the target draws y from its distribution p: so x stays with probability p(x), and what else may
stand in its place has p without x, renormalised.  Those are the target's own draws, one a token: the same seed gives
the same text with a drafter and without one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from numgemma.cache import beside, rewind
from numgemma.errors import InputError
from numgemma.generate import Memory, Sampling, at_speed, choose, through, through_prompt

# What queries of a drafter's layer and keys of the target's must have in common.
SHARED = {"K": "key/value heads", "H": "lanes a head", "theta": "as rope base", "angles": "turning pairs of lanes"}
SHARED |= {"rope_factor": "as rope factor"}


@dataclass(frozen=True, eq=False)
class Draft:
    """Who drafts, a numgemma.Model of a drafter in the target's precision; and how many tokens a round at most."""

    model: Any
    tokens: int = 4

    def __post_init__(self):
        if self.tokens < 1:
            raise InputError(f"{self.tokens} tokens a round are to be drafted; give 1 or more.")


@dataclass(frozen=True)
class Round:
    """One pass of the target: what was drafted for it, how many of the drafts stay, and all that stays."""

    drafted: tuple[int, ...]
    accepted: int
    kept: tuple[int, ...]

    def until(self, count):
        """The same round, cut behind so many tokens."""
        return Round(self.drafted, min(self.accepted, count), self.kept[:count])


def rounds(target, draft: Draft, ids, media, limit, sampling: Sampling, memory: Memory) -> Iterator[Round]:
    """At most `limit` new tokens, round by round; the first has no drafts.  ids: T, checked   target: a Model"""
    donors = keys_for(target, draft.model)
    if limit == 0:
        return
    rng, rows, forget = np.random.default_rng(sampling.seed), target.outline.layers, target.family.part("forget")
    run = replace(target.run(), kvs=target.family.kvs(target.config, memory.cache_dtype or target.dtype))
    with at_speed(target.dtype):
        tokens = through_prompt(ids, media, target.weights, target.family, run, memory.chunk)
        h, logits = ended(tokens, target, run)
    drafted: list[int] = []
    guesses: list[np.ndarray] = []
    length = len(ids)
    while True:
        kept = check(drafted, guesses, logits, sampling, rng)
        n, length, limit = len(kept) - 1, length + len(kept), limit - len(kept)
        keys = accepted_keys(run.kvs, donors, len(drafted) - n)
        rewind(run.kvs, len(drafted) - n)
        forget(run.kvs, rows)
        yield Round(tuple(drafted), n, tuple(kept))
        if limit <= 0:
            return
        with at_speed(target.dtype):
            count, at = min(draft.tokens, limit - 1), np.array([length - 1])  # one place is the target's own
            drafted, guesses = guess(count, kept[-1], h[n : n + 1], keys, at, target, draft.model, sampling.suppress)
            run = replace(run, start=length - 1)
            new = through(np.array([kept[-1], *drafted]), target.weights, target.family, run)
            h, logits = ended(new, target, run)


def until_stop(found: Iterator[Round], stops) -> Iterator[Round]:
    """Rounds, cut behind the first token that stops."""
    for one in found:
        ends = [n for n, i in enumerate(one.kept, 1) if i in stops]
        yield one.until(ends[0]) if ends else one
        if ends:
            return


def ended(tokens, target, run):
    """The stream after the last norm, and logits.  tokens: behind all layers  ->  T D, T V

    What a sliding layer may forget is not forgotten yet: some of these tokens may be taken back.
    """
    x = target.family.part("leave")(tokens, target.weights, replace(run, kvs=beside(run.kvs)))
    return x, target.family.part("head")(x, target.weights, run)


def guess(count, newest, h, keys, at, target, drafter, suppress):
    """So many drafts, the likeliest token each time.  h: 1 D   keys: kind: (k, v)   at: 1, the newest token's position

    -> token ids, and the drafter's logits V of each.  The position is the same for all; what the target would never
    choose is not drafted.
    """
    embed, step = target.family.part("embed"), drafter.family.part("draft")
    run, drafted, guesses = replace(drafter.run(), kvs=keys), [], []
    for _ in range(count):
        e = embed(np.array([newest]), target.weights, target.config.text, target.dtype)
        logits, h = step(np.concatenate([e, h], -1), at, drafter.weights, run)
        newest = choose(logits[0], Sampling(suppress=suppress), None)
        drafted.append(newest)
        guesses.append(logits[0])
    return drafted, guesses


def check(drafted, guesses, logits, sampling, rng) -> list[int]:
    """The tokens that stay: drafts for as long as the target chooses the same, and the first that it chooses otherwise.

    drafted: k ids   guesses: k rows V, what they were drafted by, which matters to nobody   logits: k + 1 rows V
    """
    kept: list[int] = []
    for draft, row in zip([*drafted, None], logits, strict=True):
        kept.append(choose(row, sampling, rng))
        if kept[-1] != draft:
            break
    return kept


def accepted_keys(kvs, donors, refused):
    """What a drafter reads: keys and values of the tokens that stay.  donors: kind: layer  ->  kind: (k, v), S K H"""
    return {kind: tuple(x[: len(x) - refused] for x in kvs[layer]) for kind, layer in donors.items()}


def keys_for(target, drafter) -> dict[str, int]:
    """Kind of layer -> the last layer of the target that makes such keys.  Raises InputError where they do not fit."""
    where = f"{drafter.checkpoint.folder}"
    if "draft" not in drafter.family.parts:
        raise InputError(f"{where}: is of {drafter.family.name}, which drafts for no other; give a drafter.")
    if "enter" not in target.family.parts or "embed" not in target.family.parts:
        raise InputError(f"{target.checkpoint.folder}: is of {target.family.name}, which has no drafters.")
    if drafter.dtype != target.dtype:
        raise InputError(f"{where}: is opened in {drafter.dtype}, its target in {target.dtype}; open both in one.")
    makers = {spec.kind: spec for spec in target.outline.layers if spec.kv_from == spec.index}
    for what, ours, theirs in differences(target, drafter, makers):
        if ours != theirs:
            told = f"drafts for a model with {ours} {what}, and this one has {theirs}"
            raise InputError(f"{where}: {told}; give the drafter that was made for it.")
    return {kind: makers[kind].index for kind in drafter.outline.kinds}


def differences(target, drafter, makers):
    """(what, of the model that is drafted for, of this target), of all that must be the same."""
    yield "tokens in its vocabulary", drafter.outline.vocabulary, target.outline.vocabulary
    yield "numbers in its stream", drafter.config.backbone_hidden_size, target.outline.width
    yield "as kinds of layers", sorted(drafter.outline.kinds), sorted(makers)
    for kind, spec in drafter.outline.kinds.items():
        for key, words in SHARED.items():
            yield f"{words} on {kind.replace('_', ' ')}", getattr(spec, key), getattr(makers[kind], key)
