"""A picture and a recording in files -> what 12B takes, which has no towers: squares of raw pixels, frames of samples.

Equals Transformers' only processor for it, which resizes pictures with PyTorch's arithmetic, as it does frames of
clips, and not with Pillow's: see video.py.

Additions to the axis key in attention.py:

    I  patches, padding included        U  frames, padding included        Q  numbers of one patch, samples of one frame
"""

from dataclasses import dataclass, replace

import numpy as np

from numgemma.errors import InputError
from numgemma.prompt.audio import read_sound
from numgemma.prompt.images import ImageSettings, open_image, pad, positions, target_size, to_patches
from numgemma.prompt.video import shrunk

LONGEST = 3600  # seconds: 90,000 soft tokens


@dataclass(frozen=True)
class FrameSettings:
    """The keys of `feature_extractor` in processor_config.json on which a number depends, under their own names."""

    sampling_rate: int  # Hz
    feature_size: int  # samples of one frame
    audio_samples_per_token: int  # the same number

    @property
    def shortest(self):
        """Samples: the last frame is filled up with zeros."""
        return 1

    @property
    def frame_seconds(self):
        return self.audio_samples_per_token / self.sampling_rate

    @property
    def frames_per_soft_token(self):
        return 1

    @property
    def longest(self):
        return LONGEST * self.sampling_rate


def whole_cells(s: ImageSettings) -> ImageSettings:
    """Settings of patches that enter whole: each is one soft token."""
    return replace(s, patch_size=s.cell, pooling_kernel_size=1)


def picture_arrays(path, s: ImageSettings):
    """One picture as patches and their places, padded to the budget.  ->  I Q float32, I 2 int64

    Equals Gemma4UnifiedImageProcessor on the picture that Pillow decodes, to the last bit.
    """
    pixels = np.asarray(open_image(path))
    height, width = target_size(pixels.shape[0], pixels.shape[1], s)
    values = shrunk(pixels, height, width).astype(np.float32) * np.float32(s.rescale_factor)
    places = positions(height // s.patch_size, width // s.patch_size)
    return pad(to_patches(values, s.patch_size), places, s.max_patches)


def frame_arrays(paths, s: FrameSettings):
    """Recordings as frames of samples, padded to one length, and which frames are real.  -> clips U Q, clips U bool

    Equals Gemma4UnifiedAudioFeatureExtractor, which cuts nothing off: an hour is refused here.
    """
    clips = [framed(heard(path, s), s.audio_samples_per_token) for path in paths]
    longest = max(map(len, clips))
    frames = np.stack([np.pad(clip, ((0, longest - len(clip)), (0, 0))) for clip in clips])
    return frames, np.arange(longest) < np.array([[len(clip)] for clip in clips])


def heard(path, s: FrameSettings):
    """All samples of a recording.  ->  Y float32"""
    samples = read_sound(path, s)
    if len(samples) >= s.longest:
        raise InputError(f"{path}: lasts {LONGEST} s or more, {s.longest // s.feature_size} soft tokens; cut it.")
    return samples


def framed(samples, size):
    """Cut into frames, the last one filled up with zeros: it counts as real.  Y  ->  U Q"""
    return np.pad(samples, (0, -len(samples) % size)).reshape(-1, size)


def soft_tokens(mask) -> int:
    """How many soft tokens a recording becomes.  mask: U"""
    return int(mask.sum())
