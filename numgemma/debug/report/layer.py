"""The layer in which it first goes wrong: every point with what was found there, every arrow that an error can take."""

from dataclasses import replace
from html import escape
from typing import Any

from numgemma.anatomy import WIDE, Anatomy, Arrow, Box, anatomy
from numgemma.debug.compare.result import INHERITED
from numgemma.debug.measure.discrete import layer_of
from numgemma.debug.report import chart, svg
from numgemma.debug.report.cards import scroll
from numgemma.debug.report.subject import Subject
from numgemma.graph import unstacked

ACROSS, DOWN, TALL, EDGE = 96, 54, 34, 12  # pixels of a unit to the right, of a row, of a box, around all
NOTE = "An arrow leads from a point to what is computed from it. Bold: the stream, which every path goes through."


def layer(s: Subject):
    """The section of that layer; None where nothing is wrong, or not in a layer, or the model is not known."""
    first = (s.replay.first if s.replay else None) or (s.diff.first if s.diff else None)
    number = layer_of(first) if first else None
    if not first or number is None or first not in s.graph or not s.graph.points[first].file:
        return None
    found = anatomy(s.graph, number, first.removesuffix(unstacked(first)))
    points, linked = verdicts(s), {p.name for p in s.bad}
    at = {box.point: points.get(box.point) for box in found.boxes}
    said = f"Layer {number}. " + ", ".join(f"{box.name} {word_of(at[box.point])}" for box in found.boxes)
    kinds = {kind_of(p) for p in at.values()}
    marks = "".join(f"<span>{svg.key_mark(kind)} {word}</span>" for kind, word in svg.LEGEND if kind in kinds)
    drawn = f'<div style="width:{width_of(found)}px">{picture(found, at, linked, said)}</div>'
    note = f'<div class="legend">{marks}</div><p class="note">{NOTE}</p>'
    return "layer", f"Layer {number}, where it first goes wrong", scroll(drawn, f"layer {number}") + note


def verdicts(s: Subject) -> dict[str, Any]:
    """What was found at each point: by the comparison, and by replay, which tells who made an error from who has it."""
    found = {p.name: p for p in s.points}
    for step in s.replay.points if s.replay else ():
        p = found.get(step.name)
        if p is None or kind_of(step) == chart.WRONG:
            found[step.name] = step
        elif kind_of(p) == chart.WRONG and kind_of(step) == chart.FINE:
            found[step.name] = replace(p, state=INHERITED)
    return found


def kind_of(p) -> str:
    return chart.BLANK if p is None else chart.class_of(p.state)


def word_of(p) -> str:
    """FAULT 5.0e-01"""
    return "not recorded" if p is None else p.state if p.rel is None else f"{p.state} {p.rel:.1e}"


# -- drawn


def width_of(found: Anatomy) -> int:
    return round(ACROSS * (found.width + WIDE) + 2 * EDGE)


def picture(found: Anatomy, at, linked, said) -> str:
    """at: what was found at each point.  linked: points that have a card."""
    height = round(DOWN * (found.height + 1) + EDGE)
    parts = [part for arrow in found.arrows for part in wire(arrow)]
    parts += [cell(box, at[box.point], box.point in linked) for box in found.boxes]
    return svg.picture(width_of(found), height, parts, said)


def place(x, y) -> tuple[float, float]:
    """The middle of a box in pixels."""
    return EDGE + ACROSS * (x + WIDE / 2), EDGE + TALL / 2 + DOWN * y


def wire(arrow: Arrow):
    """From the lower edge of a box to the upper edge of another."""
    (x, y), *between, (u, v) = (place(*at) for at in arrow.places)
    stops = [(x, y + TALL / 2), *(stop for a, b in between for stop in ((a, b - TALL / 2), (a, b + TALL / 2)))]
    path = "L".join(f"{a:.1f} {b:.1f}" for a, b in [*stops, (u, v - TALL / 2)])
    main = " main" if arrow.stream else ""
    yield f'<path class="wire{main}" d="M{path}"/>'
    yield f'<path class="tip{main}" d="M{u:.1f} {v - TALL / 2:.1f}l-3.5 -7h7z"/>'


def cell(box: Box, p, linked) -> str:
    """A box: the point's name, its axes, what was found there as a word and as a mark."""
    (x, y), kind, wide = place(box.x, box.y), kind_of(p), ACROSS * WIDE
    frame = f'<rect x="{x - wide / 2:.1f}" y="{y - TALL / 2:.1f}" width="{wide:.0f}" height="{TALL}" rx="4"/>'
    mark = f'<g class="mark {kind}">{svg.MARKS[kind].format(x=x + wide / 2 - 9, y=y + TALL / 2 - 9)}</g>'
    bold = ' class="bold"' if box.stream else ""
    lines = [f'<text{bold} x="{x:.1f}" y="{y - 3:.1f}">{escape(box.name)}</text>']
    said = f'{escape(box.axes)}<tspan class="bold" dx="8">{escape(word_of(p))}</tspan>'
    lines.append(f'<text x="{x:.1f}" y="{y + 11:.1f}">{said}</text>')
    if box.outside:
        lines.append(f'<text class="outside" x="{x:.1f}" y="{y + TALL / 2 + 12:.1f}">{escape(box.outside)}</text>')
    drawn = f'<g class="cell {kind}"><title>{escape(box.point)}</title>{frame}{mark}{"".join(lines)}</g>'
    return f'<a href="#card-{escape(box.point)}">{drawn}</a>' if linked else drawn
