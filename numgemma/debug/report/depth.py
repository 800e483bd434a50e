"""A comparison as a picture: relative error against depth, one dot per point."""

import math
import re
import textwrap

from numgemma.atomic import whole
from numgemma.colours import BLACK, BLUE, ORANGE, RED
from numgemma.debug.compare.result import DIFFERS, FAULT, GOOD, INHERITED, MISSING, SUSPECT, UNMEASURED, Diff
from numgemma.debug.compare.scoring import NOISE_TO
from numgemma.debug.compare.words import layer_kind, verdict
from numgemma.errors import InputError

SHADE, BAND = "#E8E8E8", "#BFDDEE"

ABSENT = (MISSING, UNMEASURED)


def plot(diff: Diff, path, title: str | None = None) -> None:
    """Draw the comparison into a PNG file, whole or not at all.  Raises InputError where it cannot be written."""
    if not diff.points:
        raise InputError(f"{path}: there is nothing to draw, for {diff.reason}.")
    figure = draw(diff, title)
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def draw(diff: Diff, title: str | None = None):
    """The comparison as a matplotlib Figure that belongs to no window and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    low, high = _scale(diff)
    ax.set_yscale("log")
    band = (high / low) ** 0.12
    ax.set_ylim(low / band, high * band)  # room below for the missing, above for a name
    ax.set_xlim(-1, len(diff.points))
    _layers(ax, diff)
    _dots(ax, diff, low, high)
    _first(ax, diff)
    ax.set_ylabel("relative error, |A - B| / |A|  (1e-2 is 1 %)")
    ax.set_xlabel("points in order of execution; numbers: decoder layers")
    ax.set_title(textwrap.fill(title or verdict(diff), 138), loc="left", fontsize=9)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _scale(diff):
    """The floor for errors of exactly zero, one decade below the smallest; and the ceiling for those without number."""
    errors = [p.rel for p in diff.points if p.rel and math.isfinite(p.rel)]
    errors += [p.floor["rel"] for p in diff.points if p.floor] or [diff.tolerance or 1e-9]
    return 10.0 ** (math.floor(math.log10(min(errors))) - 1), 10.0 ** (math.floor(math.log10(max(errors))) + 1)


def _layers(ax, diff):
    """Shade the full-attention layers, and number the layers where they begin."""
    spans: dict[int, list[int]] = {}
    for i, p in enumerate(diff.points):
        if match := re.match(r"layers\.(\d+)\.", p.name):
            spans.setdefault(int(match[1]), []).append(i)
    label = "full-attention layer"
    for where in spans.values():
        ax.axvline(where[0] - 0.5, color="#C8C8C8", linewidth=0.5, zorder=0)
        if layer_kind(diff, diff.points[where[0]].name) == "full attention":
            ax.axvspan(where[0] - 0.5, where[-1] + 0.5, color=SHADE, linewidth=0, zorder=-1, label=label)
            label = "_"  # matplotlib leaves these out of the legend
    step = next(n for n in (1, 2, 5, 10, 20, 50, 100, 1000) if len(spans) <= 20 * n)
    shown = [n for n in spans if n % step == 0]
    ax.set_xticks([(spans[n][0] + spans[n][-1]) / 2 for n in shown], [str(n) for n in shown])


def _dots(ax, diff, low, high):
    """One mark per point; what has no number stands on the lines at the top and the bottom."""
    rows = list(enumerate(diff.points))
    number = {i: p.rel or low for i, p in rows if p.rel is not None and math.isfinite(p.rel)}
    beyond = [(i, high) for i, p in rows if i not in number and p.state not in ABSENT]
    outputs = [(i, number[i]) for i, p in rows if re.fullmatch(r"layers\.\d+\.out", p.name) and i in number]

    def those(*states, exact=False):
        return [(i, number[i]) for i, p in rows if p.state in states and i in number and (p.rel == 0) == exact]

    _limit(ax, diff, rows)
    _ticks(ax, low, high, bool(those(*GOOD, exact=True)))
    _marks(ax, outputs, color=BLACK, linewidth=1, zorder=3, label="layer outputs (.out)")
    dots = {"linestyle": "", "markersize": 4 if len(rows) < 300 else 3}
    _marks(ax, those(*GOOD), color=BLUE, marker="o", label="same" if diff.floor is None else "within the noise", **dots)
    _marks(ax, those(*GOOD, exact=True), color=BLUE, marker="o", markerfacecolor="white", label="bit-exact", **dots)
    _marks(ax, those(SUSPECT), color=ORANGE, marker="s", label="suspect", **dots)
    _marks(ax, those(INHERITED), color=ORANGE, marker="+", label="inherited", **dots)
    bad = "differs" if diff.floor is None else "fault"
    _marks(ax, those(DIFFERS, FAULT) + those(DIFFERS, FAULT, exact=True), color=RED, marker="x", label=bad, **dots)
    _marks(ax, beyond, color=RED, marker="^", label="no number (not finite, or other shape)", **dots)
    missing = [(i, 0.05) for i, p in rows if p.state in ABSENT]
    style = {"marker": "|", "linestyle": "", "markersize": 9, "transform": ax.get_xaxis_transform()}
    _marks(ax, missing, color=RED, label="missing in A or B", **style)


def _limit(ax, diff, rows):
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
    elif diff.tolerance:
        ax.axhline(diff.tolerance, color=BLACK, linestyle="--", linewidth=1, label=f"tolerance {diff.tolerance:.2g}")


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


def _first(ax, diff):
    """Name the first bad point, in the empty band at the top, on the side where there is room."""
    index = next((i for i, p in enumerate(diff.points) if p.name == diff.first), None)
    if index is None:
        return
    ax.axvline(index, color=RED, linewidth=1)
    left = index < len(diff.points) / 2
    ax.annotate(
        f"first: {diff.first}",
        (index, 0.955),
        xycoords=("data", "axes fraction"),
        xytext=(5 if left else -5, 0),
        textcoords="offset points",
        horizontalalignment="left" if left else "right",
        verticalalignment="center",
        color=RED,
        fontsize=9,
    )
