"""Arrays that remember which points they were computed from, through whatever NumPy does with them.

A mark is a name.  What is made of marked arrays bears the marks of all of them, also where one of them only said which
rows to take.  What is written into a marked array adds its marks.
"""

import inspect
import threading
from contextlib import ExitStack, contextmanager

import numpy as np

from numgemma import ops

NOTHING: frozenset[str] = frozenset()
FRESH = (np.zeros_like, np.empty_like, np.ones_like, np.full_like)  # these take a shape from an array, and no number

ONE_AT_A_TIME = threading.Lock()  # operations are swapped for all threads


class Marked(np.ndarray):
    """An array with the names of the points in it."""

    of: frozenset[str] = NOTHING

    def __array_finalize__(self, source):
        self.of = getattr(source, "of", NOTHING)

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        names = marks((inputs, kwargs))
        places = {"out": bare(out)} if out else {}
        y = getattr(ufunc, method)(*bare(inputs), **bare(kwargs), **places)
        return tuple(mark(x, names | marks(x)) for x in out) if len(out) > 1 else mark(out[0] if out else y, names)

    def __array_function__(self, function, types, args, kwargs):
        y = function(*bare(args), **bare(kwargs))
        return mark(y, NOTHING if function in FRESH else marks((args, kwargs)))

    def __getitem__(self, index):
        return mark(super().__getitem__(bare(index)), self.of | marks(index))

    def __setitem__(self, index, value):
        super().__setitem__(bare(index), bare(value))
        self.of |= marks((index, value))


def mark(x, names):
    """The same with these names added; what is no array stays as it is."""
    if isinstance(x, tuple | list):
        return type(x)(mark(part, names) for part in x)
    if not isinstance(x, np.ndarray):
        return x
    y = x if isinstance(x, Marked) else x.view(Marked)
    y.of |= names
    return y


def bare(x):
    """The same without marks."""
    if isinstance(x, tuple | list):
        return type(x)(bare(part) for part in x)
    if isinstance(x, dict):
        return {key: bare(part) for key, part in x.items()} if x else x
    return x.view(np.ndarray) if isinstance(x, Marked) else x


def marks(x) -> frozenset[str]:
    """The names in an array, or in all arrays of a tuple, a list or a dict."""
    if isinstance(x, Marked):
        return x.of
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, tuple | list) else ()
    return NOTHING.union(*(marks(part) for part in parts if isinstance(part, BEARERS)))


BEARERS = (Marked, tuple, list, dict)


@contextmanager
def carrying():
    """The model's operations carry marks from what they take to what they return, for as long as this lasts.

    Each is taken as a whole: what it makes reads all that it takes.  Those with a tap are traced from inside.
    """
    with ONE_AT_A_TIME, ops.using("numpy"), ExitStack() as stack:
        for name in ops.__all__:
            if name != "each" and "tap" not in inspect.signature(ops.DEFINED[name]).parameters:
                stack.callback(setattr, ops, name, getattr(ops, name))
                setattr(ops, name, whole(getattr(ops, name)))
        yield


def whole(op):
    """An operation that marks its result with all that its arguments are marked with."""

    def marking(*args, **kwargs):
        names = marks((args, kwargs))
        return mark(op(*bare(args), **bare(kwargs)), names) if names else op(*args, **kwargs)

    return marking
