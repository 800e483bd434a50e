"""Weights that stay on disk: the next layer is asked for while one is computed, and let go of where memory is short.

Pages of a mapped file are read when they are touched, a few at a time; asked for ahead, they come as fast as the disk
gives.  A model larger than memory runs at that speed, since pages of a file are dropped, never swapped.
"""

import ctypes
import mmap
import os
import sys
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from numgemma.checkpoint import Weights
from numgemma.extras import BROWSER
from numgemma.weights.packed import parts_of
from numgemma.weights.safetensors import release

SHARE_OF_MEMORY = 0.8
STEP = 1 << 22  # bytes asked for at once: the disk gives its best, and nobody waits long for the interpreter
POPULATE_READ = 22  # Linux's advice to read pages and map them, whatever number; by MADV_WILLNEED it reads one window
HEADS = ("lm_head.weight", "embed_tokens.weight")


def streamed(w: Weights, layers: int) -> Weights:
    """The same weights; who enters a layer makes the next one come, and the one before go if not all can stay."""
    tensors = by_layer(w, layers)
    larger = not can_stay(tensors)
    asked: set[int] = set()

    def entered(scope):
        i = layer_of(scope)
        if i is None:
            return
        for ahead in {i, i + 1} - asked:
            if ahead < layers:
                asked.add(ahead)
                ask(tensors[ahead])
        if larger:
            asked.discard(i)
            for x in tensors[i - 1]:  # of the first layer, the last of the pass before
                for part in parts_of(x):
                    release(part)

    return replace(w, entered=entered)


def read_ahead(w: Weights, layers: int) -> None:
    """Have all layers come in their order, and what makes logits, while a run is prepared; none if not all can stay."""
    if can_stay(by_layer(replace(w, entered=str), layers)):
        for i in range(layers):
            w.at(f"layers.{i}")  # as who enters it does
        ask([w[name] for name in HEADS if name in w][:1])


def by_layer(w, layers):
    """All tensors of each layer."""
    return [[scope[name] for name in scope] for scope in (w.at(f"layers.{i}") for i in range(layers))]


def can_stay(tensors):
    return sum(x.nbytes for some in tensors for x in some) <= SHARE_OF_MEMORY * available_memory()


def layer_of(scope):
    head, _, number = scope.partition(".")
    return int(number) if head == "layers" and number.isdecimal() else None


def ask(tensors):
    """Have them read while something else is computed, where that can be.

    Experts are left out: a token reads a few of them, by what it chooses.
    """
    if hasattr(mmap, "MADV_WILLNEED") and not BROWSER:
        for x in (part for w in tensors if w.ndim < 3 for part in parts_of(w) if part.nbytes > mmap.PAGESIZE):
            disk().put(x)


@cache
def disk() -> SimpleQueue:
    """Where arrays are put for two threads, of which one waits for the disk; they end with the process, done or not."""
    wanted: SimpleQueue = SimpleQueue()

    def work():
        while True:
            come(wanted.get())

    for _ in range(2):
        threading.Thread(target=work, name="numgemma-disk", daemon=True).start()
    return wanted


if hasattr(os, "register_at_fork"):  # a child process has none of its parent's threads
    os.register_at_fork(after_in_child=disk.cache_clear)


def come(x):
    """Have the pages of an array read."""
    first, end = x.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE, x.ctypes.data + x.nbytes
    for start in range(first, end, STEP):
        size = min(STEP, end - start)
        if sys.platform != "linux" or madvise(start, size, POPULATE_READ):  # which came with Linux 5.14
            madvise(start, size, mmap.MADV_WILLNEED)


def madvise(start, size, advice):
    """Zero if it was taken; unlike mmap's own, this one lets other threads of Python run."""
    return libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)


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
