"""Pictures of what the model sees and hears: the numbers drawn are those of the dump."""

import numpy as np
import pytest
from PIL import Image
from test_preprocess import FIVE, HOSTILE, RGB, SMALL, TONE, folder, run  # noqa: F401 - fixtures

from numgemma import read_dump
from numgemma.errors import InputError
from numgemma.plots.overlay import draw_picture, draw_sound, draw_video
from numgemma.plots.soft_tokens import Look
from numgemma.prompt import audio, images


@pytest.fixture(scope="module")
def dump(folder, tmp_path_factory):  # noqa: F811 - the fixture
    from numgemma.cli import main

    out = tmp_path_factory.mktemp("show") / "d.safetensors"
    words = (
        "--prompt",
        "Hello <|image|> you <|audio|><|video|><|image|>",
        "--image",
        RGB,
        "--image",
        RGB,
        "--audio",
        TONE,
    )
    words = (*words, "--video", FIVE)
    points = ("--points", "inputs_embeds", "layers.*.self_attn.probs")
    assert main([str(word) for word in ("dump", folder, *words, "--soft-tokens", 70, "-o", out, *points)]) == 0
    return read_dump(out)


ROWS, COLUMNS = 7, 9  # soft tokens of the picture


def size(path):
    with Image.open(path) as picture:
        return picture.size


def drawn(ax):
    """The numbers of the uppermost image of a view."""
    return np.asarray(ax.images[-1].get_array())


def test_the_first_view_is_the_resized_picture(dump):
    figure = draw_picture(RGB, dump, SMALL)
    np.testing.assert_array_equal(drawn(figure.axes[0]), images.resized(images.open_image(RGB), SMALL.image))
    assert "432 x 336 pixels,\n27 x 21 patches, 9 x 7 soft tokens" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize(
    ("index", "look", "layer", "head", "token"),
    [
        (0, Look(), 7, None, -1),
        (0, Look(80, 2, 3), 2, 3, 80),
        (1, Look(-1, 6), 6, None, -1),
        (0, Look(head=5), 7, 5, -1),
    ],
)
def test_the_attention_drawn_is_that_of_the_token_layer_and_head(dump, index, look, layer, head, token):
    figure = draw_picture(RGB, dump, SMALL, index, look)
    runs = np.flatnonzero(np.array(dump.meta["ids"]) == 602)  # <|image|>
    here = runs[index * 63 : index * 63 + 63]
    probs = dump[f"layers.{layer}.self_attn.probs"][:, token, here].astype(np.float64)
    expected = probs.mean(0) if head is None else probs[head]
    np.testing.assert_allclose(drawn(figure.axes[2]), expected.reshape(ROWS, COLUMNS), rtol=1e-6)
    assert f"layer {layer}" in figure.axes[2].get_title(loc="left")
    assert f"{expected.sum():.1%} of it" in figure.axes[2].get_title(loc="left")


def test_soft_tokens_are_drawn_as_they_enter_the_decoder(dump):
    figure = draw_picture(RGB, dump, SMALL)
    here = np.flatnonzero(np.array(dump.meta["ids"]) == 602)[:63]
    expected = np.sqrt((dump["inputs_embeds"][here].astype(np.float64) ** 2).mean(-1))
    np.testing.assert_allclose(drawn(figure.axes[1]), expected.reshape(ROWS, COLUMNS), rtol=1e-6)


def frames_of(path):
    """The frames of a clip as PyAV decodes them, at the size of the first one's patches."""
    from numgemma.prompt.video import video_arrays

    return video_arrays(path, SMALL.frame, SMALL.num_frames)


def test_every_frame_of_a_clip_is_drawn_with_its_soft_tokens_and_the_attention_over_it(dump):
    clip = frames_of(FIVE)
    figure = draw_video(FIVE, dump, SMALL, look=Look(-1, 7, 1))
    views = [ax for ax in figure.axes if ax.images and ax.get_label() != "<colorbar>"]
    assert len(views) == 3 * len(clip.patches)
    places = np.flatnonzero(np.array(dump.meta["ids"]) == 606).reshape(len(clip.patches), -1)  # <|video|>
    for n, (patches, at) in enumerate(zip(clip.patches, places, strict=True)):
        seen, strong, looked = views[3 * n : 3 * n + 3]
        size, cell = SMALL.frame.patch_size, SMALL.frame.cell
        pixels = drawn(seen)
        rows, columns = pixels.shape[0] // cell, pixels.shape[1] // cell
        y, x = 17, 40  # any pixel: where it lies in the patches
        patch = int(np.flatnonzero((clip.places[n] == (x // size, y // size)).all(-1))[0])
        here = patches[patch].reshape(size, size, 3)[y % size, x % size]
        np.testing.assert_array_equal(pixels[y, x], np.rint(here * 255))
        expected = np.sqrt((dump["inputs_embeds"][at].astype(np.float64) ** 2).mean(-1))
        np.testing.assert_allclose(drawn(strong), expected.reshape(rows, columns), rtol=1e-6)
        probs = dump["layers.7.self_attn.probs"][1, -1, at]
        assert (probs > 0).all()
        np.testing.assert_allclose(drawn(looked), probs.reshape(rows, columns), rtol=1e-6)
        assert f"tokens {at[0]} to {at[-1]}" in seen.get_title(loc="left")
    scales = {ax.images[-1].get_clim() for ax in views[2::3]}
    assert len(scales) == 1  # frames can be compared


def test_patches_put_together_are_the_frame(dump):
    from numgemma.plots.soft_tokens import whole_picture

    pixels = images.resized(images.open_image(RGB), SMALL.image)
    np.testing.assert_array_equal(whole_picture(*images.image_arrays(RGB, SMALL.image), SMALL.image), pixels)


def test_a_dump_says_where_each_file_stands_and_is_believed(dump):
    """A recording and a picture with as many soft tokens are not taken for each other."""
    from numgemma.dump import Dump

    ids = np.array(dump.meta["ids"])
    said = dump.meta["media"]
    assert [(span["kind"], span["file"]) for span in said] == [
        *(("image", n) for n in range(2)),
        *(("video", 0) for _ in frames_of(FIVE).patches),
        ("audio", 0),
    ]
    soft = {"image": 602, "video": 606, "audio": 603}
    for span in said:
        assert set(ids[span["first"] : span["first"] + span["count"]]) == {soft[span["kind"]]}
    moved = [span | {"first": 5 if span["kind"] == "audio" else 9} for span in said]
    other = Dump(dump.meta | {"media": moved}, {"inputs_embeds": dump["inputs_embeds"]}, dump.axes)
    assert "(tokens 9 to 71)" in draw_picture(RGB, other, SMALL).axes[0].get_title(loc="left")
    assert "(tokens 5 to " in draw_sound(TONE, other, SMALL).axes[0].get_title(loc="left")


def test_without_the_dumps_word_files_are_found_by_the_runs_of_their_ids(dump):
    from numgemma.dump import Dump

    silent = Dump({key: x for key, x in dump.meta.items() if key != "media"}, dump.arrays, dump.axes)
    for draw, path in ((draw_picture, RGB), (draw_video, FIVE), (draw_sound, TONE)):
        titles = [[ax.get_title(loc="left") for ax in draw(path, d, SMALL).axes] for d in (dump, silent)]
        assert titles[0] == titles[1]


def test_the_budget_is_found_in_the_ids(dump):
    from numgemma.prompt.processor import read_processor

    figure = draw_picture(RGB, dump, read_processor(HOSTILE))  # 280, where the dump was made at 70
    assert "9 x 7 soft tokens" in figure.axes[0].get_title(loc="left")


def test_a_recording_is_drawn_with_the_borders_of_its_soft_tokens(dump):
    figure = draw_sound(TONE, dump, SMALL, look=Look(layer=2, head=1))
    mel, mask = audio.sound_arrays([TONE], SMALL.sound)
    np.testing.assert_array_equal(drawn(figure.axes[0]), mel[0][mask[0]].T)
    count = audio.soft_tokens(mask[0])
    heights, borders, _ = figure.axes[2].patches[0].get_data()
    np.testing.assert_allclose(borders, 0.04 * np.arange(count + 1))
    here = np.flatnonzero(np.array(dump.meta["ids"]) == 603)  # <|audio|>
    np.testing.assert_allclose(heights, dump["layers.2.self_attn.probs"][1, -1, here], rtol=1e-6)


def test_without_probs_the_attention_is_left_out_unless_asked_for(dump):
    from numgemma.dump import Dump

    bare = Dump(dump.meta, {"inputs_embeds": dump["inputs_embeds"]}, dump.axes)
    assert len(draw_picture(RGB, bare, SMALL).axes) == 2
    with pytest.raises(InputError, match=r"no layers.7.self_attn.probs; dump again with --points '\*.probs'"):
        draw_picture(RGB, bare, SMALL, look=Look(layer=7))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--image", HOSTILE / "picture_1x5000.png"), "makes 280 soft tokens, and the dump has 0 pictures"),
        (("--image", RGB, "--index", 2), "has 2 pictures of that size"),
        (("--image", RGB, "--index", -1), "--index below that"),
        (("--image", RGB, "--token", 999), "--token 999 is not one of the"),
        (("--image", RGB, "--head", 6), "--head 6 is not one of the 6 heads"),
        (("--image", RGB, "--layer", 8), "no layers.8.self_attn.probs"),
        (("--audio", HOSTILE / "sound_48k_24bit.wav"), "and the dump has 0 recordings"),
        (("--video", HOSTILE / "clip_gif.gif"), "soft tokens a frame, and the dump has 0 clips"),
        (("--video", HOSTILE / "bad_text.mp4"), "is no clip"),
        (("--audio", HOSTILE / "bad_text.wav"), "is no recording"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(run, dump, tmp_path, words, told):  # noqa: F811 - the fixture
    dump.save(tmp_path / "d.safetensors")
    code, _, err = run("show", tmp_path / "d.safetensors", *words, "-o", tmp_path / "out.png")
    assert code == 2
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


def test_show_writes_a_png(run, dump, tmp_path):  # noqa: F811 - the fixture
    dump.save(tmp_path / "d.safetensors")
    for words in (("--image", RGB), ("--audio", TONE), ("--video", FIVE)):
        code, out, _ = run("show", tmp_path / "d.safetensors", *words, "-o", tmp_path / "out.png")
        assert code == 0
        assert "out.png: drawn" in out
        assert size(tmp_path / "out.png")[0] > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.safetensors", "out.png"]


@pytest.mark.parametrize("name", ["picture_1x5000.png", "picture_5000x1.png"])
def test_a_thin_picture_makes_a_drawing_of_ordinary_size(name, dump, tmp_path):
    from numgemma.dump import Dump
    from numgemma.plots.overlay import write_figure

    meta = dump.meta | {"ids": [2, *[602] * 70, 5], "media": None}
    write_figure(draw_picture(HOSTILE / name, Dump(meta), SMALL), tmp_path / "thin.png")
    assert max(size(tmp_path / "thin.png")) < 3000
