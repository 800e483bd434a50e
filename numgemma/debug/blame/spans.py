"""Faults of some tokens alone: of the cached steps, of one chunk, of one picture.

Every step is recomputed from the dump's own tensors, so what is wrong for some tokens shows in their rows alone.  A
known fault explains it if the dump has the faulty rows there and the right rows elsewhere.
"""

import math
import re
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from numgemma.debug.blame.alone import only
from numgemma.debug.blame.one_step import Local, Rerun, Substitute, as_held, fed, measured
from numgemma.debug.compare.scoring import SUSPECT_TO
from numgemma.debug.measure import metrics, overlap
from numgemma.debug.measure.precision import TOLERANCES
from numgemma.dump import Dump, placed
from numgemma.prompt.media import NO_MEDIA


def wrong_tokens(subject: Rerun, base: Local, names: Iterable[str], limits: dict[str, float]) -> tuple[int, ...]:
    """The tokens that are wrong in some step; () where that cannot be told, or where all are.

    limits: step -> the relative error that noise makes of a token.
    """
    wrong = np.zeros(len(subject.ids), bool)
    for name in names:
        rows = errors_of_tokens(subject, base, name)
        if rows is None:
            continue
        if len(rows) != len(wrong):
            return ()
        wrong |= rows > SUSPECT_TO * limits[name]
    return () if wrong.all() else tuple(int(t) for t in np.flatnonzero(wrong))


def until(subject: Rerun, some: Local, name, tokens: tuple[int, ...], limit: float) -> tuple[int, ...]:
    """These tokens up to the first that the fault does not explain: what comes after may only have read wrong keys."""
    rows = errors_of_tokens(subject, some, name)
    if rows is None or len(rows) != len(subject.ids):
        return ()
    left = [t for t in tokens if rows[t] > SUSPECT_TO * limit]
    return tuple(t for t in tokens if t < left[0]) if left else ()


def errors_of_tokens(subject: Rerun, base: Local, name):
    """The relative error of each token at a step; None where the step is not known whole."""
    if name not in base.truth or not overlap.whole(subject.dump, name) or name.endswith("router.ids"):
        return None
    sort = np.sort if name.endswith("router.weights") else np.asarray
    x, axes = sort(np.asarray(base.truth[name], np.float64)), base.axes[name]
    token, _ = metrics.split_axes(axes)
    if not token:
        return None
    d = sort(np.asarray(subject.dump[name], np.float64).reshape(x.shape)) - x
    others = tuple(i for i in range(x.ndim) if i != token[0])
    return np.sqrt((d * d).sum(others) / np.maximum(metrics.token_sizes((x * x).sum(others)), 1e-300))


def which_one(name) -> str:
    """Which of several pictures or sounds a point of a tower is of: "vision@1", "audio@0"; "" where there is one."""
    found = re.match(r"(?:\w+\.)?(?:embed_)?(vision|audio)\w*(@\d+)\.", name)
    return found[1] + found[2] if found else ""


def tokens_of(some: Iterable[str], dump) -> tuple[int, ...]:
    """The tokens that stand for one picture or sound, by `which_one`; () for more of them, or where it is not said."""
    (kind, _, number), *more = (which.partition("@") for which in some)
    kinds = ("audio",) if kind == "audio" else ("image", "video")
    spans = [span for k in kinds for span in dump.meta.get("media") or () if span.get("kind") == k]
    if more or int(number) >= len(spans):
        return ()
    first, count = (int(spans[int(number)][key]) for key in ("first", "count"))
    return tuple(range(first, first + count))


def closed(tokens: tuple[int, ...]) -> tuple[int, ...]:
    """All from the first of them to the last: a row in between may be right by chance, as where nothing is masked."""
    return tuple(range(tokens[0], tokens[-1] + 1)) if len(tokens) > 1 else tokens


def in_parts(subject: Rerun, base: Local, after: Local, passes, under, layers=None) -> Local:
    """The steps of a run that goes through the cache and makes the fault in some passes alone.

    What `mixed` puts together of two runs is not quite that: keys and values that were not recorded are the faulty
    ones there, also of tokens that are right.  passes: of `parts`.  under: makes the fault's context.  layers: which
    alone run; None: all.
    """
    twin = replace(subject.model, dtype=np.dtype("float64"))
    whole, kvs = Dump({"ids": list(subject.ids)}), dict[int, Any]()
    now = slice(0)

    def look(name, y, axes):
        if name not in subject.dump:
            return y
        whole.keep(name, y, axes)
        return fed_rows(subject.dump, name, y, axes, whole.start, whole.total)

    few = nullcontext() if layers is None else only(layers, base, twin.family, lambda: now)
    with few, as_held(subject.precision), np.errstate(all="ignore"):
        for start, stop, wrong in passes:
            whole.start, now = start, slice(start, stop)
            with under() if wrong else nullcontext():
                tap = Substitute(look, subject.dump)
                twin.forward(np.asarray(subject.ids[now]), NO_MEDIA, twin.run(kvs, start), tap)
    return judged(subject, base, after, {name: x for name, x in whole.items() if name in after.truth})


def parts(tokens, total, dump) -> list[list[tuple[int, int, bool]]]:
    """Passes that a run may have gone through: (start, stop, whether it makes the fault).  tokens: those that are wrong

    Where the dump says that some tokens went through the cache, they may have gone one by one, or as a chunk.
    """
    first, last = tokens[0], tokens[-1] + 1
    prefill = prefill_of(dump)
    chunk = [(first, last, True)]
    steps = [(t, t + 1, True) for t in range(first, last)]
    ways = [steps, chunk] if prefill is not None and first >= prefill and last - first > 1 else [chunk]
    ends = (0, first, False), (last, total, False)
    return [[part for part in (ends[0], *way, ends[1]) if part[0] < part[1]] for way in ways]


def prefill_of(dump) -> int | None:
    """How many tokens went in one pass before the cache was used, where the dump says so."""
    found = re.fullmatch(r"after (\d+) tokens", str(dump.meta.get("cache")))
    return int(found[1]) if found else None


def fed_rows(dump, name, y, axes, start, total):
    """The dump's rows in the place of ours, as `fed` puts whole tensors."""
    shape, index = placed(y, axes, start, total)
    if not overlap.whole(dump, name) or math.prod(shape) != dump[name].size:
        return y
    rows = {**dump.arrays, name: np.asarray(dump[name]).reshape(shape)[index]} if "router." in name else None
    return fed(Dump({}, rows or {name: np.asarray(dump[name]).reshape(shape)[index]}), name, y)


def mixed(subject: Rerun, base: Local, after: Local, tokens: tuple[int, ...]) -> Local:
    """The steps under a fault that acts on these tokens alone.  after: on all of them"""
    truth = {}
    for name, y in after.truth.items():
        axis, _ = metrics.split_axes(base.axes.get(name, ""))
        if name in base.truth and axis and base.truth[name].shape[axis[0]] == len(subject.ids):
            x = np.moveaxis(np.array(base.truth[name]), axis[0], 0)
            x[list(tokens)] = np.moveaxis(np.asarray(y), axis[0], 0)[list(tokens)]
            truth[name] = np.moveaxis(x, 0, axis[0])
    return judged(subject, base, after, truth)


def judged(subject: Rerun, base: Local, after: Local, truth) -> Local:
    """What the dump should have at each step, and by how much it differs."""
    found = Local(limits=after.limits, axes=base.axes, truth=truth)
    channel_floor = TOLERANCES[subject.precision].channel_floor
    for name, x in truth.items():
        given, axes = subject.dump[name], base.axes[name]
        if name.endswith("router.ids"):
            if given.shape == x.shape:
                found.errors[name] = metrics.measure_exact(x, given, axes, in_any_order=True)
        elif name.endswith("router.weights"):
            if given.shape == x.shape:
                ours, theirs = (np.sort(np.asarray(side, np.float64), -1) for side in (x, given))
                found.errors[name] = metrics.measure(ours, theirs, axes, channel_floor)
        else:
            found.errors[name] = measured(name, x, axes, subject.dump, channel_floor)
    return found


def in_words(tokens: tuple[int, ...], dump) -> str:
    """What these tokens are called: ", in the cached steps alone (from token 7 on)"."""
    if not tokens:
        return ""
    first, last, total = tokens[0], tokens[-1], len(dump.meta.get("ids") or ())
    if first == prefill_of(dump) and last == total - 1:
        return f", in the cached steps alone (from token {first} on)"
    for span in dump.meta.get("media") or ():
        if (span.get("first"), span.get("count")) == (first, len(tokens)):
            return f", at the {span.get('kind')} of tokens {first} to {last} alone"
    if first == last:
        return f", at token {first} alone"
    return f", from token {first} on" if last == total - 1 else f", in tokens {first} to {last} alone"
