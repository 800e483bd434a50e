"""The anatomy of a layer, drawn: a colour for each part, a bold line for the stream."""

from typing import Any

from numgemma.anatomy import HIGH, WIDE, Arrow, Box, anatomy
from numgemma.colours import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, WHITE
from numgemma.graph import Graph
from numgemma.plots.figures import axes

PARTS = {  # beginning of a point's name -> colour of its box
    "self_attn.": BLUE,
    "mlp.": GREEN,
    "experts": ORANGE,
    "router.": ORANGE,
    "per_layer": PINK,
    "ple_block.": PINK,
    "altup.": RED,
    "laurel.": RED,
}


def layer(graph: Graph, index: int, ax=None):
    """One layer of a model, its stream at the left, from the top to the bottom.  graph: see graph.py  ->  Axes

    A box has a point's name and its axes; a grey line below it names what comes from outside the layer.  Raises
    InputError where the graph has no such layer.
    """
    found = anatomy(graph, index)
    ax = axes(ax, 0.72 * (found.width + WIDE), 0.5 * (found.height + 1.2))
    for arrow in found.arrows:
        draw_arrow(ax, arrow)
    for box in found.boxes:
        draw_box(ax, box)
    ax.set_xlim(-0.55 * WIDE, found.width + 0.55 * WIDE)
    ax.set_ylim(found.height + 0.6, -0.6)
    ax.set_axis_off()
    return ax


def draw_box(ax, box: Box):
    from matplotlib.patches import FancyBboxPatch

    x, y, bold = box.x, box.y, box.stream
    colour = next((c for part, c in PARTS.items() if box.name.startswith(part)), BLACK if bold else GREY)
    edge: dict[str, Any] = {"fc": WHITE, "ec": colour, "lw": 2.2 if bold else 1.2, "boxstyle": "round,pad=0.02"}
    ax.add_patch(FancyBboxPatch((x - WIDE / 2, y - HIGH / 2), WIDE, HIGH, zorder=2, **edge))
    text = {"ha": "center", "va": "center", "zorder": 3}
    ax.text(x, y - 0.12, box.name, size=6.4, weight="bold" if bold else "normal", **text)
    ax.text(x, y + 0.13, box.axes, size=6.4, color=colour, **text)
    if box.outside:
        text["bbox"] = {"fc": "white", "ec": "none", "pad": 0.4}
        ax.text(x, y + HIGH / 2 + 0.12, box.outside, size=5.6, color=GREY, **text)


def draw_arrow(ax, arrow: Arrow):
    """From the lower edge of a box to the upper edge of another, through the places between."""
    (x, y), *between, (u, v) = arrow.places
    style = {"color": BLACK if arrow.stream else GREY, "lw": 2.0 if arrow.stream else 0.9, "zorder": 1}
    path = [(x, y + HIGH / 2), *(stop for a, b in between for stop in ((a, b - HIGH / 2), (a, b + HIGH / 2)))]
    ax.plot(*zip(*path, strict=True), **style)
    tip = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "color": style["color"], "lw": style["lw"]}
    ax.annotate("", (u, v - HIGH / 2), path[-1], arrowprops=tip, zorder=1)
