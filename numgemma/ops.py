"""The names that the model calls, bound to an implementation of them.  NumPy's is the definition.

    ops.use("numba")                 # from now on, wherever there is a faster twin
    with ops.using("numba"): ...     # for as long as this lasts

Who has chosen nothing compares with NumPy and generates with numba, where it is installed.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from numgemma import ops_numpy, threads
from numgemma.errors import InputError
from numgemma.extras import package
from numgemma.ops_numpy import (
    affine,
    attend,
    attend_all,
    attend_band,
    causal_conv,
    center,
    choose_experts,
    clip,
    conv2d,
    embed,
    expert_probs,
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
    "clip",
    "conv2d",
    "embed",
    "expert_probs",
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

    threads: how many to use; None: as many as the machine has.  Raises InputError where numba is not installed.
    """
    global chosen
    if threads is not None:
        limit(threads)
    bind(backend)
    chosen = backend


@contextmanager
def using(backend: str) -> Iterator[None]:
    """`use`, for as long as this lasts."""
    before = current
    bind(backend)
    try:
        yield
    finally:
        bind(before)


def fastest() -> str:
    """What `generate` runs on: the backend that was chosen, or numba where it is installed."""
    return chosen or ("numba" if find_spec("numba") and find_spec("threadpoolctl") else "numpy")


def implementation(backend: str, name: str):
    """What a backend calls by that name: its twin, or the definition where it has none."""
    if backend not in BACKENDS:
        raise InputError(f"Backend '{backend}' is not one of {', '.join(BACKENDS)}.")
    if backend == "numpy":
        return getattr(ops_numpy, name)
    return getattr(twins(), name, getattr(ops_numpy, name))


@cache
def twins():
    package("threadpoolctl", "fast")
    package("numba", "fast")
    try:
        return import_module("numgemma.ops_numba")
    except RuntimeError as error:  # what numba says where it may write nowhere
        raise InputError(
            f"numba has no place for compiled code ({error}); name a folder in NUMBA_CACHE_DIR, or choose numpy."
        ) from None


def bind(backend: str) -> None:
    """Names that somebody else has bound, as a fault does, stay as they are."""
    global current
    for name in __all__:
        if globals()[name] is implementation(current, name):
            globals()[name] = implementation(backend, name)
    current = backend
    hold_blas()


def limit(number: int) -> None:
    """Use so many threads, those of BLAS included."""
    threads.check(number)
    threads.limit = number
    hold_blas()


def hold_blas() -> None:
    """Each thread of numba's calls BLAS for itself; NumPy leaves the threads to BLAS."""
    blas.close()
    most = 1 if current == "numba" else threads.limit
    if most is not None:
        blas.enter_context(threads.blas_held_to(most))
