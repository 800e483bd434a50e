"""What a wrong tensor looks like: the right one scaled, with its heads in another order, one token late, ...

Every hint is a claim that was checked: it is given only where undoing the change leaves an error that noise explains,
or a tenth of what there was.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from numgemma.debug.compare.result import Hint
from numgemma.debug.measure import metrics
from numgemma.debug.measure.discrete import layer_of, leaf_of

ELEMENTS = 2**22  # of a large tensor, so many of its first tokens are looked at
WIDEST = 4096  # the longest axis whose permutations are looked for
ALIKE = 0.9  # correlation that a permuted lane must have with its origin
MOST = 3  # hints per point


def hints(name, a, b, axes, limit: float) -> list[Hint]:
    """What B's tensor is in terms of A's, the best explanation first.  limit: the relative error that noise explains"""
    x, y = a[name], b[name]
    if x.size == 0 or x.dtype.kind in "iub" or y.dtype.kind in "iub":
        return []
    x, y = (np.asarray(side, np.float64) for side in (first_tokens(x, axes), first_tokens(y, axes)))
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or not x.any():
        return []
    before = relative(x, y)
    enough = min(max(limit, before / 10), before / 2)
    found = [
        Hint(point=name, kind=kind, says=says, rel_after=after)
        for look in LOOKS
        for kind, says, after in look(name, x, y, axes, limit, a, b)
        if after <= enough
    ]
    return sorted(found, key=lambda hint: hint.rel_after)[:MOST]


def first_tokens(x, axes):
    """A tensor without its last tokens, where it is large."""
    token, _ = metrics.split_axes(axes)
    if not token or x.size <= ELEMENTS:
        return x
    keep = max(1, ELEMENTS // (x.size // x.shape[token[0]]))
    return x[(slice(None),) * token[0] + (slice(keep),)]


def relative(x, y):
    """Relative RMS error of y against x."""
    return metrics.ratio(float(((x - y) ** 2).sum()), float((x**2).sum()))


Found = Iterator[tuple[str, str, float]]  # kind, what it says, the relative error that is left


def scaled(name, x, y, axes, limit, a, b) -> Found:
    """A lost or doubled factor, a changed sign, nothing at all."""
    if not y.any():
        yield "zero", "B is all zeros", 0.0
        return
    factor = float(np.vdot(x, y) / np.vdot(x, x))
    if factor:
        words = "A with its sign changed" if abs(factor + 1) < 1e-3 else f"A times {factor:.4g}{root(factor, x.shape)}"
        yield "scaled", f"B is {words}", relative(factor * x, y)


def root(factor, shape):
    """Where a factor comes from, if it is a power of an axis' length."""
    for n in dict.fromkeys(shape):
        for power, text in ((0.5, f"sqrt({n})"), (-0.5, f"1/sqrt({n})"), (1, f"{n}"), (-1, f"1/{n}")):
            if n > 3 and abs(abs(factor) / n**power - 1) < 3e-3:
                return f", about {text}"
    return ""


def some_tokens(name, x, y, axes, limit, a, b) -> Found:
    """One token, or all from some token on."""
    token, _ = metrics.split_axes(axes)
    if not token or x.shape[token[0]] < 3:
        return
    x, y = (np.moveaxis(side, token[0], 0).reshape(side.shape[token[0]], -1) for side in (x, y))
    errors = np.sqrt(((x - y) ** 2).sum(1) / np.maximum((x**2).sum(1), 1e-6 * (x**2).sum() / len(x)))
    bad = np.flatnonzero(errors > 10 * max(limit, float(errors.min())))
    if len(bad) == 0 or len(bad) == len(x):
        return
    good = np.setdiff1d(np.arange(len(x)), bad)
    after = relative(x[good], y[good])
    if len(bad) == 1:
        yield "one token", f"only token {bad[0]} is off", after
    elif bad[0] > 0 and len(bad) == len(x) - bad[0]:
        yield "from a token on", f"only the tokens from {bad[0]} on are off, all of them", after


def some_channels(name, x, y, axes, limit, a, b) -> Found:
    """A few channels of many, dead or not."""
    _, channel = metrics.split_axes(axes)
    n = math.prod(x.shape[i] for i in channel)
    if not channel or n < 16 or channel != list(range(channel[0], channel[0] + len(channel))):
        return
    shape = [x.shape[i] for i in channel]
    x, y = (np.moveaxis(side, channel, range(len(channel))).reshape(n, -1) for side in (x, y))
    errors = np.sqrt(((x - y) ** 2).sum(1) / np.maximum((x**2).sum(1), 1e-6 * (x**2).sum() / n))
    bad = np.flatnonzero(errors > 10 * max(limit, float(np.median(errors))))
    if not 0 < len(bad) <= n // 8:
        return
    good = np.setdiff1d(np.arange(n), bad)
    where = ", ".join(place(np.unravel_index(i, shape)) for i in bad[:3]) + (", ..." if len(bad) > 3 else "")
    dead = " and zero in B" if not y[bad].any() else ""
    yield "channels", f"only {count(len(bad), 'channel')} of {n} are off{dead}: {where}", relative(x[good], y[good])


def place(at):
    at = [int(i) for i in at]
    return str(at[0]) if len(at) == 1 else str(tuple(at))


def count(n, word):
    return f"{n} {word}{'s' * (n != 1)}"


def shifted(name, x, y, axes, limit, a, b) -> Found:
    """Every token has the values of its neighbour."""
    token, _ = metrics.split_axes(axes)
    if not token or x.shape[token[0]] < 3:
        return
    x, y = (np.moveaxis(side, token[0], 0) for side in (x, y))
    yield "shifted", "B is one token late: token t has A's values of token t - 1", relative(x[:-1], y[1:])
    yield "shifted", "B is one token early: token t has A's values of token t + 1", relative(x[1:], y[:-1])


def permuted(name, x, y, axes, limit, a, b) -> Found:
    """The same numbers in another order along one axis: heads, lanes, channels."""
    letters = axes.split()
    for axis, n in enumerate(x.shape):
        if letters[axis] in metrics.POSITIONS or not 2 <= n <= WIDEST:
            continue
        rows = [np.moveaxis(side, axis, 0).reshape(n, -1) for side in (x, y)]
        order = matching(*rows)
        if order is not None:
            kind = {"N": "heads", "K": "heads", "H": "lanes", "E": "experts"}.get(letters[axis], "channels")
            says = f"B has A's {kind} in another order: {order_in_words(order, letters[axis])}"
            yield f"{kind} permuted", says, relative(rows[0][order], rows[1])


def matching(x, y):
    """For every row of y the row of x that it is; None where that is no permutation, or the identity."""
    scale_x, scale_y = (np.sqrt((rows**2).sum(1, keepdims=True)) for rows in (x, y))
    if not (scale_x.all() and scale_y.all()):
        return None
    likeness = (y / scale_y) @ (x / scale_x).T
    order = likeness.argmax(1)
    certain = likeness[np.arange(len(x)), order] > ALIKE
    is_permutation = np.array_equal(np.sort(order), np.arange(len(x)))
    return order if is_permutation and certain.all() and not np.array_equal(order, np.arange(len(x))) else None


def order_in_words(order, letter):
    """What a permutation is called; else its first places."""
    n = len(order)
    places = np.arange(n)
    known: list[tuple[np.ndarray, str]] = [(places[::-1], "back to front")]
    if n % 2 == 0:
        halves = places.reshape(2, -1)
        pairs = "lane" if letter == "H" else "place"
        known += [
            (halves.T.ravel(), f"interleaved, {pairs} pairs (2i, 2i + 1) where A has halves (i, i + {n // 2})"),
            (places.reshape(-1, 2).T.ravel(), f"in halves (i, i + {n // 2}) where A has {pairs} pairs (2i, 2i + 1)"),
            (halves[::-1].ravel(), "its two halves swapped"),
        ]
    known += [(np.roll(places, k), f"moved on by {k}") for k in (1, -1)]
    for rows in range(2, n // 2 + 1):
        if n % rows == 0:
            known.append((places.reshape(rows, -1).T.ravel(), f"{rows} groups of {n // rows} read across"))
    for candidate, says in known:
        if np.array_equal(order, candidate):
            return says
    wrong = np.flatnonzero(order != places)
    some = ", ".join(f"{i} is A's {order[i]}" for i in wrong[:3])
    return some + (", ..." if len(wrong) > 3 else "")


def transposed(name, x, y, axes, limit, a, b) -> Found:
    """The same memory read with two axes exchanged."""
    letters = axes.split()
    for i in range(x.ndim - 1):
        if 1 in x.shape[i : i + 2]:
            continue
        swapped = np.swapaxes(x, i, i + 1).reshape(x.shape)
        says = f"B is A with the axes {letters[i]} and {letters[i + 1]} exchanged in memory"
        yield "transposed", says, relative(swapped, y)
        back = x.reshape(*x.shape[:i], x.shape[i + 1], x.shape[i], *x.shape[i + 2 :])
        if x.shape[i] != x.shape[i + 1]:
            yield "transposed", says, relative(np.swapaxes(back, i, i + 1), y)


def copied(name, x, y, axes, limit, a, b) -> Found:
    """Another point's tensor: an aliased buffer, overwritten before it was saved; or a layer counted wrong."""
    for other in nearest_first(name, b):
        z = twin(other, b, y, axes)
        if z is not None and np.array_equal(z, y) and (other not in a or relative(x, full(a, other, axes, x)) > limit):
            yield "copy", f"B's tensor is bit for bit its own {other}: a buffer that was used again", 0.0
            break
    for other in nearest_first(name, a):
        z = twin(other, a, y, axes)
        if z is not None and relative(z, x) > limit:
            yield "copy", f"B is A's {other}", relative(z, y)


def nearest_first(name, dump):
    """Points that might be mistaken for this one: of its layer, and its namesakes in others, the nearest first."""
    layer, leaf = layer_of(name), leaf_of(name)
    alike = [other for other in dump if other != name and (layer_of(other) == layer or leaf_of(other) == leaf)]
    return sorted(alike, key=lambda other: abs((layer_of(other) or 0) - (layer or 0)))


def twin(other, dump, y, axes):
    """Another point, if its first token could be y's."""
    if dump[other].ndim != y.ndim or dump.axes.get(other, "") != axes or dump[other].dtype.kind in "iub":
        return None
    z = first_tokens(dump[other], axes)
    if z.shape != y.shape or not np.allclose(np.asarray(z[0], np.float64), y[0], rtol=0.1, atol=0.1 * np.abs(y).max()):
        return None
    return np.asarray(z, np.float64)


def full(dump, name, axes, like):
    """Another point for comparison; nothing that is equal to `like` where it has no such shape."""
    z = first_tokens(dump[name], axes)
    return np.asarray(z, np.float64) if z.shape == like.shape else np.full(like.shape, np.inf)


def uncapped(name, x, y, axes, limit, a, b) -> Found:
    """Logits without their soft cap."""
    if name == "logits" and "lm_head" in a and a["lm_head"].shape == a[name].shape:
        raw = np.asarray(first_tokens(a["lm_head"], axes), np.float64)
        if relative(x, raw) > limit:
            yield "uncapped", "B's logits are A's lm_head: the soft cap is missing", relative(raw, y)


LOOKS: tuple[Callable[..., Found], ...] = (
    *(scaled, some_tokens, some_channels, shifted, permuted, transposed, uncapped, copied),
)
