"""What differs between the processors of Transformers: the settings that each has, and how it reads a kind of file."""

from collections.abc import Callable
from typing import Any, NamedTuple

from numgemma.prompt import audio, encoder_free, images


class ProcessorClass(NamedTuple):
    """One processor_class.

    fixed: settings, by section, that have one value in every release and no other meaning here.
    idle: settings on which no number depends.
    sound: the dataclass of the numbers of feature_extractor; sound_rules: those -> (holds, complaint).
    entering: settings of pictures as the file has them -> as they are used.
    """

    fixed: dict[str, dict[str, Any]]
    idle: dict[str, set[str]]
    sound: type
    sound_rules: Callable[[Any], list]
    entering: Callable[[images.ImageSettings], images.ImageSettings]
    read_picture: Callable  # path, settings -> patches, places
    read_sounds: Callable  # paths, settings -> features, mask
    sound_tokens: Callable  # mask -> how many soft tokens


PICTURE: dict[str, Any] = {"do_convert_rgb": True, "do_rescale": True, "do_resize": True, "resample": 3}
PICTURE |= {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
FRAME = PICTURE | {"do_normalize": True, "do_sample_frames": True}
SOUND: dict[str, Any] = {"padding_side": "right", "padding_value": 0.0, "return_attention_mask": True}
MEL = SOUND | {"dither": 0.0, "fft_overdrive": False, "input_scale_factor": 1.0, "preemphasis": 0.0}
MEL |= {"per_bin_mean": None, "per_bin_stddev": None}

IDLE = {
    "image_processor": {"image_processor_type", "processor_class", "image_seq_length", "do_normalize"},
    "video_processor": {"video_processor_type", "processor_class", "return_metadata"},
    "feature_extractor": {"feature_extractor_type", "processor_class", "preemphasis_htk_flavor"},
}


def as_they_are(s: images.ImageSettings) -> images.ImageSettings:
    return s


def mel_rules(s: audio.SoundSettings):
    """What a log-mel front end needs."""
    return [
        (s.sampling_rate > 0 and s.feature_size > 0 and s.mel_floor > 0, "a size of the sound is not positive"),
        (s.frame_length == round(0.02 * s.sampling_rate), "frame_length should be 20 ms, as Transformers computes it"),
        (s.hop_length == round(0.01 * s.sampling_rate), "hop_length should be 10 ms, as Transformers computes it"),
        (s.fft_length == 1 << (s.frame_length - 1).bit_length(), "fft_length should be the next power of two"),
        (0 <= s.min_frequency < s.max_frequency <= s.sampling_rate / 2, "min_frequency and max_frequency are no band"),
    ]


def frame_rules(s: encoder_free.FrameSettings):
    """What frames of samples need."""
    return [
        (min(s.sampling_rate, s.feature_size) > 0, "a size of the sound is not positive"),
        (s.feature_size == s.audio_samples_per_token, "feature_size and audio_samples_per_token disagree"),
    ]


CLASSES = {
    "Gemma4Processor": ProcessorClass(
        fixed={"image_processor": PICTURE, "video_processor": FRAME, "feature_extractor": MEL},
        idle=IDLE,
        sound=audio.SoundSettings,
        sound_rules=mel_rules,
        entering=as_they_are,
        read_picture=images.image_arrays,
        read_sounds=audio.sound_arrays,
        sound_tokens=audio.soft_tokens,
    ),
    "Gemma4UnifiedProcessor": ProcessorClass(
        fixed={
            "image_processor": PICTURE | {"do_normalize": False},
            "video_processor": FRAME,
            "feature_extractor": SOUND,
        },
        idle=IDLE,
        sound=encoder_free.FrameSettings,
        sound_rules=frame_rules,
        entering=encoder_free.whole_cells,
        read_picture=encoder_free.picture_arrays,
        read_sounds=encoder_free.frame_arrays,
        sound_tokens=encoder_free.soft_tokens,
    ),
}
