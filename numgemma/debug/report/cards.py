"""The cards of the report: all that helps with one bad point."""

import shlex
from html import escape

from numgemma.debug.blame.replay import arrow
from numgemma.debug.compare import words
from numgemma.debug.measure import metrics, overlap
from numgemma.debug.report import chart, svg
from numgemma.debug.report.equations import equation, source
from numgemma.debug.report.subject import Subject


def scroll(content, label):
    """A part that scrolls sideways, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(label)}">{content}</div>'


def cards(s: Subject):
    if not s.bad:
        return None
    total = sum(chart.class_of(p.state) in (chart.WRONG, chart.DOUBTFUL, chart.BLANK) for p in s.points)
    some = (
        f"<p class='note'>The first {len(s.bad)} of {total}; the table below has all.</p>" if total > len(s.bad) else ""
    )
    return "cards", "Points to look at", some + "".join(card(p, s, p is s.bad[0]) for p in s.bad)


def card(p, s: Subject, opened):
    kind = chart.class_of(p.state)
    size = "" if p.rel is None else f" {p.rel:.1e}"
    head = f'<span class="state {kind}">{escape(p.state)}</span> <span class="name">{escape(p.name)}</span>{size}'
    parts = [
        f"<p>{escape(reason_of(p, s))}</p>",
        *cause_of(p, s),
        *values_of(p, s),
        *meaning_of(p, s),
        command_of(p, s),
    ]
    flag = " open" if opened else ""
    return f'<details id="card-{escape(p.name)}"{flag}><summary>{head}</summary>{"".join(parts)}</details>'


def reason_of(p, s):
    """What is wrong, in words."""
    text = words.why(p, s.diff) if s.diff else words.note(p)
    kind = words.layer_kind(s.diff, p.name) if s.diff else ""
    sources = getattr(p, "sources", ())
    parts = [text, kind and f"a layer of {kind}", sources and f"recomputed from {', '.join(sources)}"]
    return "; ".join(part for part in parts if part) or p.state


def cause_of(p, s):
    """The known fault that has these numbers, on the card of the first point that shows it."""
    if s.cause and s.replay and p.name == s.replay.first:
        yield f"<p class='cause'><b>Cause:</b> {escape(s.cause)}</p>"


def values_of(p, s):
    """Histogram and worst values, where both tensors are there."""
    if not s.has_both or p.name not in s.a or p.name not in s.b:
        return
    x, axes, y, _ = overlap.both(p.name, s.a, s.b)
    if x.shape != y.shape or not x.size or x.dtype.kind in "iub":
        return
    if found := chart.spread(x, y):
        some = ", of an even sample" if found.sampled else ""
        yield f"<h3>Values</h3>{svg.histogram(found, 'Histogram of the values of A and B')}"
        yield f"<p class='note'>Outline: A. Filled: B. From the 0.1st to the 99.9th percentile{some}.</p>"
    if worst := chart.worst_values(x, y):
        places = overlap.places_in_common(p.name, s.a, s.b)
        whole = x.ndim == len(places)
        worst = [([int(places[k][i]) for k, i in enumerate(at)] if whole else at, u, v) for at, u, v in worst]
        rows = "".join(
            f"<tr><td class='left'>{escape(place(at, axes, s.words))}</td>"
            f"<td>{u:.6g}</td><td>{v:.6g}</td><td>{v - u:.3g}</td></tr>"
            for at, u, v in worst
        )
        head = f"<tr><th class='left'>at ({escape(axes)})</th><th>A</th><th>B</th><th>B - A</th></tr>"
        yield scroll(f"<table>{head}{rows}</table>", "worst values")


def place(at, axes, texts):
    """Where a value lies, with the text of its token: [4, 83] " sat"."""
    token, _ = metrics.split_axes(axes)
    said = f" {texts[at[token[0]]]!r}" if token and axes.split()[token[0]] == "T" and at[token[0]] < len(texts) else ""
    return "[" + ", ".join(map(str, at)) + "]" + said


def last_of(name):
    return name.rpartition(".")[2]


def meaning_of(p, s):
    """The equation and the line of source; of a step that spans several operations, all of theirs."""
    sources, between = s.step(p.name)
    steps = [*between, p.name] if sources else [p.name]
    texts = {name: text for name in steps if (text := equation(name))}
    if between and sources:
        yield f"<h3>Somewhere in</h3><p><code>{escape(arrow(p.name, sources))}</code></p>"
        yield f"<p class='note'>{escape(', '.join(map(last_of, between)))}: not recorded.</p>"
    if texts:
        rows = "".join(
            f"<dt>{escape(last_of(name))}</dt><dd><code>{escape(text)}</code></dd>" for name, text in texts.items()
        )
        yield f"<h3>What it should be</h3><dl class='facts'>{rows}</dl>"
    if found := source(p.name, s.graph, between if sources else ()):
        label = escape(f"numgemma/{found.file}, {found.where}")
        label = f'<a href="{escape(found.link)}" rel="noreferrer">{label}</a>' if found.link else label
        lines = "\n".join(
            f'<span class="here">{n:4}  {escape(text)}</span>' if n in found.lines else f"{n:4}  {escape(text)}"
            for n, text in enumerate(found.excerpt, found.first)
        )
        yield f"<p>{label}</p><pre tabindex='0'>{lines}</pre>"


def command_of(p, s):
    """What shows this point alone."""
    paths = " ".join(map(shlex.quote, s.paths))
    verb = "replay" if s.replay else "diff"  # of a replay the first path is the checkpoint
    command = f"numgemma {verb} {paths} --points {shlex.quote(p.name)} --all"
    return f"<h3>Again</h3><pre tabindex='0'>{escape(command)}</pre>"
