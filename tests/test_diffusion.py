"""DiffusionGemma: its config, its numbers, its two passes, and against stored runs of Transformers."""

import copy
import hashlib
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
from closeness import assert_close, relative
from matplotlib import pyplot
from PIL import Image
from safetensors.numpy import load_file, save_file

import numgemma
from numgemma import denoise, ops
from numgemma.cli import main
from numgemma.cli.inspect import describe, layer_table_text
from numgemma.debug.compare.diff import diff
from numgemma.errors import InputError
from numgemma.families import find, read_config
from numgemma.families.diffusion import diffusion
from numgemma.generate import Memory
from numgemma.graph import graph_of
from numgemma.opening import DATA
from numgemma.plots import canvas_map
from numgemma.prompt.media import NO_MEDIA, read_media
from numgemma.surgery.lint import lint
from numgemma.surgery.synth import synth

STORED = Path(__file__).parents[1] / "reference_outputs"
GOLDEN = Path(__file__).parent / "golden"
CONFIG = DATA / "configs" / "diffusiongemma-26B-A4B-it.json"
MANIFEST = json.loads((STORED / "manifest_diffusion.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("diffusion") / "ckpt", tiny.DIFFUSION)


@pytest.fixture(scope="module")
def settling(tmp_path_factory):
    """A checkpoint whose canvases settle."""
    return tiny.write(tmp_path_factory.mktemp("settling") / "ckpt", tiny.DIFFUSION, tiny.calm())


@pytest.fixture
def model(folder):
    return numgemma.load(folder, "float64")


def record(model, points=("*",), **changes):
    """A pass over tiny's text and canvas, some of it changed."""
    return model.record(inputs=tiny.diffusion_inputs() | changes, points=points)


# config and counts


def test_the_official_config_counts_to_the_published_size():
    found = describe("diffusiongemma-26B-A4B-it", 32768)
    table = found["parameters"]
    assert table["total"] + table["buffers"] == 25_823_781_228
    assert table["tensors"] == 1047
    modules = table["modules"]
    assert modules["embed_tokens"] == 738_197_504
    assert modules["norm"] == 2816
    assert sum(n for module, n in modules.items() if module.startswith("layers")) == 24_494_941_440
    assert modules["self_conditioning"] == 17_844_992
    assert modules["vision_tower"] + table["buffers"] - 60 == 569_550_384  # 30 scalars of either stack
    assert modules["embed_vision"] == 3_244_032
    assert found["memory"]["the whole cache, kept in bfloat16"] == 880_599_040
    plain = describe("gemma-4-26B-A4B-it")["parameters"]
    assert table["total"] + table["buffers"] - plain["total"] - plain["buffers"] == 17_845_022


def test_the_layer_table_is_that_of_26b_a4b():
    table = layer_table_text(describe("diffusiongemma-26B-A4B-it")["layers"])
    assert table + "\n" == (GOLDEN / "layers-26B-A4B.txt").read_text()


def test_what_is_shared_is_stored_once_under_the_decoders_names():
    raw = json.loads(CONFIG.read_text())
    family, config = find(raw, "config.json"), read_config(raw, "config.json")
    shapes = {family.stored_name(name, raw["model_type"]): shape for name, shape in family.shapes(config).items()}
    assert len(shapes) == 1047
    assert shapes["model.decoder.layers.29.self_attn.k_proj.weight"] == (1024, 2816)
    assert "model.decoder.layers.29.self_attn.v_proj.weight" not in shapes  # values from raw keys
    assert shapes["model.decoder.self_conditioning.gate_proj.weight"] == (2112, 2816)
    assert shapes["model.encoder.language_model.layers.29.layer_scalar"] == (1,)
    assert shapes["model.encoder.embed_vision.embedding_projection.weight"] == (2816, 1152)
    assert "model.encoder.vision_tower.std_bias" in shapes
    assert not [name for name in shapes if name.startswith("model.encoder.language_model") and "scalar" not in name]


def changed(section=None, **values):
    raw = copy.deepcopy(tiny.DIFFUSION)
    (raw[section] if section else raw).update(values)
    return raw


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (changed("text_config", attention_k_eq_v=False), "attention_k_eq_v is False, and True in every"),
        (changed("text_config", enable_moe_block=False), "enable_moe_block is False"),
        (changed("text_config", num_kv_shared_layers=2), "num_kv_shared_layers is 2"),
        (changed("text_config", final_logit_softcapping=None), "final_logit_softcapping is null"),
        (changed("text_config", use_bidirectional_attention="all"), "neither null nor 'vision'"),
        (changed("text_config", num_experts=None), "enable_moe_block needs num_experts"),
        (changed(tie_word_embeddings=False), "tie_word_embeddings false"),
        (changed(canvas_length=0), "canvas_length is not positive"),
        (changed(audio_config={"model_type": "gemma4_audio"}), "unknown key 'audio_config'"),
        (changed(image_mask="transformers"), "unknown key 'image_mask'"),
    ],
)
def test_a_config_that_is_not_computed_here_is_refused_by_name(raw, told):
    with pytest.raises(InputError, match=told):
        read_config(raw, "config.json")


def test_the_spelling_that_transformers_saves_is_read():
    raw = changed()
    text = raw["text_config"]
    full = {"head_dim": text.pop("global_head_dim"), "num_key_value_heads": text.pop("num_global_key_value_heads")}
    text["per_layer_config"] = {"2": full, "5": full}
    assert find(raw, "").shapes(read_config(raw, "")) == find(raw, "").shapes(read_config(tiny.DIFFUSION, ""))


@pytest.mark.parametrize("scale", ["tiny", "pilot"])
def test_a_synthetic_one_is_whole_and_lint_finds_nothing(tmp_path, scale):
    raw = synth("diffusiongemma-26B-A4B-it", tmp_path / "ckpt", scale)
    assert lint(tmp_path / "ckpt") == []
    model = numgemma.load(tmp_path / "ckpt")
    assert model.config.canvas_length == raw["canvas_length"] < model.outline.window


def test_lint_says_what_is_wrong_with_the_scalars_and_the_self_conditioning(tmp_path):
    tensors = tiny.random_tensors(tiny.DIFFUSION)
    del tensors["encoder.language_model.layers.3.layer_scalar"]
    tensors["self_conditioning.gate_proj.weight"] = tensors["self_conditioning.gate_proj.weight"].T
    said = [finding.text for finding in lint(tiny.write(tmp_path / "ckpt", tiny.DIFFUSION, tensors))]
    assert any("encoder.language_model.layers.3.layer_scalar is missing" in text for text in said)
    assert any("self_conditioning.gate_proj.weight" in text and "transposed" in text for text in said)


# one pass, against Transformers


def test_every_stored_point_of_transformers_is_ours(folder):
    reference = numgemma.read_dump(STORED / "diffusion_float32.safetensors")
    model = numgemma.load(folder)
    ids, media = model.named_ids(tiny.diffusion_inputs("pictures"))
    assert reference.meta["ids"] == ids
    assert reference.meta["image_mask"] == "intended"
    ours = model.record(ids, reference.meta["coverage"], media=media)
    assert set(reference) == set(ours)
    assert reference.axes == ours.axes
    for name in reference:
        assert_close(reference[name], ours[name], what=name)
    assert diff(reference, ours).verdict == "same"


@pytest.mark.parametrize("name", MANIFEST)
def test_the_stored_weights_are_the_ones_that_were_run(folder, settling, name):
    w, total = numgemma.load(folder if name.endswith("float32") else settling).weights, hashlib.sha256()
    for key in sorted(w):
        total.update(key.encode() + w[key].tobytes())
    assert MANIFEST[name]["weights"] == total.hexdigest(), "remake with reference_outputs/make_reference_diffusion.py"


# what holds of a pass


def test_the_cache_is_as_it_was_after_a_canvas_was_guessed(model):
    run = replace(model.run(), kvs=model.family.kvs(model.config, model.dtype))
    ids = np.arange(20)
    diffusion.read(ids, NO_MEDIA, model.weights, run)
    before = {i: [x.copy() for x in kept] for i, kept in run.kvs.items()}
    assert {i: len(kept[0]) for i, kept in before.items()} == {0: 6, 1: 6, 2: 20, 3: 6, 4: 6, 5: 20}
    for canvas in (np.arange(6), np.arange(100, 106)):
        diffusion.guess(canvas, None, model.weights, replace(run, start=20))
    for i, kept in run.kvs.items():
        for x, y in zip(before[i], kept, strict=True):
            np.testing.assert_array_equal(x, y)


def test_every_token_of_a_canvas_sees_every_other_and_of_the_text_what_a_layer_keeps(model):
    ours = record(model)
    assert ours["decoder.layers.0.self_attn.probs"].shape == (6, 6, 6 + 6)  # window 7: six tokens of the text
    assert ours["decoder.layers.2.self_attn.probs"].shape == (6, 6, 16 + 6)
    assert all((ours[f"decoder.layers.{i}.self_attn.probs"] > 0).all() for i in range(6))
    last = np.array([3, 4, 5, 6, 7, 9])
    first = record(model, ("logits",), decoder_input_ids=np.array([3, 4, 5, 6, 7, 8]))["logits"][0]
    assert relative(first, record(model, ("logits",), decoder_input_ids=last)["logits"][0]) > 1e-6


def test_a_first_pass_is_told_nothing_and_zero_logits_are_not_nothing(model):
    inputs = tiny.diffusion_inputs(condition=False)
    first = model.record(inputs=inputs, points=["*"])
    assert not first["decoder.self_conditioning.soft"].any()
    assert not first["decoder.self_conditioning.down_proj"].any()
    normed = ops.rms_norm(first["decoder.embed_tokens"], None, 1e-6)
    np.testing.assert_array_equal(first["decoder.self_conditioning.post_norm"], normed)
    zeros = model.record(inputs=inputs | {"self_conditioning_logits": np.zeros((6, 199))}, points=["*"])
    table = model.weights["embed_tokens.weight"].astype(float)
    mean = table.mean(0) * 48**0.5
    np.testing.assert_allclose(zeros["decoder.self_conditioning.soft"], np.tile(mean, (6, 1)), rtol=1e-6)


def test_the_mean_embedding_equals_its_definition_in_blocks_of_the_vocabulary():
    rng = np.random.default_rng(0)
    logits, w = rng.normal(0, 3, (4, 70000)), rng.standard_normal((70000, 31)).astype(np.float32)
    probs = np.exp(logits - logits.max(1, keepdims=True))
    expected = probs / probs.sum(1, keepdims=True) @ w.astype(float)
    np.testing.assert_allclose(ops.mean_row(logits, w, np.dtype(float)), expected, rtol=1e-10, atol=1e-12)


def test_the_encoder_has_scalars_of_its_own(model):
    ours = record(model)
    for stack, name in (("encoder.language_model", "encoder.language_model.layers.{}"), ("decoder", "layers.{}")):
        for i in range(6):
            scalar = model.weights[name.format(i) + ".layer_scalar"].astype(float)
            expected = ours[f"{stack}.layers.{i}.after_mlp"] * scalar
            np.testing.assert_allclose(ours[f"{stack}.layers.{i}.out"], expected, rtol=1e-12)


def test_an_image_placeholder_is_embedded_as_the_token_it_is(model):
    """Transformers leaves it so under its picture, and a decoder may write one."""
    inputs = tiny.diffusion_inputs("pictures")
    ours = model.record(inputs=inputs, points=["*embed_tokens", "*inputs_embeds"])
    place = int(np.flatnonzero(inputs["input_ids"] == tiny.IDS["image"])[0])
    row = model.weights["embed_tokens.weight"][tiny.IDS["image"]].astype(float) * 48**0.5
    np.testing.assert_allclose(ours["encoder.language_model.embed_tokens"][place], row, rtol=1e-12)
    assert relative(row, ours["encoder.language_model.inputs_embeds"][place]) > 0.1


def test_the_logits_of_a_bfloat16_run_are_float32(folder):
    ours = record(numgemma.load(folder, "bfloat16"))
    assert {name for name, x in ours.items() if x.dtype == np.float32 and "router" not in name} == {"logits"}
    assert len(np.unique(ours["logits"])) > len(np.unique(ours["lm_head"])) * 0.99


def test_the_graph_has_all_points_and_the_arrows_between_the_stacks(model):
    graph = graph_of(model.checkpoint.config)
    assert set(graph.points) == set(record(model))
    read, reader = "encoder.language_model.layers.3.self_attn.v_norm", "decoder.layers.3.self_attn.context"
    assert {read, reader} <= set(graph.points)
    assert graph.hands_on(read, reader)
    assert not graph.hands_on("encoder.language_model.layers.5.out", "logits")
    assert graph.parents("decoder.self_conditioning.soft") == ("inputs.self_conditioning_logits",)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"decoder_input_ids": np.array([3, 4, 5, 6, 7, 199])}, "decoder_input_ids has the token 199"),
        ({"decoder_input_ids": np.array([[-1, 3, 4, 5, 6, 7]])}, "decoder_input_ids has the token -1"),
        ({"decoder_input_ids": np.array([[3], [4]])}, "decoder_input_ids should be integers"),
        ({"self_conditioning_logits": np.zeros((6, 198), np.float32)}, r"self_conditioning_logits should be floats"),
        ({"self_conditioning_logits": np.zeros((5, 199), np.float32)}, r"self_conditioning_logits should be floats"),
        ({"canvas": np.zeros(6)}, "holds 'canvas'"),
        ({"attention_mask": np.arange(16) > 0}, "attention_mask leaves tokens out"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(model, change, told):
    with pytest.raises(InputError, match=told):
        record(model, **change)


def test_a_mask_that_leaves_nothing_out_changes_nothing(model):
    masked = record(model, ("logits",), attention_mask=np.ones((1, 16), bool))
    np.testing.assert_array_equal(masked["logits"], record(model, ("logits",))["logits"])


def test_without_a_canvas_one_is_asked_for(model):
    with pytest.raises(InputError, match="decoder_input_ids"):
        model.record([5, 6, 7])


# the sampler


def written(settling, stored, mask, memory):
    """The steps of ours on the draws of a stored run."""
    model = numgemma.load(settling, image_mask=mask)
    ids, arrays = tiny.multimodal_prompt("26b")
    how = denoise.settings(MANIFEST[f"diffusion_{mask}"]["settings"], "the test")
    draws = {name: x for name, x in stored.items() if name.endswith(("first_canvas", ".sampled", ".random"))}
    draw = denoise.recorded_draws(draws, 6, 199, "the test")
    return ids, list(denoise.denoised(model, ids, how, draw, read_media(arrays), memory))


@pytest.mark.parametrize("memory", [Memory(), Memory(chunk=4)], ids=["at once", "in parts"])
@pytest.mark.parametrize("mask", ["intended", "transformers"])
def test_a_run_of_transformers_is_followed_step_for_step(settling, mask, memory):
    stored = load_file(STORED / f"diffusion_{mask}.safetensors")
    ids, steps = written(settling, stored, mask, memory)
    names = [f"{step.block}.{step.number}" for step in steps]
    assert sorted(names) == sorted(name.removesuffix(".best") for name in stored if name.endswith(".best"))
    assert len(steps) < 12 * (steps[-1].block + 1)  # some block stopped early
    for name, step in zip(names, steps, strict=True):
        for array in ("canvas", "best", "accepted", "next_canvas"):
            np.testing.assert_array_equal(getattr(step, array), stored[f"{name}.{array}"], err_msg=f"{name} {array}")
        np.testing.assert_allclose(step.entropy, stored[f"{name}.entropy"], atol=2e-4)
    new = np.concatenate([step.ids for step in steps if step.ids is not None])
    assert [*ids, *new] == stored["tokens"].tolist()
    assert 0 < new.tolist().index(106) % 6 < 5  # a stop token inside a block
    assert not new[new.tolist().index(106) + 1 :].any()


def test_the_temperatures_fall_from_the_largest_and_never_reach_the_least():
    how = denoise.Denoising()
    found = [denoise.temperature(n, how) for n in range(48)]
    np.testing.assert_allclose([found[0], found[1], found[-1]], [0.8, 0.791667, 0.408333], rtol=1e-6)
    assert all(a > b for a, b in pairwise(found))


def test_places_are_accepted_while_the_surer_ones_stay_under_the_bound():
    assert denoise.accepted_places(np.array([0.02, 0.07, 0.05]), 0.06).tolist() == [True, False, True]
    assert denoise.accepted_places(np.array([7.0, 5.0, 9.0]), 0.1).tolist() == [False, True, False]
    assert denoise.accepted_places(np.zeros(3), 0.1).all()


def test_the_entropy_of_even_logits_is_that_of_the_vocabulary():
    np.testing.assert_allclose(denoise.entropies(np.zeros((1, 262144), np.float32)), 12.4766, atol=1e-4)
    certain = np.zeros((1, 5))
    certain[0, 3] = 1e5
    assert denoise.entropies(certain) == 0


def test_a_block_is_done_when_its_best_tokens_stay_and_are_sure():
    a, b = np.array([1, 2]), np.array([1, 3])
    two = denoise.Denoising(stability_threshold=2)
    assert not denoise.is_done([a], 0.0, denoise.Denoising())  # there is nothing before it
    assert denoise.is_done([a, a], 0.0, denoise.Denoising())
    assert not denoise.is_done([a, a], 0.006, denoise.Denoising())
    assert not denoise.is_done([b, a, a], 0.0, two)
    assert not denoise.is_done([a, a], 0.0, two)
    assert denoise.is_done([b, a, a, a], 0.0, two)
    assert denoise.is_done([a], 0.0, denoise.Denoising(stability_threshold=0))


def test_padding_stands_behind_the_first_stop_token():
    how = denoise.Denoising(eos_token_id=(1, 7), pad_token_id=0)
    assert denoise.finished(np.array([5, 7, 6, 1, 8]), how).tolist() == [5, 7, 0, 0, 0]
    assert denoise.finished(np.array([5, 7, 6]), replace(how, pad_token_id=None)).tolist() == [5, 7, 6]
    assert denoise.finished(np.array([5, 6]), how).tolist() == [5, 6]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    z = np.log(np.tile([0.5, 0.3, 0.2], (20000, 1)))
    shares = np.bincount(denoise.sampled_tokens(z, np.random.default_rng(0)), minlength=3) / 20000
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.015)


def test_settings_are_read_as_transformers_writes_them():
    raw = {"max_denoising_steps": 8, "sampler_config": {"_cls_name": "X", "entropy_bound": 0.2}, "eos_token_id": 5}
    found = denoise.settings(raw | {"t_min": None, "transformers_version": "5.24.0"}, "the file")
    assert found == denoise.Denoising(max_denoising_steps=8, entropy_bound=0.2, eos_token_id=(5,))
    assert denoise.settings({"sampler_config.entropy_bound": 0.3}, "the file").entropy_bound == 0.3


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"steps": 3}, "unknown key 'steps'"),
        ({"max_denoising_steps": 0}, "max_denoising_steps is not positive"),
        ({"max_denoising_steps": 2.5}, "max_denoising_steps should be int"),
        ({"t_min": 0.9}, "t_min and t_max"),
        ({"sampler_config": 3}, "sampler_config should be an object"),
        ({"sampler_config": {"entropy_bound": 0}}, "entropy_bound is not positive"),
        ({"confidence_threshold": -1.0}, "confidence_threshold is not positive"),
        ({"stability_threshold": -1}, "stability_threshold is negative"),
    ],
)
def test_settings_without_a_meaning_are_refused_by_name(raw, told):
    with pytest.raises(InputError, match=told):
        denoise.settings(raw, "the file")


def test_draws_that_do_not_fit_are_refused_by_name():
    for x in (np.zeros(5, int), np.full(6, 199), np.zeros(6), np.full(6, -1)):
        with pytest.raises(InputError, match=r"0\.first_canvas should be 6 token ids below 199"):
            denoise.recorded_draws({"0.first_canvas": x}, 6, 199, "the file")
    with pytest.raises(InputError, match=r"has no 0\.first_canvas"):
        denoise.recorded_draws({}, 6, 199, "the file")("0.first_canvas", None)


# the verb


@pytest.fixture(scope="module")
def spelling(tmp_path_factory):
    """A checkpoint that comes with a tokenizer."""
    folder = tmp_path_factory.mktemp("spelling") / "ckpt"
    synth("diffusiongemma-26B-A4B-it", folder, "tiny")
    return folder


def test_generate_follows_recorded_draws_and_writes_every_step(settling, tmp_path, capsys):
    stored = load_file(STORED / "diffusion_intended.safetensors")
    model, ids = numgemma.load(settling), [5, 6, 7, *range(20, 35)]
    how = denoise.settings({"max_new_tokens": 7, "max_denoising_steps": 3, "eos_token_id": []}, "the test")
    steps = list(denoise.denoised(model, ids, how, denoise.recorded_draws(draws_of(stored), 6, 199, "the test")))
    (tmp_path / "sampler.json").write_text(json.dumps({"max_denoising_steps": 3, "eos_token_id": []}))
    options = [
        "--sampler",
        str(tmp_path / "sampler.json"),
        "--max-new-tokens",
        "7",
        "--json",
        str(tmp_path / "out.json"),
    ]
    options += ["--draws", str(STORED / "diffusion_intended.safetensors"), "--print-ids"]
    assert main(["generate", str(settling), "--ids", ",".join(map(str, ids)), *options]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert capsys.readouterr().out.splitlines()[0] == ",".join(map(str, found["ids"]))
    assert found["ids"] == [i for block in found["blocks"] for i in block["ids"]]
    assert [len(block["steps"]) for block in found["blocks"]] == [3, 3]
    for step, told in zip(steps, [s for block in found["blocks"] for s in block["steps"]], strict=True):
        for name in ("canvas", "best", "sampled", "accepted", "next_canvas"):
            assert told[name] == getattr(step, name).tolist()
        np.testing.assert_allclose(told["mean_entropy"], step.mean_entropy)


def draws_of(stored):
    return {name: x for name, x in stored.items() if name.endswith(("first_canvas", ".sampled", ".random"))}


def test_the_settings_of_a_checkpoint_are_those_of_its_generation_config(spelling):
    found = denoise.checkpoint_settings(numgemma.load(spelling))
    assert found == denoise.Denoising(max_new_tokens=4, eos_token_id=(1, 106), pad_token_id=0)


def test_a_seed_decides_what_is_written_and_a_pipe_gets_the_text(spelling, capsys):
    def written(seed):
        assert main(["generate", str(spelling), "--prompt", "Hello", "--seed", str(seed), "--max-new-tokens", "8"]) == 0
        return capsys.readouterr()

    first = written(1)
    assert first.out.startswith("Hello")
    assert "\x1b" not in first.out + first.err
    assert "8 tokens in" in first.err
    assert written(1).out == first.out != written(2).out


@pytest.fixture(scope="module")
def chatting(spelling, tmp_path_factory):
    """The same with a chat template."""
    folder = tmp_path_factory.mktemp("chatting") / "ckpt"
    shutil.copytree(spelling, folder)
    shutil.copy(Path(__file__).parent / "templates" / "small.jinja", folder / "chat_template.jinja")
    return folder


@pytest.mark.parametrize("content", ["Hello", [{"type": "image"}, {"type": "text", "text": "Hello"}]])
def test_a_chat_is_answered_on_canvases_as_its_ids_are(chatting, tmp_path, capsys, content):
    """Also one with a picture; the answer alone is printed."""
    messages, files = [{"role": "user", "content": content}], {}
    if content != "Hello":
        Image.new("RGB", (96, 48), (200, 30, 30)).save(tmp_path / "red.png")
        files = {"image": [tmp_path / "red.png"]}
    model = numgemma.load(chatting)
    ids, media = model.chat_ids(messages, files)
    how = replace(denoise.checkpoint_settings(model), max_new_tokens=8, eos_token_id=())
    new = [i for s in denoise.denoised(model, ids, how, media=media) if s.ids is not None for i in s.ids.tolist()]
    (tmp_path / "chat.json").write_text(json.dumps(messages))
    words = ["generate", str(chatting), "--chat", str(tmp_path / "chat.json"), "--max-new-tokens", "8", "--ignore-eos"]
    words += [word for path in files.get("image", ()) for word in ("--image", str(path))]
    assert main([*words, "--print-ids"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == ",".join(map(str, new))
    assert "Hello" not in out


def test_a_chat_without_a_template_is_refused_in_a_sentence(spelling, tmp_path, capsys):
    (tmp_path / "chat.json").write_text('[{"role": "user", "content": "Hello"}]')
    assert main(["generate", str(spelling), "--chat", str(tmp_path / "chat.json")]) == 2
    err = capsys.readouterr().err
    assert "chat_template" in err
    assert err.count("\n") == 1


def test_a_terminal_shows_the_canvas_settle_over_itself(spelling, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["generate", str(spelling), "--prompt", "Hello", "--max-new-tokens", "4"]) == 0
    shown = capsys.readouterr().err
    assert "block 0, step 0: 1 of 4 places accepted, mean entropy" in shown
    assert "\x1b[2A\rblock 0, step 1:" in shown
    assert max(len(line) for line in shown.replace("\r", "\n").split("\n")) <= 80


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--temperature", "1"], "--temperature is for models that write tokens"),
        (["--draws", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--sampler", "nowhere.json"], "nowhere.json"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0"),
    ],
)
def test_options_that_do_not_fit_end_in_one_sentence(settling, capsys, options, told):
    assert main(["generate", str(settling), "--ids", "5,6", "--print-ids", *options]) == 2
    assert told in capsys.readouterr().err


def test_a_model_of_canvases_is_not_asked_for_tokens(settling, capsys):
    with pytest.raises(InputError, match=r"makes no text token by token; `numgemma generate` writes its canvases"):
        numgemma.load(settling).generate([5, 6])
    with pytest.raises(InputError, match="writes no canvas"):
        next(denoise.denoised(numgemma.load("tiny"), [5, 6]))
    assert main(["generate", "tiny", "--ids", "5", "--sampler", "x.json"]) == 2
    assert "--sampler is an option of DiffusionGemma" in capsys.readouterr().err


def test_dump_records_both_stacks_and_what_the_pass_was_given(folder, tmp_path):
    save_file(tiny.diffusion_inputs(), tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    assert main(["dump", str(folder), "--inputs", str(tmp_path / "in.safetensors"), "-o", str(out)]) == 0
    found = numgemma.read_dump(out)
    assert {"encoder.language_model.layers.0.out", "decoder.layers.5.out", "inputs.decoder_input_ids"} <= set(found)
    assert found["decoder.layers.0.self_attn.q_proj"].shape == (6, 6, 16)
    assert found["logits"].shape == (6, 199)


# the picture


@pytest.fixture
def told(settling, tmp_path, capsys):
    """What `generate --json` wrote of two blocks."""
    path, sampler = tmp_path / "run.json", tmp_path / "sampler.json"
    sampler.write_text('{"max_denoising_steps": 5, "max_new_tokens": 12, "eos_token_id": []}')
    options = ["--ids", "2,60,70", "--sampler", str(sampler), "--print-ids", "--json", str(path)]
    assert main(["generate", str(settling), *options]) == 0
    capsys.readouterr()
    return path


def test_show_draws_a_canvas_over_its_steps(told, spelling, tmp_path):
    for options in ([], ["--index", "1", "--token", "3"], ["--ckpt", str(spelling)]):
        out = tmp_path / "out.png"
        assert main(["show", str(told), "--what", "denoising", *options, "-o", str(out)]) == 0
        assert out.read_bytes().startswith(b"\x89PNG")
    of_checkpoint = ["show", str(spelling), "--what", "denoising", "--prompt", "Hello", "-o", str(tmp_path / "p.svg")]
    assert main(of_checkpoint) == 0


def test_the_picture_has_a_text_for_each_place_and_a_frame_where_one_was_accepted(told):
    block = json.loads(told.read_text())["blocks"][0]
    tokens = {i: f"a long token {i}\n" for step in block["steps"] for i in step["best"]}
    ax = canvas_map(block, tokens | {block["steps"][0]["best"][2]: " a\n"}, first=2)
    assert len(ax.texts) == 4 * len(block["steps"])
    assert ax.texts[0].get_text() == "·a↵"
    assert {text.get_text() for text in ax.texts} <= {"·a↵", "a·long·t…"}
    assert len(ax.patches) == sum(sum(step["accepted"][2:]) for step in block["steps"])
    pyplot.close(ax.figure)


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ('{"ids": [3]}', [], "holds no blocks of a canvas"),
        (
            '{"blocks": [{"steps": [{"best": [3], "entropy": [1, 2], "accepted": [true]}]}]}',
            [],
            "not a run of canvases",
        ),
        ('{"blocks": [{"steps": [{"best": [3], "entropy": ["x"], "accepted": [true]}]}]}', [], "not a run of canvases"),
        ('{"blocks": [3]}', [], "is not a run of canvases"),
        (None, ["--index", "2"], "there are 2 blocks"),
        (None, ["--token", "6"], "Place 6 is not one of the 6"),
        (None, ["--layer", "1"], "--layer is no option of --what denoising"),
    ],
)
def test_what_is_no_canvas_is_refused_by_name(told, tmp_path, capsys, content, options, said):
    if content is not None:
        told.write_text(content)
    assert main(["show", str(told), "--what", "denoising", *options, "-o", str(tmp_path / "out.png")]) == 2
    assert said in capsys.readouterr().err
