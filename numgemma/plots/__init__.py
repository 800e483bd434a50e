"""What a run looks like.

In reading order:

    figures      the figures that the course shares: attention, surprise, the stream, rope, gates, routing, errors
    boxes        what a layer computes from what
    denoising    a canvas over its steps
    soft_tokens  what a dump holds of a picture, a clip or a recording
    overlay      the same, drawn over the file it was made of
"""

from numgemma.colours import BLUE, GREEN, GREY, ORANGE, RED
from numgemma.plots.boxes import layer
from numgemma.plots.denoising import canvas_map
from numgemma.plots.figures import (
    SERIES,
    attention_map,
    axes,
    channel_norms,
    cosine_map,
    depth,
    error_against_depth,
    gate_strengths,
    last_map,
    local_errors,
    name_ticks,
    pair_strengths,
    residual_norms,
    rms,
    rope_frequencies,
    routing_histogram,
    surprise,
    texts,
    token_ids,
)

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "RED",
    "SERIES",
    "attention_map",
    "axes",
    "canvas_map",
    "channel_norms",
    "cosine_map",
    "depth",
    "error_against_depth",
    "gate_strengths",
    "last_map",
    "layer",
    "local_errors",
    "name_ticks",
    "pair_strengths",
    "residual_norms",
    "rms",
    "rope_frequencies",
    "routing_histogram",
    "surprise",
    "texts",
    "token_ids",
]
