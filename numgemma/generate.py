"""Running the model over a sequence: in one pass, in steps through the cache, or onward token by token."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from numgemma import cache, ops
from numgemma.errors import InputError, NonFiniteError
from numgemma.families.gemma4 import gemma4, multimodal
from numgemma.ops import definitions
from numgemma.prompt.media import NO_MEDIA


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
    first = len(ids) if prefill is None else prefill
    if not 1 <= first <= len(ids):
        raise InputError(f"A prefill of {first} does not fit a prompt of {len(ids)} tokens; give 1 to {len(ids)}.")
    yield 0, ids[:first]
    for i in range(first, len(ids)):
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


def continuation(
    ids, media, w, config, dtype, sampling: Sampling = Sampling(), memory: Memory = Memory()
) -> Iterator[int]:
    """New token ids, one at a time, for as long as the caller asks.  ids: T   config: the whole Config"""
    rng = np.random.default_rng(sampling.seed)
    kvs = cache.empty(config.text, memory.cache_dtype or dtype)
    with ops.using(ops.fastest(dtype)), np.errstate(all="ignore"):  # `choose` says in words what is not finite
        x = prefill(ids, media, w, config, dtype, kvs, memory.chunk)
    for start in itertools.count(len(ids)):
        with ops.using(ops.fastest(dtype)), np.errstate(all="ignore"):
            logits = gemma4.head(x, w, config.text)[0]
        new = np.array([choose(logits, sampling, rng)])
        yield int(new[0])
        with ops.using(ops.fastest(dtype)), np.errstate(all="ignore"):
            x = multimodal.hidden(new, NO_MEDIA, w, config, dtype, kvs, start)


def prefill(ids, media, w, config, dtype, kvs, chunk):
    """The stream of the last token, after the last norm.  ids: T  ->  1 D

    The layers that make no keys run for this token alone.
    """
    soft = multimodal.soft_tokens(media, w, config, dtype)
    blocks = multimodal.image_blocks(ids, media, config)
    for start, stop in parts(blocks, chunk):
        here = multimodal.part_of(soft, ids, start, stop, config)
        wanted = slice(-1, None) if stop == len(ids) else slice(0, 0)
        x = multimodal.with_soft_tokens(
            ids[start:stop], here, blocks[start:stop], w, config, dtype, kvs, start, wanted=wanted
        )
    return x


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
    logits = logits.astype(np.float64)
    if not np.isfinite(logits).all():
        raise NonFiniteError("The logits are not finite; `numgemma dump` names the point where that begins.")
    logits[list(sampling.suppress)] = -np.inf
    if sampling.temperature == 0:
        return int(logits.argmax())
    likeliest = np.argsort(-logits, kind="stable")[: sampling.top_k]
    probs = definitions.softmax((logits[likeliest] - logits.max()) / sampling.temperature)
    if sampling.top_p is not None:
        before = np.cumsum(probs) - probs  # what is likelier than this token; the first always stays
        probs = np.where(before < sampling.top_p, probs, 0)
    return int(rng.choice(likeliest, p=probs / probs.sum()))
