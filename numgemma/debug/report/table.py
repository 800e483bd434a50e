"""The table of the report: every point, to be sorted and filtered."""

import math
from html import escape

from numgemma.debug.compare import words
from numgemma.debug.report import chart
from numgemma.debug.report.subject import Subject

ROWS = 4000  # of the table, for the size of the page
COLUMNS = (  # head, key of a point, kind
    ("#", "place", "number"),
    ("point", "name", "text"),
    ("state", "state", "text"),
    ("relative error", "rel", "number"),
    ("× floor", "xfloor", "number"),
    ("local error", "local", "number"),
    ("worst token", "worst_token", "number"),
    ("worst channel", "worst_channel", "number"),
    ("scale B/A", "scale", "number"),
    ("cosine", "cos", "number"),
    ("largest |A - B|", "max_abs", "number"),
)


def table(s: Subject):
    if not s.points:
        return None
    rows = s.points if len(s.points) <= ROWS else sorted_by_need(s.points)
    some = "" if rows is s.points else f"<p class='note'>{ROWS} of {len(s.points)} points, the bad ones among them.</p>"
    states = sorted({p.state for p in rows})
    options = "".join(f"<option>{escape(state)}</option>" for state in states)
    tools = (
        '<div class="tools" hidden>'
        '<label>Filter <input id="filter" type="search" placeholder="layers.3 q_norm"></label>'
        f'<label>State <select id="states"><option value="">all</option>{options}</select></label>'
        '<output id="shown" for="filter states"></output></div>'
    )
    values = {p.name: values_of(p, i, s) for i, p in enumerate(s.points)}
    columns = [c for c in COLUMNS if any(values[p.name][c[1]] is not None for p in rows)]
    head = "".join(
        f'<th scope="col" data-kind="{kind}" aria-sort="none"><button type="button">{escape(word)}</button></th>'
        for word, _, kind in columns
    )
    linked = {p.name for p in s.bad}
    body = "".join(row(p, values[p.name], columns, p.name in linked) for p in rows)
    grid = f'<table id="points"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    content = f'{some}{tools}<div class="scroll table" tabindex="0" role="group" aria-label="all points">{grid}</div>'
    return "table", "All points", content


def sorted_by_need(points):
    """The bad points, and of the others as many as there is room for, in order of execution."""
    order = {p.name: i for i, p in enumerate(points)}
    worst = sorted(points, key=lambda p: (chart.class_of(p.state) == chart.FINE, order[p.name]))[:ROWS]
    return sorted(worst, key=lambda p: order[p.name])


def values_of(p, index, s: Subject):
    """The numbers of a row, by the key of their column."""
    found = {key: getattr(p, key, None) for _, key, _ in COLUMNS}
    return found | {"place": index, "local": s.local.get(p.name) if s.diff else None}


def row(p, values, columns, linked):
    cells = []
    for _, key, _ in columns:
        value = values[key]
        raw = "" if value is None else escape(str(value)) if not isinstance(value, float) else number_key(value)
        if key == "name":
            text = f'<a href="#card-{escape(p.name)}">{escape(p.name)}</a>' if linked else escape(p.name)
            cells.append(f'<td class="name" data-key="{raw}">{text}</td>')
        elif key == "state":
            cells.append(f'<td class="state {chart.class_of(p.state)}" data-key="{raw}">{escape(p.state)}</td>')
        else:
            cells.append(f'<td data-key="{raw}">{escape(shown(key, value))}</td>')
    return f'<tr data-name="{escape(p.name)}" data-state="{escape(p.state)}">{"".join(cells)}</tr>'


def number_key(value):
    return "" if math.isnan(value) else "1e999" if value == math.inf else f"{value:.9g}"


def shown(key, value):
    forms = {"scale": ".5g", "cos": ".6f", "xfloor": ".2g"}
    return str(value) if key == "place" else words.number(value, forms.get(key, ".1e"))
