"""Pictures and sound in the prompt of a Gemma 3n: their soft tokens take the place of their placeholders.

Ids beyond the text have tables of their own ("hard" tokens: the ends of pictures and sound among them), which enter
the stream through the same projection as the towers' soft tokens.
"""

import math

import numpy as np

from numgemma import ops
from numgemma.errors import InputError
from numgemma.families.gemma4.multimodal import with_suffixes
from numgemma.layers.mobilenet import mobilenet
from numgemma.layers.usm import audio_tower
from numgemma.prompt.media import Media
from numgemma.trace import Tap


def placed(x, at, rows):
    """The stream with other rows where `at` is true.  x: T D   at: T   rows: O D  ->  T D"""
    merged = x.copy()
    merged[at] = rows
    return merged


HARD = ("embedding", "hard_embedding_norm", "embedding_projection", "embedding_post_projection_norm")  # their points


def soft_tokens(media: Media, w, run, tap=Tap()):
    """What stands for all media of a kind, one after another.  ->  kind: O D

    Each picture and each clip runs alone.  With more than one their points are numbered: vision_tower@0, ...
    """
    config, dtype = run.config, run.dtype
    seen = [see(pixels, w, config, dtype, tap, n) for n, pixels in with_suffixes(pictures(media))]
    heard = [hear(clip, w, config, dtype, tap, n) for n, clip in with_suffixes(clips(media))]
    if heard:
        behind = silence(w.at("embed_audio"), config, dtype, tap.at("embed_audio"))
        heard = [filled(rows, behind, config.audio_soft_tokens_per_image) for rows in heard]
    return {kind: np.concatenate(some) for kind, some in (("image", seen), ("audio", heard)) if some}


def pictures(media: Media):
    """Every picture: C Y X."""
    return [] if media.pixel_values is None else list(media.pixel_values)


def clips(media: Media):
    """Every recording with its padding, and how many of its frames are real: pairs U M, int."""
    if media.input_features is None or media.input_features_mask is None:
        return []
    return list(zip(media.input_features, media.input_features_mask.astype(bool).sum(1).tolist(), strict=True))


# what a prompt must hold


def counts(media: Media, config):
    """Kind -> how many soft tokens each picture or clip becomes: always as many."""
    return {
        "image": [config.vision_soft_tokens_per_image for _ in pictures(media)],
        "audio": [config.audio_soft_tokens_per_image for _ in clips(media)],
    }


def check_media(media: Media, w, config):
    """Raises InputError unless the model has the towers, and each picture and sound is of a size that they take."""
    if media.pixel_values_videos is not None:
        raise InputError("Gemma 3n takes no videos; give some of their frames as images.")
    for kind, tower, given in (("images", "vision", pictures(media)), ("sound", "audio", clips(media))):
        if given and (getattr(config, tower) is None or f"embed_{tower}.embedding_projection.weight" not in w):
            raise InputError(f"{w.source}: has no {tower} tower, so it takes no {kind}; use a checkpoint that has one.")
    for n, pixels in enumerate(pictures(media)):
        check_picture(pixels, config, n)
    for features, frames in clips(media):
        most = 4 * config.audio.conf_reduction_factor * config.audio_soft_tokens_per_image
        if features.shape[1] != config.audio.input_feat_size or not 0 < frames <= most:
            raise InputError(
                f"A sound has {frames} frames of {features.shape[1]} mel bins; the audio tower takes 1 to {most} "
                f"of {config.audio.input_feat_size}."
            )


def check_picture(pixels, config, n):
    """Three channels of a square that the net turns into the soft tokens it has places for."""
    net, side = config.vision.net, math.isqrt(config.vision_soft_tokens_per_image)
    unit = net.shrinks * net.side
    square = pixels.ndim == 3 and pixels.shape[1] == pixels.shape[2] and pixels.shape[0] == 3
    if not square or pixels.shape[1] % unit or net.side != side:
        raise InputError(
            f"Picture {n} is {list(pixels.shape)}; the vision tower takes [3, side, side], the side a multiple of "
            f"{unit}, as Transformers' processor makes it."
        )


# one picture, one sound


def see(pixels, w, config, dtype, tap, n):
    """Soft tokens of one picture in the decoder's width.  pixels: C Y X  ->  O D"""
    inner = tap.at(f"vision_tower{n}")
    c, scope = config.vision, "vision_tower.timm_model"
    soft = inner("out", mobilenet(pixels, w.at(scope), c.net, dtype, inner.at("timm_model")), "Y X C")
    soft = ops.scale(soft.reshape(-1, c.hidden_size), math.sqrt(c.hidden_size))
    return soft_embedder(soft, w.at("embed_vision"), c, tap.at(f"embed_vision{n}"))


def hear(clip, w, config, dtype, tap, n):
    """Soft tokens of one sound in the decoder's width.  clip: features U M, and how many are real  ->  O D"""
    (features, frames), c = clip, config.audio
    soft = audio_tower(features, frames, w.at("audio_tower"), c, dtype, tap.at(f"audio_tower{n}"))
    return soft_embedder(soft, w.at("embed_audio"), c, tap.at(f"embed_audio{n}"))


def filled(rows, behind, count):
    """A sound always has as many rows: behind its own stands the last hard token of the table.  O D  ->  count D"""
    return np.concatenate([rows, behind.repeat(count - len(rows), 0)])


def with_hard_tokens(x, ids, w, run, tap=Tap()):
    """The stream with the ids that a tower's table embeds.  x: T D   ids: T  ->  T D

    Other ids are looked up there too, as the table's last, and the outcome is not used; nor made, if nobody looks.
    """
    for scope, c, end in tables(run.config):
        mine = (ids >= c.vocab_offset) & (ids < end)
        inner = tap.at(scope)
        if f"{scope}.embedding.weight" in w and (mine.any() or any(map(inner.watches, HARD))):
            rows = np.where(mine, ids - c.vocab_offset, c.vocab_size - 1)
            x = placed(x, mine, hard_embedder(rows, w.at(scope), c, run.dtype, inner)[mine])
    return x


def tables(config):
    """Of each tower's table its scope, config, and the id at which it ends."""
    first_of_audio = config.audio.vocab_offset if config.audio else config.text.vocab_size
    towers = ("embed_vision", config.vision, first_of_audio), ("embed_audio", config.audio, config.text.vocab_size)
    return [tower for tower in towers if tower[1] is not None]


def hard_embedder(rows, w, c, dtype, tap):
    """From rows of a tower's table to the decoder's width.  rows: T  ->  T D   (equals Gemma3nMultimodalEmbedder)"""
    h = tap("embedding", ops.embed(rows, w["embedding.weight"], dtype), "T W")
    h = tap("hard_embedding_norm", ops.rms_norm(h, w["hard_embedding_norm.weight"], c.rms_norm_eps), "T W")
    return project(h, w, c, tap, "", "T D")


def silence(w, config, dtype, tap):
    """What stands behind a sound: the table's entry for the last id of the vocabulary.  ->  1 D"""
    c, rows = config.audio, [config.text.vocab_size - 1 - config.audio.vocab_offset]
    h = tap("embedding#1", ops.embed(rows, w["embedding.weight"], dtype), "O W")
    h = tap("hard_embedding_norm#1", ops.rms_norm(h, w["hard_embedding_norm.weight"], c.rms_norm_eps), "O W")
    return project(h, w, c, tap, "#2", "O D")


def soft_embedder(soft, w, c, tap):
    """From a tower's width to the decoder's.  soft: O W  ->  O D   (equals Gemma3nMultimodalEmbedder)"""
    h = tap("soft_embedding_norm", ops.rms_norm(soft, w["soft_embedding_norm.weight"], c.rms_norm_eps), "O W")
    return project(h, w, c, tap, "#1", "O D")


def project(h, w, c, tap, again, axes):
    """T W or O W  ->  T D or O D"""
    h = tap(f"embedding_projection{again}", ops.linear(h, w["embedding_projection.weight"]), axes)
    return tap(f"embedding_post_projection_norm{again}", ops.rms_norm(h, None, c.rms_norm_eps), axes)
