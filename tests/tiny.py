"""Writes small random checkpoints of every shape, in Transformers' naming, with nothing left at its initial value."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from numgemma.families import find, read_config
from numgemma.families.gemma4 import layout
from numgemma.families.gemma4.layout import key_value_shapes

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}

# What all shapes have: both kinds of layer, a window shorter than the test prompts, head widths that differ by kind,
# several query heads per key/value head, several key/value heads.
KINDS = {"s": "sliding_attention", "f": "full_attention"}

TEXT = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "vocab_size": 199,
    "vocab_size_per_layer_input": 199,
    "hidden_size": 48,
    "hidden_size_per_layer_input": 0,
    "intermediate_size": 72,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "num_global_key_value_heads": None,
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": [KINDS[letter] for letter in "ssfssf"],
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 0,
    "sliding_window": 7,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "final_logit_softcapping": 30.0,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_k_eq_v": False,
    "use_double_wide_mlp": False,
    "use_bidirectional_attention": None,
    "enable_moe_block": False,
    "num_experts": None,
    "top_k_experts": None,
    "moe_intermediate_size": None,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}

DENSE = TEXT | {"attention_k_eq_v": True, "num_global_key_value_heads": 2}  # as 31B
EXPERTS = {"enable_moe_block": True, "num_experts": 7, "top_k_experts": 3, "moe_intermediate_size": 20}
MOE = DENSE | EXPERTS  # as 26B-A4B
PLE = TEXT | {  # as E2B and E4B; two sharing layers of each kind
    "hidden_size_per_layer_input": 10,
    "num_hidden_layers": 8,
    "layer_types": [
        f"{kind}_attention" for kind in ["sliding", "sliding", "full", "sliding", "full", "sliding", "sliding", "full"]
    ],
    "num_kv_shared_layers": 4,
    "use_double_wide_mlp": True,
}
VARIANTS = {"dense": DENSE, "moe": MOE, "ple": PLE}

# The towers, small; all else as released.
VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "pooling_kernel_size": 3,
    "patch_size": 16,
    "position_embedding_size": 40,
    "use_clipped_linears": True,
    "standardize": False,
}
AUDIO = {
    "model_type": "gemma4_audio",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "silu",
    "subsampling_conv_channels": [128, 4],  # the first is the number of mel bins too
    "conv_kernel_size": 5,
    "residual_weight": 0.5,
    "attention_chunk_size": 4,
    "attention_context_left": 5,
    "attention_context_right": 0,
    "attention_logit_cap": 5.0,
    "attention_invalid_logits_value": -1e9,
    "use_clipped_linears": True,
    "rms_norm_eps": 1e-6,
    "gradient_clipping": 1e10,
    "output_proj_dims": 18,
}
IDS = {"image": 190, "audio": 191, "video": 192, "boi": 193, "eoi": 194, "boa": 195, "eoa": 196}
WHOLE = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "model_type": "gemma4",
    **{f"{name}_token_id": i for name, i in IDS.items() if name != "eoa"},
    "eoa_token_index": IDS["eoa"],
    "tie_word_embeddings": True,
}
LARGE = VISION | {"use_clipped_linears": False, "standardize": True, "head_dim": 12}
E4B = WHOLE | {  # a per-layer input too wide to lie in GELU's tail as a whole, where float32 has few digits
    "text_config": PLE | {"hidden_size_per_layer_input": 24},
    "vision_config": VISION,
    "audio_config": AUDIO,
}
A4B = WHOLE | {  # as 26B-A4B, but for its two key/value heads per four query heads in the tower
    "text_config": MOE | {"use_bidirectional_attention": "vision"},
    "vision_config": LARGE | {"num_attention_heads": 4, "num_key_value_heads": 2},
    "audio_config": None,
}
B31 = WHOLE | {"text_config": DENSE | {"use_bidirectional_attention": "vision"}, "vision_config": LARGE}
UNIFIED_TEXT = DENSE | {  # as 12B
    "architectures": ["Gemma4UnifiedForCausalLM"],
    "model_type": "gemma4_unified_text",
    "use_bidirectional_attention": "vision",
}
UNIFIED = WHOLE | {
    "architectures": ["Gemma4UnifiedForConditionalGeneration"],
    "model_type": "gemma4_unified",
    "text_config": UNIFIED_TEXT,
    "vision_config": {
        "model_type": "gemma4_unified_vision",
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "model_patch_size": 48,
        "mm_embed_dim": 36,
        "output_proj_dims": 36,
        "mm_posemb_size": 40,
        "num_soft_tokens": 280,
        "rms_norm_eps": 1e-6,
    },
    "audio_config": {
        "model_type": "gemma4_unified_audio",
        **dict.fromkeys(("audio_embed_dim", "audio_samples_per_token", "hidden_size", "output_proj_dims"), 640),
        "rms_norm_eps": 1e-6,
    },
}
LEFT_OUT = (  # of DiffusionGemma's text_config, where each has one value
    *("attention_k_eq_v", "enable_moe_block", "hidden_size_per_layer_input", "num_kv_shared_layers"),
    *("use_double_wide_mlp", "vocab_size_per_layer_input", "architectures"),
)
DIFFUSION = {
    "architectures": ["DiffusionGemmaForBlockDiffusion"],
    "model_type": "diffusion_gemma",
    "canvas_length": 6,
    "eos_token_id": [1, 106],
    **{f"{name}_token_id": IDS[name] for name in ("image", "boi", "eoi")},
    "tie_word_embeddings": True,
    "text_config": {key: value for key, value in MOE.items() if key not in LEFT_OUT}
    | {"model_type": "diffusion_gemma_text", "use_bidirectional_attention": "vision"},
    "vision_config": LARGE | {"num_attention_heads": 4, "num_key_value_heads": 2},
}
MULTIMODAL = {"e4b": E4B, "26b": A4B, "31b": B31}

# What the prompts of the tests hold: patches across and down of images and of a video's frames, mel frames of clips.
CONTENT = {
    "e4b": {"images": [(6, 3)], "clips": [35]},
    "26b": {"images": [(9, 9), (6, 3)]},
    "31b": {"images": [(3, 9)], "videos": [[(6, 3), (6, 3)]]},
}


# Of two bounds with only an activation between them, the tighter one bites: now the first, now the second.
NEVER_BITES = tuple(
    f"{linear}_{end}"
    for linear in ("feed_forward1.ffw_layer_2.input", "feed_forward2.ffw_layer_1.output")
    for end in ("min", "max")
)


def random_bound(name, rng):
    """One that bites: smaller behind a mean or a product, and near 0 where SiLU has its lower end."""
    if name.endswith(NEVER_BITES):
        return 9.0
    if name.endswith(("linear_end.input_min", "ffw_layer_2.input_min")):
        return rng.uniform(0.1, 0.2)
    inner = any(f".{linear}." in name for linear in ("o_proj", "post", "down_proj", "linear_end", "ffw_layer_2"))
    return rng.uniform(0.3, 0.6) if inner else rng.uniform(0.7, 1.4)


def random_tensor(name, shape, rng):
    """A value no default equals: norms, scalars and scales around 1 but not 1, matrices scaled by their fan-in."""
    if "k_norm" in name:
        return rng.uniform(0.1, 0.6, shape)  # below 1, as in released models: it stands in for 1 / sqrt(H)
    if name.endswith(("put_min", "put_max")):
        bound = random_bound(name, rng)
        return -bound if name.endswith("min") else bound
    if name.endswith(("std_bias", "output_proj.bias", "per_dim_scale")):
        return rng.standard_normal(shape)
    if len(shape) <= 1:
        return rng.uniform(0.3, 1.7, shape)
    spread = 0.15 if "embed_tokens" in name else 1.6 * shape[-1] ** -0.5  # so that the branches count in the stream
    return spread * rng.standard_normal(shape)


def random_tensors(raw, seed=0):
    """Short name -> float64 array, for every tensor that the config calls for."""
    rng = np.random.default_rng(seed)
    shapes = find(raw, "the test").shapes(read_config(raw, "the test"))
    return {name: random_tensor(name, shape, rng) for name, shape in shapes.items()}


def leftover_tensors(raw, seed=1):
    """Keys and values on layers that share: in released files, read by nobody."""
    rng = np.random.default_rng(seed)
    c = read_config(raw, "the test").text
    found = {}
    for spec in c.layers[c.num_hidden_layers - c.num_kv_shared_layers :]:
        for name, shape in key_value_shapes(spec, c.hidden_size).items():
            found[f"layers.{spec.index}.self_attn.{name}"] = random_tensor(name, shape, rng)
    return found


def stored_name(short, prefix, raw):
    if raw["model_type"] == "gemma4":
        return layout.stored_name(short, "gemma4")
    if raw["model_type"].startswith(("gemma4_unified", "diffusion")) or raw["model_type"].endswith("_assistant"):
        return find(raw, "the test").stored_name(short, raw["model_type"])
    return short if short.startswith("lm_head") else prefix + short


def as_stored(x, dtype):
    """In that dtype; integers, of which a drafter has some, as they are."""
    return x if np.asarray(x).dtype.kind == "i" else np.asarray(x, DTYPES[dtype])


def write(folder, raw, tensors=None, dtype="bfloat16", prefix="model.", generation=None):
    """A checkpoint directory that Transformers loads too.  Returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(raw) if tensors is None else tensors
    stored = {stored_name(name, prefix, raw): as_stored(x, dtype) for name, x in tensors.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw))
    generation = generation or {"eos_token_id": raw.get("eos_token_id", 1)}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def prompt(raw, tokens, seed=0):
    """Random token ids of the vocabulary's ordinary tokens."""
    return np.random.default_rng(seed).integers(3, raw["vocab_size"], tokens)


def multimodal_prompt(name, content=None, seed=2, mel=128):
    """Ids, and a processor's arrays by name, for one of MULTIMODAL."""
    content, rng = content or CONTENT[name], np.random.default_rng(seed)
    arrays, ids = {}, [2, *text(rng)]
    images, videos, clips = (content.get(kind, []) for kind in ("images", "videos", "clips"))
    for across, down in images:
        ids += [IDS["boi"], *[IDS["image"]] * (across * down // 9), IDS["eoi"], *text(rng)]
    for video in videos:
        for across, down in video:
            ids += [*text(rng), IDS["boi"], *[IDS["video"]] * (across * down // 9), IDS["eoi"]]
    for length in clips:
        ids += [IDS["boa"], *[IDS["audio"]] * -(-length // 4), IDS["eoa"], *text(rng)]
    if images:
        arrays["pixel_values"], arrays["image_position_ids"] = pictures(images, rng)
    if videos:
        frames = [frame for video in videos for frame in video]
        arrays["pixel_values_videos"], arrays["video_position_ids"] = pictures(frames, rng)
        arrays["num_frames_per_video"] = np.array([len(video) for video in videos])
    if clips:
        arrays["input_features"], arrays["input_features_mask"] = sounds(clips, rng, mel=mel)
    return np.array(ids), arrays


UNIFIED_STORED = {"images": [(4, 2), (1, 2)], "videos": [[(1, 2)] * 2], "clips": [2, 3]}  # one past the window
UNIFIED_CONTENT = {
    "text": {},
    "two pictures": {"images": [(3, 2), (4, 5)]},
    "two recordings": {"clips": [3, 7]},
    "a video": {"videos": [[(2, 2), (2, 2)]]},
    "all": {"images": [(3, 2), (4, 5)], "videos": [[(2, 1), (2, 1)]], "clips": [2, 6]},
}


def unified_prompt(content, seed=2, padding=3):
    """Ids, and a processor's arrays by name, for UNIFIED.  Pictures: patches of 48 pixels across and down."""
    rng = np.random.default_rng(seed)
    arrays, ids = {}, [2, *text(rng)]
    images, clips = content.get("images", []), content.get("clips", [])
    frames = [frame for video in content.get("videos", []) for frame in video]
    for kind, sizes in (("image", images), ("video", frames)):
        for across, down in sizes:
            ids += [IDS["boi"], *[IDS[kind]] * (across * down), IDS["eoi"], *text(rng)]
    for length in clips:
        ids += [IDS["boa"], *[IDS["audio"]] * length, IDS["eoa"], *text(rng)]
    if images:
        arrays["pixel_values"], arrays["image_position_ids"] = pictures(images, rng, padding, numbers=6912)
    if frames:
        arrays["pixel_values_videos"], arrays["video_position_ids"] = pictures(frames, rng, padding, numbers=6912)
        arrays["num_frames_per_video"] = np.array([len(video) for video in content["videos"]])
    if clips:
        longest = max(clips) + padding
        arrays["input_features"] = np.zeros((len(clips), longest, 640), np.float32)
        arrays["input_features_mask"] = np.arange(longest) < np.array(clips)[:, None]
        for frames_of_one, length in zip(arrays["input_features"], clips, strict=True):
            frames_of_one[:length] = rng.normal(0, 0.1, (length, 640))
    return np.array([*ids, *text(rng), *text(rng), *text(rng)]), arrays


DIFFUSION_CONTENT = {"text": {}, "pictures": {"images": [(9, 9), (6, 3)]}}  # the first picture is past the window


def diffusion_inputs(case="text", condition=True, seed=3, canvas=6):
    """What one denoising pass of DIFFUSION takes, by name.

    case: a key of DIFFUSION_CONTENT, or what such a key stands for.  condition: not the first pass of a block.
    """
    rng = np.random.default_rng(seed)
    content = DIFFUSION_CONTENT[case] if isinstance(case, str) else case
    ids, arrays = multimodal_prompt("26b", content or {"none": []}, seed)
    arrays["input_ids"] = np.array([*ids, *text(rng), *text(rng), *text(rng), *text(rng)])
    arrays["decoder_input_ids"] = rng.integers(0, 199, (1, canvas))  # with the batch axis of Transformers
    if condition:
        arrays["self_conditioning_logits"] = rng.normal(0, 3, (1, canvas, 199)).astype(np.float32)
    return arrays


def calm(raw=DIFFUSION):
    """Weights with which a canvas settles: what is written depends on the text more than on the canvas.

    With those of random_tensors a difference in the last place grows tenfold in each step.
    """
    tensors = random_tensors(raw)
    factors = {"post_attention_layernorm.weight": 8, "k_norm.weight": 0.3, "post_feedforward_layernorm.weight": 0.5}
    factors |= {"self_conditioning.down_proj.weight": 0.3, "embed_tokens.weight": 4}
    for name in tensors:
        tensors[name] *= next((factor for end, factor in factors.items() if name.endswith(end)), 1)
    return tensors


def text(rng):
    return rng.integers(3, 190, 3)


def pictures(sizes, rng, padding=9, *, numbers=768):
    """Random pixels and positions, padded as a processor pads: zeros, and -1, -1."""
    longest = max(across * down for across, down in sizes) + padding
    pixels, positions = np.zeros((len(sizes), longest, numbers), np.float32), np.full((len(sizes), longest, 2), -1)
    for i, (across, down) in enumerate(sizes):
        n = across * down
        pixels[i, :n] = rng.integers(0, 256, (n, numbers)) / 255
        positions[i, :n] = np.stack(np.meshgrid(range(across), range(down)), -1).reshape(n, 2)
    return pixels, positions


def sounds(lengths, rng, padding=7, *, mel=128):
    """Random log-mel frames of clips, padded with zeros, and their mask."""
    longest = max(lengths) + padding
    features, mask = np.zeros((len(lengths), longest, mel), np.float32), np.zeros((len(lengths), longest), bool)
    for i, length in enumerate(lengths):
        features[i, :length] = rng.normal(-3, 2, (length, mel))
        mask[i, :length] = True
    return features, mask
