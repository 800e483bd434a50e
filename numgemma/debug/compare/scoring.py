"""How large an error is in units of the floor, and what it is called.

Both sides of a comparison round, so the floor of their difference is that of both, as independent errors add up.
The bands are calibrated: benchmarks/calibration.md has the data.

A floor is relative to the truth, an error to the reference.  Where the reference rounds too, one of its tokens may have
come out small by chance: with a few gates in GELU's tail, a token in bfloat16 is drawn from a few steps, one of them
0.03 of the truth, and any other run is then 30 times that far from it.  So the error of the worst token is taken
relative to the truth, as far as that is known (`least_error`).  It costs nothing where the reference is exact, or where
its noise is small beside the token; where its noise is as large as the token, a loud token is told by the errors of the
tensor and of its channels alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from numgemma.debug.compare.result import BIT_EXACT, FAULT, NOISE, SUSPECT
from numgemma.debug.measure.metrics import Measure, gated
from numgemma.debug.measure.precision import EPS, Tolerance, coarser
from numgemma.debug.noise.floor import KEYS, Floor
from numgemma.errors import InputError

NOISE_TO, SUSPECT_TO = 1.5, 5.0  # times the floor


@dataclass(frozen=True)
class Limits:
    """What noise alone makes of the three relative errors of one point, and of its scale's distance from 1."""

    rel: float
    worst_token: float
    worst_channel: float
    scale: float
    reference: float = 0.0  # the part of worst_token that is the reference's own


@dataclass(frozen=True)
class Bench:
    """The floors that a comparison is judged by: one for each side that rounds noticeably."""

    floors: tuple[Floor, ...]
    precision: str
    reference: Floor | None = None  # that of the reference, if it rounds noticeably

    def limits(self, name, rough=False) -> Limits | None:
        """The floor of the difference at a point, at least half a unit in the last place; None where none is known."""
        found = [noise_of(floor, name, rough) for floor in self.floors]
        if None in found or not found:
            return None
        least = EPS[self.precision] / 2
        high = {key: math.hypot(*(upper(key, *getattr(noise, key)) for noise in found)) for key in KEYS}
        own = noise_of(self.reference, name, rough) if self.reference else None
        return Limits(
            **{key: max(value, least) for key, value in high.items()},
            reference=upper("worst_token", *own.worst_token) if own else 0.0,
        )

    def sigmas(self, choice, token) -> float:
        """The margin of a choice in deviations of its noise; infinite where it is far from a tie."""
        least = min((floor.close.get(choice, {}).get(token, math.inf) for floor in self.floors), default=math.inf)
        return least / math.sqrt(len(self.floors) or 1)

    def rough(self, name) -> bool:
        """Whether flips of experts had touched that point in the floor's own runs."""
        return any(name in floor.rough for floor in self.floors)

    def reach(self, name) -> int | None:
        """The first token of a point whose noise is not known without flips; None: all are known."""
        return min((floor.reach[name] for floor in self.floors if name in floor.reach), default=None)

    def kl(self, name) -> float | None:
        """The KL divergence that noise alone makes."""
        found = [floor.kl[name][1] for floor in self.floors if name in floor.kl]
        return sum(found) or None


def upper(key, median, high):
    """Where noise ends: a few runs hardly ever meet the tail of a wide distribution, so it is drawn out.

    A scale errs to both sides of 1 and comes near it by chance, so its median says nothing of the tail.
    """
    return 2 * high if key == "scale" else 2 * high - median


def noise_of(floor, name, rough):
    return (rough and floor.rough.get(name)) or floor.points.get(name)


def bench(floors: Sequence[Floor], precisions: Sequence[str]) -> Bench:
    """The floors of the sides of a comparison, by the precision of each: first the reference's.

    A side much finer than the other needs none: its errors do not count beside the other's.
    Raises InputError where the coarser side has no floor.
    """
    known = {floor.precision: floor for floor in floors}
    coarse = coarser(*precisions)
    if coarse not in known:
        have = ", ".join(known) or "no precision"
        raise InputError(
            f"the floor is for {have}, but the dumps are {' and '.join(dict.fromkeys(precisions))}; "
            f"measure one with `numgemma floor --precision {coarse}`."
        )
    return Bench(tuple(known[p] for p in precisions if p in known), coarse, known.get(precisions[0]))


def from_table(row: Tolerance) -> Limits:
    """Limits where no noise was measured; a scale is never farther from 1 than the tensor's relative error."""
    return Limits(*(x / NOISE_TO for x in (row.rel, row.worst_token, row.worst_channel, row.rel)))


def widened(limits: Limits, values: Sequence[int]) -> Limits:
    """The same for a few sampled values: the fewer an RMS is taken over, the farther it strays from the true one.

    values: how many the tensor, a token and a channel have.  Of n values the scale strays by 1 / sqrt(n) of their
    relative error.
    """
    whole, token, channel = (math.sqrt(max(1, n)) for n in values)
    return replace(
        limits,
        rel=limits.rel * (1 + 3 / whole),
        worst_token=limits.worst_token * (1 + 3 / token),
        worst_channel=limits.worst_channel * (1 + 3 / channel),
        scale=math.hypot(limits.scale, 2 * limits.rel / whole),
        reference=limits.reference * (1 + 3 / token),
    )


def with_step(limits: Limits, m: Measure, step: float) -> Limits:
    """The same where values were written with a few decimals: that error is absolute.  step: its RMS"""
    if not step or not m.rms:
        return limits
    sizes = (m.rms, m.rms_token or m.rms, m.rms_channel or m.rms, m.rms)
    most = (1.0, 3**0.5, 3**0.5, 1.0)  # an RMS over one value can be as large as the largest error
    errors = (step * factor / size for factor, size in zip(most, sizes, strict=True))
    wide = {key: math.hypot(getattr(limits, key), error) for key, error in zip(KEYS, errors, strict=True)}
    return replace(limits, **wide)


def score(m: Measure, limits: Limits) -> tuple[float, str]:
    """The largest of the errors in units of the floor, and which it is."""
    errors = gated(m)
    if "worst_token" in errors:
        errors["worst_token"] = least_error(errors["worst_token"], limits.reference)
    found = {key: error / getattr(limits, key) for key, error in errors.items()}
    by = max(found, key=found.__getitem__)
    return found[by], by


def least_error(error, noise) -> float:
    """How far a token is at least from the truth, relative to its true size.  error: relative to the reference's size

    noise: of the reference, relative to the truth.  With it the true token is at most 1 / (1 - noise) times as large as
    the reference's; and if the candidate is right, hardly larger than the reference's and the error together.
    """
    return max(1 - 1 / (1 + error), (1 - noise) * error) if noise else error


def state_of(m: Measure, xfloor: float) -> str:
    """The name of an error of that size."""
    if m.rel == 0:
        return BIT_EXACT
    return NOISE if xfloor <= NOISE_TO else SUSPECT if xfloor <= SUSPECT_TO else FAULT
