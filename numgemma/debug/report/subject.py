"""What a report is about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from numgemma.debug.compare import words
from numgemma.debug.compare.result import Diff
from numgemma.debug.report import chart
from numgemma.graph import graph_of_dumps

CARDS = 40  # points that get a card; the table has them all
FLIPS = 50  # tokens after which another one is likeliest, that are listed


@dataclass(frozen=True)
class Subject:
    """What a report is about; all that is missing is left out of it.

    a, b: the two dumps (in a replay, what numgemma computed and what was recorded).  replay: a debug.replay.Replay.
    words: the text of every token.  spelled: of some other ids, the texts.  paths: of a and b, for the commands.
    command: that made the report.
    """

    diff: Diff | None = None
    a: Any = None
    b: Any = None
    replay: Any = None
    words: Sequence[str] = field(default=())
    paths: tuple[str, str] = ("A.safetensors", "B.safetensors")
    title: str = "numgemma report"
    says: str = ""  # what all of it comes to, where somebody has said so
    spelled: Mapping[int, str] = field(default_factory=dict)
    cause: str = ""  # the known fault that has these numbers
    command: str = ""

    @cached_property
    def points(self):
        """The points of the comparison, or else the steps of the replay."""
        return list(self.diff.points if self.diff else self.replay.points if self.replay else ())

    @cached_property
    def local(self):
        """The local error of every step of the replay, by its point."""
        return {step.name: step.rel for step in self.replay.points} if self.replay else {}

    @property
    def kinds(self):
        kinds = list(self.diff.layer_kinds) if self.diff else []
        return kinds or list(self.replay.layer_kinds if self.replay else ())

    @property
    def tolerance(self):
        """Where the points have no floor of their own."""
        return self.diff.tolerance if self.diff and self.diff.floor is None else None

    @property
    def verdict(self):
        return words.verdict(self.diff) if self.diff else self.replay.verdict if self.replay else "nothing was compared"

    @cached_property
    def bad(self):
        """The points that get a card, the first ones of the worst kind first."""
        order = (chart.WRONG, chart.DOUBTFUL, chart.BLANK)
        ranked = [p for kind in order for p in self.points if chart.class_of(p.state) == kind]
        return ranked[:CARDS]

    @cached_property
    def graph(self):
        """Of the model that was run, with the lines that its points are born in."""
        return graph_of_dumps(*(dump for dump in (self.a, self.b) if dump is not None))

    def step(self, name) -> tuple[list[str], list[str]]:
        """The measured points that a point is computed from, and those between not recorded; both in order."""
        found = self.graph.step(name, {p.name for p in self.points if p.rel is not None})
        sources, between = (sorted(names, key=self.graph.order.__getitem__) for names in found)
        return sources, between

    @property
    def has_both(self):
        """Whether both dumps are there, to look at their values."""
        return self.a is not None and self.b is not None
