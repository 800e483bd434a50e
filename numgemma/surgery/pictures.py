"""What was found, drawn: which layer of which parent each slot is from, and where a child leaves its parent."""

from pathlib import Path

from numgemma.atomic import whole
from numgemma.colours import BLUE, GREEN, ORANGE, RED
from numgemma.extras import drawing
from numgemma.surgery.homes import decoder_layer
from numgemma.surgery.lineage import Lineage
from numgemma.surgery.partners import scope
from numgemma.surgery.seams import REWIND, Seams, seam

GREY = "#C8C8C8"  # lines that should not stand out


def new_figure(width: float, height: float):
    """A matplotlib Figure that belongs to no window and no global state."""
    drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


# the layer matrix


def layer_matrix(found: Lineage, figure=None):
    """Child slot against parent layer, one panel for each parent.  figure: to draw on  -> Figure"""
    parents = [parent for parent in found.parents if any(o.parent == parent for o in found.slots)]
    parents = parents or [parent for parent in found.parents if found.layers[parent]]
    heights = [found.layers[parent] for parent in parents] or [1]
    size = min(0.16, 9 / max(1, len(found.slots)), 9 / sum(heights))
    figure = figure or new_figure(3 + size * len(found.slots), 1.8 + size * sum(heights) + 0.4 * len(heights))
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, parent in zip(panels, parents, strict=False):
        panel(ax, found, parent)
        ax.set_xlabel("slot of the child")
        ax.xaxis.label.set_visible(ax is panels[-1])
    rows = {label: handle for ax in panels for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if rows:
        figure.legend(rows.values(), rows.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def panel(ax, found: Lineage, parent: str) -> None:
    """The slots that hold something of one parent."""
    own = [o for o in found.slots if o.parent == parent]
    whole = [(o.slot, o.layer) for o in own if o.relation == "copy"]
    changed = [(o.slot, o.layer) for o in own if o.relation != "copy"]
    fresh = [(o.slot, -1) for o in found.slots if o.relation == "fresh"]
    size = 14 if len(found.slots) < 40 else 9
    style = {"marker": "s", "linestyle": "", "markersize": 0.45 * size}
    marks(ax, whole, "the layer, all of it", color=BLUE, **style)
    marks(ax, changed, "the layer, changed or in part", color=ORANGE, **style)
    marks(ax, fresh, "in no parent", color=RED, marker="x", linestyle="", markersize=0.4 * size)
    marks(ax, borrowed(found, parent), "single tensors", color=GREEN, marker="+", linestyle="", markersize=0.5 * size)
    for slot in rewinds(found):
        ax.axvline(slot - 0.5, color=GREY, linewidth=0.8, zorder=0, label="back to an earlier layer")
    ax.set_ylabel("layer of the parent")
    ax.set_title(Path(parent).name or parent, loc="left", fontsize=9)
    ax.set_xlim(-1, len(found.slots))
    ax.set_ylim(-1.7 if fresh else -0.7, found.layers[parent])
    ax.set_aspect("equal")
    ax.locator_params(integer=True)


def marks(ax, places, label: str, **style) -> None:
    if places:
        ax.plot(*zip(*places, strict=True), label=label, **style)


def borrowed(found: Lineage, parent: str) -> list[tuple[int, int]]:
    """(slot, layer) of tensors that are from elsewhere than the rest of their slot."""
    homes = {o.slot: (o.parent, o.layer) for o in found.slots}
    pairs = {
        (slot, layer)
        for name, r in found.tensors.items()
        if r.parent == parent
        and (slot := decoder_layer(scope(name))) is not None
        and (layer := decoder_layer(scope(r.source or ""))) is not None
        and homes[slot] != (parent, layer)
    }
    return sorted(pairs)


def rewinds(found: Lineage) -> list[int]:
    """Slots whose layer does not come after the one before it in the same parent."""
    return [o.slot for i, o in enumerate(found.slots) if seam(found.slots, i) == REWIND]


# the seams

PANELS = (
    ("ratio", "stream's RMS,\nchild / parent"),
    ("cosine", "cosine with\nthe parent's"),
    ("entropy", "attention\nentropy (nats)"),
    ("per_layer", "share of the\nper-layer input"),
)


def seam_picture(found: Seams, figure=None, tried: dict[str, Seams] | None = None):
    """The four numbers of every slot, and the cosine under each fix.  figure: to draw on  -> Figure"""
    held = [(name, label) for name, label in PANELS if any(getattr(s, name) is not None for s in found.slots)]
    rows = len(held) + bool(tried)
    figure = figure or new_figure(9, 1.0 + 1.7 * rows)
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    if tried:
        fixed(axes[-1], tried)
    for ax, (name, label) in zip(axes, held, strict=False):
        curves(ax, found, name)
        ax.set_ylabel(label)
        ax.set_xlabel("slot of the child")
        ax.xaxis.label.set_visible(ax is axes[-1])
    handles = {t: h for ax in axes for h, t in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def fixed(ax, tried: dict[str, Seams]) -> None:
    """The cosine with the parent's stream, of every slot under each fix."""
    for (name, found), color, dash in zip(
        tried.items(), (BLUE, RED, GREEN, ORANGE), ("-", "--", ":", "-."), strict=False
    ):
        slots = [s for s in found.slots if s.cosine is not None]
        ax.plot([s.slot for s in slots], [s.cosine for s in slots], dash, color=color, linewidth=1, label=name)
    ax.set_ylabel("cosine,\nunder each fix")
    ax.set_xlabel("slot of the child")


def curves(ax, found: Seams, name: str) -> None:
    """One number of the child, and of its source layers where that is another."""
    slots = [s for s in found.slots if getattr(s, name) is not None]
    x, values = [s.slot for s in slots], [getattr(s, name) for s in slots]
    if name in ("entropy", "per_layer"):
        ax.plot(
            x, [b for _, b in values], color=ORANGE, marker="s", markersize=3, linewidth=1, label="its source layer"
        )
        values = [a for a, _ in values]
    ax.plot(x, values, color=BLUE, marker="o", markersize=3, linewidth=1, label="the child")
    if name == "ratio" and max(values) > 2 * min(values):
        ax.set_yscale("log")
    ax.set_xlim(-0.5, len(found.slots) - 0.5)
    ax.locator_params(axis="x", integer=True)
    if name in ("ratio", "cosine"):
        ax.axhline(1, color=GREY, linewidth=0.8, zorder=0)
    for s in found.slots:
        if s.seam:
            style = {"color": RED, "linestyle": "-"} if s.seam == REWIND else {"color": GREEN, "linestyle": "--"}
            label = "back to an earlier layer" if s.seam == REWIND else "another seam"
            ax.axvline(s.slot - 0.5, linewidth=0.9, label=label, zorder=1, **style)
    if found.leaves is not None:
        ax.axvspan(
            found.leaves.slot - 0.5,
            found.slots[-1].slot + 0.5,
            color="#EEEEEE",
            zorder=-1,
            label="from the first slot beyond its parent's range",
        )
