"""The arrows of the vision and the audio tower, backwards; flow.py has those of the decoder."""

import re

# Inside one layer of the vision tower.  "<" is what enters the layer.
VISION = {
    "input_layernorm": ["<"],
    "self_attn.q_proj": ["input_layernorm"],
    "self_attn.q_norm": ["self_attn.q_proj"],
    "self_attn.q_rope": ["self_attn.q_norm", "cos", "sin"],
    "self_attn.k_proj": ["input_layernorm"],
    "self_attn.k_norm": ["self_attn.k_proj"],
    "self_attn.k_rope": ["self_attn.k_norm", "cos", "sin"],
    "self_attn.v_proj": ["input_layernorm"],
    "self_attn.v_norm": ["self_attn.v_proj"],
    "self_attn.scores": ["self_attn.q_rope", "self_attn.k_rope"],
    "self_attn.probs": ["self_attn.scores"],
    "self_attn.context": ["self_attn.probs", "self_attn.v_norm"],
    "self_attn.o_proj": ["self_attn.context"],
    "post_attention_layernorm": ["self_attn.o_proj"],
    "after_attention": ["<", "post_attention_layernorm"],
    "pre_feedforward_layernorm": ["after_attention"],
    "mlp.gate_proj": ["pre_feedforward_layernorm"],
    "mlp.up_proj": ["pre_feedforward_layernorm"],
    "mlp.down_proj": ["mlp.gate_proj", "mlp.up_proj"],
    "post_feedforward_layernorm": ["mlp.down_proj"],
    "out": ["after_attention", "post_feedforward_layernorm"],
}

# Inside one layer of the audio tower.
AUDIO = {
    "feed_forward1.pre_layer_norm": ["<"],
    "feed_forward1.ffw_layer_1": ["feed_forward1.pre_layer_norm"],
    "feed_forward1.ffw_layer_2": ["feed_forward1.ffw_layer_1"],
    "feed_forward1.post_layer_norm": ["feed_forward1.ffw_layer_2"],
    "feed_forward1.out": ["<", "feed_forward1.post_layer_norm"],
    "norm_pre_attn": ["feed_forward1.out"],
    "self_attn.q_proj": ["norm_pre_attn"],
    "self_attn.k_proj": ["norm_pre_attn"],
    "self_attn.v_proj": ["norm_pre_attn"],
    "self_attn.relative_k_proj": ["distances"],
    "self_attn.scores": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.relative_k_proj"],
    "self_attn.probs": ["self_attn.scores"],
    "self_attn.context": ["self_attn.probs", "self_attn.v_proj"],
    "self_attn.post": ["self_attn.context"],
    "norm_post_attn": ["self_attn.post"],
    "after_attention": ["feed_forward1.out", "norm_post_attn"],
    "lconv1d.pre_layer_norm": ["after_attention"],
    "lconv1d.linear_start": ["lconv1d.pre_layer_norm"],
    "lconv1d.glu": ["lconv1d.linear_start"],
    "lconv1d.depthwise_conv1d": ["lconv1d.glu"],
    "lconv1d.conv_norm": ["lconv1d.depthwise_conv1d"],
    "lconv1d.linear_end": ["lconv1d.conv_norm"],
    "lconv1d.out": ["after_attention", "lconv1d.linear_end"],
    "feed_forward2.pre_layer_norm": ["lconv1d.out"],
    "feed_forward2.ffw_layer_1": ["feed_forward2.pre_layer_norm"],
    "feed_forward2.ffw_layer_2": ["feed_forward2.ffw_layer_1"],
    "feed_forward2.post_layer_norm": ["feed_forward2.ffw_layer_2"],
    "feed_forward2.out": ["lconv1d.out", "feed_forward2.post_layer_norm"],
    "norm_out": ["feed_forward2.out"],
}

# Around the layers; "last" is what the last layer hands on.
AROUND_VISION = {
    "patch_embedder.out": ["patch_embedder.input_proj", "patch_embedder.position_embedding"],
    "pooler": ["last"],
    "out": ["pooler"],
}
SUBSAMPLE = "subsample_conv_projection"
AROUND_AUDIO = {
    f"{SUBSAMPLE}.layer0.norm": [f"{SUBSAMPLE}.layer0.conv"],
    f"{SUBSAMPLE}.layer0.out": [f"{SUBSAMPLE}.layer0.norm"],
    f"{SUBSAMPLE}.layer1.conv": [f"{SUBSAMPLE}.layer0.out"],
    f"{SUBSAMPLE}.layer1.norm": [f"{SUBSAMPLE}.layer1.conv"],
    f"{SUBSAMPLE}.layer1.out": [f"{SUBSAMPLE}.layer1.norm"],
    f"{SUBSAMPLE}.input_proj_linear": [f"{SUBSAMPLE}.layer1.out"],
    "output_proj": ["last"],
    "out": ["output_proj"],
}


def parents(name, config):
    """The points that a point of a tower, or of what projects its soft tokens, is computed from."""
    tower, _, leaf = name.partition(".")
    kind, at, number = tower.partition("@")
    if kind in ("embed_vision", "embed_audio"):
        before = f"{tower}.embedding_pre_projection_norm"
        return [before] if leaf == "embedding_projection" else [f"{kind[6:]}_tower{at}{number}.out"]
    if kind == "vision_tower" and config.vision:
        found = in_vision(leaf, config.vision.num_hidden_layers)
    elif kind == "audio_tower" and config.audio:
        found = in_audio(leaf, config.audio.num_hidden_layers)
    else:
        return []
    return [f"{tower}.{p}" for p in found]


def in_vision(leaf, layers):
    rope = {part: f"encoder.rotary_emb.{part}" for part in ("cos", "sin")}
    return in_tower(leaf, VISION, AROUND_VISION, "encoder.layers", "out", "patch_embedder.out", layers, rope)


def in_audio(leaf, layers):
    distances = {"distances": "rel_pos_enc"}
    enters = f"{SUBSAMPLE}.input_proj_linear"
    return in_tower(leaf, AUDIO, AROUND_AUDIO, "layers", "norm_out", enters, layers, distances)


def in_tower(leaf, inside, around, scope, end, enters, layers, shared):
    """Parents inside a tower whose layers stand under `scope` and hand on `end`."""
    found = re.fullmatch(rf"{re.escape(scope)}\.(\d+)\.(.*)", leaf)
    if not found:
        return [f"{scope}.{layers - 1}.{end}" if p == "last" else p for p in around.get(leaf, [])]
    i = int(found[1])
    named = {"<": f"{scope}.{i - 1}.{end}" if i else enters} | shared
    return [named.get(p, f"{scope}.{i}.{p}") for p in inside.get(found[2], [])]
