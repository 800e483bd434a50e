"""Where a child of layers leaves the range that its parent keeps: slot by slot, against the layer each slot came from.

Up to the first seam a stack computes what its parent computes.  Behind a seam a layer gets a stream that it never saw
in training, from a later layer or from another model; how far that carries it is measured in four numbers:

* the RMS of the stream behind it, over its parent's;
* the cosine between the two streams;
* the entropy of its attention, in nats, a mean over heads and tokens;
* the share of its per-layer input: the RMS of what that adds, over the RMS of the stream it is added to.

The first, the third and the fourth have a range in the parent, over several prompts, its envelope.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from numgemma.config import typed
from numgemma.errors import InputError
from numgemma.incoming import parse_object, read_bytes
from numgemma.model import Edits, Model, load
from numgemma.surgery.lineage import SCHEMA as LINEAGE
from numgemma.surgery.lineage import Origin, lineage
from numgemma.surgery.recipe import parse_slices
from numgemma.trace import NONE

SCHEMA = "numgemma.seams/1"
POINTS = [f"layers.*.{name}" for name in ("out", "after_mlp", "post_per_layer_input_norm", "self_attn.probs")]
SLACK = 1e-3  # of its size may a number lie beyond the envelope: rounding
REWIND, SKIP, OTHER, NEW = "rewind", "skip", "other parent", "fresh"

# Texts for whoever brings none: of different kinds, short enough to run twice through a deep stack.
TEXTS = (
    "Once upon a time there was a little girl who lived near the sea.",
    "The boiling point of water falls as the pressure of the air above it falls.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Q: Which is the longest river of Africa?\nA: The Nile.\nQ: And of South America?\nA:",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55,",
    "Dear Ms Brown, thank you for your letter of the third of May.",
)


@dataclass(frozen=True, eq=False)
class Profile:
    """What is kept of one run: a row for each layer."""

    out: np.ndarray  # L T D, the streams; L A T D where there are several
    rms: np.ndarray  # L
    entropy: np.ndarray  # L
    per_layer: np.ndarray  # L; NaN where the model has no per-layer inputs


@dataclass(frozen=True)
class Drift:
    """One slot against its source layer: means over the prompts, the child's and the parent's."""

    slot: int
    parent: str | None
    layer: int | None
    seam: str  # rewind, skip, other parent, fresh, or nothing: how it follows the slot before
    rms: tuple[float, float] | None = None
    ratio: float | None = None
    cosine: float | None = None
    entropy: tuple[float, float] | None = None
    per_layer: tuple[float, float] | None = None
    outside: tuple[str, ...] = ()  # what is beyond the parent's envelope, on most prompts
    excess: float = 0.0  # how far the farthest of these is beyond it, in widths of the envelope, on average


@dataclass(frozen=True, eq=False)
class Seams:
    child: str
    parents: tuple[str, ...]
    prompts: int
    slots: tuple[Drift, ...]

    @property
    def leaves(self) -> Drift | None:
        """The first slot beyond its parent's envelope; None where there is none, or only one prompt."""
        return next((slot for slot in self.slots if slot.outside), None)

    def to_json(self) -> dict[str, Any]:
        slots = [asdict(slot) for slot in self.slots]
        head = {"schema": SCHEMA, "child": self.child, "parents": list(self.parents), "prompts": self.prompts}
        return head | {"leaves": self.leaves and self.leaves.slot, "slots": slots}


# which layer each slot is from


def origins(child: str, parents: Sequence[str], how: str, progress=lambda done, total: None) -> tuple[Origin, ...]:
    """The layer map: "auto" from lineage, a file of `lineage --json`, or slices of the only parent, as 0-17,10-25."""
    if how == "auto":
        return lineage(child, parents, progress).slots
    if re.fullmatch(r"[\d\s,-]+", how):
        if len(parents) != 1:
            raise InputError(f"--layer-map {how:.60} does not say of which parent; name one, or a file of `lineage`.")
        layers = [j for first, last in parse_slices(how) for j in range(first, last + 1)]
        return tuple(Origin(i, parents[0], j, "copy") for i, j in enumerate(layers))
    return read_map(Path(how), parents)


SLOT: dict[str, Any] = {"slot": int, "parent": str | None, "layer": int | None, "relation": str}


def read_map(path: Path, parents: Sequence[str]) -> tuple[Origin, ...]:
    again = "write it with `numgemma lineage --json`"
    found = parse_object(read_bytes(path, again), f"{path}: the map", again)
    if found.get("schema") != LINEAGE:
        raise InputError(f"{path}: is not what `numgemma lineage --json` writes; name such a file, or auto.")
    rows = typed(found.get("slots"), list[dict[str, Any]], f"{path}: slots")
    slots = tuple(
        Origin(*(typed(row.get(key), hint, f"{path}: {key} of a slot") for key, hint in SLOT.items())) for row in rows
    )
    for slot in slots:
        if slot.parent not in (None, *parents):
            raise InputError(f"{path}: slot {slot.slot} is from {slot.parent}; name that among the parents.")
    return slots


# what is measured


class Gauges:
    """Takes the points of one run and keeps what is measured of them; a Recorder's sink."""

    def __init__(self, layers: int):
        self.start = 0
        self.out: list[Any] = [None] * layers
        self.entropy, self.stream, self.added = (np.full(layers, np.nan) for _ in range(3))

    def keep(self, name: str, x: np.ndarray, axes: str) -> None:
        _, i, point = name.split(".", 2)
        if point == "out":
            self.out[int(i)] = x.astype(np.float32)
        elif point == "self_attn.probs":
            self.entropy[int(i)] = entropy(x)
        else:
            held = self.stream if point == "after_mlp" else self.added
            held[int(i)] = rms(x)


def entropy(probs: np.ndarray) -> float:
    """Of the rows of an attention map, in nats, their mean.  probs: N T S"""
    p = probs.astype(np.float64)
    return float(-(p * np.log(np.where(p > 0, p, 1))).sum(-1).mean())


def rms(x: np.ndarray) -> float:
    """The mean over tokens of each token's RMS: one loud token does not speak for all.  x: T D"""
    return float(np.sqrt((x.astype(np.float64) ** 2).mean(-1)).mean())


def measure(model: Model, ids, edits: Edits = NONE) -> Profile:
    gauges = Gauges(len(model.outline.layers))
    model.record_into(gauges, ids, POINTS, edits)
    out = np.stack(gauges.out)
    return Profile(out, np.array([rms(x) for x in out]), gauges.entropy, gauges.added / gauges.stream)


Fix = Callable[[Model, dict[str, Model], Sequence[int]], Edits]  # the child, its parents, a prompt -> edits of a run


def as_it_is(model: Model, parents: dict[str, Model], ids: Sequence[int]) -> Edits:
    return NONE


def compare(
    child: str,
    map_: Sequence[Origin],
    prompts: Iterable[Sequence[int]],
    precision="float32",
    progress: Callable = print,
) -> Seams:
    """Run every prompt through the child and through its parents, and set slot against layer.

    prompts: token ids; with two or more the parents have an envelope.  progress is called after each prompt.
    """
    return compare_ways(child, map_, prompts, {"": as_it_is}, precision, progress)[""]


def compare_ways(
    child: str,
    map_: Sequence[Origin],
    prompts: Iterable[Sequence[int]],
    ways: dict[str, Fix],
    precision="float32",
    progress: Callable = print,
) -> dict[str, Seams]:
    """`compare`, of the child under each of some fixes, against the same runs of the parents."""
    model = load(child, precision)
    names = tuple(dict.fromkeys(origin.parent for origin in map_ if origin.parent))
    parents = {name: load(name, precision) for name in names}
    check_map(child, model, parents, map_)
    runs: dict[str, list] = {way: [] for way in ways}
    for done, ids in enumerate(prompts, 1):
        theirs = {name: measure(parent, ids) for name, parent in parents.items()}
        for way, fix in ways.items():
            own = measure(model, ids, fix(model, parents, ids))
            runs[way].append(([line(own, theirs, o) for o in map_], theirs_only(theirs)))
        progress(done)
    return {way: Seams(child, names, len(some), drifts(map_, some)) for way, some in runs.items()}


def drifts(map_: Sequence[Origin], runs: list) -> tuple[Drift, ...]:
    return tuple(drift_of(o, seam(map_, i), [lines[i] for lines, _ in runs], runs) for i, o in enumerate(map_))


def check_map(child: str, model: Model, parents: dict[str, Model], map_: Sequence[Origin]) -> None:
    L, D = len(model.outline.layers), model.outline.width
    if len(map_) != L:
        raise InputError(f"{child}: has {L} layers, and the layer map is of {len(map_)}; give a map of this child.")
    for o in map_:
        if o.parent is None or o.layer is None:
            continue
        parent = parents[o.parent].outline
        if not 0 <= o.layer < len(parent.layers):
            raise InputError(f"{o.parent}: has no layer {o.layer} for slot {o.slot}; give a map of this parent.")
        if parent.width != D:
            raise InputError(f"{o.parent}: is {parent.width} wide and {child} is {D}; their streams do not compare.")
    if not any(o.layer is not None for o in map_):
        raise InputError(f"{child}: no layer of it is from these parents; name the ones it was made of.")


def theirs_only(runs: dict[str, Profile]) -> dict[str, np.ndarray]:
    """What the envelope is made of.  parent -> [3, L]"""
    return {name: np.stack([run.rms, run.entropy, run.per_layer]) for name, run in runs.items()}


def line(own: Profile, theirs: dict[str, Profile], o: Origin) -> np.ndarray | None:
    """(rms, entropy, share) of the child, the same of the layer, and the cosine: 7 numbers; None for a fresh slot."""
    if o.parent is None or o.layer is None:
        return None
    run, i, j = theirs[o.parent], o.slot, o.layer
    mine, its = (np.array([r.rms[k], r.entropy[k], r.per_layer[k]]) for r, k in ((own, i), (run, j)))
    return np.concatenate([mine, its, [cosine(own.out[i], run.out[j])]])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Between streams, token by token, their mean.  T D, T D; of several streams A T D, A T D"""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / np.where(lengths > 0, lengths, 1)).mean())


def seam(map_: Sequence[Origin], i: int) -> str:
    """How a slot follows the one before it."""
    o = map_[i]
    if o.layer is None:
        return NEW
    if i == 0:
        return "" if o.layer == 0 else SKIP
    last = map_[i - 1]
    if last.layer is None or last.parent != o.parent:
        return OTHER if last.layer is not None else ""
    return REWIND if o.layer <= last.layer else SKIP if o.layer > last.layer + 1 else ""


def drift_of(o: Origin, how: str, lines, runs) -> Drift:
    """One row of the table, from the lines of all prompts."""
    if lines[0] is None:
        return Drift(o.slot, None, None, how)
    means = np.mean(lines, axis=0)
    ranges = np.stack([envelope[o.parent][:, o.layer] for _, envelope in runs])
    pairs = [(float(means[k]), float(means[k + 3])) for k in range(3)]
    ratio = float(np.exp(np.mean([np.log(x[0] / x[3]) for x in lines]))) if means[3] else None
    share = None if np.isnan(pairs[2]).any() else pairs[2]
    return Drift(
        *(o.slot, o.parent, o.layer, how, pairs[0], ratio, float(means[6]), pairs[1], share),
        *beyond(lines, ranges),
    )


def beyond(lines, ranges: np.ndarray) -> tuple[tuple[str, ...], float]:
    """What leaves the envelope on more than half of the prompts, and how far.  ranges: [prompts, 3], the parent's

    The envelope is the parent's range over the prompts, widened by its own width to both sides: few prompts show less
    than the whole of it.
    """
    if len(ranges) < 2:
        return (), 0.0
    low, high = ranges.min(0), ranges.max(0)
    width = high - low + SLACK * np.abs(high)
    mine = np.stack([x[:3] for x in lines])
    far = np.maximum(low - width - mine, mine - high - width) / np.maximum(width, 1e-300)
    out = (far > 0).mean(0) > 0.5
    names = tuple(name for name, is_out in zip(("rms", "entropy", "per_layer"), out, strict=True) if is_out)
    return names, float(far.mean(0)[out].max()) if names else 0.0
