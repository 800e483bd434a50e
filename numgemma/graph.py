"""Which points a point is computed from, in which order, with which axes, on which line: learned from a run.

The forward pass tells all of that once.  Here it runs once more, on a twin of the model that is as deep and a few
numbers wide, with arrays that remember where they come from.  A fault hands its error on along the paths of this graph
and along nothing else.
"""

import json
import linecache
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from math import prod
from pathlib import Path
from types import ModuleType

import numpy as np

from numgemma.checkpoint import Weights
from numgemma.errors import InputError
from numgemma.families import Run, find
from numgemma.incoming import read_object
from numgemma.marks import bare, carrying, mark, marks
from numgemma.official import CONFIGS, runnable
from numgemma.prompt.media import Media
from numgemma.trace import Tap

PACKAGE = Path(__file__).parent
WHERE = "the config"
WIDEST, DEEPEST, MEDIA = 10**7, 10**4, 1024  # numbers and tensors of a twin, pictures or sounds of a prompt: at most
FARTHEST = 40  # lines that one step goes back in a file
FRAMES = 8  # of Python's stack, in which the line that names a point is looked for


@dataclass(frozen=True)
class Birth:
    """How a point comes to be: its axes, the points it is computed from, and the line of source that names it."""

    axes: str = ""
    parents: tuple[str, ...] = ()
    file: str = ""  # in the package from its top, else the whole path
    line: int = 0  # counted from 1


@dataclass(frozen=True, eq=False)
class Graph:
    """The points of a model in order of execution, each with its Birth.  Names it does not know have no parents."""

    points: Mapping[str, Birth]

    def __contains__(self, name):
        return name in self.points

    @cached_property
    def order(self) -> dict[str, int]:
        """Which point comes when."""
        return {name: i for i, name in enumerate(self.points)}

    @cached_property
    def before(self) -> dict[str, int]:
        """All ancestors of each point: bit i is set for the point that comes as number i."""
        found: dict[str, int] = {}
        for name, point in self.points.items():
            found[name] = 0
            for p in point.parents:
                found[name] |= found[p] | 1 << self.order[p]
        return found

    def axes(self, name) -> str:
        return self.points[name].axes if name in self else ""

    def parents(self, name) -> tuple[str, ...]:
        return self.points[name].parents if name in self else ()

    def hands_on(self, fault, later) -> bool:
        """Whether a point can have its error from another.  Of a point that is not known anything is possible."""
        if fault not in self or later not in self:
            return True
        return bool(self.before[later] >> self.order[fault] & 1)

    def lines(self, name, between=()) -> tuple[str, list[int]]:
        """The file in which a point is born, and the lines there: its own, and those of the points of a step to it."""
        if name not in self or not self.points[name].file:
            return "", []
        file, line = self.points[name].file, self.points[name].line
        near = [self.points[p] for p in between if p in self]
        return file, sorted({line, *(p.line for p in near if p.file == file and 0 <= line - p.line <= FARTHEST)})

    def step(self, name, known) -> tuple[list[str], list[str]]:
        """How a point is reached from known ones: (the nearest known points before it, the unknown ones between)."""
        sources, between, open_ = [], [], [*self.parents(name)]
        while open_:
            p = open_.pop(0)
            if p in known:
                sources += [p] if p not in sources else []
            elif p not in between:
                between.append(p)
                open_ += self.parents(p)
        return sources, between


def lines_in_words(lines) -> str:
    """line 12, or lines 30 to 42"""
    return f"line {lines[0]}" if len(lines) == 1 else f"lines {lines[0]} to {lines[-1]}"


def in_order(names: Iterable[str]) -> Graph:
    """What is taken for a graph where none is known: a point may have its error from any point before it."""
    names = list(names)
    return Graph({name: Birth(parents=tuple(names[max(0, i - 1) : i])) for i, name in enumerate(names)})


def joined(a, b):
    """Names of both, in order of execution: a's order, and what only b has after its last common predecessor."""
    after: dict[str | None, list[str]] = {}
    last = None
    for name in b:
        if name in a:
            last = name
        else:
            after.setdefault(last, []).append(name)
    return after.get(None, []) + [n for name in a for n in (name, *after.get(name, ()))]


# -- learning


class Tracer(Tap):
    """Notes how each point comes to be; what is computed from it bears its name."""

    def __init__(self, points: dict[str, Birth], numbers: dict[str, int], prefix=""):
        self.points, self.numbers, self.prefix = points, numbers, prefix

    def at(self, scope):
        return Tracer(self.points, self.numbers, f"{self.prefix}{scope}.")

    def watches(self, name):
        return True

    def __call__(self, name, x, axes=""):
        full, parents = self.prefix + name, tuple(sorted(marks(x), key=self.numbers.__getitem__))
        self.numbers[full] = len(self.numbers)
        self.points[full] = Birth(axes, parents, *line_of(name))
        return mark(bare(x), frozenset([full]))


def line_of(leaf) -> tuple[str, int]:
    """File and line of the innermost call that has the point's name in it; of the tap's own where none has."""
    frames = list(islice(stack(sys._getframe(2)), FRAMES))
    found = (named_at(frame.f_code, frame.f_lasti, leaf) for frame in frames)
    return next(filter(None, found), None) or named_at(frames[0].f_code, frames[0].f_lasti, "")


def stack(frame):
    while frame is not None:
        yield frame
        frame = frame.f_back


@lru_cache(maxsize=4096)
def named_at(code, instruction, leaf):
    """File and line of an instruction, if its source has that name in quotes; None if it has not."""
    start, end, *_ = list(code.co_positions())[instruction // 2]
    for line in range(start or 0, (end or 0) + 1):
        if not leaf or f'"{leaf}"' in linecache.getline(code.co_filename, line):
            path = Path(code.co_filename)
            return (path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else str(path)), line
    return None


SWAPS: list[tuple[ModuleType, str, Callable, Callable]] = []  # module, name, the function of the source, what acts now


@contextmanager
def as_written():
    """Functions are what the source says for as long as this lasts, though faults act: what is learned is kept."""
    swaps = SWAPS[:]
    try:
        for room, name, original, _ in reversed(swaps):
            setattr(room, name, original)
        yield
    finally:
        for room, name, _, other in swaps:
            setattr(room, name, other)


def learn(run) -> Graph:
    """The graph of what run(tap) computes."""
    points: dict[str, Birth] = {}
    with carrying(), np.errstate(all="ignore"):
        run(Tracer(points, {}))
    return Graph(points)


def graph_of(raw: dict, pictures=0, sounds=0) -> Graph:
    """The graph of a model with that config.json, on a prompt with so many pictures and sounds.

    Learned once for each config, of what the source says, whatever faults act.  Raises InputError where numgemma runs
    no such model.
    """
    return learned(json.dumps(raw, sort_keys=True), pictures, sounds)


@lru_cache(maxsize=32)
def learned(text, pictures, sounds):
    raw = json.loads(text)
    family = find(raw, WHERE)
    config = family.read_config(family.twin(raw, WHERE), WHERE)
    shapes = family.shapes(config)
    if sum(map(prod, shapes.values())) > WIDEST or len(shapes) > DEEPEST or max(pictures, sounds) > MEDIA:
        raise InputError(f"{WHERE}: is of no model that a graph can be learned of; name the checkpoint with --ckpt.")
    half = np.float32(0.5)  # which points there are, and of what, depends on no number
    w = Weights({name: np.broadcast_to(half, shape) for name, shape in shapes.items()})
    ids, media = family.sample(config, pictures, sounds)
    with as_written():
        return learn(lambda tap: family.part("forward")(ids, media, w, Run(config, np.dtype(np.float32)), tap))


def counted(media: Media) -> tuple[int, int]:
    """How many pictures, those of videos too, and how many sounds."""
    pictures = [x for x in (media.pixel_values, media.pixel_values_videos) if x is not None]
    return sum(map(len, pictures)), 0 if media.input_features is None else len(media.input_features)


# -- of a dump


def graph_of_dumps(*dumps, config=None) -> Graph:
    """The graph of the model that dumps of one run come from.

    Told by the first config.json that is there: `config`, if the user has named a checkpoint, or the one in a dump.
    Otherwise the graph of an official config with the same points, and where there is none, their order.
    """
    names = list(dict.fromkeys(name for dump in dumps for name in dump))
    told = (config, *((dump.meta.get("model") or {}).get("config_json") for dump in dumps))
    for raw in (raw for raw in told if isinstance(raw, dict)):
        try:
            return graph_of(raw, *media_in(names))
        except InputError:
            continue  # of a family that is not run here
    return next((g for g in official_graphs(names) if all(name in g for name in names)), None) or in_order(names)


def named(dump, raw: dict):
    """A dump of another engine, of a checkpoint that the user names: it carries that config.json from now on."""
    dump.meta["model"] = {"config_json": raw} | (dump.meta.get("model") or {})
    return dump


def media_in(names) -> tuple[int, int]:
    """How many pictures and sounds points of these names are of."""
    found = {"vision": 0, "audio": 0}
    for name in names:
        if match := re.match(r"(?:embed_)?(vision|audio)(?:_tower)?(?:@(\d+))?\.", unstacked(name)):
            found[match[1]] = max(found[match[1]], int(match[2] or 0) + 1)
    if "inputs_embeds" in names and not any(found.values()):
        return 1, 0
    return found["vision"], found["audio"]


def official_graphs(names) -> Iterator[Graph]:
    """Of the official configs that have as many layers as these points, the graphs."""
    depth = layers_in(names)
    for raw in official_configs():
        text = raw.get("text_config") or raw
        if text["num_hidden_layers"] == depth and max(media_in(names)) <= MEDIA:
            yield graph_of(raw, *media_in(names))


def layers_in(names) -> int:
    """How many decoder layers points of these names are of."""
    numbers = (re.match(r"layers\.(\d+)\.", unstacked(name)) for name in names)
    return max((int(match[1]) + 1 for match in numbers if match), default=0)


def unstacked(name) -> str:
    """The name of a point without its stack, where the same layers run once as an encoder and once as a decoder."""
    return STACK.sub("", name)


STACK = re.compile(r"^(encoder\.language_model|encoder|decoder)\.")


@lru_cache(maxsize=1)
def official_configs() -> list[dict]:
    """Every config.json that comes with the package and can be run, Gemma 4's first.

    Where two have a point of one name, it is taken for the first's.
    """
    names = {name.removesuffix("-it"): name for name in runnable()}  # of the same structure
    names = dict(sorted(names.items(), key=lambda item: not item[0].startswith("gemma-4")))
    return [read_object(CONFIGS / f"{name}.json", "install numgemma again") for name in names.values()]


@lru_cache(maxsize=1)
def shallow_graphs() -> list[Graph]:
    """Of every official config a graph with a layer of each kind, a picture and a sound."""
    return [graph_of(find(raw, WHERE).twin(raw, WHERE, shallow=True), 1, 1) for raw in official_configs()]
