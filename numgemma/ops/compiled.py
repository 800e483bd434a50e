"""Compiled code on disk: kept by numba's own cache, and trusted only where it is what was written.

numba runs what a file holds: a truncated one is a traceback in every run, and garbage in one an illegal instruction.
So each file begins with the SHA-256 of the rest; where that does not fit, the code is compiled and written again.
Where nothing can be written, it is compiled in every run, and one line says so.
"""

import contextlib
import hashlib
import pickle
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import codegen, config
from numba.core.runtime import rtsys
from numba.extending import intrinsic

DIGEST = 32  # bytes
# of the processor that is compiled for: this one, or what NUMBA_CPU_FEATURES names
CHOSEN = vars(config)["CPU_FEATURES"]
FEATURES = (codegen.get_host_cpu_features() if CHOSEN is None else CHOSEN).split(",")
in_llvm: Any = intrinsic  # a step in LLVM's own language; a kernel that takes it leaves out its first parameter
FILES = ("kernels", "lanes", "pairs", "tiles", "attending", "last", "blocks", "columns")
SOURCES = [Path(__file__).with_name(f"{name}.py") for name in FILES]


def kernel(order):
    """Compiled when first called, kept on disk; x / 0 is infinity, as everywhere in this package.

    order: what the compiler may do with sums, as numba's fastmath.
    """

    def compiled(function):
        found: Any = njit(nogil=True, error_model="numpy", fastmath=order)(function)
        try:
            found.enable_caching()
        except (OSError, RuntimeError) as error:  # the latter where numba finds no place at all
            remark(getattr(error, "strerror", None) or "no folder can be written")
        else:
            check(found._cache)
        return found

    return compiled


@cache
def stamp(path):
    """What changes when a file does: numba looks at the file that a function is in, not at those it calls into."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


@cache
def remark(why):
    print(
        f"numgemma: compiled code cannot be kept ({why}) and is made anew in every run, which takes some ten seconds; "
        "name a folder in NUMBA_CACHE_DIR.",
        file=sys.stderr,
    )


def check(kept):
    """Have one function's cache read and write its files with their digest.  kept: numba's FunctionCache"""
    file, save = kept._cache_file, kept.save_overload
    file._source_stamp = (file._source_stamp, *map(stamp, SOURCES))
    file._load_index, file._save_index = partial(load_index, file), partial(save_index, file)
    file._load_data, file._save_data = partial(load_data, file), partial(save_data, file)

    def save_overload(signature, code):
        try:
            save(signature, code)
        except OSError as error:
            remark(error.strerror or "no folder can be written")

    kept.save_overload = save_overload
    kept.load_overload = partial(load_overload, kept)


def load_overload(kept, signature, context):
    """As numba's own, without the tables that its compiler alone asks: they take a third of a second to fill."""
    rtsys.initialize(context)  # which they would do too: no array has memory before
    with kept._guard_against_spurious_io_errors():
        return kept._load_overload(signature, context)


def load_index(file):
    """Signature -> name of the file with its code, if all that was compiled by this numba from this source."""
    with contextlib.suppress(OSError):
        version, stamp, names = read(file._index_path)
        if (version, stamp) == (file._version, file._source_stamp):
            return names
    return {}


def save_index(file, names):
    write(file, file._index_path, (file._version, file._source_stamp, names))


def load_data(file, name):
    return read(file._data_path(name))


def save_data(file, name, data):
    write(file, file._data_path(name), data)


def read(path):
    """What was written there.  Raises OSError, upon which numba compiles, where it is not that any more."""
    digest, data = (found := Path(path).read_bytes())[:DIGEST], found[DIGEST:]
    if hashlib.sha256(data).digest() != digest:
        raise OSError(f"{path} is damaged")
    return pickle.loads(data)


def write(file, path, what):
    data = file._dump(what)
    with file._open_for_write(path) as out:
        out.write(hashlib.sha256(data).digest() + data)
