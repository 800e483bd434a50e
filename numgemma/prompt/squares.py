"""A picture and a recording in files -> what Gemma 3n's towers take: a square of 768 pixels, log-mel frames of its own.

Addition to the axis keys of audio.py and images.py:

    C  colours, which come first: as Transformers hands pictures over
"""

from dataclasses import dataclass

import numpy as np

from numgemma.extras import package
from numgemma.prompt.audio import MAX_SAMPLES, MULTIPLE, mel_filters, read_sound
from numgemma.prompt.images import open_image, rescale


@dataclass(frozen=True)
class SquareSettings:
    """The keys of `image_processor` in processor_config.json on which a number depends, under their own names."""

    size: dict  # height and width in pixels
    rescale_factor: float


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

    @property
    def shortest(self):
        """Samples that fill the first frame, and one more."""
        return self.frame_length + 1

    @property
    def longest(self):
        return MAX_SAMPLES


# What every release has.
SQUARE = SquareSettings({"height": 768, "width": 768}, 1 / 255)
EMPHASIS = EmphasisSettings(16_000, 128, 512, 160, 1024, 125.0, 7600.0, 1e-5, 0.97)


def picture_square(path, s: SquareSettings = SQUARE):
    """One picture, stretched to the square whatever its aspect.  ->  C Y X float32, 0 to 1

    Equals SiglipImageProcessorPil with Gemma 3n's settings on the picture that Pillow decodes, to the last bit.
    """
    bilinear = package("PIL.Image", "media").Resampling.BILINEAR
    picture = open_image(path).resize((s.size["width"], s.size["height"]), bilinear)
    return rescale(np.asarray(picture), s.rescale_factor).transpose(2, 0, 1)


def emphasised_arrays(paths, s: EmphasisSettings = EMPHASIS):
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
