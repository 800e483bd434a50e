"""Who computes: a choice of backend and of threads, which holds in the context that makes it.

A context is what contextvars calls one, as with np.errstate: threads that run models at the same time choose each for
itself, and begin with no choice.  Only BLAS is one for the whole process: it has as few threads as the most modest of
the choices in force asks for.
"""

import threading
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from numgemma.ops import blas


@dataclass(frozen=True, eq=False)
class Choice:
    """backend: by name.  threads: None for as many as the machine has.  calls: what runs by an operation's name.

    blas: the threads that BLAS may have meanwhile; None: any number.
    """

    backend: str
    threads: int | None
    calls: Mapping[str, Callable]
    blas: int | None
    maker: int = field(default_factory=threading.get_ident)

    def __post_init__(self):
        weakref.finalize(self, blas.free, id(self)).atexit = False  # a thread may end without a word


here: ContextVar[Choice | None] = ContextVar("numgemma.choice", default=None)


def enter(new: Choice | None) -> Choice | None:
    """That choice holds here from now on; returns the one before, which asks nothing of BLAS until it is back."""
    before = here.get()
    here.set(new)
    if new is not None and new.blas is not None:
        blas.hold(id(new), new.blas)
    if before not in (None, new) and before.maker == threading.get_ident():  # others may be computing by a copy of it
        blas.free(id(before))
    return before


def threads() -> int | None:
    """The number of threads chosen here."""
    chosen = here.get()
    return chosen.threads if chosen else None
