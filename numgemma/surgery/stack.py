"""Layers re-sequenced into a deeper (or shallower) model of their family.

A layer's tensors move as they are, but four things of a Gemma know how deep they are, and are rebuilt:

* the per-layer embeddings: slot i reads columns P i to P (i + 1) of one table and rows of one projection;
* the kinds of the layers, and all else that the config lists by layer (widths, sparsity): a slot has what its source
  layer had, since the shapes leave no choice; and the last of a Gemma 4 is full;
* which slots share keys: the last num_kv_shared_layers of them, each reading the last earlier slot of its own kind;
* keys and values: a slot that must make its own, although its source layer shared, needs tensors that nobody read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from numgemma.errors import InputError
from numgemma.families import find, read_config
from numgemma.families.family import Shapes
from numgemma.model import Model, load
from numgemma.surgery.recipe import Recipe, recipe_yaml
from numgemma.surgery.writer import Tensor, by_rows, companions, copied, write_checkpoint
from numgemma.weights.quantised import refuse_quantised
from numgemma.weights.safetensors import release

# What a stack sets anew, beside what is listed by layer; in all else its parents' text configs have to agree.
DEPTH = {"num_hidden_layers", "num_kv_shared_layers"}
SPELLINGS = {"per_layer_config", "global_head_dim", "num_global_key_value_heads"}  # compared layer by layer
TOKENS = {"pad_token_id", "bos_token_id", "eos_token_id"}

TABLE, PROJECTION = "embed_tokens_per_layer.weight", "per_layer_model_projection.weight"


@dataclass(frozen=True, eq=False)
class Slot:
    """One layer of the child, and the layer it comes from."""

    index: int
    parent: str
    model: Model
    spec: Any  # the row of the source layer

    @property
    def shared(self) -> bool:
        """Whether the source layer read another's keys."""
        return self.spec.kv_from != self.spec.index

    @property
    def source(self) -> str:
        return f"layer {self.spec.index} of {self.parent}"


@dataclass(frozen=True, eq=False)
class Stack:
    """All that is known of a child before a byte of it is written."""

    recipe: Recipe
    raw: dict[str, Any]  # its config.json
    config: Any  # its family's
    slots: tuple[Slot, ...]
    tensors: dict[str, Tensor]  # by short name
    folders: tuple[Path, ...]  # of the parents, that of the trunk first


def plan(recipe: Recipe, shared: int | None = None, kv_from_donor: bool = False) -> Stack:
    """What `recipe` makes.  Raises InputError with the reason where it makes no model of its family.

    shared: slots that share keys, counted from the last (default: the trailing run whose source layers shared).
    kv_from_donor: a slot that must make keys its source layer never made takes those that the source layer read.
    """
    models = open_parents(recipe)
    slots = tuple(slot_table(recipe, models))
    trunk = models[recipe.trunk]
    if "head" not in trunk.family.parts:
        raise InputError(f"{recipe.trunk}: is of {trunk.family.name}, whose layers are not stacked; name a decoder.")
    raw = child_config(trunk, slots, trailing_run(slots) if shared is None else shared)
    config = read_child(raw, slots)
    for slot, spec in zip(slots, config.text.layers, strict=True):
        check_slot(slot, spec)
    shapes = find(raw, "the stack's config").text_shapes(config)
    tensors = trunk_tensors(trunk) | per_layer_embeddings(slots, trunk)
    for slot in slots:
        tensors |= layer_tensors(slot, shapes, kv_from_donor)
    check_shapes(tensors, shapes)
    order = [*shapes, *tensors]  # unread keys and towers after what the text model reads
    tensors = {name: tensors[name] for name in dict.fromkeys(order)}
    folders = tuple(model.checkpoint.folder for model in (trunk, *models.values()))
    return Stack(recipe, raw, config, slots, tensors, folders)


def write(stack: Stack, target: str | Path, card: Callable[[Path], None] | None = None, **how) -> None:
    """Write the child.  card: puts one into the folder.  how: shard, force, progress of `write_checkpoint`."""
    stored_name, kind = find(stack.raw, "the stack's config").stored_name, stack.raw["model_type"]
    stored = {stored_name(name, kind): tensor for name, tensor in stack.tensors.items()}
    files: dict[str, Any] = {**companions(stack.folders[0])} | ({"README.md": card} if card else {})
    files["mergekit_config.yml"] = recipe_yaml(stack.recipe).encode()
    write_checkpoint(target, stack.raw, stored, files, parents=stack.folders, **how)


# parents and slots


def open_parents(recipe: Recipe) -> dict[str, Model]:
    """Every parent, opened once, all of one width and one dtype."""
    names = dict.fromkeys([recipe.trunk, *(part.parent for part in recipe.slices)])
    models = {name: load(name) for name in names}
    for name, model in models.items():
        refuse_quantised(name, model.weights.tensors)
    trunk = models[recipe.trunk]
    usual = shared_keys(trunk.config.text)
    for name, model in models.items():
        if model.family is not trunk.family:
            raise InputError(
                f"{name}: is a {model.family.name}, and {recipe.trunk} a {trunk.family.name}; stack one kind."
            )
        for key, there in shared_keys(model.config.text).items():
            if (here := usual.get(key)) != there:
                raise InputError(
                    f"{name}: {key} is {there!r:.60} and that of {recipe.trunk} is {here!r:.60}; "
                    "stack parents of one size."
                )
        check_dtype(name, model, recipe.dtype or dtype_of(trunk))
    return models


def shared_keys(c) -> dict[str, Any]:
    """What parents have to agree on.  c: a text config"""
    listed = by_layer(c)
    return {f.name: getattr(c, f.name) for f in fields(c) if f.name not in DEPTH | SPELLINGS | TOKENS | listed.keys()}


def by_layer(c) -> dict[str, tuple]:
    """What a text config lists for each of its layers."""
    values = {f.name: getattr(c, f.name) for f in fields(c) if f.name not in TOKENS}
    return {key: x for key, x in values.items() if isinstance(x, tuple) and len(x) == c.num_hidden_layers}


def dtype_of(model: Model) -> str:
    return str(model.weights["embed_tokens.weight"].dtype)


def check_dtype(name, model, wanted):
    if dtype_of(model) != wanted:
        raise InputError(f"{name}: is in {dtype_of(model)}, not {wanted}; a stack copies bytes, so convert it before.")


def slot_table(recipe: Recipe, models: Mapping[str, Model]):
    """The slots from the bottom up."""
    index = 0
    for part in recipe.slices:
        layers = models[part.parent].config.text.layers
        if not part.first <= part.last < len(layers):
            raise InputError(
                f"{part.parent}: has no layers {part.first}-{part.last}, only 0-{len(layers) - 1}; correct the slice."
            )
        for spec in layers[part.first : part.last + 1]:
            yield Slot(index, part.parent, models[part.parent], spec)
            index += 1


def trailing_run(slots) -> int:
    """How many slots at the end come from layers that shared."""
    run = 0
    for slot in reversed(slots):
        if not slot.shared:
            break
        run += 1
    return run


# the config


def child_config(trunk: Model, slots, shared: int) -> dict[str, Any]:
    """The trunk's config.json with another depth."""
    check_donors(slots, shared)
    raw = trunk.checkpoint.config
    nested = "text_config" in raw
    text = dict(raw["text_config"] if nested else raw)
    text |= {"num_hidden_layers": len(slots), "num_kv_shared_layers": shared}
    for key in by_layer(trunk.config.text):
        text[key] = [getattr(slot.model.config.text, key)[slot.spec.index] for slot in slots]
    if text.get("per_layer_config") is not None:
        text["per_layer_config"] = spelled_out(slots)
    return raw | {"text_config": text} if nested else text


def read_child(raw, slots):
    """The child's config.  Raises InputError where its family has no such layer table."""
    try:
        return read_config(raw, "the stack's config")
    except InputError:
        check_last(slots[-1])
        raise


def check_last(last: Slot):
    if last.spec.kind != "full_attention":
        full = [spec.index for spec in last.model.config.text.layers if spec.kind == "full_attention"]
        raise InputError(
            f"The last slot would be {last.source}, a sliding one, and Gemma 4 ends with a full layer; "
            f"end the last slice at one of {', '.join(map(str, full))}."
        )


def check_donors(slots, shared):
    if not 0 <= shared <= len(slots):
        raise InputError(f"{shared} of {len(slots)} slots cannot share keys; choose another --shared.")
    makers = {slot.spec.kind for slot in slots[: len(slots) - shared]}
    for slot in slots[len(slots) - shared :]:
        if slot.spec.kind not in makers:
            raise InputError(
                f"Slot {slot.index}, {slot.source}, shares the keys of an earlier {slot.spec.kind} layer, and no slot "
                f"before {len(slots) - shared} makes any; begin with earlier layers, or share fewer with --shared."
            )


def spelled_out(slots) -> dict[str, dict[str, int]]:
    """per_layer_config, as Transformers writes it: what a layer has other than the config's own widths."""
    digits = len(str(len(slots) - 1))
    found = {}
    for slot in slots:
        c = slot.model.config.text
        usual = {"head_dim": c.head_dim, "num_key_value_heads": c.num_key_value_heads}
        own = {"head_dim": slot.spec.H, "num_key_value_heads": slot.spec.K}
        if own != usual:
            found[str(slot.index).zfill(digits)] = own
    return found


def check_slot(slot: Slot, spec: Any) -> None:
    """The child's row is the source's row, its place aside.  spec: of the child"""
    if spec.F != slot.spec.F:
        was, now = ("shared", "make") if slot.shared else ("made", "share")
        raise InputError(
            f"Slot {slot.index} comes from {slot.source}, which {was} keys and has an MLP of width {slot.spec.F}; one "
            f"that has to {now} keys has {spec.F} (use_double_wide_mlp); choose slices, or --shared, that keep roles."
        )
    moved = replace(slot.spec, index=spec.index, kv_from=spec.kv_from)
    for field in fields(spec):
        if getattr(spec, field.name) != getattr(moved, field.name):
            raise InputError(
                f"Slot {slot.index} would have {field.name} = {getattr(spec, field.name)}, and {slot.source} has "
                f"{getattr(moved, field.name)}; stack parents of one shape."
            )


# the tensors


def trunk_tensors(trunk: Model) -> dict[str, Tensor]:
    """All that belongs to no layer, verbatim: embeddings, last norm, head, towers."""
    w = trunk.weights
    return {name: copied(w[name]) for name in w if not name.startswith("layers.") and name not in (TABLE, PROJECTION)}


def layer_tensors(slot: Slot, shapes: Shapes, kv_from_donor: bool) -> dict[str, Tensor]:
    """The source layer's tensors under the slot's number.  shapes: of the child"""
    w, scope = slot.model.weights, f"layers.{slot.spec.index}"
    found = {name: w.at(scope)[name] for name in w.at(scope)}
    had = slot.model.family.shapes(slot.model.config)
    due = [name for name in inside(shapes, f"layers.{slot.index}") if f"{scope}.{name}" not in had]
    if due:  # keys and values, which its source layer read from another
        donor = w.at(f"layers.{slot.spec.kv_from}")
        if kv_from_donor:
            found |= {name: donor[name] for name in due}
        elif any(name not in found for name in due):
            raise InputError(
                f"{slot.parent}: layer {slot.spec.index} read the keys of layer {slot.spec.kv_from}, and slot "
                f"{slot.index} has to make its own, but this file has no k_proj there (a file saved by Transformers "
                "lacks them); take the released file, or those of the layer it read with --kv-from-donor."
            )
    return {f"layers.{slot.index}.{name}": copied(x) for name, x in found.items()}


def inside(shapes: Shapes, scope: str) -> list[str]:
    """The names at a scope, without it."""
    return [name.removeprefix(f"{scope}.") for name in shapes if name.startswith(f"{scope}.")]


def per_layer_embeddings(slots, trunk: Model) -> dict[str, Tensor]:
    """The table and the projection of the per-layer inputs, a block per slot; nothing where the model has none."""
    P, L = trunk.outline.per_layer, len(slots)
    if not P:
        return {}
    V, dtype = len(trunk.weights[TABLE]), trunk.weights[TABLE].dtype
    table = by_rows((V, L * P), dtype, lambda start, stop: table_rows(slots, P, start, stop))

    def projection():
        for slot in slots:
            j = slot.spec.index
            yield from copied(slot.model.weights[PROJECTION][j * P : (j + 1) * P]).pieces()

    return {TABLE: table, PROJECTION: Tensor((L * P, trunk.outline.width), dtype, projection)}


def table_rows(slots, P, start, stop) -> np.ndarray:
    """Rows of the child's table: of each slot the columns of its source layer.  -> rows LP"""
    tables = {slot.parent: slot.model.weights[TABLE][start:stop] for slot in slots}
    some = next(iter(tables.values()))
    bits = np.dtype(f"u{some.dtype.itemsize}")  # plain integers copy much faster than bfloat16
    rows = np.empty((stop - start, len(slots), P), bits)
    for slot in slots:
        j = slot.spec.index
        rows[:, slot.index] = tables[slot.parent].view(bits)[:, j * P : (j + 1) * P]
    for part in tables.values():
        release(part)
    return rows.reshape(stop - start, -1).view(some.dtype)


def check_shapes(tensors: Mapping[str, Tensor], shapes: Shapes) -> None:
    """Every tensor of the child's text model is planned, in its shape."""
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape:
            found = list(tensors[name].shape) if name in tensors else "missing"
            raise InputError(f"The stack's {name} is {found}, not {list(shape)}; stack parents of one shape.")
