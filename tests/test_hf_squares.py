"""Gemma 3n's processor against Transformers': pictures and sounds, prompts and chats with files."""

import json
import warnings
from pathlib import Path

import hf_3n
import numpy as np
import pytest
from hf_processors import assert_same

import numgemma
from numgemma.errors import InputError
from numgemma.incoming import parse_object
from numgemma.prompt.audio import read_sound
from numgemma.prompt.images import open_image
from numgemma.prompt.processor import parse_processor, read_processor, released
from numgemma.prompt.processors.gemma3n import emphasised, emphasised_arrays, picture_square
from numgemma.surgery.synth import synth

pytestmark = pytest.mark.hf
transformers = pytest.importorskip("transformers")
image = pytest.importorskip("PIL.Image")

P = parse_processor(parse_object(released("gemma3n").read_bytes(), "the official file"), "the official file")
HOSTILE = Path(__file__).parent / "hostile"
FILES = sorted(HOSTILE.iterdir())


def usable(read):
    found = []
    for path in FILES:
        try:
            read(path)
        except InputError:
            continue
        found.append(path)
    return found


@pytest.mark.parametrize("path", usable(open_image), ids=lambda path: path.name)
def test_pictures_equal_those_of_the_pillow_processor_to_the_last_bit(path):
    processor = hf_3n.image_processor()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on palettes and nonsense
        with image.open(path) as file:
            theirs = processor(transformers.image_utils.load_image(file), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(picture_square(path, P.image), theirs)


@pytest.fixture(scope="module")
def extractor():
    return transformers.Gemma3nAudioFeatureExtractor()


@pytest.mark.parametrize("path", usable(lambda path: read_sound(path, P.sound)), ids=lambda path: path.name)
def test_recordings_equal_those_of_the_feature_extractor(path, extractor):
    theirs = extractor([read_sound(path, P.sound)], return_tensors="np")
    ours, mask = emphasised_arrays([path], P.sound)
    np.testing.assert_array_equal(mask, theirs["input_features_mask"])
    assert np.abs(ours - theirs["input_features"]).max() < 1e-5


@pytest.mark.parametrize("samples", [513, 640, 641, 5000, 16_000, 479_999])
def test_samples_of_every_length_equal_those_of_the_feature_extractor_padded_beside_a_longer_one(samples, extractor):
    rng = np.random.default_rng(samples)
    clips = [rng.uniform(-0.9, 0.9, n).astype(np.float32) for n in (samples, 480_000)]
    theirs = extractor(clips, return_tensors="np")
    for clip, features, real in zip(clips, theirs["input_features"], theirs["input_features_mask"], strict=True):
        ours, mask = emphasised(clip, 480_000, P.sound)
        np.testing.assert_array_equal(mask, real)
        assert np.abs(ours - features).max() < 1e-5
    assert theirs["input_features"].shape[1] == 2997
    assert theirs["input_features"][0, -1].max() == np.float32(np.log(1e-5)) or samples > 479_000


# prompts and chats


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random one, with a tokenizer whose special tokens have the released names."""
    folder = tmp_path_factory.mktemp("squares") / "m"
    synth("gemma-3n-E2B-it", target=folder, scale="tiny")
    template = Path(__file__).parent / "templates" / "gemma3n.jinja"
    (folder / "chat_template.jinja").write_text(template.read_text())
    return numgemma.load(folder)


PROMPTS = {
    "text": ("Hello you", [], []),
    "picture": ("Hello <image_soft_token> you", ["picture_1x5000.png"], []),
    "pictures": ("<image_soft_token><image_soft_token>", ["picture_turned6.jpg", "picture_color_key.png"], []),
    "sounds": ("a<audio_soft_token>\n<audio_soft_token>", [], ["sound_44k_stereo.wav", "sound_35s.flac"]),
    "all": ("<audio_soft_token> and <image_soft_token>", ["picture_gray16.png"], ["sound_8k_8bit.wav"]),
}


def assert_same_arrays(ours, theirs):
    """Mel frames agree to 1e-5, all else to the last bit."""
    assert set(ours) == set(theirs)
    for name, x in ours.items():
        if name == "input_features":
            assert np.abs(x - np.asarray(theirs[name])).max() < 1e-5
        else:
            assert_same(x, theirs[name])


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_and_its_files_give_the_same_arrays(model, name):
    text, pictures, sounds = PROMPTS[name]
    files = {"image": [HOSTILE / file for file in pictures], "audio": [HOSTILE / file for file in sounds]}
    assert_same_arrays(hf_3n.ours(model, text, files), hf_3n.theirs(model.checkpoint.folder, text, files))


def random_chat(rng):
    """Messages of texts, pictures and sounds, and how many there are of each."""
    messages = [{"role": "system", "content": "Be brief."}] if rng.random() < 0.3 else []
    counts = {"image": 0, "audio": 0}
    for turn in range(1 + 2 * int(rng.integers(0, 3))):
        kinds = rng.choice(["text", "image", "audio"], rng.integers(0, 4), p=[0.6, 0.2, 0.2])
        items = [{"type": kind, **({"text": f" {turn} \n"} if kind == "text" else {})} for kind in kinds.tolist()]
        for kind in counts:
            counts[kind] += sum(item["type"] == kind for item in items)
        messages.append({"role": ("user", "assistant")[turn % 2], "content": items})
    return messages, counts


def test_three_hundred_random_chats_with_files_give_the_same_ids(model):
    """The arrays of the files are compared above; here one of each kind stands for all."""
    rng = np.random.default_rng(0)
    processor = hf_3n.processor(model.checkpoint.folder)
    picture, sound = HOSTILE / "picture_1x1.png", HOSTILE / "sound_16k.wav"
    seen = 0
    for _ in range(300):
        messages, counts = random_chat(rng)
        files = {"image": [picture] * counts["image"], "audio": [sound] * counts["audio"]}
        ids, _ = model.chat_ids(messages, files)
        expected = hf_3n.chat(processor, messages, files)
        assert ids == expected
        seen += sum(counts.values())
    assert seen > 300


def test_settings_in_the_two_objects_of_older_files_are_those_that_transformers_takes_from_them(tmp_path):
    """Of pictures and of sound in one object, null where a value is the usual one; the counts beside them."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(hf_3n.OLDER))
    (tmp_path / "processor_config.json").write_text(json.dumps(hf_3n.BESIDE))
    assert read_processor(tmp_path) == P
    extractor = transformers.Gemma3nAudioFeatureExtractor.from_pretrained(tmp_path)
    pictures = type(hf_3n.image_processor()).from_pretrained(tmp_path)
    assert vars(extractor).keys() >= vars(P.sound).keys() - {"audio_seq_length"}
    for name in vars(P.sound).keys() - {"audio_seq_length"}:
        assert getattr(extractor, name) == getattr(P.sound, name), name
    assert (dict(pictures.size), pictures.rescale_factor, pictures.resample) == (P.image.size, 1 / 255, 2)
    assert not pictures.do_normalize
