"""Images, videos and sound as arrays: what Transformers' processor returns beside the token ids, under its names.

    images, videos   patches of pixels, one row each, and where each patch lies
    sound            log-mel frames

Arrays of several pictures or clips are padded to the longest.  Here the padding is taken off again: the towers run
one picture or clip after another, each alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from numgemma.errors import InputError


@dataclass(frozen=True, eq=False)
class Media:
    """What enters one prompt beside its tokens, in the order of their placeholders.  None: none of that kind."""

    pixel_values: np.ndarray | None = None  # images patches 768: 0 to 1; a patch is rows, columns, colours
    image_position_ids: np.ndarray | None = None  # images patches 2: column x, row y of each patch; -1, -1 is padding
    pixel_values_videos: np.ndarray | None = None  # frames patches 768: the frames of all videos, one after another
    video_position_ids: np.ndarray | None = None  # frames patches 2
    num_frames_per_video: np.ndarray | None = None  # videos
    input_features: np.ndarray | None = None  # clips frames 128: log-mel
    input_features_mask: np.ndarray | None = None  # clips frames: 1 where a frame is real; padding stands behind
    mm_token_type_ids: np.ndarray | None = None  # tokens: 0 text, 1 image, 2 video, 3 sound; None: told by the ids


NO_MEDIA = Media()

NAMES = tuple(field.name for field in fields(Media))

# Arrays that have a meaning only together.
TOGETHER = (
    ("pixel_values", "image_position_ids"),
    ("pixel_values_videos", "video_position_ids", "num_frames_per_video"),
    ("input_features", "input_features_mask"),
)


def read_media(arrays: Mapping[str, np.ndarray], where: str = "these inputs") -> Media:
    """Media from arrays by name, checked; names that are not a processor's (input_ids, ...) are left alone.

    `where` names the source in errors.  mm_token_type_ids may have the processor's batch axis of 1.
    Raises InputError where arrays do not belong together.
    """
    found = {name: np.asarray(arrays[name]) for name in NAMES if name in arrays}
    types = found.get("mm_token_type_ids")
    if types is not None and types.ndim == 2 and len(types) == 1:
        found["mm_token_type_ids"] = types[0]
    check_media(found, where)
    return Media(**found)


def check_media(found, where):
    """Shapes, dtypes and partners of all arrays."""
    for group in TOGETHER:
        there = [name for name in group if name in found]
        absent = [name for name in group if name not in found]
        if there and absent:
            raise InputError(f"{where}: {there[0]} needs {absent[0]} beside it; save all that the processor returns.")
    for values, positions, *_ in TOGETHER[:2]:
        if values in found:
            check_pictures(values, found[values], positions, found[positions], where)
    if "num_frames_per_video" in found:
        check_frames(found, where)
    if "input_features" in found:
        check_sound(found["input_features"], found["input_features_mask"], where)
    types = found.get("mm_token_type_ids", np.zeros(1, int))
    if types.ndim != 1 or types.dtype.kind not in "iu":
        raise InputError(f"{where}: mm_token_type_ids should be one integer per token; give one prompt at a time.")


def check_pictures(values, pixels, positions, where_each, where):
    if pixels.ndim != 3 or not is_real(pixels):
        raise InputError(f"{where}: {values} should be real numbers [images, patches, pixels], is {told(pixels)}.")
    if where_each.shape != (*pixels.shape[:2], 2) or where_each.dtype.kind not in "iu":
        raise InputError(f"{where}: {positions} should be integers [images, patches, 2], is {told(where_each)}.")
    for i, xy in enumerate(where_each):
        if not (xy >= 0).all(-1).any() or ((xy < 0).any(-1) & (xy != -1).any(-1)).any():
            raise InputError(f"{where}: {positions} of picture {i} should be 0 or more, or -1, -1 for padding.")


def check_frames(found, where):
    frames, total = found["num_frames_per_video"], len(found["pixel_values_videos"])
    if frames.ndim != 1 or frames.dtype.kind not in "iu" or frames.sum() != total:
        raise InputError(f"{where}: num_frames_per_video is {frames.tolist()}, but there are {total} frames.")


def check_sound(features, mask, where):
    if features.ndim != 3 or not is_real(features):
        raise InputError(f"{where}: input_features should be real numbers [clips, frames, 128], is {told(features)}.")
    if mask.shape != features.shape[:2] or mask.dtype.kind not in "biu":
        raise InputError(f"{where}: input_features_mask should be [clips, frames] of 0 and 1, is {told(mask)}.")
    real = mask.astype(bool)
    if not real[:, :1].all() or (np.diff(real.astype(int), axis=1) > 0).any():
        raise InputError(f"{where}: input_features_mask should be ones and then zeros; pad clips behind, not before.")


def is_real(x):
    return x.dtype.kind == "f" or x.dtype.name == "bfloat16"


def told(x):
    return f"{x.dtype} {list(x.shape)}"


def is_empty(media: Media):
    """Whether a prompt is text alone."""
    return media.pixel_values is media.pixel_values_videos is media.input_features is None


def images(media: Media):
    """Every image without its padding: pairs of pixels I 768 and positions I 2."""
    return unpadded(media.pixel_values, media.image_position_ids)


def frames(media: Media):
    """Every frame of every video, as `images`."""
    return unpadded(media.pixel_values_videos, media.video_position_ids)


def unpadded(pixels, positions):
    if pixels is None or positions is None:
        return []
    real = positions[:, :, 0] >= 0
    return [(x[keep], xy[keep]) for x, xy, keep in zip(pixels, positions, real, strict=True)]


def clips(media: Media):
    """Every recording without its padding: log-mel U M."""
    if media.input_features is None or media.input_features_mask is None:
        return []
    masks = media.input_features_mask.astype(bool)
    return [x[mask] for x, mask in zip(media.input_features, masks, strict=True)]
