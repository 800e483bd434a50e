"""The threads of a run: one pool for everything that is cut into parts, beside the threads of BLAS.

A part never depends on how many threads there are, so neither do the numbers.
"""

import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from functools import cache

from numgemma.errors import InputError

limit: int | None = None  # set by `ops.use`; None: as many as the machine, or OMP_NUM_THREADS, allows


def allowed() -> int:
    """How many threads a run may use."""
    return limit or machines()


@cache
def machines() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(told)) if told.isdecimal() and int(told) else cores


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "numgemma")


def in_parallel(run: Callable, items: Iterable):
    """run(item) for each, on all threads; what np.errstate says here holds there.

    Not for products of matrices, unless BLAS is held to one thread: the two would fight.
    """
    context = copy_context()
    for _ in pool(allowed()).map(lambda item: context.copy().run(run, item), items):
        pass


def in_shares(run: Callable[[int, int], None], n: int, least: int):
    """run(first, end) over shares of range(n), one for each thread; no share is smaller than `least`."""
    shares = max(1, min(allowed(), n // least))
    mine, *theirs = itertools.pairwise([n * i // shares for i in range(shares + 1)])
    waiting = [pool(allowed()).submit(run, *share) for share in theirs]
    run(*mine)
    for other in waiting:
        other.result()


@cache
def libraries():
    """The BLAS libraries of this process, or None without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController().select(user_api="blas")


def blas_held_to(threads: int) -> AbstractContextManager:
    """BLAS uses so many threads for as long as this lasts, whoever calls it; afterwards as many as before."""
    found = libraries()
    return nullcontext() if found is None else found.limit(limits=threads)


def check(threads: int):
    if threads < 1:
        raise InputError(f"{threads} threads cannot run anything; give 1 or more.")
