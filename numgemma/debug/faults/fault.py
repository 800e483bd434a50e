"""What a fault is, and how a model is run with one: a function or a layer's row is changed for as long as that lasts.

A fault names the function that it changes, as "module.function" or as a part of the family ("block"), and is a
function of its own: of the original, and of those of its arguments that it asks for by name.  `original(...)` is the
original with the same arguments, but for those that are given to it:

    @fault("T12", "layer_scalar is left at 1", "load the buffers of the checkpoint too, not only its parameters",
           shows="layers.*.out", swaps="block")
    def scalar_dropped(original, w):
        return original(w=no_scalar(w))

`Rewired` helps: a tap that gives a point another equation, in terms of the points before it.  What is only another
row of the layer table is written with `row_fault`, as a function LayerSpec -> LayerSpec.
"""

import sys
from collections import ChainMap
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from importlib import import_module
from inspect import CO_VARKEYWORDS, signature, unwrap

from numgemma import ops
from numgemma.debug.measure.discrete import layer_of
from numgemma.errors import InputError
from numgemma.graph import SWAPS, counted, graph_of, unstacked
from numgemma.trace import Tap, selects


@dataclass(frozen=True)
class Fault:
    """One mistake that an implementation can make.

    shows: the first point whose value it changes, as globs.
    swaps: the function or part it replaces, or "" where it changes rows of the layer table.
    within: only while this function runs.
    at(spec, model): whether it can act in that layer, if that has the point; spec is None outside the layers.  It is
    asked in every family that has what is swapped, so it asks first for a weight, a part or a field that is not in all.
    past_window: it shows only in prompts longer than the window.
    by_kind: it acts in all layers of a kind or in none, since a rope table or a mask is made once for all of them.
    across: what it does in one layer shows in a later one.
    later: it shows only in a pass that is not the first.
    media(given): whether it can act with what enters beside the text, a media.Media, if that brings the point.
    """

    id: str
    says: str
    fix: str
    shows: str
    swaps: str
    change: Callable
    within: str | None = None
    at: Callable = lambda spec, model: True
    past_window: bool = False
    by_kind: bool = False
    across: bool = False
    later: bool = False
    media: Callable = lambda given: True

    @property
    def layered(self):
        """Whether it acts in decoder layers, and not before or after them."""
        return unstacked(self.shows.split()[-1]).startswith(("layers.", "rotary_emb."))

    def shown_by(self, name):
        """Whether that point can be the first that shows it."""
        return shows_at(self.shows, name)

    def places(self, model) -> tuple:
        """The layers of this model where it can act; (None,) for a fault outside them, () where it cannot act."""
        if not self.fits(model.family):
            return ()
        rows = model.outline.layers if self.layered else (None,)
        there = {layer_of(name) for name in self.points(model, "image" in kinds(model), "audio" in kinds(model))}
        rows = [spec for spec in rows if None in there or (spec and spec.index in there)]
        return tuple(spec.index if spec else None for spec in rows if self.at(spec, model))

    def points(self, model, pictures, sounds) -> tuple[str, ...]:
        """Those of a model, on a prompt with so many pictures and sounds, that can be the first to show it."""
        return shown(graph_of(model.checkpoint.config, int(pictures), int(sounds)), self.shows)

    def can_show(self, model, media) -> bool:
        """Whether a run with what enters beside the text has a point that shows it."""
        pictures, sounds = (min(n, 1) for n in counted(media))
        there = self.media(media) and self.points(model, pictures, sounds)
        return bool(there and self.places(model))

    def fits(self, family):
        """Whether the family has the parts that this is about, with the arguments that it asks for."""
        if any(name and "." not in name and name not in family.parts for name in (self.swaps, self.within)):
            return False
        there = parameters(self.swaps, family) if self.swaps else {"spec", "model"}
        return there >= {*asks(self.change)[1 if self.swaps else 0 :]} - {"**"}


def kinds(model):
    return model.family.placeholders(model.config)


def has_key(model, key) -> bool:
    """Whether the config of the model's text has a key, with whatever value: not every family's has it."""
    return hasattr(getattr(model.config, "text", None), key)


@lru_cache(maxsize=1024)
def shown(graph, globs) -> tuple[str, ...]:
    return tuple(name for name in graph.points if shows_at(globs, name))


def shows_at(globs, name) -> bool:
    """Whether globs, divided by spaces, mean a point: by its whole name or without the stack it is in."""
    return selects(globs.split(), name) or selects(globs.split(), unstacked(name))


CATALOGUE: dict[str, Fault] = {}


def fault(id, says, fix, **fields):
    """Enters the function below it into the catalogue."""

    def enter(change):
        CATALOGUE[id] = Fault(id, says, fix, change=change, **fields)
        return change

    return enter


def row_fault(id, says, fix, **fields):
    """Enters a change of the layer table: a function of spec and model that returns the wrong spec."""

    def enter(row):
        CATALOGUE[id] = Fault(id, says, fix, swaps="", change=row, **fields)

    return enter


def find(id) -> Fault:
    if id not in CATALOGUE:
        raise InputError(f"No fault is called '{id}'; the catalogue has {', '.join(CATALOGUE)}.")
    return CATALOGUE[id]


@contextmanager
def applied(model, *ids, layers=None):
    """Every run of the model makes these mistakes, for as long as this lasts.

        with applied(model, "T07", layers="full"):
            broken = model.record(ids)

    layers: "all", "full", "sliding", "shared" or a list; None: wherever the fault can act, also outside the layers.
    Raises InputError where a fault cannot act.  Not for two threads at once, and not around `replay`, which runs the
    model to learn what is right.
    """
    with ExitStack() as stack:
        for id in ids:
            stack.enter_context(acting(find(id), model, hit_layers(find(id), model, layers)))
        yield


LAYERS = {
    "all": lambda spec: True,
    "full": lambda spec: spec.window is None,
    "sliding": lambda spec: spec.window is not None,
    "shared": lambda spec: spec.kv_from != spec.index,
}


def hit_layers(fault, model, layers):
    """The layers that a choice of `layers` means: a set of indices."""
    places, rows = set(fault.places(model)), model.outline.layers
    if layers is not None and fault.layered:
        chosen = layers if not isinstance(layers, str) else of_sort(layers, model)
        kinds = {rows[i].kind for i in chosen}
        places &= {spec.index for spec in rows if spec.kind in kinds} if fault.by_kind else set(chosen)
    if not places:
        raise InputError(f"{fault.id} ({fault.says}) cannot act in these layers of {model.checkpoint.folder.name}.")
    return places


def of_sort(name, model):
    if name not in LAYERS:
        raise InputError(f"Layers '{name}' are not one of {', '.join(LAYERS)}, and not a list.")
    return [spec.index for spec in model.outline.layers if LAYERS[name](spec)]


@contextmanager
def acting(fault, model, hit):
    """The fault's change is called in the layers of `hit`, and outside of them if it hits all that it can."""
    family, kinds = model.family, {model.outline.layers[i].kind for i in hit if i is not None}
    here, inside = [hit == set(fault.places(model))], [fault.within is None]

    def change(original, **given):
        return told(fault.change, original, given) if here[-1] and inside[-1] else original()

    with ExitStack() as stack:
        if fault.swaps:
            stack.enter_context(swapped(fault.swaps, change, family))
        else:
            rows = tuple(fault.change(s, model) if s.index in hit else s for s in model.outline.layers)
            stack.enter_context(retabled(model, rows))
        if fault.within:
            stack.enter_context(swapped(fault.within, noting(inside, lambda: True), family))
        stack.enter_context(swapped("block", noting(here, lambda spec: spec.index in hit), family))
        if "rope table" in family.parts:
            stack.enter_context(swapped("rope table", noting(here, lambda spec: spec.kind in kinds), family))
        yield


def retabled(model, rows):
    """Runs of that model have another layer table."""

    def change(original, config):
        return original(config=model.family.with_layers(config, rows) if config is model.config else config)

    return swapped("families.family.started", change)


def noting(stack, value):
    """A change that changes nothing, but has value(...) on top of the stack while the original runs."""

    def change(original, **given):
        stack.append(told(value, None, given))
        try:
            return original()
        finally:
            stack.pop()

    return change


def told(change, original, given):
    """Calls a change with the original, unless that is None, and with those of its arguments that it names."""
    first = () if original is None else (original,)
    asked = asks(change)[len(first) :]
    return change(*first, **(given if "**" in asked else {name: given[name] for name in asked}))


def asks(change):
    """Names of the parameters of a change, a plain function; "**" stands for all that there are."""
    code = change.__code__  # that of the many closures of one function is the same
    return code.co_varnames[: code.co_argcount] + ("**",) * bool(code.co_flags & CO_VARKEYWORDS)


@contextmanager
def swapped(path, change, family=None):
    """The function at "module.function" is change(original, ...) for as long as this lasts, wherever it is imported.

    path: also a part of the family, by its name.  change: asks for arguments by name, as a fault does.  An operation is
    swapped in `ops` alone, where the model looks for it.
    """
    module, name = found(path, family)
    original, defaults = getattr(module, name), defaults_of(unwrap(as_defined(module, name)))

    @wraps(original)
    def other(*args, **kwargs):
        passed = dict(zip(defaults, args, strict=False)) | kwargs
        given = {name: passed.get(name, default) for name, default in defaults.items()}

        def plain(*args, **changed):
            return original(*(given | dict(zip(given, args, strict=False)) | changed).values())

        return told(change, plain, given)

    users = [room for room in ([ops] if module is ops else rooms(family)) if vars(room).get(name) is original]
    swaps = [(room, name, original, other) for room in users]
    SWAPS.extend(swaps)  # so that no graph is learned of what acts here
    try:
        for room in users:
            setattr(room, name, other)
        yield
    finally:
        for room in users:
            setattr(room, name, original)
        SWAPS[:] = [swap for swap in SWAPS if swap not in swaps]


def found(path, family):
    """The module and the name of a function."""
    if "." not in path:
        part = family.parts[path]
        return sys.modules[part.__module__], part.__name__
    home, name = path.rsplit(".", 1)
    return import_module(f"numgemma.{home}"), name


def as_defined(module, name):
    """A function whose parameters have the names that faults use: a compiled twin may have others."""
    return ops.DEFINED[name] if module is ops else getattr(module, name)


@lru_cache(maxsize=256)
def defaults_of(function) -> dict:
    """A function's parameters, in order, and what they are where they are not given."""
    return {p.name: p.default for p in signature(function).parameters.values()}


def parameters(path, family):
    """The names of a function's parameters."""
    return defaults_of(unwrap(as_defined(*found(path, family)))).keys()


def rooms(family):
    """The modules of this package, and of the package that a family from elsewhere is in."""
    homes = {"numgemma"} | {part.__module__.split(".")[0] for part in (family.parts.values() if family else ())}
    inside = tuple(f"{home}." for home in homes)
    return [module for key, module in sys.modules.items() if key.startswith(inside) or key in homes]


class Rewired(Tap):
    """A tap that gives some points another equation: name -> f(y, seen), of what was computed and of earlier points."""

    def __init__(self, tap, equations, seen=None, prefix=""):
        self.tap, self.equations, self.prefix = tap, equations, prefix
        self.seen = {} if seen is None else seen

    def at(self, scope):
        return Rewired(self.tap.at(scope), self.equations, self.seen, f"{self.prefix}{scope}.")

    def watches(self, name):
        return self.prefix + name in self.equations or self.tap.watches(name)

    def __call__(self, name, x, axes=""):
        full = self.prefix + name
        if full in self.equations:
            x = self.equations[full](x, self.seen)
        self.seen[full] = x = self.tap(name, x, axes)
        return x


def with_weights(w, arrays):
    """The same weights, but for some by their names at this scope."""
    return replace(w, tensors=ChainMap({w.scope + name: x for name, x in arrays.items()}, w.tensors))
