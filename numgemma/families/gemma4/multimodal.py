"""Images, videos and sound in the prompt: their soft tokens take the place of their placeholders.

The decoder is gemma4.py's, and so is all of a prompt that has neither.  What changes before it: the stream at a
placeholder is a soft token, unscaled; the per-layer embedding there is that of the padding token; and in 26B-A4B and
31B the tokens of one image see each other on sliding layers.
"""

import numpy as np

from numgemma import ops
from numgemma.families.gemma4 import gemma4
from numgemma.layers.conformer import audio_tower
from numgemma.layers.per_layer import per_layer_inputs
from numgemma.layers.vision import vision_tower
from numgemma.masks import image_mask
from numgemma.prompt.media import Media, clips, frames, images, placeholders
from numgemma.trace import Tap


def forward(ids, media: Media, w, run, tap=Tap()):
    """Logits of every token.  ids: T  ->  T V   (equals Gemma4ForConditionalGeneration)"""
    x = hidden(ids, media, w, run.config, run.dtype, run.kvs, run.start, tap)
    return gemma4.head(x, w, run.config.text, tap)


def hidden(ids, media: Media, w, config, dtype, kvs, start=0, tap=Tap()):
    """The stream after the last norm, before the head.  ids: T  ->  T D   (equals Gemma4Model)

    Media enter with the prompt, at start 0; what comes after it is text.
    """
    soft = soft_tokens(media, w, config, dtype, tap)
    return with_soft_tokens(ids, soft, image_blocks(ids, media, config), w, config, dtype, kvs, start, tap)


def with_soft_tokens(ids, soft, blocks, w, config, dtype, kvs, start=0, tap=Tap(), wanted=gemma4.ALL):
    """`hidden`, when the towers have run.  ids: T   soft: kind: O D   blocks: T, of `image_blocks`  ->  T D

    wanted: see gemma4.decoder.
    """
    text = without_placeholders(ids, config)
    if not soft:
        return gemma4.hidden(text, w, config.text, dtype, kvs, start, tap, wanted)
    x = gemma4.embed(text, w, config.text, dtype, tap)
    x = tap("inputs_embeds", merge(x, ids, soft, config), "T D")
    ple = per_layer_inputs(text, x, w, config.text, tap) if config.text.hidden_size_per_layer_input else None
    masks = gemma4.causal_masks(len(ids), config.text, start)
    if config.text.use_bidirectional_attention == "vision":  # full layers stay causal
        before = start - gemma4.oldest_key(start, config.text.kinds["sliding_attention"])
        masks |= {"sliding_attention": image_mask(blocks, config.text.sliding_window, before)}
    return gemma4.decoder(x, ple, masks, w, config.text, kvs, start, tap, wanted)


def without_placeholders(ids, config):
    """The padding token in place of every placeholder: what the embedding tables are asked for.  T  ->  T"""
    return np.where(np.isin(ids, list(placeholders(config).values())), config.text.pad_token_id or 0, ids)


def soft_tokens(media: Media, w, config, dtype, tap=Tap()):
    """What stands for all media of a kind, one after another.  ->  kind: O D

    Each picture and each clip runs alone.  With more than one their points are numbered: vision_tower@0, ...; the
    frames of videos count on after the images.
    """
    pictures = numbered(images(media) + frames(media))
    seen = [see(patches, positions, w, config, dtype, tap, n) for n, (patches, positions) in pictures]
    heard = [hear(clip, w, config, dtype, tap, n) for n, clip in numbered(clips(media))]
    first_frame = len(images(media))
    parts = {"image": seen[:first_frame], "video": seen[first_frame:], "audio": heard}
    return {kind: np.concatenate(some) for kind, some in parts.items() if some}


def part_of(soft, ids, start, stop, config):
    """The soft tokens of ids[start:stop] out of those of the whole prompt.  soft: kind: O D  ->  kind: O D"""
    counts = {kind: (ids[:start] == i).sum() for kind, i in placeholders(config).items()}
    found = {kind: (ids[start:stop] == placeholders(config)[kind]).sum() for kind in soft}
    return {kind: soft[kind][counts[kind] : counts[kind] + n] for kind, n in found.items() if n}


def numbered(things):
    """Pairs of a suffix for names of points, and a thing."""
    return [("" if len(things) == 1 else f"@{i}", thing) for i, thing in enumerate(things)]


def see(patches, positions, w, config, dtype, tap, n):
    """Soft tokens of one image in the decoder's width.  patches: I pixels   positions: I 2  ->  O D"""
    soft = vision_tower(patches, positions, w.at("vision_tower"), config.vision, dtype, tap.at(f"vision_tower{n}"))
    return embedder(soft, w.at("embed_vision"), config.vision, tap.at(f"embed_vision{n}"))


def hear(features, w, config, dtype, tap, n):
    """Soft tokens of one sound in the decoder's width.  features: U M  ->  O D"""
    soft = audio_tower(features, w.at("audio_tower"), config.audio, dtype, tap.at(f"audio_tower{n}"))
    return embedder(soft, w.at("embed_audio"), config.audio, tap.at(f"embed_audio{n}"))


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


def image_blocks(ids, media: Media, config):
    """Which picture each token belongs to; -1: none.  A picture is an unbroken run of its placeholders.  T  ->  T"""
    if media.mm_token_type_ids is None:
        inside = np.isin(ids, [i for i in (config.image_token_id, config.video_token_id) if i is not None])
    else:
        inside = np.isin(media.mm_token_type_ids[: len(ids)], (1, 2))  # of a prefill, the first part
    begins = inside & ~np.concatenate([[False], inside[:-1]])
    return np.where(inside, np.cumsum(begins) - 1, -1)
