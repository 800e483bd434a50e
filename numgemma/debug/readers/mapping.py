"""A map file: their name -> our point, where the names are not module paths.

    {"blk.{i}.attn": "layers.{i}.self_attn.o_proj",
     "k_rotated_{i}": {"point": "layers.{i}.self_attn.k_rope", "transpose": [1, 0, 2]},
     "special": {"point": "layers.0.out", "axes": "T D"}}

`{i}` stands for a number, in both names the same; `transpose` is applied first.  A preset stands for such a file.
"""

import re
from pathlib import Path

import numpy as np

from numgemma.config import typed
from numgemma.debug.measure.discrete import layer_of
from numgemma.debug.readers.names import axes_of, ours, template
from numgemma.errors import InputError
from numgemma.incoming import read_object

PRESETS = {
    "max": {"layer_{i}": "layers.{i}.out", "embedding": "embed_tokens", "final_norm": "norm"},  # Modular MAX's recipe
    # DeepMind's gemma in Flax, a dense layer (beside experts its norms exchange their numbers); a module may be called
    # without its `__call__` being named
    "deepmind": {
        f"{theirs}{call}": ours
        for theirs, ours in {
            "layer_{i}": "layers.{i}.out",
            "layer_{i}.pre_attention_norm": "layers.{i}.input_layernorm",
            "layer_{i}.attn.q_einsum": "layers.{i}.self_attn.q_proj",
            "layer_{i}.attn.k_einsum": "layers.{i}.self_attn.k_proj",
            "layer_{i}.attn.query_norm": "layers.{i}.self_attn.q_norm",
            "layer_{i}.attn.key_norm": "layers.{i}.self_attn.k_norm",
            "layer_{i}.attn.value_norm": "layers.{i}.self_attn.v_norm",
            "layer_{i}.attn.attn_vec_einsum": "layers.{i}.self_attn.o_proj",
            "layer_{i}.post_attention_norm": "layers.{i}.post_attention_layernorm",
            "layer_{i}.pre_ffw_norm": "layers.{i}.pre_feedforward_layernorm",
            "layer_{i}.mlp": "layers.{i}.mlp.down_proj",
            "layer_{i}.post_ffw_norm": "layers.{i}.post_feedforward_layernorm",
            "layer_{i}.per_layer_input_gate": "layers.{i}.per_layer_input_gate",
            "layer_{i}.per_layer_projection": "layers.{i}.per_layer_projection",
            "layer_{i}.post_per_layer_input_norm": "layers.{i}.post_per_layer_input_norm",
            "final_norm": "norm",
        }.items()
        for call in (".__call__", "")
    },
    # a cache of TransformerLens' bridge to Transformers; left out is what it calls otherwise than the module computes
    "transformerlens": {
        f"{theirs}.hook_out": ours
        for theirs, ours in {
            "embed": "embed_tokens",
            "blocks.{i}": "layers.{i}.out",
            "blocks.{i}.ln1": "layers.{i}.input_layernorm",
            "blocks.{i}.attn.q": "layers.{i}.self_attn.q_proj",
            "blocks.{i}.attn.k": "layers.{i}.self_attn.k_proj",
            "blocks.{i}.attn.v": "layers.{i}.self_attn.v_proj",
            "blocks.{i}.attn.q_norm": "layers.{i}.self_attn.q_norm",
            "blocks.{i}.attn.k_norm": "layers.{i}.self_attn.k_norm",
            "blocks.{i}.attn.v_norm": "layers.{i}.self_attn.v_norm",
            "blocks.{i}.attn.o": "layers.{i}.self_attn.o_proj",
            "blocks.{i}.ln1_post": "layers.{i}.post_attention_layernorm",
            "blocks.{i}.ln2": "layers.{i}.pre_feedforward_layernorm",
            "blocks.{i}.mlp.gate": "layers.{i}.mlp.gate_proj",
            "blocks.{i}.mlp.in": "layers.{i}.mlp.up_proj",
            "blocks.{i}.mlp.out": "layers.{i}.mlp.down_proj",
            "blocks.{i}.ln2_post_moe_1": "layers.{i}.post_feedforward_layernorm_1",
            "blocks.{i}.ln2_pre_moe_2": "layers.{i}.pre_feedforward_layernorm_2",
            "blocks.{i}.ln2_post_moe_2": "layers.{i}.post_feedforward_layernorm_2",
            "blocks.{i}.ln2_post": "layers.{i}.post_feedforward_layernorm",
            "ln_final": "norm",
            "unembed": "lm_head",
        }.items()
    }
    | {"hook_embed": "embed_tokens", "blocks.{i}.hook_resid_post": "layers.{i}.out"},
}
HOOKED = re.compile(r"blocks\.\d+\..*\bhook_\w+")
KEYS = {"point", "axes", "transpose"}


def by_itself(labels) -> str | None:
    """The preset that names speak for, where nobody has given a map."""
    return "transformerlens" if any(HOOKED.fullmatch(label) for label in labels) else None


class Mapping:
    """Finds the point for each of another engine's names.  table: a path, a preset's name, a dict, or None."""

    def __init__(self, table, path):
        self.axes, self.rules = {}, []
        self.source = table if isinstance(table, (str, Path)) else path
        for theirs, rule in load(table).items():
            self.rules.append((pattern(theirs), self.checked(theirs, rule)))

    def checked(self, theirs, rule):
        rule = {"point": rule} if isinstance(rule, str) else rule
        if not isinstance(rule, dict) or not isinstance(rule.get("point"), str) or not set(rule) <= KEYS:
            raise InputError(f"{self.source}: '{theirs:.60}' should map to a point, or to an object with a `point`.")
        typed(rule.get("axes", ""), str, f"{self.source}: axes of '{theirs:.60}'")
        typed(rule.get("transpose", []), list[int] | tuple[int, ...], f"{self.source}: transpose of '{theirs:.60}'")
        if axes_of(rule["point"].replace("{i}", "0")) is None and "axes" not in rule:
            raise InputError(f"{self.source}: '{rule['point']:.60}' is no point of ours; `numgemma dump` names them.")
        return rule

    def points(self, label, x, config):
        """(point, array) for a tensor; several where it holds several joined; (None, x) where it is none of ours."""
        for regex, rule in self.rules:
            if match := regex.fullmatch(label):
                point = rule["point"].replace("{i}", str(int(match.groupdict().get("i") or 0)))
                check_layer(self.source, label, point, config)
                if "axes" in rule:
                    self.axes[point] = rule["axes"]
                return [(point, self.transposed(x, rule, label))]
        return fused(label, x, config) or [(ours(label), x)]

    def transposed(self, x, rule, label):
        try:
            return np.transpose(x, rule["transpose"]) if "transpose" in rule else x
        except (ValueError, TypeError):
            raise InputError(
                f"{self.source}: 'transpose' {rule['transpose']} does not fit '{label:.60}' of {list(x.shape)}."
            ) from None


def check_layer(source, label, point, config):
    """A map names no layer behind the last one."""
    layer, depth = layer_of(point), len(config.layers) if config is not None else None
    if layer is not None and depth is not None and layer >= depth:
        text = f"{source}: '{label:.60}' -> {point}, which is no point of a model of {depth} layers"
        counted = layer == depth and "{}.out" in template(point)
        more = (
            "; the list is off by one: entry 0 is the embeddings, i the output of layer i - 1, the last one is normed"
        )
        raise InputError(f"{text}{more if counted else '; correct the map'}.")


def load(table):
    if table is None or isinstance(table, dict):
        return table or {}
    if str(table) in PRESETS:
        return PRESETS[str(table)]
    return read_object(Path(table), f"give a JSON file, or one of the presets {', '.join(PRESETS)}")


def pattern(theirs):
    """A name with {i} as a regular expression."""
    first, *rest = re.escape(theirs).split(re.escape("{i}"))
    if not rest:
        return re.compile(first)
    return re.compile(first + r"(?P<i>\d{1,6})" + r"(?P=i)".join(rest))


def fused(label, x, config):
    """The parts of a product that an engine makes in one; nothing where it is none or the widths are not known."""
    match = re.fullmatch(r"(.*layers\.(\d+)\.)(self_attn\.qkv_proj|mlp\.gate_up_proj)", label)
    if not match or config is None or int(match[2]) >= len(config.layers):
        return []
    spec, layer = config.layers[int(match[2])], f"layers.{int(match[2])}."
    if match[3] == "mlp.gate_up_proj":
        widths = {"mlp.gate_proj": spec.F, "mlp.up_proj": spec.F}
    else:
        kv = spec.K * spec.H
        widths = {"self_attn.q_proj": spec.N * spec.H, "self_attn.k_proj": kv, "self_attn.v_proj": kv}
        if x.shape[-1] == spec.N * spec.H:
            return [(f"{layer}self_attn.q_proj", x)]
    if x.ndim < 2 or x.shape[-1] != sum(widths.values()):
        return []
    parts = np.split(x, np.cumsum(list(widths.values()))[:-1], axis=-1)
    points = [(layer + name, part) for name, part in zip(widths, parts, strict=True)]
    return points[:2] if spec.k_eq_v and "qkv" in match[3] else points  # its values are its raw keys
