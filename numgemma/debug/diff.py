"""Compare two dumps point by point, and say where they first part.

`a` is the reference and `b` the candidate.  A point is SAME, DIFFERS, MISSING (one dump should have it and does not) or
NOT COMPARABLE (its shape or axes differ); only SAME is a pass.
"""

import math
import re
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

from numgemma.debug import metrics
from numgemma.debug.metrics import TOLERANCES
from numgemma.trace import selects

if TYPE_CHECKING:
    from numgemma.dump import Dump

SAME, DIFFERS, MISSING, NOT_COMPARABLE = "SAME", "DIFFERS", "MISSING", "NOT COMPARABLE"


@dataclass(frozen=True, kw_only=True)
class PointDiff(metrics.Measure):
    """One point of both dumps: its state, and its numbers where it has any."""

    name: str
    state: str
    reason: str = ""
    tolerance: float | None = None
    tolerance_that_passes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Diff:
    """The comparison of two dumps; points stand in order of execution."""

    verdict: str
    first: str | None = None
    points: list[PointDiff] = field(default_factory=list)
    reason: str = ""
    warnings: list[str] = field(default_factory=list)
    nonfinite: list[str] = field(default_factory=list)
    not_recorded: dict[str, list[str]] = field(default_factory=dict)
    precision: str = "float32"
    tolerance: float = TOLERANCES["float32"].rel
    engines: tuple[str, str] = ("", "")
    layer_kinds: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 same, 1 differs, 3 not comparable, 4 non-finite values in either dump."""
        return 4 if self.nonfinite else {"same": 0, "differs": 1}.get(self.verdict, 3)

    def limits(self) -> dict[str, float]:
        """What each of the three relative errors may be."""
        row = asdict(TOLERANCES[self.precision])
        factor = self.tolerance / row["rel"]
        return {key: row[key] * factor for key in ("rel", "worst_token", "worst_channel")}

    def to_json(self) -> dict:
        """A tree of plain values.  Numbers that are not finite, or not defined, are None."""
        keys = ("verdict", "first", "reason", "warnings", "nonfinite", "not_recorded", "precision")
        head = {"schema": "numgemma.diff/1"} | {key: getattr(self, key) for key in keys}
        points = [{"name": p.name, "state": p.state} | asdict(p) for p in self.points]
        return _plain(head | {"tolerances": self.limits(), "points": points})


def diff(a: "Dump", b: "Dump", points=("*",), *, tolerance: float | None = None) -> Diff:
    """Compare candidate b with reference a on the points that the globs select.

    tolerance: the relative error to allow, in place of the one for the coarser of the two precisions; those for the
    worst token and channel scale with it.  Raises InputError for a precision that has no tolerances.
    """
    precision = metrics.coarser(*(d.meta.get("precision", "float32") for d in (a, b)))
    limit = TOLERANCES[precision].rel if tolerance is None else tolerance
    about = {
        "warnings": _warnings(a, b),
        "precision": precision,
        "tolerance": limit,
        "engines": (_engine(a), _engine(b)),
        "layer_kinds": _model(a).get("layer_kinds") or _model(b).get("layer_kinds") or [],
    }
    names = [name for name in _joined(a, b) if selects(points, name)]
    reason = _other_ids(a, b)
    if not reason and not any(name in a and name in b for name in names):
        reason = f"no point is in both: A has {len(a)} points, B has {len(b)} (check --points)"
    if reason:
        return Diff(verdict="not comparable", reason=reason, **about)
    skipped = {
        side: [name for name in names if name not in dump and not selects(dump.meta.get("coverage", ["*"]), name)]
        for side, dump in (("a", a), ("b", b))
    }
    rows = [_point(name, a, b, precision, limit) for name in names if name not in skipped["a"] + skipped["b"]]
    bad = [p for state in ((DIFFERS, NOT_COMPARABLE), (MISSING,)) for p in rows if p.state in state]
    return Diff(
        verdict="differs" if bad else "same",
        first=bad[0].name if bad else None,
        points=rows,
        nonfinite=[p.name for p in rows if p.nonfinite],
        not_recorded=skipped,
        **about,
    )


def _joined(a, b):
    """Names of both dumps in order of execution: a's order, and what only b has after its last common predecessor."""
    after: dict[str | None, list[str]] = {}
    last = None
    for name in b:
        if name in a:
            last = name
        else:
            after.setdefault(last, []).append(name)
    return after.get(None, []) + [n for name in a for n in (name, *after.get(name, ()))]


def _point(name, a, b, precision, tolerance):
    """The state and numbers of one point."""
    if name not in a or name not in b:
        return _without_numbers(name, MISSING, f"missing in {'A' if name not in a else 'B'}", a, b)
    for what, x, y in (("shape", list(a[name].shape), list(b[name].shape)), ("axes", a.axes[name], b.axes[name])):
        if x != y:
            return _without_numbers(name, NOT_COMPARABLE, f"{what} {x} in A and {y} in B", a, b)
    row = TOLERANCES[precision]
    if a[name].dtype.kind in "iub" or b[name].dtype.kind in "iub":
        m, tolerance = metrics.measure_exact(a[name], b[name], a.axes[name], name.endswith("router.ids")), 0.0
        least = m.rel
    else:
        x, y = metrics.in_one_order(name, a, b)
        m = metrics.measure(x, y, a.axes[name], row.channel_floor)
        least = metrics.least_tolerance(m, row)
    same = least is not None and least <= tolerance
    return PointDiff(
        **vars(m), name=name, state=SAME if same else DIFFERS, tolerance=tolerance, tolerance_that_passes=least
    )


def _without_numbers(name, state, reason, a, b):
    """A point that cannot be compared; its values are still searched for NaN and infinity."""
    sides = tuple(side for side, d in (("a", a), ("b", b)) if name in d and metrics.first_nonfinite(d[name]))
    return PointDiff(name=name, state=state, reason=reason, nonfinite=sides)


def _other_ids(a, b):
    """Where the token ids first differ, in words; empty if nowhere."""
    ids_a, ids_b = a.meta.get("ids"), b.meta.get("ids")
    if ids_a is None or ids_b is None:
        return ""
    for at, (x, y) in enumerate(zip_longest(ids_a, ids_b, fillvalue="no token")):
        if x != y:
            return f"the token ids first differ at position {at}: {x} in A, {y} in B"
    return ""


def _warnings(a, b):
    """What may explain a difference before any number does."""
    sides = (("A", a), ("B", b))
    lines = [f"the dump {side} does not say which token ids were run" for side, d in sides if "ids" not in d.meta]
    if _model(a).get("config") != _model(b).get("config"):
        lines.append("the models' configurations differ")
    shards_a, shards_b = _model(a).get("shards") or {}, _model(b).get("shards") or {}
    other = sorted(name for name in shards_a if shards_b.get(name, shards_a[name]) != shards_a[name])
    lines += [f"the weights differ: {name} is not the same file" for name in other[:1]]
    if a.meta.get("positions") != b.meta.get("positions"):
        lines.append("the tokens' positions differ")
    inexact = [(side, d.meta.get("fidelity", "exact")) for side, d in sides]
    return lines + [f"the values of {side} are not exact ({how})" for side, how in inexact if how != "exact"]


def _model(dump):
    return dump.meta.get("model") or {}


def _engine(dump):
    engine = dump.meta.get("engine") or {}
    words = (engine.get("name", ""), engine.get("version", ""), dump.meta.get("precision", ""))
    return " ".join(word for word in words if word)


def _plain(x):
    """The same tree with lists for tuples, and None for numbers that JSON cannot write."""
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


# -- the report -------------------------------------------------------------------------------------------------------

# header above, header below, width, text of a point; the last columns go first where a line is too narrow
COLUMNS: tuple[tuple[str, str, int, Callable[[PointDiff], str]], ...] = (
    ("", "state", 7, lambda p: "SHAPES" if p.state == NOT_COMPARABLE else p.state),
    ("relative", "error", 8, lambda p: _number(p.rel)),
    ("worst", "token", 7, lambda p: _number(p.worst_token)),
    ("worst", "channel", 7, lambda p: _number(p.worst_channel)),
    ("scale", "B/A", 7, lambda p: _number(p.scale, ".4g")),
    ("", "cosine", 7, lambda p: _number(p.cos, ".4f")),
    ("largest", "|A - B|", 7, lambda p: _number(p.max_abs)),
)


def render(diff: Diff, all: bool = False, width: int | None = None) -> str:
    """The comparison as text: the verdict, what was compared, and a dozen telling points (or all of them)."""
    width = width or shutil.get_terminal_size().columns
    lines = [verdict(diff), *(f"warning: {line}" for line in diff.warnings), ""]
    lines += [f"A, the reference:       {diff.engines[0]}", f"B, measured against A:  {diff.engines[1]}"]
    if diff.points:
        limits = "tensor {rel:.0e}, worst token {worst_token:.0e}, worst channel {worst_channel:.0e}"
        lines.append(
            f"Tolerances ({diff.precision}): {limits.format(**diff.limits())}; relative to A's RMS, 1e-02 is 1 %."
        )
    for side, names in diff.not_recorded.items():
        if names:
            count = "1 point was" if len(names) == 1 else f"{len(names)} points were"
            lines.append(f"{count} not recorded by {side.upper()} (--points)")
    text = [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="  ") or [""]]
    if not diff.points:
        return "\n".join(text)
    rows = diff.points if all else telling(diff)
    rest = [] if len(rows) == len(diff.points) else [f"{len(rows)} of {len(diff.points)} points; --all shows all"]
    return "\n".join([*text, "", *_table(rows, width), *rest])


def verdict(diff: Diff) -> str:
    """One sentence: the same, or where the dumps first differ and by how much."""
    if diff.verdict == "not comparable":
        return f"NOT COMPARABLE: {diff.reason}."
    total = f"{len(diff.points)} point" + "s" * (len(diff.points) != 1)
    if diff.first is None:
        worst = max(diff.points, key=lambda p: p.rel or 0.0)
        where = f" at {worst.name}" if worst.rel else ""
        return f"SAME ({total}): largest relative error {_number(worst.rel, '.2g')}{where}."
    first = next(p for p in diff.points if p.name == diff.first)
    counts = {state: sum(p.state == state for p in diff.points) for state in (DIFFERS, MISSING, NOT_COMPARABLE)}
    tail = f"{counts[DIFFERS]} of {total} differ, {counts[MISSING]} missing"
    if counts[NOT_COMPARABLE]:
        tail += f", {counts[NOT_COMPARABLE]} not comparable"
    kind = layer_kind(diff, first.name)
    return f"DIFFERS first at {first.name}{f' ({kind})' if kind else ''}: {_why(first, diff)}; {tail}."


def _note(p):
    """Why a point has no numbers; empty where it has."""
    if p.nonfinite:
        where = f", first at {p.max_abs_at}" if p.max_abs_at else ""
        return f"{p.reason}{', ' if p.reason else ''}NaN or infinity in {' and '.join(p.nonfinite).upper()}{where}"
    return p.reason or ("values too large to compare" if p.rel is None else "")


def _why(p, diff):
    """What is wrong with a point, in words and numbers."""
    if _note(p):
        return _note(p)
    if p.worst_channel is None:
        return f"{100 * p.rel:.2g} % of the tokens have other values, first token {_place(p.worst_token_at)}"
    limits = diff.limits()
    key = next((key for key in limits if getattr(p, key) > limits[key]), "rel")
    word = {"rel": "relative error", "worst_token": f"error of token {_place(p.worst_token_at)}"}
    word["worst_channel"] = f"error of channel {_place(p.worst_channel_at)}"
    return f"{word[key]} {getattr(p, key):.2g}, tolerance {limits[key]:.2g}{_lost_factor(p)}"


def _place(at):
    return ", ".join(map(str, at or ()))


def _lost_factor(p):
    """Says so when B is A times a number and little else: a scale was lost or doubled."""
    if p.cos is None or abs(p.scale - 1) < 10 * math.sqrt(1 - p.cos**2):
        return ""
    return f" (B is A times {p.scale:.4g})"


def layer_kind(diff: Diff, name: str) -> str:
    """'full attention' or the like for a point of a decoder layer, else ''."""
    match = re.match(r"layers\.(\d+)\.", name)
    known = match and int(match[1]) < len(diff.layer_kinds)
    return diff.layer_kinds[int(match[1])].replace("_", " ") if match and known else ""


def telling(diff: Diff) -> list[PointDiff]:
    """About a dozen points: those around the first that differs, the outputs of some layers, and the end."""
    index = {p.name: i for i, p in enumerate(diff.points)}
    start = index[diff.first] if diff.first else 0
    before = [i for i in range(start) if diff.points[i].state == SAME][-1:]
    failed = [i for i in range(start, len(diff.points)) if diff.points[i].state != SAME][:4]
    outputs = [i for name, i in index.items() if re.fullmatch(r"layers\.\d+\.out", name)]
    ends = [index[name] for name in ("norm", "logits") if name in index]
    chosen = {*before, *failed, *_thin(outputs or list(index.values()), 6), *ends}
    return [diff.points[i] for i in sorted(chosen)]


def _thin(items, count):
    """At most `count` of the items, evenly spread, both ends among them."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _table(rows, width):
    """Header and one line per point; where `width` is too narrow, columns go from the right, then names are cut."""
    longest, columns = min(40, max(len(p.name) for p in rows)), list(COLUMNS)
    while len(columns) > 3 and longest + sum(2 + c[2] for c in columns) > width:
        columns.pop()
    room = max(8, min(longest, width - sum(2 + c[2] for c in columns)))
    lines = [[" " * room, *(c[0].rjust(c[2]) for c in columns)]]
    lines += [["point".ljust(room), *(c[1].rjust(c[2]) for c in columns)]]
    for p in rows:
        cells = [c[3](p).rjust(c[2]) for c in columns]
        if note := _note(p):
            left = width - room - columns[0][2] - 4
            cells[1:] = [note if len(note) <= left else f"{note[: left - 1]}…"]
        lines.append([_shorten(p.name, room).ljust(room), *cells])
    return ["  ".join(line).rstrip() for line in lines]


def _shorten(name, room):
    """A name that is too long, with an ellipsis in its middle: both the layer and the leaf matter."""
    head = (room - 1) // 2
    return name if len(name) <= room else f"{name[:head]}…{name[head + 1 - room :]}"


def _number(x, form=".1e"):
    return "-" if x is None else "0" if x == 0 else "inf" if math.isinf(x) else format(x, form)
