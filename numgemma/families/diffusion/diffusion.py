"""DiffusionGemma 26B-A4B: one set of weights that reads a text token by token, and writes a canvas of tokens at once.

The encoder is 26B-A4B's forward pass; of what it computes only the keys and values are used.  The decoder is the same
layers on a canvas of guesses, each of which sees the whole text and the whole canvas; it is told what it thought of the
canvas in the pass before.
Both end their layers with scalars of their own; the decoder alone has the self-conditioning; all else is shared.
How a canvas becomes a text in many passes: denoise.py.
"""

from collections import ChainMap
from dataclasses import replace

import numpy as np

from numgemma import ops
from numgemma.cache import beside
from numgemma.families.diffusion.layout import ENCODER
from numgemma.families.gemma4 import gemma4, multimodal
from numgemma.families.unified.unified import image_masks
from numgemma.layers.feedforward import mlp
from numgemma.masks import everything
from numgemma.prompt.media import Media, picture_blocks, placeholders
from numgemma.prompt.named import named, taken
from numgemma.trace import Tap

CANVAS, CONDITION = "decoder_input_ids", "self_conditioning_logits"  # what a pass takes beside the text, by name


def forward(ids, media: Media, w, run, tap=Tap()):
    """One denoising pass after a text.  ids: S  ->  logits of the canvas: T V   (DiffusionGemmaForBlockDiffusion)"""
    read(ids, media, w, run, tap)
    canvas = taken(CANVAS, "T", media, run.dtype, tap)
    before = taken(CONDITION, "T V", media, run.dtype, tap) if CONDITION in named(media) else None
    return guess(canvas, before, w, replace(run, start=run.start + len(ids)), tap)


# -- the encoder


def read(ids, media: Media, w, run, tap=Tap()):
    """Keys and values of a text, into run.kvs.  ids: T  ->  T D, which nobody reads (DiffusionGemmaEncoderModel)"""
    soft = soft_tokens(media, w, run, tap)
    w, tap = encoder_weights(w, run.config), tap.at(ENCODER)
    tokens = enter(ids, soft, picture_blocks(ids, media, placeholders(run.config)), w, run, tap)
    return gemma4.leave(gemma4.layers(tokens, run.config.text.layers, w, run, tap), w, run, tap)


def encoder_weights(w, config):
    """The shared weights with the scalars of the encoder's layers in the place of the decoder's."""
    names = [f"layers.{spec.index}.layer_scalar" for spec in config.text.layers]
    return replace(w, tensors=ChainMap({name: w[f"{ENCODER}.{name}"] for name in names}, w.tensors))


def soft_tokens(media: Media, w, run, tap=Tap()):
    """What stands for all pictures, one after another.  ->  kind: O D"""
    return multimodal.soft_tokens(media, w, run, tap.at("encoder"))


def enter(ids, soft, blocks, w, run, tap=Tap()):
    """All that flows into the encoder's first layer.  ids: T   soft: kind: O D   blocks: T, of picture_blocks -> Tokens

    A placeholder is embedded as the token it is: one that the decoder has written stands for no picture.
    """
    config = run.config
    x = gemma4.embed(ids, w, config.text, run.dtype, tap)
    masks = gemma4.causal_masks(len(ids), config.text, run.start)
    if soft:
        x = tap("inputs_embeds", multimodal.merge(x, ids, soft, config), "T D")
    if soft and config.text.use_bidirectional_attention == "vision":
        masks |= image_masks(blocks, config, run.start)
    return gemma4.with_tables(x, None, masks, run, tap)


# -- the decoder


def guess(canvas, before, w, run, tap=Tap()):
    """What the decoder makes of a canvas that stands after run.start tokens.  canvas: T  ->  logits T V

    before: the logits of the pass before, tempered as the sampler had them: T V; None: this is the first.
    Equals DiffusionGemmaDecoderModel and the head.
    """
    inner, c = tap.at("decoder"), run.config.text
    x = gemma4.embed(canvas, w, c, run.dtype, inner)
    x = self_conditioning(x, before, w, c, inner.at("self_conditioning"))
    kvs = read_only(run.kvs)
    tokens = gemma4.with_tables(x, None, canvas_masks(len(canvas), kvs, c), run, inner)
    tokens = gemma4.layers(tokens, c.layers, w, replace(run, kvs=kvs), inner)
    return head(gemma4.norm("norm", tokens.x, w, c.rms_norm_eps, inner), w, run, tap)


def self_conditioning(x, before, w, c, tap=Tap()):
    """The canvas, with what was thought of it.  x: T D   before: logits T V, or None  ->  T D

    In the first pass the signal is zero; the last norm is still applied.
    (equals DiffusionGemmaSelfConditioning)
    """
    soft = tap("soft", thought(x, before, w, c), "T D")
    w = w.at("self_conditioning")
    h = gemma4.norm("pre_norm", soft, w, c.rms_norm_eps, tap)
    return tap("post_norm", ops.rms_norm(x + mlp(h, w, tap), None, c.rms_norm_eps), "T D")


def thought(x, before, w, c):
    """The mean embedding of each place under the logits of the pass before.  x: T D, the canvas's own  ->  T D"""
    if before is None:
        return np.zeros_like(x)
    mean = ops.mean_row(before, w["embed_tokens.weight"], x.dtype)
    return ops.scale(mean, x.dtype.type(c.hidden_size**0.5))


def read_only(kvs):
    """The cache as the decoder has it: the canvas's keys go behind the text's, in rows that the text does not use yet.

    The text's own cache does not learn of them.
    """
    return beside(kvs)


def canvas_masks(T, kvs, c):
    """Each token of the canvas sees all that a layer keeps of the text, and the whole canvas: no window ends within."""
    return {kind: everything(T, len(kvs[spec.index]) + T) for kind, spec in c.kinds.items()}


def head(x, w, run, tap=Tap()):
    """Logits: the embedding table, unscaled; the soft cap in float32 at least, in any run.  x: T D  ->  T V"""
    logits = tap("lm_head", ops.linear(x, w["embed_tokens.weight"]), "T V")
    return tap("logits", ops.softcap(ops.widen(logits, 1), run.config.text.final_logit_softcapping), "T V")
