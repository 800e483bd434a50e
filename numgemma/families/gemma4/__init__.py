"""Gemma 4: E2B, E4B, 26B-A4B and 31B.

In reading order:

    config      config.json: one row per layer, who attends how far, with which widths
    layout      every tensor's name and shape, from the config alone
    gemma4      the forward pass of the text model, top to bottom
    multimodal  soft tokens in the place of their placeholders
    shrink      the same model, smaller; and the smallest, that its graph is learned on
"""

from collections.abc import Callable

from numgemma import cache, masks
from numgemma.families.family import Family, Section
from numgemma.families.gemma4 import config, gemma4, layout, multimodal, shrink
from numgemma.layers import feedforward, per_layer
from numgemma.prompt import media

# The parts of a decoder that is this one, whatever enters it.
DECODER: dict[str, Callable] = {
    "head": gemma4.head,
    "layers": gemma4.layers,
    "leave": gemma4.leave,
    "forget": gemma4.forget,
    "embed": gemma4.embed,
    "rope table": gemma4.rope_table,
    "masks": gemma4.causal_masks,
    "image mask": masks.image_mask,
    "merge": multimodal.merge,
    "embedder": multimodal.embedder,
    "block": gemma4.block,
    "mlp": feedforward.mlp,
    "per-layer inputs": per_layer.per_layer_inputs,
    "per-layer context": per_layer.projected_inputs,
    "norm": gemma4.norm,
    "experts beside": gemma4.add_experts,
}

FAMILY = Family(
    name="Gemma 4",
    model_types=("gemma4", "gemma4_text"),
    read_config=config.read_config,
    outline=config.outline,
    with_layers=config.with_layers,
    shapes=layout.tensor_shapes,
    kvs=lambda c, dtype: cache.empty(c.text.layers, dtype),
    memory=layout.memory,
    optional=layout.towers,
    besides=layout.besides,
    ignored=layout.ignored,
    stored_name=layout.stored_name,
    parts={
        "forward": multimodal.forward,
        "soft tokens": multimodal.soft_tokens,
        "enter": multimodal.enter,
        **DECODER,
    },
    placeholders=media.placeholders,
    counts=media.counts,
    check_media=media.check_towers,
    twin=shrink.twin,
    sample=shrink.sample,
    shrunk=shrink.shrunk,
    generation=lambda c: config.stops(c.eos_token_id),
    sections={
        "whole": Section(config.Config),
        "text": Section(config.TextConfig, config.check_text_config),
        "vision": Section(config.VisionConfig, config.check_vision_config),
        "audio": Section(config.AudioConfig, config.check_audio_config),
    },
)
