"""Lint: the names and shapes of the tensors, against the config: what a stack or a transplant tends to leave behind."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np

from numgemma.families.family import Family
from numgemma.families.gemma4 import layout
from numgemma.families.gemma4.config import LayerSpec
from numgemma.surgery.findings import Finding, error, leaf, note, ranges, spelled, warning

TABLE, PROJECTION = "embed_tokens_per_layer.weight", "per_layer_model_projection.weight"

Tensors = Mapping[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


def depth(tensors: Tensors) -> int:
    """Decoder layers that have tensors."""
    numbers = {int(found[1]) for name in tensors if (found := re.match(r"layers\.(\d{1,6})\.", name))}
    return max(numbers, default=-1) + 1 if max(numbers, default=0) < 4096 else len(numbers)


def tensor_rules(tensors: Tensors, config, family: Family) -> list[Finding]:
    """Every tensor in its place.  What one fault explains is said once."""
    expected = family.text_shapes(config)
    shapes: Shapes = {name: x.shape for name, x in tensors.items()}
    found: list[Finding] = []
    explained: set[str] = set()
    for rule in (per_layer_width, wrong_kind, keys_and_values, wide_mlp, expert_counts):
        for finding in rule(shapes, expected, config):
            found.append(finding)
            explained |= set(finding.tensors)
    for tower, part in family.optional(config).items():
        found += tower_rule(tower, shapes, part, expected)
    return [*found, *remaining(shapes, expected, explained)]


def placed(tensors: Tensors, family: Family, config) -> list[Finding]:
    """Every tensor in its place, as a family's record says; a part of which nothing is there may be absent."""
    shapes: Shapes = {name: x.shape for name, x in tensors.items()}
    absent = [part for part in family.optional(config).values() if not any(name in shapes for name in part)]
    expected = {n: s for n, s in family.shapes(config).items() if not any(n in part for part in absent)}
    expected |= {name: shape for name, shape in family.besides(config).items() if name in shapes}
    known = [name for name in shapes if any(re.fullmatch(pattern, name) for pattern in family.ignored(config))]
    return remaining(shapes, expected, set(known))


def per_layer_width(shapes: Shapes, expected: Shapes, config):
    """The table and the projection of per-layer inputs are as wide as the model is deep."""
    P, L = config.text.hidden_size_per_layer_input or 0, config.text.num_hidden_layers
    for name, axis, what in ((TABLE, 1, "columns"), (PROJECTION, 0, "rows")):
        shape = shapes.get(name)
        if P and shape and len(shape) == 2 and shape[axis] != L * P:
            width = shape[axis]
            made = f"{width // P} x {P}" if width % P == 0 else str(width)
            text = (
                f"{name} has {made} {what}, and {L} layers of per-layer inputs need {L} x {P}: a stack has to take "
                "each layer's block along."
            )
            yield error("per-layer width", text, [name])


def wrong_kind(shapes: Shapes, expected: Shapes, config):
    """Layers whose tensors are those of the other kind."""
    kinds = config.text.kinds
    if len(kinds) < 2 or len({(s.H, s.K) for s in kinds.values()}) < 2:
        return
    strays = defaultdict(list)
    for spec in config.text.layers:
        other = next(s for kind, s in kinds.items() if kind != spec.kind)
        if looks_like(other, spec, shapes):
            strays[spec.kind].append(spec.index)
    for kind, layers in strays.items():
        other = next(k for k in kinds if k != kind)
        names = [n for n in shapes if (m := re.match(r"layers\.(\d+)\.self_attn\.", n)) and int(m[1]) in layers]
        text = f"Layers {ranges(layers)}: listed as {kind}, with the heads of {other}; list them as that."
        yield error(
            "kind",
            text,
            names + [n for n in expected if re.match(rf"layers\.({'|'.join(map(str, layers))})\.self_attn", n)],
        )


def looks_like(other: LayerSpec, spec: LayerSpec, shapes: Shapes) -> bool:
    """Whether a layer's own norms have the other kind's width and not its own kind's."""
    q, k = (shapes.get(f"layers.{spec.index}.self_attn.{name}") for name in ("q_norm.weight", "k_proj.weight"))
    if spec.H != other.H:
        return q == (other.H,)
    return k is not None and k[0] == other.K * other.H != spec.K * spec.H


def keys_and_values(shapes: Shapes, expected: Shapes, config):
    """Who makes keys, and what their values are."""
    lacking, extra, unread = [], [], []
    for spec in config.text.layers:
        scope = f"layers.{spec.index}.self_attn"
        if spec.kv_from != spec.index:
            unread += [n for n in layout.scoped(scope, layout.key_value_shapes(spec, 1)) if n in shapes]
        elif f"{scope}.k_proj.weight" not in shapes and f"{scope}.q_proj.weight" in shapes:
            lacking.append(spec)
        if spec.k_eq_v and f"{scope}.v_proj.weight" in shapes:
            extra.append(f"{scope}.v_proj.weight")
    if lacking:
        names = [
            n for s in lacking for n in layout.scoped(f"layers.{s.index}.self_attn", layout.key_value_shapes(s, 1))
        ]
        shared = config.text.num_kv_shared_layers
        text = (
            f"Layers {ranges(s.index for s in lacking)}: no k_proj, and num_kv_shared_layers = {shared} has them make "
            "their keys; they come from layers that shared."
        )
        yield error("keys", text, [name for name in names if name not in shapes])
    if extra:
        yield error(
            "v_proj", f"{spelled(extra)}: attention_k_eq_v makes raw keys the values, so nobody reads it.", extra
        )
    if unread:
        text = f"{len(unread)} keys and values of sharing layers are read by nobody, as in released files."
        yield note("unread", text, unread)
    missing = [
        f"layers.{s.index}.self_attn.v_proj.weight"
        for s in config.text.layers
        if s.kv_from == s.index and not s.k_eq_v and f"layers.{s.index}.self_attn.k_proj.weight" in shapes
    ]
    missing = [name for name in missing if name not in shapes]
    if missing:
        text = f"{spelled(missing)} is missing, and attention_k_eq_v is not set for these layers' values to be keys."
        yield error("v_proj", text, missing)


def wide_mlp(shapes: Shapes, expected: Shapes, config):
    """Sharing layers, and they alone, may have an MLP of double width."""
    F, strays = config.text.intermediate_size, []
    for spec in config.text.layers:
        name = f"layers.{spec.index}.mlp.gate_proj.weight"
        if len(shapes.get(name, ())) == 2 and {shapes[name][0], spec.F} == {F, 2 * F}:
            strays.append(spec)
    for width in {s.F for s in strays}:
        some = [s.index for s in strays if width == s.F]
        names = [f"layers.{i}.mlp.{x}_proj.weight" for i in some for x in ("gate", "up", "down")]
        there = 3 * F - width
        text = (
            f"Layers {ranges(some)}: an MLP {there} wide, and not {width}; use_double_wide_mlp doubles that of sharing "
            "layers, and of no others."
        )
        yield error("double-wide", text, [name for name in names if name in shapes])


EXPERTS = ("experts.gate_up_proj", "experts.down_proj", "router.proj.weight", "router.per_expert_scale")


def expert_counts(shapes: Shapes, expected: Shapes, config):
    """The router's rows and scales follow the experts: pruning takes some of all four."""
    wrong: dict[str, list[str]] = defaultdict(list)
    for spec in config.text.layers:
        names = [f"layers.{spec.index}.{leaf}" for leaf in EXPERTS]
        counts = [shapes[name][0] for name in names if shapes.get(name)]
        if len(set(counts)) > 1:
            usual = max(set(counts), key=counts.count)
            told = ", ".join(f"{leaf} of {shapes[name][0]}" for leaf, name in zip(EXPERTS, names, strict=True)
                             if shapes.get(name))  # fmt: skip
            wrong[told] += [name for name in names if shapes.get(name) and shapes[name][0] != usual]
    for told, names in wrong.items():
        layers = ranges(int(name.split(".")[1]) for name in names)
        text = f"Layers {layers}: router and experts are not of one number of experts ({told}); prune all four alike."
        yield error("experts", text, names)


def tower_rule(tower: str, shapes: Shapes, part: Shapes, expected: Shapes) -> list[Finding]:
    """A tower is there, whole, or it is not; what is half there is left to `remaining`."""
    there = [name for name in shapes if re.match(rf"({tower}_tower|{tower}_embedder|embed_{tower})\.", name)]
    if there and part:
        expected |= part
    elif part:
        return [warning("tower", f"The config has a {tower} tower, and there is no tensor of one: it takes none.")]
    elif there:
        text = f"{len(there)} tensors of a {tower} tower are read by nobody: the config has no {tower}_config."
        expected |= {name: shapes[name] for name in there}
        return [note("tower", text, there)]
    return []


def remaining(shapes: Shapes, expected: Shapes, explained: set[str]) -> list[Finding]:
    """Missing, of another shape, read by nobody; one finding for each kind of tensor."""
    found = []
    missing = [name for name in expected if name not in shapes and name not in explained]
    for names in grouped(missing):
        found.append(error("missing", f"{spelled(names)} is missing.", names))
    wrong = [n for n, shape in expected.items() if n in shapes and shapes[n] != shape and n not in explained]
    for names in grouped(wrong):
        found.append(error("shape", wrong_shape(names, shapes, expected), names))
    strays = [name for name in shapes if name not in expected and name not in explained and name != "lm_head.weight"]
    for names in grouped(strays):
        found.append(error("stray", f"{spelled(names)} is read by nobody.", names))
    return found


def grouped(names) -> list[list[str]]:
    groups = defaultdict(list)
    for name in names:
        groups[leaf(name)].append(name)
    return list(groups.values())


def wrong_shape(names: list[str], shapes: Shapes, expected: Shapes) -> str:
    is_, due = shapes[names[0]], expected[names[0]]
    turned = len(due) == 2 and is_ == due[::-1]
    hint = ": it lies transposed, [in, out] and not [out, in]" if turned else ""
    several = " (the first of them)" if len(names) > 1 else ""
    return f"{spelled(names)} is {list(is_)}{several}, and the config makes it {list(due)}{hint}."


# dtypes


def dtype_rules(tensors: Tensors, told: object) -> list[Finding]:
    """One dtype for all, the one that the config tells."""
    tensors = {name: x for name, x in tensors.items() if isinstance(x, np.ndarray)}  # those that are not quantised
    counts = Counter(str(x.dtype) for x in tensors.values())
    odd = [name for name, x in tensors.items() if x.dtype.kind in "iub" and not name.endswith("token_ordering")]
    found = [error("dtype", f"{spelled(odd)} holds {tensors[odd[0]].dtype}, no weights.", odd)] if odd else []
    floats = {dtype: n for dtype, n in counts.items() if not dtype.startswith(("int", "uint", "bool"))}
    if not floats:
        return found
    usual = max(floats, key=lambda dtype: floats[dtype])
    if len(floats) > 1:
        mix = ", ".join(f"{n} in {dtype}" for dtype, n in sorted(floats.items(), key=lambda item: -item[1]))
        names = [n for n, x in tensors.items() if str(x.dtype) in floats.keys() - {usual}]
        found.append(warning("dtype", f"The tensors are of more than one dtype: {mix} ({spelled(names)}).", names))
    if isinstance(told, str) and told.removeprefix("torch.") not in ("auto", usual):
        found.append(warning("dtype", f"config.json tells dtype {told!r:.40}, and most tensors are {usual}."))
    return found
