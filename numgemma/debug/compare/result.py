"""What a comparison says: the state of every point, and of the whole."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from numgemma.debug.measure import metrics
from numgemma.debug.measure.logits import LogitsDiff
from numgemma.debug.measure.precision import TOLERANCES
from numgemma.notebook import html_table, record

# States of a point where a floor was measured.
BIT_EXACT, NOISE, TIE, SUSPECT, FAULT, INHERITED = "BIT-EXACT", "NOISE", "TIE", "SUSPECT", "FAULT", "INHERITED"
NON_FINITE, UNMEASURED = "NON-FINITE", "UNMEASURED"
# States where there is none, and a table of tolerances decides.
SAME, DIFFERS, MISSING = "SAME", "DIFFERS", "MISSING"
NOT_COMPARABLE = "NOT COMPARABLE"  # in both

LOGITS = ("lm_head", "logits")

GOOD = (SAME, BIT_EXACT, NOISE, TIE)
# What makes two runs differ, in the order in which the first one is looked for.
BAD = ((DIFFERS, FAULT, NON_FINITE, NOT_COMPARABLE), (MISSING, UNMEASURED))


@dataclass(frozen=True, kw_only=True)
class PointDiff(metrics.Measure):
    """One point of both dumps: its state, and its numbers where it has any."""

    name: str
    state: str
    reason: str = ""
    tolerance: float | None = None
    tolerance_that_passes: float | None = None
    xfloor: float | None = None  # the largest of its errors (metrics.gated), in units of the floor
    by: str | None = None  # which of them: rel, worst_token, worst_channel, scale
    floor: dict[str, float] | None = None  # what noise alone makes of each
    name_b: str | None = None  # where B calls it otherwise
    truth: dict | None = None  # how far each side is from the truth, and which is off
    allowed: bool = False  # to be missing


@dataclass(frozen=True, kw_only=True)
class Hint:
    """What one tensor looks like in terms of the other."""

    point: str
    kind: str
    says: str
    rel_after: float  # the relative error that is left


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
    floor: dict | None = None  # which floor was used; None: the table of tolerances
    logits: list[LogitsDiff] = field(default_factory=list)
    hints: list[Hint] = field(default_factory=list)
    left_out: int = 0  # points outside the layer map
    overwritten: dict[str, str] = field(default_factory=dict)  # points of B that hold another point's numbers

    @property
    def exit_code(self) -> int:
        """0 same, 1 differs, 3 not comparable, 4 non-finite values in either dump."""
        return 4 if self.nonfinite else {"same": 0, "differs": 1}.get(self.verdict, 3)

    def exit_code_for(self, fail_on: str) -> int:
        """fail_on "point": any point that differs counts; "logits": only those; "never": only what cannot be compared.

        Where a floor was used, logits also differ by their KL divergence and by a first choice that is no tie.
        """
        if fail_on == "point" or self.verdict == "not comparable":
            return self.exit_code
        if fail_on == "never":
            return 0
        if self.nonfinite:
            return 4
        if not any(p.name in LOGITS for p in self.points):
            return 3
        off = any(p.name in LOGITS and p.state not in (*GOOD, SUSPECT) and not p.allowed for p in self.points)
        if self.floor:
            off |= any((x.xfloor or 0) > 5 or any(not flip.tie for flip in x.flips) for x in self.logits)
        return int(off)

    def limits(self) -> dict[str, float]:
        """What each of the three relative errors may be, by the table of tolerances."""
        row = asdict(TOLERANCES[self.precision])
        factor = self.tolerance / row["rel"]
        return {key: row[key] * factor for key in ("rel", "worst_token", "worst_channel")}

    def least_tolerance(self) -> float | None:
        """The relative error to allow so that every point with numbers passes; None where none does."""
        least = [p.tolerance_that_passes for p in self.points if not p.allowed]
        known = [x for x in least if x is not None]
        return max(known, default=None) if len(known) == len(least) else None

    def least_xfloor(self) -> float | None:
        """The multiple of the floor to allow so that every point passes; None where none does."""
        without = [p for p in self.points if p.xfloor is None and p.state not in GOOD and not p.allowed]
        return None if without else max((p.xfloor for p in self.points if p.xfloor is not None), default=None)

    def count(self, *states: str) -> int:
        """How many points are in one of these states."""
        return sum(p.state in states for p in self.points)

    def _repr_html_(self) -> str:
        where = f" first at {self.first}" if self.first else f": {self.reason}" if self.reason else ""
        head = ("point", "state", "relative error", "worst token", "worst channel", "times floor")
        rows = [(p.name, p.state, *map(short, (p.rel, p.worst_token, p.worst_channel, p.xfloor))) for p in self.points]
        return html_table(f"{self.verdict.upper()}{where} ({len(self.points)} points)", head, rows)

    def records(self) -> list[dict[str, Any]]:
        """A flat dict for each point, in order of execution: what `pandas.DataFrame` takes."""
        return [record({"name": p.name, "state": p.state} | vars(p)) for p in self.points]

    def to_json(self) -> dict[str, Any]:
        """A tree of plain values.  Numbers that are not finite, or not defined, are None."""
        keys: tuple[str, ...] = ("verdict", "first", "reason", "warnings", "nonfinite", "not_recorded", "precision")
        keys += ("floor", "left_out", "overwritten")
        head = {"schema": "numgemma.diff/1"} | {key: getattr(self, key) for key in keys}
        head |= {"least_tolerance": self.least_tolerance(), "least_xfloor": self.least_xfloor()}
        points = [{"name": p.name, "state": p.state} | asdict(p) for p in self.points]
        rest = {"tolerances": self.limits(), "logits": [asdict(x) for x in self.logits]}
        return plain(head | rest | {"hints": [asdict(x) for x in self.hints], "points": points})


def short(x: float | None) -> str:
    return "" if x is None else f"{x:.1e}"


def plain(x):
    """The same tree with lists for tuples, and None for numbers that JSON cannot write."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x
