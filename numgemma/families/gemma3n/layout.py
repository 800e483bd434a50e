"""Every tensor of a Gemma 3n checkpoint, from its config alone: name -> shape, without the prefixes.

Linear weights are [out, in], convolutions [out, in, rows, columns].
"""

from numgemma.families.family import Shapes
from numgemma.families.gemma3n.config import (
    Gemma3nAudioConfig,
    Gemma3nConfig,
    Gemma3nSpec,
    Gemma3nTextConfig,
    Gemma3nVisionConfig,
)
from numgemma.families.gemma4.layout import attention_shapes, cached, mlp_shapes, scoped, whole
from numgemma.layers.mobilenet import net_shapes


def tensor_shapes(config: Gemma3nConfig) -> Shapes:
    """All tensors that Transformers would build for this config."""
    return whole(config, text_shapes(config.text), towers(config))


def vision_part(config: Gemma3nConfig) -> Shapes:
    """The vision tower and what embeds its soft and hard tokens; empty where the config has none."""
    c = config.vision
    if c is None:
        return {}
    return scoped("vision_tower.timm_model", net_shapes(c.net)) | embedder_shapes("embed_vision", c, config.text)


def audio_part(config: Gemma3nConfig) -> Shapes:
    """The audio tower and what embeds its soft and hard tokens; empty where the config has none."""
    c = config.audio
    if c is None:
        return {}
    return scoped("audio_tower", audio_shapes(c)) | embedder_shapes("embed_audio", c, config.text)


def memory(config: Gemma3nConfig, context: int) -> dict[str, int]:
    """Bytes that a float32 run needs beyond the checkpoint's own pages: what grows with the tokens."""
    c = config.text
    widest = max(2 * spec.F + spec.N * spec.H for spec in c.layers) + 3 * c.altup_num_inputs * c.hidden_size
    kept = cached(c, context)
    return {
        "activations per token of a pass": 4 * (widest + c.num_hidden_layers * c.hidden_size_per_layer_input),
        "logits per token of a recorded pass": 4 * c.vocab_size,
        **{f"cache of {kind} layers at {context} tokens": 4 * n for kind, n in kept.items()},
        "the whole cache, kept in bfloat16": 2 * sum(kept.values()),
    }


def towers(config: Gemma3nConfig) -> dict[str, Shapes]:
    """What may be absent altogether: text-only copies keep the config of the whole."""
    return {"vision": vision_part(config), "audio": audio_part(config)}


def embedder_shapes(name, c: Gemma3nVisionConfig | Gemma3nAudioConfig, text: Gemma3nTextConfig) -> Shapes:
    """What brings a tower's soft tokens, and its own hard ones, to the decoder's width."""
    W = c.hidden_size
    shapes: Shapes = {
        "embedding.weight": (c.vocab_size, W),
        "hard_embedding_norm.weight": (W,),
        "soft_embedding_norm.weight": (W,),
        "embedding_projection.weight": (text.hidden_size, W),
    }
    return scoped(name, shapes)


def text_shapes(c: Gemma3nTextConfig) -> Shapes:
    """The text model, from its table of embeddings to the last norm; the head is not in it."""
    D, L, P = c.hidden_size, c.num_hidden_layers, c.hidden_size_per_layer_input
    shapes: Shapes = {
        "embed_tokens.weight": (c.vocab_size, D),
        "norm.weight": (D,),
        "embed_tokens_per_layer.weight": (c.vocab_size_per_layer_input, L * P),
        "per_layer_model_projection.weight": (L * P, D),
        "per_layer_projection_norm.weight": (P,),
    }
    for a in range(c.altup_num_inputs - 1):
        shapes |= {f"altup_projections.{a}.weight": (D, D), f"altup_unembed_projections.{a}.weight": (D, D)}
    for spec in c.layers:
        shapes |= scoped(f"layers.{spec.index}", layer_shapes(c, spec))
    return shapes


def layer_shapes(c: Gemma3nTextConfig, spec: Gemma3nSpec) -> Shapes:
    """One layer of it."""
    D, P = c.hidden_size, c.hidden_size_per_layer_input
    norms = ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    norms += ["post_per_layer_input_norm"]
    shapes: Shapes = {f"{norm}.weight": (D,) for norm in norms}
    shapes |= scoped("self_attn", attention_shapes(spec, D)) | scoped("mlp", mlp_shapes(D, spec.F))
    shapes |= scoped("altup", altup_shapes(D, c.altup_num_inputs)) | scoped("laurel", laurel_shapes(D, c.laurel_rank))
    return shapes | {"per_layer_input_gate.weight": (P, D), "per_layer_projection.weight": (D, P)}


def altup_shapes(D, A) -> Shapes:
    """What mixes A streams."""
    return {
        "correct_output_scale": (D,),
        "correction_coefs.weight": (A, A),
        "prediction_coefs.weight": (A * A, A),
        "modality_router.weight": (A, D),
        "router_norm.weight": (D,),
    }


def laurel_shapes(D, Z) -> Shapes:
    """The residual of rank Z."""
    return {"linear_left.weight": (Z, D), "linear_right.weight": (D, Z), "post_laurel_norm.weight": (D,)}


def audio_shapes(c: Gemma3nAudioConfig) -> Shapes:
    """The audio tower."""
    D, (C0, C1) = c.hidden_size, c.sscp_conv_channel_size
    bins = -(-c.input_feat_size // 4)  # two convolutions of stride 2
    subsample: Shapes = {
        "conv_0.conv.weight": (C0, 1, 3, 3),
        "conv_0.norm.weight": (C0,),
        "conv_1.conv.weight": (C1, C0, 3, 3),
        "conv_1.norm.weight": (C1,),
        "input_proj_linear.weight": (D, C1 * bins),
    }
    shapes: Shapes = scoped("subsample_conv_projection", subsample)
    for i in range(c.conf_num_hidden_layers):
        shapes |= scoped(f"conformer.{i}", conformer_shapes(c))
    return shapes


def conformer_shapes(c: Gemma3nAudioConfig) -> Shapes:
    """One layer of it."""
    D = c.hidden_size
    shapes: Shapes = {}
    for half in ("ffw_layer_start", "ffw_layer_end"):
        shapes |= {f"{half}.ffw_layer_1.weight": (4 * D, D), f"{half}.ffw_layer_2.weight": (D, 4 * D)}
        shapes |= {f"{half}.pre_layer_norm.weight": (D,), f"{half}.post_layer_norm.weight": (D,)}
    for norm in (
        "attention.pre_attn_norm",
        "attention.post_norm",
        "lconv1d.pre_layer_norm",
        "lconv1d.conv_norm",
        "norm",
    ):
        shapes[f"{norm}.weight"] = (D,)
    for linear in ("q_proj", "k_proj", "v_proj", "relative_position_embedding.pos_proj"):
        shapes[f"attention.attn.{linear}.weight"] = (D, D)
    return shapes | {
        "attention.attn.per_dim_scale": (D // c.conf_num_attention_heads,),
        "attention.post.weight": (D, D),
        "lconv1d.linear_start.weight": (2 * D, D),
        "lconv1d.linear_end.weight": (D, D),
        "lconv1d.depthwise_conv1d.weight": (D, 1, c.conf_conv_kernel_size),
    }
