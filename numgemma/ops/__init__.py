"""The names that the model calls, bound to an implementation of them.  NumPy's is the definition.

    ops.use("numba")                 # from now on, wherever there is a faster twin
    with ops.using("numba"): ...     # for as long as this lasts

Without a choice, whatever compares runs on NumPy, and `generate` on numba where it is installed.  A choice holds in the
context that makes it, and so in one thread; each call looks it up, which costs some tenths of a microsecond.

    blas         the library that multiplies matrices, and how many threads it may have
    choice       who computes, context by context
    cores        how many processors this process may use
    threads      a crew for work that is cut into parts, beside the threads of BLAS
    definitions  the operations in NumPy: what they are
    streams      the same for Gemma 3n's decoder
    maps         the same for maps of a picture, and for its sound
    vectors      the same for what becomes one vector
    canvas       the same for DiffusionGemma's decoder
    compiled     what numba has compiled, on disk
    kernels      compiled loops
    lanes        thirty-two numbers at once, as a value in a kernel
    pairs        bfloat16 two by two, where the processor multiplies it so
    tiles        a matrix times many rows
    attending    attention of many queries
    last         what a frame of sound takes from those before it
    blocks       one token's product with GGUF's blocks of codes
    relay        a matrix times a few rows, by threads that stay awake
    columns      one token's product with codes that lie transposed
    coded        one token's product with any codes of a few bits
    decoded      rows of codes as float32, for many tokens
    twins        the slow operations once more, on those loops
"""

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec

import numpy as np

from numgemma.errors import InputError
from numgemma.extras import package
from numgemma.ops import canvas, choice, definitions, maps, streams, threads, vectors
from numgemma.ops.canvas import mean_row
from numgemma.ops.choice import Choice, here
from numgemma.ops.definitions import (
    affine,
    attend,
    attend_all,
    attend_band,
    attend_frames,
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
from numgemma.ops.maps import (
    attend_places,
    channel_norm,
    conv,
    conv_ahead,
    cumulative_norm,
    depthwise,
    mean_of_squares,
    scale_queries,
)
from numgemma.ops.streams import as_large_as, divide, gaussian_topk, mean_of_streams, mix, tanh
from numgemma.ops.vectors import mean_of_tokens, unit

__all__ = [
    "affine",
    "as_large_as",
    "attend",
    "attend_all",
    "attend_band",
    "attend_frames",
    "attend_places",
    "causal_conv",
    "center",
    "channel_norm",
    "choose_experts",
    "clipped_linear",
    "conv",
    "conv2d",
    "conv_ahead",
    "cumulative_norm",
    "depthwise",
    "divide",
    "each",
    "embed",
    "expert_probs",
    "gated_gelu",
    "gaussian_topk",
    "gelu_tanh",
    "glu",
    "layer_norm",
    "linear",
    "mean_of_bins",
    "mean_of_squares",
    "mean_of_streams",
    "mean_of_tokens",
    "mean_row",
    "mix",
    "narrow",
    "relu",
    "rms_norm",
    "rope",
    "rope_table",
    "scale",
    "scale_queries",
    "silu",
    "sinusoids",
    "softcap",
    "standardize",
    "tanh",
    "unit",
    "widen",
]

BACKENDS = ("numpy", "numba")


DEFINED = ChainMap(vars(definitions), vars(streams), vars(maps), vars(vectors), vars(canvas))


def looked_up(name: str) -> Callable:
    """The operation of that name: whatever is chosen where it is called."""

    @wraps(DEFINED[name])
    def op(*args, **kwargs):
        chosen = here.get()
        return (chosen.calls if chosen else DEFINED)[name](*args, **kwargs)

    return op


globals().update({name: looked_up(name) for name in __all__})


def use(backend: str, threads: int | None = None) -> None:
    """Everything that this context computes from now on is computed by that backend: "numpy" or "numba".

    threads: how many to use; None: as many as the machine has.  Another thread begins without a choice and makes its
    own, as with np.seterr.  Raises InputError where numba is not installed.
    """
    choice.enter(chosen_as(backend, threads))


@contextmanager
def using(backend: str, threads: int | None = None) -> Iterator[None]:
    """That backend, for as long as this lasts.  threads: how many to use; None: as many as before."""
    threads = choice.threads() if threads is None else threads
    same = (chosen(), choice.threads()) == (backend, threads)
    before = here.get() if same else choice.enter(chosen_as(backend, threads))
    try:
        yield
    finally:
        choice.enter(before)


@contextmanager
def undone() -> Iterator[None]:
    """What is chosen while this lasts is undone at its end."""
    before = here.get()
    try:
        yield
    finally:
        choice.enter(before)


def chosen() -> str | None:
    """The backend that was chosen here, if any was."""
    found = here.get()
    return found.backend if found else None


def current() -> str:
    """The backend that computes here."""
    return chosen() or "numpy"


def fastest(dtype=np.float32) -> str:
    """What `generate` runs on: the backend that was chosen, or numba where it is installed and serves that dtype."""
    return chosen() or ("numba" if dtype != np.float64 and installed() else "numpy")


@cache
def installed() -> bool:
    return bool(find_spec("numba") and find_spec("threadpoolctl"))


def chosen_as(backend: str, number: int | None) -> Choice:
    calls = implementations(backend)  # what cannot be used is said before anything changes
    threads.check(number)
    # each thread of numba's calls BLAS for itself; NumPy leaves the threads to BLAS
    return Choice(backend, number, calls, 1 if backend == "numba" else number)


@cache
def implementations(backend: str) -> Mapping[str, Callable]:
    """What a backend calls by each name: its twin, or the definition where it has none."""
    if backend not in BACKENDS:
        raise InputError(f"Backend '{backend}' is not one of {', '.join(BACKENDS)}.")
    if backend == "numpy":
        return DEFINED
    twins = with_numba()
    return {name: getattr(twins, name, DEFINED[name]) for name in __all__}


def with_numba():
    package("threadpoolctl", "fast")
    package("numba", "fast")
    return import_module("numgemma.ops.twins")
