"""Weights that stay on disk: the next layers are asked for while one is computed, and let go of where memory is short.

Pages of a mapped file are read when they are touched, a few at a time; asked for ahead, they come as fast as the disk
gives.  A model larger than memory runs at that speed, since pages of a file are dropped, never swapped.
"""

import ctypes
import mmap
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.lib.array_utils import byte_bounds

from numgemma.checkpoint import Weights
from numgemma.extras import BROWSER
from numgemma.weights.packed import parts_of
from numgemma.weights.safetensors import release

SHARE_OF_MEMORY = 0.8
AHEAD = 8  # layers: so the disk reads in one run, also while one layer waits for its own
LARGE = 1 << 26  # bytes of a table that are not read whole for some rows
ASKED = 1 << 19  # bytes that Linux reads when it is asked to, at least
LINUX = sys.platform == "linux"
POPULATE_READ = 22  # Linux's MADV_POPULATE_READ, since 5.14


def streamed(w: Weights, layers: int, headed: bool) -> Weights:
    """The same weights; who enters a layer makes the next come, and the one before go if not all can stay.

    headed: whether a head that is read whole stands behind the layers; it comes as one more, and stays.
    """
    tensors = [[w.at(f"layers.{i}")[name] for name in w.at(f"layers.{i}")] for i in range(layers)]
    if headed:
        tensors.append([w["lm_head.weight" if "lm_head.weight" in w else "embed_tokens.weight"]])
    larger = sum(x.nbytes for some in tensors for x in some) > SHARE_OF_MEMORY * available_memory()
    asked: set[int] = set()

    def come(*these):
        for i in these:
            if i < len(tensors) and i not in asked:
                asked.add(i)
                ask(tensors[i])

    def entered(scope):
        i = layer_of(scope)
        if i is None:
            return
        come(*range(i, i + 1 + (1 if larger else AHEAD)))
        if larger:
            asked.discard(i)
            for x in tensors[(i - 1) % layers]:  # of the first layer, the last of the pass before
                for part in parts_of(x):
                    release(part)

    return replace(w, entered=entered)


def layer_of(scope):
    head, _, number = scope.partition(".")
    return int(number) if head == "layers" and number.isdecimal() else None


def ask(tensors):
    """Have them read while something else is computed, where that can be."""
    if hasattr(mmap, "MADV_WILLNEED") and not BROWSER:
        disk().submit(will_need, tensors)


@cache
def disk():
    """One thread that waits for the disk."""
    return ThreadPoolExecutor(1, "numgemma-disk")


if hasattr(os, "register_at_fork"):  # a child process has none of its parent's threads
    os.register_at_fork(after_in_child=disk.cache_clear)


def will_need(tensors):
    """Have the pages of these tensors read.  Experts are left out: a token reads a few of them, by what it chooses."""
    for x in (part for w in tensors if w.ndim < 3 for part in parts_of(w)):
        if x.nbytes > mmap.PAGESIZE:
            read(x)


def read(x):
    """Returns when the pages are there, and mapped: by two megabytes where the file system can, which are looked up
    sooner.  Where the system does not know how, it is asked to read, bit by bit: of more it would take the beginning.
    """
    low, high = byte_bounds(x)
    if LINUX:
        advise(low, high, mmap.MADV_HUGEPAGE)
        if advise(low, high, POPULATE_READ) == 0:
            return
    for start in range(low, high, ASKED):
        advise(start, min(start + ASKED, high), mmap.MADV_WILLNEED)


def rows_needed(rows, table):
    """Have these rows of a large table read together: by a touch each would come alone, with megabytes beside it."""
    if isinstance(table, np.ndarray) and table.nbytes > LARGE and hasattr(mmap, "MADV_WILLNEED") and not BROWSER:
        start, step = table.ctypes.data, table.strides[0]
        for row in sorted(set(rows.ravel().tolist())):
            advise(start + step * row, start + step * (row + 1), mmap.MADV_WILLNEED)


def advise(low, high, advice):
    """madvise on the pages of these bytes of memory; 0 where that worked."""
    start = low // mmap.PAGESIZE * mmap.PAGESIZE
    return madvise(ctypes.c_void_p(start), ctypes.c_size_t(high - start), advice)


def madvise(*args):
    return libc().madvise(*args)  # unlike mmap's, this one lets other threads of Python run


@cache
def libc():
    return ctypes.CDLL(None)


def available_memory() -> float:
    """Bytes that this process may still take without swapping, cached files counted as free; infinite if unknown."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return np.inf
    return min(free, group_limit())


def group_limit() -> float:
    """What a container may take."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return float(Path(file).read_text())
        except (OSError, ValueError):  # absent, or "max"
            continue
    return np.inf
