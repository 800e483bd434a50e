"""The same DiffusionGemma, smaller; the smallest, that its graph is learned on; the shortest text and canvas."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np

from numgemma.families.diffusion.config import DiffusionConfig, read_config
from numgemma.families.diffusion.diffusion import CANVAS, CONDITION
from numgemma.families.gemma4 import shrink
from numgemma.families.gemma4.shrink import Scale, move_tokens, narrowest, shrunk_text, shrunk_vision, token_moves

CANVAS_PER_WINDOW = 4  # a released canvas is a quarter of a window


def twin(raw: dict[str, Any], where: str, shallow=False) -> dict[str, Any]:
    """A config.json of the same points.  shallow: with some layers of each kind alone"""
    return shrunk(raw, narrowest(shallow), where)


def shrunk(raw: dict[str, Any], scale: Scale, where: str) -> dict[str, Any]:
    """A config.json like this one, for a model of that scale."""
    whole, raw = read_config(raw, where), deepcopy(raw)
    moved = token_moves(raw, scale.vocab, whole.text.vocab_size)
    changes = {key: value for key, value in shrunk_text(whole.text, scale).items() if key in raw["text_config"]}
    raw = move_tokens(raw, moved) | {"text_config": move_tokens(raw["text_config"], moved) | changes}
    raw["canvas_length"] = min(whole.canvas_length, max(1, scale.window // CANVAS_PER_WINDOW))
    if whole.vision:
        raw["vision_config"] |= shrunk_vision(whole.vision, scale)
    return raw


def sample(config: DiffusionConfig, pictures: int, sounds: int):
    """The shortest text with so many pictures, and a canvas of two tokens.  -> ids, media"""
    ids, media = shrink.sample(config, pictures, 0)  # type: ignore[arg-type]
    logits = np.zeros((2, config.text.vocab_size), np.float32)
    return ids, replace(media, named={CANVAS: np.array([3, 3]), CONDITION: logits})
