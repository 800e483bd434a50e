"""What 12B takes beside text, checked: one patch and one frame is one soft token each."""

from numgemma.errors import InputError
from numgemma.prompt.media import Grid, Media, check_grid, clips, frames, images


def counts(media: Media, config):
    """Kind -> how many soft tokens each picture, frame or clip becomes."""
    return {
        "image": [len(xy) for _, xy in images(media)],
        "video": [len(xy) for _, xy in frames(media)],
        "audio": [len(clip) for clip in clips(media)],
    }


def check_media(media: Media, w, config):
    """Raises InputError unless the model takes pictures or sound, and each picture is whole."""
    for kind, side, given in (("images", "vision", images(media) + frames(media)), ("sound", "audio", clips(media))):
        if given and (getattr(config, side) is None or f"embed_{side}.embedding_projection.weight" not in w):
            raise InputError(
                f"{w.source}: has no {side} embedder, so it takes no {kind}; use a checkpoint that has one."
            )
    c = config.vision
    for n, (patches, positions) in enumerate(images(media) + frames(media)):
        check_grid(patches, positions, Grid(c.numbers, 1, c.mm_posemb_size), n)
    for clip in clips(media):
        if clip.shape[1] != config.audio.audio_embed_dim:
            took = f"the model takes {config.audio.audio_embed_dim}"
            raise InputError(f"input_features have {clip.shape[1]} numbers to a frame, {took}; use 12B's processor.")
