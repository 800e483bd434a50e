"""What a run does with memory that arrays leave, where the process is the command line's own."""

import contextlib
import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's names for them
KEPT = 1 << 30  # bytes

ours = False  # whether nothing but the command line runs in this process; __main__ says so


def keep_memory() -> None:
    """The memory that an array leaves is the next one's, where the C library is glibc.

    Otherwise large ones go back to the system, which zeroes each page before it gives it again: up to a tenth of a
    tower's time.  It holds for the whole process: one that goes on to other things, as a notebook's, would never give
    back what lies between what it still needs.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(TRIM_THRESHOLD, KEPT)
            mallopt(MMAP_THRESHOLD, KEPT)
