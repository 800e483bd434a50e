"""The pictures and sounds of Gemma 3n against Transformers' processors, on the files of the test set."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from numgemma.errors import InputError
from numgemma.prompt.audio import read_sound
from numgemma.prompt.images import open_image
from numgemma.prompt.squares import EMPHASIS, emphasised, emphasised_arrays, picture_square

pytestmark = pytest.mark.hf
transformers = pytest.importorskip("transformers")
image = pytest.importorskip("PIL.Image")

FILES = sorted((Path(__file__).parent / "hostile").iterdir())


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
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil(
        size={"height": 768, "width": 768}, resample=2, do_normalize=False, rescale_factor=1 / 255
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on palettes and nonsense
        with image.open(path) as file:
            theirs = processor(transformers.image_utils.load_image(file), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(picture_square(path), theirs)


@pytest.fixture(scope="module")
def extractor():
    return transformers.Gemma3nAudioFeatureExtractor()


@pytest.mark.parametrize("path", usable(lambda path: read_sound(path, EMPHASIS)), ids=lambda path: path.name)
def test_recordings_equal_those_of_the_feature_extractor(path, extractor):
    theirs = extractor([read_sound(path, EMPHASIS)], return_tensors="np")
    ours, mask = emphasised_arrays([path])
    np.testing.assert_array_equal(mask, theirs["input_features_mask"])
    assert np.abs(ours - theirs["input_features"]).max() < 1e-5


@pytest.mark.parametrize("samples", [513, 640, 641, 5000, 16_000, 479_999])
def test_samples_of_every_length_equal_those_of_the_feature_extractor_padded_beside_a_longer_one(samples, extractor):
    rng = np.random.default_rng(samples)
    clips = [rng.uniform(-0.9, 0.9, n).astype(np.float32) for n in (samples, 480_000)]
    theirs = extractor(clips, return_tensors="np")
    for clip, features, real in zip(clips, theirs["input_features"], theirs["input_features_mask"], strict=True):
        ours, mask = emphasised(clip, 480_000, EMPHASIS)
        np.testing.assert_array_equal(mask, real)
        assert np.abs(ours - features).max() < 1e-5
    assert theirs["input_features"].shape[1] == 2997
    assert theirs["input_features"][0, -1].max() == np.float32(np.log(1e-5)) or samples > 479_000
