"""The names that the model calls, bound to an implementation of them.  NumPy's is the definition.

    ops.use("numba")                 # from now on, wherever there is a faster twin
    with ops.using("numba"): ...     # for as long as this lasts

Without a choice, whatever compares runs on NumPy, and `generate` on numba where it is installed.

    threads      a pool for work that is cut into parts, beside the threads of BLAS
    definitions  the operations in NumPy: what they are
    kernels      compiled loops
    twins        the slow operations once more, on those loops
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import numpy as np

from numgemma.errors import InputError
from numgemma.extras import package
from numgemma.ops import definitions, threads
from numgemma.ops.definitions import (
    affine,
    attend,
    attend_all,
    attend_band,
    causal_conv,
    center,
    choose_experts,
    clipped_linear,
    conv2d,
    each,
    embed,
    expert_probs,
    gated_gelu,
    gelu_tanh,
    glu,
    layer_norm,
    linear,
    mean_of_bins,
    narrow,
    relu,
    rms_norm,
    rope,
    rope_table,
    scale,
    silu,
    sinusoids,
    softcap,
    standardize,
    widen,
)

__all__ = [
    "affine",
    "attend",
    "attend_all",
    "attend_band",
    "causal_conv",
    "center",
    "choose_experts",
    "clipped_linear",
    "conv2d",
    "each",
    "embed",
    "expert_probs",
    "gated_gelu",
    "gelu_tanh",
    "glu",
    "layer_norm",
    "linear",
    "mean_of_bins",
    "narrow",
    "relu",
    "rms_norm",
    "rope",
    "rope_table",
    "scale",
    "silu",
    "sinusoids",
    "softcap",
    "standardize",
    "widen",
]

BACKENDS = ("numpy", "numba")

chosen: str | None = None  # by `use`
current = "numpy"
blas = ExitStack()  # holds BLAS to fewer threads than it would take


def use(backend: str, threads: int | None = None) -> None:
    """Everything that this process computes from now on is computed by that backend: "numpy" or "numba".

    threads: how many to use; None: as many as the machine has.  For all threads of the process at once: where two run
    models, choose before they begin.  Raises InputError where numba is not installed.
    """
    global chosen
    implementations(backend)  # what cannot be used is said before anything changes
    limit(threads)
    bind(backend)
    chosen = backend


@contextmanager
def using(backend: str) -> Iterator[None]:
    """That backend, for as long as this lasts."""
    global chosen
    with undone():
        bind(backend)
        chosen = backend
        yield


@contextmanager
def undone() -> Iterator[None]:
    """What is chosen while this lasts is undone at its end."""
    global chosen
    before = chosen, current, threads.limit
    try:
        yield
    finally:
        chosen, backend, number = before
        bind(backend)
        if threads.limit != number:
            limit(number)


def fastest(dtype=np.float32) -> str:
    """What `generate` runs on: the backend that was chosen, or numba where it is installed and serves that dtype."""
    served = dtype != np.float64 and find_spec("numba") and find_spec("threadpoolctl")
    return chosen or ("numba" if served else "numpy")


@cache
def implementations(backend: str) -> dict[str, Callable]:
    """What a backend calls by each name: its twin, or the definition where it has none."""
    if backend not in BACKENDS:
        raise InputError(f"Backend '{backend}' is not one of {', '.join(BACKENDS)}.")
    defined = {name: getattr(definitions, name) for name in __all__}
    return defined if backend == "numpy" else {name: getattr(compiled(), name, op) for name, op in defined.items()}


def compiled():
    package("threadpoolctl", "fast")
    package("numba", "fast")
    try:
        return import_module("numgemma.ops.twins")
    except RuntimeError as error:  # what numba says where it may write nowhere
        raise InputError(
            f"numba has no place for compiled code ({error}); name a folder in NUMBA_CACHE_DIR, or choose numpy."
        ) from None


def bind(backend: str) -> None:
    """Names that somebody else has bound, as a fault does, stay as they are."""
    global current
    if backend == current:
        return
    now, then = implementations(current), implementations(backend)
    globals().update({name: op for name, op in then.items() if globals()[name] is now[name]})
    current = backend
    hold_blas()


def limit(number: int | None) -> None:
    """Use so many threads, those of BLAS included; None: as many as the machine has."""
    threads.check(number)
    threads.limit = number
    hold_blas()


def hold_blas() -> None:
    """Each thread of numba's calls BLAS for itself; NumPy leaves the threads to BLAS."""
    blas.close()
    most = 1 if current == "numba" else threads.limit
    if most is not None:
        blas.enter_context(threads.blas_held_to(most))
