"""The same Gemma 3n, smaller; the smallest with the same points, that its graph is learned on, and a prompt for it.

Kept: the rhythm of sliding and full layers, which share keys and which are sparse, the number of streams, and every
block of the towers.
"""

from copy import deepcopy
from typing import Any

import numpy as np

from numgemma.families.gemma3n.config import Gemma3nConfig, read_config
from numgemma.families.gemma4.shrink import move_tokens
from numgemma.layers.mobilenet import narrowed
from numgemma.prompt.audio import MEL_BINS
from numgemma.prompt.media import NO_MEDIA, Media

NARROW = 8  # numbers of every width
VOCABULARY, TABLE, HARD = 64, 48, 8  # ids in all, those with a per-layer row, and those of each tower's table
SOUND = 2  # soft tokens of a sound: one of its own, one of what stands behind it


def twin(raw: dict[str, Any], where: str, shallow=False) -> dict[str, Any]:
    """A config.json of the same points.  shallow: with some layers of each kind alone"""
    whole, raw = read_config(raw, where), deepcopy(raw)
    nested = raw["model_type"] == "gemma3n"
    text = (raw["text_config"] if nested else raw) | narrow_text(whole.text, shallow)
    if not nested:
        return move_tokens(text, ends(text))
    raw |= {"text_config": text, "vision_soft_tokens_per_image": 1, "audio_soft_tokens_per_image": SOUND}
    raw |= {"image_token_id": TABLE + 1, "audio_token_id": TABLE + HARD + 1}
    raw |= {"eoi_token_id": TABLE, "eoa_token_id": TABLE + HARD}
    if whole.vision:
        net = {"block_args": narrowed(whole.vision.net, NARROW), "stem_size": NARROW, "msfa_output_resolution": 1}
        raw["vision_config"] |= {"model_args": net, "vocab_size": HARD, "vocab_offset": TABLE}
    if whole.audio:
        raw["audio_config"] |= narrow_audio(whole.audio, shallow)
    return move_tokens(raw, ends(raw)) | {"text_config": move_tokens(text, ends(text))}


def ends(part) -> dict[int, int]:
    """Ids that the small vocabulary lacks, all moved to its last of text."""
    found = (i for key, value in part.items() if key.endswith("_token_id") for i in np.atleast_1d(value).tolist())
    return {i: TABLE - 1 for i in found if i is not None and i >= VOCABULARY}


def narrow_text(c, shallow) -> dict[str, Any]:
    """The keys of a text config that change.  c: Gemma3nTextConfig"""
    kept = list(range(c.num_hidden_layers))
    if shallow:  # the first layer of each kind, sparse or not, that makes keys, and the first that shares
        kinds = {(s.kind, s.sparsity > 0, s.kv_from == s.index): s.index for s in reversed(c.layers)}
        kept = sorted(kinds.values())
    makers = sum(c.layers[i].kv_from == i for i in kept)
    fewer = c.num_attention_heads // c.num_key_value_heads
    return {
        "vocab_size": VOCABULARY,
        "vocab_size_per_layer_input": TABLE,
        "hidden_size": NARROW,
        "hidden_size_per_layer_input": 2,
        "intermediate_size": [NARROW] * len(kept),
        "num_attention_heads": fewer,
        "num_key_value_heads": 1,
        "head_dim": NARROW,
        "sliding_window": 2,
        "laurel_rank": 2,
        "num_hidden_layers": len(kept),
        "layer_types": [c.layer_types[i] for i in kept],
        "activation_sparsity_pattern": [c.activation_sparsity_pattern[i] for i in kept],
        "num_kv_shared_layers": len(kept) - makers,
    }


def narrow_audio(c, shallow) -> dict[str, Any]:
    """The keys of an audio config that change.  c: Gemma3nAudioConfig"""
    return {
        "vocab_size": HARD,
        "vocab_offset": TABLE + HARD,
        "hidden_size": NARROW,
        "conf_num_attention_heads": 1,
        "conf_num_hidden_layers": 1 if shallow else c.conf_num_hidden_layers,
        "sscp_conv_channel_size": [1, 1],
    }


def sample(config: Gemma3nConfig, pictures: int, sounds: int):
    """The shortest prompt with so many pictures and sounds.  -> ids, media"""
    c, media = config.vision, {}
    pictures, sounds = pictures if c else 0, sounds if config.audio else 0
    seen, heard = config.vision_soft_tokens_per_image * pictures, config.audio_soft_tokens_per_image * sounds
    ids = np.array([3, *[config.image_token_id] * seen, *[config.audio_token_id] * heard, 3])
    if c and pictures:
        side = c.net.shrinks * c.net.side
        media["pixel_values"] = np.full((pictures, 3, side, side), 0.5, np.float32)
    if sounds:
        media["input_features"] = np.ones((sounds, 1, MEL_BINS), np.float32)
        media["input_features_mask"] = np.ones((sounds, 1), bool)
    return ids, Media(**media) if media else NO_MEDIA
