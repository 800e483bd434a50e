"""An audit as one page: its counts, what is wrong with the causes, and a map of the error by layer and module."""

import base64
import html
import io
import re

import numpy as np

from numgemma.colours import HEAT, RED
from numgemma.surgery.audit import COARSE, FAITHFUL, MISSING, WRONG, Audit, Verdict
from numgemma.surgery.findings import leaf
from numgemma.surgery.pictures import new_figure

STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem .8rem .15rem 0; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } .WRONG, .MISSING { color: #d33; font-weight: 600; }
.COARSE { color: #b70; } img { max-width: 100%; background: white; } div.scroll { overflow-x: auto; }
"""


def error_map(found: Audit, figure=None):
    """Relative error of every tensor over what its format should cost: modules down, layers across.  -> Figure

    Wrong tensors carry a cross.  Floats have no cost; an equal one counts as 1.
    """
    layered = {v: parts for v in found.tensors if v.rel is not None and (parts := in_layer(v.name))}
    leaves = list(dict.fromkeys(leaf(v.name).removeprefix("layers.*.") for v in layered))
    depth = 1 + max((layer for layer, _ in layered.values()), default=0)
    grid = np.full((max(1, len(leaves)), depth), np.nan)
    figure = figure or new_figure(3.5 + 0.22 * depth, 1.4 + 0.2 * len(leaves))
    ax = figure.subplots()
    for v, (layer, name) in layered.items():
        grid[leaves.index(name), layer] = np.log2(max(over_cost(v), 1 / 8))
        if v.state == WRONG:
            ax.plot(layer, leaves.index(name), marker="x", color=RED, markersize=6)
    heat = ax.imshow(grid, cmap=HEAT, vmin=-3, vmax=5, aspect="auto")
    bar = figure.colorbar(heat, ax=ax, ticks=range(-3, 6, 2))
    bar.ax.set_yticklabels([f"{2.0**n:g}" for n in range(-3, 6, 2)])
    bar.set_label("error / what the format costs")
    ax.set_yticks(range(len(leaves)), leaves, fontsize=7)
    ax.set_xlabel("layer")
    ax.locator_params(axis="x", integer=True)
    return figure


def in_layer(name):
    found = re.match(r"layers\.(\d+)\.(.*)", name)
    return (int(found[1]), found[2]) if found else None


def over_cost(v: Verdict) -> float:
    if v.cost:
        return (v.rel or 0) / v.cost
    return 1.0 if v.state == FAITHFUL else 32.0


def to_html(found: Audit) -> str:
    """The page; complete in itself."""
    picture = io.BytesIO()
    error_map(found).savefig(picture, format="png", dpi=110)
    encoded = base64.b64encode(picture.getvalue()).decode()
    title = html.escape(f"{found.file} against {found.original}")
    worst = sorted((v for v in found.tensors if v.state != FAITHFUL), key=lambda v: (v.state != WRONG, -(v.rel or 0)))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1><p>{html.escape(verdict(found))}</p>"
        f"{''.join(f'<p>{html.escape(note)}</p>' for note in found.notes)}"
        f"<h2>What is not faithful</h2>{table(worst)}"
        f"<h2>Error by layer and module</h2><img alt='heat map of errors' src='data:image/png;base64,{encoded}'>"
        f"<h2>All tensors</h2><details><summary>{len(found.tensors)} tensors</summary>{table(found.tensors)}</details>"
        "</html>"
    )


def table(verdicts) -> str:
    if not verdicts:
        return "<p>Nothing.</p>"
    head = "".join(
        f"<th>{word}" for word in ("tensor", "state", "format", "error", "cost", "beyond ½ step", "gain", "why")
    )
    rows = []
    for v in verdicts:
        numbers = "".join(f"<td class=number>{number(x)}" for x in (v.rel, v.cost, v.beyond, v.gain))
        why = html.escape("; ".join(v.causes))
        name, form = html.escape(v.name), html.escape(v.format)
        rows.append(f"<tr><td>{name}<td class={v.state}>{v.state}<td>{form}{numbers}<td>{why}")
    return f"<div class=scroll><table><tr>{head}{''.join(rows)}</table></div>"


def number(x) -> str:
    return "" if x is None else f"{x:.3g}"


def verdict(found: Audit) -> str:
    """One sentence."""
    counts = {state: len(found.of(state)) for state in (WRONG, MISSING, COARSE, FAITHFUL)}
    said = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    return f"{said} of {len(found.tensors)} tensors"
