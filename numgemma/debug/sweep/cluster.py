"""Who runs a sweep: Dask's workers, each a process with one thread, since a run changes what holds for a process.

By default a cluster on this machine, which ends with the sweep; or one that stands already.  A worker that dies is
begun again, and its prompt goes to another; a prompt that takes several workers with it is given up, with a row.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from numgemma.debug.sweep.pair import Way, Work, judged, not_run
from numgemma.errors import InputError
from numgemma.extras import package
from numgemma.version import __version__

AHEAD = 3  # prompts for each worker that are handed out at a time
WAIT = 60  # seconds for a worker to be there

Row = dict[str, Any]


def here(works: list[Work], way: Way) -> Iterator[list[Row]]:
    """Without Dask, in this process."""
    for work in works:
        yield judged(work, way)


@contextmanager
def client_of(workers: int, scheduler: str | None):
    """Dask's client: of a cluster that ends with this block, or of the one at an address.

    Raises InputError where Dask is missing, or nobody answers at the address, or its workers have another numgemma.
    """
    distributed = package("distributed", "sweep")
    logging.getLogger("distributed").setLevel(logging.ERROR)
    if scheduler is not None:
        with connected(distributed, scheduler) as client:
            check_workers(client, scheduler)
            yield client
        return
    with started(distributed, workers) as cluster, distributed.Client(cluster) as client:
        yield client


def started(distributed, workers):
    """Workers on this machine.  Raises InputError where one dies before it is there: Dask begins only others again."""
    # memory is bounded by the worker itself (pair.bound): Dask would count the pages of mapped weights
    setting = {"threads_per_worker": 1, "processes": True, "memory_limit": 0, "dashboard_address": None}
    try:
        return distributed.LocalCluster(n_workers=workers, silence_logs=logging.CRITICAL, **setting)
    except (RuntimeError, OSError):
        raise InputError("A worker died before it had started; begin again, or with --workers 0.") from None


def connected(distributed, scheduler):
    try:
        return distributed.Client(scheduler, timeout=WAIT // 4)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"--scheduler {scheduler:.80}: nobody answers ({error}); start one with `dask scheduler`."
        ) from None


def check_workers(client, scheduler):
    found = client.run(version)
    if not found:
        raise InputError(f"--scheduler {scheduler:.80}: has no worker; start some with `dask worker {scheduler:.80}`.")
    others = sorted({str(v) for v in found.values()} - {__version__})
    if others:
        raise InputError(f"--scheduler {scheduler:.80}: its workers have numgemma {others[0]:.60}, not {__version__}.")


def version() -> str:
    return __version__


def everywhere(client, works: list[Work], way: Way, told: Callable[[str], None]) -> Iterator[list[Row]]:
    """The rows of every prompt, as they are finished."""
    distributed = package("distributed", "sweep")
    waiting = iter(works)
    at_once = AHEAD * max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    under_way = {submitted(client, work, way): work for work in islice(waiting, at_once)}
    done = distributed.as_completed(list(under_way))
    for future in done:
        work = under_way.pop(future)
        yield rows_of(future, work, told)
        future.release()
        for more in islice(waiting, 1):
            new = submitted(client, more, way)
            under_way[new] = more
            done.add(new)


def submitted(client, work: Work, way: Way):
    return client.submit(judged, work, way, key=work.key, pure=False)


def rows_of(future, work: Work, told) -> list[Row]:
    """Raises InputError where the cluster has gone: then nothing is known of the prompt."""
    if future.status == "finished":
        return future.result()
    if future.status != "error":
        raise InputError("The cluster has gone; what is done is kept, and the same command goes on from there.")
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        error = InputError("its workers died, one after another; give each more --memory, or a shorter prompt.")
    told(f"prompt {work.prompt}: {error}")
    return [not_run(work, seat.engine, seat.key, error) for seat in work.seats]
