"""The seam through which every activation passes: a Tap looks on, a Recorder keeps, checks and edits."""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import numpy as np

from numgemma.errors import NonFiniteError
from numgemma.smallfloats import is_finite

EVERYTHING_BUT_MAPS = ("*", "!*attn.scores", "!*attn.probs")  # the T x S maps grow with the square of the prompt

NONE: Mapping[str, Any] = MappingProxyType({})

# What stays in float32 in a bfloat16 run, as in Transformers: routing, pooled image patches, attention between frames,
# DiffusionGemma's logits.
KEPT_WIDE = (
    *("*router.probs", "*router.weights", "*vision_tower*.pooler", "audio_tower*.scores", "audio_tower*.probs"),
    "logits",
)


class Tap:
    """Watches tensors flow past.  This one watches nothing."""

    def __call__(self, name, x, axes=""):
        """Called where the tensor `name` is born; returns what the model goes on with."""
        return x

    def at(self, scope):
        """The tap of a module inside this one."""
        return self

    def watches(self, name):
        """Whether anybody looks at the tensor `name`: if not, it need not be made."""
        return False


class Recorder(Tap):
    """Keeps what it sees under its full name, checks every axis letter, applies edits.

    keep(name, x, axes) is called for each tensor whose full name `points` selects.  `edits` maps full names to
    functions array -> array; the model goes on with what they return.  Raises ValueError where an axis letter
    contradicts its size in the enclosing scope or where the dtype is not the run's, NonFiniteError at the first NaN
    or infinity.
    """

    def __init__(self, keep, dtype, points: Iterable[str] = EVERYTHING_BUT_MAPS, edits: Mapping[str, Callable] = NONE):
        self.keep, self.dtype, self.points, self.edits = keep, dtype, tuple(points), edits
        # shared by all scopes: the edits whose point has not come up, and all that came up beside them
        self.unmet, self.passed = set(edits), set[str]()
        self.prefix = ""
        self.sizes: dict[str, int] = {}

    def at(self, scope):
        inner = copy(self)
        inner.prefix, inner.sizes = f"{self.prefix}{scope}.", dict(self.sizes)  # a letter ends with its scope
        return inner

    def watches(self, name):
        full = self.prefix + name
        return full in self.edits or selects(self.points, full)

    def __call__(self, name, x, axes=""):
        full = self.prefix + name
        self.check(full, x, axes)
        if self.edits:
            self.passed.add(full)
        if full in self.edits:
            self.unmet.discard(full)
            x = self.edits[full](x)
            self.check(full, x, axes)
        if selects(self.points, full):
            self.keep(full, x, axes)
        return x

    def check(self, full, x, axes):
        letters = axes.split()
        if len(letters) != x.ndim:
            raise ValueError(f"{full}: '{axes}' cannot name the axes of shape {x.shape}")
        for letter, size in zip(letters, x.shape, strict=True):
            if self.sizes.setdefault(letter, size) != size:
                raise ValueError(f"{full}: {letter} is {self.sizes[letter]} in this scope, here it is {size}")
        if x.dtype.kind != "i" and x.dtype != self.dtype and not selects(KEPT_WIDE, full):
            raise ValueError(f"{full}: is {x.dtype} in a {self.dtype} run")
        finite = is_finite(x)
        if not finite.all():
            where = dict(zip(letters, np.argwhere(~finite)[0].tolist(), strict=True))
            raise NonFiniteError(f"{full}: first non-finite value of the run, at {where}.")


def selects(points, name):
    """Whether a list of globs selects a name: any that matches, unless one with a leading `!` matches too."""
    wanted = any(fnmatchcase(name, p) for p in points if not p.startswith("!"))
    return wanted and not any(fnmatchcase(name, p[1:]) for p in points if p.startswith("!"))
