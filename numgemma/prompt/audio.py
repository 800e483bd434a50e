"""A recording in a file -> the log-mel spectrogram that the audio tower takes: what Transformers' extractor returns.

Additions to the axis key in attention.py:

    Y  samples        U  frames, padding included        M  mel bins        B  bins of the Fourier transform
"""

import math
from dataclasses import dataclass

import numpy as np

from numgemma.errors import InputError
from numgemma.extras import package
from numgemma.incoming import explained, open_regular

MAX_SAMPLES = 480_000  # 30 s: what Transformers cuts a recording to
MULTIPLE = 128  # samples: what it pads to
MEL_BINS = 128  # of all releases
FRAMES_PER_SOFT_TOKEN = 4  # two convolutions of stride 2
MAX_RATE = 768_000  # Hz
LOUDEST = 1e9  # where full scale is 1
BLOCK = 1 << 16  # samples of each channel that are decoded at a time


@dataclass(frozen=True)
class SoundSettings:
    """The keys of `feature_extractor` in processor_config.json on which a number depends, under their own names."""

    sampling_rate: int  # Hz
    feature_size: int  # mel bins
    frame_length: int  # samples
    hop_length: int
    fft_length: int
    min_frequency: float  # Hz
    max_frequency: float
    mel_floor: float

    @property
    def shortest(self):
        """Samples that fill the first frame, of which a half are zeros put before, and the one sample of look-ahead."""
        return self.frame_length + 1 - self.frame_length // 2

    @property
    def frame_seconds(self):
        """From the start of one frame to that of the next."""
        return self.hop_length / self.sampling_rate

    @property
    def frames_per_soft_token(self):
        return FRAMES_PER_SOFT_TOKEN

    @property
    def longest(self):
        """Samples that Transformers cuts a recording to."""
        return MAX_SAMPLES


def sound_arrays(paths, s: SoundSettings):
    """Recordings as spectrograms of one length, and which frames are real.  -> clips U M float32, clips U bool

    Equals Gemma4AudioFeatureExtractor on what transformers.audio_utils.load_audio reads (by soundfile and soxr).
    Raises InputError where a file is no recording, or is shorter than a frame.
    """
    clips = [read_sound(path, s) for path in paths]
    length = -(-max(map(len, clips)) // MULTIPLE) * MULTIPLE
    pairs = [spectrogram(clip, length, s) for clip in clips]
    return tuple(np.stack(arrays) for arrays in zip(*pairs, strict=True))


def soft_tokens(mask) -> int:
    """How many soft tokens a recording becomes.  mask: U"""
    return int(mask[::FRAMES_PER_SOFT_TOKEN].sum())


def read_sound(path, s):
    """A recording up to s.longest: all channels averaged, at the rate that s asks for.  ->  Y float32 in [-1, 1]"""
    with open_regular(path) as file, explained(path), opened(path, file) as sound:
        rate = sound.samplerate
        if not 0 < rate <= MAX_RATE:
            raise InputError(f"{path}: has a sampling rate of {rate} Hz; resample it to {s.sampling_rate} Hz.")
        seconds = s.longest / s.sampling_rate + 1  # one more: the resampler looks ahead
        samples = mono(path, sound, math.ceil(seconds * rate))
    if not (np.abs(samples) < LOUDEST).all():
        raise InputError(f"{path}: holds samples that are not finite, or beyond {LOUDEST:g}; repair the recording.")
    samples = resample(samples, rate, s.sampling_rate)[: s.longest]
    if len(samples) < s.shortest:
        fault = f"lasts {1000 * len(samples) / s.sampling_rate:.3g} ms, less than the first frame"
        raise InputError(f"{path}: {fault} of {1000 * s.shortest / s.sampling_rate:.3g} ms; give a longer recording.")
    return samples


def duration(path) -> float:
    """Seconds, as the file's header tells."""
    with open_regular(path) as file, explained(path), opened(path, file) as sound:
        return sound.frames / max(sound.samplerate, 1)


def opened(path, file):
    """The decoder of an open file."""
    soundfile = package("soundfile", "media")
    try:
        return soundfile.SoundFile(file)
    except (RuntimeError, TypeError, ValueError) as error:
        known = "is no recording that libsndfile reads (WAV, FLAC, OGG, MP3)"
        raise InputError(f"{path}: {known}: {str(error).rpartition(': ')[2]} Convert it to WAV.") from None


def mono(path, sound, most):
    """At most so many samples, the mean of all channels.  ->  Y float32"""
    parts, found = [np.zeros(0, np.float32)], 0
    try:
        while found < most and len(block := sound.read(min(BLOCK, most - found), "float32", always_2d=True)):
            parts.append(block.T.mean(axis=0) if block.shape[1] > 1 else block[:, 0])
            found += len(block)
    except RuntimeError as error:
        raise InputError(f"{path}: is damaged ({error}); save it again.") from None
    return np.concatenate(parts)


def resample(samples, rate, wanted):
    """Y -> Y, as long as before in seconds, rounded up to a whole sample."""
    if rate == wanted or not len(samples):
        return samples
    length = math.ceil(len(samples) * wanted / rate)
    found = package("soxr", "media").resample(samples, rate, wanted, quality="soxr_hq")
    return np.pad(found, (0, max(0, length - len(found))))[:length].astype(np.float32)


def spectrogram(samples, length, s: SoundSettings):
    """Log-mel of samples padded to `length`, and which frames hold real sound to their last sample.  -> U M, U

    The dtypes are Transformers': float32 to the magnitudes, float64 from the filters to the logarithm.
    """
    before = s.frame_length // 2  # so that the first frame is centred on the first sample
    padded = np.pad(samples, (before, length - len(samples)))
    starts = np.arange(0, len(padded) - s.frame_length, s.hop_length)  # one sample of each frame is look-ahead, unused
    frames = padded[starts[:, None] + np.arange(s.frame_length)] * window(s.frame_length)
    magnitudes = np.abs(np.fft.rfft(frames, s.fft_length))
    mel = np.log(magnitudes @ mel_filters(s) + s.mel_floor).astype(np.float32)
    mask = starts + s.frame_length < before + len(samples)
    return mel * mask[:, None], mask


def window(length):
    """Periodic Hann: one period of length, not length - 1.  ->  Y float32"""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def mel_filters(s):
    """Triangles of height 1, equally wide on HTK's mel scale.  ->  B M   (equals mel_filter_bank with norm None)"""
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (s.min_frequency, s.max_frequency))
    corners = 700 * (10 ** (np.linspace(low, high, s.feature_size + 2) / 2595) - 1)
    bins = np.linspace(0, s.sampling_rate // 2, s.fft_length // 2 + 1)
    away = corners - bins[:, None]  # B, M + 2
    rising = -away[:, :-2] / np.diff(corners)[:-1]
    falling = away[:, 2:] / np.diff(corners)[1:]
    return np.maximum(0, np.minimum(rising, falling))
