"""What every reader ends with: a Dump that says how exact it is, and what it could not use."""

import codecs
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from numgemma.debug.readers.names import place_in_order
from numgemma.dump import SCHEMA, Dump
from numgemma.errors import InputError

NAMED = 200  # of the tensors that were not used, so many are listed; the others are counted

PRECISIONS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Haul:
    """What a reader brings home, by point.  unused: label -> why, of tensors that are no point of ours"""

    arrays: dict[str, np.ndarray]
    axes: dict[str, str]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)  # of points that are known in part (overlap.py)
    unused: dict[str, str] = field(default_factory=dict)

    def sampled(self) -> bool:
        """Whether values of some point are missing."""
        return any(math.prod(part["shape"]) != self.arrays[name].size for name, part in self.parts.items())


def make_dump(path, engine, haul: Haul, *, ids=None, precision=None, rounded=""):
    """A Dump of what a reader found.  Raises InputError where that is nothing.

    ids: None where the engine did not record them.  rounded: how the values known in part were, as "rounded:4dp".
    """
    if not haul.arrays:
        few = list(haul.unused.items())[:3]
        if few and few[0][1].startswith("has the shape"):
            raise InputError(f"{path}: {few[0][0]:.60} {few[0][1]}; dump what the modules return, as it is.")
        some = ", ".join(label for label, _ in few) or "nothing"
        raise InputError(f"{path}: no tensor in it is a point of ours (it holds {some}); give a map file with --map.")
    arrays = {name: haul.arrays[name] for name in sorted(haul.arrays, key=place_in_order)}
    meta = {
        "schema": SCHEMA,
        "engine": {"name": engine, "version": ""},
        "model": {},
        "text": None,
        "precision": precision or prevailing(arrays),
        "fidelity": "sampled" if haul.sampled() else rounded if haul.parts else "exact",
        "coverage": list(arrays),
        "unused": dict(list(haul.unused.items())[:NAMED]),
        "unused_count": len(haul.unused),
    }
    if haul.parts:
        meta["parts"] = haul.parts
    if ids is not None:
        meta |= {"ids": [int(i) for i in ids], "positions": list(range(len(ids)))}
    return Dump(meta, arrays, haul.axes)


def prevailing(arrays):
    """The precision that most values have."""
    counts = dict.fromkeys(PRECISIONS, 0)
    for x in arrays.values():
        if str(x.dtype) in counts:
            counts[str(x.dtype)] += x.size
    return max(counts, key=lambda name: counts[name]) if any(counts.values()) else "float32"


def token_ids(x, path):
    """Token ids from an array [T] or [1, T]."""
    x = np.asarray(x)
    if x.ndim == 2 and len(x) == 1:
        x = x[0]
    if x.ndim != 1 or x.dtype.kind not in "iu" or not 0 < x.size < 10_000_000:
        raise InputError(f"{path}: token ids should be integers of the shape [T] or [1, T], found {list(x.shape)}.")
    return [int(i) for i in x]


def encoding_of(file) -> str:
    """UTF-16 where a log begins as PowerShell's redirection writes one, else UTF-8.  file: binary, at its beginning"""
    mark = file.read(2)
    file.seek(0)
    return "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8"


def summary(dump):
    """One line on what was read and what was not, for people; "" for a dump of our own."""
    if "unused_count" not in dump.meta:
        return ""
    some = ", ".join(list(dump.meta["unused"])[:3])
    left = f"; {dump.meta['unused_count']} tensors are no point of ours ({some}, ...)" if some else ""
    return f"{dump.meta['engine']['name']}: {len(dump)} points, {dump.meta['fidelity']}{left}"
