"""Images, videos and sound as arrays: what Transformers' processor returns beside the token ids, under its names.

    images, videos   patches of pixels, one row each, and where each patch lies
    sound            log-mel frames

Arrays of several pictures or clips are padded to the longest.  Here the padding is taken off again: the towers run
one picture or clip after another, each alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from numgemma.errors import InputError
from numgemma.prompt.audio import FRAMES_PER_SOFT_TOKEN


@dataclass(frozen=True, eq=False)
class Media:
    """What enters one prompt beside its tokens, in the order of their placeholders.  None: none of that kind."""

    # images patches 768: 0 to 1; a patch is rows, columns, colours.  For Gemma 3n images 3 768 768, no positions
    pixel_values: np.ndarray | None = None
    image_position_ids: np.ndarray | None = None  # images patches 2: column x, row y of each patch; -1, -1 is padding
    pixel_values_videos: np.ndarray | None = None  # frames patches 768: the frames of all videos, one after another
    video_position_ids: np.ndarray | None = None  # frames patches 2
    num_frames_per_video: np.ndarray | None = None  # videos
    input_features: np.ndarray | None = None  # clips frames 128: log-mel
    input_features_mask: np.ndarray | None = None  # clips frames: 1 where a frame is real; padding stands behind
    mm_token_type_ids: np.ndarray | None = None  # tokens: 0 text, 1 image, 2 video, 3 sound; None: told by the ids
    named: Any = None  # name -> array: what only this family's runs take, see prompt.named


NO_MEDIA = Media()

NAMES = tuple(field.name for field in fields(Media) if field.name != "named")

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
    whole = is_whole(found.get("pixel_values"))
    for group in TOGETHER[1:] if whole else TOGETHER:
        there = [name for name in group if name in found]
        absent = [name for name in group if name not in found]
        if there and absent:
            raise InputError(f"{where}: {there[0]} needs {absent[0]} beside it; save all that the processor returns.")
    for values, positions, *_ in TOGETHER[:2]:
        if values in found and not (whole and values == "pixel_values"):
            check_pictures(values, found[values], positions, found[positions], where)
    if "num_frames_per_video" in found:
        check_frames(found, where)
    if "input_features" in found:
        check_sound(found["input_features"], found["input_features_mask"], where)
    types = found.get("mm_token_type_ids", np.zeros(1, int))
    if types.ndim != 1 or types.dtype.kind not in "iu":
        raise InputError(f"{where}: mm_token_type_ids should be one integer per token; give one prompt at a time.")


def is_whole(pixels):
    """Whether pictures are whole, not cut into patches: images 3 rows columns."""
    return pixels is not None and pixels.ndim == 4 and is_real(pixels)


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
        raise InputError(
            f"{where}: input_features should be real numbers [clips, frames, mel bins], is {told(features)}."
        )
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


def has_pictures(media: Media):
    """Whether there are images or clips."""
    return not media.pixel_values is media.pixel_values_videos is None


def whole_images(media: Media):
    """Every image that is not cut into patches: 3 rows columns."""
    pixels = media.pixel_values
    return [] if pixels is None or not is_whole(pixels) else list(pixels)


def images(media: Media):
    """Every image that is cut into patches, without its padding: pairs of pixels I 768 and positions I 2."""
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


def suffixes(count):
    """What tells pictures, or clips, apart in the names of their points: nothing where there is one."""
    return [""] if count == 1 else [f"@{i}" for i in range(count)]


# beside a prompt and a model


def placeholders(config):
    """Kind of media -> the token id that its soft tokens replace."""
    ids = {"image": config.image_token_id, "video": config.video_token_id, "audio": config.audio_token_id}
    return {kind: i for kind, i in ids.items() if i is not None}


def check_towers(media: Media, w, config):
    """Raises InputError unless the model has the towers and each picture is whole."""
    for kind, tower, given in (("images", "vision", images(media) + frames(media)), ("sound", "audio", clips(media))):
        if given and (getattr(config, tower) is None or f"embed_{tower}.embedding_projection.weight" not in w):
            raise InputError(f"{w.source}: has no {tower} tower, so it takes no {kind}; use a checkpoint that has one.")
    c = config.vision
    for n, (patches, positions) in enumerate(images(media) + frames(media)):
        check_grid(patches, positions, Grid(3 * c.patch_size**2, c.pooling_kernel_size, c.position_embedding_size), n)
    for clip in clips(media):
        if clip.shape[1] != config.audio.mel_bins:
            told = f"{clip.shape[1]} mel bins, the audio tower takes {config.audio.mel_bins}"
            raise InputError(f"{w.source}: input_features have {told}; make them by its own processor.")


class Grid(NamedTuple):
    """The patches that a model takes."""

    numbers: int  # of each
    pooled: int  # patches to a side of one soft token
    longest: int  # patches to a side of a picture


def check_grid(patches, positions, grid: Grid, n):
    """All patches of a rectangle, whose sides the pooling divides."""
    k = grid.pooled
    if patches.shape[1] != grid.numbers:
        raise InputError(f"Patches of picture {n} have {patches.shape[1]} values, the model takes {grid.numbers}.")
    across, down = (int(side) for side in positions.max(0) + 1)
    if max(across, down) > grid.longest:
        raise InputError(f"Picture {n} is {across} x {down} patches, no side may exceed {grid.longest}.")
    if across % k or down % k or len(np.unique(positions, axis=0)) != len(positions) or len(positions) != across * down:
        raise InputError(
            f"Picture {n} has {len(positions)} patches for a grid of {across} x {down}; each patch should be there "
            f"once, and both sides be multiples of {k}, as Transformers' processor makes them."
        )


def counts(media: Media, config):
    """Kind -> how many soft tokens each picture, frame or clip becomes."""
    patches_each = config.vision.pooling_kernel_size**2 if config.vision else 1
    return {
        "image": [len(xy) // patches_each for _, xy in images(media)],
        "video": [len(xy) // patches_each for _, xy in frames(media)],
        "audio": [-(-len(clip) // FRAMES_PER_SOFT_TOKEN) for clip in clips(media)],  # rounded up
    }


def check_places(ids, media: Media, counts, placeholders):
    """A place for every soft token.  counts: kind: how many of each picture, frame and clip   placeholders: kind: id"""
    given = media.mm_token_type_ids
    if given is not None and len(given) != len(ids):
        raise InputError(f"mm_token_type_ids has {len(given)} entries for {len(ids)} tokens; they should be as many.")
    for kind, each in counts.items():
        expected = sum(each)
        i = placeholders.get(kind)
        found = int((ids == i).sum()) if i is not None else 0
        if found != expected:
            raise InputError(
                f"The prompt has {found} {kind} placeholders (id {i}) where the {kind} input makes {expected} soft "
                "tokens; expand the placeholders as Transformers' processor does."
            )


def spans(ids, media: Media, counts, placeholders):
    """Where the soft tokens of each picture, frame and clip stand.  ids: T, checked   counts, placeholders: by kind

    -> [{"kind", "file", "first", "count"}]: which file of its kind, of which the frames of a video share one; the
    position of its first token, None where they do not stand side by side; and how many there are.
    """
    found = []
    for kind, each in counts.items():
        places = np.flatnonzero(ids == placeholders.get(kind, -1))
        frames_each = media.num_frames_per_video if kind == "video" else None
        files = np.arange(len(each)) if frames_each is None else np.repeat(np.arange(len(frames_each)), frames_each)
        for file, at in zip(files, np.split(places, np.cumsum(each)[:-1]), strict=True) if each else ():
            together = at[-1] - at[0] + 1 == len(at)
            span = {"kind": kind, "file": int(file), "first": int(at[0]) if together else None, "count": len(at)}
            found.append(span)
    return found


def part_of(soft, ids, start, stop, placeholders):
    """The soft tokens of ids[start:stop] out of those of the whole prompt.  soft: kind: O D  ->  kind: O D"""
    before = {kind: int((ids[:start] == i).sum()) for kind, i in placeholders.items()}
    found = {kind: int((ids[start:stop] == placeholders[kind]).sum()) for kind in soft}
    return {kind: soft[kind][before[kind] : before[kind] + n] for kind, n in found.items() if n}


def picture_blocks(ids, media: Media, placeholders):
    """Which picture each token belongs to; -1: none.  A picture is an unbroken run of its placeholders.  T  ->  T"""
    if media.mm_token_type_ids is None:
        inside = np.isin(ids, [i for kind, i in placeholders.items() if kind in ("image", "video")])
    else:
        inside = np.isin(media.mm_token_type_ids[: len(ids)], (1, 2))  # of a prefill, the first part
    begins = inside & ~np.concatenate([[False], inside[:-1]])
    return np.where(inside, np.cumsum(begins) - 1, -1)
