"""The same 12B, smaller; the smallest with the same points, that its graph is learned on; and the shortest prompt."""

from copy import deepcopy
from typing import Any

import numpy as np

from numgemma.families.gemma4.shrink import Scale, move_tokens, narrowest, shrunk_text, token_moves, width
from numgemma.families.unified.config import UnifiedConfig, read_config
from numgemma.prompt.media import NO_MEDIA, Media


def twin(raw: dict[str, Any], where: str, shallow=False) -> dict[str, Any]:
    """A config.json of the same points.  shallow: with some layers of each kind alone"""
    return shrunk(raw, narrowest(shallow), where)


def shrunk(raw: dict[str, Any], scale: Scale, where: str) -> dict[str, Any]:
    """A config.json like this one, for a model of that scale; patches and frames stay, for the processor makes them."""
    whole, raw = read_config(raw, where), deepcopy(raw)
    nested = raw["model_type"] == "gemma4_unified"
    moved = token_moves(raw, scale.vocab, whole.text.vocab_size)
    text = move_tokens(raw["text_config"] if nested else raw, moved) | shrunk_text(whole.text, scale)
    if not nested:
        return text
    raw = move_tokens(raw, moved) | {"text_config": text}
    if whole.vision:
        W = width(whole.vision.mm_embed_dim, min(1, scale.tower / whole.vision.mm_embed_dim))
        raw["vision_config"] |= {"mm_embed_dim": W, "output_proj_dims": W}
        raw["vision_config"]["mm_posemb_size"] = min(whole.vision.mm_posemb_size, scale.positions)
    return raw


def sample(config: UnifiedConfig, pictures: int, sounds: int):
    """The shortest prompt with so many pictures and sounds, each of one soft token.  -> ids, media"""
    media = {}
    ids = np.array([3, *[config.image_token_id] * pictures, *[config.audio_token_id] * sounds, 3])
    if config.vision and pictures:
        media["pixel_values"] = np.full((pictures, 1, config.vision.numbers), 0.5, np.float32)
        media["image_position_ids"] = np.zeros((pictures, 1, 2), int)
    if config.audio and sounds:
        media["input_features"] = np.ones((sounds, 1, config.audio.audio_embed_dim), np.float32)
        media["input_features_mask"] = np.ones((sounds, 1), bool)
    return ids, Media(**media) if media else NO_MEDIA
