"""What the report's pictures show, as numbers: the scale, the layers, the noise band, the heat map, histograms."""

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from numgemma.debug.compare.result import GOOD, INHERITED, MISSING, SUSPECT, UNMEASURED
from numgemma.debug.compare.scoring import NOISE_TO, SUSPECT_TO
from numgemma.debug.measure import metrics, overlap
from numgemma.debug.measure.discrete import layer_of, leaf_of, place_of

CELLS = 6000  # of a heat map; more tokens are drawn several to a column
SAMPLE = 2**18  # values that a histogram is drawn from
BINS = 40
WORST = 5  # values that are listed

BLANK, FINE, DOUBTFUL, PASSED_ON, WRONG = "blank", "fine", "doubtful", "passed-on", "wrong"


def class_of(state) -> str:
    """Which of five colours a state has."""
    if state in GOOD:
        return FINE
    return {SUSPECT: DOUBTFUL, INHERITED: PASSED_ON, MISSING: BLANK, UNMEASURED: BLANK}.get(state, WRONG)


@dataclass(frozen=True)
class Decades:
    """A logarithmic axis over whole decades: what is zero stands on `low`, what has no number on `high`."""

    low: float
    high: float

    def at(self, value) -> float:
        """0 at the bottom, 1 at the top."""
        if value is None or not math.isfinite(value):
            return 1.0
        span = math.log10(self.high / self.low)
        return min(1.0, max(0.0, math.log10(max(value, self.low) / self.low) / span))

    def ticks(self):
        """Powers of ten, a dozen at most, without the two ends."""
        first, last = round(math.log10(self.low)) + 1, round(math.log10(self.high)) - 1
        return [10.0**k for k in range(first, last + 1, 1 + (last - first) // 12)]


def scale_of(values) -> Decades:
    """The decades that hold these values, and one more at either end."""
    real = [v for v in values if v and math.isfinite(v)] or [1e-9]
    low, high = math.floor(math.log10(min(real))), math.ceil(math.log10(max(real)))
    return Decades(10.0 ** (low - 1), 10.0 ** (high + 1))


def limits_of(points, tolerance) -> list[tuple[float, float] | None]:
    """Per point the relative error up to which it counts as noise, and the one from which it is a fault."""
    return [
        (NOISE_TO * p.floor["rel"], SUSPECT_TO * p.floor["rel"])
        if getattr(p, "floor", None)
        else (tolerance, tolerance)
        if tolerance
        else None
        for p in points
    ]


def spans(points) -> list[tuple[int, int, int]]:
    """(layer, its first point, its last point), by place in the list."""
    places = [(layer_of(p.name), i) for i, p in enumerate(points)]
    runs = [(layer, list(run)) for layer, run in groupby(places, lambda pair: pair[0]) if layer is not None]
    return [(layer, run[0][1], run[-1][1]) for layer, run in runs]


def stride(count, most=20) -> int:
    """Every how many of `count` things one gets a label, so that there are `most` at most."""
    return next(n for n in (1, 2, 5, 10, 20, 50, 100, 1000, 10**6) if count <= most * n)


@dataclass(frozen=True)
class Heat:
    """Relative errors by layer and token; a column may stand for several tokens and then shows the worst."""

    rows: list[str]
    errors: np.ndarray  # rows, columns
    width: int  # tokens to a column
    tokens: int
    noise: list[float | None]  # the error of a token that still counts as the same, by row


def heat_map(a, b, points, limits) -> Heat | None:
    """The error of every token in every layer's last point that both dumps have; None where there is none."""
    last: dict[Any, Any] = {}
    for p in points:
        if p.name in a and p.name in b and p.rel is not None and leaf_of(p.name) != "router.ids":
            place = place_of(p.name)
            if place[2] and not (place in last and last[place].name.endswith(".out")):
                last[place] = p
            elif p.name in ("embed_tokens", "norm", "logits"):
                last[p.name] = p
    found = {p.name: errors for p in last.values() if (errors := token_errors(p.name, a, b)) is not None}
    sizes = [len(errors) for errors in found.values()]
    if not sizes or max(sizes) < 1:
        return None
    tokens = max(sizes)
    rows = {name: errors for name, errors in found.items() if len(errors) == tokens}
    width = -(-tokens * len(rows) // CELLS)
    padded = [np.pad(errors, (0, -tokens % width), constant_values=np.nan) for errors in rows.values()]
    columns = np.array([[largest(part) for part in errors.reshape(-1, width)] for errors in padded])
    noise = {p.name: limits.get(p.name) for p in last.values()}
    return Heat(list(rows), columns, width, tokens, [noise[name] for name in rows])


def largest(values):
    """The largest that is known; NaN where none is."""
    real = values[~np.isnan(values)]
    return real.max() if real.size else np.nan


def token_errors(name, a, b):
    """The relative error of every token of the whole tensor, NaN for those that are not known; or None."""
    x, axes, y, axes_y = overlap.both(name, a, b)
    token, _ = metrics.split_axes(axes)
    if x.shape != y.shape or axes != axes_y or not token or not x.size or x.dtype.kind in "iub":
        return None
    sums = metrics.Sums(x.shape, [token])
    with np.errstate(all="ignore"):
        metrics.collect(sums, x, y)
        (aa,), (dd,) = sums.aa, sums.dd
        usual = aa[np.isfinite(aa)].mean() if np.isfinite(aa).any() else 0.0
        quiet = aa < metrics.TOKEN_FLOOR**2 * usual
        errors = np.where(dd == 0, 0.0, np.sqrt(dd / np.where(quiet, usual, aa)))
    places, tokens = overlap.places_in_common(name, a, b)[token[0]], overlap.full_shape(a, name)[token[0]]
    whole = np.full(tokens, np.nan)
    whole[places] = np.where(np.isfinite(errors), errors, np.inf)
    return whole


@dataclass(frozen=True)
class Spread:
    """How the values of two tensors are spread: counts per bin, and the bins' common range."""

    low: float
    high: float
    a: np.ndarray
    b: np.ndarray
    sampled: bool


def spread(x, y) -> Spread | None:
    """Histograms of two tensors of one shape, of an even sample where they are large; None where nothing is finite."""
    step = max(1, x.size // SAMPLE)
    x, y = (np.asarray(v.reshape(-1)[::step], np.float64) for v in (x, y))
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    both = np.concatenate([x, y])
    if not both.size:
        return None
    low, high = np.quantile(both, [0.001, 0.999])  # a few giants would squeeze all others into one bin
    if low == high:
        low, high = low - abs(low) / 2 - 1e-9, high + abs(high) / 2 + 1e-9
    in_a, in_b = (np.histogram(np.clip(v, low, high), BINS, (low, high))[0] for v in (x, y))
    return Spread(float(low), float(high), in_a, in_b, step > 1)


def worst_values(x, y) -> list[tuple[list[int], float, float]]:
    """The few largest differences: (place, value of a, value of b)."""
    best: list[tuple[float, list[int]]] = []
    for index in metrics.blocks(x.shape, 2**20):
        with np.errstate(all="ignore"):
            d = np.abs(np.asarray(x[index], np.float64) - np.asarray(y[index], np.float64))
        d = np.where(np.isnan(d), np.inf, d)
        flat = np.argsort(-d, axis=None, kind="stable")[:WORST]
        for at in zip(*np.unravel_index(flat, d.shape), strict=True):
            best.append((float(d[at]), [int(i) + (s.start or 0) for i, s in zip(at, index, strict=True)]))
        best = sorted(best, key=lambda pair: -pair[0])[:WORST]
    return [(at, float(x[tuple(at)]), float(y[tuple(at)])) for size, at in best if size > 0]
