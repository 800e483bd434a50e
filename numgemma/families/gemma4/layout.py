"""Every tensor of a checkpoint, from its config alone: name -> shape, without the prefixes `model.language_model.`.

What a forward pass reads, what a random checkpoint must hold and what `inspect` counts is all written here.  Linear
weights are [out, in].
"""

from math import prod

from numgemma.families.family import Shapes
from numgemma.families.gemma4.config import AudioConfig, Config, LayerSpec, TextConfig, VisionConfig

TOWERS = ("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio.")


def tensor_shapes(config: Config) -> Shapes:
    """All tensors that Transformers would build for this config."""
    return whole(config, text_shapes(config.text), towers(config))


def whole(config, text: Shapes, parts: dict[str, Shapes]) -> Shapes:
    """The tensors of the text, those of each part, and a head of its own where the config does not tie it."""
    head = {} if config.tie_word_embeddings else {"lm_head.weight": (config.text.vocab_size, config.text.hidden_size)}
    return text | head | {name: shape for part in parts.values() for name, shape in part.items()}


def vision_part(config) -> Shapes:
    """The vision tower and the projection behind it; empty where the config has none."""
    c = config.vision
    if c is None:
        return {}
    return scoped("vision_tower", vision_shapes(c)) | {
        "embed_vision.embedding_projection.weight": (config.text.hidden_size, c.hidden_size)
    }


def audio_part(config) -> Shapes:
    """The audio tower and the projection behind it; empty where the config has none."""
    c = config.audio
    if c is None:
        return {}
    return scoped("audio_tower", audio_shapes(c)) | {
        "embed_audio.embedding_projection.weight": (config.text.hidden_size, c.output_proj_dims)
    }


def towers(config: Config) -> dict[str, Shapes]:
    """What may be absent altogether: text-only copies keep the config of the whole."""
    return {"vision": vision_part(config), "audio": audio_part(config)}


def besides(config: Config) -> Shapes:
    """What a file may hold and a run may do without: keys that nobody reads, and a head of its own."""
    head: Shapes = {"lm_head.weight": (config.text.vocab_size, config.text.hidden_size)}
    return unread_by_sharing_layers(config.text) | head


def ignored(config: Config) -> list[str]:
    """Names of tensors that a file may hold all the same: of a tower that its config does not have."""
    parts = (("vision", config.vision), ("audio", config.audio))
    return [rf"({name}_tower|embed_{name})\..*" for name, c in parts if c is None]


def memory(config, context: int) -> dict[str, int]:
    """Bytes that a float32 run needs beyond the checkpoint's own pages: what grows with the tokens."""
    c: TextConfig = config.text
    widest = max(2 * spec.F + spec.N * spec.H for spec in c.layers) + 4 * c.hidden_size
    kept = cached(c, context)
    return {
        "activations per token of a pass": 4 * (widest + c.num_hidden_layers * (c.hidden_size_per_layer_input or 0)),
        "logits per token of a recorded pass": 4 * c.vocab_size,
        **{f"cache of {kind} layers at {context} tokens": 4 * n for kind, n in kept.items()},
        "the whole cache, kept in bfloat16": 2 * sum(kept.values()),
    }


def cached(c, context: int) -> dict[str, int]:
    """Kind of layer -> numbers that are kept of earlier tokens: a sliding layer keeps all that one more token sees."""
    numbers: dict[str, int] = {}
    for spec in c.layers:
        if spec.kv_from == spec.index:
            kind, tokens = spec.kind.removesuffix("_attention"), min(context, (spec.window or context + 1) - 1)
            numbers[kind] = numbers.get(kind, 0) + 2 * spec.K * spec.H * tokens
    return numbers


def stored_name(name: str, model_type: str) -> str:
    """The name that Transformers gives a tensor in a file of that model_type: norm.weight -> model.norm.weight."""
    if name.startswith("lm_head"):
        return name
    bare = name.startswith(TOWERS) or model_type.endswith("_text")
    return f"model.{name}" if bare else f"model.language_model.{name}"


def unread_by_sharing_layers(c: TextConfig) -> Shapes:
    """Keys and values of layers that read another layer's: released files carry them, re-saved files do not."""
    shapes: Shapes = {}
    for spec in c.layers:
        if spec.kv_from != spec.index:
            shapes |= scoped(f"layers.{spec.index}.self_attn", key_value_shapes(spec, c.hidden_size))
    return shapes


def scoped(scope, shapes):
    """The same shapes, their names inside a module."""
    return {f"{scope}.{name}": shape for name, shape in shapes.items()}


def count(shapes: Shapes) -> int:
    """Numbers in all tensors together."""
    return sum(prod(shape) for shape in shapes.values())


def text_shapes(c: TextConfig) -> Shapes:
    """The text model, from its table of embeddings to the last norm; the head is not in it."""
    D, L, P = c.hidden_size, c.num_hidden_layers, c.hidden_size_per_layer_input or 0
    shapes: Shapes = {"embed_tokens.weight": (c.vocab_size, D), "norm.weight": (D,)}
    if P:
        shapes |= {
            "embed_tokens_per_layer.weight": (c.vocab_size_per_layer_input, L * P),
            "per_layer_model_projection.weight": (L * P, D),
            "per_layer_projection_norm.weight": (P,),
        }
    for spec in c.layers:
        shapes |= scoped(f"layers.{spec.index}", layer_shapes(c, spec))
    return shapes


def layer_shapes(c: TextConfig, spec: LayerSpec) -> Shapes:
    """One layer of it."""
    D, P = c.hidden_size, c.hidden_size_per_layer_input or 0
    norms = ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes: Shapes = scoped("self_attn", attention_shapes(spec, D)) | scoped("mlp", mlp_shapes(D, spec.F))
    if P:
        shapes |= {"per_layer_input_gate.weight": (P, D), "per_layer_projection.weight": (D, P)}
        norms += ["post_per_layer_input_norm"]
    if spec.E:
        shapes |= moe_shapes(D, spec.E, c.moe_intermediate_size or 0)
        norms += ["post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2"]
    return shapes | {f"{norm}.weight": (D,) for norm in norms} | {"layer_scalar": (1,)}


def attention_shapes(spec, D) -> Shapes:
    """Queries and output, and keys and values where the layer makes its own."""
    NH = spec.N * spec.H
    shapes: Shapes = {"q_proj.weight": (NH, D), "q_norm.weight": (spec.H,), "o_proj.weight": (D, NH)}
    return shapes | (key_value_shapes(spec, D) if spec.kv_from == spec.index else {})


def key_value_shapes(spec, D) -> Shapes:
    """What makes keys and values; nothing makes values that are the raw keys."""
    shapes: Shapes = {"k_proj.weight": (spec.K * spec.H, D), "k_norm.weight": (spec.H,)}
    return shapes if spec.k_eq_v else shapes | {"v_proj.weight": (spec.K * spec.H, D)}


def mlp_shapes(D, F) -> Shapes:
    """The gated feed-forward."""
    return {"gate_proj.weight": (F, D), "up_proj.weight": (F, D), "down_proj.weight": (D, F)}


def moe_shapes(D, E, F) -> Shapes:
    """The router, and E experts of inner width F, each kind of matrix in one stack."""
    return {
        "router.proj.weight": (E, D),
        "router.scale": (D,),
        "router.per_expert_scale": (E,),
        "experts.gate_up_proj": (E, 2 * F, D),  # rows 0..F-1 gate, F..2F-1 up
        "experts.down_proj": (E, D, F),
    }


def clipped(shapes: Shapes, clips: bool) -> Shapes:
    """Linears of a tower: `.linear.weight`, and the four bounds where the tower clips."""
    found = {f"{name}.linear.weight": shape for name, shape in shapes.items()}
    bounds = ("input_min", "input_max", "output_min", "output_max") if clips else ()
    return found | {f"{name}.{bound}": () for name in shapes for bound in bounds}


def vision_shapes(c: VisionConfig) -> Shapes:
    """The vision tower."""
    D, F, H = c.hidden_size, c.intermediate_size, c.head_dim
    N, K = c.num_attention_heads, c.num_key_value_heads
    linears: Shapes = {f"self_attn.{x}_proj": (heads * H, D) for x, heads in (("q", N), ("k", K), ("v", K))}
    linears |= {"self_attn.o_proj": (D, N * H)}
    linears |= {"mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F)}
    layer = clipped(linears, c.use_clipped_linears)
    layer |= {"self_attn.q_norm.weight": (c.head_dim,), "self_attn.k_norm.weight": (c.head_dim,)}
    for norm in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm"):
        layer[f"{norm}.weight"] = (D,)
    layer["post_feedforward_layernorm.weight"] = (D,)
    shapes: Shapes = {
        "patch_embedder.input_proj.weight": (D, 3 * c.patch_size**2),
        "patch_embedder.position_embedding_table": (2, c.position_embedding_size, D),
    }
    for i in range(c.num_hidden_layers):
        shapes |= scoped(f"encoder.layers.{i}", layer)
    return shapes | ({"std_bias": (D,), "std_scale": (D,)} if c.standardize else {})


def audio_shapes(c: AudioConfig) -> Shapes:
    """The audio tower."""
    D, (C0, C1) = c.hidden_size, c.subsampling_conv_channels
    linears: Shapes = {f"self_attn.{x}": (D, D) for x in ("q_proj", "k_proj", "v_proj", "post")}
    linears |= {"lconv1d.linear_start": (2 * D, D), "lconv1d.linear_end": (D, D)}
    for half in ("feed_forward1", "feed_forward2"):
        linears |= {f"{half}.ffw_layer_1": (4 * D, D), f"{half}.ffw_layer_2": (D, 4 * D)}
    norms = [f"feed_forward{i}.{n}_layer_norm" for i in (1, 2) for n in ("pre", "post")]
    norms += ["norm_pre_attn", "norm_post_attn", "norm_out", "lconv1d.pre_layer_norm", "lconv1d.conv_norm"]
    layer = clipped(linears, c.use_clipped_linears) | {f"{norm}.weight": (D,) for norm in norms}
    layer |= {
        "self_attn.relative_k_proj.weight": (D, D),
        "self_attn.per_dim_scale": (D // c.num_attention_heads,),
        "lconv1d.depthwise_conv1d.weight": (D, 1, c.conv_kernel_size),
    }
    subsample: Shapes = {
        "layer0.conv.weight": (C0, 1, 3, 3),
        "layer0.norm.weight": (C0,),
        "layer1.conv.weight": (C1, C0, 3, 3),
        "layer1.norm.weight": (C1,),
        "input_proj_linear.weight": (D, C1 * c.mel_bins // 4),  # two convolutions of stride 2
    }
    shapes: Shapes = scoped("subsample_conv_projection", subsample)
    for i in range(c.num_hidden_layers):
        shapes |= scoped(f"layers.{i}", layer)
    return shapes | {"output_proj.weight": (c.output_proj_dims, D), "output_proj.bias": (c.output_proj_dims,)}
