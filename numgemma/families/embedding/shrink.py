"""The same EmbeddingGemma 2, smaller; and the smallest with the same points, that its graph is learned on."""

from copy import deepcopy
from typing import Any

from numgemma.families.embedding.config import ABSENT, read_config
from numgemma.families.gemma4.shrink import (
    Scale,
    move_tokens,
    narrowest,
    shrunk_audio,
    shrunk_text,
    shrunk_vision,
    token_moves,
    width,
)


def twin(raw: dict[str, Any], where: str, shallow=False) -> dict[str, Any]:
    """A config.json of the same points.  shallow: with some layers of each kind alone"""
    return shrunk(raw, narrowest(shallow), where)


def shrunk(raw: dict[str, Any], scale: Scale, where: str) -> dict[str, Any]:
    """A config.json like this one, for a model of that scale."""
    whole, raw = read_config(raw, where), deepcopy(raw)
    nested = raw["model_type"] == "embedding_gemma2"
    moved = token_moves(raw, scale.vocab, whole.text.vocab_size)
    ratio = min(1, scale.hidden / whole.text.hidden_size)
    changes = {key: value for key, value in shrunk_text(whole.text, scale).items() if key not in ABSENT}
    text = move_tokens(raw["text_config"] if nested else raw, moved) | changes
    text |= {"embedding_dim": width(whole.embedding_dim, ratio)}
    if not nested:
        return text
    raw = move_tokens(raw, moved) | {"text_config": text}
    if whole.vision:
        raw["vision_config"] |= shrunk_vision(whole.vision, scale)
    if whole.audio:
        raw["audio_config"] |= shrunk_audio(whole.audio, scale)
    return raw
