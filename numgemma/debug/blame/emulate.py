"""Is the engine right on this file?  Its own arithmetic, run a few times, against the numbers that it gave.

A right engine that rounds what enters its products is percents away from a run that does not, and as far from another
right one.  But a run that rounds as it does, and in which no code happens to turn, has its numbers to the last digits.
One such run proves the engine right on that file, at every point that was compared; where none has them, the runs'
own spread is what noise explains.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace

import numpy as np

from numgemma import ops
from numgemma.debug.blame.rounding import ENGINES, rounded_as
from numgemma.debug.measure import overlap
from numgemma.debug.noise.perturb import perturbed
from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.prompt.media import NO_MEDIA, Media

SCHEMA = "numgemma.emulate/1"
RUNS = 8
EQUAL = 3e-6  # relative error of a run in which no code turned
BEYOND = 3  # times the runs' spread: what noise does not explain
PROVEN, NOISE, DIFFERS = "proven", "noise", "differs"


@dataclass(frozen=True)
class Point:
    """rel: relative error of each run against the dump.  spread: of the runs against their own mean, the largest."""

    name: str
    rel: tuple[float, ...]
    spread: float

    @property
    def nearest(self) -> float:
        return min(self.rel)


@dataclass(frozen=True)
class Emulation:
    """What a dump is to an engine's own arithmetic.  run: the one that has its numbers, or None"""

    engine: str
    state: str
    verdict: str
    run: int | None
    points: tuple[Point, ...]

    @property
    def exit_code(self) -> int:
        return 1 if self.state == DIFFERS else 0

    def to_json(self) -> dict:
        rows = [asdict(p) | {"nearest": p.nearest} for p in self.points]
        head = {"schema": SCHEMA, "engine": self.engine, "state": self.state, "verdict": self.verdict}
        return head | {"run": self.run, "points": rows}


@ops.using("numpy")  # whose rounding is perturbed
def emulate(
    model,
    dump: Dump,
    ids: Sequence[int] | None = None,
    engine: str = ENGINES[0],
    runs: int = RUNS,
    media: Media = NO_MEDIA,
    told: Callable[[int], object] = lambda run: None,
) -> Emulation:
    """Run an engine's arithmetic and compare it with its dump.  ids: T, where the dump does not say

    engine: one of ENGINES.  runs: one as it is, the others with noise of one unit in the last place.  told: called with
    the number of each.  Raises InputError where nothing can be compared.
    """
    ids = dump.meta.get("ids") if ids is None else ids
    if engine not in ENGINES:
        raise InputError(f"The arithmetic of '{engine:.40}' is not known; known are {', '.join(ENGINES)}.")
    if ids is None:
        raise InputError("The dump does not hold its token ids; give them with --ids.")
    media = model.media_of(dump) if media is NO_MEDIA else media
    twin, found = replace(model, dtype=np.dtype("float32")), []
    for run in range(runs):
        told(run)
        with perturbed(run) if run else nullcontext(), rounded_as(engine):
            found.append(twin.record(ids, list(dump), media=media, text=None))
    names = [name for name in found[0] if name in dump and comparable(name, found[0], dump)]
    if not names:
        raise InputError("No point of the dump is one of the model's; give a --map of its names.")
    points = tuple(point_of(name, found, dump) for name in names)
    return judged(engine, points, dump)


def comparable(name, ours, dump):
    x, _, y, _ = overlap.both(name, ours, dump)
    return x.shape == y.shape and x.dtype.kind == "f" and y.dtype.kind not in "iub"


def point_of(name, found, dump) -> Point:
    errors = [overlap.measure(name, one, dump).rel for one in found]
    every = np.stack([np.asarray(one[name], np.float64) for one in found])
    size = np.sqrt((every[0] ** 2).mean()) or 1.0
    away = np.sqrt(((every - every.mean(0)) ** 2).mean(tuple(range(1, every.ndim))))
    return Point(name, tuple(0.0 if e is None else float(e) for e in errors), float(away.max() / size))


def judged(engine, points, dump) -> Emulation:
    """The run that has the engine's numbers everywhere; else whether noise explains the nearest."""
    worst = np.array([p.rel for p in points]).max(0)
    best = int(worst.argmin())
    room = max((overlap.step(dump, p.name) for p in points), default=0.0)
    if worst[best] <= EQUAL + room:
        says = f"the engine is right on this file: run {best + 1} of {len(worst)} has its numbers to {worst[best]:.1e}"
        return Emulation(engine, PROVEN, f"{says} at {counted(points)}", best, points)
    off = [p for p in points if p.nearest > EQUAL + room and p.nearest > BEYOND * p.spread]
    if off:
        first, more = off[0], f", and at {len(off) - 1} more points" * (len(off) > 1)
        says = f"no run of {len(worst)} comes near at {first.name}: {first.nearest:.2g}, where right runs differ by"
        return Emulation(engine, DIFFERS, f"{says} {first.spread:.2g}{more}", None, points)
    largest = max(points, key=lambda p: p.nearest)
    says = f"noise explains it: the nearest of {len(worst)} runs is {largest.nearest:.2g} off at {largest.name},"
    return Emulation(engine, NOISE, f"{says} where right runs differ by {largest.spread:.2g}", None, points)


def counted(points):
    return "the one point" if len(points) == 1 else f"all {len(points)} points"
