"""The pictures of the report as SVG: plain shapes with classes, which the page colours to suit a dark screen."""

import math
from html import escape

import numpy as np

from numgemma.debug.measure.discrete import leaf_of
from numgemma.debug.report.chart import BLANK, Decades, Heat, Spread, class_of, limits_of, scale_of, spans, stride

WIDTH, HEIGHT = 960, 306  # of a picture over depth, in its own units
ACROSS = "points in order of execution; numbers: decoder layers"
UPWARDS = "relative error (1e-2 is 1 %)"
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 10, 34

MARKS = {  # shapes differ as well as colours
    "fine": '<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>',
    "doubtful": '<path d="M{x:.1f} {y:.1f}m-4 3.5h8l-4-7z"/>',
    "passed-on": '<path d="M{x:.1f} {y:.1f}m-3 0l3 3 3-3-3-3z"/>',
    "wrong": '<path d="M{x:.1f} {y:.1f}m-3.5-3.5l7 7m0-7l-7 7"/>',
    "blank": '<path d="M{x:.1f} {y:.1f}m0-5v10"/>',
}


def depth(points, kinds, tolerance, value=lambda p: p.rel, other=None, linked=frozenset(), said="") -> str:
    """Error against depth, one mark per point.

    value: the height of a point.  other: of a second, thin line.  linked: names of points that have a card.
    kinds: "full_attention" or else, by layer.  said: what a screen reader says of the picture.
    """
    limits = limits_of(points, tolerance)
    heights = [value(p) for p in points] + [other(p) for p in points if other]
    scale = scale_of(heights + [limit for pair in limits if pair for limit in pair])
    x = lambda i: LEFT + (i + 0.5) * (WIDTH - LEFT - RIGHT) / max(1, len(points))  # noqa: E731
    y = lambda v: TOP + (1 - scale.at(v)) * (HEIGHT - TOP - BOTTOM)  # noqa: E731
    parts = [
        *layers(points, kinds, x),
        *bands(limits, x, y),
        *grid(scale, y),
        *(line([(x(i), y(other(p))) for i, p in enumerate(points) if other(p) is not None], "other") if other else []),
        *outputs(points, value, x, y),
        *(mark(p, x(i), y(height(p, value(p), scale)), p.name in linked) for i, p in enumerate(points)),
        f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{ACROSS}</text>',
    ]
    return beside(picture(LEFT, HEIGHT, ticks(scale, y)), LEFT, WIDTH, picture(WIDTH, HEIGHT, parts, said), UPWARDS)


def picture(width, height, parts, said=""):
    """said: to a screen reader; "": it need not know."""
    role = f'role="img" aria-label="{escape(said)}"' if said else 'aria-hidden="true"'
    return f'<svg viewBox="0 0 {width} {height}" {role}>{"".join(parts)}</svg>'


def beside(axis, left, width, drawn, word=""):
    """A picture whose axis, that many of its units wide, and its word stay in sight where the rest scrolls."""
    named = f'<p class="stays word">{escape(word)}</p>' if word else ""
    fixed = f'<div class="stays" style="width:{100 * left / width:.2f}%">{axis}</div>'
    return f'<div class="plot">{named}{fixed}{drawn}</div>'


def height(p, value, scale: Decades):
    """Where a mark stands: at the bottom without an error or without a partner, at the top without a number."""
    if class_of(p.state) == BLANK:
        return scale.low
    return scale.low if value == 0 else value


def layers(points, kinds, x):
    """Full-attention layers as a shade, and the layers' numbers."""
    found = spans(points)
    every = stride(len(found))
    half = (x(1) - x(0)) / 2 if len(points) > 1 else 10
    for layer, first, last in found:
        left, right = x(first) - half, x(last) + half
        if layer < len(kinds) and kinds[layer] == "full_attention":
            size = f'x="{left:.1f}" width="{right - left:.1f}" y="{TOP}" height="{HEIGHT - TOP - BOTTOM}"'
            yield f'<rect class="full" {size}><title>layer {layer}: full attention</title></rect>'
        yield f'<path class="rule" d="M{left:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        if layer % every == 0:
            middle = (left + right) / 2
            yield f'<text class="tick" x="{middle:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{layer}</text>'


def bands(limits, x, y):
    """What counts as noise, and above it what is suspect."""
    for which, name in ((0, "noise"), (1, "suspect")):
        run: list[tuple[float, float]] = []
        for i, pair in enumerate([*limits, None]):
            if pair is not None and (which == 0 or pair[1] > pair[0]):
                run.append((x(i), y(pair[which])))
            elif run:
                yield from area(run, name)
                run = []


def area(run, name):
    """From the bottom up to a line."""
    edge = " ".join(f"L{px:.1f} {py:.1f}" for px, py in run)
    bottom = HEIGHT - BOTTOM
    yield f'<path class="band {name}" d="M{run[0][0]:.1f} {bottom}{edge}V{bottom}Z"/>'
    if name == "noise":
        yield from line(run, "limit")


def line(places, name):
    if len(places) > 1:
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
        yield f'<path class="{name}" d="M{path}"/>'


def grid(scale, y):
    for tick in scale.ticks():
        yield f'<path class="rule" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>'


def ticks(scale, y):
    for tick in scale.ticks():
        yield f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.0e}</text>'
    for value, word in ((scale.low, "none"), (math.inf, "no number")):
        yield f'<text class="tick" x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{word}</text>'


def outputs(points, value, x, y):
    """A line through what the layers hand on."""
    found = [(x(i), y(value(p))) for i, p in enumerate(points) if leaf_of(p.name) == "out" and value(p)]
    return line(found, "stream")


def mark(p, px, py, linked):
    kind = class_of(p.state)
    what = f"<title>{escape(p.name)}: {escape(p.state)}{'' if p.rel is None else f', {p.rel:.1e}'}</title>"
    shape = f'<g class="mark {kind}">{what}{MARKS[kind].format(x=px, y=py)}</g>'
    return f'<a href="#card-{escape(p.name)}">{shape}</a>' if linked else shape


# -- the heat map -----------------------------------------------------------------------------------------------------

SHADES = 9  # of a heat map, the first for noise
CELL, LABEL = 14, 150


def heat(found: Heat, words, said="") -> str:
    """Layers downwards, tokens to the right; a shade is the token's error in units of what counts as noise."""
    rows, columns = found.errors.shape
    width = max(3, min(26, 790 // columns))
    parts, names, decades = [], [], step(found)
    for r, name in enumerate(found.rows):
        top = r * CELL
        names.append(f'<text class="tick" x="{LABEL - 6}" y="{top + 11}" text-anchor="end">{escape(name)}</text>')
        for c in range(columns):
            error = found.errors[r, c]
            if not math.isnan(error):
                said_here = (
                    f"{name}, {tokens_of(found, c, words)}: {'not finite' if math.isinf(error) else f'{error:.1e}'}"
                )
                parts.append(
                    f'<rect class="h{shade(error, found.noise[r], decades)}" x="{LABEL + c * width}" y="{top}" '
                    f'width="{width - (width > 5)}" height="{CELL - 1}"><title>{escape(said_here)}</title></rect>'
                )
    every = max(1, math.ceil(13 / width))
    longest = 1
    for c in range(0, columns, every):
        place = LABEL + c * width + width / 2
        word = shortened(words[c * found.width]) if words else str(c * found.width)
        longest = max(longest, len(word))
        turned = f"translate({place + 3:.0f} {rows * CELL + 6}) rotate(90)"
        parts.append(f'<text class="tick" transform="{turned}">{escape(word)}</text>')
    across, down = max(LABEL + columns * width + 10, WIDTH), rows * CELL + 14 + 7 * longest
    return beside(picture(LABEL, down, names), LABEL, across, picture(across, down, parts, said))


def step(found: Heat) -> float:
    """Decades from one shade to the next: half a one, or more where the largest error would need it."""
    real = found.errors[np.isfinite(found.errors)]
    over = [math.log10(real.max() / n) for n in found.noise if n and real.size and real.max()]
    return max(0.5, math.ceil(2 * max(over, default=0) / (SHADES - 1)) / 2)


def shade(error, noise, decades):
    """0 for noise, then one more with every step."""
    if not error:
        return 0
    if math.isinf(error):
        return SHADES - 1
    return min(SHADES - 1, max(0, math.ceil(math.log10(error / (noise or 1e-6)) / decades)))


def tokens_of(found: Heat, column, words):
    first = column * found.width
    last = min(first + found.width, found.tokens) - 1
    word = f" {words[first]!r}" if words and first == last else ""
    return f"token {first}{word}" if first == last else f"the worst of tokens {first} to {last}"


def shortened(word):
    word = "".join(c if c.isprintable() else "·" for c in word).replace(" ", "·")
    return word if len(word) <= 9 else f"{word[:8]}…"


# -- the histogram of a card ------------------------------------------------------------------------------------------


def histogram(found: Spread, said="") -> str:
    """Two outlines over one range: A in front as a line, B as a surface."""
    width, tall = 320, 90
    most = max(found.a.max(), found.b.max(), 1)
    outlines = []
    for counts, name in ((found.b, "hist-b"), (found.a, "hist-a")):
        step = (width - 20) / len(counts)
        heights = [tall - 18 - (tall - 26) * n / most for n in counts]
        path = "".join(f"L{10 + i * step:.1f} {h:.1f}h{step:.1f}" for i, h in enumerate(heights))
        outlines.append(f'<path class="{name}" d="M10 {tall - 18}{path}V{tall - 18}Z"/>')
    ends = f'<text class="tick" x="10" y="{tall - 4}">{found.low:.3g}</text>'
    ends += f'<text class="tick" x="{width - 10}" y="{tall - 4}" text-anchor="end">{found.high:.3g}</text>'
    return picture(width, tall, [*outlines, ends], said)


def key_mark(kind):
    """A mark by itself, for the legend."""
    shape = MARKS[kind].format(x=6, y=6)
    return f'<svg class="key" viewBox="0 0 12 12" aria-hidden="true"><g class="mark {kind}">{shape}</g></svg>'


LEGEND = (
    ("fine", "in order"),
    ("doubtful", "SUSPECT"),
    ("wrong", "at fault, or not comparable"),
    ("passed-on", "INHERITED"),
    ("blank", "not measured"),
)
