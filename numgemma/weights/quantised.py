"""A quantised checkpoint as the model reads it: the leaves of each module become one matrix that decodes by rows.

What a module is, its leaves decide; config.json is asked only where they leave something open.  What no format
explains is refused by name: eight-bit numbers without their scales would run, and mean nothing.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from numgemma.config import section
from numgemma.errors import InputError
from numgemma.weights import bnb, compressed, fp8, gptq, mlx, mobile
from numgemma.weights.packed import Entering, Packed, agree, format_of, joined, stacked

FORMATS = (bnb, mlx, gptq, mobile, fp8, compressed)

# What stands behind a module's name, of any format; `weight` itself has no suffix to be told by.
LEAF = re.compile(
    r"(.+?)\.(weight(?:_packed|_scale|_scale_2|_scale_inv|_shape|_zero_point|_g_idx|_global_scale|_format)?"
    r"|weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)|SCB"
    r"|qweight|qzeros|scales|biases|g_idx|embedding_quantized|embedding_scale|[kv](?:_cache)?_scale"
    r"|(?:input|output)_(?:activation_|global_)?scale|input_zero_point|activation_scale)"
)
ENTER: tuple[str, ...] = ("input_scale", "activation_scale", "input_zero_point", "input_global_scale")
ENTER += ("input_activation_scale", "output_activation_scale")
FUSED = re.compile(r"(.+\.experts\.(?:gate_up|down)_proj)_(packed|scale|zero_point|shape|global_scale)")
NOT_READ = {"_weight_qdata": "torchao", "weight._data": "quanto", "weight_qdata": "torchao"}
ORIGINAL = "name the unquantised original, or dequantise it with its scales"


def unpacked(path, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors by the model's names, each module's codes and scales as one Packed.

    tensors: by short names, as they lie in the file.  Raises InputError where codes stand without what decodes them.
    """
    found: dict[str, Any] = {}
    modules: dict[str, dict[str, Any]] = defaultdict(dict)
    stacks: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, tensor in mlx.channels_first(dict(tensors)).items():
        refuse_unread(path, name)
        split, experts = LEAF.fullmatch(name), FUSED.fullmatch(name)
        if experts:
            stacks[experts[1]][f"weight_{experts[2]}"] = tensor
        elif split:
            modules[split[1]][split[2]] = tensor
        else:
            found[name] = tensor
    said = [section(config, key, path) for key in ("quantization_config", "quantization")]
    settings: dict[str, Any] = next(filter(None, said), {})
    for module, leaves in modules.items():
        found |= decoded(path, module, leaves, of_module(settings, module))
    for module, leaves in stacks.items():
        found[module] = of_experts(f"{path}: {module}", leaves, of_module(settings, module))
    found = with_experts(path, found)
    return {name: found[name] for name in tensors if name in found} | found  # in the file's order


def refuse_unread(path, name):
    for ending, kind in NOT_READ.items():
        if name.endswith(ending):
            raise InputError(f"{path}: tensor {name!r:.120} is quantised by {kind}, which is not read; {ORIGINAL}.")


def decoded(path, module, leaves, settings):
    """A module's tensors: its weight decoded where a format claims the leaves, and its plain ones as they are."""
    where = f"{path}: {module}"
    for form in FORMATS:
        if form.claims(leaves):
            check_shapes(where, leaves)
            bias = {f"{module}.bias": leaves["bias"]} if "bias" in leaves else {}
            return {f"{module}.weight": replace(form.read(where, leaves, settings), enters=entering(leaves))} | bias
    weight = leaves.get("weight")
    if weight is not None and (weight.dtype.kind in "iu" or weight.dtype.itemsize == 1):
        raise InputError(
            f"{where}.weight is {format_of(weight)} without scales, and codes mean nothing without them; {ORIGINAL}."
        )
    return {f"{module}.{leaf}": tensor for leaf, tensor in leaves.items() if leaf not in UNREAD}


def entering(leaves) -> Entering | None:
    """What the file has measured of what enters a module; None where each token has a scale of its own.

    compressed-tensors' input_global_scale divides the scales of NVFP4, where ModelOpt's input_scale multiplies them.
    """
    single = {leaf: leaves[leaf] for leaf in ENTER if leaf in leaves and leaves[leaf].size == 1}
    said = {leaf: float(np.ravel(x).astype(np.float32)[0]) for leaf, x in single.items()}
    scale, out = (said.get(f"{side}_activation_scale", 0.0) for side in ("input", "output"))  # of mobile files
    if said.get("input_global_scale", 0.0) > 0:
        scale = 1 / said["input_global_scale"]
    scale = said.get("input_scale", said.get("activation_scale", scale))
    unread = "input_zero_point" in leaves and "input_zero_point" not in said
    held = 0 <= scale < np.inf and 0 <= out < np.inf and (scale > 0 or out > 0)
    return Entering(scale, said.get("input_zero_point", 0.0), out) if held and not unread else None


def of_experts(where, leaves, settings):
    """All experts' matrices of one kind, whose codes lie in one tensor."""
    if "weight_packed" not in leaves or "weight_scale" not in leaves:
        raise InputError(f"{where}: has {', '.join(sorted(leaves))} alone, and codes need scales; {ORIGINAL}.")
    return compressed.fused(where, leaves, settings)


UNREAD = frozenset(name for form in FORMATS for name in form.UNREAD)


def check_shapes(where, leaves):
    """Codes and scales have axes at all: what they are to each other the format checks."""
    least = {"weight": 2, "weight_packed": 2, "qweight": 2, "qzeros": 2, "scales": 2, "biases": 2}
    least |= {"weight_scale": 0, "weight_scale_inv": 0}
    for leaf, axes in least.items():
        if leaf in leaves and (leaves[leaf].size == 0 or leaves[leaf].ndim < axes):
            raise InputError(f"{where}.{leaf} has the shape {list(leaves[leaf].shape)}; download it again.")


def of_module(settings, module):
    """What the config says of one module: its own words before those for all.  MLX's come without a mode of theirs."""
    for key, own in settings.items():
        if isinstance(own, dict) and re.sub(r"^(language_model\.)?(model\.)?(language_model\.)?", "", key) == module:
            return {"mode": "affine"} | own | {"module": module}
    return dict(settings) | {"module": module}


def with_experts(path, tensors):
    """Experts that the file holds one by one, or gate and up apart, as the two stacks that the model reads."""
    scopes: dict[str, dict[Any, Any]] = defaultdict(dict)
    plain: dict[str, Any] = {}
    for name, tensor in tensors.items():
        one = re.fullmatch(r"(.*experts)\.(?:(\d+)|switch_glu|switch_mlp)\.(gate|up|down|gate_up)_proj\.weight", name)
        if one:
            scopes[one[1]][one[3], one[2]] = tensor
        else:
            plain[name] = tensor
    for scope, parts in scopes.items():
        for kind, tensor in assembled(f"{path}: {scope}", parts).items():
            plain[f"{scope}.{kind}"] = tensor
    return plain


def assembled(where, parts):
    """(which matrix, which expert) -> tensor, as gate_up_proj E 2F D and down_proj E D F."""
    numbers = sorted({int(e) for _, e in parts if e is not None})

    def matrices(kind):
        if (kind, None) in parts:
            return list(parts[kind, None])
        return [parts[kind, str(e)] for e in numbers if (kind, str(e)) in parts]

    gate, up, both, down = (matrices(kind) for kind in ("gate", "up", "gate_up", "down"))
    for some in (gate + up, both, down):
        agree(where, all(w.shape == some[0].shape and w.ndim == 2 for w in some))
    found = {"gate_up_proj": both, "down_proj": down}
    stacks = {name: stacked(some, format_of(some[0])) for name, some in found.items() if some}
    if gate and len(gate) == len(up):
        stacks["gate_up_proj"] = joined(list(zip(gate, up, strict=True)), format_of(gate[0]))
    return stacks


def refuse_quantised(path, tensors) -> None:
    """Raises InputError for a checkpoint of which parts are codes: a child is built from numbers as they are."""
    form = next((tensor.dtype for tensor in tensors.values() if isinstance(tensor, Packed)), None)
    if form is not None:
        raise InputError(f"{path}: holds {form}, and checkpoints are built from floats; name the unquantised original.")
