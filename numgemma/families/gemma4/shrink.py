"""The same model, smaller: every feature of the structure stays, every width and count goes down.

Kept: the rhythm of sliding and full layers, which layers share keys and how many make them, the double width of sharing
layers, raw keys as values, the number of key/value heads of each kind, the ratio of the widths, both towers.
"""

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from numgemma.families.gemma4.config import Config, read_config
from numgemma.prompt.audio import FRAMES_PER_SOFT_TOKEN
from numgemma.prompt.media import NO_MEDIA, Media


@dataclass(frozen=True)
class Scale:
    """The most that a shrunk model has of each."""

    hidden: int
    head: int  # width of a sliding layer's heads; those of full layers keep their ratio to it
    per_layer: int
    experts: int
    chosen: int
    vocab: int
    window: int
    full_layers: int  # and the sliding ones before each
    full_layers_sharing: int  # of a model whose layers share keys
    tower: int
    tower_layers: int
    channels: int  # of the audio tower's second convolution
    positions: int  # of the vision tower, along one side


SCALES = {
    "tiny": Scale(
        hidden=64,
        head=16,
        per_layer=16,
        experts=8,
        chosen=2,
        vocab=512,
        window=16,
        full_layers=2,
        full_layers_sharing=4,
        tower=64,
        tower_layers=2,
        channels=4,
        positions=512,
    ),
    "pilot": Scale(
        hidden=512,
        head=64,
        per_layer=64,
        experts=16,
        chosen=4,
        vocab=16384,
        window=128,
        full_layers=3,
        full_layers_sharing=4,
        tower=256,
        tower_layers=4,
        channels=16,
        positions=10240,
    ),
}


# The narrowest widths that run, and every layer: a run takes milliseconds and has every point.
ALL = 1000  # layers of a kind
TWIN = Scale(
    hidden=8,
    head=8,
    per_layer=2,
    experts=2,
    chosen=1,
    vocab=64,
    window=2,
    full_layers=ALL,
    full_layers_sharing=ALL,
    tower=16,
    tower_layers=ALL,
    channels=1,
    positions=8,
)


def twin(raw: dict[str, Any], where: str, shallow=False) -> dict[str, Any]:
    """A config.json of the same points.  shallow: with some layers of each kind alone"""
    return shrunk(raw, narrowest(shallow), where)


def narrowest(shallow) -> Scale:
    """The scale of a twin.  shallow: with some layers of each kind alone"""
    return replace(TWIN, full_layers=1, full_layers_sharing=2, tower_layers=1) if shallow else TWIN


def sample(config: Config, pictures: int, sounds: int):
    """The shortest prompt with so many pictures and sounds, each of one soft token.  -> ids, media"""
    c, media = config.vision, {}
    pictures, sounds = pictures if config.vision else 0, sounds if config.audio else 0
    ids = np.array([3, *[config.image_token_id] * pictures, *[config.audio_token_id] * sounds, 3])
    if c and pictures:
        k, pixels = c.pooling_kernel_size, 3 * c.patch_size**2
        square = np.stack(np.divmod(np.arange(k * k), k), -1)
        media["pixel_values"] = np.full((pictures, k * k, pixels), 0.5, np.float32)
        media["image_position_ids"] = np.stack([square] * pictures)
    if config.audio and sounds:
        media["input_features"] = np.ones((sounds, FRAMES_PER_SOFT_TOKEN, config.audio.mel_bins), np.float32)
        media["input_features_mask"] = np.ones((sounds, FRAMES_PER_SOFT_TOKEN), bool)
    return ids, Media(**media) if media else NO_MEDIA


def shrunk(raw: dict[str, Any], scale: Scale, where: str) -> dict[str, Any]:
    """A config.json like this one, for a model of that scale.  raw: of model_type gemma4 or gemma4_text"""
    whole = read_config(raw, where)
    raw = deepcopy(raw)
    nested = raw["model_type"] == "gemma4"
    moved = token_moves(raw, scale.vocab, whole.text.vocab_size)
    text = move_tokens(raw["text_config"] if nested else raw, moved) | shrunk_text(whole.text, scale)
    if not nested:
        return text
    raw = move_tokens(raw, moved) | {"text_config": text}
    if whole.vision:
        raw["vision_config"] |= shrunk_vision(whole.vision, scale)
    if whole.audio:
        raw["audio_config"] |= shrunk_audio(whole.audio, scale)
    return raw


def width(value: int, ratio: float) -> int:
    """A multiple of 8, or what it was where that is smaller."""
    return min(value, max(8, round(value * ratio / 8) * 8))


def shrunk_text(c, scale: Scale) -> dict[str, Any]:
    """The keys of a text config that change.  c: TextConfig"""
    ratio = min(1, scale.hidden / c.hidden_size)
    narrow = min(1, scale.head / c.head_dim)
    fewer = max(1, math.gcd(*{spec.N for spec in c.layers}, *{spec.K for spec in c.layers}) // 2)
    kept, shared = kept_layers(c, scale)
    changes = {
        "vocab_size": min(c.vocab_size, scale.vocab),
        "vocab_size_per_layer_input": min(c.vocab_size_per_layer_input, scale.vocab),
        "hidden_size": width(c.hidden_size, ratio),
        "intermediate_size": width(c.intermediate_size, ratio),
        "num_attention_heads": c.num_attention_heads // fewer,
        "num_key_value_heads": c.num_key_value_heads // fewer,
        "head_dim": width(c.head_dim, narrow),
        "sliding_window": min(c.sliding_window, scale.window),
        "num_hidden_layers": kept,
        "layer_types": list(c.layer_types[:kept]),
        "num_kv_shared_layers": shared,
    }
    if c.hidden_size_per_layer_input:
        changes["hidden_size_per_layer_input"] = min(c.hidden_size_per_layer_input, scale.per_layer)
    if c.enable_moe_block:
        changes["num_experts"] = min(c.num_experts, scale.experts)
        changes["top_k_experts"] = min(c.top_k_experts, scale.chosen)
        changes["moe_intermediate_size"] = width(c.moe_intermediate_size, ratio)
    return changes | shrunk_full_layers(c, kept, narrow, fewer)


def shrunk_full_layers(c, kept, narrow, fewer) -> dict[str, Any]:
    """What the full layers have of their own, in the spelling of the config."""
    if c.per_layer_config is None:
        heads = c.num_global_key_value_heads
        H = c.kinds["full_attention"].H
        return {"global_head_dim": width(H, narrow), "num_global_key_value_heads": heads and heads // fewer}
    entries = {}
    for key, entry in c.per_layer_config.items():
        if int(key) < kept:
            H, K = entry.get("head_dim"), entry.get("num_key_value_heads")
            entries[key] = {**({"head_dim": width(H, narrow)} if H else {})}
            entries[key] |= {"num_key_value_heads": K // fewer} if K else {}
    return {"per_layer_config": entries}


def kept_layers(c, scale: Scale) -> tuple[int, int]:
    """How many layers stay, and how many of them share: both end with a full layer, in the proportion they were."""
    fulls = [spec.index for spec in c.layers if spec.kind == "full_attention"]
    sharing = sum(spec.kv_from != spec.index for spec in c.layers if spec.kind == "full_attention")
    n = scale.full_layers_sharing if c.num_kv_shared_layers else scale.full_layers
    if n >= len(fulls):
        return c.num_hidden_layers, c.num_kv_shared_layers
    kept = fulls[n - 1] + 1
    if not c.num_kv_shared_layers:
        return kept, 0
    share = min(n - 1, max(1, round(n * sharing / len(fulls))))
    return kept, kept - 1 - fulls[n - 1 - share]


def shrunk_vision(c, scale: Scale) -> dict[str, Any]:
    """The keys of a vision config that change.  c: VisionConfig"""
    ratio = min(1, scale.tower / c.hidden_size)
    heads = min(4, c.num_attention_heads)
    D = width(c.hidden_size, ratio)
    H = max(4, D // heads // 4 * 4)  # two pairs of lanes
    return {
        "hidden_size": D,
        "intermediate_size": width(c.intermediate_size, ratio),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": H,
        "global_head_dim": H,
        "num_hidden_layers": min(c.num_hidden_layers, scale.tower_layers),
        "position_embedding_size": min(c.position_embedding_size, scale.positions),
    }


def shrunk_audio(c, scale: Scale) -> dict[str, Any]:
    """The keys of an audio config that change.  c: AudioConfig"""
    ratio = min(1, scale.tower / c.hidden_size)
    first, second = c.subsampling_conv_channels  # Transformers takes the first for the number of mel bins: it stays
    return {
        "hidden_size": width(c.hidden_size, ratio),
        "num_attention_heads": min(4, c.num_attention_heads),
        "num_hidden_layers": min(c.num_hidden_layers, scale.tower_layers),
        "subsampling_conv_channels": [first, min(second, scale.channels)],
        "output_proj_dims": width(c.output_proj_dims, ratio),
    }


# token ids: the placeholders of images and sound stand at the end of the vocabulary, and move with it


def is_token_key(key: str) -> bool:
    """Whether a key of config.json holds token ids."""
    return key.endswith(("_token_id", "_token_index"))


def listed(value) -> list[int]:
    """What such a key holds: one id, several or none."""
    return value if isinstance(value, list) else [] if value is None else [value]


def token_moves(raw, vocab, had) -> dict[int, int]:
    """Old id -> new id, for ids that a shrunk vocabulary lacks: to its end, in their order."""
    parts = (raw, raw.get("text_config") or {})
    ids = {i for part in parts for key, value in part.items() if is_token_key(key) for i in listed(value)}
    outside = sorted(i for i in ids if i >= min(vocab, had))
    return {i: vocab - len(outside) + place for place, i in enumerate(outside)}


def move_tokens(part: dict[str, Any], moved: dict[int, int]) -> dict[str, Any]:
    """The same object with moved token ids."""

    def new(value):
        return [moved.get(i, i) for i in value] if isinstance(value, list) else moved.get(value, value)

    return {key: new(value) if is_token_key(key) else value for key, value in part.items()}
