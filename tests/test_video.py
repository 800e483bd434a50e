"""Clips to the patches of some frames: stored results of Transformers, seeking against decoding all, refusals."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile_expected import EXPECTED, STRIDE
from hypothesis import given
from hypothesis import settings as few
from hypothesis import strategies as st

from numgemma.errors import InputError
from numgemma.prompt import images, video
from numgemma.prompt.images import ImageSettings

HOSTILE = Path(__file__).parent / "hostile"
S = ImageSettings(16, 3, 70, 1 / 255)
CLIPS = sorted(HOSTILE.glob("clip_*"))


@pytest.mark.parametrize("path", sorted(HOSTILE.glob("clip_*.mp4")), ids=lambda path: path.name)
def test_a_clip_becomes_what_transformers_makes_of_it(path):
    """But for a step or two: FFmpeg's conversion to RGB differs between its versions and machines."""
    clip = video.video_arrays(path, S, 32)
    assert (clip.patches.dtype, clip.places.dtype) == (np.float32, np.int64)
    steps = np.rint(clip.patches.ravel()[:: STRIDE * 31] * 255)
    away = np.abs(steps - EXPECTED[f"{path.name}.pixels"])
    assert away.max() <= 3
    assert away.mean() < 0.2
    for places in clip.places:
        np.testing.assert_array_equal(places, EXPECTED[f"{path.name}.places"])
    np.testing.assert_array_equal(clip.seconds, EXPECTED[f"{path.name}.seconds"])


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.name)
@pytest.mark.parametrize("count", [1, 3, 32])
def test_frames_found_by_seeking_are_those_of_decoding_all(path, count):
    with open(path, "rb") as file, video.opened(path, file) as container:
        index = video.read_index(path, container)
        wanted = video.sampled(len(index.times), count)
        found = list(video.decoded(path, container, index, wanted))
        container.seek(0)
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(every) == len(index.times)
    assert index.keys[0] == 0
    np.testing.assert_array_equal(found, [every[i] for i in wanted])


def test_few_frames_of_a_long_clip_need_few_decoded_ones(monkeypatch):
    """Between two wanted frames with a key frame between them, what lies before the key is skipped."""
    path, seen = HOSTILE / "clip_h264.mp4", []
    with open(path, "rb") as file, video.opened(path, file) as container:
        index = video.read_index(path, container)
        decode = container.decode

        class Counted:
            streams, seek = container.streams, container.seek

            def decode(self, stream):
                for frame in decode(stream):
                    seen.append(frame)
                    yield frame

        list(video.decoded(path, Counted(), index, [12, 61]))  # two key frames: one every 12, another at 60
    assert len(index.times) == 75
    assert len(seen) <= 4


@given(st.integers(1, 10**6), st.integers(1, 64))
def test_frames_are_spread_evenly_from_the_first_on(total, count):
    wanted = video.sampled(total, count)
    assert wanted[0] == 0
    assert len(wanted) == min(total, count)
    assert wanted[-1] < total
    steps = np.diff([*wanted, total])
    assert steps.max() - steps.min() <= 1


def test_a_time_is_minutes_and_seconds_rounded_down():
    assert video.timestamps([0, 0.99, 59.999, 60, 61.5, 3599.9, 6000]) == [
        *("00:00", "00:00", "00:59", "01:00", "01:01", "59:59", "100:00")
    ]


def test_a_clip_that_does_not_tell_its_speed_has_24_frames_a_second(monkeypatch):
    path = HOSTILE / "clip_gif.gif"

    class Silent:
        """A container whose stream has no rate."""

        def __init__(self, container):
            self.container, self.streams = container, self
            real = container.streams.video[0]
            self.video = [
                type(
                    "Stream", (), {"width": real.width, "height": real.height, "average_rate": None, "codec_context": 1}
                )
            ]

        def demux(self, stream):
            return self.container.demux(video=0)

    with open(path, "rb") as file, video.opened(path, file) as container:
        assert video.read_index(path, Silent(container)).fps == 24


# -- resizing ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 12))
def test_weights_of_a_new_pixel_are_whole_steps_of_one(old, cells):
    first, weights, bits = video.taps(old, 48 * cells)
    assert 14 <= bits <= 22
    assert np.abs(weights).max() < 1 << 15
    assert np.abs(weights.sum(axis=1) - (1 << bits)).max() <= weights.shape[1]
    assert (first >= 0).all()
    assert (first < old).all()


@given(old=st.integers(2, 90), cells=st.integers(1, 3), seed=st.integers(0, 99))
@few(max_examples=25, deadline=None)
def test_a_line_is_within_a_step_of_what_pillow_makes_of_it(old, cells, seed):
    """One axis alone: of two, Pillow 13 begins with the cheaper, PyTorch always with the width."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (5, old, 3), np.uint8)
    ours = video.shrink(pixels, 48 * cells, axis=1)
    pillow = np.asarray(Image.fromarray(pixels).resize((48 * cells, 5), Image.Resampling.BICUBIC))
    away = np.abs(ours.astype(int) - pillow)
    assert away.max() <= 1
    assert away.mean() < 0.05


def test_a_flat_frame_stays_flat():
    flat = np.full((31, 77, 3), 201, np.uint8)
    assert (video.shrink(video.shrink(flat, 96, axis=1), 48, axis=0) == 201).all()


def test_a_frame_is_a_picture_at_the_budget_of_frames():
    pixels = np.random.default_rng(0).integers(0, 256, (336, 480, 3), np.uint8)  # 7 x 10 soft tokens as it is
    patches, places = video.frame_arrays(pixels, S)
    assert images.soft_tokens(places, S) == 70
    np.testing.assert_allclose(patches, images.to_patches(pixels, 16) / 255, rtol=1e-6)
    np.testing.assert_array_equal(places, images.positions(21, 30))


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted([*HOSTILE.glob("bad_*.mp4"), *HOSTILE.glob("bad_*.ts")]), ids=lambda p: p.name)
def test_a_bad_clip_is_one_sentence_that_names_it(path):
    with pytest.raises(InputError) as error:
        video.video_arrays(path, S, 32)
    text = str(error.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert text.endswith(".")


def test_a_playlist_opens_no_other_file(tmp_path):
    """Although the file that it names lies beside it and is a good one."""
    for name in ("clip_h264.mp4", "bad_playlist.mp4", "bad_concat.mp4"):
        shutil.copy(HOSTILE / name, tmp_path)
    for name in ("bad_playlist.mp4", "bad_concat.mp4"):
        with pytest.raises(InputError, match="is no clip that FFmpeg reads"):
            video.video_arrays(tmp_path / name, S, 32)


def test_without_the_extra_the_install_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"av is needed here .*pip install 'numgemma\[media\]'"):
        video.video_arrays(HOSTILE / "clip_h264.mp4", S, 32)
