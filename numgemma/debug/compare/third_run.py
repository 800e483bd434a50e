"""Two runs and a third that is right: which of the two is off."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from numgemma.debug.compare.scoring import SUSPECT_TO, bench, from_table, score
from numgemma.debug.measure import overlap
from numgemma.debug.measure.precision import TOLERANCES
from numgemma.debug.noise.floor import Floor
from numgemma.dump import Dump
from numgemma.errors import InputError


@dataclass(frozen=True, eq=False)
class Truth:
    """A run to measure both sides against.  precisions: of A and of B"""

    dump: Dump
    precisions: Sequence[str]
    floors: Sequence[Floor]

    def sides(self, name, a, b) -> dict | None:
        """How far each side is from the truth at one point, in relative error and in units of its own floor.

        -> {"a": {"rel", "xfloor"}, "b": ..., "off": "a" | "b" | "both" | "neither"}; None where it cannot be said
        """
        if name not in self.dump:
            return None
        errors = [self.error(name, dump, p) for dump, p in zip((a, b), self.precisions, strict=True)]
        if None in errors:
            return None
        found = {side: e for side, e in zip("ab", errors, strict=True) if e is not None}
        wrong = [side for side, e in found.items() if e["xfloor"] > SUSPECT_TO]
        return found | {"off": "both" if len(wrong) == 2 else wrong[0] if wrong else "neither"}

    def error(self, name, dump, precision) -> dict | None:
        """One side's error.  Without a floor of its precision the table of tolerances stands in."""
        row = TOLERANCES[precision]
        x, axes, y, other = overlap.both(name, self.dump, dump)
        if x.shape != y.shape or axes != other or x.dtype.kind in "iub":
            return None
        m = overlap.measure(name, self.dump, dump, row.channel_floor)
        if m.rel is None:
            return {"rel": None, "xfloor": math.inf}
        limits = None
        if any(floor.precision == precision for floor in self.floors):
            limits = bench(self.floors, ["float64", precision]).limits(name)
        if limits is None:
            limits = from_table(row)
        return {"rel": m.rel, "xfloor": score(m, limits)[0]}


def check_truth(truth: Dump, a: Dump) -> None:
    """The truth is of the same tokens.  Raises InputError where it is not."""
    if None not in (truth.meta.get("ids"), a.meta.get("ids")) and truth.meta["ids"] != a.meta["ids"]:
        raise InputError("the --truth dump is of other tokens than A and B; dump their prompt in float64.")
