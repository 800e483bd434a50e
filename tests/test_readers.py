"""Other engines' dumps, as their own tools wrote them (tests/fixtures), read into ours."""

import copy
import gzip
import json
import pickle
import re
import struct
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from closeness import assert_close
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from numgemma import load, read_dump
from numgemma.debug.compare.diff import diff
from numgemma.debug.measure import metrics, overlap
from numgemma.debug.measure.precision import TOLERANCES
from numgemma.debug.noise.floor import Floor, Noise, measure_floor
from numgemma.debug.readers import read_any, summary
from numgemma.debug.readers.names import axes_of, ours
from numgemma.debug.readers.tensors import named_tensors
from numgemma.dump import Dump
from numgemma.errors import InputError

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES.parents[1] / "reference_outputs"))

import make_fixtures  # noqa: E402

EVERY = ["*"]  # points, the maps too


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The checkpoints that the fixtures were made of."""
    folder = tmp_path_factory.mktemp("checkpoints")
    found = make_fixtures.write_checkpoints(folder)
    made_of = json.loads((FIXTURES / "manifest.json").read_text())
    for name, checkpoint in found.items():
        remake = f"tests/fixtures holds another '{name}'; remake it with reference_outputs/make_fixtures.py"
        assert make_fixtures.digest(checkpoint) == made_of[name], remake
    return {name: load(checkpoint) for name, checkpoint in found.items()}


@pytest.fixture
def log(tmp_path):
    """Unpacks a log by name."""

    def unpack(name):
        path = tmp_path / f"{name}.txt"
        path.write_bytes(gzip.decompress((FIXTURES / f"{name}.txt.gz").read_bytes()))
        return path

    return unpack


@pytest.fixture
def debugger(tmp_path):
    """Unpacks a folder of Transformers' debugger by name."""

    def unpack(name):
        with zipfile.ZipFile(FIXTURES / f"hf_debugger_{name}.zip") as archive:
            archive.extractall(tmp_path / name)
        return tmp_path / name

    return unpack


def judged(reference, dump):
    """Every point of the dump against a run of ours: name -> (the tolerance it needs, the tolerance it has)."""
    row = TOLERANCES[dump.meta["precision"]]
    found = {}
    for name in dump:
        if dump[name].dtype.kind in "iub":
            x, axes, y, _ = overlap.both(name, reference, dump)
            found[name] = metrics.measure_exact(x, y, axes, True).rel, 0.0
        else:
            m = overlap.measure(name, reference, dump, row.channel_floor)
            found[name] = metrics.least_tolerance(m, row), row.rel
    return found


def failures(reference, dump):
    return [name for name, (needs, has) in judged(reference, dump).items() if needs is None or needs > has]


# -- llama.cpp ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ple", "moe"])
def test_a_clean_run_of_llama_cpp_agrees_at_every_point(name, models, log):
    dump = read_any(log(f"llama_eval_callback_{name}"))
    reference = models[name].record(dump.meta["ids"], EVERY)
    assert dump.meta["fidelity"] == "sampled"
    assert failures(reference, dump) == []
    assert max(needs for needs, _ in judged(reference, dump).values()) > 1e-6  # it is another engine, not ourselves


@pytest.mark.parametrize("name", ["ple", "moe"])
def test_llama_cpp_prints_a_tensor_for_nearly_every_point_of_ours(name, models, log):
    dump = read_any(log(f"llama_eval_callback_{name}"))
    reference = models[name].record(dump.meta["ids"], EVERY)
    missing = set(reference) - set(dump)
    kinds = ("rotary_emb.full_attention", "rotary_emb.sliding_attention")
    never = {f"{kind}.{table}" for kind in kinds for table in ("cos", "sin")}
    never |= {point for point in missing if point.endswith((".scores", "attn.probs", "router.norm", "router.weights"))}
    last = f"layers.{models[name].config.text.num_hidden_layers - 1}"
    lost = {point for point in missing - never if not point.startswith(last)}
    assert lost <= {"norm", "lm_head", "logits"}  # either tool loses the last lines of its log


def test_a_norm_scaled_by_five_percent_is_the_first_point_that_differs(models, log):
    dump = read_any(log("llama_eval_callback_faulty"))
    reference = models["ple"].record(dump.meta["ids"], EVERY)
    assert failures(reference, dump)[0] == "layers.3.self_attn.k_norm"
    m = overlap.measure("layers.3.self_attn.k_norm", reference, dump)
    assert m.scale == pytest.approx(1.05, rel=1e-3)


def test_diff_calls_the_clean_runs_the_same_and_names_the_fault_of_the_other(models, log):
    for name in ("ple", "moe"):
        dump = read_any(log(f"llama_eval_callback_{name}"))
        found = diff(models[name].record(dump.meta["ids"], EVERY), dump)
        assert (found.verdict, found.first) == ("same", None)
        assert len(found.points) > 100
    dump = read_any(log("llama_eval_callback_faulty"))
    found = diff(models["ple"].record(dump.meta["ids"], EVERY), dump)
    assert (found.verdict, found.first) == ("differs", "layers.3.self_attn.k_norm")
    assert [p.name for p in found.points if p.state == "DIFFERS"][1] == "layers.3.self_attn.k_rope"


@pytest.fixture(scope="module")
def floors(models, tmp_path_factory):
    """The noise of the logs' prompts in the precision that llama.cpp's GELU has."""
    found = {}
    for name in ("ple", "moe"):
        path = tmp_path_factory.mktemp("logs") / "log.txt"
        path.write_bytes(gzip.decompress((FIXTURES / f"llama_eval_callback_{name}.txt.gz").read_bytes()))
        found[name] = measure_floor(models[name], read_any(path).meta["ids"], "float16", points=EVERY)
    return found


def scaled(dump, name, factor):
    """The same log, had one of its tensors been printed with a factor more."""
    parts = copy.deepcopy(dump.meta["parts"])
    if parts[name]["sum"] is not None:
        parts[name]["sum"] = round(parts[name]["sum"] * factor, 6)
    return Dump(dump.meta | {"parts": parts}, dump.arrays | {name: np.round(dump[name] * factor, 4)}, dump.axes)


@pytest.mark.parametrize("name", ["ple", "moe"])
def test_under_a_floor_a_clean_log_is_noise_and_some_percent_more_at_one_point_a_fault(name, models, floors, log):
    dump = read_any(log(f"llama_eval_callback_{name}"))
    reference = models[name].record(dump.meta["ids"], EVERY)
    assert {p.state for p in diff(reference, dump, floor=floors[name]).points} <= {"NOISE", "BIT-EXACT"}
    real = [point for point in dump if dump[point].dtype.kind == "f"]

    def judged_at(factor):
        return {p: diff(reference, scaled(dump, p, factor), [p], floor=floors[name]).points[0].state for p in real}

    assert set(judged_at(1.08).values()) == {"FAULT"}
    five = judged_at(1.05)
    assert set(five.values()) <= {"FAULT", "SUSPECT"}
    # of one token six values are known, and behind the last layer float16 has made a fifth of five percent of noise:
    # on which side of it follows the order in which BLAS adds
    last = f"layers.{models[name].config.text.num_hidden_layers - 1}"
    assert {p for p in real if five[p] != "FAULT"} <= {f"{last}.experts", "norm", "lm_head", "logits"}


def test_under_a_floor_the_wrong_weight_of_a_log_is_the_first_fault(models, floors, log):
    dump = read_any(log("llama_eval_callback_faulty"))
    found = diff(models["ple"].record(dump.meta["ids"], EVERY), dump, floor=floors["ple"])
    assert (found.verdict, found.first) == ("differs", "layers.3.self_attn.k_norm")
    assert found.points[[p.name for p in found.points].index(found.first)].by == "scale"


def test_four_decimals_are_forgiven_once():
    """A point that is printed whole is judged as one that is not printed, but for the decimals."""
    x = np.random.default_rng(0).normal(size=(8, 6))
    noise = Noise((1e-5, 2e-5), (1e-5, 2e-5), (1e-5, 2e-5), (1e-6, 2e-6))
    floor = Floor("float32", {}, list(range(8)), 8, {"x": noise})
    a = Dump({"ids": list(range(8)), "precision": "float32"}, {"x": x}, {"x": "T D"})
    slack = {"shape": [8, 6], "at": [None, None], "slack": {"abs": 5e-5}}
    b = Dump(a.meta | {"fidelity": "rounded:4dp", "parts": {"x": slack}}, {"x": np.round(x, 4)}, a.axes)
    (whole,), (printed,) = (diff(a, side, floor=floor).points for side in (a, b))
    assert printed.floor == whole.floor  # nothing on top of the slack
    assert printed.state == "BIT-EXACT"
    without = Dump(b.meta | {"parts": {}}, b.arrays, b.axes)
    (p,) = diff(a, without, floor=floor).points
    assert p.floor["rel"] > whole.floor["rel"]
    assert p.state == "NOISE"


def test_raw_keys_named_vcur_are_keys(models, log):
    dump = read_any(log("llama_eval_callback_moe"))
    full = [spec.index for spec in models["moe"].config.text.layers if spec.k_eq_v]
    for i in full:
        assert f"layers.{i}.self_attn.k_proj" in dump
        assert f"layers.{i}.self_attn.v_proj" not in dump
        assert f"layers.{i}.self_attn.v_norm" in dump


def test_of_a_filtered_log_with_a_warm_up_the_prompt_s_run_is_read(models, log):
    dump = read_any(log("llama_debug_ple"))
    layers = models["ple"].config.text.num_hidden_layers
    assert {f"layers.{i}.out" for i in range(layers)} <= set(dump)
    assert overlap.full_shape(dump, "layers.0.out")[0] == len(dump.meta["ids"])
    assert failures(models["ple"].record(dump.meta["ids"], EVERY), dump) == []


def test_a_log_of_no_known_ids_is_read_without_them(log):
    path = log("llama_eval_callback_ple")
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "number of input tokens" not in line))
    dump = read_any(path)
    assert "ids" not in dump.meta
    assert "positions" not in dump.meta
    assert len(dump) > 150


def test_the_prefix_of_a_log_does_not_matter(log):
    path = log("llama_debug_ple")
    before = read_any(path)
    path.write_text(path.read_text().replace("common_debug_cb_eval:", "ggml_debug:"))
    after = read_any(path)
    assert list(before) == list(after)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_tensor_cut_to_the_output_tokens_is_the_last_token_s(models, log):
    path = log("llama_debug_ple")
    T = len(read_any(path).meta["ids"])
    text = path.read_text()
    header, _, rest = text.rpartition("l_out-7 = ")
    width = models["ple"].config.text.hidden_size
    row = models["ple"].record(read_any(path).meta["ids"])["layers.7.out"][-1]
    cells = ", ".join(f"{v:12.4f}" for v in row[:3]) + ",    ..., " + ", ".join(f"{v:12.4f}" for v in row[-3:])
    block = f"(f32) MUL(a{{1}}, b{{1}}}}) = {{{width}, 1, 1, 1}}\n [\n [\n [{cells} ],\n ],\n ]\n sum = {row.sum():f}\n"
    path.write_text(header + "l_out-7 = " + block + "x: " + "Input prompt" + rest.partition("Input prompt")[2])
    dump = read_any(path)
    assert dump.meta["parts"]["layers.7.out"]["at"][0] == [T - 1]
    assert failures(models["ple"].record(dump.meta["ids"], EVERY), dump) == []


def test_the_logits_of_the_last_token_agree(models):
    dump = read_any(FIXTURES / "llamacpp-ple.bin")
    reference = models["ple"].record(dump.meta["ids"])
    assert overlap.full_shape(dump, "logits") == reference["logits"].shape
    assert failures(reference, dump) == []
    wrong = Dump(dump.meta, {"logits": np.roll(dump["logits"], 1, 1)}, dump.axes)
    assert failures(reference, wrong) == ["logits"]


def test_logits_without_their_tokens_are_refused(tmp_path):
    (tmp_path / "llamacpp-x.bin").write_bytes((FIXTURES / "llamacpp-ple.bin").read_bytes())
    with pytest.raises(InputError, match=r"llamacpp-x-tokens\.bin"):
        read_any(tmp_path / "llamacpp-x.bin")


# -- Transformers' debugger --------------------------------------------------------------------------------------------


def test_the_debugger_s_files_hold_all_layers_although_its_tree_is_pruned(models, debugger):
    folder = debugger("files")
    dump = read_any(folder)
    reference = load(models["ple"].checkpoint.folder, "bfloat16").record(dump.meta["ids"], EVERY)
    assert dump.meta["ids"] == make_fixtures.HF_IDS
    assert dump.meta["precision"] == "bfloat16"
    assert dump.meta["fidelity"] == "exact"
    missing = {re.sub(r"\d+", "#", name.rpartition(".")[2]) for name in set(reference) - set(dump)}
    assert missing == {"q_rope", "k_rope", "scores", "probs", "cos", "sin"}  # what no module returns or takes
    assert failures(reference, dump) == []


def test_the_output_of_a_layer_is_the_input_of_the_next(models, debugger):
    folder = debugger("files")
    dump = read_any(folder)
    layers = models["ple"].config.text.num_hidden_layers
    assert {f"layers.{i}.out" for i in range(layers)} <= set(dump)
    (folder / "Gemma4ForCausalLM.model.norm_inputs_args_0.safetensors").unlink()
    assert f"layers.{layers - 1}.out" not in read_any(folder)


def test_with_the_config_heads_are_split_and_without_it_compared_joined(models, debugger):
    folder = debugger("files")
    joined, split = read_any(folder), read_any(folder, config=models["ple"].outline)
    name = "layers.2.self_attn.q_proj"
    reference = models["ple"].record(joined.meta["ids"])
    assert (joined.axes[name], split.axes[name]) == ("T NH", reference.axes[name])
    assert split[name].shape == reference[name].shape
    x, axes_x, y, axes_y = overlap.both(name, reference, joined)
    assert x.shape == y.shape
    assert axes_x == axes_y


def test_the_printed_tree_agrees_to_its_five_digits(models, debugger):
    dump = read_any(debugger("repr"))
    reference = models["moe"].record(dump.meta["ids"], EVERY)
    assert dump.meta["fidelity"] == "sampled"
    assert dump.meta["precision"] == "float32"
    assert {"layers.0.router.ids", "layers.0.experts", "layers.0.after_attention"} <= set(dump)
    assert failures(reference, dump) == []
    needs = max(needs for needs, _ in judged(reference, dump).values())
    bare = Dump(
        dump.meta | {"parts": {n: p | {"slack": None} for n, p in dump.meta["parts"].items()}}, dump.arrays, dump.axes
    )
    assert needs < 1e-5 < max(needs for needs, _ in judged(reference, bare).values())  # rounding is not held against it


def test_the_summary_alone_shows_a_lost_factor(models, debugger):
    folder = debugger("repr")
    dump = read_any(folder / "Gemma4ForCausalLM_debug_tree_SUMMARY.json")
    reference = models["moe"].record(make_fixtures.HF_IDS, EVERY)
    assert {"layers.0.experts", "layers.0.self_attn.o_proj", "lm_head"} <= set(dump)
    assert all(dump[name].size == 0 for name in dump)
    assert "layers.0.router.ids" not in dump  # without values and without statistics nothing is known
    assert failures(reference, dump) == []
    scaled = {name: reference[name] * np.float32(1.001) for name in dump}
    wrong = Dump(reference.meta, scaled, reference.axes)
    assert failures(wrong, dump) == list(dump)


def test_a_batch_is_refused(debugger):
    folder = debugger("files")
    for file in folder.glob("*_outputs.safetensors"):
        x = np.zeros((2, 4, 48), ml_dtypes.bfloat16)
        save_file({"data": x}, file)
    with pytest.raises(InputError, match=rf"{folder.name}: .*batch of 2"):
        read_any(folder)


def test_of_one_row_a_point_it_is_said_that_the_last_token_alone_was_compared(tmp_path):
    x = np.arange(20, dtype=np.float32).reshape(5, 4) + 1
    for name, rows in (("all", slice(None)), ("last", slice(4, 5))):
        np.savez(tmp_path / f"{name}.npz", **{"layers.0.out": x[rows], "layers.1.out": 2 * x[rows]})
    a, b = (read_any(tmp_path / f"{name}.npz") for name in ("all", "last"))
    found = diff(a, b)
    assert (found.verdict, len(found.points)) == ("same", 2)
    assert any("taken for the last of 5 tokens" in line for line in found.warnings)
    assert not any("taken for the last" in line for line in diff(a, a).warnings)


def test_points_of_ours_in_an_impossible_shape_are_told_with_that_shape(tmp_path):
    np.savez(tmp_path / "x.npz", **{"layers.0.out": np.zeros(4), "norm": np.zeros(4)})
    with pytest.raises(InputError, match=r"x\.npz: layers\.0\.out has the shape \[4\], not 'T D'"):
        read_any(tmp_path / "x.npz")


def test_log_probabilities_with_a_hole_are_refused_and_not_moved_to_another_token(tmp_path):
    rows = [None, {"7": -0.1}, {"8": -0.2}, {"9": -0.3}]
    record = {"prompt_token_ids": [2, 7, 8, 9]}
    path = tmp_path / "g.json"
    path.write_text("\ufeff" + json.dumps(record | {"prompt_logprobs": rows}))  # the mark of an editor on Windows
    assert read_any(path)["top_ids"].tolist() == [[7], [8], [9]]
    path.write_text(json.dumps(record | {"prompt_logprobs": [{"7": -0.1}, {"8": -0.2}, None, {"9": -0.3}]}))
    with pytest.raises(InputError, match=r"g\.json: .*amid the others is empty"):
        read_any(path)


def test_a_step_of_generate_is_refused(debugger):
    folder = debugger("files")
    save_file({"data": np.array([[7]])}, next(folder.glob("*layers.0_inputs_kwargs_position_ids.safetensors")))
    with pytest.raises(InputError, match="position 7"):
        read_any(folder)


# -- files of tensors --------------------------------------------------------------------------------------------------


def test_files_of_torch_save_are_read_without_torch(models, tmp_path):
    source = FIXTURES / "Pass00000.pt"
    dump = read_any(source, config=models["ple"].outline)
    assert "torch" not in {name.partition(".")[0] for name in dump.meta}
    names = [f"layers.1.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")]
    wanted = {"layers.0.mlp.down_proj", "layers.0.mlp.up_proj", "layers.1.out", "layers.1.input_layernorm"}
    assert set(dump) == wanted | set(names)
    heads = np.concatenate([dump[name].reshape(len(dump[name]), -1) for name in names], 1)
    with zipfile.ZipFile(source) as archive:  # torch keeps each tensor's numbers as one file, bit by bit
        stored = {archive.read(name) for name in archive.namelist() if "/data/" in name}
    for x in (heads, dump["layers.0.mlp.up_proj"].T, *(dump[name] for name in wanted - {"layers.0.mlp.up_proj"})):
        assert x.tobytes() in stored
    reference = models["ple"].record(dump.meta["ids"], EVERY)  # made where BLAS adds in another order
    for name in set(dump) - {"layers.0.mlp.down_proj"}:
        assert_close(reference[name], dump[name], what=name)
    rounded = dump["layers.0.mlp.down_proj"]
    assert rounded.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(rounded.astype(np.float32), reference["layers.0.mlp.down_proj"], 2**-8, 1e-6)


def test_fused_heads_without_the_config_are_named_as_unused(tmp_path):
    dump = read_any(FIXTURES / "Pass00000.pt")
    assert "model.layers.1.self_attn.qkv_proj" in dump.meta["unused"]
    assert "1 tensors are no point of ours" in summary(dump)


def test_sglang_s_file_names_carry_point_and_layer(tmp_path):
    name = "step=0___rank=0___dump_index=3___name=down___layer_id=0.pt"
    (tmp_path / name).write_bytes((FIXTURES / name).read_bytes())
    dump = read_any(tmp_path, map={"layers.{i}.down": "layers.{i}.mlp.down_proj"})
    assert list(dump) == ["layers.0.mlp.down_proj"]
    (tmp_path / name.replace("rank=0", "rank=1")).write_bytes((FIXTURES / name).read_bytes())
    with pytest.raises(InputError, match="2 ranks"):
        read_any(tmp_path, map={"layers.{i}.down": "layers.{i}.mlp.down_proj"})


def test_a_folder_of_npy_files_and_an_archive_read_alike(models, tmp_path):
    reference = models["ple"].record([0, 9, 8, 7], ["*.out", "*.k_rope", "logits"])
    theirs = {f"model.{name}": reference[name][None] for name in reference if not name.endswith("k_rope")}
    theirs |= {f"rotated_{i}": reference[f"layers.{i}.self_attn.k_rope"].transpose(1, 0, 2) for i in (0, 1)}
    rule = {"rotated_{i}": {"point": "layers.{i}.self_attn.k_rope", "transpose": [1, 0, 2]}}
    (tmp_path / "map.json").write_text(json.dumps(rule))
    (tmp_path / "folder").mkdir()
    for name, x in theirs.items():
        np.save(tmp_path / "folder" / f"{name}.npy", x)
    np.save(tmp_path / "folder" / "prompt_tokens.npy", [[0, 9, 8, 7]])
    np.savez(tmp_path / "plain.npz", input_ids=[0, 9, 8, 7], **theirs)
    np.savez_compressed(tmp_path / "small.npz", input_ids=[0, 9, 8, 7], **theirs)
    save_file({n: np.ascontiguousarray(x) for n, x in theirs.items()}, tmp_path / "bare.safetensors")
    for path in ("folder", "plain.npz", "small.npz", "bare.safetensors"):
        dump = read_any(tmp_path / path, map=tmp_path / "map.json")
        assert dump.meta.get("ids", [0, 9, 8, 7]) == [0, 9, 8, 7]
        assert set(reference) - set(dump) == {n for n in reference if n.endswith("k_rope")} - set(dump)
        for name in dump:
            assert np.array_equal(dump[name], reference[name]), (path, name)
            assert dump.axes[name] == reference.axes[name]


def test_layers_of_the_max_recipe_are_layer_outputs(models, tmp_path):
    reference = models["ple"].record([0, 9, 8, 7], ["*.out"])
    for i in range(models["ple"].config.text.num_hidden_layers):
        np.save(tmp_path / f"layer_{i:02}.npy", reference[f"layers.{i}.out"][None])
    np.save(tmp_path / "prompt_tokens.npy", [0, 9, 8, 7])
    dump = read_any(tmp_path, map="max")
    assert list(dump) == list(reference)
    assert dump.meta["ids"] == [0, 9, 8, 7]


LENS = {
    "self_attn.q_proj": "attn.q",
    "self_attn.k_norm": "attn.k_norm",
    "self_attn.o_proj": "attn.o",
    "input_layernorm": "ln1",
    "post_attention_layernorm": "ln1_post",
    "pre_feedforward_layernorm": "ln2",
    "mlp.up_proj": "mlp.in",
    "mlp.down_proj": "mlp.out",
    "post_feedforward_layernorm": "ln2_post",
}


def test_a_cache_of_transformerlens_is_read_without_a_map(models, tmp_path):
    reference = models["ple"].record([0, 9, 8, 7])
    theirs = {"embed.hook_out": "embed_tokens", "ln_final.hook_out": "norm", "unembed.hook_out": "lm_head"}
    for i in range(len(models["ple"].outline.layers)):
        there = {point: f"{name}.hook_out" for point, name in LENS.items() if f"layers.{i}.{point}" in reference}
        theirs |= {f"blocks.{i}.{name}": f"layers.{i}.{point}" for point, name in (there | {"out": "hook_out"}).items()}
    arrays = {name: reference[point][None] for name, point in theirs.items()}
    joined = {n: x.reshape(*x.shape[:2], -1) if n.endswith("attn.q.hook_out") else x for n, x in arrays.items()}
    others = {"blocks.0.attn.hook_pattern": np.zeros((1, 2, 4, 4)), "blocks.0.hook_in": arrays["embed.hook_out"]}
    np.savez(tmp_path / "lens.npz", input_ids=[0, 9, 8, 7], **joined, **others)
    dump = read_any(tmp_path / "lens.npz", config=models["ple"].outline)
    assert set(dump) == set(theirs.values())
    assert dump.meta["ids"] == [0, 9, 8, 7]
    for name in dump:
        assert np.array_equal(dump[name], reference[name]), name
        assert dump.axes[name] == reference.axes[name]


def test_a_cache_of_nnsight_is_read_by_its_outputs(models):
    reference = models["ple"].record([0, 9, 8, 7], ["layers.0.*", "norm"])
    entries = {f"model.model.{name.removesuffix('.out')}": x[None] for name, x in reference.items()}
    value = {name: {"inputs": [[x * 2], {}], "output": x} for name, x in entries.items()}
    value["model.model.layers.0"]["output"] = [reference["layers.0.out"][None], None]  # a module that returned a tuple
    found = dict(named_tensors(Path("cache.pt"), value | {"input_ids": np.array([0, 9, 8, 7])}))
    assert set(found) == {*entries, "input_ids"}
    for name in entries:
        assert np.array_equal(found[name], entries[name])
        assert ours(name) in reference


def test_bfloat16_survives_npy(tmp_path):
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "norm.npy", x)
    dump = read_any(tmp_path)
    assert np.array_equal(dump["norm"], x)
    assert dump.meta["precision"] == "bfloat16"


def test_our_own_dump_comes_back_as_it_was(models, tmp_path):
    reference = models["ple"].record([0, 9, 8, 7])
    reference.save(tmp_path / "ours.safetensors")
    dump = read_any(tmp_path / "ours.safetensors")
    assert dump.meta["coverage"] == reference.meta["coverage"]
    assert summary(dump) == ""


def test_a_dump_in_parts_can_be_saved_and_read_back(log, tmp_path):
    dump = read_any(log("llama_debug_ple"))
    dump.save(tmp_path / "parts.safetensors")
    back = read_dump(tmp_path / "parts.safetensors")
    assert back.meta["parts"] == dump.meta["parts"]
    assert list(back) == list(dump)


# -- what is known of a point ------------------------------------------------------------------------------------------


def partial(x, at, slack=None, **stats):
    block = x[np.ix_(*(range(n) if i is None else i for n, i in zip(x.shape, at, strict=True)))]
    meta = {"parts": {"p": {"shape": list(x.shape), "at": at, "slack": slack} | stats}, "ids": [0] * len(x)}
    return Dump(meta, {"p": block}, {"p": "T D"})


def whole(x, axes="T D"):
    return Dump({"ids": [0] * len(x)}, {"p": x}, {"p": axes})


def test_only_values_that_both_know_are_compared():
    x = np.random.default_rng(0).standard_normal((9, 20))
    y = x.copy()
    y[4, 10] += 5  # known to nobody
    a, b = partial(x, [[0, 1, 2, 6, 7, 8], None]), partial(y, [None, [0, 1, 2, 17, 18, 19]])
    assert overlap.measure("p", a, b).rel == 0
    y[1, 18] += 1
    m = overlap.measure("p", a, partial(y, [None, [0, 1, 2, 17, 18, 19]]))
    assert m.max_abs == pytest.approx(1)
    assert m.max_abs_at == [1, 18]
    assert (m.worst_token_at, m.worst_channel_at) == ([1], [18])


def test_nothing_known_in_common_is_not_measured():
    x = np.random.default_rng(0).standard_normal((9, 20))
    assert overlap.measure("p", partial(x, [[0], None]), partial(x, [[8], None])).rel is None


@given(st.integers(0, 2**32 - 1))
def test_rounding_to_four_decimals_alone_is_no_error_and_more_is(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4, 6)) * 10.0 ** rng.integers(-3, 3)
    at = [None, None]
    exact = partial(np.round(x, 4), at, {"abs": 5e-5})
    assert overlap.measure("p", whole(x), exact).rel < 1e-9
    beyond = partial(np.round(x + 3e-4, 4), at, {"abs": 5e-5})
    assert overlap.measure("p", whole(x), beyond).max_abs == pytest.approx(2.5e-4, rel=0.35)


@settings(max_examples=40)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32).filter(lambda v: abs(v) > 1e-30), min_size=1, max_size=20))
def test_five_digits_are_judged_as_five_digits(values):
    x = np.array([values])
    printed = np.array([[float(f"{v:.4e}") for v in values]])
    assert overlap.measure("p", whole(x), partial(printed, [None, None], {"digits": 4})).rel < 1e-12


def test_a_sum_shows_what_no_printed_value_does():
    x = np.random.default_rng(0).standard_normal((9, 50)).astype(np.float32)
    y = x.copy()
    y[4, 20] += 30  # in the middle, where nothing is printed
    at = [[0, 1, 2, 6, 7, 8], [0, 1, 2, 47, 48, 49]]
    total = float(np.cumsum(y, dtype=np.float32)[-1])
    assert overlap.measure("p", whole(x), partial(y, at, {"abs": 5e-5}, sum=total)).rel > 0.4
    assert overlap.measure("p", whole(y), partial(y, at, {"abs": 5e-5}, sum=round(total, 6))).rel == 0


def test_a_sum_that_is_not_finite_betrays_a_value_that_is_not():
    x = np.ones((9, 50))
    assert overlap.measure("p", whole(x), partial(x, [[0], [0]], sum=np.nan)).nonfinite == ("b",)


def test_joined_axes_are_split_as_the_other_side_has_them():
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    joined, apart = whole(x.reshape(3, 20), "T NH"), whole(x, "T N H")
    for a, b in ((joined, apart), (apart, joined)):
        assert overlap.measure("p", a, b).rel == 0
    other = whole(x.reshape(3, 20), "T KH")
    assert overlap.both("p", apart, other)[2].shape == (3, 20)  # other axes: left as they are


def test_a_part_of_joined_axes_is_compared_in_their_own_shape():
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    at = [[0, 2], [0, 1, 19]]
    sampled = partial(x.reshape(3, 20), at)
    sampled.axes["p"] = "T NH"
    assert overlap.measure("p", whole(x, "T N H"), sampled).rel == 0
    assert overlap.measure("p", whole(x + 0.1, "T N H"), sampled).rel > 0.01


def test_every_leaf_module_name_is_a_point_with_its_axes(models):
    for name in ("ple", "moe"):
        reference = models[name].record([0, 5, 9], EVERY)
        for point, axes in reference.axes.items():
            assert axes_of(point) == axes, point
            assert ours(f"Gemma4ForCausalLM.model.{point}") == ours(f"model.language_model.{point}") == point
    for name in ("layers.0.self_attn", "layers.0.mlp", "layers.0.mlp.act_fn", "model.layers.0.nonsense", "x", ""):
        assert ours(name) is None


# -- what must not be read ---------------------------------------------------------------------------------------------


def torch_zip(path, payload, storages=None, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", payload)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


class Rebuilt:
    """Pickles as a call of a global."""

    def __init__(self, module, name, *arguments):
        self.parts = module, name, arguments


def call(module, name, *arguments):
    """The opcodes of module.name(*arguments)."""
    packed = pickle.dumps(arguments, 2)[2:-1]
    return f"c{module}\n{name}\n".encode() + packed + b"R"


def tensor_pickle(shape, strides, key="0", size=6, offset=0, kind="FloatStorage"):
    """The pickle of one tensor, as torch.save writes it."""
    storage = b"(" + pickle.dumps("storage", 2)[2:-1] + f"ctorch\n{kind}\n".encode()
    storage += b"".join(pickle.dumps(x, 2)[2:-1] for x in (key, "cpu", size)) + b"tQ"
    rest = b"".join(pickle.dumps(x, 2)[2:-1] for x in (offset, shape, strides, False))
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"ccollections\nOrderedDict\n)RtR."


def named(pickled):
    """{"model.norm": ...} around a pickle."""
    return b"\x80\x02}" + pickle.dumps("model.norm", 2)[2:-1] + pickled[2:-1] + b"s."


def test_a_tensor_written_by_hand_is_read(tmp_path):
    data = np.arange(6, dtype=np.float32)
    path = torch_zip(tmp_path / "a.pt", named(tensor_pickle((2, 3), (3, 1))), {"0": data.tobytes()})
    assert np.array_equal(read_any(path)["norm"], data.reshape(2, 3))
    path = torch_zip(tmp_path / "b.pt", named(tensor_pickle((2, 3), (1, 2))), {"0": data.tobytes()})
    assert np.array_equal(read_any(path)["norm"], data.reshape(3, 2).T)


HOSTILE = {
    "os.system": named(b"\x80\x02" + call("os", "system", "touch /tmp/numgemma-was-here") + b"."),
    "builtins.eval": named(b"\x80\x02" + call("builtins", "eval", "1") + b"."),
    "another torch function": named(b"\x80\x02" + call("torch.storage", "_load_from_bytes", b"x") + b"."),
    "a tensor class": named(b"\x80\x02" + call("torch", "Tensor") + b"."),
    "OrderedDict of a list": named(b"\x80\x02" + call("collections", "OrderedDict", [(1, 2)]) + b"."),
    "inst": b"(ios\nsystem\n.",
    "newobj": b"\x80\x02cos\nsystem\n)\x81.",
    "extension": b"\x80\x02\x82\x01.",
    "a storage too short": named(tensor_pickle((1000, 1000), (1000, 1))),
    "a repeated value": named(tensor_pickle((10**6, 10**6), (0, 0))),
    "a negative stride": named(tensor_pickle((2, 3), (-3, 1))),
    "a negative size": named(tensor_pickle((-2, 3), (3, 1))),
    "an offset beyond": named(tensor_pickle((2, 3), (3, 1), offset=10**15)),
    "an impossible size": named(tensor_pickle((2**61, 3), (3, 1))),
    "a size that is no number": named(tensor_pickle(("2", 3), (3, 1))),
    "a missing storage": named(tensor_pickle((2, 3), (3, 1), key="../../0")),
    "an unknown storage": named(tensor_pickle((2, 3), (3, 1), kind="QInt8Storage")),
    "no end": b"\x80\x02}",
    "nothing": b"",
    "an empty stack": b"\x80\x02s.",
    "deep nesting": b"\x80\x02" + b"(" * 10000 + b"t" * 10000 + b".",
    "a key that is no name": b"\x80\x02}(K\x01)K\x02ts.",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_pickle_that_is_not_about_tensors_is_refused(what, tmp_path):
    path = torch_zip(tmp_path / "a.pt", HOSTILE[what], {"0": bytes(24)})
    with pytest.raises(InputError, match=r"a\.pt") as caught:
        read_any(path)
    assert len(str(caught.value)) < 500
    assert not Path("/tmp/numgemma-was-here").exists()


def test_a_zip_bomb_and_a_truncated_zip_are_refused(tmp_path):
    bomb = torch_zip(tmp_path / "bomb.pt", b"\x80\x02" + bytes(1 << 20), method=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="compressed"):
        read_any(bomb)
    data = (FIXTURES / "Pass00000.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="not a whole file"):
        read_any(tmp_path / "cut.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match="not a whole file"):
        read_any(tmp_path / "old.pt")


def test_an_npz_that_would_grow_is_refused(tmp_path, monkeypatch):
    from numgemma.debug.readers import tensors

    monkeypatch.setattr(tensors, "INFLATED", 1000)
    np.savez_compressed(tmp_path / "bomb.npz", norm=np.zeros((100, 100)))
    with pytest.raises(InputError, match="inflate"):
        read_any(tmp_path / "bomb.npz")


def test_an_npy_of_objects_or_of_giant_shape_is_refused(tmp_path):
    np.save(tmp_path / "norm.npy", np.array([{"a": 1}], object))
    with pytest.raises(InputError, match="no array of numbers"):
        read_any(tmp_path / "norm.npy")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000000), }"
    header = header.ljust(118 - 1) + b"\n"
    (tmp_path / "norm.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))
    with pytest.raises(InputError, match="no array of numbers"):
        read_any(tmp_path / "norm.npy")


def test_a_file_that_is_none_of_these_is_told_what_is_read(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF\0\0\0")
    (tmp_path / "notes.txt").write_text("hello")
    for path, word in ((tmp_path / "x.gguf", "llama-eval-callback"), (tmp_path / "notes.txt", "no tensor is printed")):
        with pytest.raises(InputError, match=word):
            read_any(path)
    with pytest.raises(InputError, match=r"npz|\.pt"):
        read_any(tmp_path)
    with pytest.raises(InputError, match="check the path"):
        read_any(tmp_path / "missing")


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ({"a": "nonsense"}, "no point of ours"),
        ({"a": {"to": "norm"}}, "object with a `point`"),
        ({"a": 5}, "object with a `point`"),
        ({"model.norm": {"point": "norm", "transpose": [0, 5]}}, "does not fit"),
    ],
)
def test_a_map_that_does_not_fit_is_named(rule, word, tmp_path):
    np.save(tmp_path / "model.norm.npy", np.ones((2, 3)))
    (tmp_path / "map.json").write_text(json.dumps(rule))
    with pytest.raises(InputError, match=word) as caught:
        read_any(tmp_path, map=tmp_path / "map.json")
    assert "map.json" in str(caught.value)


QUICK = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def survives(path):
    """Reads or refuses; nothing else."""
    try:
        read_any(path)
    except InputError as error:
        said = str(error)
    else:
        return
    assert path.name in said
    assert len(said) < 1000


@st.composite
def damaged(draw, data):
    """A file with some bytes changed, and perhaps cut."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 8))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(1, len(data)))]) if draw(st.booleans()) else bytes(data)


@QUICK
@given(damaged((FIXTURES / "Pass00000.pt").read_bytes()))
def test_a_damaged_file_of_torch_is_read_or_refused(tmp_path, data):
    (tmp_path / "a.pt").write_bytes(data)
    survives(tmp_path / "a.pt")


@QUICK
@given(damaged(named(tensor_pickle((2, 3), (3, 1)))))
@example(named(tensor_pickle((2, 3), (3, 1))).replace(b"ctorch._utils", b"c\\orch._utils"))  # an escape in a name
def test_a_damaged_pickle_is_read_or_refused(tmp_path, data):
    survives(torch_zip(tmp_path / "a.pt", data, {"0": bytes(24)}))


@QUICK
@given(st.data())
def test_a_damaged_log_is_read_or_refused(tmp_path, data):
    text = gzip.decompress((FIXTURES / "llama_debug_ple.txt.gz").read_bytes())
    start = text.index(b"l_out-5")
    (tmp_path / "a.txt").write_bytes(data.draw(damaged(text[start:])))
    survives(tmp_path / "a.txt")


TREES = st.recursive(
    st.none()
    | st.text(max_size=8)
    | st.integers()
    | st.sampled_from(["tensor([1.0e+00, ..., nan])", "torch.Size([3])"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["module_path", "inputs", "outputs", "children", "shape", "dtype", "value", "mean"]), inner
        )
    ),
    max_leaves=20,
)


@QUICK
@given(TREES)
def test_any_json_tree_is_read_or_refused(tmp_path, tree):
    (tmp_path / "x_debug_tree_FULL_TENSORS.json").write_text(json.dumps(tree))
    survives(tmp_path / "x_debug_tree_FULL_TENSORS.json")


@pytest.mark.hf
@pytest.mark.parametrize("use_repr", [True, False])
def test_a_live_run_of_the_debugger_reads_as_the_same(models, tmp_path, use_repr):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for name, model in (models | {"tiny": load("tiny")}).items():
        hf = transformers.Gemma4ForCausalLM.from_pretrained(model.checkpoint.folder, dtype=torch.float32)
        with transformers.model_addition_debugger_context(hf, debug_path=str(tmp_path / name), use_repr=use_repr):
            hf.forward(input_ids=torch.tensor([[0, 5, 300, 7, 7]]), use_cache=False)
        dump = read_any(tmp_path / name)
        assert len(dump) > 40
        assert failures(model.record(dump.meta["ids"], EVERY), dump) == []
