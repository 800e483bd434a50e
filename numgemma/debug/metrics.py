"""The numbers by which two tensors are compared, and how large each of them may be.

No single number sees every fault.  Cosine is blind to a lost factor; the relative error of a whole tensor is blind to
one dead channel of 1536 or one bad token of many.  So a point is judged by three relative errors: of the tensor, of its
worst token and of its worst channel.  Cosine, best-fit scale and the largest difference tell a reader what happened.

a is the reference and b the candidate: every relative error is relative to a.  Sums are float64 and run over blocks of
a few megabytes, so a tensor larger than memory can be compared from its file.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from numgemma.errors import InputError

BLOCK = 2**18  # elements: 2 MiB as float64

# Axes that count positions (tokens, keys, image patches, soft tokens, audio frames).  The first one present is the
# "token"; all axes that are not in this list together are the "channel", so of "T N H" it is a pair (N, H).
POSITIONS = ("T", "S", "I", "O", "U")

# A token much quieter than the rest is measured against this share of the tensor's RMS, not against its own: the
# rounding noise of a token that is almost zero is as large as the token, and no fault.
TOKEN_FLOOR = 1e-3


@dataclass(frozen=True)
class Tolerance:
    """The largest relative error of a tensor, of a token and of a channel that still counts as the same."""

    rel: float
    worst_token: float
    worst_channel: float
    # As TOKEN_FLOOR, for channels.  It grows with the rounding step because a matmul spreads its noise evenly over its
    # outputs: in bfloat16 a channel at 1 % of the tensor's RMS is all noise, and would always read as a fault.
    channel_floor: float


# Finest first.  The coarser precision of the two dumps counts.
TOLERANCES = {
    "float64": Tolerance(1e-10, 1e-9, 1e-7, 1e-3),
    "float32": Tolerance(2e-5, 1e-4, 1e-2, 1e-3),
    "float16": Tolerance(4e-3, 2e-2, 4e-1, 1e-2),
    # One rounding is 0.17 %; some dozens of layers of them add up to a few percent in a model that is right.
    "bfloat16": Tolerance(3e-2, 1e-1, 8e-1, 1e-1),
}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is known about one pair of tensors.  None: not defined here; inf: a is zero and b is not."""

    rel: float | None = None
    cos: float | None = None
    scale: float | None = None
    worst_token: float | None = None
    worst_token_at: list[int] | None = None
    worst_channel: float | None = None
    worst_channel_at: list[int] | None = None
    max_abs: float | None = None
    max_abs_at: list[int] | None = None
    a_at: float | None = None
    b_at: float | None = None
    nonfinite: tuple[str, ...] = ()


def measure(a: np.ndarray, b: np.ndarray, axes: str, channel_floor: float = 1e-3) -> Measure:
    """Compare floating point tensors of one shape.  With non-finite values, the place of the first and no numbers."""
    if a.size == 0:
        return Measure(rel=0.0)
    token, channel = split_axes(axes)
    aa_token, dd_token = _zeros(a, token), _zeros(a, token)
    aa_channel, dd_channel = _zeros(a, channel), _zeros(a, channel)
    ab, bb, peak, peak_at = 0.0, 0.0, 0.0, None
    with np.errstate(all="ignore"):  # a non-finite value ends up in the sums, and is looked for only then
        for index in blocks(a.shape):
            x, y = (np.asarray(tensor[index], dtype=np.float64) for tensor in (a, b))
            d = x - y
            ab, bb = ab + float(np.vdot(x, y)), bb + float(np.vdot(y, y))
            for values, by_token, by_channel in ((x * x, aa_token, aa_channel), (d * d, dd_token, dd_channel)):
                _add(by_token, token, index, values)
                _add(by_channel, channel, index, values)
            d = np.abs(d)
            if d.max() > peak:
                peak, peak_at = float(d.max()), _coordinate(index, d.shape, d.argmax())
        aa, dd = float(aa_token.sum()), float(dd_token.sum())
        worst_token, worst_token_at = _worst(aa_token, dd_token, TOKEN_FLOOR)
        worst_channel, worst_channel_at = _worst(aa_channel, dd_channel, channel_floor)
    if not math.isfinite(aa + bb + dd):
        return _not_finite(a, b)
    return Measure(
        rel=_ratio(dd, aa),
        cos=max(-1.0, min(1.0, ab / (math.sqrt(aa) * math.sqrt(bb)))) if aa and bb else None,
        scale=ab / aa if aa else None,
        worst_token=worst_token,
        worst_token_at=worst_token_at,
        worst_channel=worst_channel,
        worst_channel_at=worst_channel_at,
        max_abs=peak,
        max_abs_at=peak_at,
        a_at=_value(a, peak_at),
        b_at=_value(b, peak_at),
    )


def measure_exact(a: np.ndarray, b: np.ndarray, axes: str, in_any_order: bool) -> Measure:
    """Compare integers: rel is the share of tokens whose values are not all equal.  a, b: T J or any axes"""
    if a.size == 0:
        return Measure(rel=0.0)
    if first_nonfinite(a) or first_nonfinite(b):
        return _not_finite(a, b)
    if in_any_order:
        a, b = np.sort(a, axis=-1), np.sort(b, axis=-1)
    token, _ = split_axes(axes)
    others = tuple(i for i in range(a.ndim) if i not in token)
    wrong = np.asarray((a != b).any(axis=others))
    at = [int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape)] if wrong.any() else None
    return Measure(rel=float(wrong.mean()), worst_token=float(wrong.any()), worst_token_at=at)


def least_tolerance(m: Measure, row: Tolerance) -> float | None:
    """The relative error to allow so that m passes, if its row of tolerances is scaled as a whole; None: none does."""
    pairs = ((m.rel, row.rel), (m.worst_token, row.worst_token), (m.worst_channel, row.worst_channel))
    return None if m.rel is None else max(value / limit * row.rel for value, limit in pairs if value is not None)


def coarser(*precisions: str) -> str:
    """The precision that rounds most.  Raises InputError for one that has no tolerances."""
    for precision in precisions:
        if precision not in TOLERANCES:
            raise InputError(f"a dump of precision '{precision}' has no tolerances; known are {', '.join(TOLERANCES)}.")
    return max(precisions, key=list(TOLERANCES).index)


def in_one_order(name, a, b):
    """Both tensors of a point; the weights of the chosen experts (T J) sorted by expert.

    Engines list a token's experts in different orders, which changes no later number.
    """
    ids = name.removesuffix("weights") + "ids"
    if not name.endswith("router.weights") or not (ids in a and ids in b):
        return a[name], b[name]
    return tuple(np.take_along_axis(d[name], np.argsort(d[ids], axis=-1), axis=-1) for d in (a, b))


def split_axes(axes: str) -> tuple[list[int], list[int]]:
    """The axis that counts tokens (none or one) and the axes that make up a channel, as numbers."""
    letters = axes.split()
    positions = [i for i, letter in enumerate(letters) if letter in POSITIONS]
    token = sorted(positions, key=lambda i: POSITIONS.index(letters[i]))[:1]
    return token, [i for i in range(len(letters)) if i not in positions]


def blocks(shape: tuple[int, ...], size: int | None = None) -> Iterator[tuple[slice, ...]]:
    """Indices that cut a tensor of this shape into pieces of at most `size` elements, along its first axes."""
    size = size or BLOCK
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    if inner > size:
        for i in range(shape[0]):
            yield from ((slice(i, i + 1), *rest) for rest in blocks(shape[1:], size))
        return
    step = size // max(inner, 1)
    for i in range(0, shape[0], step):
        yield (slice(i, i + step), *[slice(None)] * (len(shape) - 1))


def first_nonfinite(x: np.ndarray) -> list[int] | None:
    """Coordinate of the first NaN or infinity, or None."""
    if x.dtype.kind in "iub":
        return None
    for index in blocks(x.shape):
        bad = ~np.isfinite(np.asarray(x[index], dtype=np.float64))
        if bad.any():
            return _coordinate(index, bad.shape, bad.argmax())
    return None


def _not_finite(a, b):
    """A Measure without numbers, at the first non-finite value of a, or else of b."""
    at = {side: first_nonfinite(x) for side, x in (("a", a), ("b", b))}
    sides = tuple(side for side in at if at[side] is not None)
    place = at[sides[0]] if sides else None  # no side: finite float64 values whose squares overflow
    return Measure(nonfinite=sides, max_abs_at=place, a_at=_value(a, place), b_at=_value(b, place))


def _zeros(x, kept):
    return np.zeros([x.shape[i] for i in kept])


def _add(total, kept, index, values):
    """Sum a block over all axes but the kept ones, into its place in the total."""
    others = tuple(i for i in range(values.ndim) if i not in kept)
    total[tuple(index[i] for i in kept)] += values.sum(axis=others)


def _worst(aa, dd, floor):
    """The largest relative error among tokens (or channels), and which it is, from their sums of squares."""
    size = np.maximum(aa, floor**2 * aa.mean())
    errors = np.where(dd == 0, 0.0, np.sqrt(dd / size))
    at = np.unravel_index(errors.argmax(), errors.shape)
    return float(errors[at]), [int(i) for i in at]


def _ratio(dd, aa):
    """sqrt(dd / aa), where nothing differs 0 and against nothing inf."""
    return math.sqrt(dd / aa) if aa else math.inf if dd else 0.0


def _coordinate(index, shape, flat):
    """Where the element `flat` of a block lies in the whole tensor."""
    return [(s.start or 0) + int(i) for s, i in zip(index, np.unravel_index(flat, shape), strict=True)]


def _value(x, at):
    return None if at is None else float(x[tuple(at)])
