"""BLAS, which NumPy multiplies matrices with: one library for the whole process, whose threads are counted here."""

import threading
from functools import cache

holders: dict[int, int] = {}  # who asks -> for how many threads
lock = threading.RLock()  # whoever lets go may do so while another asks
before: dict[int, int] = {}  # library -> its threads before anybody asked


@cache
def libraries():
    """The BLAS libraries of this process, or None without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController().select(user_api="blas")


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
    """What is asked for now, unless it is `most`, as before; None: as many as there were before anybody asked.

    threadpoolctl lets the first thread that sets a number set the next one alone: what is counted here goes past that.
    """
    found, least = libraries(), min(holders.values(), default=None)
    if found is None or least == most:
        return
    for library in found.lib_controllers:
        if most is None:
            before[id(library)] = library.get_num_threads()
        set_number = getattr(library, "_real_set_num_threads", library.set_num_threads)
        set_number(before[id(library)] if least is None else least)
