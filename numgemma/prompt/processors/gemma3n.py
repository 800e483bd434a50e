"""Gemma 3n's processor: a picture is a square of 768 pixels, sound log-mel frames of its own.

Every picture becomes as many soft tokens, and so does every recording.  Its placeholders have blank lines around them.

Addition to the axis keys of audio.py and images.py:

    C  colours, which come first: as Transformers hands pictures over
"""

import math
from dataclasses import dataclass

import numpy as np

from numgemma.config import build, demand
from numgemma.extras import package
from numgemma.prompt.audio import MAX_SAMPLES, MULTIPLE, mel_filters, read_sound
from numgemma.prompt.images import open_image, rescale
from numgemma.prompt.processors.record import MEL, PICTURE, SOUND, Marks, Processor, ProcessorClass, mel_rules, numbers

LINEAR = PICTURE | {"resample": 2, "do_normalize": False}
IDLE = {"image_mean", "image_std", "default_to_square"}
HEARD = SOUND | MEL | {"fft_overdrive": True, "preemphasis_htk_flavor": True}
COUNTS = {"image_processor": "image_seq_length", "feature_extractor": "audio_seq_length"}  # beside the sections
SPECIAL = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 105: "<start_of_turn>", 106: "<end_of_turn>"}
NAMED = {"boi_token_id": "<start_of_image>", "image_token_id": "<image_soft_token>", "eoi_token_id": "<end_of_image>"}
NAMED |= {"boa_token_id": "<start_of_audio>", "audio_token_id": "<audio_soft_token>", "eoa_token_id": "<end_of_audio>"}

WIDEST = 4096  # pixels


@dataclass(frozen=True)
class SquareSettings:
    """The keys of `image_processor` in processor_config.json on which a number depends, under their own names."""

    size: dict[str, int]  # height and width in pixels
    rescale_factor: float
    image_seq_length: int  # soft tokens; it stands beside the section

    @property
    def cell(self):
        """Pixels to a side of one soft token."""
        return self.size["height"] // math.isqrt(self.image_seq_length)

    @property
    def patch_size(self):
        """There are none: the tower takes the picture as it is."""
        return self.cell

    @property
    def pooling_kernel_size(self):
        return 1


@dataclass(frozen=True)
class EmphasisSettings:
    """The keys of `feature_extractor` in processor_config.json on which a number depends, under their own names."""

    sampling_rate: int  # Hz
    feature_size: int  # mel bins
    frame_length: int  # samples
    hop_length: int
    fft_length: int
    min_frequency: float  # Hz
    max_frequency: float
    mel_floor: float
    preemphasis: float
    audio_seq_length: int  # soft tokens; it stands beside the section

    @property
    def shortest(self):
        """Samples that fill the first frame, and one more."""
        return self.frame_length + 1

    @property
    def longest(self):
        return MAX_SAMPLES

    @property
    def frame_seconds(self):
        """From the start of one frame to that of the next."""
        return self.hop_length / self.sampling_rate

    @property
    def frames_per_soft_token(self):
        """Two convolutions of stride 2, and every fourth of what they leave."""
        return 16


def parse(raw, where) -> Processor:
    """A processor_config.json of Gemma3nProcessor; `where` names the file in errors."""
    image = settings(SquareSettings, raw, "image_processor", LINEAR, IDLE, where)
    sound = settings(EmphasisSettings, raw, "feature_extractor", HEARD, {"return_attention_mask"}, where)
    demand([*square_rules(image), *sound_rules(sound)], where)
    return Processor(CLASS, image, sound)


def settings(cls, raw, name, fixed, idle, where):
    """One section, with how many soft tokens each file becomes."""
    found, key = numbers(raw, name, fixed, idle | set(COUNTS.values()), where), COUNTS[name]
    return build(cls, found | ({key: raw[key]} if key in raw else {}), f"{where}, {name}")


def square_rules(s: SquareSettings):
    side = s.size.get("height", 0)
    return [
        (s.size == {"height": side, "width": side} and 0 < side <= WIDEST, "size should be a square in pixels"),
        (s.rescale_factor > 0, "rescale_factor is not positive"),
        (is_square(s.image_seq_length), "image_seq_length should be the square of a whole number"),
    ]


def is_square(n):
    return n > 0 and math.isqrt(n) ** 2 == n


def sound_rules(s: EmphasisSettings):
    return [
        *mel_rules(s, 0.032, overdrive=2),
        (0 <= s.preemphasis <= 1, "preemphasis is not from 0 to 1"),
        (s.audio_seq_length > 0, "audio_seq_length is not positive"),
    ]


def united(older, beside):
    """The settings of released files, in two objects without sections, as Transformers 5 writes them.

    older: of preprocessor_config.json   beside: of processor_config.json.  What is null has its usual value.
    """
    said = {key: value for key, value in older.items() if value is not None}
    image = {key: value for key, value in said.items() if key in PICTURES}
    rest = {key: value for key, value in said.items() if key not in PICTURES | set(COUNTS.values())}
    counts = {key: value for key, value in (said | beside).items() if key in COUNTS.values()}
    return beside | counts | {"image_processor": image, "feature_extractor": rest}


# Keys of pictures, where one object holds those of sound too.
PICTURES = {*LINEAR, *IDLE, "size", "rescale_factor", "image_processor_type", "do_center_crop", "crop_size", "do_pad"}


def picture_square(path, s: SquareSettings):
    """One picture, stretched to the square whatever its aspect.  ->  C Y X float32, 0 to 1

    Equals SiglipImageProcessorPil with Gemma 3n's settings on the picture that Pillow decodes, to the last bit.
    """
    return rescale(seen(path, s), s.rescale_factor).transpose(2, 0, 1)


def seen(path, s: SquareSettings):
    """The square.  ->  height width 3, uint8"""
    bilinear = package("PIL.Image", "media").Resampling.BILINEAR
    return np.asarray(open_image(path).resize((s.size["width"], s.size["height"]), bilinear))


def emphasised_arrays(paths, s: EmphasisSettings):
    """Recordings as spectrograms of one length, and which frames are real.  -> clips U M float32, clips U bool

    Equals Gemma3nAudioFeatureExtractor.  Padding is the spectrogram of silence: the logarithm of the floor.
    """
    clips = [read_sound(path, s) for path in paths]
    length = -(-max(map(len, clips)) // MULTIPLE) * MULTIPLE
    pairs = [emphasised(clip, length, s) for clip in clips]
    return tuple(np.stack(arrays) for arrays in zip(*pairs, strict=True))


def emphasised(samples, length, s: EmphasisSettings):
    """Log-mel of samples padded to `length`, and which frames begin in real sound.  -> U M, U

    Each frame is emphasised for itself, its first sample as HTK does.  The dtypes are Transformers': float32 to the
    magnitudes, float64 from the filters to the logarithm.
    """
    padded = np.pad(samples.astype(np.float32), (0, length - len(samples)))
    starts = np.arange(0, len(padded) - s.frame_length, s.hop_length)  # one sample of each frame is look-ahead, unused
    frames = padded[starts[:, None] + np.arange(s.frame_length)]
    first, rest = frames[:, :1] * (1 - s.preemphasis), frames[:, 1:] - s.preemphasis * frames[:, :-1]
    magnitudes = np.abs(np.fft.rfft(np.concatenate([first, rest], 1) * hann(s.frame_length), s.fft_length))
    mel = np.log(np.maximum(magnitudes @ mel_filters(s), s.mel_floor)).astype(np.float32)
    return mel, starts < len(samples)


def hann(length):
    """Periodic Hann, computed in float32.  ->  Y"""
    place = np.arange(length, dtype=np.float32)
    return (0.5 * (1 - np.cos(2 * np.pi * place / length))).astype(np.float32)


def read_images(paths, p: Processor, m: Marks):
    """-> arrays by name, and what stands for each picture"""
    squares = np.stack([picture_square(path, p.image) for path in paths])
    return {"pixel_values": squares}, [spelled(m, p.image.image_seq_length)] * len(paths)


def read_sounds(paths, p: Processor, m: Marks):
    """-> arrays by name, and what stands for each recording: its length changes nothing of that"""
    features, mask = emphasised_arrays(paths, p.sound)
    text = spelled(m, p.sound.audio_seq_length)
    return {"input_features": features, "input_features_mask": mask}, [text] * len(paths)


def spelled(m: Marks, count):
    """Begin, soft tokens and end, between blank lines."""
    return f"\n\n{m.begin}{m.soft * count}{m.end}\n\n"


def grid(height, width, s: SquareSettings):
    """Rows and columns of soft tokens: of all pictures the same."""
    side = math.isqrt(s.image_seq_length)
    return side, side


def heard(path, p: Processor):
    """Log-mel frames of one recording, and its soft tokens.  ->  U M, number"""
    features, mask = (x[0] for x in emphasised_arrays([path], p.sound))
    return features[mask], p.sound.audio_seq_length


CLASS = ProcessorClass(
    name="Gemma3nProcessor",
    parse=parse,
    read={"image": read_images, "audio": read_sounds},
    types="token_type_ids",
    seen=seen,
    grid=grid,
    heard=heard,
    special=SPECIAL,
    named=NAMED,
    united=united,
)
