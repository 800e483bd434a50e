"""What Transformers' `model_addition_debugger_context` writes: a folder of safetensors, or a tree of printed tensors.

Only leaf modules keep their outputs, so what a composite module returns is read off the input of the next one: the
input of layer i + 1 is the output of layer i.  With `use_repr=False` all layers lie on disk although the tree names
the first and last only, so the files are read, not the tree.  A module that runs twice overwrites its file: the two
rotary tables do, and are left out; so does every step of `generate`, which is refused.

A printed tensor has four decimals behind its leading digit and, when it is large, only the first and last three
values along each axis; the summary has its mean, deviation and extremes alone.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from numgemma.debug.measure.overlap import STATS
from numgemma.debug.readers.common import Haul, make_dump, token_ids
from numgemma.debug.readers.names import Unfit, axes_of, fit, is_batched, ours, sizes_for
from numgemma.errors import InputError
from numgemma.incoming import MOST, parse_json, read_bytes
from numgemma.smallfloats import BFLOAT16, kept
from numgemma.weights.safetensors import MAX_TENSORS, open_safetensors

SLOT = r"(outputs|inputs)(?:_(\w+))?"
NUMBER = re.compile(r"-?(?:inf|nan|\d+\.?\d*(?:e[+-]\d+)?)")
DTYPES = {f"torch.{name}": np.dtype(name) for name in ("float64", "float32", "float16", "int64", "int32")}
DTYPES["torch.bfloat16"] = BFLOAT16
DEEPEST = 200  # of modules within modules

# the input of a module is a point of ours: (module, argument) -> our point.  {i}: that layer, {p}: the one before it
INPUTS = {
    ("layers.{i}", "args_0"): "layers.{p}.out",
    ("norm", "args_0"): "layers.{last}.out",
    ("layers.{i}.pre_feedforward_layernorm", "args_0"): "layers.{i}.after_attention",
    ("layers.{i}.self_attn.o_proj", "args_0"): "layers.{i}.self_attn.context",
    ("layers.{i}.per_layer_input_gate", "args_0"): "layers.{i}.after_mlp",
    ("layers.{i}.post_feedforward_layernorm_2", "args_0"): "layers.{i}.experts",
    ("layers.{i}.experts", "args_1"): "layers.{i}.router.ids",
    ("layers.{i}.experts", "args_2"): "layers.{i}.router.weights",
}
TWICE = "runs twice, and the second run overwrites the first"


@dataclass(frozen=True)
class Passed:
    """One tensor that went into or came out of a module; part says what is known of it when it was printed."""

    module: str  # without class and prefixes; "" is the model itself
    slot: str  # "outputs", "outputs_logits", "inputs_args_0", "inputs_kwargs_input_ids"
    array: np.ndarray
    dtype: np.dtype  # that it had in the model
    part: dict[str, Any] | None = None


def read_hf_debugger(path, config=None):
    """A Dump from the debugger's folder, or from one of its two JSON files."""
    seen = list(from_files(path) if path.is_dir() and any(path.glob("*_outputs*.safetensors")) else from_tree(path))
    inputs = {s.slot: s.array for s in seen if s.module == "" and "input_ids" in s.slot}
    ids = next((token_ids(x, path) for x in inputs.values() if x.size), None)
    check_first_step(seen, path)
    chosen, unused = select(seen)
    haul = Haul({}, {}, unused=unused)
    assemble(haul, chosen, config, path)
    kinds = Counter(
        "bfloat16" if s.dtype == BFLOAT16 else str(s.dtype) for _, _, s in chosen if s.dtype.kind not in "iub"
    )
    precision = kinds.most_common(1)[0][0] if kinds else None
    return make_dump(path, "transformers", haul, ids=ids, precision=precision, rounded="rounded:5 digits")


def module_name(text):
    """Gemma4ForCausalLM.model.layers.0.mlp -> layers.0.mlp; the class alone -> "" """
    text = re.sub(r"^\w+( \(top-level\))?(\.|$)", "", text)
    return re.sub(r"^((model|language_model)(\.|$))+", "", text) if text else ""


def from_files(folder) -> Iterator[Passed]:
    for file in sorted(folder.glob("*.safetensors")):
        match = re.fullmatch(rf"(.+?)_{SLOT}\.safetensors", file.name)
        tensors = open_safetensors(file).tensors
        if match and list(tensors) == ["data"]:
            slot = match[2] + (f"_{match[3]}" if match[3] else "")
            inner = module_name(match[1])
            if inner or "." not in match[1]:  # `model` itself takes the ids too
                yield Passed(inner, slot, tensors["data"], tensors["data"].dtype)


def from_tree(path) -> Iterator[Passed]:
    """The tensors of a JSON tree; of a folder, the tree with values before the one without."""
    if path.is_dir():
        path = max(path.glob("*_debug_tree_*.json"), key=lambda p: "FULL_TENSORS" in p.name)
    tree = parse_json(read_bytes(path, most=2 * MOST), f"{path}: the debugger's tree", "dump with use_repr=False")
    try:
        seen = list(walk(tree))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, OverflowError) as error:
        raise InputError(f"{path}: is not the debugger's tree ({error}); write it again.") from None
    return iter(seen)


def walk(tree) -> Iterator[Passed]:
    """Every tensor of the tree, in the order in which the modules began."""
    stack = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        if depth > DEEPEST or len(stack) > MAX_TENSORS:
            raise ValueError("too many modules, or too deep")
        module = module_name(node["module_path"])
        top = not re.search(r"\.", node["module_path"])
        if module or top:
            for slot in ("inputs", "outputs"):
                for name, leaf in leaves(slot, node.get(slot), 0):
                    dtype = DTYPES.get(leaf["dtype"], np.dtype(np.float32))
                    yield Passed(module, name, *parse(leaf, dtype))
        stack += [(child, depth + 1) for child in reversed(node.get("children") or [])]


def leaves(name, value, depth):
    """The tensors within a node's inputs or outputs, under the names that their files would have."""
    if isinstance(value, dict) and isinstance(value.get("shape"), str) and "dtype" in value:
        yield name, value
    elif isinstance(value, (dict, list)) and depth < 5:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from leaves(f"{name}_{key}", inner, depth + 1)


def parse(leaf, dtype):
    """A printed tensor: the array of its known values, its dtype, and how they lie in the whole."""
    shape = [int(n) for n in re.findall(r"\d{1,18}", leaf["shape"])]
    stats = {key: first_number(leaf[key]) for key in ("mean", "std", "min", "max") if key in leaf}
    text = "\n".join(leaf["value"]) if isinstance(leaf.get("value"), list) else ""
    body = re.sub(r", (dtype|size|device|grad_fn)=.*", "", text, flags=re.DOTALL).partition("(")[2]
    values = [float(v) for v in NUMBER.findall(body.replace("...", " "))]
    elided = "..." in body
    at = [[*range(3), *range(n - 3, n)] if elided and n > 6 else None for n in shape]
    sizes = [n if i is None else len(i) for n, i in zip(shape, at, strict=True)]
    if math.prod(sizes) != len(values):  # the summary, or another printing of numbers: only the statistics are known
        at, sizes, values = [[] for _ in shape], [0] * len(shape), []
    x = np.array(values, np.float64).reshape(sizes)
    narrow = dtype.itemsize <= 2 or dtype.kind in "iub"  # five digits say which number of 16 bits it was
    part = {"shape": shape, "at": at, "slack": None if narrow and values else {"digits": 4}} | stats
    if not values and not stats:
        part = {"shape": shape, "at": at, "slack": None}
    return kept(x, dtype) if narrow else x, dtype, part


def first_number(text):
    match = NUMBER.search(text.partition("(")[2])
    return float(match[0]) if match else None


def check_first_step(seen, path):
    """A run of `generate` leaves its last step: keys and values of the tokens before are not in it."""
    for s in seen:
        if s.slot.endswith("position_ids") and s.array.size and int(np.asarray(s.array).flat[0]) > 0:
            at = int(np.asarray(s.array).flat[0])
            raise InputError(f"{path}: holds one step of generate, from position {at}; call model.forward once.")


def select(seen):
    """Which tensor is which point: [(point, label, Passed)], and label -> why not for the others."""
    last = max((int(m[1]) for s in seen if (m := re.match(r"layers\.(\d+)\.", s.module))), default=0)
    chosen: dict[str, tuple[str, Passed]] = {}
    unused: dict[str, str] = {}
    for s in seen:
        point, label = point_of(s, last), f"{s.module}_{s.slot}".lstrip("_")
        if s.module == "rotary_emb":
            unused[label] = TWICE
        elif point is not None:
            chosen.setdefault(point, (label, s))
        elif s.slot.startswith("outputs"):
            unused[label] = "no point of ours"
    return [(point, label, s) for point, (label, s) in chosen.items()], unused


def point_of(s, last):
    """Our point, or None.  The slices of the per-layer inputs are gathered under a name each, `per_layer_inputs.3`."""
    if s.slot == "outputs":
        return ours(s.module) if not re.search(r"act_fn|rotary|layers\.\d+$", s.module) else None
    if (s.module, s.slot) == ("", "outputs_logits"):
        return "logits"
    match = re.match(r"layers\.(\d+)(?=\.|$)", s.module)
    i, key = (int(match[1]), s.module.replace(match[0], "layers.{i}", 1)) if match else (None, s.module)
    if (key, s.slot) == ("layers.{i}", "inputs_args_1"):
        return f"per_layer_inputs.{i}"
    target = INPUTS.get((key, s.slot.removeprefix("inputs_")))
    if target is None or (i == 0 and "{p}" in target):
        return None
    return target.format(i=i, p=None if i is None else i - 1, last=last)


def assemble(haul, chosen, config, path):
    """Fills a haul; batch axis dropped, heads split where the config is given."""
    batched = is_batched([(point, s.part["shape"] if s.part else s.array.shape) for point, _, s in chosen], path)
    slices = {}
    for point, label, s in chosen:
        if point.startswith("per_layer_inputs."):
            slices[int(point.rpartition(".")[2])] = s
            continue
        try:
            x, letters, part = place(point, s, sizes_for(point, config), batched)
        except Unfit as error:
            haul.unused[label] = str(error)
            continue
        haul.arrays[point], haul.axes[point] = x, letters
        if part:
            haul.parts[point] = part
    if slices and sorted(slices) == list(range(len(slices))) and not any(s.part for s in slices.values()):
        stacked = [slices[i].array.reshape(slices[i].array.shape[-2:]) for i in slices]
        haul.arrays["per_layer_inputs"] = np.stack(stacked, 1)
        haul.axes["per_layer_inputs"] = axes_of("per_layer_inputs")


def place(point, s, sizes, batched):
    """One tensor under our axes."""
    if s.part is None:
        return *fit(point, s.array, sizes, batched), None
    if not s.array.size and not set(s.part) & set(STATS):
        raise Unfit("has neither values nor statistics")
    letters, shape = axes_of(point).split(), s.part["shape"]
    drop = 1 if len(shape) > len(letters) - (len(letters) == 3 and batched) and shape[0] == 1 else 0
    shape, at = shape[drop:], s.part["at"][drop:]
    if len(shape) == len(letters) - 1 and len(letters) == 3:
        letters = [letters[0], "".join(letters[1:])]  # what was printed of joined axes cannot be split
    if len(shape) != len(letters):
        raise Unfit(f"has the shape {s.part['shape']}, not '{' '.join(letters)}'")
    x = s.array.reshape(s.array.shape[drop:]) if s.array.size else np.zeros([0] * len(shape), s.array.dtype)
    part = s.part | {"shape": shape, "at": at}
    exact = part["slack"] is None and list(x.shape) == shape
    return x, " ".join(letters), None if exact else part
