"""A sweep as one page: a table of all engines, and for each what drifts, what fails first, and which prompts are worst.

Every text that comes from outside (names of prompts, of files, of points) is escaped where it enters.
"""

from html import escape
from pathlib import Path

from numgemma.atomic import write_whole
from numgemma.debug.report import chart, svg
from numgemma.debug.report.cards import scroll
from numgemma.debug.report.page import filled
from numgemma.debug.sweep.trends import VERDICTS, WORST, Contestant, Trends, size

MARKED = {"same": "fine", "differs": "wrong", "not comparable": "blank", "not run": "blank"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 260, 66, 14, 24, 42  # of a picture: one that a telephone shows whole
FIRSTS = 12  # points that fail first, of which a table has a line


def write_html(path: Path, found: Trends, title: str, says: str) -> None:
    """Write the page, whole or not at all.  Raises InputError where it cannot be written."""
    write_whole(path, to_html(found, title, says))


def to_html(found: Trends, title: str, says: str) -> str:
    """title, says: a heading, and the verdict in a sentence"""
    kind = {0: "fine", 1: "wrong", 4: "wrong"}.get(found.exit_code, "blank")
    head = f'<header><h1>{escape(title)}</h1><p class="verdict {kind}">{escape(says)}</p></header>'
    body = "".join(part(c, f"s{i}") for i, c in enumerate(found.contestants))
    return filled(title, f"{head}<main>{overview(found)}{body}</main>")


def overview(found: Trends) -> str:
    names = ("checkpoint, engine", *VERDICTS, "median worst error", "first to fail, most often")
    rows = "".join(f"<tr>{cells(c, i)}</tr>" for i, c in enumerate(found.contestants))
    left = "class='left'"
    head = "".join(f"<th {left if i in (0, len(names) - 1) else ''}>{name}</th>" for i, name in enumerate(names))
    return f"<section><h2>All</h2>{scroll(f'<table>{head}{rows}</table>', 'all engines')}</section>"


def cells(c: Contestant, i: int) -> str:
    counts = "".join(f"<td>{c.counts[verdict] or ''}</td>" for verdict in VERDICTS)
    middle = c.judged[len(c.judged) // 2]["worst"]["rel"] if c.judged else None
    first = f"{c.firsts[0][0]} ({c.firsts[0][1]})" if c.firsts else ""
    link = f'<a href="#s{i}">{escape(c.name)}</a>'
    return f"<td class='left'>{link}</td>{counts}<td>{number(middle)}</td><td class='left name'>{escape(first)}</td>"


def part(c: Contestant, anchor: str) -> str:
    """One engine on one checkpoint."""
    found = [
        ("Drift by layer", drift(c)),
        ("Error against length", lengths(c)),
        ("What fails first", firsts(c)),
        ("The worst prompts", worst(c)),
        ("Not judged", unjudged(c)),
    ]
    body = "".join(f"<h3>{head}</h3>{content}" for head, content in found if content)
    return f'<section id="{anchor}"><h2>{escape(c.name)}</h2>{body}</section>'


def drift(c: Contestant) -> str:
    """What each layer hands on: the median over prompts as marks, the largest as a line."""
    if not c.layers:
        return ""
    scale = chart.scale_of([x for pair in c.layers.values() for x in pair])
    x = lambda i: LEFT + (i + 0.5) * (WIDTH - LEFT - RIGHT) / len(c.layers)  # noqa: E731
    every = chart.stride(len(c.layers), 12)
    parts = [*grid(scale), *axes("decoder layers")]
    parts += [tick(x(i), layer) for i, layer in enumerate(c.layers) if i % every == 0]
    parts += svg.line([(x(i), up(scale, most)) for i, (_, most) in enumerate(c.layers.values())], "other")
    for i, (layer, (median, most)) in enumerate(c.layers.items()):
        says = f"layer {layer}: median {median:.1e}, largest {most:.1e}"
        parts.append(dot("fine", x(i), up(scale, median), says))
    note = "<p class='note'>Marks: the median over all prompts. Line: the largest.</p>"
    return drawn(parts, f"Drift by layer of {c.name}") + note


def lengths(c: Contestant) -> str:
    """Each prompt at its length and its worst error."""
    if len(c.judged) < 2:
        return ""
    longest = max(row["tokens"] for row in c.judged)
    scale = chart.scale_of([row["worst"]["rel"] for row in c.judged])
    x = lambda tokens: LEFT + (WIDTH - LEFT - RIGHT) * tokens / longest  # noqa: E731
    parts = [*grid(scale), *axes("tokens of the prompt")]
    parts += [tick(x(round(longest * k / 4)), round(longest * k / 4)) for k in range(5)]
    for row in c.judged:
        says = (
            f"prompt {row['prompt']}: {row['tokens']} tokens, {number(row['worst']['rel'])} at {row['worst']['point']}"
        )
        parts.append(dot(MARKED[row["verdict"]], x(row["tokens"]), up(scale, row["worst"]["rel"]), says))
    said = f"<p class='note'>{escape(c.trend.says.capitalize())}.</p>" if c.trend else ""
    return drawn(parts, f"Error against length of {c.name}") + said


def drawn(parts, said) -> str:
    return f'<div class="small">{svg.picture(WIDTH, HEIGHT, parts, said)}</div>'


def up(scale, value) -> float:
    return TOP + (1 - scale.at(value)) * (HEIGHT - TOP - BOTTOM)


def grid(scale):
    """A line for every power of ten, or every second one."""
    for power in scale.ticks()[:: chart.stride(len(scale.ticks()), 8)]:
        yield f'<path class="rule" d="M{LEFT} {up(scale, power):.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 6}" y="{up(scale, power) + 4:.1f}" text-anchor="end">{power:.0e}</text>'


def axes(across):
    yield f'<text x="{LEFT}" y="14">relative error (1e-2 is 1 %)</text>'
    yield f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{across}</text>'


def tick(x, value) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value}</text>'


def dot(kind, x, y, says) -> str:
    return f'<g class="mark {kind}"><title>{escape(says)}</title>{svg.MARKS[kind].format(x=x, y=y)}</g>'


def firsts(c: Contestant) -> str:
    rows = [(point, n, f"{100 * n / len(c.rows):.0f} %") for point, n in c.firsts[:FIRSTS]]
    return table(("point", "prompts", "share"), rows)


def worst(c: Contestant) -> str:
    rows = [
        (
            row["prompt"],
            row["worst"]["point"],
            row["tokens"],
            row["verdict"],
            number(row["worst"]["rel"]),
            number(row["kl"]),
        )
        for row in c.judged[:WORST]
        if size(row)
    ]
    return table(("prompt", "worst point", "tokens", "verdict", "relative error", "KL of logits"), rows, left=2)


def unjudged(c: Contestant) -> str:
    rows = [(row["prompt"], row["reason"], row["tokens"], row["verdict"]) for row in c.rows if not row["worst"]]
    return table(("prompt", "why", "tokens", "verdict"), rows, left=2)


def table(head, rows, left=1) -> str:
    """rows: of texts and numbers.  left: how many columns are text"""
    if not rows:
        return ""
    side = lambda i: " class='left'" if i < left else ""  # noqa: E731
    lines = [f"<tr>{''.join(f'<th{side(i)}>{escape(cell)}</th>' for i, cell in enumerate(head))}</tr>"]
    lines += [
        f"<tr>{''.join(f'<td{side(i)}>{escape(str(cell))}</td>' for i, cell in enumerate(row))}</tr>" for row in rows
    ]
    return scroll(f"<table>{''.join(lines)}</table>", head[0])


def number(x) -> str:
    return "" if x is None else f"{x:.1e}"
