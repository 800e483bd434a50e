"""A comparison or a replay as a picture: relative error against depth, one dot per point."""

import math
import textwrap
from typing import Any

from numgemma.atomic import whole
from numgemma.colours import BLACK, BLUE, ORANGE, PINK, RED
from numgemma.debug.compare.result import DIFFERS, FAULT, GOOD, INHERITED, MISSING, SUSPECT, UNMEASURED, Diff
from numgemma.debug.compare.scoring import NOISE_TO
from numgemma.debug.compare.words import verdict
from numgemma.debug.measure.discrete import leaf_of
from numgemma.debug.report import chart
from numgemma.errors import InputError
from numgemma.extras import drawing

SHADE, BAND = "#E8E8E8", "#BFDDEE"

ABSENT = (MISSING, UNMEASURED)


def plot(diff: Diff, path, title: str | None = None) -> None:
    """Draw the comparison into a PNG file, whole or not at all.  Raises InputError where it cannot be written."""
    if not diff.points:
        raise InputError(f"{path}: there is nothing to draw, for {diff.reason}.")
    figure = draw(diff, title)
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def draw(found: Any, title: str | None = None, whole_error=lambda p: None):
    """A Diff, or a Replay, as a matplotlib Figure.  whole_error(point): drawn as a line where it is not None"""
    figure, ax = new_figure(5)
    low, high = _scale(found, whole_error)
    ax.set_yscale("log")
    band = (high / low) ** 0.12
    ax.set_ylim(low / band, high * band)  # room below for the missing, above for a name
    ax.set_xlim(-1, len(found.points))
    _layers(ax, found)
    _dots(ax, found, low, high)
    _marks(ax, _numbers(found, whole_error), color=PINK, linewidth=1.2, label="whole error")
    _first(ax, found)
    ax.set_ylabel("relative error, |A - B| / |A|  (1e-2 is 1 %)")
    ax.set_xlabel("points in order of execution; numbers: decoder layers")
    title = title or (verdict(found) if isinstance(found, Diff) else found.verdict)
    ax.set_title(textwrap.fill(title, 138), loc="left", fontsize=9)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def new_figure(height):
    """A figure that belongs to no window and no global state, and its axes."""
    drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _numbers(found, error):
    return [(i, x) for i, p in enumerate(found.points) if (x := error(p)) and math.isfinite(x)]


def _rated(found):
    """Whether the points have a floor each; else there is one tolerance."""
    return any(p.floor for p in found.points)


def _scale(found, whole_error):
    """The floor for errors of exactly zero, one decade below the smallest; and the ceiling for those without number."""
    errors = [x for error in (lambda p: p.rel, whole_error) for _, x in _numbers(found, error)]
    errors += [p.floor["rel"] for p in found.points if p.floor] or [getattr(found, "tolerance", None) or 1e-9]
    return 10.0 ** (math.floor(math.log10(min(errors))) - 1), 10.0 ** (math.floor(math.log10(max(errors))) + 1)


def _layers(ax, found):
    """Shade the full-attention layers, and number the layers where they begin."""
    label, spans = "full-attention layer", chart.spans(found.points)
    for layer, first, last in spans:
        ax.axvline(first - 0.5, color="#C8C8C8", linewidth=0.5, zorder=0)
        if layer < len(found.layer_kinds) and found.layer_kinds[layer] == "full_attention":
            ax.axvspan(first - 0.5, last + 0.5, color=SHADE, linewidth=0, zorder=-1, label=label)
            label = "_"  # matplotlib leaves these out of the legend
    shown = [span for span in spans if span[0] % chart.stride(len(spans)) == 0]
    ax.set_xticks([(first + last) / 2 for _, first, last in shown], [str(layer) for layer, *_ in shown])


def _dots(ax, found, low, high):
    """One mark per point; what has no number stands on the lines at the top and the bottom."""
    rows, rated = list(enumerate(found.points)), _rated(found)
    number = {i: p.rel or low for i, p in rows if p.rel is not None and math.isfinite(p.rel)}
    beyond = [(i, high) for i, p in rows if i not in number and p.state not in ABSENT]
    outputs = [(i, number[i]) for i, p in rows if leaf_of(p.name) == "out" and i in number]

    def those(*states, exact=False):
        return [(i, number[i]) for i, p in rows if p.state in states and i in number and (p.rel == 0) == exact]

    _limit(ax, found, rows)
    _ticks(ax, low, high, bool(those(*GOOD, exact=True)))
    _marks(ax, outputs, color=BLACK, linewidth=1, zorder=3, label="layer outputs (.out)")
    dots = {"linestyle": "", "markersize": 4 if len(rows) < 300 else 3}
    _marks(ax, those(*GOOD), color=BLUE, marker="o", label="within the noise" if rated else "same", **dots)
    _marks(ax, those(*GOOD, exact=True), color=BLUE, marker="o", markerfacecolor="white", label="bit-exact", **dots)
    _marks(ax, those(SUSPECT), color=ORANGE, marker="s", label="suspect", **dots)
    _marks(ax, those(INHERITED), color=ORANGE, marker="+", label="inherited", **dots)
    bad = "fault" if rated else "differs"
    _marks(ax, those(DIFFERS, FAULT) + those(DIFFERS, FAULT, exact=True), color=RED, marker="x", label=bad, **dots)
    _marks(ax, beyond, color=RED, marker="^", label="no number (not finite, or other shape)", **dots)
    missing = [(i, 0.05) for i, p in rows if p.state in ABSENT]
    style = {"marker": "|", "linestyle": "", "markersize": 9, "transform": ax.get_xaxis_transform()}
    _marks(ax, missing, color=RED, label="missing in A or B", **style)


def _limit(ax, found, rows):
    """What is allowed: the tolerance as a line, or the noise of every point as a band."""
    noise = [(i, NOISE_TO * p.floor["rel"]) for i, p in rows if p.floor]
    if noise:
        places, sizes = zip(*noise, strict=True)
        bottom = [ax.get_ylim()[0]] * len(sizes)
        ax.fill_between(
            places,
            bottom,
            sizes,
            step="mid",
            color=BAND,
            linewidth=0,
            zorder=-0.5,
            label="noise, up to 1.5 x the floor",
        )
    elif getattr(found, "tolerance", None):
        ax.axhline(found.tolerance, color=BLACK, linestyle="--", linewidth=1, label=f"tolerance {found.tolerance:.2g}")


def _ticks(ax, low, high, exact):
    """Powers of ten, at most a dozen; the floor is no power of ten but bears its own name."""
    first, last = round(math.log10(low)) + 1, round(math.log10(high))
    powers = range(first, last + 1, 1 + (last - first) // 12)
    ax.set_yticks([10.0**k for k in powers], [f"$10^{{{k}}}$" for k in powers])
    ax.minorticks_off()
    if exact:
        ax.axhline(low, color=BLUE, linewidth=0.5)
        ax.set_yticks([low], ["bit-exact"], minor=True, fontsize=8, color=BLUE)


def _marks(ax, places, **style):
    if places:
        ax.plot(*zip(*places, strict=True), **style)


def _first(ax, found):
    """Name the first bad point, in the empty band at the top, on the side where there is room."""
    index = next((i for i, p in enumerate(found.points) if p.name == found.first), None)
    if index is None:
        return
    ax.axvline(index, color=RED, linewidth=1)
    left = index < len(found.points) / 2
    ax.annotate(
        f"first: {found.first}",
        (index, 0.955),
        xycoords=("data", "axes fraction"),
        xytext=(5 if left else -5, 0),
        textcoords="offset points",
        horizontalalignment="left" if left else "right",
        verticalalignment="center",
        color=RED,
        fontsize=9,
    )
