"""The report's pictures as PNG files."""

from pathlib import Path

import numpy as np

from numgemma.atomic import whole
from numgemma.debug.compare.result import Diff
from numgemma.debug.report import chart
from numgemma.debug.report.depth import draw, new_figure
from numgemma.errors import InputError


def write_png(folder, subject) -> list[Path]:
    """Draw what there is into depth.png, heat.png and local.png; returns the files.

    Raises InputError where the folder cannot be written.
    """
    figures = {
        "depth": lambda: draw(subject.diff or subject.replay) if subject.points else None,
        "heat": lambda: heat(subject),
        "local": lambda: local(subject.replay),
    }
    folder, written = Path(folder), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in figures.items():
            if figure := make():
                written.append(save(figure, folder / f"{name}.png"))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --png.") from error
    return written


def save(figure, path):
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    return path


def heat(subject):
    """Error by layer and token; None where the dumps are not there."""
    if not subject.has_both:
        return None
    diff: Diff | None = subject.diff
    limit = diff.limits()["worst_token"] if diff else None
    found = chart.heat_map(subject.a, subject.b, subject.points, {p.name: limit for p in subject.points})
    if found is None:
        return None
    figure, ax = new_figure(1.6 + 0.18 * len(found.rows))
    ax.set_title("relative error of every token", loc="left", fontsize=9)
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


def local(replay):
    """Local error against the whole error; None without a replay."""
    return draw(replay, whole_error=lambda p: p.global_rel) if replay and replay.points else None
