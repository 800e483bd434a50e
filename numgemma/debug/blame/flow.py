"""Which points a point is computed from: the arrows of the architecture figure, backwards.

With them a step between two recorded points has a name, however many operations lie between:
`layers.4.self_attn.{q_norm, k_norm, v_norm -> o_proj}`.
"""

import re

from numgemma.debug.blame import flow_towers

# Inside one layer.  "<" is the stream that enters the layer; "donor" the layer whose keys and values are read.
LAYER = {
    "input_layernorm": ["<"],
    "self_attn.q_proj": ["input_layernorm"],
    "self_attn.q_norm": ["self_attn.q_proj"],
    "self_attn.q_rope": ["self_attn.q_norm", "cos", "sin"],
    "self_attn.k_proj": ["input_layernorm"],
    "self_attn.k_norm": ["self_attn.k_proj"],
    "self_attn.k_rope": ["self_attn.k_norm", "cos", "sin"],
    "self_attn.v_proj": ["input_layernorm"],
    "self_attn.v_norm": ["self_attn.v_proj"],
    "self_attn.scores": ["self_attn.q_rope", "donor k_rope"],
    "self_attn.probs": ["self_attn.scores"],
    "self_attn.context": ["self_attn.probs", "donor v_norm"],
    "self_attn.o_proj": ["self_attn.context"],
    "post_attention_layernorm": ["self_attn.o_proj"],
    "after_attention": ["<", "post_attention_layernorm"],
    "pre_feedforward_layernorm": ["after_attention"],
    "mlp.gate_proj": ["pre_feedforward_layernorm"],
    "mlp.up_proj": ["pre_feedforward_layernorm"],
    "mlp.down_proj": ["mlp.gate_proj", "mlp.up_proj"],
    "post_feedforward_layernorm": ["mlp.down_proj"],
    "after_mlp": ["after_attention", "post_feedforward_layernorm"],
    "out": ["after_mlp"],
}

EXPERTS = {
    "post_feedforward_layernorm_1": ["mlp.down_proj"],
    "router.norm": ["after_attention"],
    "router.proj": ["router.norm"],
    "router.probs": ["router.proj"],
    "router.weights": ["router.probs"],
    "router.ids": ["router.probs"],
    "pre_feedforward_layernorm_2": ["after_attention"],
    "experts": ["pre_feedforward_layernorm_2", "router.weights", "router.ids"],
    "post_feedforward_layernorm_2": ["experts"],
    "post_feedforward_layernorm": ["post_feedforward_layernorm_1", "post_feedforward_layernorm_2"],
}

PER_LAYER = {
    "per_layer_input_gate": ["after_mlp"],
    "per_layer_projection": ["per_layer_input_gate", "ple"],
    "post_per_layer_input_norm": ["per_layer_projection"],
    "out": ["after_mlp", "post_per_layer_input_norm"],
}

AROUND = {
    "embed_tokens": [],
    "embed_tokens_per_layer": [],
    "per_layer_model_projection": ["embeds"],
    "per_layer_projection_norm": ["per_layer_model_projection"],
    "per_layer_inputs": ["embed_tokens_per_layer", "per_layer_projection_norm"],
    "lm_head": ["norm"],
    "logits": ["lm_head"],
}


def parents(name, config, soft=()):
    """The points that a point is computed from; none for what has no arrows.  config: the whole Config

    soft: the points whose tensors take the place of placeholders, where there are any.
    """
    text, embeds = config.text, "inputs_embeds" if soft else "embed_tokens"
    if name == "norm":
        return [f"layers.{text.num_hidden_layers - 1}.out"]
    if name == "inputs_embeds":
        return ["embed_tokens", *soft]
    if name in AROUND:
        return [embeds if p == "embeds" else p for p in AROUND[name]]
    found = re.fullmatch(r"layers\.(\d+)\.(.*)", name)
    if not found:
        return flow_towers.parents(name, config)
    spec, leaf = text.layers[int(found[1])], found[2]
    named = {
        "<": f"layers.{spec.index - 1}.out" if spec.index else embeds,
        "cos": f"rotary_emb.{spec.kind}.cos",
        "sin": f"rotary_emb.{spec.kind}.sin",
        "donor k_rope": f"layers.{spec.kv_from}.self_attn.k_rope",
        "donor v_norm": f"layers.{spec.kv_from}.self_attn.v_norm",
        "ple": "per_layer_inputs",
    }
    return [named.get(p, f"layers.{spec.index}.{p}") for p in arrows(spec, text).get(leaf, [])]


def arrows(spec, config):
    """The arrows of one layer: what experts, per-layer inputs and shared values change is laid over the common part."""
    found = dict(LAYER)
    if spec.k_eq_v:
        found["self_attn.v_norm"] = ["self_attn.k_proj"]
    if spec.E:
        found |= EXPERTS
    if config.hidden_size_per_layer_input:
        found |= PER_LAYER
    return found


def step(name, known, config, soft=()):
    """How a point is reached from known ones: (the nearest known points before it, the unknown ones between)."""
    sources, between, open_ = [], [], [*parents(name, config, soft)]
    while open_:
        p = open_.pop(0)
        if p in known:
            sources += [p] if p not in sources else []
        elif p not in between:
            between.append(p)
            open_ += parents(p, config, soft)
    return sources, between


def arrow(name, sources):
    """A step by its name: `layers.4.self_attn.{k_norm -> o_proj}`; sources in another layer keep their whole names."""
    layer = re.match(r".*layers\.\d+\.", name)
    near = [s for s in sources if layer and s.startswith(layer[0])]
    depth = common_depth([p.split(".") for p in [name, *near]]) if near else 0
    scope = "".join(f"{part}." for part in name.split(".")[:depth])
    return f"{scope}{{{', '.join(s.removeprefix(scope) for s in sources)} -> {name.removeprefix(scope)}}}"


def common_depth(paths):
    """How many of their first parts all paths share, short of a whole path."""
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == paths[0][shared] for p in paths):
        shared += 1
    return shared
