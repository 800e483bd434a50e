"""A dump: every recorded activation of one run, in memory or in one .safetensors file.

The file is written as the run goes, so a dump may be larger than memory: tensors go straight to their place behind
room left for the header, and the header is written last.  Until then the file bears a temporary name and its first
bytes are zero, so that what an interruption leaves behind cannot be taken for a dump.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from numgemma.atomic import begin, remedy, target, umask, writing
from numgemma.config import typed
from numgemma.errors import InputError
from numgemma.incoming import parse_object
from numgemma.notebook import html_table
from numgemma.prompt.media import Media, clips, frames, images, whole_images
from numgemma.prompt.named import POINTS, named
from numgemma.smallfloats import BFLOAT16
from numgemma.trace import EVERYTHING_BUT_MAPS
from numgemma.weights.safetensors import open_safetensors

SCHEMA = "numgemma.dump/1"
# What a dump's description holds, of which types; other keys are left as they are.
META: dict[str, Any] = {
    "axes": dict[str, str],
    "order": list[str],
    "ids": list[int] | None,
    "positions": list[int] | None,
}
META |= {"engine": dict[str, str | int | None], "text": str | None, "precision": str | None, "fidelity": str}
META |= {"coverage": list[str], "inputs": dict[str, str], "cache": str, "image_mask": str, "model": dict[str, Any]}
META |= {"media": list[dict[str, str | int | None]] | None, "parts": dict[str, dict[str, Any]]}
META |= {"unused": dict[str, str], "unused_count": int}
MODEL: dict[str, Any] = {
    "name": str | None,
    "config": str | None,
    "shards": dict[str, str] | None,
    "samples": dict[str, str | None] | None,
    "layer_kinds": list[str] | None,
}
PART: dict[str, Any] = {"shape": list[int], "at": list[list[int] | None], "slack": dict[str, float] | None}
PART |= dict.fromkeys(("sum", "mean", "std", "min", "max"), float | None)
# Formats whose readers would not know a dump.
FOREIGN = (".npz", ".npy", ".pt", ".pth", ".bin", ".gguf", ".json", ".h5")
TYPES = {
    BFLOAT16: "BF16",
    np.dtype(np.float16): "F16",
    np.dtype(np.float32): "F32",
    np.dtype(np.float64): "F64",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
}


def placed(x, axes, start, total):
    """Where one step's part of a point lies in the whole run's tensor: that tensor's shape, and the index.

    A step's queries (T) stand at start, start + 1, ...; its keys (S) end where its queries end.  start: None where one
    step is the whole run; what stands at its T need not be the prompt's tokens.
    """
    if start is None:
        return x.shape, (slice(None),) * x.ndim
    letters = axes.split()
    end = start + (x.shape[letters.index("T")] if "T" in letters else 0)
    spans = {"T": slice(start, end), "S": slice(end - x.shape[letters.index("S")] if "S" in letters else 0, end)}
    shape = tuple(total if a in spans else n for a, n in zip(letters, x.shape, strict=True))
    return shape, tuple(spans.get(a, slice(None)) for a in letters)


class Dump(Mapping[str, np.ndarray]):
    """Recorded points by name, in order of execution.

    axes: name -> letters of the axis key, as "T N H".  meta: what was run, by what, on which tokens.
    """

    def __init__(
        self,
        meta: dict[str, Any],
        arrays: dict[str, np.ndarray] | None = None,
        axes: dict[str, str] | None = None,
    ) -> None:
        self.meta, self.arrays, self.axes = meta, arrays or {}, axes or {}
        self.start, self.total = None, len(meta.get("ids") or ())

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __repr__(self) -> str:
        return f"<Dump of {len(self)} points over {self.total} tokens, {self.meta.get('precision')}>"

    def _repr_html_(self) -> str:
        rows = [(name, self.axes.get(name, ""), " x ".join(map(str, x.shape)), x.dtype) for name, x in self.items()]
        return html_table(repr(self)[1:-1], ("point", "axes", "shape", "dtype"), rows)

    def records(self) -> list[dict[str, Any]]:
        """A flat dict for each point, in order of execution: what `pandas.DataFrame` takes."""
        return [
            {
                "name": name,
                "axes": self.axes.get(name, ""),
                "shape": " x ".join(map(str, x.shape)),
                "dtype": str(x.dtype),
                "bytes": x.nbytes,
            }
            for name, x in self.items()
        ]

    def keep(self, name: str, x: np.ndarray, axes: str) -> None:
        """Take one point of one step; a Recorder's `keep`."""
        shape, index = placed(x, axes, self.start, self.total)
        if name not in self.arrays:
            self.arrays[name], self.axes[name] = np.zeros(shape, x.dtype), axes
        self.arrays[name][index] = x

    def save(self, path: str | Path) -> None:
        """Write the dump to one safetensors file, whole or not at all.  Raises InputError where it cannot be."""
        with DumpWriter(path, self.meta) as writer:
            for name, x in self.arrays.items():
                writer.put(name, x.shape, (slice(None),) * x.ndim, x, self.axes[name])


class DumpWriter:
    """Writes a dump point by point; a context manager that leaves the finished file or none.

    Raises InputError where the directory does not exist or the disk is full.
    """

    def __init__(self, path, meta):
        self.path, self.meta = target(path), meta
        if self.path.suffix in FOREIGN:
            raise InputError(f"{path}: a dump is a safetensors file, not {self.path.suffix}; give -o NAME.safetensors.")
        self.start, self.total = None, len(meta.get("ids") or ())
        self.entries, self.axes = {}, {}

    def __enter__(self):
        with writing(self.path):
            self.partial, self.lock, self.file = opened(self.path)
        layers = len(self.meta.get("model", {}).get("layer_kinds", ()))
        # for the header; `finish` copes when it is too small
        self.room = 1 << 16 | 24 * len(self.meta.get("ids") or ()) + 16384 * layers
        self.end = self.room = -(-self.room // 64) * 64
        return self

    def keep(self, name, x, axes):
        """Take one point of one step; a Recorder's `keep`."""
        shape, index = placed(x, axes, self.start, self.total)
        self.put(name, shape, index, x, axes)

    def put(self, name, shape, index, x, axes):
        """Write part of a tensor: x goes to `index` of the tensor of that shape."""
        try:
            if name not in self.entries:
                self.reserve(name, shape, x.dtype, axes)
            if x.size:
                offset = self.entries[name]["data_offsets"][0] + self.room
                np.memmap(self.file, x.dtype, "r+", offset, shape)[index] = x
        except OSError as error:
            step = remedy(error, "free some space or choose fewer --points", "choose another -o")
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); {step}.") from error

    def reserve(self, name, shape, dtype, axes):
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        allocate(self.file, self.end, size)
        span = [self.end - self.room, self.end - self.room + size]
        self.entries[name] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": span}
        self.axes[name] = axes
        self.end += size

    def header(self):
        meta = self.meta | {"axes": self.axes, "order": list(self.entries)}
        return json.dumps({"__metadata__": {"numgemma": json.dumps(meta)}} | self.entries).encode()

    def finish(self):
        header = self.header()
        if len(header) + 8 > self.room:
            self.move(-(-(len(header) + 8) // 64) * 64)
        self.file.seek(0)
        self.file.write((self.room - 8).to_bytes(8, "little") + header.ljust(self.room - 8))
        self.file.flush()
        os.fsync(self.file.fileno())

    def move(self, room):
        """Make more room for the header by copying the data behind it."""
        narrow = self.partial, self.lock, self.file
        self.partial, self.lock, self.file = opened(self.path)
        try:
            self.file.seek(room)
            narrow[2].seek(self.room)
            shutil.copyfileobj(narrow[2], self.file, 1 << 24)
            self.room = room
        finally:
            abandon(*narrow)

    def __exit__(self, kind, error, trace):
        try:
            with writing(self.path):
                if kind is None:
                    self.finish()
                    self.file.close()
                    self.partial.chmod(0o666 & ~umask())
                    os.replace(self.partial, self.path)
        finally:
            abandon(self.partial, self.lock, self.file)


def opened(path):
    """A new partial beside `path`, the descriptor of its lock, and the file to write to."""
    partial, lock = begin(path)
    try:
        return partial, lock, open(partial, "r+b")
    except OSError:
        partial.unlink(missing_ok=True)
        os.close(lock)
        raise


def abandon(partial, lock, file):
    file.close()
    partial.unlink(missing_ok=True)
    os.close(lock)


def allocate(file, start, size):
    """Take room on the disk: a full disk shows here, where it is an error, and not as a dead process later."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), start, size)
    elif size:
        file.seek(start)
        for done in range(0, size, 1 << 24):
            file.write(bytes(min(1 << 24, size - done)))
        file.flush()


def read_dump(path: str | Path) -> Dump:
    """A dump from its file; the arrays are views of the file, read when they are used.

    Raises InputError where the file is no dump.
    """
    arrays, metadata, _ = open_safetensors(path)
    again = "write one with `numgemma dump` or `numgemma capture`"
    if "numgemma" not in metadata:
        raise InputError(f"{path}: is not a dump; {again}.")
    meta = parse_object(metadata["numgemma"], f"{path}: its metadata", again)
    if meta.get("schema") != SCHEMA:
        raise InputError(f"{path}: is a {meta.get('schema')!s:.60} file, this version reads {SCHEMA}; dump it again.")
    where = f"{path}: is not a dump, "
    meta = all_typed(meta, META, where, ("axes", "order"))
    all_typed(meta.get("model") or {}, MODEL, f"{where}model: ")
    for part in (meta.get("parts") or {}).values():
        all_typed(part, PART, f"{where}parts: ", ("shape", "at", "slack"))
    axes, order = meta.pop("axes"), meta.pop("order")
    for name in order:
        if not (name in arrays and name in axes and len(axes[name].split()) in (0, arrays[name].ndim)):
            raise InputError(f"{path}: is not a dump, {name!r:.120} is not what its axes say; {again}.")
    if min(meta.get("ids") or [0]) < 0:
        raise InputError(f"{path}: is not a dump, it has a negative token id; {again}.")
    return Dump(meta, {name: arrays[name] for name in order}, axes)


def all_typed(said, types, where, needed=()):
    """An object whose keys, where they are known, have values of their types."""
    wanted = [key for key in types if key in said or key in needed]
    return said | {key: typed(said.get(key), types[key], f"{where}{key}") for key in wanted}


def new_meta(engine, version, model, ids, precision, points=EVERYTHING_BUT_MAPS, text=None, prefill=None):
    """The description that a dump carries.  ids: the token ids of the run, from position 0.

    prefill: how many tokens were run at once, before the others went through the cache; None: all of them.
    """
    return {
        "schema": SCHEMA,
        "engine": {"name": engine, "version": version},
        "model": model,
        "ids": [int(i) for i in ids],
        "positions": list(range(len(ids))),
        "text": text,
        "precision": precision,
        "cache": "none" if prefill is None else f"after {prefill} tokens",
        "fidelity": "exact",
        "coverage": list(points),
    }


def inputs_of(dump: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the run of a dump was given by name: its points `inputs.*`."""
    return {name.removeprefix(POINTS): dump[name] for name in dump if name.startswith(POINTS)}


def made_by(meta: Mapping[str, Any]) -> str:
    """The engine of a dump in words: its name, version and backend, as far as it says them."""
    found = meta.get("engine") or {}
    return " ".join(str(found[key]) for key in ("name", "version", "backend") if found.get(key))


def hashes(media: Media) -> dict[str, str]:
    """Which pictures and sounds stood beside the ids: name -> SHA-256 of its numbers, padding left out.

    Not of mm_token_type_ids: the ids tell those.
    """
    pictures, shots = images(media), frames(media)
    found = {
        "pixel_values": [pixels for pixels, _ in pictures] or whole_images(media),
        "image_position_ids": [positions for _, positions in pictures],
        "pixel_values_videos": [pixels for pixels, _ in shots],
        "video_position_ids": [positions for _, positions in shots],
        "num_frames_per_video": [] if media.num_frames_per_video is None else [media.num_frames_per_video],
        "input_features": clips(media),
    }
    found |= {name: [x] for name, x in named(media).items()}
    return {name: digest(arrays) for name, arrays in found.items() if arrays}


def digest(arrays):
    """One hash of arrays, the same whatever type of integer or how wide a float they came in."""
    total = hashlib.sha256()
    for x in arrays:
        plain = np.ascontiguousarray(x, np.int64 if x.dtype.kind in "iub" else np.float32)
        total.update(f"{list(plain.shape)}".encode() + plain.tobytes())
    return total.hexdigest()
