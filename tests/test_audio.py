"""Recordings to log-mel frames: stored results of Transformers, a slow twin, and what is refused."""

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hostile_expected import EXPECTED, STRIDE
from hypothesis import given
from hypothesis import settings as few
from hypothesis import strategies as st

from numgemma.errors import InputError
from numgemma.prompt import audio
from numgemma.prompt.audio import SoundSettings

HOSTILE = Path(__file__).parent / "hostile"
S = SoundSettings(16000, 128, 320, 160, 512, 0.0, 8000.0, 0.001)
LOSSY = (".ogg", ".mp3")  # decoders differ a little between their versions


@pytest.mark.parametrize("path", sorted(HOSTILE.glob("sound_*")), ids=lambda path: path.name)
def test_a_recording_becomes_what_transformers_makes_of_it(path):
    features, mask = audio.sound_arrays([path], S)
    assert (features.dtype, mask.dtype) == (np.float32, bool)
    np.testing.assert_array_equal(mask, EXPECTED[f"{path.name}.mask"])
    tolerance = {"atol": 2e-2} if path.suffix in LOSSY else {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(features.ravel()[::STRIDE], EXPECTED[f"{path.name}.mel"], **tolerance)


# -- the definition, as loops -----------------------------------------------------------------------------------------


def slow_spectrogram(x):
    """All in float64: each frame and each filter by itself, from the formulas."""
    before = np.concatenate([np.zeros(160), x.astype(np.float64)])
    length = -(-len(x) // 128) * 128 + 160
    padded = np.concatenate([before, np.zeros(length - len(before))])
    n = np.arange(320)
    hann = np.sin(np.pi * n / 320) ** 2  # a whole period
    k = np.arange(257)
    wave = np.exp(-2j * np.pi * np.outer(k, n) / 512)
    mel_of = lambda hertz: 1127.010480 * np.log1p(hertz / 700)  # noqa: E731 - HTK's, by the natural logarithm
    corners = np.linspace(0, mel_of(8000.0), 130)
    hertz = 700 * np.expm1(corners / 1127.010480)
    frames, real = [], []
    for start in range(0, length - 320, 160):
        magnitude = np.abs(wave @ (hann * padded[start : start + 320]))
        mel = [sum(triangle(k * 31.25, *hertz[m : m + 3]) * magnitude) for m in range(128)]
        frames.append(np.log(np.array(mel) + 0.001))
        real.append(start + 320 < len(before))
    real = np.array(real)
    return np.array(frames) * real[:, None], real


def triangle(at, left, top, right):
    return np.clip(np.minimum((at - left) / (top - left), (right - at) / (right - top)), 0, None)


@given(length=st.integers(161, 1500), loudness=st.sampled_from([0.0, 0.003, 0.3]), seed=st.integers(0, 99))
@few(max_examples=15, deadline=None)
def test_a_spectrogram_is_what_the_formulas_say(length, loudness, seed):
    x = np.random.default_rng(seed).normal(0, loudness, length).astype(np.float32)
    mel, mask = audio.spectrogram(x, -(-length // 128) * 128, S)
    slow, real = slow_spectrogram(x)
    np.testing.assert_array_equal(mask, real)
    np.testing.assert_allclose(mel, slow, rtol=1e-5, atol=3e-5)


def test_silence_is_the_logarithm_of_the_floor():
    mel, mask = audio.spectrogram(np.zeros(800, np.float32), 896, S)
    assert mask.tolist() == [True] * 4 + [False]
    np.testing.assert_allclose(mel[:4], np.log(0.001), rtol=1e-6)
    assert not mel[4:].any()


def test_twice_as_loud_is_log_2_more_not_log_4():
    """Magnitudes, not powers; the floor is added, which a loud sound does not notice."""
    x = np.random.default_rng(0).normal(0, 50, 480).astype(np.float32)
    quiet, loud = (audio.spectrogram(gain * x, 512, S)[0][1] for gain in (1, 2))
    rise = (loud - quiet)[quiet > 3]
    np.testing.assert_allclose(rise, np.log(2), atol=1e-3)


def test_the_window_is_one_whole_period():
    w = audio.window(320)
    assert w[0] == 0
    assert w[160] == 1
    np.testing.assert_allclose(w[1:], w[:0:-1], atol=1e-7)
    np.testing.assert_allclose(w[:160] + w[160:], 1, atol=1e-6)  # so frames half a window apart add up to the sound


def test_filters_have_height_one_and_grow_wider():
    filters = audio.mel_filters(S)
    assert filters.shape == (257, 128)
    assert filters.max() <= 1
    assert filters[:, 100:].max(axis=0).min() > 0.8  # where triangles are wider than a bin
    widths = (filters > 0).sum(axis=0)
    assert widths[-1] > 5 * max(widths[10], 1)


@given(st.integers(1, 40), st.lists(st.integers(161, 4000), min_size=1, max_size=3))
@few(max_examples=20, deadline=None)
def test_other_recordings_beside_it_change_nothing_but_the_padding(seed, lengths):
    rng = np.random.default_rng(seed)
    clips = [rng.normal(0, 0.1, n).astype(np.float32) for n in lengths]
    longest = -(-max(lengths) // 128) * 128
    for clip in clips:
        alone, mask = audio.spectrogram(clip, -(-len(clip) // 128) * 128, S)
        beside, wider = audio.spectrogram(clip, longest, S)
        np.testing.assert_array_equal(beside[wider], alone[mask])
        assert not beside[~wider].any()


@given(st.integers(0, 3000), st.integers(0, 200))
def test_soft_tokens_are_the_frames_that_two_strides_leave(real, padding):
    """As the tower subsamples the mask: twice every other frame, as many as its convolutions return."""
    mask = np.arange(real + padding) < real
    left = mask
    for _ in range(2):
        left = left[::2][: (len(left) + 2 - 3) // 2 + 1] if len(left) else left
    assert audio.soft_tokens(mask) == left.sum()


def test_30_seconds_are_750_soft_tokens():
    _, mask = audio.sound_arrays([HOSTILE / "sound_35s.flac"], S)
    assert audio.soft_tokens(mask[0]) == 750


def test_channels_are_averaged(tmp_path):
    x = np.random.default_rng(0).integers(-9999, 9999, (2000, 3)).astype(np.int16)
    soundfile.write(tmp_path / "three.wav", x, 16000)
    np.testing.assert_allclose(audio.read_sound(tmp_path / "three.wav", S), x.mean(1) / 32768, atol=1e-6)


def test_resampling_keeps_a_tone_and_its_length(tmp_path):
    t = np.arange(44100) / 44100
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * t), 44100, subtype="FLOAT")
    found = audio.read_sound(tmp_path / "tone.wav", S)
    assert len(found) == 16000
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(found[500:-500], expected[500:-500], atol=1e-4)


@pytest.mark.parametrize(
    "path", sorted([*HOSTILE.glob("bad_*.wav"), *HOSTILE.glob("bad_*.flac")]), ids=lambda p: p.name
)
def test_a_bad_recording_is_one_sentence_that_names_it(path):
    with pytest.raises(InputError) as error:
        audio.sound_arrays([path], S)
    text = str(error.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert text.endswith(".")


def test_three_hours_cost_no_more_than_the_first_30_seconds(tmp_path):
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 8000, 1) as file:
        for _ in range(3 * 60):
            file.write(np.zeros(60 * 8000, np.int16))
    assert audio.duration(path) == 3 * 3600
    tracemalloc.start()
    samples = audio.read_sound(path, S)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(samples) == audio.MAX_SAMPLES
    assert peak < 20e6  # read whole, it would be 350 MB


def test_a_thousand_channels_are_read_block_by_block(tmp_path):
    soundfile.write(tmp_path / "wide.wav", np.zeros((300_000, 64), np.int16), 16000)
    tracemalloc.start()
    audio.read_sound(tmp_path / "wide.wav", S)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 45e6  # at once, it would be 77 MB


@pytest.mark.parametrize("name", ["soundfile", "soxr"])
def test_without_the_extra_the_install_line_is_told(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"{name} is needed here .*pip install 'numgemma\[media\]'"):
        audio.read_sound(HOSTILE / "sound_44k_stereo.wav", S)
