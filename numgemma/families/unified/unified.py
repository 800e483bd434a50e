"""Gemma 4 12B, which has no towers: each patch of a picture and each frame of a sound is one soft token, projected.

A patch is 48 x 48 pixels, a frame 640 samples (40 ms).  The decoder is gemma4.py's, over a layer table of this size.

Addition to the axis key in attention.py:

    Q  numbers of one patch: rows, columns, colours
"""

import numpy as np

from numgemma import ops
from numgemma.families.gemma4 import gemma4
from numgemma.families.gemma4.multimodal import embedder, merge, with_suffixes, without_placeholders
from numgemma.masks import far_image_mask, image_mask
from numgemma.prompt.media import Media, clips, frames, images, picture_blocks, placeholders
from numgemma.trace import Tap

EPS = 1e-5  # of the norms that have a bias: PyTorch's default, not the config's rms_norm_eps


def forward(ids, media: Media, w, run, tap=Tap()):
    """Logits of every token.  ids: T  ->  T V   (equals Gemma4UnifiedForConditionalGeneration)"""
    return gemma4.head(hidden(ids, media, w, run, tap), w, run, tap)


def hidden(ids, media: Media, w, run, tap=Tap()):
    """The stream after the last norm, before the head.  ids: T  ->  T D   (equals Gemma4UnifiedModel)"""
    soft = soft_tokens(media, w, run, tap)
    tokens = enter(ids, soft, picture_blocks(ids, media, placeholders(run.config)), w, run, tap)
    return gemma4.leave(gemma4.layers(tokens, run.config.text.layers, w, run, tap), w, run, tap)


def enter(ids, soft, blocks, w, run, tap=Tap()):
    """All that flows into the first layer.  ids: T   soft: kind: O D   blocks: T, of picture_blocks  ->  Tokens"""
    config = run.config
    x = gemma4.embed(without_placeholders(ids, config), w, config.text, run.dtype, tap)
    if soft:
        x = tap("inputs_embeds", merge(x, ids, soft, config), "T D")
    masks = gemma4.causal_masks(len(ids), config.text, run.start)
    if config.text.use_bidirectional_attention == "vision":
        masks |= image_masks(blocks, config, run.start)
    return gemma4.with_tables(x, None, masks, run, tap)


def soft_tokens(media: Media, w, run, tap=Tap()):
    """What stands for all media of a kind, one after another.  ->  kind: O D"""
    pictures, first_frame = with_suffixes(images(media) + frames(media)), len(images(media))
    seen = [see(px, xy, w, run, tap.at(f"embed_vision{n}")) for n, (px, xy) in pictures]
    heard = [hear(clip, w, run, tap.at(f"embed_audio{n}")) for n, clip in with_suffixes(clips(media))]
    parts = {"image": seen[:first_frame], "video": seen[first_frame:], "audio": heard}
    return {kind: np.concatenate(some) for kind, some in parts.items() if some}


def image_masks(blocks, config, start):
    """Kind of layer -> its mask, where it is not causal alone.  blocks: T"""
    return MASKS[config.image_mask](blocks, config.text, start)


def intended_masks(blocks, c, start):
    """On sliding layers the tokens of one image see each other, within the window; full layers stay causal.

    No tower has mixed the patches before, so a model without it scrambles a picture.
    """
    before = {kind: start - gemma4.oldest_key(start, spec) for kind, spec in c.kinds.items()}
    return {kind: image_mask(blocks, spec.window, before[kind]) for kind, spec in c.kinds.items() if spec.window}


def masks_of_transformers(blocks, c, start):
    """On all layers, and past the window: what Gemma4UnifiedModel of Transformers 5.23 and 5.24 computes.

    Its path for a static cache computes the intended ones.
    """
    before = {kind: start - gemma4.oldest_key(start, spec) for kind, spec in c.kinds.items()}
    return {kind: far_image_mask(blocks, spec.window, before[kind]) for kind, spec in c.kinds.items()}


MASKS = {"intended": intended_masks, "transformers": masks_of_transformers}


def see(patches, positions, w, run, tap=Tap()):
    """Soft tokens of one picture in the decoder's width.  patches: O Q, 0 to 1   positions: O 2  ->  O D

    positions: column x and row y of each patch.   (equals Gemma4UnifiedVisionEmbedder)
    """
    h = place_patches(patches, positions, w.at("vision_embedder"), run.dtype, tap)
    return embedder(h, w.at("embed_vision"), run.config.vision, tap.at("multimodal_embedder"))


def place_patches(patches, positions, w, dtype, tap=Tap()):
    """Patches in the embedder's width, each with its place added.  patches: O Q   positions: O 2  ->  O W"""
    h = layer_norm("patch_ln1", ops.narrow(patches, dtype), w, tap, "O Q")
    h = tap("patch_dense", ops.affine(h, w["patch_dense.weight"], w["patch_dense.bias"]), "O W")
    h = layer_norm("patch_ln2", h, w, tap, "O W")
    columns, rows = w["pos_embedding"][:, 0], w["pos_embedding"][:, 1]
    place = ops.embed(positions[:, 0], columns, dtype) + ops.embed(positions[:, 1], rows, dtype)
    return layer_norm("pos_norm", tap("placed", h + place, "O W"), w, tap, "O W")


def hear(frames, w, run, tap=Tap()):
    """Soft tokens of one sound in the decoder's width: its samples, normed and projected.  frames: O W  ->  O D"""
    return embedder(ops.narrow(frames, run.dtype), w.at("embed_audio"), run.config.audio, tap)


def layer_norm(name, x, w, tap, axes):
    """LayerNorm with the weight and the bias of that name."""
    return tap(name, ops.layer_norm(x, w[f"{name}.weight"], EPS, w[f"{name}.bias"]), axes)
