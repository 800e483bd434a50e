"""What the disk and the system's memory of it do to a measurement."""

import os


def forget(files):
    """Have the system drop what it holds of the files, so that the next reading is from the disk."""
    for file in files:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())  # a page that is not yet written stays
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
