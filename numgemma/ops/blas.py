"""BLAS, which NumPy multiplies matrices with: one library for the whole process, whose threads are counted here."""

import threading
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

holders: dict[int, int] = {}  # who asks -> for how many threads
lock = threading.RLock()  # whoever lets go may do so while another asks
before: Any = None  # what sets BLAS back


@cache
def libraries():
    """The BLAS libraries of this process, or None without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController().select(user_api="blas")


def held_to(threads: int) -> AbstractContextManager:
    """BLAS uses so many threads for as long as this lasts, whoever calls it; afterwards as many as before."""
    found = libraries()
    return nullcontext() if found is None else found.limit(limits=threads)


def hold(who: int, threads: int):
    """Until it is freed again, BLAS has no more threads than these."""
    with lock:
        most = min(holders.values(), default=None)
        holders[who] = threads
        settle(most)


def free(who: int):
    with lock:
        most = min(holders.values(), default=None)
        if holders.pop(who, None) is not None:
            settle(most)


def settle(most: int | None):
    """What is asked for now, unless it is `most`, as before; whoever was first knows how many threads there were."""
    global before
    found, least = libraries(), min(holders.values(), default=None)
    if found is None or least == most:
        return
    if least is None:
        before.restore_original_limits()
        before = None
        return
    limiter = found.limit(limits=least)
    before = before or limiter
