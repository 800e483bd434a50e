"""EmbeddingGemma 2: one vector for a text, a picture, a sound, a clip, or a mix of them.

The layers are Gemma 4's but for three things: a token sees what comes after it too, for nothing is continued; the
per-layer inputs are projected from the stream alone; and their residual is a module of its own.  The vector is the
mean over all tokens, projected, cut to as many numbers as are asked for, and then brought to length 1.
"""

import numpy as np

from numgemma import ops
from numgemma.families.gemma4.gemma4 import embed, norm, rope_table
from numgemma.families.gemma4.multimodal import merge, soft_tokens, without_placeholders
from numgemma.layers.attention import attention
from numgemma.layers.feedforward import mlp
from numgemma.layers.per_layer import per_layer_residual, projected_inputs
from numgemma.masks import band_mask, everything
from numgemma.prompt.media import Media
from numgemma.trace import Tap


def forward(ids, media: Media, w, run, tap=Tap()):
    """The vector of one prompt, of length 1.  ids: T  ->  C, as many numbers as config.dim says, or W

    Equals EmbeddingGemma2Model, then Pooling and Normalize of sentence-transformers.
    """
    return vector(pooled(stream(ids, media, w, run, tap), w, run.config.text, tap), run.config.dim, tap)


def stream(ids, media: Media, w, run, tap=Tap()):
    """The stream after all layers.  ids: T  ->  T D"""
    config = run.config.text
    soft = soft_tokens(media, w, run, tap)
    x = embed(without_placeholders(ids, run.config), w, config, run.dtype, tap)
    if soft:
        x = tap("inputs_embeds", merge(x, ids, soft, run.config), "T D")
    return layers(x, w, config, tap)


def layers(x, w, config, tap=Tap()):
    """All layers, one after another.  x: T D  ->  T D"""
    ple = projected_inputs(x, w.at("ple"), config, tap.at("ple"))
    positions, masks = np.arange(len(x)), both_ways(len(x), config)
    ropes = {kind: rope_table(positions, spec, x.dtype, tap) for kind, spec in config.kinds.items()}
    for spec in config.layers:
        scope, rope, mask = f"layers.{spec.index}", ropes[spec.kind], masks[spec.kind]
        x = block(x, ple[:, spec.index], w.at(scope), spec, rope, mask, tap.at(scope))
    return x


def both_ways(count, config):
    """Who sees whom among so many tokens: all, or those within the radius.  ->  kind of layer: T T"""
    return {
        kind: everything(count, count) if spec.window is None else band_mask(count, spec.window)
        for kind, spec in config.kinds.items()
    }


def block(x, own, w, spec, rope, mask, tap=Tap()):
    """One layer.  x: T D   own: T P, its per-layer input  ->  T D   (equals EmbeddingGemma2EncoderLayer)"""
    h = norm("input_layernorm", x, w, spec.eps, tap)
    h = attention(h, w.at("self_attn"), spec, rope, mask, {}, tap.at("self_attn"))  # {}: no cache, nothing follows
    h = norm("post_attention_layernorm", h, w, spec.eps, tap)
    x = tap("after_attention", x + h, "T D")

    h = norm("pre_feedforward_layernorm", x, w, spec.eps, tap)
    h = mlp(h, w.at("mlp"), tap.at("mlp"))
    h = norm("post_feedforward_layernorm", h, w, spec.eps, tap)
    x = tap("after_mlp", x + h, "T D")

    inner = tap.at("ple_block")
    x = inner("out", x + per_layer_residual(x, own, w.at("ple_block"), spec, inner), "T D")
    return tap("out", ops.scale(x, w["layer_scalar"]), "T D")


def pooled(x, w, config, tap=Tap()):
    """The mean over all tokens, the prompt's, <bos> and <eos> too, of their projections.  x: T D  ->  W

    Up to the projection this equals EmbeddingGemma2Model.  The mean could be taken before the projection, which is
    linear, but not before the norm.
    """
    x = norm("norm", x, w, config.rms_norm_eps, tap)
    x = tap("embedding_projection", ops.linear(x, w["embedding_projection.weight"]), "T W")
    return tap("pooled", ops.mean_of_tokens(x), "W")


def vector(x, dim, tap=Tap()):
    """The first numbers of the mean, brought to length 1: cut first.  x: W   dim: how many; None: all  ->  C"""
    return tap("vector", ops.unit(x[:dim]), "C")
