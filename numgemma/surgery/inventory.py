"""What lineage found, as a reader wants it: words, runs of slots, a table of components, a recipe."""

from collections import defaultdict

from numgemma.checkpoint import open_checkpoint
from numgemma.errors import InputError
from numgemma.families import read_config
from numgemma.opening import resolve
from numgemma.surgery.blocks import block
from numgemma.surgery.findings import ranges
from numgemma.surgery.homes import decoder_layer, homes_of
from numgemma.surgery.lineage import MIXED, Lineage, Origin
from numgemma.surgery.partners import scope
from numgemma.surgery.recipe import Recipe, Slice, recipe_yaml
from numgemma.surgery.relations import Relation
from numgemma.surgery.stack import PROJECTION, TABLE, Stack, plan


def component(name: str) -> str:
    """The row of the inventory that a tensor belongs to: towers as wholes, layers by branch, attention by tensor."""
    top = name.split(".")[0]
    if top.endswith("_tower"):
        return top
    leaf = name.removeprefix(scope(name)).removeprefix(".").removesuffix(".weight")
    if not scope(name) or leaf.startswith("self_attn.") or leaf == "layer_scalar":
        return f"layers: {leaf}" if scope(name) else leaf
    if "per_layer" in leaf:
        return "layers: per-layer input"
    return "layers: norms" if "norm" in leaf else f"layers: {leaf.split('.')[0]}"


def described(r: Relation) -> str:
    """A relation in words."""
    if r.kind in MIXED:
        return mixed([r])
    value = "1 + w" if r.plus_one else ""
    if abs(r.scale - 1) > 1e-9 and r.kind != "split":
        scale = f"{r.scale:.{2 if r.error > 1e-4 else 6}g} x"
        value = f"{scale} ({value})" if value else scale
    text = {
        "copy": "copy",
        "scaled": value,
        "converted": value,
        "tiled": f"{r.axis} {r.times} times",
        "split": f"{r.axis} {r.times} times, each 1/{r.times}",
        "rows": part_of(r),
        "columns": part_of(r),
        "resized": f"copy, {r.new} new {r.axis}: the mean",
        "changed": "changed",
        "fresh": "fresh" if r.constant is None else f"fresh: all {r.constant:g}",
    }[r.kind]
    if r.kind == "tiled" and value:
        text = f"{value}, {text}"
    elif r.kind in ("rows", "columns") and value:
        text = f"{text}, {value}"
    if r.new and r.kind not in ("resized", "fresh"):
        text += f", {r.new} {r.axis} {r.how or 'new'}"
    return text


def part_of(r: Relation) -> str:
    return f"{r.axis} of" if len(r.spans) == 1 else f"blocks of {block(r) if r.spans else 0} {r.axis}"


def mixed(some: list[Relation]) -> str:
    """Mixtures made in one way, in words; their numbers are in the order of the parents."""
    r = some[0]
    weights = " : ".join(span([x.shares[i].weight for x in some]) for i in range(len(r.shares)))
    kept = " : ".join(span([x.shares[i].density for x in some]) for i in range(len(r.shares)))
    if r.kind == "thinned":
        return f"base and differences x {weights}, of which {kept} kept ({r.how})"
    if r.kind == "experts":
        text = "experts merged" if r.how == "merged" else f"{len(r.experts)} experts"
        return text if r.how != "astray" else f"{text}, and not those of the matrices"
    if r.kind == "edited":
        removed = [x.removed for x in some if x.removed is not None]
        text = f"edit of {span([x.size for x in some])}, rank {ranges(x.rank for x in some)}"
        return text + (f", one direction less {span(removed)}" if removed else "")
    if r.t is not None:
        return f"{r.how}, t = {span([x.t for x in some if x.t is not None])}"
    return f"blend {weights}" + (" on average, by rows" if r.how == "rows" else "")


def span(numbers: list[float]) -> str:
    low, high = f"{min(numbers):.2f}", f"{max(numbers):.2f}"
    return low if low == high else f"{low} to {high}"


def inventory(found: Lineage) -> list[tuple[str, int, str, str, float]]:
    """(component, tensors, parents, relation, largest error), a row for each way in which a component was made."""
    rows: dict[tuple[str, str, str], list[Relation]] = defaultdict(list)
    for name, r in found.tensors.items():
        way = f"{r.kind} {r.how} {r.rank if r.kind == 'edited' else ''}" if r.kind in MIXED else described(r)
        rows[component(name), " + ".join(parents_of(r)) or "-", way].append(r)
    return [
        (c, len(some), parents, mixed(some) if some[0].kind in MIXED else way, max(r.error for r in some))
        for (c, parents, way), some in rows.items()
    ]


def parents_of(r: Relation) -> list[str]:
    """Every parent that is in a tensor: of a mixture in the order of its numbers."""
    spans = sorted({span.parent for span in r.spans} | ({r.parent} if r.parent and not r.shares else set()))
    base = [r.parent] if r.kind == "thinned" and r.parent else []
    return list(dict.fromkeys([*base, *(share.parent for share in r.shares), *spans]))


def slices(found: Lineage) -> list[tuple[int, int, Origin]]:
    """Runs of slots that follow their parent's order: (first, last, origin of the first)."""
    runs: list[tuple[int, int, Origin]] = []
    for o in found.slots:
        if runs:
            first, _, start = runs[-1]
            goes_on = o.layer is None if start.layer is None else o.layer == start.layer + o.slot - first
            if goes_on and (o.parent, o.relation) == (start.parent, start.relation):
                runs[-1] = first, o.slot, start
                continue
        runs.append((o.slot, o.slot, o))
    return runs


def strangers(found: Lineage) -> list[str]:
    """Tensors of decoder layers that are from another layer than the rest of theirs."""
    homes = {o.slot: (o.parent, o.layer) for o in found.slots}
    out = []
    for name, r in found.tensors.items():
        slot = decoder_layer(scope(name))
        own = [(parent, decoder_layer(place)) for parent, place in homes_of(r)]
        if slot in homes and own and homes[slot] not in own:
            out.append(name)
    return out


def misplaced_inputs(found: Lineage) -> dict[str, list[int]]:
    """Table or projection of the per-layer inputs -> the slots that do not get what their layer got in its parent."""
    gate = found.shapes.get("layers.0.per_layer_input_gate.weight")
    if gate is None:
        return {}
    P, wrong = gate[0], {}
    for name in (TABLE, PROJECTION):
        if name in found.tensors:
            wrong[name] = [o.slot for o in found.slots if not fed(found.tensors[name], o, P)]
    return {name: slots for name, slots in wrong.items() if slots}


def fed(r: Relation, o: Origin, P: int) -> bool:
    """Whether the slot's P lines are those of its layer in its parent."""
    if o.layer is None:
        return True
    if r.kind in ("blend", "thinned", "edited"):
        return o.layer == o.slot
    if not r.spans:
        return r.kind == "copy" and (r.parent, o.layer) == (o.parent, o.slot)
    at = o.slot * P
    for span in r.spans:
        if span.start <= at < span.stop and at < (o.slot + 1) * P:
            if (span.parent, span.place + at - span.start, span.scale) != (o.parent, o.layer * P + at - o.slot * P, 1):
                return False
            at = span.stop
    return at >= (o.slot + 1) * P


# a recipe that makes the same bytes


def to_recipe(found: Lineage, name: str) -> str:
    """The YAML of which `stack` makes this child.  name: what the file will be called.

    Raises InputError with the first reason why no stack of whole layers is this child.
    """
    reason = no_stack(found)
    if reason:
        raise InputError(f"{found.child}: is no plain stack of these parents, for {reason}; no recipe can say that.")
    trunk = next(r.parent for n, r in found.tensors.items() if not scope(n) and n not in (TABLE, PROJECTION))
    recipe = Recipe(whole_slices(found), str(trunk))
    options = matching_options(found, recipe)
    return f"# numgemma stack {name}{options} -o DIR\n{recipe_yaml(recipe)}"


def whole_slices(found: Lineage) -> tuple[Slice, ...]:
    """The slots as runs of layers that follow one another."""
    parts: list[Slice] = []
    for o in found.slots:
        parent, layer = str(o.parent), int(o.layer or 0)
        if parts and (parts[-1].parent, parts[-1].last + 1) == (parent, layer):
            parts[-1] = Slice(parent, parts[-1].first, layer)
        else:
            parts.append(Slice(parent, layer, layer))
    return tuple(parts)


def no_stack(found: Lineage) -> str | None:
    """The first thing that `stack` would not make."""
    trunk = {r.parent for name, r in found.tensors.items() if not scope(name) and name not in (TABLE, PROJECTION)}
    for name, r in found.tensors.items():
        if name in (TABLE, PROJECTION):
            continue
        if r.kind != "copy" or not r.exact:
            return f"{name} is {described(r)}{f' but for {r.error:.1e}' if r.kind == 'copy' else ''}"
    if len(trunk) != 1:
        return f"what is in no layer comes from {' and '.join(sorted(map(str, trunk))) or 'nowhere'}"
    for name, slots in misplaced_inputs(found).items():
        return f"{name} gives slot {slots[0]} another layer's input"
    return None


def matching_options(found: Lineage, recipe: Recipe) -> str:
    """What the command needs beside the recipe, so that the child's config and tensors come out."""
    config = read_config(open_checkpoint(resolve(found.child)).config, found.child)
    shared = config.text.num_kv_shared_layers
    for share in (None, shared):
        for donor in (False, True):
            stack = attempt(recipe, share, donor)
            if stack and stack.config.text.num_kv_shared_layers == shared and agrees(found, stack, donor):
                return (f" --shared {shared}" if share is not None else "") + (" --kv-from-donor" if donor else "")
    raise InputError(f"{found.child}: its slots are whole layers, but `stack` would give them other keys; no recipe.")


def attempt(recipe: Recipe, shared: int | None, donor: bool) -> Stack | None:
    try:
        return plan(recipe, shared, donor)
    except InputError:
        return None


def agrees(found: Lineage, stack: Stack, donor: bool) -> bool:
    """Whether a plan has the child's tensors, and takes the strangers among them from where they are from."""
    if {name: tensor.shape for name, tensor in stack.tensors.items()} != found.shapes:
        return False
    return set(strangers(found)) <= (borrowed_keys(found, stack) if donor else set())


def borrowed_keys(found: Lineage, stack: Stack) -> set[str]:
    """Keys and values that come from the layer which the slot's source read them from."""
    names = set()
    for slot, spec in zip(stack.slots, stack.config.text.layers, strict=True):
        if slot.shared and spec.kv_from == spec.index:
            for leaf in ("k_proj.weight", "k_norm.weight", "v_proj.weight"):
                r = found.tensors.get(f"layers.{slot.index}.self_attn.{leaf}")
                if r and r.source == f"layers.{slot.spec.kv_from}.self_attn.{leaf}":
                    names.add(f"layers.{slot.index}.self_attn.{leaf}")
    return names
