"""What is run of one prompt: a checkpoint's own run in float64, and each engine judged against it, as a row.

All of it happens in a worker: a process of its own, with one thread.
"""

import hashlib
import json
import resource
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from numgemma import ops
from numgemma.debug.capture import hooks, live
from numgemma.debug.capture.arrays import import_hf
from numgemma.debug.compare.diff import diff
from numgemma.debug.compare.result import Diff, PointDiff
from numgemma.debug.measure.discrete import layer_of
from numgemma.debug.measure.precision import coarser, of_run
from numgemma.debug.noise.floor import cached_floor
from numgemma.debug.noise.rounding import as_run
from numgemma.debug.readers import read_any
from numgemma.dump import Dump, hashes
from numgemma.errors import InputError, NonFiniteError
from numgemma.model import PRECISIONS, Model, load
from numgemma.prompt.media import NO_MEDIA, Media
from numgemma.trace import EVERYTHING_BUT_MAPS

SCHEMA = "numgemma.sweep/1"
HF = "hf"  # Transformers; hf:bfloat16 in another precision than float32
NOT_RUN = "not run"  # the verdict where there is nothing to judge


@dataclass(frozen=True)
class Way:
    """How every pair is judged.  memory: bytes that a worker may take beside the files it maps; None: any number."""

    points: tuple[str, ...] = EVERYTHING_BUT_MAPS
    floor: bool = False
    map: str | None = None
    backend: str = "numpy"
    memory: int | None = None


@dataclass(frozen=True)
class Seat:
    """One engine that a prompt is run in.  key: of the pair, for all time.  dump: the file, where it ran elsewhere."""

    engine: str
    key: str
    dump: str = ""


@dataclass(frozen=True, eq=False)
class Work:
    """One prompt with one checkpoint, and the engines that are still to be judged.

    state: of the checkpoint's files, for workers that have opened it before; of `state_of`.
    """

    checkpoint: str
    prompt: str
    ids: tuple[int, ...]
    seats: tuple[Seat, ...]
    media: Media = field(default=NO_MEDIA, repr=False)
    state: str = ""

    @property
    def key(self) -> str:
        return f"numgemma-{digest([seat.key for seat in self.seats])}"


def key_of(state: str, engine: str, ids, media: Media, way: Way) -> str:
    """What makes a pair what it is: the same pair has the same key in every run.  state: of `state_of`"""
    how = [way.points, way.floor, way.backend]
    return digest(SCHEMA, state, engine, [int(i) for i in ids], hashes(media), *how)


def digest(*what) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]


def state_of(model: Model) -> str:
    """Which weights these are: equal headers may stand over other numbers, so that the files' times count too."""
    checkpoint = model.checkpoint
    files = [checkpoint.folder / name for name in checkpoint.header_hashes]
    return digest(checkpoint.config, checkpoint.header_hashes, [file_key(file)[1:] for file in files if file.exists()])


def file_key(path: Path) -> tuple[str, int, int]:
    """A file's name, size and time, which change when it is written again."""
    state = path.stat()
    return str(path.resolve()), state.st_size, state.st_mtime_ns


# -- in the worker


def judged(work: Work, way: Way) -> list[dict[str, Any]]:
    """The rows of one prompt.  What goes wrong with an engine becomes its row too."""
    bound(way.memory)
    with ops.using(way.backend):
        try:
            model = opened(work.checkpoint, work.state)
            truth = exact(model, work, way)
        except Exception as error:
            return [not_run(work, seat.engine, seat.key, error) for seat in work.seats]
        return [row(model, truth, work, seat, way) for seat in work.seats]


def bound(memory: int | None) -> None:
    """Let this process take so many bytes and no more: what asks for more gets MemoryError, and the process lives.

    Files that are mapped, as weights are, do not count: the system takes their pages back where it needs them.
    """
    if memory is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (memory, hard))


@lru_cache(maxsize=1)
def opened(checkpoint: str, state: str) -> Model:
    return load(checkpoint)


@lru_cache(maxsize=1)
def transformers_model(checkpoint: str, state: str, dtype: str):
    torch, _ = import_hf()
    return hooks.load_hf(opened(checkpoint, state).checkpoint.folder, getattr(torch, dtype))


def exact(model: Model, work: Work, way: Way) -> Dump:
    return replace(model, dtype=np.dtype("float64")).record(work.ids, way.points, media=work.media)


def row(model: Model, truth: Dump, work: Work, seat: Seat, way: Way) -> dict[str, Any]:
    """The verdict on one engine."""
    begun = time.monotonic()
    try:
        dump = as_run(run(model, work, seat, way), model)
        floor = cached_floor(model, list(work.ids), precision_of(dump), **media_of(work)) if way.floor else ()
        points = [name for name in dump if name in truth] if seat.dump else way.points
        found = diff(truth, dump, points or ["*"], floor=floor)
    except Exception as error:  # one that is missing a package, or runs out of memory, is a row among others
        return not_run(work, seat.engine, seat.key, error)
    return head(work, seat.engine, seat.key) | told(found) | {"seconds": round(time.monotonic() - begun, 2)}


def media_of(work: Work) -> dict[str, Media]:
    return {} if work.media is NO_MEDIA else {"media": work.media}


def precision_of(dump: Dump) -> str:
    return coarser(of_run(dump), "float32")


def run(model: Model, work: Work, seat: Seat, way: Way) -> Dump:
    """The prompt in an engine."""
    if seat.dump:
        dump = read_any(seat.dump, way.map, model.outline)
        return Dump(dump.meta | {"ids": list(work.ids)}, dump.arrays, dump.axes) if not dump.meta.get("ids") else dump
    engine, _, dtype = seat.engine.partition(":")
    if engine == HF:
        hf = transformers_model(work.checkpoint, work.state, dtype or "float32")
        with live.capture(hf, work.ids, way.points, work.media) as dump:
            pass
        return dump
    return replace(model, dtype=PRECISIONS[engine]).record(work.ids, way.points, media=work.media)


def head(work: Work, engine: str, key: str) -> dict[str, Any]:
    what = {"checkpoint": work.checkpoint, "engine": engine, "prompt": work.prompt, "tokens": len(work.ids)}
    return {"schema": SCHEMA, "key": key} | what


def told(found: Diff) -> dict[str, Any]:
    """What a row says of a comparison."""
    sizes = [(x, i) for i, p in enumerate(found.points) if (x := size_of(p)) is not None]
    size, at = max(sizes, default=(0.0, None))
    worst = None if at is None else found.points[at]
    outs = {layer_of(p.name): p.rel for p in found.points if p.name.endswith(".out") and p.name.startswith("layers.")}
    logits = next((x for x in found.logits if x.point == "logits"), None)
    return {
        "verdict": found.verdict,
        "first": found.first,
        "reason": found.reason,
        "worst": None if worst is None else {"point": worst.name, "rel": short(worst.rel), "size": short(size)},
        "layers": {str(layer): short(rel) for layer, rel in outs.items() if rel is not None},
        "kl": None if logits is None else short(logits.kl_ab),
        "nonfinite": bool(found.nonfinite),
    }


def size_of(p: PointDiff) -> float | None:
    """How bad a point is: in units of the floor, or else the tolerance that it would have needed."""
    return p.xfloor if p.xfloor is not None else p.tolerance_that_passes


def not_run(work: Work, engine: str, key: str, error: BaseException) -> dict[str, Any]:
    """A row without numbers."""
    known = isinstance(error, InputError)
    why = str(error) if known else "there was not enough memory" if isinstance(error, MemoryError) else named(error)
    empty = dict.fromkeys(("first", "worst", "kl"))
    bad = isinstance(error, NonFiniteError)
    return head(work, engine, key) | empty | {"verdict": NOT_RUN, "reason": why, "layers": {}, "nonfinite": bad}


def named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:280]


def short(x: float | None) -> float | None:
    """Three digits: more would mean nothing."""
    return None if x is None or not np.isfinite(x) else float(f"{x:.3g}")
