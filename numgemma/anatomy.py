"""What a layer computes, as boxes and arrows: its points, what is computed from what, and where each box stands.

The points and arrows are those of graph.py, which learned them from a run, and where a box stands follows from them.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from numgemma.errors import InputError
from numgemma.graph import Graph, layers_in, unstacked

WIDE, HIGH, THIN, GAP = 2.0, 0.56, 0.1, 0.2  # a box; a line that passes a row; between two.  A row is 1 high


@dataclass(frozen=True)
class Box:
    """A point: where its middle stands, x to the right and y down; stream: it is the stream after one of its steps."""

    point: str
    name: str  # inside its layer
    axes: str
    outside: str  # what it reads from outside the layer, in words; "" where that is nothing
    x: float
    y: float
    stream: bool


@dataclass(frozen=True)
class Arrow:
    """From one point to another: the middles of both, and the places that the line passes between them."""

    places: tuple[tuple[float, float], ...]
    stream: bool


@dataclass(frozen=True)
class Anatomy:
    """The boxes in order of execution, first what enters the layer; the arrows; width and height hold the middles."""

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    width: float
    height: float


def anatomy(graph: Graph, index: int, stack: str | None = None) -> Anatomy:
    """One layer of a model, its stream at the left, from the top to the bottom.

    stack: of a model with two stacks of layers, the one, by what its points' names begin with; None: the second.
    Raises InputError where the graph has no such layer.
    """
    points = own_points(graph, index, stack)
    before = entry(graph, points)
    stream = [before, *(p for p in points if on_every_path(graph, p, points, before))]
    rows = depths(graph, points, before)
    ways = {(p, q): way(p, q, rows, stream) for q in points for p in graph.parents(q) if p in rows}
    at = placed(rows, ways, stream)
    boxes = (Box(p, *told(graph, p, index, rows), at[p], row, p in stream) for p, row in rows.items())
    arrows = (
        Arrow(tuple((at[stop], row_of(stop, rows)) for stop in stops), p in stream and q in stream)
        for (p, q), stops in ways.items()
    )
    return Anatomy(tuple(boxes), tuple(arrows), max(at.values()), max(rows.values()))


def own_points(graph, index, stack=None) -> list[str]:
    """The points of a layer, in order of execution.  stack: of `anatomy`"""
    stacks: dict[str, list[str]] = defaultdict(list)
    for p in graph.points:
        if unstacked(p).startswith(f"layers.{index}."):
            stacks[p.removesuffix(unstacked(p))].append(p)
    if not stacks:
        raise InputError(f"Layer {index} is not one of the {layers_in(graph.points)} of this model; count from 0.")
    return list(stacks.values())[-1] if stack is None else stacks[stack]


def entry(graph, points) -> str:
    """What enters the layer: what its first point is computed from."""
    return next(p for p in reversed(graph.parents(points[0])) if p not in points)


def on_every_path(graph, point, points, before) -> bool:
    """Whether nothing reaches the end of the layer but through this point: it is the stream after one of its steps."""
    beside = {before}
    for p in points:
        if p != point and beside.intersection(graph.parents(p)):
            beside.add(p)
    return points[-1] not in beside and graph.axes(point) == graph.axes(points[-1])


def depths(graph, points, before) -> dict[str, int]:
    """Of each point the row it stands in: one below the lowest that it is computed from."""
    rows = {before: 0}
    for p in points:
        rows[p] = 1 + max((rows[q] for q in graph.parents(p) if q in rows), default=0)
    return rows


# A stop is where a line passes through a row: a point, or a place between two, written (from, to, row).


def way(p, q, rows, stream) -> list:
    """The stops of the line from p to q: along the stream there is nothing to go around."""
    along = p in stream and q in stream
    return [p, *((p, q, row) for row in range(rows[p] + 1, rows[q]) if not along), q]


def row_of(stop, rows) -> int:
    return rows[stop] if isinstance(stop, str) else stop[2]


def placed(rows, ways, stream) -> dict[Any, float]:
    """The column of each stop: the stream first, the rest below what they come from, side by side.  -> stop: x"""
    above = defaultdict(list)
    for stops in ways.values():
        for one, next_ in pairwise(stops):
            above[next_].append(one)
    x = dict.fromkeys(stream, 0.0)
    stops = [stop for stop in above if stop not in stream]
    for row in range(1, max(rows.values()) + 1):
        here = [stop for stop in stops if row_of(stop, rows) == row]
        wanted = [mean(x[one] for one in above[stop]) for stop in here]
        x |= zip(here, apart(wanted, [WIDE if isinstance(stop, str) else THIN for stop in here]), strict=True)
    return x


def mean(columns: Iterable[float]) -> float:
    """Of the columns beside the stream; where there is none, that of a branch's first point."""
    found = [x for x in columns if x]
    return sum(found) / len(found) if found else 2 * (WIDE + GAP)


def apart(wanted: list[float], widths: list[float]) -> list[float]:
    """The columns nearest to those wanted at which nothing touches another, nor the stream."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    at: list[float] = []
    for k, i in enumerate(order):
        least = at[-1] + GAP + (widths[order[k - 1]] + widths[i]) / 2 if at else wanted[i]
        at.append(max(wanted[i], least))
    back = (sum(at) - sum(wanted)) / len(at) if at else 0.0
    nearest = min((a - (WIDE + widths[i]) / 2 - GAP for a, i in zip(at, order, strict=True)), default=0.0)
    found = dict(zip(order, (a - min(back, nearest) for a in at), strict=True))
    return [found[i] for i in range(len(wanted))]


def told(graph, name, index, rows) -> tuple[str, str, str]:
    """The lines of a box: the point's name, its axes, what it reads from outside the layer."""
    own = unstacked(name).removeprefix(f"layers.{index}.")
    outside = [p for p in graph.parents(name) if p not in rows] if rows[name] else []
    return own, graph.axes(name), "with " + ", ".join(shortened(outside)) if outside else ""


def shortened(names) -> list[str]:
    """Names of points outside, as short as they are clear: tables of angles by their kind."""
    rotary = [unstacked(p) for p in names if unstacked(p).startswith("rotary_emb.")]
    rest = [p.replace(".self_attn", "") for p in names if not unstacked(p).startswith("rotary_emb.")]
    rest = [p.replace("encoder.language_model.", "the encoder's ") for p in rest]
    return rest + ([f"{rotary[0].split('.')[1].removesuffix('_attention')} rope"] if rotary else [])
