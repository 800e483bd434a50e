"""The numbers by which two tensors are compared.

No single number sees every fault.  Cosine is blind to a lost factor; the relative error of a whole tensor is blind to
one dead channel of 1536 or one bad token of many.  So a point is judged by three relative errors: of the tensor, of its
worst token and of its worst channel.  Where the noise is known it is judged by the best-fit scale as well: noise hides
a lost factor of 1.05 in every single number, and hardly moves their common scale.  Cosine and the largest difference
tell a reader what happened.

a is the reference and b the candidate: every relative error is relative to a.  One pass over the data, in blocks that
stay in a core's cache, so a tensor larger than memory is compared from its file, as fast as the disk gives it.
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np

from numgemma.debug.measure.precision import Tolerance

BLOCK = 2**16  # elements: 256 KB as float32; three such arrays stay in a core's cache
CHUNK = 2**23  # elements that are read ahead from a file, and given back when they are done
AROUND = 2**22  # bytes: where one page is touched, a system may map so many around it

# Axes that count positions (tokens, keys, image patches, soft tokens, audio frames).  The first one present is the
# "token"; all axes that are not in this list together are the "channel", so of "T N H" it is a pair (N, H).
POSITIONS = ("T", "S", "I", "O", "U")

# A token quieter than this share of the tensor's RMS is measured against the tensor's, not against its own: the
# rounding noise of a token that is almost zero is as large as the token, and no fault.  A norm makes such a token
# louder by up to 1/sqrt(eps) = 1000, and its noise with it, so there is no share of the RMS that noise stays below.
TOKEN_FLOOR = 1e-3

SAFE_SQUARES = (1e-20, 1e30)  # squares in this range neither vanish nor overflow in float32


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
    rel_rescaled: float | None = None  # the error that is left when the best-fit scale is taken out of b
    rms: float | None = None  # of a
    rms_token: float | None = None  # the smallest size that a token, and a channel, was measured against
    rms_channel: float | None = None
    nonfinite: tuple[str, ...] = ()


class Sums:
    """What one pass collects: sums of a a, d d and a d (d = a - b), by token and by channel, and the largest |d|."""

    def __init__(self, shape, kept):
        """kept: for token and channel, the axes that are not summed over."""
        self.kept = kept
        self.aa = [np.zeros([shape[i] for i in axes]) for axes in kept]
        self.dd = [np.zeros([shape[i] for i in axes]) for axes in kept]
        self.ad = self.peak = 0.0
        self.peak_at: tuple[int, ...] | None = None

    def add(self, x, y, index):
        """Take in one block of a and b."""
        same = same_bits(x, y)
        dtype = np.promote_types(np.promote_types(x.dtype, y.dtype), np.float32)
        x, y = (np.asarray(side, dtype) for side in (x, y))
        d = None if same else x - y
        found = self.squares(x, d)
        low, high = SAFE_SQUARES
        if dtype == np.float32 and not (low < found[0][0].sum() < high and found[1][0].sum() < high):
            x = x.astype(np.float64)
            d = None if same else x - y
            found = self.squares(x, d)
        for squares, totals in zip(found, (self.aa, self.dd), strict=True):
            for axes, total, part in zip(self.kept, totals, squares, strict=True):
                total[tuple(index[i] for i in axes)] += part
        if d is not None:
            self.differ(x, d, index)

    def squares(self, x, d):
        """Sums of a a and of d d, each by token and by channel.  d: None where nothing differs"""
        aa = [sum_of_squares(x, axes) for axes in self.kept]
        return aa, [np.zeros(())] * len(self.kept) if d is None else [sum_of_squares(d, axes) for axes in self.kept]

    def differ(self, x, d, index):
        """Note a d, and where d is largest."""
        self.ad += float(np.vdot(x, d))
        top, bottom = float(d.max()), float(d.min())
        if not max(top, -bottom) <= self.peak:  # NaN too
            self.peak = max(top, -bottom)
            at = np.unravel_index(d.argmax() if top >= -bottom else d.argmin(), d.shape)
            self.peak_at = tuple((s.start or 0) + int(i) for s, i in zip(index, at, strict=True))


def measure(a: np.ndarray, b: np.ndarray, axes: str, channel_floor: float = 1e-3) -> Measure:
    """Compare floating point tensors of one shape.  With non-finite values, the place of the first and no numbers."""
    if a.size == 0:
        return Measure(rel=0.0)
    token, channel, shape, kept = laid_out(a.shape, axes)
    sums = Sums(shape, kept)
    with np.errstate(all="ignore"):  # a non-finite value ends up in the sums, and is looked for only then
        collect(sums, a.reshape(shape), b.reshape(shape))
        places = [[a.shape[i] for i in axes] for axes in (token, channel)]
        worst_token, token_at, quiet_token = worst(sums.dd[0], token_sizes(sums.aa[0]), places[0])
        worst_channel, channel_at, quiet_channel = worst(
            sums.dd[1], channel_sizes(sums.aa[1], channel_floor), places[1]
        )
    aa, dd, ad = float(sums.aa[0].sum()), float(sums.dd[0].sum()), sums.ad
    if not math.isfinite(aa + dd):
        return not_finite(a, b)
    bb = max(aa - 2 * ad + dd, 0.0)  # b = a - d; sums of d keep the digits that those of b would lose
    at = None if sums.peak_at is None else coordinate(sums.peak_at, shape, a.shape)
    return Measure(
        rel=ratio(dd, aa),
        cos=max(-1.0, min(1.0, (aa - ad) / math.sqrt(aa) / math.sqrt(bb))) if aa and bb else None,
        scale=1 - ad / aa if aa else None,
        rel_rescaled=ratio(max(dd - ad * ad / aa, 0.0), aa) if aa else None,
        worst_token=worst_token,
        worst_token_at=token_at,
        worst_channel=worst_channel,
        worst_channel_at=channel_at,
        max_abs=sums.peak,
        max_abs_at=at,
        a_at=value(a, at),
        b_at=value(b, at),
        rms=math.sqrt(aa / a.size),
        rms_token=math.sqrt(quiet_token / a.size * sums.aa[0].size),
        rms_channel=math.sqrt(quiet_channel / a.size * sums.aa[1].size),
    )


def collect(sums, a, b):
    """Run over both tensors once.  float64 is taken as it is, all else as float32."""
    done = mark = 0
    files = [x for x in (a, b) if mapped_file(x) is not None]
    advise(files, slice(CHUNK), mmap.MADV_WILLNEED)
    for index in blocks(a.shape):
        if done >= mark:
            advise(files, slice(mark + CHUNK, mark + 2 * CHUNK), mmap.MADV_WILLNEED)
            advise(files, slice(max(0, mark - CHUNK), mark), mmap.MADV_DONTNEED)
            mark += CHUNK
        x, y = a[index], b[index]
        sums.add(x, y, index)
        done += x.size
    advise(files, slice(None), mmap.MADV_DONTNEED)


def same_bits(x, y):
    """Whether no bit differs; false where the formats do."""
    if x.dtype != y.dtype or not x.ndim:
        return False
    x, y = (side.view(f"u{side.itemsize}") for side in (x, y))
    return np.array_equal(x[:1], y[:1]) and np.array_equal(x, y)  # most that differ do so at once


def sum_of_squares(x, kept):
    """Over all axes but those that are kept."""
    if x.ndim == 2 and kept == [0]:
        return np.vecdot(x, x)
    axes = list(range(x.ndim))
    return np.einsum(x, axes, x, axes, kept)


def measure_exact(a: np.ndarray, b: np.ndarray, axes: str, in_any_order: bool) -> Measure:
    """Compare integers: rel is the share of tokens whose values are not all equal.  a, b: T J or any axes"""
    if a.size == 0:
        return Measure(rel=0.0)
    if first_nonfinite(a) or first_nonfinite(b):
        return not_finite(a, b)
    wrong = unequal_tokens(a, b, axes, in_any_order)
    at = [int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape)] if wrong.any() else None
    return Measure(rel=float(wrong.mean()), worst_token=float(wrong.any()), worst_token_at=at)


def unequal_tokens(a, b, axes, in_any_order):
    """Which tokens' integers are not all equal.  a, b: T J or any axes  ->  T, or one value without tokens"""
    if in_any_order:
        a, b = np.sort(a, axis=-1), np.sort(b, axis=-1)
    token, _ = split_axes(axes)
    return np.asarray((a != b).any(axis=tuple(i for i in range(a.ndim) if i not in token)))


def gated(m: Measure) -> dict[str, float]:
    """What a point is judged by where its noise is known: three relative errors, and how far the scale is from 1."""
    scale = None if m.scale is None else abs(m.scale - 1)
    found = {"rel": m.rel, "worst_token": m.worst_token, "worst_channel": m.worst_channel, "scale": scale}
    return {key: value for key, value in found.items() if value is not None}


def least_tolerance(m: Measure, row: Tolerance) -> float | None:
    """The relative error to allow so that m passes, if its row of tolerances is scaled as a whole; None: none does."""
    pairs = ((m.rel, row.rel), (m.worst_token, row.worst_token), (m.worst_channel, row.worst_channel))
    return None if m.rel is None else max(value / limit * row.rel for value, limit in pairs if value is not None)


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


@lru_cache(maxsize=1024)
def laid_out(shape, axes: str):
    """The axes of tokens and of channels, the shape with each of both as one axis, and these axes in that shape."""
    token, channel = split_axes(axes)
    return token, channel, *merged(shape, (token, channel))


def merged(shape, groups):
    """A tensor's shape with neighbouring axes of one group as one axis, and the groups in the new axes' numbers."""
    owner = [next((g for g, axes in enumerate(groups) if i in axes), -1 - i) for i in range(len(shape))]
    runs = [(g, [shape[i] for i in run]) for g, run in groupby(range(len(shape)), owner.__getitem__)]
    kept = [[i for i, (g, _) in enumerate(runs) if g == wanted] for wanted in range(len(groups))]
    return tuple(math.prod(sizes) for _, sizes in runs), kept


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


def advise(arrays, where, advice):
    """Have the pages of some elements of views of a file read ahead, or given back: they count as our memory."""
    around = AROUND if advice == mmap.MADV_DONTNEED else 0
    for x in arrays:
        if not x.flags.c_contiguous or (file := mapped_file(x)) is None:
            continue
        low, high = np.lib.array_utils.byte_bounds(x.reshape(-1)[where])
        first = low - np.frombuffer(file, np.uint8).ctypes.data
        start = max(0, first - around) // mmap.PAGESIZE * mmap.PAGESIZE
        if high > low:
            file.madvise(advice, start, min(len(file), first + high - low + around) - start)


def mapped_file(x) -> mmap.mmap | None:
    """The memory map that an array is a view of, if it is one."""
    while isinstance(x, np.ndarray):
        x = x.base
    x = x.obj if isinstance(x, memoryview) else x
    return x if isinstance(x, mmap.mmap) else None


def first_nonfinite(x: np.ndarray) -> list[int] | None:
    """Coordinate of the first NaN or infinity, or None."""
    if x.dtype.kind in "iub":
        return None
    for index in blocks(x.shape):
        bad = ~np.isfinite(x[index])
        if bad.any():
            at = np.unravel_index(bad.argmax(), bad.shape)
            return [(s.start or 0) + int(i) for s, i in zip(index, at, strict=True)]
    return None


def not_finite(a, b):
    """A Measure without numbers, at the first non-finite value of a, or else of b."""
    at = {side: first_nonfinite(x) for side, x in (("a", a), ("b", b))}
    sides = tuple(side for side in at if at[side] is not None)
    place = at[sides[0]] if sides else None  # no side: finite float64 values whose squares overflow
    return Measure(nonfinite=sides, max_abs_at=place, a_at=value(a, place), b_at=value(b, place))


def token_sizes(aa):
    """What the error of each token is measured against, squared: its own size, or the tensor's where it is quiet."""
    mean = aa.mean()
    return np.where(aa < TOKEN_FLOOR**2 * mean, mean, aa)


def channel_sizes(aa, floor):
    """The same of each channel, which is measured against at least a share of the tensor's size."""
    return np.maximum(aa, floor**2 * aa.mean())


def worst(dd, size, places):
    """The largest relative error among tokens (or channels), which it is, and the smallest size measured against.

    dd: sums of the squares of each one's differences.  size: of what each is measured against.  places: of the axes
    that tell them apart.
    """
    errors = np.where(dd == 0, 0.0, np.sqrt(dd / size))
    at = int(errors.argmax())
    return float(errors.flat[at]), [int(i) for i in np.unravel_index(at, places)], float(size.min())


def ratio(dd, aa):
    """sqrt(dd / aa), where nothing differs 0 and against nothing inf."""
    return math.sqrt(dd / aa) if aa else math.inf if dd else 0.0


def coordinate(at, shape, original):
    """A place in a reshaped tensor as a place in the original."""
    return [int(i) for i in np.unravel_index(np.ravel_multi_index(at, shape), original)] if original else []


def value(x, at):
    return None if at is None else float(x[tuple(at)])
