"""12B's processor, for a model without towers: pictures as squares of raw pixels, sound as frames of samples.

Equals Transformers' only processor for it, which resizes pictures with PyTorch's arithmetic, as it does frames of
clips, and not with Pillow's: see video.py.

Additions to the axis key in attention.py:

    I  patches, padding included        U  frames, padding included        Q  numbers of one patch, samples of one frame
"""

from dataclasses import dataclass, replace

import numpy as np

from numgemma.config import demand
from numgemma.errors import InputError
from numgemma.prompt.audio import read_sound
from numgemma.prompt.images import BUDGETS, ImageSettings, open_image, pad, positions, target_size, to_patches
from numgemma.prompt.processors import gemma4
from numgemma.prompt.processors.record import SOUND, Marks, Processor, ProcessorClass, settings
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


RAW = gemma4.CUBIC | {"do_normalize": False}
HEARD = SOUND | {"return_attention_mask": True}


def parse(raw, where) -> Processor:
    """A processor_config.json of Gemma4UnifiedProcessor; `where` names the file in errors."""
    image = settings(ImageSettings, raw, "image_processor", RAW, {"image_seq_length"}, where)
    frame, num_frames = gemma4.read_frame(raw, where)
    sound = settings(FrameSettings, raw, "feature_extractor", HEARD, set(), where)
    demand([*gemma4.picture_rules(image, frame, num_frames), *sound_rules(sound)], where)
    return Processor(CLASS, whole_cells(image), sound, whole_cells(frame), num_frames)


def sound_rules(s: FrameSettings):
    """What frames of samples need."""
    return [
        (min(s.sampling_rate, s.feature_size) > 0, "a size of the sound is not positive"),
        (s.feature_size == s.audio_samples_per_token, "feature_size and audio_samples_per_token disagree"),
    ]


def whole_cells(s: ImageSettings) -> ImageSettings:
    """Settings of patches that enter whole: each is one soft token."""
    return replace(s, patch_size=s.cell, pooling_kernel_size=1)


def picture_arrays(path, s: ImageSettings):
    """One picture as patches and their places, padded to the budget.  ->  I Q float32, I 2 int64

    Equals Gemma4UnifiedImageProcessor on the picture that Pillow decodes, to the last bit.
    """
    pixels = seen(path, s)
    values = pixels.astype(np.float32) * np.float32(s.rescale_factor)
    places = positions(*(n // s.patch_size for n in pixels.shape[:2]))
    return pad(to_patches(values, s.patch_size), places, s.max_patches)


def seen(path, s: ImageSettings):
    """A picture at the size that the budget allows.  ->  height width 3, uint8"""
    pixels = np.asarray(open_image(path))
    return shrunk(pixels, *target_size(pixels.shape[0], pixels.shape[1], s))


def frame_arrays(paths, s: FrameSettings):
    """Recordings as frames of samples, padded to one length, and which frames are real.  -> clips U Q, clips U bool

    Equals Gemma4UnifiedAudioFeatureExtractor, which cuts nothing off: an hour is refused here.
    """
    clips = [framed(samples_of(path, s), s.audio_samples_per_token) for path in paths]
    longest = max(map(len, clips))
    frames = np.stack([np.pad(clip, ((0, longest - len(clip)), (0, 0))) for clip in clips])
    return frames, np.arange(longest) < np.array([[len(clip)] for clip in clips])


def samples_of(path, s: FrameSettings):
    """All samples of a recording.  ->  Y float32"""
    samples = read_sound(path, s)
    if len(samples) >= s.longest:
        raise InputError(f"{path}: lasts {LONGEST} s or more, {s.longest // s.feature_size} soft tokens; cut it.")
    return samples


def framed(samples, size):
    """Cut into frames, the last one filled up with zeros: it counts as real.  Y  ->  U Q"""
    return np.pad(samples, (0, -len(samples) % size)).reshape(-1, size)


def read_images(paths, p: Processor, m: Marks):
    """-> arrays by name, and begin, soft tokens and end for each picture"""
    return gemma4.patches([picture_arrays(path, p.image) for path in paths], p, m)


def read_sounds(paths, p: Processor, m: Marks):
    """-> arrays by name, and begin, soft tokens and end for each recording"""
    frames, mask = frame_arrays(paths, p.sound)
    spelled = [m.begin + m.soft * int(one.sum()) + m.end for one in mask]
    return {"input_features": frames, "input_features_mask": mask}, spelled


def heard(path, p: Processor):
    """Frames of one recording, each a soft token.  ->  U Q, number"""
    frames, _ = frame_arrays([path], p.sound)
    return frames[0], len(frames[0])


CLASS = ProcessorClass(
    name="Gemma4UnifiedProcessor",
    parse=parse,
    read={"image": read_images, "video": gemma4.read_videos, "audio": read_sounds},
    budgets=BUDGETS,
    seen=seen,
    grid=gemma4.grid,
    heard=heard,
    special=gemma4.SPECIAL,
    named=gemma4.NAMED,
)
