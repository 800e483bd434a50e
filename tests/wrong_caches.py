"""Engines that handle numgemma's own cache wrongly: a dump of what they compute from another sequence's rows."""

import numpy as np

from numgemma.dump import Dump
from numgemma.prompt.media import NO_MEDIA
from numgemma.trace import Recorder

MODULES = ("*", "!*attn.scores", "!*attn.probs", "!*attn.?_rope", "!*attn.context")
PROMPT = 11  # tokens of the first pass, where there are more


def run_with(model, ids, ends, cache, position):
    """A run in parts, each with the cache and at the position that it is given: cache(start), position(start)."""
    dump = Dump(model.describe(ids, MODULES, prefill=ends[0] if len(ends) > 1 else None))
    start = 0
    for end in ends:
        dump.start = start
        tap = Recorder(dump.keep, model.dtype, MODULES)
        model.forward(np.asarray(ids[start:end]), NO_MEDIA, model.run(cache(start), position(start)), tap)
        start = end
    return dump


def kept(model, ids, kvs, start=0):
    """The cache after these tokens."""
    model.forward(np.asarray(ids), NO_MEDIA, model.run(kvs, start))
    return kvs


def steps(ids):
    """Where the prompt and each cached step end."""
    return list(range(PROMPT, len(ids) + 1))


def draft_left(model, ids, other):
    """Three drafted tokens were rejected, and nobody took their rows back."""
    kvs: dict = {}
    return run_with(
        model,
        ids,
        steps(ids),
        lambda start: kept(model, other[PROMPT:], kvs, PROMPT) if start == PROMPT else kvs,
        lambda start: start if start < PROMPT else start + 3,
    )


def cache_of_another(model, ids, other):
    """The cached steps look their earlier tokens up in another sequence's place."""
    right: dict = {}
    wrong = kept(model, other[:PROMPT], {})
    return run_with(model, ids, steps(ids), lambda start: right if start < PROMPT else wrong, lambda start: start)


def turn_left(model, ids, other):
    """The cache was not emptied after an earlier turn."""
    kvs = kept(model, other, {})
    return run_with(model, ids, [len(ids)], lambda start: kvs, lambda start: start + len(other))
