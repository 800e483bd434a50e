"""A comparison as text: the verdict in one sentence, what was compared, and a dozen telling points."""

import math
import shutil
import textwrap
from collections.abc import Callable

from numgemma.debug.compare.result import (
    DIFFERS,
    FAULT,
    GOOD,
    INHERITED,
    MISSING,
    NON_FINITE,
    NOT_COMPARABLE,
    SUSPECT,
    TIE,
    UNMEASURED,
    Diff,
    PointDiff,
)
from numgemma.debug.compare.reused import told
from numgemma.debug.measure.discrete import layer_of, leaf_of

SHORT = {NOT_COMPARABLE: "SHAPES"}  # in the table

MORE = "A fault behind an inherited one does not show here: `numgemma replay` may find more."

Column = tuple[str, str, int, Callable[[PointDiff], str]]
# header above, header below, width, text of a point; the last columns go first where a line is too narrow
COLUMNS: tuple[Column, ...] = (
    ("", "state", 7, lambda p: SHORT.get(p.state, p.state)),
    ("relative", "error", 8, lambda p: number(p.rel)),
    ("worst", "token", 7, lambda p: number(p.worst_token)),
    ("worst", "channel", 7, lambda p: number(p.worst_channel)),
    ("scale", "B/A", 7, lambda p: number(p.scale, ".4g")),
    ("", "cosine", 7, lambda p: number(p.cos, ".4f")),
    ("largest", "|A - B|", 7, lambda p: number(p.max_abs)),
)
WIDE_STATE: Column = ("", "state", 10, lambda p: SHORT.get(p.state, p.state))
FLOOR: Column = ("times", "floor", 7, lambda p: number(p.xfloor, ".2g"))
WORDS = {
    "rel": "relative error",
    "worst_token": "error of token",
    "worst_channel": "error of channel",
    "scale": "best-fit scale",
}


def render(diff: Diff, all: bool = False, width: int | None = None) -> str:
    """The comparison as text; all: every point, not a dozen."""
    width = width or shutil.get_terminal_size().columns
    lines = [verdict(diff), *hint_lines(diff), *(f"warning: {line}" for line in diff.warnings), ""]
    lines += [f"A, the reference:       {diff.engines[0]}", f"B, measured against A:  {diff.engines[1]}"]
    if diff.points:
        lines += [*measure_lines(diff), *truth_lines(diff), *logits_lines(diff)]
    for side, names in diff.not_recorded.items():
        if names:
            lines.append(f"{counted(len(names), 'point')} not recorded by {side.upper()} (--points)")
    if diff.left_out:
        lines.append(f"{counted(diff.left_out, 'point')} outside the map and not compared")
    text = [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="  ") or [""]]
    if not diff.points:
        return "\n".join(text)
    rows = diff.points if all else telling(diff)
    rest = [] if len(rows) == len(diff.points) else [f"{len(rows)} of {len(diff.points)} points; --all shows all"]
    return "\n".join([*text, "", *table(rows, width, columns(diff)), *rest])


def counted(n, word):
    return f"1 {word} was" if n == 1 else f"{n} {word}s were"


def verdict(diff: Diff) -> str:
    """One sentence: the same, or where the dumps first differ and by how much."""
    if diff.verdict == "not comparable":
        return f"NOT COMPARABLE: {diff.reason}."
    total = f"{len(diff.points)} point" + "s" * (len(diff.points) != 1)
    if diff.first is None:
        return same(diff, total)
    if diff.overwritten:
        return told(diff.overwritten, diff.count(*GOOD), len(diff.points), "B's ") + "."
    first = next(p for p in diff.points if p.name == diff.first)
    kind = layer_kind(diff, first.name)
    where = f"{first.name}{f' ({kind})' if kind else ''}"
    return f"DIFFERS first at {where}: {why(first, diff)}; {tail(diff, total)}."


def same(diff, total):
    """The verdict where nothing differs."""
    rated = [p for p in diff.points if p.xfloor is not None]
    if not rated:
        worst = max(diff.points, key=lambda p: p.rel or 0.0)
        where = f" at {worst.name}" if worst.rel else ""
        return f"SAME ({total}): largest relative error {number(worst.rel, '.2g')}{where}."
    worst = max((p for p in rated if p.state != INHERITED), key=lambda p: p.xfloor or 0.0, default=rated[0])
    rest = [f"{diff.count(state)} {state}" for state in (SUSPECT, TIE, INHERITED) if diff.count(state)]
    known = f"{', '.join(rest)}; " if rest else ""
    return f"SAME ({total}): {known}at most {number(worst.xfloor, '.2g')} x the noise floor, at {worst.name}."


def tail(diff, total):
    """How many points are off, and how."""
    if diff.floor is None:
        text = f"{diff.count(DIFFERS)} of {total} differ, {diff.count(MISSING)} missing"
        wrong = diff.count(NOT_COMPARABLE)
        return text + (f", {wrong} not comparable" if wrong else "")
    states = (FAULT, INHERITED, SUSPECT, TIE, NON_FINITE, UNMEASURED, NOT_COMPARABLE)
    return f"{', '.join(f'{diff.count(s)} {s}' for s in states if diff.count(s))} of {total}"


def note(p):
    """Why a point has no numbers; empty where it has."""
    if p.nonfinite:
        where = f", first at {p.max_abs_at}" if p.max_abs_at else ""
        return f"{p.reason}{', ' if p.reason else ''}NaN or infinity in {' and '.join(p.nonfinite).upper()}{where}"
    return p.reason or ("values too large to compare" if p.rel is None else "")


def why(p, diff):
    """What is wrong with a point, in words and numbers."""
    if p.rel is None or p.state in (NOT_COMPARABLE, MISSING, UNMEASURED):
        return note(p)
    if p.worst_channel is None and p.tolerance == 0.0:
        some = f"{100 * p.rel:.3g} % of the tokens have other values, first token {place(p.worst_token_at)}"
        return f"{p.reason} ({100 * p.rel:.3g} % of the tokens)" if p.reason else some
    if p.xfloor is not None:
        size = f"{WORDS[p.by]}{place_of(p, p.by)} {value_of(p)}, {p.xfloor:.2g} x the noise floor"
        return size + lost_factor(p)
    limits = diff.limits()
    key = next((key for key in limits if getattr(p, key) > limits[key]), "rel")
    size = f"{WORDS[key]}{place_of(p, key)} {getattr(p, key):.2g}, tolerance {limits[key]:.2g}"
    return size + lost_factor(p)


def value_of(p):
    """The number that a point is judged by; beside a scale the relative error, which tells how much else is wrong."""
    return f"{p.scale:.4g} at a relative error of {p.rel:.2g}" if p.by == "scale" else f"{getattr(p, p.by):.2g}"


def place_of(p, key):
    at = {"worst_token": p.worst_token_at, "worst_channel": p.worst_channel_at}.get(key)
    return f" {place(at)}" if at else ""


def place(at):
    return ", ".join(map(str, at or ()))


def lost_factor(p):
    """Says so when B is A times a number and little else: a scale was lost or doubled."""
    if p.scale is None or p.rel_rescaled is None or abs(p.scale - 1) < 10 * p.rel_rescaled:
        return ""
    return f" (B is A times {p.scale:.4g})"


def layer_kind(diff: Diff, name: str) -> str:
    """'full attention' or the like for a point of a decoder layer, else ''."""
    layer = layer_of(name)
    if layer is None or layer >= len(diff.layer_kinds):
        return ""
    return diff.layer_kinds[layer].replace("_", " ")


# -- the lines between the verdict and the table ----------------------------------------------------------------------


def hint_lines(diff):
    """What the wrong tensors look like; a plain lost factor is in the verdict already."""
    told = {p.name for p in diff.points if p.name == diff.first and lost_factor(p)}
    return [f"hint: {h.point}: {h.says}" for h in diff.hints if not (h.kind == "scaled" and h.point in told)]


def measure_lines(diff):
    """What the numbers are measured in, and what would have passed."""
    if diff.floor is None:
        limits = "tensor {rel:.0e}, worst token {worst_token:.0e}, worst channel {worst_channel:.0e}"
        yield f"Tolerances ({diff.precision}): {limits.format(**diff.limits())}; relative to A's RMS, 1e-02 is 1 %."
        least = diff.least_tolerance()
        if diff.verdict == "differs" and least is not None and math.isfinite(least):
            yield f"The least tolerance that would have passed: {least:.2g}."
        if diff.verdict == "differs":
            yield "A floor tells noise from fault: --floor auto --ckpt CKPT, or `numgemma doctor CKPT B`."
        return
    sides = "both sides round" if diff.floor["sides"] > 1 else "one side's rounding counts"
    yield (
        f"The floor: {diff.floor['precision']}, {diff.floor['runs']} runs, {sides}; "
        "NOISE to 1.5 times it, SUSPECT to 5, FAULT above."
    )
    least = diff.least_xfloor()
    if diff.verdict == "differs" and least is not None and math.isfinite(least):
        yield f"The least multiple of the floor that would have passed: {least:.2g}."
    if diff.verdict == "differs" and diff.count(INHERITED):
        yield MORE


def truth_lines(diff):
    """Which side is off, at the first point that is."""
    rows = [p for p in diff.points if p.truth]
    if not rows:
        return
    p = next((p for p in rows if p.truth["off"] != "neither"), rows[-1])
    off = {"a": "A is off", "b": "B is off", "both": "both are off", "neither": "neither is off"}[p.truth["off"]]
    sizes = (f"{side.upper()} is {number(p.truth[side]['xfloor'], '.2g')} x its noise" for side in "ab")
    yield f"Against the truth, at {p.name}: {', '.join(sizes)}: {off}."


def logits_lines(diff):
    """What the difference does to the probabilities."""
    for found in diff.logits:
        if found.point == "lm_head" and len(diff.logits) > 1:
            continue  # the probabilities come from the logits
        times = "" if found.xfloor is None else f" ({found.xfloor:.2g} x the floor)"
        top = ", ".join(f"top {k} {100 * share:.3g} %" for k, share in found.overlap.items())
        kl = f"KL {found.kl_ab:.2g} nats a token{times}, back {found.kl_ba:.2g}"
        yield f"{found.point}: {kl}; shared: {top}; {flips_in_words(found)}."


def flips_in_words(found):
    """How many tokens would be followed by another one."""
    if not found.flips:
        return "every first choice is the same"
    ties = sum(flip.tie for flip in found.flips)
    worst = max(found.flips, key=lambda flip: flip.margin)
    text = f"{len(found.flips)} of {found.tokens} tokens have another first choice"
    text += f", {'all' if ties == len(found.flips) else ties} by a tie" if ties else ""
    return f"{text} (widest margin {worst.margin:.2g}, at token {worst.token})"


# -- the table --------------------------------------------------------------------------------------------------------


def telling(diff: Diff) -> list[PointDiff]:
    """About a dozen points: those around the first that differs, the outputs of some layers, and the end."""
    index = {p.name: i for i, p in enumerate(diff.points)}
    start = index[diff.first] if diff.first else 0
    before = [i for i in range(start) if diff.points[i].state in GOOD][-1:]
    failed = [i for i in range(start, len(diff.points)) if diff.points[i].state not in GOOD][:4]
    outputs = [i for name, i in index.items() if leaf_of(name) == "out"]
    ends = [index[name] for name in ("norm", "logits") if name in index]
    chosen = {*before, *failed, *thin(outputs or list(index.values()), 6), *ends}
    return [diff.points[i] for i in sorted(chosen)]


def thin(items, count):
    """At most `count` of the items, evenly spread, both ends among them."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def columns(diff) -> list[Column]:
    """With a floor the state is followed by the size in units of the floor."""
    return list(COLUMNS) if diff.floor is None else [WIDE_STATE, FLOOR, *COLUMNS[1:]]


def table(rows, width, columns):
    """Header and one line per point; where `width` is too narrow, columns go from the right, then names are cut."""
    longest = min(40, max(len(p.name) for p in rows))
    while len(columns) > 3 and longest + sum(2 + c[2] for c in columns) > width:
        columns.pop()
    room = max(8, min(longest, width - sum(2 + c[2] for c in columns)))
    lines = [[" " * room, *(c[0].rjust(c[2]) for c in columns)]]
    lines += [["point".ljust(room), *(c[1].rjust(c[2]) for c in columns)]]
    for p in rows:
        cells = [c[3](p).rjust(c[2]) for c in columns]
        if p.rel is None or p.state in (NOT_COMPARABLE, MISSING, UNMEASURED):
            left = width - room - columns[0][2] - 4
            cells[1:] = [note(p) if len(note(p)) <= left else f"{note(p)[: left - 1]}…"]
        lines.append([shorten(p.name, room).ljust(room), *cells])
    return ["  ".join(line).rstrip() for line in lines]


def shorten(name, room):
    """A name that is too long, with an ellipsis in its middle: both the layer and the leaf matter."""
    head = (room - 1) // 2
    return name if len(name) <= room else f"{name[:head]}…{name[head + 1 - room :]}"


def number(x, form=".1e"):
    return "-" if x is None else "0" if x == 0 else "inf" if math.isinf(x) else format(x, form)
