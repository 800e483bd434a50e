"""Gemma 4 12B, the encoder-free one: pictures and sound projected straight into the decoder.

In reading order:

    config   config.json: the decoder's, and how pictures and sound are cut
    layout   every tensor's name and shape, from the config alone
    inputs   pictures and sound beside a prompt, checked
    unified  the forward pass; each patch and each frame is one soft token
    shrink   the same model, smaller; and the smallest, that its graph is learned on
"""

from numgemma import cache
from numgemma.families.family import Family, Section
from numgemma.families.gemma4 import DECODER
from numgemma.families.gemma4 import config as gemma4_config
from numgemma.families.gemma4 import layout as gemma4_layout
from numgemma.families.unified import config, inputs, layout, shrink, unified
from numgemma.prompt import media

FAMILY = Family(
    name="Gemma 4 12B",
    model_types=("gemma4_unified", "gemma4_unified_text"),
    read_config=config.read_config,
    outline=gemma4_config.outline,
    with_layers=gemma4_config.with_layers,
    shapes=layout.tensor_shapes,
    optional=layout.embedders,
    besides=layout.besides,
    ignored=layout.ignored,
    stored_name=layout.stored_name,
    kvs=lambda c, dtype: cache.empty(c.text.layers, dtype),
    memory=gemma4_layout.memory,
    parts={
        "forward": unified.forward,
        "soft tokens": unified.soft_tokens,
        "enter": unified.enter,
        "image masks": unified.image_masks,
        "place patches": unified.place_patches,
        "layer norm": unified.layer_norm,
        "hear": unified.hear,
        **DECODER,
    },
    placeholders=media.placeholders,
    counts=inputs.counts,
    check_media=inputs.check_media,
    twin=shrink.twin,
    sample=shrink.sample,
    image_masks=tuple(unified.MASKS),
    shrunk=shrink.shrunk,
    sections={
        "whole": Section(config.UnifiedConfig),
        "text": Section(gemma4_config.TextConfig, gemma4_config.check_text_config, config.spelled_text),
        "vision": Section(config.UnifiedVisionConfig, config.check_vision_config, config.spelled_vision),
        "audio": Section(config.UnifiedAudioConfig, config.check_audio_config, config.spelled_audio),
    },
    generation=config.generation,
)
