"""Arrays that a run takes by name, beside or in the place of token ids: what Transformers passes to such a model.

A family says which (`Family.inputs`), a file holds them, with Transformers' batch axis of 1 or without one.  They
travel as `Media.named`; the forward pass takes each up with `taken`, which makes it a point of the run, `inputs.NAME`.
So a dump holds what its run was given, and can be run again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from numgemma.errors import InputError
from numgemma.prompt.media import Media, told

IDS = "input_ids"  # these become the ids of the prompt
POINTS = "inputs."  # what the names of these points begin with


@dataclass(frozen=True)
class Input:
    """One array.

    axes: letters, as a tap's.  sizes: those letters that the config decides; any other has one size in all arrays of
    its scope, which is what stands before the last dot of a name.  kind: "float" or "integer".
    """

    axes: str
    kind: str = "float"
    sizes: Mapping[str, int] = field(default_factory=dict)
    needed: bool = True


KINDS = {"float": "f", "integer": "iub"}


def read_named(arrays: Mapping[str, np.ndarray], inputs: Mapping[str, Input], where="these inputs") -> dict:
    """The arrays without their batch axis, checked.  inputs: what the family takes, by name

    Raises InputError where a name is not known or missing, or an array has not the axes, the sizes or the kind.
    """
    takes = f"by name this model takes {', '.join(inputs) or 'nothing'}"
    if unknown := sorted(arrays.keys() - inputs.keys()):
        raise InputError(f"{where}: holds {unknown[0]!r:.120}; {takes}.")
    if missing := [name for name, due in inputs.items() if due.needed and name not in arrays]:
        raise InputError(f"{where}: has no {missing[0]}; {takes}.")
    sizes: dict[tuple[str, str], int] = {}
    return {
        name: fitted(name, np.asarray(arrays[name]), inputs[name], sizes, where) for name in inputs if name in arrays
    }


def fitted(name, given, due, sizes, where):
    """One array without its batch axis.  sizes: (scope, letter) -> size, of the arrays before it"""
    letters, scope = due.axes.split(), name.rpartition(".")[0]
    x = given[0] if given.ndim == len(letters) + 1 and len(given) == 1 else given
    known = {letter: due.sizes.get(letter, sizes.get((scope, letter))) for letter in letters}
    fits = x.ndim == len(letters) and all(n in (None, m) for n, m in zip(known.values(), x.shape, strict=True))
    if not (fits and x.size and is_kind(x, due.kind)):
        axes = ", ".join(letter if n is None else f"{letter} = {n}" for letter, n in known.items())
        raise InputError(
            f"{where}: {name} should be {due.kind}s [{axes}], with a batch axis of 1 or without, is {told(given)}."
        )
    sizes.update({(scope, letter): size for letter, size in zip(letters, x.shape, strict=True)})
    return x


def is_kind(x, kind):
    return x.dtype.kind in KINDS[kind] or (kind == "float" and x.dtype.name == "bfloat16")


def named(media: Media) -> Mapping[str, np.ndarray]:
    """The arrays that were given by name."""
    return media.named or {}


def with_inputs(points, media: Media):
    """Globs that keep these arrays too: a dump without them could not be run again."""
    return (*points, f"{POINTS}*") if named(media) else points


def taken(name, axes, media: Media, dtype, tap):
    """One of these arrays as the run takes it up: floats in its precision.  Raises InputError where it was not given"""
    if name not in named(media):
        raise InputError(f"This model takes {name} by name, which was not given; give it with --inputs FILE.")
    x = named(media)[name]
    x = x.astype(np.int64) if x.dtype.kind in "iub" else x.astype(dtype)
    scope, _, leaf = f"{POINTS}{name}".rpartition(".")
    return tap.at(scope)(leaf, x, axes)


def check_prefill(ids, placeholders, prefill, media: Media):
    """What stands beside the ids enters whole, with the first part of the prompt.  placeholders: kind: id"""
    if prefill is not None and named(media):
        raise InputError("What a model takes by name is not cut into parts; leave --prefill out.")
    at = np.flatnonzero(np.isin(ids, list(placeholders.values())))
    if prefill is not None and at.size and prefill <= at[-1]:
        raise InputError(f"A prefill of {prefill} ends before the last placeholder; give {at[-1] + 1} or more.")
