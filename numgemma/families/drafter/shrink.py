"""The same drafter, smaller, to fit its target at the same scale; the smallest, that its graph is learned on."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np

from numgemma.families.drafter.config import DrafterConfig, read_config
from numgemma.families.drafter.layout import inputs
from numgemma.families.gemma4.shrink import Scale, move_tokens, narrowest, shrunk_text, token_moves, width
from numgemma.prompt.media import Media

CLUSTER = 32  # tokens of one cluster, at least, and clusters for each that is looked at


def twin(raw: dict[str, Any], where: str, shallow=False) -> dict[str, Any]:
    """A config.json of the same points."""
    return shrunk(raw, narrowest(shallow), where)


def shrunk(raw: dict[str, Any], scale: Scale, where: str) -> dict[str, Any]:
    """A config.json like this one, for a model of that scale."""
    whole, raw = read_config(raw, where), deepcopy(raw)
    B = whole.backbone_hidden_size
    moved = token_moves(raw, scale.vocab, whole.text.vocab_size)
    text = move_tokens(raw["text_config"], moved) | shrunk_text(whole.text, replace(scale, hidden=scale.hidden // 2))
    text |= {"num_kv_shared_layers": text["num_hidden_layers"], "vocab_size_per_layer_input": 0}
    raw = move_tokens(raw, moved) | {"text_config": text}
    raw["backbone_hidden_size"] = width(B, min(1, scale.hidden / B))
    if whole.clusters:
        E = min(whole.num_centroids, text["vocab_size"] // CLUSTER)
        raw |= {"num_centroids": E, "centroid_intermediate_top_k": min(whole.centroid_intermediate_top_k, -(-E // 4))}
    return raw


def sample(config: DrafterConfig, pictures: int, sounds: int):
    """One step after two tokens.  -> no ids, media"""
    free = {"T": 1, "S": 2}
    due = {name: one for name, one in inputs(config).items() if one.needed}
    shapes = {name: [(free | dict(one.sizes))[letter] for letter in one.axes.split()] for name, one in due.items()}
    arrays = {name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}
    return np.zeros(0, int), Media(named=arrays | {"position_ids": np.array([2])})
