"""All rows of a sweep together: which layers drift, which prompts are worst, whether the error grows with the length,
which point fails first how often.  For each checkpoint and engine by itself.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from numgemma.debug.compare.result import plain
from numgemma.debug.sweep.pair import NOT_RUN
from numgemma.notebook import html_table, record

SCHEMA = "numgemma.sweep-summary/1"
VERDICTS = ("same", "differs", "not comparable", NOT_RUN)
ENOUGH = 8  # prompts, from which a trend is spoken of
MANY_RANKS = 3  # lengths, of which prompts must be, too
CLEAR = 0.5  # rank correlation from which one is
WORST = 10  # prompts that are named

Row = dict[str, Any]


@dataclass(frozen=True)
class Trend:
    """How an error goes with the length of the prompt.

    rank: the correlation of their ranks, -1 to 1.  doubling: by how much the error grows where the length doubles.
    """

    rank: float
    doubling: float

    @property
    def says(self) -> str:
        if abs(self.rank) < CLEAR:
            return f"the error does not go with the length (rank correlation {self.rank:.2f})"
        word = "grows" if self.rank > 0 else "shrinks"
        return f"the error {word} with the length: x {self.doubling:.2g} by doubling (rank correlation {self.rank:.2f})"


@dataclass(frozen=True)
class Contestant:
    """One engine on one checkpoint: its rows, in the order of the prompts."""

    checkpoint: str
    engine: str
    rows: list[Row] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.checkpoint}, {self.engine}"

    @cached_property
    def counts(self) -> dict[str, int]:
        found = Counter(row["verdict"] for row in self.rows)
        return {verdict: found[verdict] for verdict in VERDICTS}

    @property
    def nonfinite(self) -> int:
        return sum(bool(row["nonfinite"]) for row in self.rows)

    @cached_property
    def judged(self) -> list[Row]:
        """The rows with a worst point, the worst first."""
        return sorted((row for row in self.rows if row["worst"]), key=lambda row: -size(row))

    @cached_property
    def layers(self) -> dict[int, tuple[float, float]]:
        """What each layer hands on: the median of its relative errors, and the largest."""
        by_layer: dict[int, list[float]] = {}
        for row in self.rows:
            for layer, rel in row["layers"].items():
                by_layer.setdefault(int(layer), []).append(rel)
        return {layer: (float(np.median(by_layer[layer])), max(by_layer[layer])) for layer in sorted(by_layer)}

    @cached_property
    def firsts(self) -> list[tuple[str, int]]:
        """Which point fails first, how often; the most frequent before."""
        return Counter(row["first"] for row in self.rows if row["first"]).most_common()

    @cached_property
    def trend(self) -> Trend | None:
        """None where there are too few prompts, or too few lengths."""
        pairs = [(row["tokens"], size(row)) for row in self.judged if size(row) > 0]
        if len(pairs) < ENOUGH or len({tokens for tokens, _ in pairs}) < MANY_RANKS:
            return None
        x, y = np.log2(np.array(pairs, float)).T
        rank = np.corrcoef(ranks(x), ranks(y))[0, 1]
        return Trend(0.0 if math.isnan(rank) else float(rank), float(2 ** np.polyfit(x, y, 1)[0]))

    def to_json(self) -> dict[str, Any]:
        return {
            "checkpoint": self.checkpoint,
            "engine": self.engine,
            "prompts": len(self.rows),
            "verdicts": self.counts,
            "nonfinite": self.nonfinite,
            "layers": [{"layer": i, "median": m, "largest": most} for i, (m, most) in self.layers.items()],
            "firsts": [{"point": point, "prompts": n} for point, n in self.firsts],
            "trend": None if self.trend is None else vars(self.trend),
            "worst": [{key: row[key] for key in ("prompt", "tokens", "worst")} for row in self.judged[:WORST]],
        }


@dataclass(frozen=True)
class Trends:
    """What a sweep has found."""

    contestants: list[Contestant]

    @property
    def rows(self) -> list[Row]:
        return [row for c in self.contestants for row in c.rows]

    @property
    def exit_code(self) -> int:
        """0 all same, 1 some differ, 3 some could not be compared or run, 4 some are not finite."""
        if any(c.nonfinite for c in self.contestants):
            return 4
        verdicts = {row["verdict"] for row in self.rows}
        return 1 if "differs" in verdicts else 0 if verdicts <= {"same"} else 3

    def _repr_html_(self) -> str:
        head = ("checkpoint, engine", *VERDICTS, "first to fail")
        rows = [(c.name, *c.counts.values(), c.firsts[0][0] if c.firsts else "") for c in self.contestants]
        return html_table(f"{len(self.rows)} pairs", head, rows)

    def records(self) -> list[Row]:
        """A flat dict for each pair: what `pandas.DataFrame` takes."""
        return [flat(row) for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        return plain({"schema": SCHEMA, "contestants": [c.to_json() for c in self.contestants], "rows": self.rows})

    @classmethod
    def of(cls, rows: list[Row]) -> "Trends":
        """Of rows in the order of the prompts."""
        side = lambda row: (row["checkpoint"], row["engine"])  # noqa: E731
        order = {name: i for i, name in enumerate(dict.fromkeys(map(side, rows)))}
        found = groupby(sorted(rows, key=lambda row: order[side(row)]), key=side)
        return cls([Contestant(checkpoint, engine, list(some)) for (checkpoint, engine), some in found])


def size(row: Row) -> float:
    """How bad a prompt is: its worst point in units of the floor, or the tolerance that it would have needed."""
    return row["worst"]["size"] or 0.0


def ranks(x):
    """1 for the smallest; equal ones share the mean of their ranks."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def flat(row: Row) -> Row:
    worst = row["worst"] or {}
    return record(row) | {
        "worst_point": worst.get("point"),
        "worst_rel": worst.get("rel"),
        "worst_size": worst.get("size"),
    }
