"""Gemma 4 12B: its config, its numbers, its masks, and against a stored run of Transformers."""

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from closeness import assert_close, relative
from safetensors.numpy import save_file

import numgemma
from numgemma import cli, masks, ops
from numgemma.cli.inspect import describe, layer_table_text
from numgemma.debug.compare.diff import diff
from numgemma.debug.compare.precheck import precheck
from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.families import find, read_config
from numgemma.families.unified import unified
from numgemma.opening import DATA
from numgemma.prompt.media import NO_MEDIA, Media, read_media
from numgemma.surgery.lint import lint
from numgemma.surgery.synth import synth

STORED = Path(__file__).parents[1] / "reference_outputs"
GOLDEN = Path(__file__).parent / "golden"
HOSTILE = Path(__file__).parent / "hostile"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("unified") / "ckpt", tiny.UNIFIED)


def prepared(folder, case="all", precision="float32", mask="intended"):
    """A model, ids and media of one of tiny's contents."""
    content = tiny.UNIFIED_STORED if case == "stored" else tiny.UNIFIED_CONTENT[case]
    ids, arrays = tiny.unified_prompt(content)
    return numgemma.load(folder, precision, mask), ids, read_media(arrays) if arrays else NO_MEDIA


# config and counts


@pytest.mark.parametrize("name", ["gemma-4-12B", "gemma-4-12B-it"])
def test_the_official_config_counts_to_the_published_size(name):
    found = describe(name, 32768)
    table = found["parameters"]
    assert table["total"] + table["buffers"] == 11_959_730_224
    assert table["tensors"] == 677
    modules = table["modules"]
    assert modules["embed_tokens"] == 1_006_632_960
    assert modules["vision_embedder"] + modules["embed_vision"] == 49_922_304
    assert modules["embed_audio"] == 2_457_600
    assert sum(n for module, n in modules.items() if module.startswith("layers")) + table["buffers"] == 10_900_713_520
    assert found["memory"]["the whole cache, kept in bfloat16"] == 872_087_552


@pytest.mark.parametrize(
    ("size", "bytes_"), [("E2B", 207_605_760), ("E4B", 557_801_472), ("26B-A4B", 880_599_040), ("31B", 3_522_396_160)]
)
def test_the_caches_of_the_others_are_counted_to_the_byte_too(size, bytes_):
    assert describe(f"gemma-4-{size}-it", 32768)["memory"]["the whole cache, kept in bfloat16"] == bytes_


def test_the_layer_table_is_as_it_was():
    table = layer_table_text(describe("gemma-4-12B-it")["layers"])
    assert table + "\n" == (GOLDEN / "layers-12B.txt").read_text()


def test_pictures_weights_bear_the_names_of_released_files():
    raw = json.loads((DATA / "configs" / "gemma-4-12B-it.json").read_text())
    family, config = find(raw, "config.json"), read_config(raw, "config.json")
    shapes = {family.stored_name(name, raw["model_type"]): shape for name, shape in family.shapes(config).items()}
    assert shapes["model.vision_embedder.patch_dense.weight"] == (3840, 6912)
    assert shapes["model.vision_embedder.pos_embedding"] == (1120, 2, 3840)
    assert shapes["model.embed_vision.embedding_projection.weight"] == (3840, 3840)
    assert shapes["model.embed_audio.embedding_projection.weight"] == (3840, 640)
    assert "model.language_model.layers.47.layer_scalar" in shapes


def changed(section=None, **values):
    raw = copy.deepcopy(tiny.UNIFIED)
    (raw[section] if section else raw).update(values)
    return raw


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (changed("text_config", enable_moe_block=True), "enable_moe_block is True, which no gemma4_unified has"),
        (changed("text_config", hidden_size_per_layer_input=8), "hidden_size_per_layer_input is 8"),
        (changed("audio_config", output_proj_dims=48), "output_proj_dims are one number, here they disagree"),
        (changed("vision_config", model_patch_size=16), "model_patch_size is not patch_size"),
        (changed("vision_config", output_proj_dims=48), "mm_embed_dim and output_proj_dims disagree"),
        (changed("vision_config", pooling="max"), "unknown key 'pooling'"),
        (changed("audio_config", mel_bins=128), "unknown key 'mel_bins'"),
        (changed(image_mask="transformers"), "unknown key 'image_mask'"),
    ],
)
def test_a_config_that_is_not_computed_here_is_refused_by_name(raw, told):
    with pytest.raises(InputError, match=told):
        read_config(raw, "config.json")


def test_the_spelling_that_transformers_saves_is_read():
    """It writes one of the four names of the frame's length, and no key of experts."""
    raw = changed()
    for key in ("audio_samples_per_token", "hidden_size", "output_proj_dims"):
        del raw["audio_config"][key]
    for key in ("enable_moe_block", "hidden_size_per_layer_input", "vocab_size_per_layer_input"):
        del raw["text_config"][key]
    del raw["vision_config"]["model_patch_size"]
    assert find(raw, "").shapes(read_config(raw, "")) == find(raw, "").shapes(read_config(tiny.UNIFIED, ""))


# against Transformers


@pytest.mark.parametrize(("name", "mask"), [("12b", "intended"), ("12b_own_mask", "transformers")])
def test_every_stored_point_of_transformers_is_ours(folder, name, mask):
    reference = numgemma.read_dump(STORED / f"{name}_float32.safetensors")
    model, ids, media = prepared(folder, "stored", mask=mask)
    assert reference.meta["ids"] == ids.tolist()
    assert reference.meta["image_mask"] == mask
    ours = model.record(ids, reference.meta["coverage"], media=media)
    assert set(reference) == set(ours)
    assert reference.axes == ours.axes
    found = diff(reference, ours)
    assert found.verdict == "same", found.first


def test_the_stored_weights_are_the_ones_that_were_run(folder):
    manifest, w, total = (
        json.loads((STORED / "manifest.json").read_text()),
        numgemma.load(folder).weights,
        hashlib.sha256(),
    )
    for key in sorted(w):
        total.update(key.encode() + w[key].tobytes())
    assert manifest["12b_float32"]["weights"] == total.hexdigest(), "remake with `make reference`"


# pictures and sound


def test_the_first_norm_is_a_layer_norm_with_its_own_eps(folder):
    """In float64, on a patch so flat that 1e-5 outweighs its variance; 1e-6 would make it three times as large."""
    model, _, _ = prepared(folder, "two pictures")
    rng = np.random.default_rng(0)
    pixels = (0.5 + 1e-3 * rng.standard_normal((1, 6912))).astype(np.float32)
    w = model.weights.at("vision_embedder")
    y = pixels.astype(np.float64)
    y = (y - y.mean()) / np.sqrt(y.var() + 1e-5) * w["patch_ln1.weight"].astype(float) + w["patch_ln1.bias"].astype(
        float
    )
    seen = {}

    class Watch(numgemma.trace.Tap):
        def __call__(self, name, x, axes=""):
            seen[name] = x
            return x

    unified.place_patches(pixels, np.array([[0, 0]]), w, np.dtype("float32"), Watch())
    assert_close(y, seen["patch_ln1"])


def test_a_patch_is_told_from_its_place_by_both_halves_of_the_table(folder):
    model, _, _ = prepared(folder)
    w, dtype = model.weights.at("vision_embedder"), np.dtype("float64")
    same = np.full((3, 6912), 0.3, np.float32)
    at = unified.place_patches(same, np.array([[2, 1], [1, 2], [2, 1]]), w, dtype)
    np.testing.assert_array_equal(at[0], at[2])
    assert relative(at[0], at[1]) > 0.1


def test_soft_tokens_stand_in_the_order_of_their_patches_and_do_not_see_each_other(folder):
    """No tower mixes them: patches in another order give the same tokens in that order."""
    model, ids, media = prepared(folder, "two pictures")
    order = np.random.default_rng(1).permutation(6)
    px, xy = media.pixel_values.copy(), media.image_position_ids.copy()
    px[0, :6], xy[0, :6] = px[0, order], xy[0, order]
    shuffled = Media(pixel_values=px, image_position_ids=xy)
    names = [f"embed_vision@{n}.multimodal_embedder.embedding_projection" for n in (0, 1)]
    plain, mixed = (model.record(ids, names, media=some) for some in (media, shuffled))
    np.testing.assert_allclose(mixed[names[0]], plain[names[0]][order], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mixed[names[1]], plain[names[1]])


def test_a_louder_sound_is_heard_the_same(folder):
    """Each frame is divided by its size; only in near silence does eps count."""
    model, ids, media = prepared(folder, "two recordings")
    louder = Media(**vars(media) | {"input_features": 4 * media.input_features})
    assert relative(model.logits(ids, media), model.logits(ids, louder)) < 1e-3


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"patch": 768}, "Patches of picture 0 have 768 values, the model takes 6912"),
        ({"frame": 128}, "input_features have 128 numbers to a frame, the model takes 640"),
        ({"far": True}, "no side may exceed 40"),
    ],
)
def test_what_another_models_processor_made_is_refused(folder, arrays, told):
    model, ids, media = prepared(folder, "all")
    given = dict(vars(media))
    if "patch" in arrays:
        given["pixel_values"] = given["pixel_values"][..., :768]
    if "frame" in arrays:
        given["input_features"] = given["input_features"][..., :128]
    if "far" in arrays:
        given["image_position_ids"] = np.where(given["image_position_ids"] > 0, 99, given["image_position_ids"])
    with pytest.raises(InputError, match=told):
        model.logits(ids, Media(**given))


# who sees whom


def by_hand(blocks, window, before, far):
    """The definition: causal, or of one image; within the window, or an image past it too."""
    T, S = len(blocks), before + len(blocks)
    seen = np.zeros((T, S), bool)
    for t in range(T):
        for s in range(S):
            same = s >= before and blocks[t] >= 0 and blocks[t] == blocks[s - before]
            near = window is None or before + t - s < window
            seen[t, s] = (s <= before + t and near) or (same and (near or far))
    return seen


@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("window", [1, 3, 7, None])
@pytest.mark.parametrize("seed", range(5))
def test_both_image_masks_are_what_their_definition_says(seed, window, before):
    rng = np.random.default_rng(seed)
    blocks = np.repeat([-1, 0, -1, 1, 2, -1], rng.integers(1, 9, 6))
    np.testing.assert_array_equal(
        np.asarray(masks.far_image_mask(blocks, window, before)), by_hand(blocks, window, before, True)
    )
    if window:
        np.testing.assert_array_equal(
            np.asarray(masks.image_mask(blocks, window, before)), by_hand(blocks, window, before, False)
        )


def test_the_intended_mask_is_causal_on_full_layers_and_the_other_is_not(folder):
    """And neither changes what a text or a sound is."""
    points = ["*.probs"]
    for mask, ahead in (("intended", False), ("transformers", True)):
        model, ids, media = prepared(folder, "two pictures", mask=mask)
        dump = model.record(ids, points, media=media)
        full = dump["layers.2.self_attn.probs"]
        assert np.triu(full, 1).any() == ahead
        assert np.triu(dump["layers.0.self_attn.probs"], 1).any()
    for case in ("text", "two recordings"):
        runs = [prepared(folder, case, mask=mask) for mask in ("intended", "transformers")]
        a, b = (model.logits(ids, media) for model, ids, media in runs)
        np.testing.assert_array_equal(a, b)


def test_the_two_masks_give_other_logits(folder):
    runs = [prepared(folder, "two pictures", mask=mask) for mask in ("intended", "transformers")]
    a, b = (model.logits(ids, media) for model, ids, media in runs)
    assert relative(a, b) > 0.05


def test_an_image_longer_than_the_window_sees_itself_within_the_window_only(folder):
    """Its 20 tokens, in a window of 7: the last one does not see the first, and the first sees all after it."""
    model, ids, media = prepared(folder, "two pictures")
    first = int(np.flatnonzero(ids == tiny.IDS["image"])[6])
    probs = model.record(ids, ["layers.0.self_attn.probs"], media=media)["layers.0.self_attn.probs"][0]
    assert (probs[first, first : first + 20] > 0).all()
    assert (probs[first + 19, : first + 13] == 0).all()
    assert (probs[first + 19, first + 13 : first + 20] > 0).all()


@pytest.mark.parametrize("mask", ["intended", "transformers"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_cached_equals_uncached(folder, mask, precision):
    model, ids, media = prepared(folder, "all", precision, mask)
    whole = model.record(ids, ["layers.*.out", "logits"], media=media)
    last = int(np.flatnonzero(np.isin(ids, [190, 191, 192]))[-1])
    stepwise = model.record(ids, ["layers.*.out", "logits"], media=media, prefill=last + 1)
    assert set(whole) == set(stepwise)
    for name in whole:
        assert_close(whole[name], stepwise[name], precision, name)


@pytest.mark.parametrize("mask", ["intended", "transformers"])
def test_numba_computes_the_same(folder, mask):
    pytest.importorskip("numba")
    model, ids, media = prepared(folder, "all", mask=mask)
    definition = model.record(ids, media=media)
    with ops.using("numba"):
        twin = model.record(ids, media=media)
    for name in definition:
        assert_close(definition[name], twin[name], what=name)


# which mask ran


def test_precheck_says_that_the_masks_differ_and_which_option_makes_them_comparable(folder):
    dumps = []
    for mask in ("transformers", "intended"):
        model, ids, media = prepared(folder, "two pictures", mask=mask)
        dumps.append(Dump(model.describe(ids, media=media)))
    found = precheck(*dumps)
    assert not found.comparable
    assert found.reason == (
        "in A image tokens see each other on full layers and past the window too, as Transformers computes 12B: "
        "make the other dump with --image-mask transformers to compare the two"
    )
    assert precheck(dumps[0], dumps[0]).comparable
    model, ids, media = prepared(folder, "text")
    assert "image_mask" not in model.describe(ids, media=media)


def test_another_mask_is_refused_where_there_is_one(folders):
    with pytest.raises(InputError, match="with the intended image mask"):
        numgemma.load(folders["dense"], image_mask="transformers")
    with pytest.raises(InputError, match="Image mask 'causal' is neither"):
        numgemma.load(folders["dense"], image_mask="causal")


def test_dump_takes_the_mask_as_an_option(folder, tmp_path):
    model, ids, media = prepared(folder, "two pictures", mask="transformers")
    arrays = {name: x for name, x in vars(media).items() if x is not None}
    save_file(arrays | {"input_ids": ids[None]}, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    command = ["dump", str(folder), "--inputs", str(tmp_path / "in.safetensors"), "--points", "logits", "-o", str(out)]
    for mask in ("transformers", "intended"):
        assert cli.main([*command, "--image-mask", mask]) == 0
        dump = numgemma.read_dump(out)
        assert dump.meta["image_mask"] == mask
        same = np.array_equal(dump["logits"], model.logits(ids, media))
        assert same == (mask == "transformers")


# surgery, and what is drawn


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "12b"
    synth("gemma-4-12B-it", folder, "tiny")
    return folder


def test_a_synthetic_12b_is_whole_and_suppresses_the_ends_of_pictures_and_sound(synthetic):
    assert lint(synthetic) == []
    generation = json.loads((synthetic / "generation_config.json").read_text())
    config = json.loads((synthetic / "config.json").read_text())
    assert generation["suppress_tokens"] == [config["eoa_token_index"], config["eoi_token_id"]]
    assert config["vision_config"]["patch_size"] * config["vision_config"]["pooling_kernel_size"] == 48
    processor = json.loads((synthetic / "processor_config.json").read_text())
    assert processor["processor_class"] == "Gemma4UnifiedProcessor"


def test_lint_names_what_is_missing_of_the_embedders(tmp_path):
    tensors = tiny.random_tensors(tiny.UNIFIED)
    del tensors["vision_embedder.patch_ln1.bias"]
    tensors["vision_embedder.pos_norm.weight"] = tensors["vision_embedder.pos_norm.weight"][:-1]
    found = {(f.rule, f.tensors) for f in lint(tiny.write(tmp_path / "ckpt", tiny.UNIFIED, tensors))}
    assert ("missing", ("vision_embedder.patch_ln1.bias",)) in found
    assert ("shape", ("vision_embedder.pos_norm.weight",)) in found


def test_a_stack_of_12b_keeps_the_embedders_and_is_traced_to_its_parent(synthetic, tmp_path, capsys):
    out = tmp_path / "deeper"
    assert cli.main(["stack", str(synthetic), "--slices", "0-5,0-11", "-o", str(out)]) == 0
    assert cli.main(["lineage", str(out), "--parents", str(synthetic)]) == 0
    told = capsys.readouterr().out
    assert "6-17   0-11    P1    copy" in told
    child, parent = numgemma.load(out), numgemma.load(synthetic)
    assert len(child.outline.layers) == 18
    for name in ("vision_embedder.pos_embedding", "embed_audio.embedding_projection.weight"):
        np.testing.assert_array_equal(child.weights[name], parent.weights[name])
    files = {"image": HOSTILE / "picture_rgb.png", "audio": HOSTILE / "sound_16k.wav"}
    ids, media = child.prompt_ids("<bos><|image|> and <|audio|>", files, soft_tokens=70)
    assert np.isfinite(child.logits(ids, media)).all()


def test_what_it_sees_and_hears_can_be_drawn(synthetic, tmp_path):
    pytest.importorskip("matplotlib")
    dump = str(tmp_path / "dump.safetensors")
    picture, sound = (str(HOSTILE / name) for name in ("picture_rgb.png", "sound_16k.wav"))
    command = ["dump", str(synthetic), "--prompt", "<bos><|image|><|audio|>", "--image", picture, "--audio", sound]
    assert cli.main([*command, "--points", "inputs_embeds", "--soft-tokens", "70", "-o", dump]) == 0
    for kind, path in (("image", picture), ("audio", sound)):
        out = tmp_path / f"{kind}.png"
        assert cli.main(["show", dump, "--ckpt", str(synthetic), f"--{kind}", path, "-o", str(out)]) == 0
        assert out.read_bytes().startswith(b"\x89PNG")


def test_the_report_has_an_equation_for_every_point_of_the_embedders(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path / "floors"))
    model, ids, media = prepared(folder, "stored")
    dump = Dump(model.describe(ids, media=media))
    model.record_into(dump, ids, media=media)
    dump.save(tmp_path / "dump.safetensors")
    arrays = {name: x for name, x in vars(media).items() if x is not None} | {"input_ids": ids[None]}
    save_file(arrays, tmp_path / "in.safetensors")
    page = tmp_path / "page.html"
    given = ["--inputs", str(tmp_path / "in.safetensors"), "--html", str(page)]
    assert cli.main(["replay", str(folder), str(tmp_path / "dump.safetensors"), *given]) == 0
    assert "embed_vision@0.patch_ln1" in page.read_text()
