"""The threads of a run: a crew for all work that is cut into parts, beside the threads of BLAS.

How work is cut here does not follow the number of threads, or does so only where the same number comes out of any cut:
twins.py gives the same bits on 1, 2 or 8 threads.  BLAS cuts its own work by its own threads, and adds up otherwise at
the edges of a piece: what runs on the definitions has the same bits from run to run, but not on another number of
threads.  Between two kinds of processor neither promises more than float32.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import cache, partial
from queue import SimpleQueue

import numpy as np

from numgemma.errors import InputError
from numgemma.extras import BROWSER
from numgemma.ops import choice, cores


def allowed() -> int:
    """How many threads a run may use: as chosen, or as many as there are cores for."""
    return 1 if BROWSER else choice.threads() or cores.usable()


class Busy(threading.local):
    """Whether this thread does a part of something now."""

    here = False
    crew: SimpleQueue = SimpleQueue()  # whose it is, where it is of one
    box: int | None = None  # where it waits, in relay.py


busy = Busy()


def in_parallel(run: Callable, items: Iterable) -> list:
    """What run(item) returns for each, in order, from all threads; what np.errstate says here holds there.

    Inside, work is not cut again: all threads are busy.  Not for products of matrices, unless BLAS is held to one
    thread: the two would fight.
    """
    items = list(items)
    if busy.here or BROWSER:
        return list(map(run, items))
    found, turns, context = [None] * len(items), itertools.count(), copy_context()

    def take():
        """Whoever is free has the next one."""
        before, busy.here = busy.here, True
        try:
            while (turn := next(turns)) < len(items):
                found[turn] = context.copy().run(run, items[turn])
        finally:
            busy.here = before

    together([take] * max(1, min(allowed(), len(items))))
    return found


def in_turn(run: Callable, items: Iterable, threads: int) -> Iterator:
    """run(item) of each, in order, a few at a time: NumPy lets others run while it computes, and the disk is read."""
    if BROWSER:
        yield from map(run, items)
        return
    with ThreadPoolExecutor(threads) as few:
        yield from few.map(run, items)


def shares(n: int, least: int) -> int:
    """Of how many threads each can have a share of range(n) that is no smaller than `least`."""
    return 1 if n < 2 * least or busy.here else min(allowed(), n // least)


def in_shares(run: Callable[[int, int], None], n: int, least: int, after: Callable[[], None] | None = None):
    """run(first, end) over shares of range(n), one for each thread; no share is smaller than `least`.

    after: as in `together`.
    """
    count = shares(n, least)
    if count == 1:
        run(0, n)
    else:
        edges = [n * i // count for i in range(count + 1)]
        together([partial(run, *share) for share in itertools.pairwise(edges)], after)


def together(runs: Sequence[Callable[[], None]], after: Callable[[], None] | None = None):
    """All of these, the first here, the others by the crew; returns when all are done.  What fails there fails here.

    after: what a thread of the crew does when it has done one, and nobody waits for.
    """
    mine, *theirs = runs
    handed: list[Errand] = []
    try:
        for run in theirs:
            errand = Errand(run, after)
            crew(allowed() - 1).put(errand)
            handed.append(errand)
        handed_out[0] += bool(handed)
        mine()
    finally:
        for errand in handed:
            errand.done.acquire()
    for errand in handed:
        if errand.failed:
            raise errand.failed


handed_out = np.zeros(1, np.int64)  # another number whenever something has been: whoever waits elsewhere looks at it


class Errand:
    """What a thread is to do, and a lock that opens when it has; by a Future it would take twice as long."""

    __slots__ = ("after", "done", "failed", "run")

    def __init__(self, run, after):
        self.run, self.after = run, after
        self.failed: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def take(self):
        try:
            self.run()
        except BaseException as error:
            self.failed = error
        finally:
            self.done.release()
        if self.after:
            with suppress(Exception):  # a thread that cannot do that goes on as any other
                self.after()


@cache
def crew(threads: int) -> SimpleQueue:
    """Where shares are put for so many threads, which wait for them; they end with the process."""
    shares: SimpleQueue = SimpleQueue()

    def work():
        busy.here, busy.crew = True, shares
        while True:
            shares.get().take()

    for _ in range(threads):
        threading.Thread(target=work, name="numgemma", daemon=True).start()
    return shares


if hasattr(os, "register_at_fork"):  # a child process has none of its parent's threads
    os.register_at_fork(after_in_child=crew.cache_clear)


def check(threads: int | None):
    if threads is not None and threads < 1:
        raise InputError(f"{threads} threads cannot run anything; give 1 or more.")
