"""What two dumps both know of a point: the values to compare where one of them holds only a part, or rounded values.

An engine may print the first and last three values along every axis, four decimals each, and a sum; or keep the
logits of the last token alone.  Such a point is stored as the block of its known values, and the dump says in
`meta["parts"][name]` how that block lies in the whole tensor, as plain values that a file can hold:

    shape   the whole tensor's
    at      per axis the indices known, or None for all
    slack   how far a value may be from the true one: {"abs": 5e-5}, or {"digits": 4} after the leading digit
    sum, mean, std, min, max   of the whole tensor, where they are known

A reader of dumps that does not look here sees another shape, and calls the point not comparable: never the same.
"""

import math
from dataclasses import replace

import numpy as np

from numgemma.debug.measure import metrics
from numgemma.debug.measure.precision import decimal_step

EPS32 = 2.0**-24  # half a unit in the last place of float32
SIGMAS = 3  # a sum of random errors is that many times their root of squares at most
STATS = ("sum", "mean", "std", "min", "max")


def part(dump, name):
    """How the point is known in part, or None where it is known whole and as it was."""
    return (dump.meta.get("parts") or {}).get(name)


def whole(dump, name) -> bool:
    """Whether every value of the point is there, though perhaps rounded."""
    known = part(dump, name)
    return known is None or list(dump[name].shape) == list(known["shape"])


def full_shape(dump, name):
    known = part(dump, name)
    return dump[name].shape if known is None else tuple(known["shape"])


def both(name, a, b):
    """The values that both dumps know, and the axes of each: (x, axes of x, y, axes of y).

    Joined axes are split as the other side has them ("T NH" against "T N H"), y is moved towards x by what rounding
    may account for.  Where the tensors do not fit, they come back as they are.
    """
    x, y, axes_x, axes_y = a[name], b[name], a.axes[name], b.axes[name]
    shape_x, shape_y = full_shape(a, name), full_shape(b, name)
    if not (part(a, name) or part(b, name)) and shape_x == shape_y:
        return x, axes_x or axes_y, y, axes_y or axes_x
    if len(shape_x) == len(shape_y) and shape_x != shape_y:
        return x, axes_x, y, axes_y
    if not same_letters(axes_x, axes_y) or math.prod(shape_x) != math.prod(shape_y):
        return x, axes_x, y, axes_y
    if shape_x != shape_y:  # only a tensor that is there whole can take the other's shape
        if whole(a, name):
            x, shape_x, axes_x = x.reshape(shape_y), shape_y, axes_y
        elif whole(b, name):
            y, axes_y = y.reshape(shape_x), axes_x
        else:
            return x, axes_x, y, axes_y
    at_x, at_y = indices(a, name, shape_x), indices(b, name, shape_x)
    common = [np.intersect1d(i, j) for i, j in zip(at_x, at_y, strict=True)]
    x, y = (cut(values, at, common) for values, at in ((x, at_x), (y, at_y)))
    return x, axes_x or axes_y, nearest(x, y, slack(a, name, x) + slack(b, name, y)), axes_y or axes_x


def same_letters(axes_x, axes_y):
    """Whether both name the same axes, joined or not; unknown axes ("") may be any."""
    return not axes_x or not axes_y or axes_x.replace(" ", "") == axes_y.replace(" ", "")


def indices(dump, name, shape):
    """Per axis, the places in the whole tensor that the block's values have."""
    known = part(dump, name)
    if known is None or whole(dump, name):
        return [np.arange(n) for n in shape]
    return [np.arange(n) if at is None else np.asarray(at, np.int64) for n, at in zip(shape, known["at"], strict=True)]


def cut(block, at, wanted):
    """The values of a block at those places of the whole tensor that are wanted."""
    if all(len(i) == len(j) for i, j in zip(at, wanted, strict=True)):
        return block
    return block[np.ix_(*(np.searchsorted(i, j) for i, j in zip(at, wanted, strict=True)))]


def slack(dump, name, values):
    """How far each value may be from the one that was computed."""
    rule = (part(dump, name) or {}).get("slack")
    if not rule or values.dtype.kind in "iub":
        return 0.0
    if "abs" in rule:
        return rule["abs"]
    size = np.abs(np.asarray(values, np.float64))
    with np.errstate(all="ignore"):  # zeros and infinities have no leading digit
        unit = 10.0 ** (np.floor(np.log10(size)) - rule["digits"])
    return np.where(np.isfinite(unit), unit / 2, 0.0)


def step(dump, name) -> float:
    """RMS of the error of values that are kept with a few decimals; 0 where `slack` takes it out of every value."""
    return 0.0 if (part(dump, name) or {}).get("slack") else decimal_step(dump)


def nearest(x, y, room):
    """y, each value moved towards x by at most `room`: what the other side can have been at best."""
    if np.ndim(room) == 0 and room == 0:
        return y
    with np.errstate(invalid="ignore"):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        near = x + np.sign(y - x) * np.maximum(np.abs(y - x) - room, 0)
    return np.where(np.isfinite(y) & np.isfinite(x), near, y)  # what is not finite stays so


def measure(name, a, b, channel_floor=1e-3):
    """As metrics.measure, on what both dumps know; a stated sum, mean, deviation or extreme counts as one more value.

    rel is None where no value and no such number is known on both sides: not measured, which is not the same as equal.
    """
    x, axes, y, _ = both(name, a, b)
    found = metrics.measure(x, y, axes, channel_floor) if x.size else metrics.Measure()
    hidden = tuple(side for side, dump in (("a", a), ("b", b)) if not_finite_within(dump, name))
    if found.nonfinite or hidden:
        return replace(metrics.Measure(), nonfinite=found.nonfinite or hidden, max_abs_at=found.max_abs_at)
    errors = [*totals(name, a, b).values(), *([] if found.rel is None else [found.rel])]
    return replace(found, rel=max(errors, default=None), **places(name, a, b, found, axes))


def not_finite_within(dump, name):
    """Whether a stated sum or extreme betrays a NaN or an infinity among the values that are not known."""
    stated = part(dump, name) or {}
    return any(stated.get(stat) is not None and not math.isfinite(stated[stat]) for stat in ("sum", "min", "max"))


def places(name, a, b, found, axes):
    """The coordinates of a Measure of known values, as places in the whole tensor."""
    if whole(a, name) and whole(b, name):
        return {}
    at = places_in_common(name, a, b)
    token, channel = metrics.split_axes(axes)
    kept = {"worst_token_at": token, "worst_channel_at": channel, "max_abs_at": range(len(at))}
    return {
        key: [int(at[axis][i]) for axis, i in zip(which, getattr(found, key), strict=True)]
        for key, which in kept.items()
        if getattr(found, key) is not None
    }


def places_in_common(name, a, b):
    """Per axis, where in the whole tensor the values lie that `both` returns."""
    shape = full_shape(b if part(b, name) else a, name)
    return [np.intersect1d(i, j) for i, j in zip(indices(a, name, shape), indices(b, name, shape), strict=True)]


def totals(name, a, b) -> dict[str, float]:
    """Relative errors of the sums and extremes that one side states and the other, being whole, lets us compute."""
    for stated, other in ((a, b), (b, a)):
        known = part(stated, name) or {}
        if part(other, name) is None and other[name].dtype.kind not in "iub" and other[name].size:
            x = np.asarray(other[name], np.float64)
            return {stat: total(stat, x, known[stat], known) for stat in STATS if known.get(stat) is not None}
    return {}


def total(stat, x, value, known):
    """How far one stated number is from the same number of x, beyond what its own rounding may account for.

    Errors that are random in sign make the sum of n values err by sqrt(n) times the error of one: so the error of a
    sum is measured against |x|, and is then of the size of the tensor's relative error, but for chance.  An extreme is
    one value, and errs by more than the RMS of all.
    """
    size = SIGMAS * float(np.sqrt(np.vdot(x, x)))
    if stat == "sum":  # printed with six decimals, after adding up one by one in float32
        partial = np.cumsum(x, dtype=np.float32).astype(np.float64)
        room = 5e-7 + 4 * EPS32 * float(np.sqrt(np.vdot(partial, partial)))
        return over(value, float(x.sum()), room, size)
    room = float(slack_of(value, known.get("slack") or {}))
    if stat == "mean":
        return over(value * x.size, float(x.sum()), room * x.size, size)
    if stat == "std":  # as PyTorch, which divides by n - 1
        return over(value, float(x.std(ddof=1)) if x.size > 1 else math.nan, room, size / SIGMAS / math.sqrt(x.size))
    return over(value, float(x.min() if stat == "min" else x.max()), room, SIGMAS * float(np.abs(x).max()))  # one value


def slack_of(value, rule):
    """The slack of one number under a rule."""
    if "digits" in rule and value:
        return 10.0 ** (math.floor(math.log10(abs(value))) - rule["digits"]) / 2
    return rule.get("abs", 0.0)


def over(value, true, room, size):
    """|value - true| beyond `room`, relative to `size`; a deviation that one value does not have is no error."""
    if math.isnan(value) or math.isnan(true):
        return 0.0
    beyond = max(abs(value - true) - room, 0.0)
    return beyond / size if size else (math.inf if beyond else 0.0)
