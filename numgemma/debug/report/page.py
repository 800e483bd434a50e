"""The report: one HTML page with everything in it, of a comparison, of a replay, or of both.

Every part comes from data that may be absent, and is then absent itself.  Text is escaped where it enters; the page
forbids itself to fetch anything.  Without scripts it still shows everything: they only sort, filter and open.
"""

import re
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path

from numgemma.atomic import write_whole
from numgemma.debug.compare.result import INHERITED
from numgemma.debug.compare.words import MORE
from numgemma.debug.report import chart, svg
from numgemma.debug.report.cards import cards, scroll
from numgemma.debug.report.glossary import GLOSSARY
from numgemma.debug.report.layer import layer
from numgemma.debug.report.subject import FLIPS, Subject
from numgemma.debug.report.table import table
from numgemma.dump import made_by
from numgemma.version import __version__

TEMPLATE = Path(__file__).with_name("page.html")


def write_html(path, subject: Subject) -> None:
    """Write the page, whole or not at all.  Raises InputError where it cannot be written."""
    write_whole(path, to_html(subject))


@dataclass(frozen=True)
class Report:
    """The page of a comparison or a replay; a notebook shows it in a frame of its own."""

    subject: Subject

    def _repr_html_(self) -> str:
        style = "width: 100%; height: 45rem; border: 0"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{escape(to_html(self.subject))}"></iframe>'

    def save(self, path: str | Path) -> None:
        """Write the page to a file.  Raises InputError where it cannot be written."""
        write_html(path, self.subject)


def to_html(subject: Subject) -> str:
    """The whole page."""
    sections = [*map(tuple, filter(None, (part(subject) for part in SECTIONS)))]
    links = "".join(f'<a href="#{name}">{escape(head)}</a>' for name, head, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{escape(head)}</h2>{content}</section>'
        for name, head, content in sections
    )
    return filled(subject.title, f"{head_of(subject)}<main><nav aria-label='Sections'>{links}</nav>{body}</main>")


def filled(title: str, body: str) -> str:
    """A page in the report's dress.  title: as text; body: as HTML"""
    values = {
        "title": escape(title),
        "heat": "".join(f".h{i} {{ fill: var(--h{i}); background: var(--h{i}); }}\n" for i in range(svg.SHADES)),
        "body": body + foot(),
    }
    return re.sub("@(title|heat|body)@", lambda match: values[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def head_of(subject):
    kinds = {chart.class_of(p.state) for p in subject.points}
    kind = next((k for k in (chart.WRONG, chart.BLANK, chart.DOUBTFUL, chart.FINE) if k in kinds), chart.BLANK)
    kind = chart.FINE if subject.diff and subject.diff.verdict == "same" else kind
    lines = [f'<p class="hint">{escape(line)}</p>' for line in (subject.diff.warnings if subject.diff else ())]
    also = subject.diff and subject.replay
    lines += [f"<p><b>Replay:</b> {escape(subject.replay.verdict)}</p>"] if also else []
    if subject.diff and not subject.replay and subject.diff.count(INHERITED):
        lines.append(f"<p>{escape(MORE)}</p>")
    first, *rest = subject.says.replace("\n  ", " ").splitlines() or [subject.verdict]
    says = "".join([f'<p class="verdict {kind}">{escape(first)}</p>', *map(headed, rest)])
    return f"<header><h1>{escape(subject.title)}</h1>{says}{''.join(lines)}{made(subject)}</header>"


def headed(line) -> str:
    """A line "Cause: it" with its first word in bold."""
    head, colon, text = line.partition(": ")
    return f"<p><b>{escape(head)}:</b> {escape(text)}</p>" if colon else f"<p>{escape(line)}</p>"


def made(subject) -> str:
    """When, by which versions, by which command."""
    sides = [made_by(getattr(dump, "meta", {})) for dump in (subject.a, subject.b)]
    about = [time.strftime("%Y-%m-%d %H:%M"), f"numgemma {__version__}", *(f"B: {s}" for s in sides[1:] if s)]
    command = f"<br><code>{escape(subject.command)}</code>" if subject.command else ""
    return f'<p class="note">{escape(", ".join(about))}{command}</p>'


def foot():
    return f"<footer>numgemma {escape(__version__)}. This page is complete in itself and fetches nothing.</footer>"


# -- the sections: each returns (id, heading, HTML), or None where there is nothing to show ----------------------------


def what_was_compared(s: Subject):
    facts = [*dump_facts("A, the reference", s.a, s, 0), *dump_facts("B, measured against A", s.b, s, 1)]
    if s.diff and s.diff.floor:
        facts.append(("floor", f"{s.diff.floor['precision']}, measured in {s.diff.floor['runs']} perturbed runs"))
    elif s.diff and s.points:
        limits = s.diff.limits()
        text = f"{s.diff.precision}: tensor {limits['rel']:.1e}, worst token {limits['worst_token']:.1e}"
        facts.append(("tolerances", f"{text}, worst channel {limits['worst_channel']:.1e}"))
    for side, names in (s.diff.not_recorded if s.diff else {}).items():
        if names:
            facts.append((f"not recorded by {side.upper()}", f"{len(names)} points"))
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(text)}</dd>" for key, text in facts)
    return ("compared", "What was compared", f'<dl class="facts">{rows}</dl>') if facts else None


def dump_facts(label, dump, s, side):
    meta = getattr(dump, "meta", None) or {}
    model = meta.get("model") or {}
    words = [s.paths[side], made_by(meta), meta.get("precision"), meta.get("fidelity")]
    text = ", ".join(str(word) for word in words if word and word != "exact")
    if dump is not None:
        yield label, f"{text}; {len(dump)} points"
    if side == 1 and model.get("name"):
        yield "model", str(model["name"])
    if side == 0 and meta.get("ids"):
        yield "tokens", f"{len(meta['ids'])}" + (f": {meta['text']!r:.400}" if meta.get("text") else "")


def error_against_depth(s: Subject):
    if not s.points:
        return None
    linked = frozenset(p.name for p in s.bad)
    drawn = svg.depth(s.points, s.kinds, s.tolerance, linked=linked, said=f"Error against depth. {s.verdict}")
    kinds = {chart.class_of(p.state) for p in s.points}
    marks = "".join(f"<span>{svg.key_mark(kind)} {word}</span>" for kind, word in svg.LEGEND if kind in kinds)
    marks += '<span><i class="swatch" style="background:var(--noise)"></i> noise</span>'
    if any(getattr(p, "floor", None) for p in s.points):
        marks += '<span><i class="swatch" style="background:var(--suspect)"></i> suspect</span>'
    marks += '<span><i class="swatch" style="background:var(--full)"></i> full-attention layer</span>'
    return "depth", "Error against depth", f'{scroll(drawn, "error against depth")}<div class="legend">{marks}</div>'


def heat_map(s: Subject):
    if not s.has_both:
        return None
    limit = s.diff.limits()["worst_token"] if s.diff else None
    limits = {p.name: 1.5 * p.floor["worst_token"] if getattr(p, "floor", None) else limit for p in s.points}
    found = chart.heat_map(s.a, s.b, s.points, limits)
    if found is None:
        return None
    words = list(s.words) or [str(i) for i in (s.a.meta.get("ids") or ())]
    drawn = svg.heat(found, words if len(words) == found.tokens else None, "Error by layer and token")
    steps = "".join(f'<i class="swatch h{i}"></i>' for i in range(svg.SHADES))
    size = (
        "half a decade"
        if svg.step(found) == 0.5
        else "a decade"
        if svg.step(found) == 1
        else f"{svg.step(found):g} decades"
    )
    worst = f" A column shows the worst of {found.width} tokens." if found.width > 1 else ""
    text = f"<p class='note'>{steps} from noise, {size} to a shade.{worst}</p>"
    return "heat", "Layers and tokens", scroll(drawn, "error by layer and token") + text


def local_and_inherited(s: Subject):
    if s.replay is None or not s.replay.points:
        return None
    linked = frozenset(p.name for p in s.bad)
    drawn = svg.depth(
        s.replay.points, s.kinds, None, other=lambda p: p.global_rel, linked=linked, said=f"Replay. {s.replay.verdict}"
    )
    text = (
        "<p class='note'>Marks: the local error, of each step recomputed from the recorded inputs to it. Line: the "
        "whole error against numgemma's own run. Where the line is high and the marks are low, it was inherited.</p>"
    )
    return "local", "Local and inherited error", scroll(drawn, "local and inherited error") + text


def hints(s: Subject):
    if not s.diff or not s.diff.hints:
        return None
    lines = [f'<p class="hint"><span class="name">{escape(h.point)}</span>: {escape(h.says)}</p>' for h in s.diff.hints]
    return "hints", "What it looks like", "".join(lines)


def logits(s: Subject):
    if not s.diff or not s.diff.logits:
        return None
    return "logits", "Logits", "".join(logits_table(found, s) for found in s.diff.logits)


def logits_table(found, s: Subject):
    said = "after the soft cap" if found.point == "logits" else "before the soft cap"
    facts = [
        ("KL from A to B", f"{found.kl_ab:.2e} nats, the mean of {found.tokens} tokens"),
        ("KL from B to A", f"{found.kl_ba:.2e} nats"),
        ("worst token", f"{found.kl_worst:.2e} nats, at token {found.kl_worst_at}"),
        *((f"top {k} in common", f"{100 * share:.1f} %") for k, share in found.overlap.items()),
        ("error once each token's mean is out", f"{found.centred:.1e}"),
        ("other likeliest token", f"{len(found.flips)} of {found.tokens}"),
    ]
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(text)}</dd>" for key, text in facts)
    flips = "".join(flip_row(f, s) for f in found.flips[:FLIPS])
    head = "<tr><th class='left'>after token</th><th>A says</th><th>B says</th><th>margin</th><th></th></tr>"
    more = scroll(f"<table>{head}{flips}</table>", "tokens after which another one is likeliest")
    return f"<h3>{escape(found.point)}, {said}</h3><dl class='facts'>{rows}</dl>{more if flips else ''}"


def flip_row(f, s: Subject):
    """One token after which another one is likeliest."""
    text = f"{f.token} {s.words[f.token]!r}" if f.token < len(s.words) else str(f.token)
    a, b = (f"{id} {s.spelled[id]!r}" if id in s.spelled else str(id) for id in (f.a, f.b))
    cells = (a, b, f"{f.margin:.2e}", "TIE" if f.tie else "")
    return f"<tr><td class='left'>{escape(text)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def glossary(s: Subject):
    states = {p.state for p in s.points}
    entries = [(word, text) for word, text in GLOSSARY.items() if not word.isupper() or word in states]
    rows = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in entries)
    return "glossary", "Glossary", f'<dl class="glossary">{rows}</dl>'


SECTIONS = (
    *(what_was_compared, error_against_depth, layer, heat_map, local_and_inherited, hints, cards, table, logits),
    glossary,
)
