"""Is the engine right on this file?  Its own arithmetic, run a few times, against the numbers that it gave.

A right engine that rounds what enters its products is percents away from a run that does not, and as far from another
right one.  But a run that rounds as it does, and in which no code happens to turn, has its numbers to the last digits.
One such run proves the engine right on that file, at every point that was compared; where none has them, the runs'
own spread is what noise explains.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from numgemma import ops
from numgemma.debug.compare.fitted import last_token
from numgemma.debug.compare.result import plain
from numgemma.debug.measure import overlap
from numgemma.debug.measure.metrics import split_axes
from numgemma.debug.measure.precision import ROUNDINGS, declared, dtype_of, in_full, rounding_of
from numgemma.debug.noise.perturb import perturbed
from numgemma.debug.noise.rounding import nearest, rounded_as, some_other_way
from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.prompt.media import NO_MEDIA, Media

SCHEMA = "numgemma.emulate/1"
RUNS = 8
MORE = 16  # where noise would explain all that eight are off, and one without a turned code may yet be among these
TURNED = 3  # runs beside them for the spread alone: a code that turns by chance may do so in none of the others
EQUAL, EQUAL_TOKEN = 3e-6, 1e-5  # relative error of a run in which no code turned: of a tensor, of its worst token
QUIET = 1e-6  # a token that is quieter than that, beside the whole, is measured against that
FEW = 1e-3  # of its size: a point that is known less finely than that proves nothing
BEYOND = 3  # times the runs' spread: what noise does not explain
PROVEN, NOISE, DIFFERS = "proven", "noise", "differs"


@dataclass(frozen=True)
class Point:
    """rel: relative error of each run against the dump.  spread: of the runs against their own mean, the largest.

    room: of that error, what the few decimals of the dump account for.  token_...: the same of the worst token, each
    against its own size, as the first may be ten thousand times the others, and beyond what decimals account for.
    """

    name: str
    rel: tuple[float, ...]
    spread: float
    room: float = 0.0
    token_rel: tuple[float, ...] = ()
    token_spread: float = 0.0

    @property
    def nearest(self) -> float:
        return min(self.rel)

    @property
    def sides(self):
        """(error of each run, room, spread, what is equal, in words) of the whole, and of its worst token."""
        whole = self.rel, self.room, self.spread, EQUAL, self.name
        token = self.token_rel, 0.0, self.token_spread, EQUAL_TOKEN, f"{self.name}, in one token"
        return [whole, token] if self.token_rel else [whole]


@dataclass(frozen=True)
class Emulation:
    """What a dump is to an engine's own arithmetic.  run: the one that has its numbers, or None"""

    engine: str
    state: str
    verdict: str
    run: int | None
    points: tuple[Point, ...]
    record: Dump = field(default_factory=lambda: Dump({}), repr=False, compare=False)  # of that run

    @property
    def sentence(self) -> str:
        return f"{self.verdict[0].upper()}{self.verdict[1:]}."

    @property
    def exit_code(self) -> int:
        return 1 if self.state == DIFFERS else 0

    def to_json(self) -> dict:
        rows = [asdict(p) | {"nearest": p.nearest} for p in self.points]
        head = {"schema": SCHEMA, "engine": self.engine, "state": self.state, "verdict": self.verdict}
        return plain(head | {"run": self.run, "points": rows})


@ops.using("numpy")  # whose rounding is perturbed
def emulate(
    model,
    dump: Dump,
    ids: Sequence[int] | None = None,
    engine: str = "llama.cpp",
    runs: int = RUNS,
    media: Media = NO_MEDIA,
    told: Callable[[int], object] = lambda run: None,
) -> Emulation:
    """Run an engine's arithmetic and compare it with its dump.  ids: T, where the dump does not say

    engine: one of precision.ROUNDINGS, or a pair with one.  runs: one as it is, the others with noise of one unit in
    the last place.  told: called with the number of each.  Raises InputError where nothing can be compared.
    """
    ids = dump.meta.get("ids") if ids is None else ids
    precision = in_full(engine)
    rounding = rounding_of(precision)
    if not rounding:
        raise InputError(f"A run in {engine} rounds nothing that enters a product; choose {', '.join(ROUNDINGS)}.")
    if ids is None:
        raise InputError("The dump does not hold its token ids; give them with --ids.")
    media = model.media_of(dump) if media is NO_MEDIA else media
    dump = last_token(dump, len(ids))
    twin, found = replace(model, dtype=dtype_of(precision)), []
    for run in range(runs + TURNED * (runs > 1)):
        told(run)
        ways = nearest if run < runs else some_other_way(np.random.default_rng(run))
        with perturbed(run) if run else nullcontext(), rounded_as(rounding, ways):
            found.append(twin.record(ids, list(dump), media=media, text=None))
    names = [name for name in found[0] if name in dump and comparable(name, found[0], dump)]
    if not names:
        raise InputError("No point of the dump is one of the model's; give a --map of its names.")
    points = tuple(point_of(name, found, dump, runs) for name in names)
    return judged(rounding, points, found)


def own_arithmetic(model, dump: Dump, ids, media: Media, told: Callable[[str], object]) -> Emulation | None:
    """`emulate`, where the dump says that its run rounded what entered a product; None where nothing is compared."""
    precision = declared(dump)
    if not rounding_of(precision) or ids is None:
        return None
    if (known := ANSWER.get()) is not None:
        return known[0]
    try:
        for runs in (RUNS, MORE):
            found = emulate(model, dump, ids, precision, runs, media, lambda run: told(f"{precision}, run {run + 1}"))
            if found.state != NOISE:
                break
    except InputError:  # without a run of it, or a point in common, nothing is proven
        return None
    return found


ANSWER: ContextVar[tuple[Emulation | None] | None] = ContextVar("answer", default=None)


@contextmanager
def answered(own: Emulation | None) -> Iterator[None]:
    """Inside, `own_arithmetic` has this answer: who asks the same of one dump in turn makes those runs once."""
    before = ANSWER.set((own,))
    try:
        yield
    finally:
        ANSWER.reset(before)


def comparable(name, ours, dump) -> bool:
    """Whether some numbers of a point are known on both sides, and finely enough to say something."""
    x, _, y, _ = overlap.both(name, ours, dump)
    if x.shape != y.shape or not x.size or x.dtype.kind in "iub" or y.dtype.kind in "iub":
        return False
    unknown = size_of(overlap.slack(dump, name, y)) + overlap.step(dump, name)
    return unknown <= FEW * size_of(x)


def point_of(name, found, dump, runs) -> Point:
    errors = [overlap.measure(name, one, dump) for one in found[:runs]]
    every = np.stack([np.asarray(one[name], np.float64) for one in found])
    size = size_of(every[0]) or 1.0
    away = np.sqrt(((every - every.mean(0)) ** 2).mean(tuple(range(1, every.ndim))))
    rel = tuple(np.inf if m.nonfinite or m.rel is None else float(m.rel) for m in errors)
    point = Point(name, rel, float(away.max() / size), overlap.step(dump, name) / size)
    if not split_axes(found[0].axes[name])[0]:
        return point
    tokens = tuple(worst_token(name, one, dump) for one in found[:runs])
    return replace(point, token_rel=tokens, token_spread=apart(every, found[0].axes[name]))


def worst_token(name, one, dump) -> float:
    """The largest error of a token against its own size, beyond what the dump's decimals account for."""
    x, axes, y, _ = overlap.both(name, one, dump)
    off, size = by_token(np.asarray(x, np.float64) - y, axes), by_token(x, axes)
    size = np.maximum(size, QUIET * size_of(x)) + 1e-300
    worst = float(np.max((off - overlap.step(dump, name)) / size))
    return max(worst, 0.0) if np.isfinite(worst) else np.inf


def apart(every, axes) -> float:
    """The largest spread of a token over the runs, against its size.  every: R and the axes"""
    off, size = by_token(every - every.mean(0), f"R {axes}", kept=1), by_token(every[0], axes)
    return float((off / (np.maximum(size, QUIET * size_of(every[0])) + 1e-300)).max())


def by_token(x, axes, kept=0) -> np.ndarray:
    """RMS of each token, of the axes that `metrics` takes for one.  kept: so many first axes stay as they are"""
    token, _ = split_axes(axes)
    others = tuple(axis for axis in range(kept, np.ndim(x)) if axis not in token)
    return np.sqrt(np.square(np.asarray(x, np.float64)).mean(others))


def size_of(x) -> float:
    return float(np.sqrt(np.square(np.asarray(x, np.float64)).mean()))


def judged(engine, points, found) -> Emulation:
    """The run that has the engine's numbers everywhere; else whether noise explains the nearest."""
    sides = [side for p in points for side in p.sides]
    worst = np.array([np.subtract(rel, room) / equal for rel, room, _, equal, _ in sides]).max(0)
    best = int(worst.argmin())
    if worst[best] <= 1:
        to = max(p.rel[best] for p in points)
        says = f"the engine is right on this file{as_far(points)}: run {best + 1} of {len(worst)} has its numbers"
        return Emulation(engine, PROVEN, f"{says} to {to:.1e} at {counted(points)}", best, points, found[best])
    off = [
        (min(rel), spread, where)
        for rel, room, spread, equal, where in sides
        if min(rel) > equal + room and min(rel) > BEYOND * spread
    ]
    if off:
        (nearest, spread, where), more = off[0], f", and at {len(off) - 1} more points" * (len(off) > 1)
        says = f"no run of {len(worst)} comes near at {where}: {nearest:.2g}, where right runs differ by"
        return Emulation(engine, DIFFERS, f"{says} {spread:.2g}{more}", None, points)
    largest = max(points, key=lambda p: p.nearest)
    says = f"noise explains it: the nearest of {len(worst)} runs is {largest.nearest:.2g} off at {largest.name},"
    return Emulation(engine, NOISE, f"{says} where right runs differ by {largest.spread:.2g}", None, points)


def as_far(points) -> str:
    """The last point that is proven, where it is not the last of all: what comes after it was not compared."""
    return "" if points[-1].name == "logits" else f" as far as {points[-1].name}"


def counted(points):
    return "the one point" if len(points) == 1 else f"all {len(points)} points"
