"""How many processors this process may use: those it may run on, a container's share of their time, OMP_NUM_THREADS."""

import math
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path


@cache
def usable() -> int:
    """Threads that a run has by default, at least one."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    limits = [int(told)] if told.isdecimal() and int(told) else []
    return min([here, *limits, *(max(1, math.ceil(share)) for share in shares())])


def shares(root: Path = Path("/")) -> Iterator[float]:
    """Processors' worth of time that control groups leave this process.

    Inside a container the path of the group may be one of the world outside: then it is the top of what is mounted.
    """
    mounts = root / "sys/fs/cgroup"
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            yield from quotas(mounts, path, ("cpu.max",))
        elif "cpu" in controllers.split(","):
            for mounted in (controllers, "cpu"):
                yield from quotas(mounts / mounted, path, ("cpu.cfs_quota_us", "cpu.cfs_period_us"))


def quotas(top: Path, path: str, files: Sequence[str]) -> Iterator[float]:
    """Of a group and of all above it: quota by period, of which there is none where the quota is "max" or -1."""
    group = top / path.lstrip("/")
    for folder in (group, *group.parents):
        words = " ".join(read(folder / file) for file in files).split() if folder.is_relative_to(top) else []
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
            yield int(words[0]) / int(words[1])


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
