"""One step at a time: what numgemma makes of a dump's own tensors, against what the dump says comes next.

The model runs in float64 on a tap that hands it the dump's tensor wherever the dump has one.  So every value is
computed from what the other engine itself had before it, and nothing is inherited.  The weights and constants are
those that the other engine's precision holds.  The noise of each step comes from the same run in that precision, a
few times, each rounding and summing in a way of its own (perturb.py).
"""

import math
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from numgemma.cache import Kept
from numgemma.debug.compare.scoring import KEYS, Limits
from numgemma.debug.faults import swapped
from numgemma.debug.measure import metrics, overlap
from numgemma.debug.measure.precision import EPS, TOLERANCES, dtype_of, rounding_of
from numgemma.debug.noise.perturb import perturbed
from numgemma.debug.noise.rounding import rounded_as, some_other_way
from numgemma.dump import Dump
from numgemma.graph import counted, graph_of
from numgemma.model import Model
from numgemma.prompt.media import NO_MEDIA, Media
from numgemma.trace import Tap

RUNS = 4  # with noise
LOOP = 0.3
MARGIN = 8  # a flip of experts whose probabilities differ by less than so many units in the last place is a tie
TOWERS = "towers"  # beside the scopes of layers: what hands something on
HIDDEN = -1e4  # scores below this are an engine's way to say that the mask hides them


class Substitute(Tap):
    """Goes on with what look(full name, tensor, axes) returns."""

    def __init__(self, look, wanted, prefix=""):
        self.look, self.wanted, self.prefix = look, wanted, prefix

    def at(self, scope):
        return Substitute(self.look, self.wanted, f"{self.prefix}{scope}.")

    def watches(self, name):
        return self.prefix + name in self.wanted

    def __call__(self, name, x, axes=""):
        return self.look(self.prefix + name, x, axes)


@dataclass
class Local:
    """What one pass over a dump has found, by point in order of execution."""

    errors: dict[str, metrics.Measure] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # why there are no numbers, or how a choice is to be read
    truth: dict[str, np.ndarray] = field(default_factory=dict)  # what numgemma computes at each point of the dump
    axes: dict[str, str] = field(default_factory=dict)
    limits: dict[str, Limits] = field(default_factory=dict)  # what noise alone makes of the errors
    streams: dict = field(default_factory=dict)  # what each layer hands on, by scope; TOWERS -> kind -> soft tokens
    kvs: dict[int, tuple] = field(default_factory=dict)  # the keys and values that each layer made


@dataclass(frozen=True)
class Rerun:
    """A dump, and all that is needed to compute it again.  model: of any precision; ids: T"""

    model: Model
    dump: Dump
    ids: np.ndarray
    precision: str
    media: Media = NO_MEDIA

    @cached_property
    def graph(self):
        """Which of the model's points comes from which."""
        return graph_of(self.model.checkpoint.config, *counted(self.media))

    def run(self, dtype, look):
        twin = replace(self.model, dtype=np.dtype(dtype))
        ids = twin.checked(self.ids, self.media)
        with np.errstate(all="ignore"):
            tap = Substitute(look, self.dump)
            twin.forward(ids, self.media, twin.run(), tap)


def local(subject, runs=RUNS, told=lambda run: None) -> Local:
    """Every step of a dump, recomputed and measured; with the noise of `runs` runs.  told: called before each run"""
    told(0)
    found = Local()
    with keeping_streams(subject.model.family, found):
        exactly(subject, Steps(subject.dump, subject.precision, found).look)
    for seed in range(runs):
        told(seed + 1)
        noisily(subject, seed, found)
    return found


def exactly(subject, look, under=nullcontext):
    """A float64 run over the weights and constants of the candidate's precision.  under: makes a context to run in"""
    with as_held(subject.precision), under():
        subject.run("float64", look)


@contextmanager
def as_held(precision):
    """Weights, tables, rounded constants and inputs as a run of that precision has them, whatever we compute in."""
    p = dtype_of(precision)

    def scale(original, x, factor):  # a NumPy number is a constant that was rounded to the run's precision
        return original(x, float(p.type(factor)) if isinstance(factor, np.generic) else factor)

    with (
        swapped("ops.definitions.stored", lambda stored, w, dtype: stored(w.astype(p, copy=False), dtype)),
        swapped("ops.embed", lambda embed, ids, w, dtype: embed(ids, w, p).astype(dtype)),
        swapped("ops.scale", scale),
        rounded_as(rounding_of(precision)),
    ):
        yield


class Steps:
    """Looks at every point: measures ours against the dump's, and goes on with the dump's.

    wanted: the points that are measured, beside choices of experts; None: all.
    """

    def __init__(self, dump, precision, found, wanted=None):
        self.dump, self.precision, self.found, self.wanted = dump, precision, found, wanted
        self.channel_floor = TOLERANCES[precision].channel_floor
        self.seen: dict[str, np.ndarray] = {}  # what routing was computed

    def look(self, name, y, axes):
        routing = name.rpartition("router.")[2]
        if routing in ("probs", "weights"):
            self.seen[routing] = y
        if name not in self.dump:
            return y
        if routing == "ids":
            self.choice(name, y)
        elif routing == "weights" and name.replace("weights", "ids") in self.dump:
            self.found.axes[name] = axes  # measured with the ids, which say whose weights they are
        elif self.wanted is None or name in self.wanted:
            self.compare(name, y, axes)
        return fed(self.dump, name, y)

    def compare(self, name, y, axes):
        found = self.found
        shape = overlap.full_shape(self.dump, name)
        if not fits(shape, y.shape):
            turned = ": transposed" if sorted(shape) == sorted(y.shape) else ""
            found.reasons[name] = f"shape {list(shape)} in the dump, {list(y.shape)} here{turned}"
            return
        kept = y if EPS[self.precision] <= EPS["float32"] else y.astype(np.float32)  # ample beside a coarser candidate
        found.truth[name], found.axes[name] = kept, axes
        found.errors[name] = measured(name, y, axes, self.dump, self.channel_floor)

    def choice(self, name, ids):
        """Experts: the same sets, or sets that differ by a tie; then the weights of those that are the same."""
        theirs, probs = np.asarray(self.dump[name]), self.seen["probs"]
        if theirs.shape != ids.shape:
            self.found.reasons[name] = f"shape {list(theirs.shape)} in the dump, {list(ids.shape)} here"
            return
        flips = np.flatnonzero(metrics.unequal_tokens(ids, theirs, "T J", in_any_order=True)).tolist()
        gaps = [flip_gap(probs[t], ids[t], theirs[t]) for t in flips]
        real = [t for t, gap in zip(flips, gaps, strict=True) if gap > MARGIN * EPS[self.precision]]
        if flips:
            self.found.reasons[name] = f"other experts at token {(real or flips)[0]}" + ("" if real else ", a tie")
        self.found.truth[name], self.found.axes[name] = ids, "T J"
        at = real[:1] or None
        self.found.errors[name] = metrics.Measure(
            rel=len(real) / len(ids), worst_token=float(bool(real)), worst_token_at=at
        )
        self.weights(name.replace("ids", "weights"), ids, theirs, np.setdiff1d(np.arange(len(ids)), flips))

    def weights(self, name, ids, theirs, tokens):
        if name in self.dump and len(tokens):
            ours = in_order(self.seen["weights"][tokens], ids[tokens])
            given = in_order(np.asarray(self.dump[name])[tokens], theirs[tokens])
            given = overlap.nearest(ours, given, overlap.slack(self.dump, name, given))
            self.found.truth[name] = self.seen["weights"]
            self.found.errors[name] = metrics.measure(ours, given, "T J", self.channel_floor)


def fits(shape, ours) -> bool:
    """Whether a tensor of the dump is ours, perhaps with axes joined: of as many axes the same shape."""
    return math.prod(shape) == math.prod(ours) and (len(shape) != len(ours) or tuple(shape) == tuple(ours))


def measured(name, y, axes, dump, channel_floor):
    """The dump's point against what it should be.  Scores that a mask hides read as 0, as ours do."""
    if name.endswith("scores") and overlap.whole(dump, name):
        t = np.asarray(dump[name]).reshape(y.shape)
        dump = Dump({}, {name: np.where((y == 0) & ~(t > HIDDEN), 0, t)}, {name: axes})
    return overlap.measure(name, Dump({}, {name: y}, {name: axes}), dump, channel_floor)


def fed(dump, name, y):
    """The dump's tensor in the place of ours; ours where the dump's is not whole, or not finite.

    Chosen experts and their weights go together: an engine lists them in an order of its own.
    """
    if name not in dump or not overlap.whole(dump, name) or not fits(dump[name].shape, y.shape):
        return y
    if name.endswith(("router.ids", "router.weights")):
        scope = name.rpartition(".")[0]
        if not (f"{scope}.ids" in dump and f"{scope}.weights" in dump):
            return y
    t = np.asarray(dump[name]).reshape(y.shape)
    if name.endswith("scores"):
        t = np.where(y == 0, 0, t)
    return t.astype(y.dtype) if t.dtype.kind in "iu" or np.isfinite(t).all() else y


def in_order(weights, ids):
    """The weights of chosen experts, sorted by expert.  T J"""
    return np.take_along_axis(np.asarray(weights), np.argsort(ids, -1), -1)


def flip_gap(probs, ours, theirs):
    """How much likelier the experts that we alone chose are than those that the dump alone chose, at most; relative."""
    alone, instead = np.setdiff1d(ours, theirs), np.setdiff1d(theirs, ours)
    if instead.size == 0 or instead.min() < 0 or instead.max() >= len(probs):
        return np.inf
    return float(1 - probs[instead].min() / probs[alone].max())


def noisily(subject, seed, found, under=nullcontext):
    """One run in the candidate's precision on the dump's tensors: widens the limits to what it errs by."""
    rng = np.random.default_rng(seed)
    dump = subject.dump
    channel_floor = TOLERANCES[subject.precision].channel_floor
    rounding, other_way = rounding_of(subject.precision), some_other_way(rng)
    exact: list[np.ndarray] = []  # what the engine itself had: it has rounded that the same way

    def ways(x, rounded):
        return rounded if any(np.may_share_memory(x, y) for y in exact) else other_way(x, rounded)

    def look(name, y, axes):
        if name in found.truth and y.dtype.kind not in "iub":
            sort = np.sort if name.endswith("router.weights") else np.asarray  # whichever expert they are of
            widen(found, name, errors(sort(found.truth[name]), sort(y), axes, channel_floor))
        known = fed(dump, name, y)
        if name not in dump or known.dtype.kind in "iub":
            return known
        drawn = refined(known, dump, name, rng)
        if rounding and drawn is known and known is not y:
            exact.append(known)
        return drawn

    loop, norm = summed_in_a_loop(rng), with_roots_of_its_own(rng)
    with ExitStack() as stack:
        for name, change in (("ops.linear", loop), ("ops.definitions.matmul", loop), ("ops.rms_norm", norm)):
            stack.enter_context(swapped(name, change))
        stack.enter_context(perturbed(seed))
        stack.enter_context(rounded_as(rounding, ways))
        stack.enter_context(under())
        subject.run(dtype_of(subject.precision), look)
    for name in found.truth.keys() - found.limits.keys():  # what is chosen has no noise
        widen(found, name, [EPS[subject.precision]] * len(KEYS))


def summed_in_a_loop(rng):
    """A change of a matrix product: its error becomes that of adding up n terms one by one, the order that errs most.

    Measured on random terms, that error is LOOP sqrt(n) half units in the last place of the result's RMS.  Narrow
    precisions are left alone: they sum in float32 and round after.
    """

    def change(product, **given):
        x, y = next(iter(given.values())), product()
        if y.dtype.itemsize < 4:
            return y
        size = np.sqrt(np.square(y).mean(-1, keepdims=True))
        unit = LOOP * math.sqrt(x.shape[-1]) * np.finfo(y.dtype).eps / 2
        return y + (unit * size * rng.standard_normal(y.shape)).astype(y.dtype)

    return change


def with_roots_of_its_own(rng):
    """A change of rms_norm: the mean and its root err by a unit in the last place, the same for a whole row."""

    def change(rms_norm, x):
        y = rms_norm()
        if y.dtype.itemsize < 4:
            return y
        return y * (1 + np.finfo(y.dtype).eps / 2 * rng.standard_normal((*y.shape[:-1], 1))).astype(y.dtype)

    return change


def errors(x, y, axes, channel_floor):
    """What a step is judged by.  x: the reference"""
    m = metrics.measure(x, y, axes, channel_floor)
    sizes = metrics.gated(m) if m.rms else {}  # of zeros, or with NaN, there is nothing to be learned
    return [sizes.get(key, 0.0) for key in KEYS]


def widen(found, name, sizes):
    least = found.limits.get(name) or Limits(*[0.0] * len(KEYS))
    found.limits[name] = Limits(*(max(getattr(least, key), size) for key, size in zip(KEYS, sizes, strict=True)))


def refined(y, dump, name, rng):
    """A tensor of a dump that keeps few digits, with the error of that drawn once more."""
    room = overlap.slack(dump, name, y) + 3**0.5 * overlap.step(dump, name)
    return y + (rng.uniform(-1, 1, y.shape) * room).astype(y.dtype) if np.any(room) else y


# -- what each layer handed on


@contextmanager
def keeping_streams(family, found):
    """Keeps what each layer hands on, and its keys and values."""

    def block(original, spec, tap, **given):
        y = original()
        found.streams[scope_of(tap)] = y
        kept = given.get("kvs", {}).get(spec.index)
        if isinstance(kept, Kept):  # which another layer may read; what a family keeps otherwise is the layer's own
            found.kvs.setdefault(spec.index, tuple(kept))  # of the first run, where a layer runs twice
        return y

    def soft_tokens(original):
        found.streams[TOWERS] = original()
        return found.streams[TOWERS]

    with parts_swapped(family, {"block": block, "soft tokens": soft_tokens}):
        yield


def scope_of(tap):
    """Where a layer runs: the prefix of its points, whatever faults have put around the tap."""
    return tap.prefix if isinstance(tap, Substitute) else scope_of(tap.tap)


@contextmanager
def parts_swapped(family, changes):
    """The changes by the parts that they change; those of parts that this family lacks are left out."""
    with ExitStack() as stack:
        for name in changes.keys() & family.parts.keys():
            stack.enter_context(swapped(name, changes[name], family))
        yield
