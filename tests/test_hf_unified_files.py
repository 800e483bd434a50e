"""Files to 12B's arrays, against Transformers' own processor of it: the hostile files, and random sizes and lengths."""

from pathlib import Path

import hf_processors
import hf_unified as hf
import numpy as np
import pytest
import soundfile
import tiny
import tiny_tokenizer
from hf_processors import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from numgemma.families.unified.config import read_config
from numgemma.prompt import images, video
from numgemma.prompt.processor import parse_processor, prepare, read_marks, with_budget
from numgemma.prompt.processors import unified
from numgemma.prompt.tokenizer import open_tokenizer

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]  # Transformers' and Pillow's own, not ours
pytest.importorskip("transformers")

HOSTILE = Path(__file__).parent / "hostile"
P = parse_processor(hf.official(), "the official file")
PICTURES, SOUNDS, CLIPS = (sorted(HOSTILE.glob(f"{kind}_*")) for kind in ("picture", "sound", "clip"))


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
@pytest.mark.parametrize("budget", [70, 280])
def test_every_picture_is_the_same_to_the_last_bit(path, budget):
    pixels, places = unified.picture_arrays(path, with_budget(P, budget).image)
    theirs = hf.pictures(path, max_soft_tokens=budget)
    assert_same(pixels, theirs["pixel_values"][0])
    assert_same(places, theirs["image_position_ids"][0])
    assert images.soft_tokens(places, P.image) == theirs["num_soft_tokens_per_image"][0]


@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    budget=st.sampled_from(images.BUDGETS),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_pictures_of_any_size_are_the_same_to_the_last_bit(tmp_path_factory, height, width, budget, seed):
    path = tmp_path_factory.getbasetemp() / "picture.png"
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path, compress_level=1)
    pixels, places = unified.picture_arrays(path, with_budget(P, budget).image)
    theirs = hf.pictures(path, max_soft_tokens=budget)
    assert_same(pixels, theirs["pixel_values"][0])
    assert_same(places, theirs["image_position_ids"][0])


@pytest.mark.parametrize("path", SOUNDS, ids=lambda path: path.name)
def test_every_recording_is_the_same_to_the_last_bit(path):
    """The one of 35 s too: nothing is cut off."""
    frames, mask = unified.frame_arrays([path], P.sound)
    theirs = hf.sounds([path])
    assert_same(mask, theirs["input_features_mask"])
    assert_same(frames, theirs["input_features"])


@given(
    seconds=st.floats(0.001, 3),
    rate=st.sampled_from([7350, 8000, 11025, 16000, 22050, 44100, 48000, 96000]),
    channels=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_recordings_of_any_rate_and_length_are_the_same(tmp_path_factory, seconds, rate, channels, seed):
    path = tmp_path_factory.getbasetemp() / "sound.wav"
    noise = np.random.default_rng(seed).uniform(-1, 1, (int(seconds * rate), channels))
    soundfile.write(path, noise, rate, subtype="PCM_16")
    frames, mask = unified.frame_arrays([path], P.sound)
    theirs = hf.sounds([path])
    assert_same(mask, theirs["input_features_mask"])
    assert_same(frames, theirs["input_features"])


def test_several_recordings_are_padded_alike():
    frames, mask = unified.frame_arrays(SOUNDS, P.sound)
    theirs = hf.sounds(SOUNDS)
    assert_same(mask, theirs["input_features_mask"])
    assert_same(frames, theirs["input_features"])


# Transformers reads the number of frames in the header: WebM has none there.
BOTH_READ = [path for path in CLIPS if path.suffix != ".webm" and "5_frames" not in path.name]


@pytest.mark.parametrize("path", BOTH_READ, ids=lambda path: path.name)
def test_every_clip_is_the_same_to_the_last_bit(path):
    clip = video.video_arrays(path, P.frame, P.num_frames)
    theirs, seconds = hf.video(path)
    assert_same(clip.patches, theirs["pixel_values_videos"])
    assert_same(clip.places, theirs["video_position_ids"])
    assert clip.seconds == seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_tokenizer.write(tmp_path_factory.mktemp("prompts"), bos=True)


def file(name):
    return HOSTILE / name


PROMPTS = {
    "three_images": (
        "<|image|><|image|>\n\nHello<|image|>",
        [file("picture_1x5000.png"), file("picture_turned6.jpg"), file("picture_fits_70.png")],
        [],
        [],
    ),
    "two_sounds": (
        "<|audio|> are<|audio|>",
        [],
        [file("sound_44k_stereo.wav"), file("sound_35s.flac")],
        [],
    ),
    "two_videos": ("<|video|><|video|>", [], [], [file("clip_h264.mp4"), file("clip_gif.gif")]),
    "all": (
        "<|video|> you <|audio|> and <|image|>",
        [file("picture_alpha.webp")],
        [file("sound_8k_8bit.wav")],
        [file("clip_mpeg4.avi")],
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_and_its_files_give_the_same_arrays(folder, name):
    text, pictures, sounds, clips = PROMPTS[name]
    marks = {"image": "<|image|>", "audio": "<|audio|>", "video": "<|video|>"}
    marks |= {"boi": "<|image>", "eoi": "<image|>", "boa": "<|audio>"}
    by_name = {token: i for i, token in tiny_tokenizer.MEDIA.items()}
    ids = {f"{short}_token_id": by_name[token] for short, token in marks.items()}
    raw = tiny.UNIFIED | ids | {"eoa_token_index": by_name["<audio|>"]}
    config, tokenizer = read_config(raw, "the test"), open_tokenizer(folder)
    files = {"image": pictures, "audio": sounds, "video": clips}
    ours = prepare(text, files, with_budget(P, 70), read_marks(config, tokenizer), tokenizer.encode)

    loaded = [hf_processors.frames(path) for path in clips]
    from transformers.image_utils import load_image

    expected = hf.processor(folder)(
        text=text,
        images=[[load_image(str(path)) for path in pictures]] if pictures else None,
        audio=[str(path) for path in sounds] or None,
        videos=[pixels for pixels, _ in loaded] or None,
        **({"video_metadata": [m for _, m in loaded], "do_sample_frames": False} if loaded else {}),
        max_soft_tokens=70,
        return_tensors="pt",
    )
    assert list(ours) == list(expected)
    for key in ours:
        assert_same(ours[key], expected[key])
