"""Whose tensor is it: other engines' names -> our points, with their axes, batch axis dropped, joined axes split."""

import re
from functools import cache

import numpy as np

from numgemma.errors import InputError
from numgemma.graph import joined, shallow_graphs, unstacked

STREAMS = "layers.{}.out"  # of Gemma 3n A T D, of all others T D
NUMBER = re.compile(r"(?<=\blayers\.)\d+")


@cache
def known_points() -> dict[str, str]:
    """Every point of the official models, `{}` for the number of its layer -> its axes, in order of execution."""
    found: dict[str, str] = {}
    for graph in shallow_graphs():
        axes = {template(name): birth.axes for name, birth in graph.points.items()}
        found = {name: found.get(name) or axes[name] for name in joined(found, axes)}
    return found


def template(name):
    """A name without its numbers: of the picture or the sound, and of the layer."""
    return NUMBER.sub("{}", re.sub(r"^(\w+)@\d+\.", r"\1.", name))


@cache
def firsts() -> dict[str, int]:
    """Where each scope, and each point, first comes in that order."""
    found: dict[str, int] = {}
    for i, name in enumerate(known_points()):
        for end in [m.start() for m in re.finditer(r"[.]", name)] + [len(name)]:
            found.setdefault(name[:end], i)
    return found


def place_in_order(name):
    """A sort key: our points in the order in which a run makes them, whatever order a folder lists them in."""
    room, _, number = name.partition(".")[0].partition("@")
    scopes, numbers = template(name).split(".{}"), NUMBER.findall(name)
    key = [first(room), int(number or 0)]
    for i, layer in enumerate(numbers):
        key += [first(".{}".join(scopes[: i + 1])), int(layer)]
    return (*key, first(template(name)))


def first(scope):
    """Where a scope first comes; what is not known comes last."""
    return firsts().get(scope, len(firsts()))


def ours(name):
    """The point a tensor of that name is, or None: module paths, with or without the usual prefixes."""
    name = re.sub(r"^[A-Z]\w*\.", "", name)  # the class that Transformers' debugger puts first
    name = re.sub(r"^((model|language_model|base_model|transformer)\.)*", "", name)
    name = re.sub(r"\.(output|outputs|weight_output)$", "", name)
    name = f"{name}.out" if re.fullmatch(r"layers\.\d+", unstacked(name)) else name
    return name if axes_of(name) is not None else None


def axes_of(name):
    """The axes of one of our points; None for a name that is no point."""
    return known_points().get(template(name))


def sizes_for(name, config):
    """Axis letter -> size in that point's layer, as far as the model's config says."""
    if config is None:
        return {}
    sizes = {"L": len(config.layers), "P": config.per_layer}
    match = re.match(r"layers\.(\d+)\.", unstacked(name))
    if match and int(match[1]) < len(config.layers):
        spec = config.layers[int(match[1])]
        sizes |= {"N": spec.N, "K": spec.K, "H": spec.H}
    return sizes


def fit(name, x, sizes, batched):
    """A tensor without its batch axis, its joined axes split where the sizes are known: (x, axes).

    Raises Unfit where the shape cannot be that point's.
    """
    x, axes = as_ours(name, x)
    letters = axes.split()
    if axes == "T V" and x.ndim == 1:
        x = x[None]  # of the last token alone
    if not letters:
        return (x[0] if batched and x.ndim > 2 and x.shape[0] == 1 else x), ""
    if x.ndim == len(letters) + 1 or (batched and x.ndim == len(letters) > 2):
        if x.shape[0] != 1:
            raise Unfit(f"has the shape {list(x.shape)}: more than one sequence, or not '{axes}'")
        x = x[0]
    if x.ndim == len(letters) - 1 and len(letters) == 3:
        front, *back = letters
        if all(sizes.get(letter) for letter in back) and sizes[back[0]] * sizes[back[1]] == x.shape[1]:
            return x.reshape(x.shape[0], sizes[back[0]], sizes[back[1]]), axes
        return x, f"{front} {''.join(back)}"
    if x.ndim == 3 and axes == "T LP":
        return x.reshape(x.shape[0], -1), axes
    if x.ndim != len(letters):
        raise Unfit(f"has the shape {list(x.shape)}, not '{axes}'")
    return x, axes


def as_ours(name, x):
    """A tensor as Transformers lays it out, if it is one that we lay out otherwise: (x, our axes).

    With a batch axis, the map of a convolution net has its channels first, and a layer's streams stand before it.
    """
    axes = axes_of(name) or ""
    if axes.startswith("Y X") and x.ndim == 4:
        return np.moveaxis(x, 1, 3), axes
    if template(name) == STREAMS and x.ndim == 4 and x.shape[1] == 1:
        return x.swapaxes(0, 1), "A T D"
    return x, axes


class Unfit(ValueError):
    """A tensor that has a point's name and not its shape; the text says how."""


def is_batched(shapes, path):
    """Whether the stream comes as 1 T D: decided once for a dump, since of [1, T, NH] alone nobody can tell.

    shapes: (point, shape) pairs.  Raises InputError for more than one sequence.
    """
    batches = {shape[0] for name, shape in shapes if axes_of(name) in ("T D", "T V", "T F") and len(shape) == 3}
    if batches - {1}:
        raise InputError(f"{path}: is of a batch of {max(batches)} sequences; dump one sequence, without padding.")
    return bool(batches)
