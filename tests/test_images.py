"""Pictures to patches: stored results of Transformers, what every picture obeys, and what is refused."""

import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hostile_expected import EXPECTED, STRIDE
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from numgemma.errors import InputError
from numgemma.prompt import images
from numgemma.prompt.images import ImageSettings

HOSTILE = Path(__file__).parent / "hostile"
S = ImageSettings(16, 3, 280, 1 / 255)
SMALL = ImageSettings(16, 3, 70, 1 / 255)
LOSSY = ("cmyk.jpg", "gray.jpg", "progressive.jpg", "nonsense.jpg", "turned6.jpg", "lossy.webp")

settings = st.builds(ImageSettings, st.just(16), st.just(3), st.sampled_from(images.BUDGETS), st.just(1 / 255))
side = st.integers(1, 20_000)


@pytest.mark.parametrize("path", sorted(HOSTILE.glob("picture_*")), ids=lambda path: path.name)
def test_a_picture_becomes_what_transformers_makes_of_it(path):
    """To the last bit, but for decoders of lossy formats, which differ by a step or two between their versions."""
    pixels, places = images.image_arrays(path, SMALL)
    assert (pixels.dtype, places.dtype) == (np.float32, np.int64)
    assert (pixels.shape, places.shape) == ((630, 768), (630, 2))
    steps = pixels.astype(np.float64).ravel()[::STRIDE] * 255
    assert np.abs(steps - np.rint(steps)).max() < 1e-4
    away = np.abs(np.rint(steps) - EXPECTED[f"{path.name}.pixels"])
    assert away.max() <= (3 if path.name.endswith(LOSSY) else 0)
    np.testing.assert_array_equal(places, EXPECTED[f"{path.name}.places"])


@pytest.mark.parametrize(
    ("height", "width", "budget", "rows", "columns"),
    [
        (480, 640, 280, 14, 19),
        (1080, 1920, 280, 12, 22),
        (1920, 1080, 1120, 44, 25),
        (48, 48, 70, 8, 8),
        (1, 5000, 280, 1, 280),
        (5000, 1, 70, 70, 1),
        (3, 400, 70, 1, 70),
        (1, 1, 1120, 33, 33),
    ],
)
def test_soft_tokens_of_well_known_sizes(height, width, budget, rows, columns):
    assert images.target_size(height, width, ImageSettings(16, 3, budget, 1 / 255)) == (48 * rows, 48 * columns)


@given(side, side, settings)
def test_a_picture_fills_its_budget_but_not_more(height, width, s):
    tall, wide = images.target_size(height, width, s)
    rows, columns = tall // s.cell, wide // s.cell
    assert (tall, wide) == (rows * s.cell, columns * s.cell)
    assert 1 <= rows * columns <= s.max_soft_tokens
    assert (rows + 1) * (columns + 1) > s.max_soft_tokens or min(rows, columns) == 1


@given(side, side, settings)
def test_a_picture_keeps_its_aspect_to_within_one_soft_token(height, width, s):
    rows, columns = (n // s.cell for n in images.target_size(height, width, s))
    if min(rows, columns) > 1:
        ideal = (s.max_soft_tokens * height / width) ** 0.5, (s.max_soft_tokens * width / height) ** 0.5
        assert 0 <= ideal[0] - rows < 1 + 1e-9
        assert 0 <= ideal[1] - columns < 1 + 1e-9


@given(side, side, settings)
def test_a_turned_picture_has_turned_patches(height, width, s):
    assert images.target_size(width, height, s) == images.target_size(height, width, s)[::-1]


def test_a_patch_holds_rows_then_columns_then_colours():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 96, 3))
    patches = images.to_patches(pixels, 16)
    assert patches.shape == (18, 768)
    for i, j, y, x, c in [(0, 0, 0, 0, 0), (2, 5, 3, 7, 1), (1, 0, 15, 15, 2), (0, 4, 0, 1, 0), (2, 1, 9, 0, 2)]:
        assert patches[6 * i + j, 48 * y + 3 * x + c] == pixels[16 * i + y, 16 * j + x, c]


def test_a_position_is_column_then_row():
    np.testing.assert_array_equal(images.positions(2, 3), [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]])


@pytest.mark.parametrize("path", ["picture_rgb.png", "picture_1x5000.png", "picture_fits_70.png"])
def test_patches_stand_where_their_positions_say(path):
    """Put back together, the patches are the resized picture."""
    pixels, places = images.image_arrays(HOSTILE / path, SMALL)
    whole = images.resized(images.open_image(HOSTILE / path), SMALL)
    for patch, (x, y) in zip(pixels, places, strict=True):
        if x >= 0:
            there = whole[16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
            np.testing.assert_array_equal(patch, images.rescale(there, 1 / 255).ravel())


def test_padding_is_zero_and_stands_nowhere():
    pixels, places = images.image_arrays(HOSTILE / "picture_rgb.png", SMALL)
    real = images.soft_tokens(places, SMALL) * 9
    assert 0 < real < 630
    assert (places[:real] >= 0).all()
    assert (places[real:] == -1).all()
    assert not pixels[real:].any()
    assert pixels[:real].any(axis=1).all()


def test_black_is_0_and_white_is_1(tmp_path):
    """The tower itself maps that to -1 and 1: done here too it would be done twice."""
    half = Image.new("RGB", (96, 48), "white")
    half.paste("black", (0, 0, 48, 48))
    half.save(tmp_path / "half.png")
    pixels, places = images.image_arrays(tmp_path / "half.png", SMALL)
    left, right = pixels[places[:, 0] == 0], pixels[places[:, 0] == places[:, 0].max()]
    assert set(left.ravel().tolist()) == {0.0}
    assert set(right.ravel().tolist()) == {1.0}


def test_a_picture_is_turned_as_its_exif_says():
    upright = images.open_image(HOSTILE / "picture_rgb.png")
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    turns |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
    for orientation, turn in turns.items():
        turned = images.open_image(HOSTILE / f"picture_turned{orientation}.png")
        np.testing.assert_array_equal(turned, upright.transpose(Image.Transpose[turn]), err_msg=turn)


def test_a_picture_of_the_right_size_is_not_resampled():
    picture = images.open_image(HOSTILE / "picture_fits_70.png")
    np.testing.assert_array_equal(images.resized(picture, SMALL), np.asarray(picture))


@pytest.mark.parametrize("path", sorted([*HOSTILE.glob("bad_*.png"), *HOSTILE.glob("bad_*.jpg")]), ids=lambda p: p.name)
def test_a_bad_picture_is_one_sentence_that_names_it(path):
    with pytest.raises(InputError) as error:
        images.image_arrays(path, S)
    text = str(error.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert text.endswith(".")


def test_a_missing_picture_and_a_directory_are_named(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(InputError, match=f"{path.name}: "):
            images.image_arrays(path, S)


def peak_of(path):
    """Kilobytes that a process takes at most which makes patches of a picture."""
    code = (
        "import sys; from pathlib import Path; from numgemma.prompt import images\n"
        "images.image_arrays(Path(sys.argv[1]), images.ImageSettings(16, 3, 280, 1 / 255))\n"
        "print(open('/proc/self/status').read())"
    )
    said = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True).stdout
    return int(re.search(r"VmHWM:\s*(\d+) kB", said)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
def test_a_large_picture_is_held_once(tmp_path):
    """Decoded, turned and shrunk it takes less than twice its own bytes."""
    for side in (60, 5000):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    own = 3 * 5000 * 5000 / 1000
    assert peak_of(tmp_path / "5000.png") - peak_of(tmp_path / "60.png") < 2 * own


def test_a_decompression_bomb_costs_nothing():
    tracemalloc.start()
    with pytest.raises(InputError, match="178,956,970 pixels"):
        images.open_image(HOSTILE / "bad_bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_without_the_extra_the_install_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(InputError, match=r"PIL is needed here .*pip install 'numgemma\[media\]'"):
        images.open_image(HOSTILE / "picture_rgb.png")


def with_transparency(mode, colour):
    """A picture of four colours, one of which its format calls transparent."""
    values = (np.arange(48 * 96).reshape(48, 96) // 7 % 4 * 60).astype(np.uint8)
    picture = Image.fromarray(values).convert("RGB")
    picture = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=4) if mode == "P" else picture.convert(mode)
    picture.info["transparency"] = colour
    return picture, values


@pytest.mark.parametrize(("mode", "colour"), [("L", 60), ("RGB", (60, 60, 60)), ("P", 1)])
def test_a_transparent_colour_becomes_white_and_no_other_does(tmp_path, mode, colour):
    picture, values = with_transparency(mode, colour)
    picture.save(tmp_path / "p.png", transparency=colour)
    seen = np.asarray(images.on_white(images.open_image(tmp_path / "p.png")))[..., 0]
    hidden = values == 60 if mode != "P" else np.asarray(picture) == 1
    assert (seen[hidden] == 255).all()
    np.testing.assert_array_equal(seen[~hidden], values[~hidden])


def test_the_patches_of_a_transparent_colour_are_white(tmp_path):
    picture, values = with_transparency("L", 60)
    picture.save(tmp_path / "p.png", transparency=60)
    Image.fromarray(values).save(tmp_path / "q.png")
    (with_it, _), (without, _) = (images.image_arrays(tmp_path / name, SMALL) for name in ("p.png", "q.png"))
    assert with_it.mean() > without.mean() + 0.1
