"""Images, videos and sound in the prompt: their soft tokens take the place of their placeholders.

The decoder is gemma4.py's; a prompt without media is computed as there.  What changes before it: the stream at a
placeholder is a soft token, unscaled; of the per-layer input there, one half is the table's row of the padding token,
the other is projected from the soft token; and in 26B-A4B and 31B the tokens of one image see each other on sliding
layers.
"""

import numpy as np

from numgemma import ops
from numgemma.families.gemma4 import gemma4
from numgemma.layers.conformer import audio_tower
from numgemma.layers.per_layer import per_layer_inputs
from numgemma.layers.vision import vision_tower
from numgemma.masks import image_mask
from numgemma.prompt.media import Media, clips, frames, images, picture_blocks, placeholders, suffixes
from numgemma.trace import Tap


def forward(ids, media: Media, w, run, tap=Tap()):
    """Logits of every token.  ids: T  ->  T V   (equals Gemma4ForConditionalGeneration)"""
    return gemma4.head(hidden(ids, media, w, run, tap), w, run, tap)


def hidden(ids, media: Media, w, run, tap=Tap()):
    """The stream after the last norm, before the head.  ids: T  ->  T D   (equals Gemma4Model)

    Media enter with the prompt, at start 0; what comes after it is text.
    """
    soft = soft_tokens(media, w, run, tap)
    tokens = enter(ids, soft, picture_blocks(ids, media, placeholders(run.config)), w, run, tap)
    tokens = gemma4.layers(tokens, run.config.text.layers, w, run, tap)
    return gemma4.leave(tokens, w, run, tap)


def enter(ids, soft, blocks, w, run, tap=Tap()):
    """All that flows into the first layer, when the towers have run.  ids: T   soft: kind: O D   blocks: T  ->  Tokens

    blocks: which picture each token belongs to, as prompt.media.picture_blocks tells.  A prompt may enter in parts
    (generate.prefill), so that run.start is past 0.
    """
    config, plain = run.config.text, without_placeholders(ids, run.config)
    x = gemma4.embed(plain, w, config, run.dtype, tap)
    if soft:
        x = tap("inputs_embeds", merge(x, ids, soft, run.config), "T D")
    ple = per_layer_inputs(plain, x, w, config, tap) if config.hidden_size_per_layer_input else None
    masks = gemma4.causal_masks(len(ids), config, run.start)
    if soft and config.use_bidirectional_attention == "vision":  # full layers stay causal
        before = run.start - gemma4.oldest_key(run.start, config.kinds["sliding_attention"])
        masks |= {"sliding_attention": image_mask(blocks, config.sliding_window, before)}
    return gemma4.with_tables(x, ple, masks, run, tap)


def without_placeholders(ids, config):
    """The padding token in place of every placeholder: what the embedding tables are asked for.  T  ->  T"""
    return np.where(np.isin(ids, list(placeholders(config).values())), config.text.pad_token_id or 0, ids)


def soft_tokens(media: Media, w, run, tap=Tap()):
    """What stands for all media of a kind, one after another.  ->  kind: O D

    Each picture and each clip runs alone.  With more than one their points are numbered: vision_tower@0, ...; the
    frames of videos count on after the images.
    """
    pictures = with_suffixes(images(media) + frames(media))
    seen = [see(patches, positions, w, run, tap, suffix) for suffix, (patches, positions) in pictures]
    heard = [hear(clip, w, run, tap, suffix) for suffix, clip in with_suffixes(clips(media))]
    first_frame = len(images(media))
    parts = {"image": seen[:first_frame], "video": seen[first_frame:], "audio": heard}
    return {kind: np.concatenate(some) for kind, some in parts.items() if some}


def with_suffixes(things):
    """Pairs of what tells a thing apart in the names of its points, and the thing."""
    return list(zip(suffixes(len(things)), things, strict=True))


def see(patches, positions, w, run, tap, suffix):
    """Soft tokens of one image in the decoder's width.  patches: I 768, pixels   positions: I 2  ->  O D"""
    c = run.config.vision
    soft = vision_tower(patches, positions, w.at("vision_tower"), c, run.dtype, tap.at(f"vision_tower{suffix}"))
    return embedder(soft, w.at("embed_vision"), c, tap.at(f"embed_vision{suffix}"))


def hear(features, w, run, tap, suffix):
    """Soft tokens of one sound in the decoder's width.  features: U M  ->  O D"""
    c = run.config.audio
    soft = audio_tower(features, w.at("audio_tower"), c, run.dtype, tap.at(f"audio_tower{suffix}"))
    return embedder(soft, w.at("embed_audio"), c, tap.at(f"embed_audio{suffix}"))


def embedder(soft, w, c, tap=Tap()):
    """From a tower's width to the decoder's: norm first.  soft: O W  ->  O D   (equals Gemma4MultimodalEmbedder)"""
    h = tap("embedding_pre_projection_norm", ops.rms_norm(soft, None, c.rms_norm_eps), "O W")
    return tap("embedding_projection", ops.linear(h, w["embedding_projection.weight"]), "O D")


def merge(x, ids, soft, config):
    """The stream with soft tokens, as they are, at their placeholders.  x: T D   soft: kind: O D  ->  T D"""
    merged = x.copy()
    for kind, rows in soft.items():
        merged[ids == placeholders(config)[kind]] = rows
    return merged
