"""Whose tensor is it: other engines' names -> our points, with their axes, batch axis dropped, joined axes split."""

import re

from numgemma.errors import InputError

# What each point's axes are, by the end of its name.  The axis key stands in attention.py.
LEAVES = {
    **dict.fromkeys(("q_proj", "q_norm", "q_rope", "context"), "T N H"),
    **dict.fromkeys(("k_proj", "k_norm", "k_rope", "v_proj", "v_norm"), "T K H"),
    **dict.fromkeys(("scores", "probs"), "N T S"),
    **dict.fromkeys(("gate_proj", "up_proj"), "T F"),
    **dict.fromkeys(("router.proj", "router.probs"), "T E"),
    **dict.fromkeys(("router.weights", "router.ids"), "T J"),
    "per_layer_input_gate": "T P",
    **dict.fromkeys(("embed_tokens_per_layer", "per_layer_model_projection"), "T LP"),
    **dict.fromkeys(("per_layer_projection_norm", "per_layer_inputs"), "T L P"),
    **dict.fromkeys(("lm_head", "logits"), "T V"),
    **dict.fromkeys(("cos", "sin"), "T H"),
}
PLAIN = (  # T D
    *("embed_tokens", "inputs_embeds", "norm", "out", "after_attention", "after_mlp", "experts", "router.norm"),
    *("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    *("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2"),
    *("o_proj", "down_proj", "per_layer_projection", "post_per_layer_input_norm"),
)
LEAVES |= dict.fromkeys(PLAIN, "T D")

TOP = {"embed_tokens", "inputs_embeds", "norm", "lm_head", "logits", "embed_tokens_per_layer"}
TOP |= {"per_layer_model_projection", "per_layer_projection_norm", "per_layer_inputs"}
IN_ATTENTION = r"self_attn\.([qk]_(proj|norm|rope)|v_(proj|norm)|scores|probs|context|o_proj)"
IN_LAYER = rf"layers\.\d+\.({IN_ATTENTION}|mlp\.(gate|up|down)_proj|router\.\w+|\w+)"
TABLES = r"rotary_emb\.(full|sliding)_attention\.(cos|sin)"
TOWERS = r"(vision_tower|audio_tower|embed_vision|embed_audio)\.[\w.]+"


ORDER = (  # of execution, within a layer
    *("input_layernorm", "q_proj", "q_norm", "q_rope", "k_proj", "v_proj", "k_norm", "k_rope", "v_norm", "scores"),
    *("probs", "context", "o_proj", "post_attention_layernorm", "after_attention", "pre_feedforward_layernorm"),
    *("gate_proj", "up_proj", "down_proj", "post_feedforward_layernorm_1", "router.norm", "router.proj"),
    *("router.probs", "router.weights", "router.ids", "pre_feedforward_layernorm_2", "experts"),
    *("post_feedforward_layernorm_2", "post_feedforward_layernorm", "after_mlp", "per_layer_input_gate"),
    *("per_layer_projection", "post_per_layer_input_norm", "out"),
)
BEFORE = (
    *("embed_tokens", "embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm"),
    *("per_layer_inputs", "inputs_embeds"),
)
AFTER = ("norm", "lm_head", "logits")


def place_in_order(name):
    """A sort key: our points in the order in which a run makes them, whatever order a folder lists them in."""
    if name in BEFORE:
        return (1, BEFORE.index(name), 0)
    match = re.match(r"layers\.(\d+)\.(?:self_attn\.|mlp\.)?(.+)", name)
    if match:
        return (2, int(match[1]), ORDER.index(match[2]) if match[2] in ORDER else len(ORDER))
    return (3, AFTER.index(name), 0) if name in AFTER else (0, 0, 0)  # towers, rotary tables: first, as they came


def ours(name):
    """The point a tensor of that name is, or None: module paths, with or without the usual prefixes."""
    name = re.sub(r"^[A-Z]\w*\.", "", name)  # the class that Transformers' debugger puts first
    name = re.sub(r"^((model|language_model|base_model|transformer)\.)*", "", name)
    name = re.sub(r"\.(output|outputs|weight_output)$", "", name)
    name = re.sub(r"^(layers\.\d+)$", r"\1.out", name)
    return name if axes_of(name) is not None else None


def axes_of(name):
    """The axes of one of our points; "" where we do not know them; None for a name that is no point."""
    if re.fullmatch(TOWERS, name):
        return ""
    if name in TOP or re.fullmatch(TABLES, name):
        return LEAVES[name.rpartition(".")[2]]
    if not re.fullmatch(IN_LAYER, name):
        return None
    *_, scope, leaf = name.split(".")
    return LEAVES.get(f"router.{leaf}") if scope == "router" else LEAVES.get(leaf)


def sizes_for(name, config):
    """Axis letter -> size in that point's layer, as far as the model's config says."""
    if config is None:
        return {}
    sizes = {"L": len(config.layers), "P": config.per_layer}
    match = re.match(r"layers\.(\d+)\.", name)
    if match and int(match[1]) < len(config.layers):
        spec = config.layers[int(match[1])]
        sizes |= {"N": spec.N, "K": spec.K, "H": spec.H}
    return sizes


def fit(name, x, sizes, batched):
    """A tensor without its batch axis, its joined axes split where the sizes are known: (x, axes).

    Raises Unfit where the shape cannot be that point's.
    """
    axes = axes_of(name) or ""
    letters = axes.split()
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


class Unfit(ValueError):
    """A tensor that has a point's name and not its shape; the text says how."""


def is_batched(shapes):
    """Whether the stream comes as 1 T D: decided once for a dump, since of [1, T, NH] alone nobody can tell.

    shapes: (point, shape) pairs.  Raises InputError for more than one sequence.
    """
    batches = {shape[0] for name, shape in shapes if axes_of(name) in ("T D", "T V", "T F") and len(shape) == 3}
    if batches - {1}:
        raise InputError(f"a batch of {max(batches)} sequences was dumped; run one sequence, without padding.")
    return bool(batches)
