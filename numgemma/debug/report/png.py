"""The report's pictures as PNG files."""

from pathlib import Path

import numpy as np

from numgemma.atomic import whole
from numgemma.colours import BLUE, ORANGE, PINK, RED
from numgemma.debug.compare.result import Diff
from numgemma.debug.report import chart
from numgemma.errors import InputError

# The markers differ as well as the colours.
COLOURS = {
    chart.FINE: (BLUE, "o"),
    chart.DOUBTFUL: (ORANGE, "^"),
    chart.PASSED_ON: (PINK, "D"),
    chart.WRONG: (RED, "x"),
    chart.BLANK: ("#777777", "|"),
}


def write_png(folder, subject) -> list[Path]:
    """Draw what there is into depth.png, heat.png and local.png; returns the files.

    Raises InputError where the folder cannot be written.
    """
    figures = {
        "depth": lambda: depth(subject.points, subject, subject.tolerance) if subject.points else None,
        "heat": lambda: heat(subject),
        "local": lambda: local(subject),
    }
    folder, written = Path(folder), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in figures.items():
            if figure := draw():
                written.append(save(figure, folder / f"{name}.png"))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --png.") from error
    return written


def save(figure, path):
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    return path


def new_figure(height, title):
    """A figure that belongs to no window and no global state, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    ax.set_title(title, loc="left", fontsize=9, wrap=True)
    return figure, ax


def depth(points, subject, tolerance, other=None, title=None):
    """Error against depth, with the noise band and the full-attention layers."""
    figure, ax = new_figure(4.5, title or subject.verdict)
    limits = chart.limits_of(points, tolerance)
    heights = [p.rel for p in points] + [other(p) for p in points if other]
    scale = chart.scale_of(heights + [limit for pair in limits if pair for limit in pair])
    x = np.arange(len(points))
    for which, colour in ((1, ORANGE), (0, BLUE)):
        top = [pair[which] if pair else np.nan for pair in limits]
        ax.fill_between(x, scale.low, top, color=colour, alpha=0.12, linewidth=0, step="mid")
    shade_layers(ax, points, subject.kinds)
    for kind, (colour, marker) in COLOURS.items():
        chosen = [(i, height(p, kind, scale)) for i, p in enumerate(points) if chart.class_of(p.state) == kind]
        if chosen:
            label = ", ".join(sorted({p.state for p in points if chart.class_of(p.state) == kind}))
            ax.plot(*zip(*chosen, strict=True), color=colour, marker=marker, markersize=4, linestyle="", label=label)
    if other:
        ax.plot(x, [v if (v := other(p)) else np.nan for p in points], color=PINK, linewidth=1.2, label="whole error")
    ax.set_yscale("log")
    ax.set_ylim(scale.low, scale.high)
    ax.set_xlim(-1, len(points))
    ax.set_ylabel("relative error (1e-2 is 1 %)")
    ax.set_xlabel("points in order of execution; numbers: decoder layers")
    figure.legend(loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def height(p, kind, scale):
    if kind == chart.BLANK or p.rel == 0:
        return scale.low
    return p.rel if p.rel is not None and np.isfinite(p.rel) else scale.high


def shade_layers(ax, points, kinds):
    spans = chart.spans(points)
    every = chart.stride(len(spans))
    for layer, first, last in spans:
        if layer < len(kinds) and kinds[layer] == "full_attention":
            ax.axvspan(first - 0.5, last + 0.5, color="#888888", alpha=0.13, linewidth=0)
    shown = [span for span in spans if span[0] % every == 0]
    ax.set_xticks([(first + last) / 2 for _, first, last in shown], [str(layer) for layer, *_ in shown])


def heat(subject):
    """Error by layer and token; None where the dumps are not there."""
    if not subject.has_both:
        return None
    diff: Diff | None = subject.diff
    limit = diff.limits()["worst_token"] if diff else None
    found = chart.heat_map(subject.a, subject.b, subject.points, {p.name: limit for p in subject.points})
    if found is None:
        return None
    figure, ax = new_figure(1.6 + 0.18 * len(found.rows), "relative error of every token")
    with np.errstate(divide="ignore"):
        values = np.log10(np.where(np.isfinite(found.errors), np.maximum(found.errors, 1e-12), np.nan))
    image = ax.imshow(values, aspect="auto", interpolation="nearest", cmap="magma_r")
    ax.set_yticks(range(len(found.rows)), found.rows, fontsize=7)
    columns = found.errors.shape[1]
    every = chart.stride(columns, 40)
    words = list(subject.words) if len(subject.words) == found.tokens else None
    labels = [label(words, c * found.width) for c in range(0, columns, every)]
    ax.set_xticks(range(0, columns, every), labels, rotation=90, fontsize=7)
    figure.colorbar(image, label="log10 of the relative error")
    return figure


def label(words, token):
    """A token's text, without what would be read as mathematics."""
    return str(token) if words is None else words[token].strip()[:10].replace("$", r"\$") or "·"


def local(subject):
    """Local error against the whole error; None without a replay."""
    if subject.replay is None or not subject.replay.points:
        return None
    return depth(subject.replay.points, subject, None, lambda p: p.global_rel, subject.replay.verdict)
