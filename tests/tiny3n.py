"""Writes small random Gemma 3n checkpoints, in Transformers' naming, with nothing left at its initial value."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tiny import DTYPES, KINDS

from numgemma.families.gemma3n.config import read_config
from numgemma.families.gemma3n.layout import tensor_shapes
from numgemma.families.gemma4.layout import stored_name, unread_by_sharing_layers

# Both kinds of layer, two that share of each, sparse and dense ones of two widths, a window shorter than the prompts,
# several query heads per key/value head, tables of different heights.
TEXT = {
    "architectures": ["Gemma3nForCausalLM"],
    "model_type": "gemma3n_text",
    "vocab_size": 240,
    "vocab_size_per_layer_input": 200,
    "hidden_size": 48,
    "hidden_size_per_layer_input": 24,
    "intermediate_size": [72, 72, 80, 72, 72, 80, 72, 72],
    "num_hidden_layers": 8,
    "layer_types": [KINDS[letter] for letter in "ssfsfssf"],
    "num_kv_shared_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 7,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "final_logit_softcapping": 30.0,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "altup_num_inputs": 4,
    "altup_active_idx": 0,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "laurel_rank": 6,
    "activation_sparsity_pattern": [0.8, 0.5, 0.6, 0.0, 0.0, 0.7, 0.0, 0.0],
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


COMMON = {"act_layer": None, "noskip": False}


def uir(channels, stride, expand, start=0, mid=0):
    sizes = {"dw_kernel_size_start": start, "dw_kernel_size_mid": mid, "dw_kernel_size_end": 0, "se_ratio": 0.0}
    return {"block_type": "uir", "out_chs": channels, "stride": stride, "exp_ratio": float(expand)} | sizes | COMMON


def er(channels, stride):
    sizes = {"exp_kernel_size": 3, "pw_kernel_size": 1, "force_in_chs": 0, "exp_ratio": 2.0}
    return {"block_type": "er", "out_chs": channels, "stride": stride} | sizes | COMMON | {"se_ratio": 0.0}


def mqa(channels, heads, width, kv_stride):
    sizes = {"num_heads": heads, "key_dim": width, "value_dim": width, "kv_stride": kv_stride, "dw_kernel_size": 3}
    return {"block_type": "mqa", "out_chs": channels, "stride": 1} | sizes | COMMON


# Every kind of block, as released in their order, a few of each and narrow.
NET = [
    [er(8, 2), er(8, 1)],
    [uir(16, 2, 3, start=3, mid=5), uir(16, 1, 2, start=5)],
    [uir(24, 2, 3, start=5, mid=5), uir(24, 1, 1), mqa(24, 3, 8, 2), uir(24, 1, 2)],
    [uir(32, 2, 2, start=5, mid=5), mqa(32, 4, 12, 1), uir(32, 1, 2)],
]
PIXELS = 96  # to a side: maps of 48, 24, 12, 6, 3, then 2 x 2 soft tokens
VISION = {
    "model_type": "gemma3n_vision",
    "architecture": "mobilenetv5_300m_enc",
    "do_pooling": False,
    "hidden_size": 2048,  # of every net of this kind
    "initializer_range": 0.02,
    "label_names": ["LABEL_0", "LABEL_1"],
    "num_classes": 2,
    "model_args": {"block_args": NET, "stem_size": 8, "msfa_output_resolution": 2},
    "vocab_size": 20,
    "vocab_offset": 200,
    "rms_norm_eps": 1e-6,
}
AUDIO = {
    "model_type": "gemma3n_audio",
    "vocab_size": 20,
    "vocab_offset": 220,
    "input_feat_size": 128,
    "hidden_size": 24,
    "rms_norm_eps": 1e-6,
    "gradient_clipping": 1e10,
    "conf_attention_chunk_size": 4,
    "conf_attention_context_left": 5,
    "conf_attention_context_right": 0,
    "conf_attention_logit_cap": 5.0,
    "conf_num_attention_heads": 2,
    "conf_num_hidden_layers": 2,
    "conf_conv_kernel_size": 5,
    "conf_reduction_factor": 4,
    "conf_residual_weight": 0.5,
    "sscp_conv_channel_size": [6, 4],
    "sscp_conv_group_norm_eps": 1e-3,
    "sscp_conv_kernel_size": [[3, 3], [3, 3]],
    "sscp_conv_stride_size": [[2, 2], [2, 2]],
}
IDS = {"boi": 190, "boa": 191, "eoi": 200, "image": 201, "eoa": 220, "audio": 221}
SOFT = {"image": 4, "audio": 7}
WHOLE = {
    "architectures": ["Gemma3nForConditionalGeneration"],
    "model_type": "gemma3n",
    **{f"{name}_token_id": i for name, i in IDS.items()},
    "vision_soft_tokens_per_image": SOFT["image"],
    "audio_soft_tokens_per_image": SOFT["audio"],
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "text_config": TEXT,
    "vision_config": VISION,
    "audio_config": AUDIO,
}


def random_tensor(name, shape, rng):
    """A value no default equals: norms and scales around 1 but not 1, matrices scaled by their fan-in."""
    if "k_norm" in name:
        return rng.uniform(0.1, 0.6, shape)  # below 1: it stands in for 1 / sqrt(H)
    if name.endswith(("conv.bias", "per_dim_scale")):
        return rng.standard_normal(shape)
    if len(shape) == 1:
        return rng.uniform(0.3, 1.7, shape)
    if "altup.prediction_coefs" in name or "altup.correction_coefs" in name:
        return 0.15 * rng.standard_normal(shape)
    if "modality_router" in name:
        return 0.7 * shape[-1] ** 0.5 * rng.standard_normal(shape)  # its input is a D-th of a norm's output
    spread = 0.15 if "embed_tokens" in name else 1.6 * np.prod(shape[1:]) ** -0.5  # so that the branches count
    return spread * rng.standard_normal(shape)


def random_tensors(raw, seed=0, leftovers=False):
    """Short name -> float64 array, for every tensor that the config calls for.

    leftovers: also keys and values of layers that share, which released files hold and nobody reads.
    """
    rng = np.random.default_rng(seed)
    config = read_config(raw, "the test")
    shapes = tensor_shapes(config) | (unread_by_sharing_layers(config.text) if leftovers else {})
    return {name: random_tensor(name, shape, rng) for name, shape in shapes.items()}


def write(folder, raw, tensors=None, dtype="bfloat16", generation=None):
    """A checkpoint directory that Transformers loads too.  Returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(raw) if tensors is None else tensors
    stored = {stored_name(name, raw["model_type"]): np.asarray(x, DTYPES[dtype]) for name, x in tensors.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "generation_config.json").write_text(json.dumps(generation or {"eos_token_id": 1}))
    return folder


def prompt(tokens, seed=0, vocabulary=240):
    """Random token ids, those beyond the per-layer table among them."""
    return np.random.default_rng(seed).integers(3, vocabulary, tokens)


def text(rng):
    return rng.integers(3, 190, 3)


def multimodal_prompt(pictures=2, clips=(35, 60), padding=9, pixels=PIXELS, seed=2):
    """Ids, and a processor's arrays by name.

    clips: real frames of each; padding: frames behind the longest; pixels: to a side of a picture.
    """
    rng = np.random.default_rng(seed)
    arrays, ids = {}, [2, *text(rng)]
    for _ in range(pictures):
        ids += [IDS["boi"], *[IDS["image"]] * SOFT["image"], IDS["eoi"], *text(rng)]
    for _ in clips:
        ids += [IDS["boa"], *[IDS["audio"]] * SOFT["audio"], IDS["eoa"], *text(rng)]
    if pictures:
        arrays["pixel_values"] = (rng.integers(0, 256, (pictures, 3, pixels, pixels)) / 255).astype(np.float32)
    if clips:
        arrays["input_features"], arrays["input_features_mask"] = sounds(clips, rng, padding)
    return np.array(ids), arrays


def sounds(lengths, rng, padding):
    """Random log-mel frames, padded with those of silence, and their mask."""
    longest = max(lengths) + padding
    features = np.full((len(lengths), longest, 128), np.log(1e-5), np.float32)
    mask = np.zeros((len(lengths), longest), bool)
    for i, length in enumerate(lengths):
        features[i, :length] = rng.normal(-3, 2, (length, 128))
        mask[i, :length] = True
    return features, mask
