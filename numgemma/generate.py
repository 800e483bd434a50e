"""Running the model over a sequence: in one pass, in steps through the cache, or onward token by token."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from numgemma import ops
from numgemma.errors import InputError, NonFiniteError
from numgemma.ops import definitions
from numgemma.prompt.media import part_of, picture_blocks


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.  temperature 0 is greedy; top_k and top_p None keep all tokens."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    suppress: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0 or not np.isfinite(self.temperature):
            raise InputError(f"The temperature is {self.temperature}; it should be 0 (greedy) or more.")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top-k is {self.top_k}; it should be at least 1.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top-p is {self.top_p}; it should be above 0 and at most 1.")
        if self.seed < 0:
            raise InputError(f"The seed is {self.seed}; it should be 0 or more.")


def steps(ids, prefill=None):
    """The parts of a sequence that are run one after another: (start, ids) of the first `prefill`, then one by one."""
    if prefill is not None and not 1 <= prefill <= len(ids):
        raise InputError(f"A prefill of {prefill} does not fit a prompt of {len(ids)} tokens; give 1 to {len(ids)}.")
    yield 0, ids[:prefill]
    for i in range(len(ids) if prefill is None else prefill, len(ids)):
        yield i, ids[i : i + 1]


@dataclass(frozen=True)
class Memory:
    """What bounds the memory of a run.

    chunk: a prompt runs in parts of about so many tokens; nothing changes but rounding.  cache_dtype: what keys and
    values are stored in; None: the precision of the run.
    """

    chunk: int = 2048
    cache_dtype: np.dtype | None = None

    def __post_init__(self):
        if self.chunk < 1:
            raise InputError(f"A chunk of {self.chunk} tokens holds nothing; give 1 or more.")


@contextmanager
def at_speed(dtype) -> Iterator[None]:
    """The fastest backend, and no warnings: what chooses a token says in words what is not finite."""
    with ops.using(ops.fastest(dtype)), np.errstate(all="ignore"):
        yield


def continuation(
    ids, media, w, family, run, sampling: Sampling = Sampling(), memory: Memory = Memory()
) -> Iterator[int]:
    """New token ids, one at a time, for as long as the caller asks.  ids: T   run: the first, at position 0"""
    rng = np.random.default_rng(sampling.seed)
    dtype = run.dtype
    run = replace(run, kvs=family.kvs(run.config, memory.cache_dtype or dtype))
    with at_speed(dtype):
        x = prefill(ids, media, w, family, run, memory.chunk)
    for start in itertools.count(len(ids)):
        with at_speed(dtype):
            logits = family.part("head")(x, w, run)[0]
        new = np.array([choose(logits, sampling, rng)])
        yield int(new[0])
        with at_speed(dtype):
            x = whole(new, w, family, replace(run, start=start))


def prefill(ids, media, w, family, run, chunk):
    """The stream of the last token, after the last norm.  ids: T  ->  1 D"""
    return family.part("leave")(through_prompt(ids, media, w, family, run, chunk), w, run)


def through_prompt(ids, media, w, family, run, chunk):
    """The last token behind all layers, nothing forgotten of what the last part made.  ids: T  ->  one of tokens

    Layers that only read the keys of others are left out, but for this token.
    """
    enter, layers, forget = map(family.part, ("enter", "layers", "forget"))
    rows, places = family.outline(run.config).layers, family.placeholders(run.config)
    makers = max(spec.kv_from for spec in rows) + 1
    soft = family.part("soft tokens")(media, w, run) if "soft tokens" in family.parts else {}
    blocks = picture_blocks(ids, media, places)
    for start, stop in parts(blocks, chunk):
        forget(run.kvs, rows)  # what the part before was the last to see
        run = replace(run, start=start)
        here = part_of(soft, ids, start, stop, places)
        tokens = layers(enter(ids[start:stop], here, blocks[start:stop], w, run), rows[:makers], w, run)
    return layers(tokens.of(slice(-1, None)), rows[makers:], w, run)


def whole(ids, w, family, run):
    """The stream of all tokens of a text, after the last norm: every layer runs for each.  ids: T  ->  T D"""
    return family.part("leave")(through(ids, w, family, run), w, run)


def through(ids, w, family, run):
    """All tokens of a text behind all layers.  ids: T  ->  tokens"""
    enter, layers = map(family.part, ("enter", "layers"))
    no_picture = np.full(len(ids), -1)
    return layers(enter(ids, {}, no_picture, w, run), family.outline(run.config).layers, w, run)


def parts(blocks, chunk):
    """Where a prompt is cut into parts of about `chunk` tokens: no image is cut.  blocks: T  ->  pairs start, stop"""
    whole = (blocks >= 0) & (np.append(blocks[1:], -1) == blocks)  # no cut behind these
    start = 0
    while start < len(blocks):
        stop = min(start + chunk, len(blocks))
        while whole[stop - 1]:
            stop += 1
        yield start, stop
        start = stop


def choose(logits, sampling: Sampling, rng) -> int:
    """One token id.  logits: V.  Order of the filters as in Transformers: suppress, temperature, top-k, top-p."""
    logits = allowed(logits, sampling)
    if sampling.temperature == 0:
        return int(logits.argmax())
    likeliest, probs = candidates(logits, sampling)
    return int(rng.choice(likeliest, p=probs))


def distribution(logits, sampling: Sampling):
    """The probability of each token to be chosen, at a temperature above 0.  logits: V  ->  V"""
    likeliest, probs = candidates(allowed(logits, sampling), sampling)
    found = np.zeros(len(logits))
    found[likeliest] = probs
    return found


def allowed(logits, sampling: Sampling):
    """The logits in float64, without those of tokens that are suppressed."""
    logits = logits.astype(np.float64)
    if not np.isfinite(logits).all():
        raise NonFiniteError("The logits are not finite; `numgemma dump` names the point where that begins.")
    logits[list(sampling.suppress)] = -np.inf
    return logits


def candidates(logits, sampling: Sampling):
    """The tokens that may be drawn, the likeliest first, and their probabilities."""
    likeliest = np.argsort(-logits, kind="stable")[: sampling.top_k]
    probs = definitions.softmax((logits[likeliest] - logits.max()) / sampling.temperature)
    if sampling.top_p is not None:
        before = np.cumsum(probs) - probs  # what is likelier than this token; the first always stays
        probs = np.where(before < sampling.top_p, probs, 0)
    return likeliest, probs / probs.sum()
