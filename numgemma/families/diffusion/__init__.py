"""DiffusionGemma: 26B-A4B.

In reading order:

    config     config.json: 26B-A4B's decoder, and the length of a canvas
    layout     every tensor's name and shape, from the config alone; what is shared has one
    diffusion  the two forward passes: a text is read, a canvas is guessed
    inputs     what a pass is given, checked
    shrink     the same model, smaller; and the smallest, that its graph is learned on
"""

from numgemma import cache
from numgemma.families.diffusion import config, diffusion, inputs, layout, shrink
from numgemma.families.family import Family, Section
from numgemma.families.gemma4 import DECODER
from numgemma.families.gemma4 import config as gemma4_config
from numgemma.families.unified import unified
from numgemma.prompt import media

FAMILY = Family(
    name="DiffusionGemma",
    model_types=("diffusion_gemma",),
    read_config=config.read_config,
    outline=gemma4_config.outline,
    with_layers=gemma4_config.with_layers,
    shapes=layout.tensor_shapes,
    optional=layout.towers,
    besides=layout.besides,
    ignored=layout.ignored,
    stored_name=layout.stored_name,
    kvs=lambda c, dtype: cache.empty(c.text.layers, dtype),
    memory=layout.memory,
    parts={
        **DECODER,
        "forward": diffusion.forward,
        "soft tokens": diffusion.soft_tokens,
        "enter encoder": diffusion.enter,
        "read": diffusion.read,
        "encoder weights": diffusion.encoder_weights,
        "image masks": unified.image_masks,
        "guess": diffusion.guess,
        "self-conditioning": diffusion.self_conditioning,
        "thought": diffusion.thought,
        "read-only cache": diffusion.read_only,
        "canvas masks": diffusion.canvas_masks,
        "head": diffusion.head,
    },
    placeholders=media.placeholders,
    counts=media.counts,
    check_media=inputs.check_media,
    inputs=inputs.inputs,
    image_masks=tuple(unified.MASKS),
    twin=shrink.twin,
    sample=shrink.sample,
    shrunk=shrink.shrunk,
    generation=config.generation,
    instead="; `numgemma generate` writes its canvases",
    sections={
        "whole": Section(config.DiffusionConfig),
        "text": Section(gemma4_config.TextConfig, gemma4_config.check_text_config, config.spelled_text),
        "vision": Section(gemma4_config.VisionConfig, gemma4_config.check_vision_config),
    },
)
