"""A replay, a graft and a search for faults as text."""

import shutil
import textwrap

from numgemma.debug.blame.replay import Replay
from numgemma.debug.blame.whatif import WhatIf
from numgemma.debug.compare.result import FAULT, INHERITED, NON_FINITE, SUSPECT, UNMEASURED
from numgemma.debug.compare.reused import told
from numgemma.debug.compare.words import number, table, thin

SHOWN = 8  # local faults in a table that does not show all

LOCAL = (
    ("", "state", 10, lambda s: s.state),
    ("times", "floor", 7, lambda s: number(s.xfloor, ".2g")),
    ("local", "error", 7, lambda s: number(s.rel)),
    ("with the", "inherited", 9, lambda s: number(s.global_rel)),
    ("worst", "token", 7, lambda s: number(s.worst_token)),
    ("worst", "channel", 7, lambda s: number(s.worst_channel)),
    ("scale", "", 7, lambda s: number(s.scale, ".4g")),
)
GRAFTED = (
    ("", "state", 10, lambda s: s.state),
    ("times", "floor", 7, lambda s: number(s.xfloor, ".2g")),
    ("", "error", 7, lambda s: number(s.rel)),
    ("before the", "graft", 10, lambda s: number(s.global_rel)),
)


def render(found: Replay, all: bool = False, width: int | None = None) -> str:
    """The verdict, how the first bad step is made, and a dozen telling steps (or all of them)."""
    width = width or shutil.get_terminal_size().columns
    lines = [headline(found), ""]
    lines += [f"The dump: {found.engine}, {found.precision}, {len(found.points)} points."]
    lines += ["Each step is computed in float64 from the dump's own tensors before it, and measured in units of"]
    lines[-1] += f" the noise that {found.precision} makes in that step alone."
    rows = found.points if all else telling(found)
    text = [*wrapped(lines, width), "", *table(rows, width, list(LOCAL))]
    if len(rows) < len(found.points):
        text.append(f"{len(rows)} of {len(found.points)} points; --all shows all")
    return "\n".join([*text, *(render_graft(found.graft, width) if found.graft else [])])


def headline(found: Replay) -> str:
    """The verdict, or that the dump is not what was run."""
    if not found.overwritten:
        return sentence(found.verdict)
    right = sum(s.name not in found.overwritten for s in found.points)
    return sentence(told(found.overwritten, right, len(found.points)))


def render_graft(graft, width):
    """The points after the graft that are still off, or the last one."""
    off = [s for s in graft.points if s.state in (SUSPECT, FAULT)]
    rows = off[:SHOWN] or list(graft.points[-1:])
    shown = table(rows, width, list(GRAFTED)) if rows else []
    return ["", *wrapped([sentence(graft.verdict)], width), "", *shown]


def render_whatif(found: WhatIf, width: int | None = None) -> str:
    """The faults that reproduce the dump, best first, each with what is left and what to do."""
    width = width or shutil.get_terminal_size().columns
    lines = [sentence(found.replay.verdict), ""]
    for i, candidate in enumerate(found.candidates[:3]):
        head = "" if i == 0 else "Nor is this excluded: " if candidate.explains == candidate.of else "In part: "
        lines.append(head + candidate.says)
    lines = lines if found.candidates else [found.verdict]
    lines += [f"Not tried, for want of time: {'; '.join(found.not_tried)}."] if found.not_tried else []
    return "\n".join(wrapped(lines, width))


def sentence(text):
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def wrapped(lines, width):
    return [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="  ") or [""]]


def telling(found: Replay):
    """About a dozen steps: the local faults, what is beside them, and what became of the end."""
    steps, bad = found.points, [i for i, s in enumerate(found.points) if s.state in (FAULT, NON_FINITE)]
    suspects = sorted((i for i, s in enumerate(steps) if s.state == SUSPECT), key=lambda i: -(steps[i].xfloor or 0))
    unmeasured = [i for i, s in enumerate(steps) if s.state == UNMEASURED][:2]
    inherited = [i for i, s in enumerate(steps) if s.state == INHERITED][:1]
    outputs = thin([i for i, s in enumerate(steps) if s.name.endswith(".out")] or list(range(len(steps))), 4)
    before = [bad[0] - 1] if bad and bad[0] else []
    chosen = {*before, *bad[:SHOWN], *suspects[:3], *inherited, *unmeasured, *outputs, len(steps) - 1}
    return [steps[i] for i in sorted(chosen)]
