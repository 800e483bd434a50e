"""A search that may have only so much time: it asks before each run, and stops where there is none left."""

import time
from collections.abc import Callable


class OutOfTime(Exception):
    """The budget is spent."""


class Clock:
    """Counts from when it is made.  budget: seconds; None: as many as it takes.  show(text): of what comes next"""

    def __init__(self, budget: float | None = None, show: Callable[[str], object] = lambda text: None):
        self.start, self.budget, self.show = time.monotonic(), budget, show

    def told(self, what: object = "") -> None:
        """Called before each run of a model.  Raises OutOfTime where the time is over."""
        if self.budget is not None and time.monotonic() - self.start > self.budget:
            raise OutOfTime
        self.show(str(what))
