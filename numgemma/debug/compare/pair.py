"""One point of two dumps: what both know of it, and by how much they differ there."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from numgemma.debug.compare.result import PointDiff
from numgemma.debug.measure import metrics, overlap
from numgemma.debug.measure.discrete import flips_of_experts
from numgemma.debug.measure.metrics import Measure
from numgemma.dump import Dump
from numgemma.ops.threads import in_turn

CHOICES = "iub"  # kinds of NumPy's types that are no measurements
THREADS = 2  # that measure points
NOTHING = Measure()
T = TypeVar("T")


@dataclass(frozen=True, eq=False, kw_only=True)
class Pair:
    """One point of both dumps.  a, b: the values that both know, the weights of experts in one order; None: missing."""

    name: str
    a: np.ndarray | None = None
    b: np.ndarray | None = None
    axes: str = ""
    apart: str = ""  # why the two cannot be compared; "": they can
    part: bool = False  # one side knows some of the values only, or knows them rounded
    whole: bool = True  # every value of the point is there, though perhaps rounded
    slack: float = 0.0  # RMS of the error of values that were written with a few decimals
    turned: tuple[int, ...] = ()  # tokens whose experts, of whom these are the weights, are not the same
    measure: Measure = NOTHING

    @property
    def missing(self) -> bool:
        return self.a is None or self.b is None

    @property
    def choices(self) -> bool:
        """Whether these are integers: experts chosen, token ids."""
        return any(side is not None and side.dtype.kind in CHOICES for side in (self.a, self.b))

    @property
    def values(self) -> tuple[np.ndarray, np.ndarray]:
        assert self.a is not None
        assert self.b is not None
        return self.a, self.b

    @property
    def unknown(self) -> bool:
        """Whether no value is known on both sides, of a point that is known in part: not measured, so not equal."""
        return self.part and self.measure.rel is None and not self.measure.nonfinite

    def without_numbers(self, state: str, reason: str) -> PointDiff:
        """A point that cannot be compared; its values are still searched for NaN and infinity."""
        sides = (("a", self.a), ("b", self.b))
        bad = tuple(side for side, x in sides if x is not None and metrics.first_nonfinite(x))
        return PointDiff(name=self.name, state=state, reason=reason, nonfinite=bad)


def paired(name: str, a: Dump, b: Dump, channel_floor: float) -> Pair:
    """The point of that name, measured.  channel_floor: as in metrics.measure"""
    if name not in a or name not in b:
        apart = f"missing in {'A' if name not in a else 'B'}"
        return Pair(name=name, a=a.get(name), b=b.get(name), apart=apart)
    x, axes, y, axes_b = overlap.both(name, a, b)
    for what, of_a, of_b in (("shape", list(x.shape), list(y.shape)), ("axes", axes, axes_b)):
        if of_a != of_b:
            return Pair(
                name=name, a=x, b=y, axes=axes, apart=f"{what} {of_a} in A and {of_b} in B{turned_in(of_a, of_b)}"
            )
    part = any(overlap.part(dump, name) for dump in (a, b))
    turned: tuple[int, ...] = ()
    whole, ordered = all_there(name, a, b), name.endswith("router.weights") and all_there(ids_of(name), a, b)
    if ordered and whole:  # perhaps rounded; of a few of them nothing tells the order
        x, y = metrics.in_one_order(name, a, b)
        y = overlap.nearest(x, y, overlap.slack(a, name, x) + overlap.slack(b, name, y))
        turned = other_experts(name, a, b)
    if x.dtype.kind in CHOICES or y.dtype.kind in CHOICES:
        found = metrics.measure_exact(x, y, axes, in_any_order=name.endswith("router.ids"))
    elif part and not (ordered and whole):
        found = overlap.measure(name, a, b, channel_floor)
    else:
        found = metrics.measure(x, y, axes, channel_floor)
    return Pair(
        name=name,
        a=x,
        b=y,
        axes=axes,
        part=part,
        whole=whole,
        slack=max(overlap.step(dump, name) for dump in (a, b)),
        turned=turned,
        measure=found,
    )


def turned_in(of_a, of_b):
    """Says so where one side's axes are the other's in another order."""
    return ": transposed" if of_a != of_b and isinstance(of_a, list) and sorted(of_a) == sorted(of_b) else ""


def all_there(name, a, b):
    """Whether no value of a point is missing on either side; true where the point is."""
    return all(overlap.whole(dump, name) for dump in (a, b) if name in dump)


def ids_of(name):
    """The point with the experts that these are the weights of."""
    return name.removesuffix("weights") + "ids"


def other_experts(name, a, b):
    """Tokens that chose other experts, of a point with the weights of those: it is recorded before their ids."""
    ids = ids_of(name)
    return tuple(flips_of_experts(ids, a[ids], b[ids], a.axes[ids])) if ids in a and ids in b else ()


def in_threads(work: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
    """work(name) of each, in order."""
    return in_turn(work, names, THREADS)
