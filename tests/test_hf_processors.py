"""Files to arrays, against Transformers' own processors: the hostile files, and random sizes and lengths."""

import json
from dataclasses import replace
from pathlib import Path

import hf_processors as hf
import numpy as np
import pytest
import soundfile
import tiny
import tiny_tokenizer
from hf_processors import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from numgemma.families import read_config
from numgemma.prompt import audio, images, video
from numgemma.prompt.processor import parse_processor, prepare, read_marks, read_processor, with_budget
from numgemma.prompt.tokenizer import open_tokenizer

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]  # Transformers' and Pillow's own, not ours
pytest.importorskip("transformers")

HOSTILE = Path(__file__).parent / "hostile"
P = read_processor(HOSTILE)  # which has no processor_config.json
PICTURES, SOUNDS, CLIPS = (sorted(HOSTILE.glob(f"{kind}_*")) for kind in ("picture", "sound", "clip"))


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
@pytest.mark.parametrize("budget", [70, 280])
def test_every_picture_is_the_same_to_the_last_bit(path, budget):
    pixels, places = images.image_arrays(path, with_budget(P, budget).image)
    theirs = hf.images(path, max_soft_tokens=budget)
    assert_same(pixels, theirs["pixel_values"][0])
    assert_same(places, theirs["image_position_ids"][0])
    assert images.soft_tokens(places, P.image) == theirs["num_soft_tokens_per_image"][0]


@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    budget=st.sampled_from(images.BUDGETS),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_pictures_of_any_size_are_the_same_to_the_last_bit(tmp_path_factory, height, width, budget, seed):
    path = tmp_path_factory.getbasetemp() / "picture.png"
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path, compress_level=1)
    pixels, places = images.image_arrays(path, with_budget(P, budget).image)
    theirs = hf.images(path, max_soft_tokens=budget)
    assert_same(pixels, theirs["pixel_values"][0])
    assert_same(places, theirs["image_position_ids"][0])


@given(st.integers(1, 10**5), st.integers(1, 10**5), st.sampled_from(images.BUDGETS))
@settings(max_examples=500, deadline=None)
def test_the_size_of_any_picture_is_the_same(height, width, budget):
    from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

    ours = images.target_size(height, width, with_budget(P, budget).image)
    assert ours == get_aspect_ratio_preserving_size(height, width, 16, budget * 9, 3)


# -- sound ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOUNDS, ids=lambda path: path.name)
def test_every_recording_is_the_same(path):
    features, mask = audio.sound_arrays([path], P.sound)
    theirs = hf.sounds([path])
    assert_same(mask, theirs["input_features_mask"])
    assert features.dtype == theirs["input_features"].dtype
    np.testing.assert_allclose(features, theirs["input_features"], rtol=1e-5)


@given(
    seconds=st.floats(0.02, 3),
    rate=st.sampled_from([7350, 8000, 11025, 16000, 22050, 44100, 48000, 96000]),
    channels=st.integers(1, 9),
    loudness=st.sampled_from([1e-4, 0.01, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_recordings_of_any_rate_and_length_are_the_same(tmp_path_factory, seconds, rate, channels, loudness, seed):
    path = tmp_path_factory.getbasetemp() / "sound.wav"
    noise = np.random.default_rng(seed).uniform(-loudness, loudness, (int(seconds * rate), channels))
    soundfile.write(path, noise, rate, subtype="PCM_16")
    features, mask = audio.sound_arrays([path], P.sound)
    theirs = hf.sounds([path])
    assert_same(mask, theirs["input_features_mask"])
    np.testing.assert_allclose(features, theirs["input_features"], rtol=1e-5)


def test_several_recordings_are_padded_alike():
    paths = [path for path in SOUNDS if "35s" not in path.name]
    features, mask = audio.sound_arrays(paths, P.sound)
    theirs = hf.sounds(paths)
    assert_same(mask, theirs["input_features_mask"])
    np.testing.assert_allclose(features, theirs["input_features"], rtol=1e-5)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_of_a_long_recording_the_same_30_seconds_are_heard(tmp_path, rate):
    path = tmp_path / "long.flac"
    noise = np.random.default_rng(1).uniform(-0.3, 0.3, 34 * rate)
    soundfile.write(path, noise, rate)
    features, mask = audio.sound_arrays([path], P.sound)
    theirs = hf.sounds([path])
    assert mask.shape == (1, 2999)
    assert_same(mask, theirs["input_features_mask"])
    np.testing.assert_allclose(features, theirs["input_features"], rtol=1e-5)


# -- clips ------------------------------------------------------------------------------------------------------------

# Transformers reads the number of frames in the header: WebM has none there.
BOTH_READ = [path for path in CLIPS if path.suffix != ".webm" and "5_frames" not in path.name]


@pytest.mark.parametrize("path", BOTH_READ, ids=lambda path: path.name)
def test_every_clip_is_the_same_to_the_last_bit(path):
    clip = video.video_arrays(path, P.frame, P.num_frames)
    theirs, seconds = hf.video(path)
    assert_same(clip.patches, theirs["pixel_values_videos"])
    assert_same(clip.places, theirs["video_position_ids"])
    assert clip.seconds == seconds


@given(
    old=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    new=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_frames_are_resized_as_by_pytorch_to_the_last_bit(old, new, seed):
    import torch

    pixels = np.random.default_rng(seed).integers(0, 256, (*old, 3), np.uint8)
    height, width = new[0] * 48, new[1] * 48
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None], [height, width], mode="bicubic", antialias=True
    )
    ours = video.shrink(video.shrink(pixels, width, axis=1), height, axis=0)
    assert_same(ours, theirs[0].permute(1, 2, 0))


@given(st.integers(1, 10**6), st.integers(1, 64))
def test_the_same_frames_are_chosen(total, count):
    from transformers.video_utils import VideoMetadata, default_sample_indices_fn

    metadata = VideoMetadata(total_num_frames=total, fps=24)
    theirs = default_sample_indices_fn(metadata, num_frames=min(count, total))
    assert video.sampled(total, count) == theirs.tolist()


# -- prompts ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_tokenizer.write(tmp_path_factory.mktemp("prompts"), bos=True)


@pytest.fixture(scope="module")
def theirs(folder):
    return hf.processor(folder)


def file(name):
    return HOSTILE / name


PROMPTS = {
    "text": ("Hello you", [], [], []),
    "image": ("Hello <|image|> you", [file("picture_rgb.png")], [], []),
    "three_images": (
        "<|image|><|image|>\n\nHello<|image|>",
        [file("picture_1x5000.png"), file("picture_turned6.jpg"), file("picture_fits_70.png")],
        [],
        [],
    ),
    "sound": ("Hello <|audio|>", [], [file("sound_44k.mp3")], []),
    "two_sounds": (
        "<|audio|> are<|audio|>",
        [],
        [file("sound_44k_stereo.wav"), file("sound_161_samples.wav")],
        [],
    ),
    "video": ("Hello<|video|>", [], [], [file("clip_minutes.mp4")]),
    "two_videos": ("<|video|><|video|>", [], [], [file("clip_h264.mp4"), file("clip_gif.gif")]),
    "all": (
        "<|video|> you <|audio|> and <|image|>",
        [file("picture_alpha.webp")],
        [file("sound_8k_8bit.wav")],
        [file("clip_mpeg4.avi")],
    ),
}


def test_the_settings_that_transformers_writes_are_read():
    """Its own spelling of all defaults, which is longer than that of the released files."""
    written = hf.image_processor(max_soft_tokens=560), hf.extractor()
    image, sound = (json.loads(part.to_json_string()) for part in written)
    raw = hf.official() | {"image_processor": image, "feature_extractor": sound}
    assert parse_processor(raw, "the test") == replace(P, image=with_budget(P, 560).image)


@pytest.mark.parametrize(("name", "budget"), [*((name, 70) for name in PROMPTS), ("three_images", 140), ("video", 140)])
def test_a_prompt_and_its_files_give_the_same_arrays(folder, theirs, name, budget):
    text, pictures, sounds, clips = PROMPTS[name]
    ids = {f"{name}_token_id": tiny_tokenizer_id(f"<|{name}|>") for name in ("image", "audio", "video")}
    for short, token in (("boi", "<|image>"), ("eoi", "<image|>"), ("boa", "<|audio>"), ("eoa", "<audio|>")):
        ids[f"{short}_token_id"] = tiny_tokenizer_id(token)
    config, tokenizer = read_config(tiny.E4B | ids, "the test"), open_tokenizer(folder)
    files = {"image": pictures, "audio": sounds, "video": clips}
    ours = prepare(text, files, with_budget(P, budget), read_marks(config, tokenizer), tokenizer.encode)

    loaded = [hf.frames(path) for path in clips]
    expected = theirs(
        text=text,
        images=[[str(path) for path in pictures]] if pictures else None,
        audio=[str(path) for path in sounds] or None,
        videos=[pixels for pixels, _ in loaded] or None,
        **({"video_metadata": [m for _, m in loaded], "do_sample_frames": False} if loaded else {}),
        max_soft_tokens=budget,
        return_tensors="pt",
    )
    assert list(ours) == list(expected)
    for key in ours:
        assert_same(ours[key], expected[key])


def tiny_tokenizer_id(token):
    return next(i for i, name in tiny_tokenizer.MEDIA.items() if name == token)


@pytest.mark.parametrize(("mode", "colour"), [("L", 60), ("RGB", (60, 60, 60)), ("P", 1), ("P", b"\0c\xff")])
def test_a_transparent_colour_is_what_transformers_makes_of_it(tmp_path, mode, colour):
    values = (np.arange(48 * 96).reshape(48, 96) // 7 % 4 * 60).astype(np.uint8)
    picture = Image.fromarray(values).convert("RGB")
    picture = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=4) if mode == "P" else picture.convert(mode)
    picture.save(tmp_path / "p.png", transparency=colour)
    theirs = hf.image_processor()(str(tmp_path / "p.png"), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(images.image_arrays(tmp_path / "p.png", P.image)[0], theirs)
