"""Faults of some tokens alone: of the cached steps, of one chunk, of one picture.

Every step is recomputed from the dump's own tensors, so what is wrong for some tokens shows in their rows alone.  A
known fault explains it if the dump has the faulty rows there and the right rows elsewhere.
"""

import re
from collections.abc import Iterable

import numpy as np

from numgemma.debug.blame.one_step import Local, Rerun, measured
from numgemma.debug.compare.scoring import SUSPECT_TO
from numgemma.debug.measure import metrics, overlap
from numgemma.debug.measure.precision import TOLERANCES


def wrong_tokens(subject: Rerun, base: Local, names: Iterable[str], limits: dict[str, float]) -> tuple[int, ...]:
    """The tokens that are wrong in some step; () where that cannot be told, or where all are.

    limits: step -> the relative error that noise makes of a token.
    """
    wrong = np.zeros(len(subject.ids), bool)
    for name in names:
        rows = errors_of_tokens(subject, base, name)
        if rows is None or len(rows) != len(wrong):
            return ()
        wrong |= rows > SUSPECT_TO * limits[name]
    return () if wrong.all() else tuple(int(t) for t in np.flatnonzero(wrong))


def errors_of_tokens(subject: Rerun, base: Local, name):
    """The relative error of each token at a step; None where the step is not known whole."""
    if name not in base.truth or not overlap.whole(subject.dump, name) or "router." in name:
        return None
    x, axes = np.asarray(base.truth[name], np.float64), base.axes[name]
    token, _ = metrics.split_axes(axes)
    if not token:
        return None
    d = np.asarray(subject.dump[name], np.float64).reshape(x.shape) - x
    others = tuple(i for i in range(x.ndim) if i != token[0])
    return np.sqrt((d * d).sum(others) / np.maximum(metrics.token_sizes((x * x).sum(others)), 1e-300))


def closed(tokens: tuple[int, ...], total: int) -> tuple[int, ...]:
    """All from the first of them to the last: a row in between may be right by chance, as where nothing is masked."""
    return tuple(range(tokens[0], tokens[-1] + 1)) if len(tokens) > 1 else tokens


def mixed(subject: Rerun, base: Local, after: Local, tokens: tuple[int, ...]) -> Local:
    """The steps under a fault that acts on these tokens alone.  after: on all of them"""
    found = Local(limits=after.limits, axes=base.axes)
    channel_floor = TOLERANCES[subject.precision].channel_floor
    for name, y in after.truth.items():
        axis, _ = metrics.split_axes(base.axes.get(name, ""))
        if name not in base.truth or not axis or "router." in name:
            continue
        x = np.moveaxis(np.array(base.truth[name]), axis[0], 0)
        if len(x) != len(subject.ids):
            continue
        x[list(tokens)] = np.moveaxis(np.asarray(y), axis[0], 0)[list(tokens)]
        found.truth[name] = np.moveaxis(x, 0, axis[0])
        found.errors[name] = measured(name, found.truth[name], base.axes[name], subject.dump, channel_floor)
    return found


def in_words(tokens: tuple[int, ...], dump) -> str:
    """What these tokens are called: ", in the cached steps alone (from token 7 on)"."""
    if not tokens:
        return ""
    first, last, total = tokens[0], tokens[-1], len(dump.meta.get("ids") or ())
    prefill = re.fullmatch(r"after (\d+) tokens", str(dump.meta.get("cache")))
    if prefill and first == int(prefill[1]) and last == total - 1:
        return f", in the cached steps alone (from token {first} on)"
    for span in dump.meta.get("media") or ():
        if (span.get("first"), span.get("count")) == (first, len(tokens)):
            return f", at the {span.get('kind')} of tokens {first} to {last} alone"
    if first == last:
        return f", at token {first} alone"
    return f", from token {first} on" if last == total - 1 else f", in tokens {first} to {last} alone"
