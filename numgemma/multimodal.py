"""Images, videos and sound in the prompt: their soft tokens take the place of their placeholders.

The decoder is gemma4.py's.  What changes before it: the stream at a placeholder is a soft token, unscaled; the
per-layer embedding there is that of the padding token; and in 26B-A4B and 31B the tokens of one image see each other
on sliding layers.  Later tokens, generated or run through the cache, are text, and gemma4.py does those alone.
"""

import numpy as np

from numgemma import gemma4, ops
from numgemma.attention import image_mask
from numgemma.conformer import audio_tower
from numgemma.errors import InputError
from numgemma.media import Media, clips, frames, images, is_empty
from numgemma.per_layer import per_layer_inputs
from numgemma.trace import Tap
from numgemma.vision import vision_tower

MEL_BINS = 128


def forward(ids, media: Media, w, config, dtype, kvs, start=0, tap=Tap()):
    """Logits of every token.  ids: T  ->  T V   (equals Gemma4ForConditionalGeneration)"""
    return gemma4.head(hidden(ids, media, w, config, dtype, kvs, start, tap), w, config.text, tap)


def hidden(ids, media: Media, w, config, dtype, kvs, start=0, tap=Tap()):
    """The stream after the last norm, before the head.  ids: T  ->  T D   (equals Gemma4Model)

    Media enter with the prompt, at start 0; what comes after it is text.
    """
    text = without_placeholders(ids, config)
    if is_empty(media):
        return gemma4.hidden(text, w, config.text, dtype, kvs, start, tap)
    x = gemma4.embed(text, w, config.text, dtype, tap)
    soft = soft_tokens(media, w, config, dtype, tap)
    x = tap("inputs_embeds", merge(x, ids, soft, config), "T D")
    ple = per_layer_inputs(text, x, w, config.text, tap) if config.text.hidden_size_per_layer_input else None
    masks = gemma4.causal_masks(len(ids), config.text)
    if config.text.use_bidirectional_attention == "vision":
        blocks = image_blocks(ids, media, config)
        masks |= {"sliding_attention": image_mask(blocks, config.text.sliding_window)}  # full layers stay causal
    return gemma4.decoder(x, ple, masks, w, config.text, kvs, start, tap)


def placeholders(config):
    """Kind of media -> the token id that its soft tokens replace."""
    ids = {"image": config.image_token_id, "video": config.video_token_id, "audio": config.audio_token_id}
    return {kind: i for kind, i in ids.items() if i is not None}


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
        inside = np.isin(media.mm_token_type_ids, (1, 2))
    begins = inside & ~np.concatenate([[False], inside[:-1]])
    return np.where(inside, np.cumsum(begins) - 1, -1)


def check(ids, media: Media, w, config):
    """Raises InputError unless the model has the towers, each picture is whole, and every soft token has its place."""
    for kind, tower, given in (("images", "vision", images(media) + frames(media)), ("sound", "audio", clips(media))):
        if given and (getattr(config, tower) is None or f"embed_{tower}.embedding_projection.weight" not in w):
            raise InputError(f"{w.source}: has no {tower} tower, so it takes no {kind}; use a checkpoint that has one.")
    for n, (patches, positions) in enumerate(images(media) + frames(media)):
        check_picture(patches, positions, config.vision, n)
    for clip in clips(media):
        if clip.shape[1] != MEL_BINS:
            raise InputError(f"input_features have {clip.shape[1]} mel bins, the audio tower takes {MEL_BINS}.")
    given = media.mm_token_type_ids
    if given is not None and len(given) != len(ids):
        raise InputError(f"mm_token_type_ids has {len(given)} entries for {len(ids)} tokens; they should be as many.")
    check_counts(ids, media, config)


def check_prefill(ids, config, prefill):
    """Media enter whole, with the first part of the prompt."""
    at = np.flatnonzero(np.isin(ids, list(placeholders(config).values())))
    if prefill is not None and at.size and prefill <= at[-1]:
        raise InputError(f"A prefill of {prefill} ends before the last placeholder; give {at[-1] + 1} or more.")


def check_picture(patches, positions, c, n):
    """All patches of a rectangle, whose sides the pooling divides."""
    pixels, k = 3 * c.patch_size**2, c.pooling_kernel_size
    if patches.shape[1] != pixels:
        raise InputError(f"Patches of picture {n} have {patches.shape[1]} values, the vision tower takes {pixels}.")
    across, down = (int(side) for side in positions.max(0) + 1)
    if max(across, down) > c.position_embedding_size:
        raise InputError(f"Picture {n} is {across} x {down} patches, no side may exceed {c.position_embedding_size}.")
    if across % k or down % k or len(np.unique(positions, axis=0)) != len(positions) or len(positions) != across * down:
        raise InputError(
            f"Picture {n} has {len(positions)} patches for a grid of {across} x {down}; each patch should be there "
            f"once, and both sides be multiples of {k}, as Transformers' processor makes them."
        )


def check_counts(ids, media: Media, config):
    """As many placeholders of each kind as there are soft tokens."""
    patches_each = config.vision.pooling_kernel_size**2 if config.vision else 1
    made = {
        "image": sum(len(xy) // patches_each for _, xy in images(media)),
        "video": sum(len(xy) // patches_each for _, xy in frames(media)),
        "audio": sum(-(-len(clip) // 4) for clip in clips(media)),  # two convolutions halve, rounding up
    }
    for kind, expected in made.items():
        i = placeholders(config).get(kind)
        found = int((ids == i).sum()) if i is not None else 0
        if found != expected:
            raise InputError(
                f"The prompt has {found} {kind} placeholders (id {i}) where the {kind} input makes {expected} soft "
                "tokens; expand the placeholders as Transformers' processor does."
            )
