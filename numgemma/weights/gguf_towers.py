"""The towers of Gemma 4 in a GGUF file of their own, the mmproj: llama.cpp's names -> the checkpoint's, and config.

Three kinds of tensor are stored in another form: the patch embedding as a convolution, D 3 p p, where the checkpoint
has rows of p p 3 numbers; the audio tower's scale of each lane behind its softplus; its depthwise kernels without the
axis of one.  Bounds of clipped linears are lists of one number.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from numgemma.errors import InputError
from numgemma.smallfloats import BFLOAT16, kept
from numgemma.weights.gguf import Gguf, Texts
from numgemma.weights.gguf_gemma import Keys

AROUND = {
    "v.patch_embd.weight": "vision_tower.patch_embedder.input_proj.weight",
    "v.position_embd.weight": "vision_tower.patch_embedder.position_embedding_table",
    "v.std_bias": "vision_tower.std_bias",
    "v.std_scale": "vision_tower.std_scale",
    "mm.input_projection.weight": "embed_vision.embedding_projection.weight",
    **{f"a.conv1d.{i}.weight": f"audio_tower.subsample_conv_projection.layer{i}.conv.weight" for i in (0, 1)},
    **{f"a.conv1d.{i}.norm.weight": f"audio_tower.subsample_conv_projection.layer{i}.norm.weight" for i in (0, 1)},
    "a.input_projection.weight": "audio_tower.subsample_conv_projection.input_proj_linear.weight",
    "a.pre_encode.out.weight": "audio_tower.output_proj.weight",
    "a.pre_encode.out.bias": "audio_tower.output_proj.bias",
    "mm.a.input_projection.weight": "embed_audio.embedding_projection.weight",
}
SCOPES = {"v": "vision_tower.encoder.layers", "a": "audio_tower.layers"}
# Those that may clip: their weight is `.linear.weight`, beside their bounds.
LINEARS = {
    "v": {
        **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
        "attn_out": "self_attn.o_proj",
        **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
    },
    "a": {
        **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
        "attn_out": "self_attn.post",
        "conv_pw1": "lconv1d.linear_start",
        "conv_pw2": "lconv1d.linear_end",
        "ffn_up": "feed_forward1.ffw_layer_1",
        "ffn_down": "feed_forward1.ffw_layer_2",
        "ffn_up_1": "feed_forward2.ffw_layer_1",
        "ffn_down_1": "feed_forward2.ffw_layer_2",
    },
}
OTHERS = {
    "v": {
        "attn_q_norm": "self_attn.q_norm.weight",
        "attn_k_norm": "self_attn.k_norm.weight",
        "ln1": "input_layernorm.weight",
        "attn_post_norm": "post_attention_layernorm.weight",
        "ln2": "pre_feedforward_layernorm.weight",
        "ffn_post_norm": "post_feedforward_layernorm.weight",
    },
    "a": {
        "attn_pre_norm": "norm_pre_attn.weight",
        "attn_k_rel": "self_attn.relative_k_proj.weight",
        "per_dim_scale": "self_attn.per_dim_scale",
        "attn_post_norm": "norm_post_attn.weight",
        "ln2": "norm_out.weight",
        "ffn_norm": "feed_forward1.pre_layer_norm.weight",
        "ffn_post_norm": "feed_forward1.post_layer_norm.weight",
        "ffn_norm_1": "feed_forward2.pre_layer_norm.weight",
        "ffn_post_norm_1": "feed_forward2.post_layer_norm.weight",
        "conv_norm": "lconv1d.pre_layer_norm.weight",  # llama.cpp has these two the other way round
        "norm_conv": "lconv1d.conv_norm.weight",
        "conv_dw": "lconv1d.depthwise_conv1d.weight",
    },
}
BOUNDS = ("input_min", "input_max", "output_min", "output_max")
KINDS = {"gemma4v", "gemma4a"}  # projectors that are read

# What no such file says, as all releases have it.
VISION = {
    "model_type": "gemma4_vision",
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "pooling_kernel_size": 3,
}
AUDIO = {
    "model_type": "gemma4_audio",
    "hidden_act": "silu",
    "residual_weight": 0.5,
    "attention_chunk_size": 12,
    "attention_context_left": 13,
    "attention_context_right": 0,
    "attention_logit_cap": 50.0,
    "attention_invalid_logits_value": -1e9,
    "gradient_clipping": 1e10,
    "rms_norm_eps": 1e-6,
}
MARKS = {
    "image_token_id": ("<|image|>", 258880),
    "audio_token_id": ("<|audio|>", 258881),
    "video_token_id": ("<|video|>", 258884),
    "boi_token_id": ("<|image>", 255999),
    "eoi_token_id": ("<image|>", 258882),
    "boa_token_id": ("<|audio>", 256000),
    "eoa_token_id": ("<audio|>", 258883),
}


def weights_of(path, file: Gguf) -> dict[str, Any]:
    """The tensors under the checkpoint's names.  Raises InputError for one that has no place in Gemma 4's towers."""
    return {our_name(path, name): as_stored(name, tensor) for name, tensor in file.tensors.items()}


def our_name(path, name) -> str:
    if name in AROUND:
        return AROUND[name]
    found = re.fullmatch(r"([va])\.blk\.(\d+)\.(\w+)\.(\w+)", name)
    tower, layer, module, leaf = found.groups() if found else ("v", "", "", "")
    ours = None
    if module in LINEARS[tower] and leaf in ("weight", *BOUNDS):
        ours = f"{LINEARS[tower][module]}.{'linear.weight' if leaf == 'weight' else leaf}"
    elif leaf == "weight":
        ours = OTHERS[tower].get(module)
    if ours is None:
        raise InputError(f"{path}: tensor {name!r:.80} has no place in Gemma 4's towers; convert the file again.")
    return f"{SCOPES[tower]}.{layer}.{ours}"


def as_stored(name, x):
    """A tensor in the form that the checkpoint has.  What has not the axes for it stays, and its shape is refused."""
    if name == "v.patch_embd.weight" and x.ndim == 4:
        return np.ascontiguousarray(np.asarray(x).transpose(0, 2, 3, 1)).reshape(len(x), -1)
    if name.endswith("per_dim_scale.weight"):
        return before_softplus(np.asarray(x, np.float64))
    if name.endswith("conv_dw.weight") and x.ndim == 2:
        return np.asarray(x)[:, None]
    return x.reshape(()) if name.endswith(BOUNDS) and x.size == 1 else x


def before_softplus(y):
    """What softplus makes y of: the number of bfloat16, as in all releases, where there is one, else the nearest."""
    with np.errstate(all="ignore"):  # of what is not above zero it makes nothing
        x = (y + np.log(-np.expm1(-y))).astype(np.float32)
        short = kept(x.round(7), BFLOAT16).astype(np.float32)  # nearer to nought float32 cannot tell
        same = np.abs(np.logaddexp(0, short.astype(np.float64)) - y) <= 2.0**-22 * y
    return np.where(same, short, x)


def config_of(path, file: Gguf, text: Mapping[str, Any], pieces) -> dict[str, Any]:
    """config.json of the whole.  text: that of the text model; pieces: of its tokenizer"""
    keys, has = Keys(path, file, "clip"), {name.partition(".")[0] for name in file.tensors}
    width, standard = text["hidden_size_per_layer_input"], "v.std_bias" in file.tensors
    seen = "vision" if standard or not width else None  # the tokens of a picture see each other but in E2B and E4B
    return {
        "model_type": "gemma4",
        "architectures": ["Gemma4ForConditionalGeneration"],
        "text_config": {**text, "use_bidirectional_attention": seen},
        "vision_config": vision_config(keys, standard) if "v" in has else None,
        "audio_config": audio_config(keys) if "a" in has else None,
        "tie_word_embeddings": text["tie_word_embeddings"],
        **marks(pieces),
    }


def vision_config(keys: Keys, standard: bool) -> dict[str, Any]:
    lanes = len(keys.tensor("v.blk.0.attn_q_norm.weight"))
    queries, heads = (len(keys.tensor(f"v.blk.0.attn_{x}.weight")) // max(lanes, 1) for x in "qk")
    return VISION | {
        "hidden_size": keys.number("vision.embedding_length"),
        "intermediate_size": keys.number("vision.feed_forward_length"),
        "num_hidden_layers": keys.number("vision.block_count"),
        "num_attention_heads": queries,
        "num_key_value_heads": heads,
        "head_dim": lanes,
        "rms_norm_eps": keys.epsilon("vision.attention.layer_norm_epsilon"),
        "patch_size": keys.number("vision.patch_size"),
        "position_embedding_size": keys.tensor("v.position_embd.weight", 2).shape[-2],
        "use_clipped_linears": "v.blk.0.attn_q.input_max" in keys.file.tensors,
        "standardize": standard,
    }


def audio_config(keys: Keys) -> dict[str, Any]:
    out = keys.tensor("a.pre_encode.out.weight")
    return AUDIO | {
        "hidden_size": out.shape[-1],
        "num_hidden_layers": keys.number("audio.block_count"),
        "num_attention_heads": keys.number("audio.attention.head_count"),
        "subsampling_conv_channels": [len(keys.tensor(f"a.conv1d.{i}.weight")) for i in (0, 1)],
        "conv_kernel_size": keys.tensor("a.blk.0.conv_dw.weight").shape[-1],
        "use_clipped_linears": "a.blk.0.attn_q.input_max" in keys.file.tensors,
        "output_proj_dims": len(out),
    }


def marks(pieces) -> dict[str, int]:
    """The ids that stand for soft tokens, and around them: by their pieces, or as released where none has a name."""
    at = {piece: i for i, piece in enumerate(pieces)} if isinstance(pieces, Texts) else {}
    return {key: at.get(piece, released) for key, (piece, released) in MARKS.items()}
