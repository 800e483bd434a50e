"""The noise of a step: how large an error rounding alone makes there, in each of the ways that an error is measured."""

import math
from dataclasses import replace

import numpy as np

from numgemma.debug.compare.scoring import KEYS, Limits, score, widened, with_step
from numgemma.debug.measure import metrics, overlap
from numgemma.debug.measure.precision import EPS

LOOKED_UP = ("embed_tokens", "embed_tokens_per_layer")
SIGMAS = 4  # by which the mean of many roundings may be off


def size_of(subject, base, name) -> tuple[float, str]:
    """The largest error of a step in units of its noise, and which it is."""
    return score(base.errors[name], limits_at(subject, base, name))


def limits_at(subject, base, name) -> Limits:
    """The noise of a step: at least half a unit in the last place, more where few values or few decimals are known."""
    dump, m = subject.dump, base.errors[name]
    least = EPS[subject.precision] / 2
    limits = Limits(*(max(getattr(base.limits[name], key), least) for key in KEYS))
    token, channel = metrics.split_axes(base.axes[name])
    limits = replace(limits, scale=scale_limit(name, limits, base.truth[name], token))
    if not overlap.whole(dump, name):
        shape = dump[name].shape
        sizes = [int(np.prod([n for i, n in enumerate(shape) if i not in kept])) for kept in ([], token, channel)]
        limits = widened(limits, sizes)
    return with_step(limits, m, overlap.step(dump, name))


def scale_limit(name, limits, x, token):
    """How far noise takes a step's scale from 1.  token: the axis that counts tokens

    A few runs may all meet 1 by chance: so it is at least what errors make that are the same for all of a token and
    differ from token to token.  Of a table that was looked up every number is rounded by itself, once, so over many of
    them a wrong factor shows that is smaller than one rounding.
    """
    if name in LOOKED_UP:
        return SIGMAS * limits.rel / x.size**0.5
    return max(2 * limits.scale, 2 * limits.rel / math.prod(x.shape[i] for i in token) ** 0.5)
