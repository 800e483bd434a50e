"""The noise floor: how large an error rounding alone makes, at every point, for one checkpoint and one prompt.

The truth is a float64 run.  Against it stand a few runs in the candidate's precision, each rounding and summing in a
way of its own (perturb.py).  Of their relative errors a floor keeps the median and the 95th percentile: of the whole
tensor, of the worst token and of the worst channel; and of how far their best-fit scale is from 1.

An error that a flip of experts made is kept apart, as `rough`: a flip inside the noise is no rounding error, and would
hide a hundred of them (discrete.py).
"""

import hashlib
import json
import os
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from numgemma import ops
from numgemma.atomic import passing, write_whole
from numgemma.config import build
from numgemma.debug.measure import discrete, logits, metrics
from numgemma.debug.measure.precision import EPS, PAIRS, TOLERANCES, dtype_of, rounding_of
from numgemma.debug.noise import unfinished
from numgemma.debug.noise.perturb import perturbed
from numgemma.debug.noise.rounding import rounded_as, some_other_way
from numgemma.dump import DumpWriter, hashes, read_dump
from numgemma.errors import InputError
from numgemma.graph import graph_of_dumps
from numgemma.incoming import parse_object, read_bytes
from numgemma.prompt.media import NO_MEDIA
from numgemma.trace import EVERYTHING_BUT_MAPS, selects

SCHEMA = "numgemma.floor/2"
RUNS = 8
REACHED = 3  # so many runs are enough to know the noise of a token
KEYS = ("rel", "worst_token", "worst_channel", "scale")
PRECISIONS = ("float32", "bfloat16", "float16", *PAIRS)
# looked at whether or not they are asked for
CHOICES = ("*.router.probs", "*.router.weights", "*.router.ids", "logits")


@dataclass(frozen=True)
class Noise:
    """Relative errors of one point, and of its scale: (median, 95th percentile) over the runs."""

    rel: tuple[float, float]
    worst_token: tuple[float, float]
    worst_channel: tuple[float, float]
    scale: tuple[float, float]


@dataclass(frozen=True)
class Floor:
    """The noise of every point of one run; what `measure_floor` returns and a floor file holds."""

    precision: str
    model: dict
    ids: list[int]
    runs: int
    points: dict[str, Noise]
    rough: dict[str, Noise] = field(default_factory=dict)  # with the flips, where there were any
    reach: dict[str, int] = field(default_factory=dict)  # the tokens before this one were free of flips, in some runs
    close: dict[str, dict[int, float]] = field(default_factory=dict)  # choice -> token -> margin in deviations
    kl: dict[str, tuple[float, float]] = field(default_factory=dict)  # of logits: mean KL divergence from the truth
    inputs: dict[str, str] = field(default_factory=dict)  # pictures and sound: name -> hash, as a dump's meta["inputs"]

    def save(self, path):
        write_whole(path, json.dumps({"schema": SCHEMA} | asdict(self), separators=(",", ":")))


@ops.using("numpy")  # whose rounding is perturbed
def measure_floor(
    model, ids, precision, runs=RUNS, points=EVERYTHING_BUT_MAPS, told=lambda run: None, kept=None, **inputs
):
    """Run a model in float64, and `runs` times in a precision with perturbed rounding.  ids: T  ->  Floor

    inputs: what else `model.record_into` takes.  told is called with the number of each run, 0 for the truth.  kept: a
    path where the finished runs are, so that who is ended midway can go on.
    The truth goes through a file that is removed again, so memory stays at one point.
    Raises NonFiniteError where the precision cannot hold the model's numbers.
    """
    if precision not in PRECISIONS:
        raise InputError(f"No floor can be measured in '{precision}'; choose one of {', '.join(PRECISIONS)}.")
    with passing("numgemma-floor") as folder:
        told(0)
        truth = record_truth(model, ids, folder / "truth.safetensors", points, inputs)
        collected = Collected(truth, points, TOLERANCES[precision].channel_floor)
        twin = replace(model, dtype=dtype_of(precision))
        for run in range(unfinished.go_on(kept, collected, runs), runs):
            told(run + 1)
            collected.begin()
            ways = some_other_way(np.random.default_rng(run))  # else all runs had the same codes
            with perturbed(run), rounded_as(rounding_of(precision), ways), np.errstate(all="ignore"):
                twin.record_into(collected, ids, with_choices(points), **inputs)
            unfinished.keep(kept, collected, run + 1)
        return Floor(
            precision=precision,
            model={key: truth.meta["model"].get(key) for key in ("name", "config", "shards", "config_json")},
            ids=truth.meta["ids"],
            runs=runs,
            inputs=hashes(inputs.get("media", NO_MEDIA)),
            **collected.results(),
        )


def record_truth(model, ids, path, points, inputs):
    """The float64 run, as a dump on disk."""
    exact = replace(model, dtype=np.dtype("float64"))
    with DumpWriter(path, exact.describe(ids)) as writer:
        exact.record_into(writer, ids, with_choices(points), **inputs)
    return read_dump(path)


def with_choices(points):
    """What to record: all that may be asked for, and the choices; the T x S maps only where a glob wants them."""
    maps = () if selects(points, "layers.0.self_attn.probs") else EVERYTHING_BUT_MAPS[1:]
    return (*(glob for glob in points if not glob.startswith("!")), *CHOICES, *maps)


class Collected:
    """A sink for the runs with noise: measures every point against the truth as it is computed."""

    def __init__(self, truth, points, channel_floor):
        self.truth, self.points, self.channel_floor = truth, points, channel_floor
        self.graph = graph_of_dumps(truth)
        self.start = 0
        self.clean, self.rough, self.free, self.gaps, self.kl = (defaultdict(list) for _ in range(5))
        self.margins: dict = {}

    def begin(self):
        """A new run."""
        self.flips: dict[discrete.Place, list[int]] = {}

    def keep(self, name, x, axes):
        """Take one point; a Recorder's `keep`."""
        t = self.truth[name]
        if name.endswith("router.weights"):
            self.weights = x, axes  # judged when the ids are there, which say in which order they stand
        elif name.endswith("router.ids"):
            self.choose_experts(name, t, x, axes)
        else:
            self.note_choice(name, t, x, axes)
            if selects(self.points, name) and x.dtype.kind not in "iub":
                self.measure(name, t, x, axes)

    def choose_experts(self, name, t, ids, axes):
        """Note whose choice is another one; then the weights can be measured."""
        if flips := discrete.flips_of_experts(name, t, ids, axes):
            self.flips[discrete.place_of(name)] = flips
        weights = name.removesuffix("ids") + "weights"
        if selects(self.points, weights):
            x, axes = self.weights
            t, x = metrics.in_one_order(weights, self.truth, {weights: x, name: ids})
            self.measure(weights, t, x, axes)

    def note_choice(self, name, t, x, axes):
        """How far apart the candidates of a choice lie, here and in the truth."""
        if name == "logits":
            found = logits.compare(t, x)
            self.kl[name] += [found.kl_ab] if found else []
            chosen = 1
        elif name.endswith("router.probs"):
            chosen = self.truth[name.removesuffix("probs") + "ids"].shape[-1]
        else:
            return
        if name not in self.margins:
            self.margins[name] = discrete.margins(t, chosen)
        gaps = discrete.gap(x, self.margins[name][1])
        self.gaps[name].append(np.where(discrete.touched(name, self.flips, len(x), self.graph), np.nan, gaps))

    def measure(self, name, t, x, axes):
        whole = metrics.gated(metrics.measure(t, x, axes, self.channel_floor))
        self.rough[name].append(whole)
        token, _ = metrics.split_axes(axes)
        if not (self.flips and token):
            self.clean[name].append(whole)
            return
        keep = ~discrete.touched(name, self.flips, x.shape[token[0]], self.graph)
        self.free[name].append(len(keep) if keep.all() else int(keep.argmin()))
        if keep.any():
            t, x = (np.compress(keep, side, axis=token[0]) for side in (t, x))
            self.clean[name].append(metrics.gated(metrics.measure(t, x, axes, self.channel_floor)))

    def reach(self, name):
        """How many first tokens no flip had touched, in at least REACHED runs; None: all."""
        touched = sorted(self.free[name], reverse=True)
        untouched = len(self.clean[name]) - sum(n > 0 for n in touched)
        return touched[REACHED - 1 - untouched] if untouched < REACHED <= untouched + len(touched) else None

    def results(self):
        """The fields of a Floor."""
        clean = {name: noise(self.clean.get(name) or rough) for name, rough in self.rough.items()}
        rough = {name: noise(found) for name, found in self.rough.items()}
        close = {
            name.replace("router.probs", "router.ids"): discrete.close_calls(margin, np.array(self.gaps[name]))
            for name, (margin, _) in self.margins.items()
        }
        return {
            "points": clean,
            "rough": {name: n for name, n in rough.items() if n != clean[name]},
            "reach": {name: n for name in rough if (n := self.reach(name)) is not None},
            "close": {name: calls for name, calls in close.items() if calls},
            "kl": {name: spread(values) for name, values in self.kl.items()},
        }


def noise(runs) -> Noise:
    """The spread of each relative error over runs.  runs: of each its errors, as metrics.gated gives them"""
    found = list(runs)
    return Noise(*(spread([sizes.get(key, 0.0) for sizes in found]) for key in KEYS))


def spread(values):
    """(median, 95th percentile), with three digits: the file stays small, and more would mean nothing."""
    return tuple(float(f"{x:.3g}") for x in np.percentile(values, (50, 95)))


# -- files ------------------------------------------------------------------------------------------------------------


def read_floor(path) -> Floor:
    """A floor from its file.  Raises InputError where the file is none."""
    again = "measure one with `numgemma floor`"
    tree = parse_object(read_bytes(path, again), f"{path}: the floor", again)
    if (schema := tree.pop("schema", None)) != SCHEMA:
        raise InputError(f"{path}: is a {schema!s:.60} file, this version reads {SCHEMA}; {again}.")
    floor = build(Floor, tree, f"{path}: is not a floor file")
    if floor.precision not in EPS:
        raise InputError(f"{path}: is a floor of the precision {floor.precision!r:.60}, which has none; {again}.")
    return floor


def check_floor(floor: Floor, ids, media) -> None:
    """A floor belongs to one prompt, its pictures and its sound.  Raises InputError where it is of another."""
    if list(floor.ids) != [int(i) for i in ids]:
        raise InputError("the floor is of another prompt than the dump; measure one with `numgemma floor`.")
    if floor.inputs != hashes(media):
        raise InputError("the floor is of other pictures or sound than the dump; measure one with `numgemma floor`.")


def cache_path(model_meta, ids, precision, beside=None) -> Path:
    """Where the floor of this checkpoint, prompt and precision is kept between runs.

    Under $NUMGEMMA_CACHE, or else $XDG_CACHE_HOME/numgemma, or else ~/.cache/numgemma.  beside: of `beside`.
    """
    model = [model_meta.get(key) for key in ("config", "shards", "samples")]
    what = [SCHEMA, *model, [int(i) for i in ids], precision, RUNS, beside or {}]
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
    base = os.environ.get("NUMGEMMA_CACHE")
    folder = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numgemma"
    return folder / f"floor-{key}-{precision.replace(':', '-')}.json"


def beside(meta) -> dict[str, str]:
    """What tells runs of the same ids apart, by a dump's own word: hashes of pictures and sound, another image mask."""
    mask = meta.get("image_mask", "intended")
    return (meta.get("inputs") or {}) | ({} if mask == "intended" else {"image_mask": mask})


def cached_floor(model, ids, precision, told=lambda run: None, **inputs) -> Floor:
    """The floor from the cache; measured and put there first where it is not."""
    meta = model.describe(ids, media=inputs.get("media", NO_MEDIA))
    path = cache_path(meta["model"], ids, precision, beside(meta))
    if path.exists():
        return read_floor(path)
    kept = unfinished.path_of(path)
    found = measure_floor(model, ids, precision, told=told, kept=kept, **inputs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
        unfinished.done(kept)
    except (OSError, InputError):
        pass  # a cache that cannot be written only costs time
    return found
