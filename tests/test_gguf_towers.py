"""The towers of Gemma 4 and 12B's embedders in llama.cpp's mmproj, beside a GGUF: the same weights, config, numbers."""

import json
import shutil
from pathlib import Path

import gguf as library
import gguf_shapes
import numpy as np
import pytest
import tiny

from numgemma import load
from numgemma.checkpoint import open_checkpoint
from numgemma.errors import InputError
from numgemma.families import read_config
from numgemma.prompt.media import read_media
from numgemma.prompt.processor import processor_of
from numgemma.surgery.audit import FAITHFUL, WRONG
from numgemma.surgery.audit_files import audit_files
from numgemma.weights import gguf_unified
from numgemma.weights.gguf import open_gguf
from numgemma.weights.gguf_towers import as_stored, our_name, weights_of

FILES = Path(__file__).parent / "fixtures/gguf_towers"
NAMES = ("e4b", "26b", "12b")
CHANGED = (  # a norm of the towers; of 12B's embedders
    ("v.blk.1.ln1.weight", "vision_tower.encoder.layers.1.input_layernorm.weight"),
    ("v.patch_norm.3.weight", "vision_embedder.pos_norm.weight"),
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return {name: gguf_shapes.write(folder / name, name) for name in NAMES}


def prompt(name):
    unified = name == "12b"
    ids, arrays = tiny.unified_prompt(tiny.UNIFIED_CONTENT["all"]) if unified else tiny.multimodal_prompt(name)
    return ids, read_media(arrays)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_the_originals(originals, name):
    ours, theirs = (open_checkpoint(path).weights for path in (FILES / name, originals[name]))
    assert set(ours) == set(theirs)
    for key in theirs:
        np.testing.assert_array_equal(*(np.asarray(w[key], np.float32) for w in (ours, theirs)), key)


@pytest.mark.parametrize("name", NAMES)
def test_an_audit_finds_the_towers_faithful_and_one_that_was_changed(originals, name, tmp_path):
    found = audit_files(FILES / name, originals[name])
    assert found.faithful
    assert any(v.name.startswith("vision_") for v in found.of(FAITHFUL))
    for file in (FILES / name).iterdir():
        shutil.copy(file, tmp_path)
    theirs, ours = CHANGED[name == "12b"]
    norm = open_gguf(FILES / name / "mmproj.gguf").tensors[theirs]
    raw = (tmp_path / "mmproj.gguf").read_bytes()
    (tmp_path / "mmproj.gguf").write_bytes(raw.replace(norm.tobytes(), (1 + norm).tobytes()))
    found = audit_files(tmp_path, originals[name])
    assert [v.name for v in found.of(WRONG)] == [ours]


@pytest.mark.parametrize("name", NAMES)
def test_the_config_is_the_originals(originals, name):
    ours = read_config(open_checkpoint(FILES / name).config, "f")
    theirs = read_config(json.loads((originals[name] / "config.json").read_text()), "f")
    assert ours.vision == theirs.vision
    assert ours.audio == theirs.audio
    assert ours.text.layers == theirs.text.layers
    assert ours.text.use_bidirectional_attention == theirs.text.use_bidirectional_attention
    for key in ("image", "audio", "video", "boi", "eoi", "boa"):
        assert getattr(ours, f"{key}_token_id") == tiny.IDS[key], key


@pytest.mark.parametrize("name", NAMES)
def test_pictures_and_sound_give_the_originals_logits(originals, name):
    ids, media = prompt(name)
    ours, theirs = (load(path).logits(ids, media) for path in (FILES / name, originals[name]))
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_a_text_alone_is_run_without_the_towers_beside_it(tmp_path):
    shutil.copy(FILES / "e4b/text.gguf", tmp_path)
    alone = load(tmp_path / "text.gguf")
    assert alone.checkpoint.config["model_type"] == "gemma4_text"
    ids = tiny.prompt({"vocab_size": 180}, 9)
    np.testing.assert_array_equal(alone.logits(ids), load(FILES / "e4b/text.gguf").logits(ids))


@pytest.mark.parametrize("kind", ["gemma4uw", "gemma4v2"])
def test_a_projector_of_this_family_that_is_not_known_is_refused(kind, tmp_path):
    shutil.copy(FILES / "12b/text.gguf", tmp_path)
    write(tmp_path / "mmproj.gguf", kind, 48)
    told = f"mmproj.gguf: has the projector '{kind}', which is not read here; .*, or move it away"
    with pytest.raises(InputError, match=told):
        load(tmp_path)


def test_a_list_where_a_projector_should_stand_is_nobodys(tmp_path):
    shutil.copy(FILES / "12b/text.gguf", tmp_path)
    writer = library.GGUFWriter(tmp_path / "mmproj.gguf", "clip")
    writer.add_array("clip.vision.projector_type", [1, 2])
    writer.add_array("clip.vision.projection_dim", [48])
    writer.add_tensor("v.patch_embd.weight", np.zeros((2, 32), np.float32))
    written(writer)
    assert load(tmp_path).checkpoint.config["model_type"] == "gemma4_text"


def test_pictures_of_12b_are_cut_as_its_own_processor_does():
    for name, cls in (("12b", "Gemma4UnifiedProcessor"), ("26b", "Gemma4Processor")):
        assert processor_of(open_checkpoint(FILES / name)).cls.name == cls


def test_the_ids_that_are_never_drawn_are_the_files_own():
    assert load(FILES / "12b").sampling().suppress == tuple(gguf_shapes.NEVER_DRAWN["12b"])
    assert load(FILES / "26b").sampling().suppress == ()


def test_patches_that_are_no_squares_of_the_files_pixels_are_refused(tmp_path):
    shutil.copy(FILES / "12b/text.gguf", tmp_path)
    write(tmp_path / "mmproj.gguf", "gemma4uv", 48)  # 32 numbers
    with pytest.raises(InputError, match=r"mmproj.gguf: has no key clip.vision.patch_size"):
        load(tmp_path)
    for patch, numbers in ((16, 32), (7, 6912), (0, 6912), (96, 6912)):
        write(tmp_path / "mmproj.gguf", "gemma4uv", 48, numbers=numbers, patch=patch)
        with pytest.raises(InputError, match=f"{numbers} numbers are no patches of {patch} pixels"):
            load(tmp_path)


def test_the_towers_of_another_model_are_left_alone(tmp_path):
    shutil.copy(FILES / "e4b/text.gguf", tmp_path)
    for name, kind, width in (("mmproj-a", "gemma4v", 64), ("mmproj-b", "gemma3nv", 48)):
        write(tmp_path / f"{name}.gguf", kind, width)
    assert load(tmp_path).checkpoint.config["model_type"] == "gemma4_text"


def test_a_damaged_one_is_named_and_one_beside_it_read(tmp_path):
    shutil.copy(FILES / "e4b/text.gguf", tmp_path)
    (tmp_path / "mmproj-a.gguf").symlink_to(tmp_path / "away")
    with pytest.raises(InputError, match=r"mmproj-a.gguf: .*, or move it away to read the text model alone"):
        load(tmp_path)
    (tmp_path / "mmproj-b.gguf").write_bytes(b"GGUF" + bytes(1 << 20))
    with pytest.raises(InputError, match=r"mmproj-b.gguf: has version 0.*, or move it away"):
        load(tmp_path)
    shutil.copy(FILES / "e4b/mmproj.gguf", tmp_path / "mmproj-c.gguf")
    assert "mmproj-c.gguf" in load(tmp_path).checkpoint.header_hashes


def write(path, kind, width, names=("v.patch_embd.weight",), numbers=32, patch=None):
    """A small mmproj of that projector and width."""
    writer = library.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_clip_vision_projector_type(kind)
    writer.add_vision_projection_dim(width)
    if patch is not None:
        writer.add_vision_patch_size(patch)
    for name in names:
        writer.add_tensor(name, np.zeros((2, numbers), np.float32))
    written(writer)


def written(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_of_several_the_largest_is_read(tmp_path):
    for file in (FILES / "e4b").iterdir():
        shutil.copy(file, tmp_path)
    write(tmp_path / "a-mmproj-Q8_0.gguf", "gemma4v", 48)
    assert "mmproj.gguf" in load(tmp_path).checkpoint.header_hashes


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="name the text model's GGUF, with this beside it"):
        load(FILES / "e4b/mmproj.gguf")
    shutil.copy(FILES / "e4b/text.gguf", tmp_path)
    write(tmp_path / "mmproj.gguf", "gemma4v", 48, ["v.blk.0.attn_q.weight", "v.blk.0.attn_z.weight"])
    with pytest.raises(InputError, match=r"mmproj.gguf: tensor 'v.blk.0.attn_z.weight' has no place"):
        load(tmp_path)
    write(tmp_path / "mmproj.gguf", "gemma4v", 48, ["v.blk.0.attn_q.weight"])
    with pytest.raises(InputError, match=r"has no tensor 'v.blk.0.attn_q_norm.weight'"):
        load(tmp_path)


def test_every_name_has_one_place_and_another_is_refused():
    names = [n for name in NAMES[:2] for n in open_gguf(FILES / name / "mmproj.gguf").tensors]
    assert len({our_name("f", name) for name in names}) == len(set(names))
    assert len(set(gguf_unified.NAMES.values())) == len(gguf_unified.NAMES)
    with pytest.raises(InputError, match="no place"):
        gguf_unified.weights_of("f", open_gguf(FILES / "26b/mmproj.gguf"))
    for name in ("v.blk.0.attn_q.input_mean", "v.blk.x.ln1.weight", "v.class_embd", "a.blk.0.attn_q.bias"):
        with pytest.raises(InputError, match="no place"):
            our_name("f", name)


def test_a_patch_is_p_p_3_where_the_convolution_has_3_p_p():
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    y = as_stored("v.patch_embd.weight", x)
    for d, channel, row, column in ((0, 2, 1, 3), (1, 0, 3, 4)):
        assert y[d, (row * 5 + column) * 3 + channel] == x[d, channel, row, column]


def test_12b_has_a_patch_row_by_row_where_its_file_has_it_colour_by_colour():
    x = np.arange(2 * 3 * 4 * 4).reshape(2, -1)
    y, norm = (gguf_unified.as_stored(f"v.{name}.weight", z) for name, z in (("patch_embd", x), ("patch_norm.1", x[0])))
    for colour, row, column in ((2, 1, 3), (0, 3, 2)):
        at = (row * 4 + column) * 3 + colour
        assert y[1, at] == x[1, (colour * 4 + row) * 4 + column]
        assert norm[at] == x[0, (colour * 4 + row) * 4 + column]


def test_a_scale_of_lanes_comes_back_from_behind_its_softplus():
    w = np.float32([-12, -1, 0, 0.5, 3, 40, 200])
    y = np.logaddexp(0, w.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(as_stored("a.blk.0.per_dim_scale.weight", y), w)
    w = np.random.default_rng(0).normal(size=999).astype(np.float32)  # no numbers of bfloat16
    y = np.logaddexp(0, w.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(as_stored("a.blk.0.per_dim_scale.weight", y), w, rtol=1e-6, atol=1e-6)


def test_what_no_softplus_gives_is_no_number_and_no_warning():
    x = as_stored("a.blk.0.per_dim_scale.weight", np.float32([-1, np.nan, 0, 1]))
    np.testing.assert_array_equal(np.isfinite(x), [False, False, False, True])


def test_no_tensor_of_the_towers_is_read_twice_or_lost():
    for name in NAMES:
        file = open_gguf(FILES / name / "mmproj.gguf")
        reader = gguf_unified.weights_of if name == "12b" else weights_of
        assert len(reader("f", file)) == len(file.tensors)
