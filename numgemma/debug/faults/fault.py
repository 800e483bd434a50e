"""What a fault is, and how a model is run with one: a function or a layer's row is changed for as long as that lasts.

A fault names the function that it changes as "module.function", and is a function of its own that takes the original
first:

    @fault("T03", "V is not normalised", "put V through an RMSNorm without a weight",
           shows="layers.*.self_attn.v_norm", swaps="ops.rms_norm", within="layers.attention.attention", at=makes_keys)
    def no_value_norm(original, x, w, eps):
        return x if w is None else original(x, w, eps)

`Rewired` helps: a tap that gives a point another equation, in terms of the points before it.  What is only another
row of the layer table is written with `row_fault`, as a function LayerSpec -> LayerSpec.
"""

import sys
from collections import ChainMap
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module

from numgemma import ops
from numgemma.errors import InputError
from numgemma.families.gemma4.config import TextConfig
from numgemma.trace import Tap, selects


@dataclass(frozen=True)
class Fault:
    """One mistake that an implementation can make.

    shows: the first point whose value it changes, as globs.
    swaps: the function it replaces, or "" where it changes rows of the layer table.
    within: only while this function runs.
    at(spec, model): whether it can act in that layer; spec is None for a fault outside the layers.
    past_window: it shows only in prompts longer than the window.
    by_kind: it acts in all layers of a kind or in none, since a rope table or a mask is made once for all of them.
    across: what it does in one layer shows in a later one.
    media(given): whether it can act with what enters beside the text, a media.Media.
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
    media: Callable = lambda given: True

    @property
    def layered(self):
        """Whether it acts in decoder layers, and not before or after them."""
        return self.shows.split()[-1].startswith(("layers.", "rotary_emb."))

    def shown_by(self, name):
        """Whether that point can be the first that shows it."""
        return selects(self.shows.split(), name)

    def places(self, model) -> tuple:
        """The layers of this model where it can act; (None,) for a fault outside them, () where it cannot act."""
        rows = model.config.text.layers if self.layered else (None,)
        return tuple(spec.index if spec else None for spec in rows if self.at(spec, model))


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
    places, rows = set(fault.places(model)), model.config.text.layers
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
    return [spec.index for spec in model.config.text.layers if LAYERS[name](spec)]


@contextmanager
def acting(fault, model, hit):
    """The fault's change is called in the layers of `hit`, and outside of them if it hits all that it can."""
    kinds = {model.config.text.layers[i].kind for i in hit if i is not None}
    here, inside = [hit == set(fault.places(model))], [fault.within is None]

    def change(original, *args):
        return (partial(fault.change, original) if here[-1] and inside[-1] else original)(*args)

    with ExitStack() as stack:
        if fault.swaps:
            stack.enter_context(swapped(fault.swaps, change))
        else:
            rows = with_rows(lambda spec: fault.change(spec, model) if spec.index in hit else spec)
            stack.enter_context(swapped("families.gemma4.gemma4.causal_masks", rows))
            stack.enter_context(swapped("families.gemma4.gemma4.decoder", rows))
        if fault.within:
            stack.enter_context(swapped(fault.within, noting(inside, lambda *args: True)))
        stack.enter_context(
            swapped("families.gemma4.gemma4.block", noting(here, lambda x, ple, w, spec, *_: spec.index in hit))
        )
        stack.enter_context(
            swapped("families.gemma4.gemma4.rope_table", noting(here, lambda positions, spec, *_: spec.kind in kinds))
        )
        yield


def with_rows(row):
    """A change that gives a function another layer table, in the config among its arguments.  row: spec -> spec"""

    def retabled(config):
        rows, config = tuple(row(spec) for spec in config.layers), replace(config)
        vars(config)["layers"] = rows  # where the cached property looks first
        return config

    return lambda original, *args: original(*(retabled(a) if isinstance(a, TextConfig) else a for a in args))


def noting(stack, value):
    """A change that changes nothing, but has value(*args) on top of the stack while the original runs."""

    def change(original, *args):
        stack.append(value(*args))
        try:
            return original(*args)
        finally:
            stack.pop()

    return change


@contextmanager
def swapped(path, change):
    """The function at "module.function" is change(original, *args) for as long as this lasts, wherever it is imported.

    An operation is swapped in `ops` alone, where the model looks for it.
    """
    home, name = path.rsplit(".", 1)
    original = getattr(import_module(f"numgemma.{home}"), name)
    rooms = [module for key, module in sys.modules.items() if key.startswith("numgemma.")] if home != "ops" else [ops]
    users = [module for module in rooms if getattr(module, name, None) is original]
    try:
        for module in users:
            setattr(module, name, partial(change, original))
        yield
    finally:
        for module in users:
            setattr(module, name, original)


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
