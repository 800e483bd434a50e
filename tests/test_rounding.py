"""Engines that round what enters a product: a precision of every verb; right runs pass, planted faults are found."""

import gzip
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from numgemma import load, ops, read_dump
from numgemma.cli import main as verb
from numgemma.debug.blame.doctor import ENGINE, NOISE, doctor
from numgemma.debug.blame.replay import replay
from numgemma.debug.blame.whatif import whatif
from numgemma.debug.compare.diff import diff
from numgemma.debug.compare.result import FAULT, SUSPECT
from numgemma.debug.faults import applied
from numgemma.debug.measure.precision import EPS, PAIRS, TOLERANCES, dtype_of, in_full, of_run, rounding_of
from numgemma.debug.noise.floor import measure_floor, read_floor
from numgemma.debug.noise.perturb import perturbed
from numgemma.debug.noise.rounding import as_run, fp8_token, int8_token, nearest, rounded_as, some_other_way
from numgemma.debug.readers import read_any
from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.weights.safetensors import open_safetensors

FOLDER = Path(__file__).parent / "fixtures/gguf"
FILE = FOLDER / "ple-Q4_K_M.gguf"
IDS = np.fromfile(FOLDER / "llamacpp-ple-Q4_K_M-tokens.bin", np.int32).tolist()
F32, HALVES = "float32:llama.cpp-f32", "float32:llama.cpp"


@pytest.fixture(scope="module")
def model():
    return load(FILE)


@pytest.fixture(scope="module")
def truth(model):
    return replace(model, dtype=np.dtype("float64")).record(IDS)


@pytest.fixture(scope="module")
def floors(model):
    return {precision: measure_floor(model, IDS, precision) for precision in (F32, HALVES)}


def engine_run(model, seed, *faults, rounding="llama.cpp-f32", turned=False):
    """A run that rounds as the engine does, with noise that the debugger does not draw; turned: and other codes."""
    ways = some_other_way(np.random.default_rng(1000 + seed)) if turned else nearest
    with perturbed(1000 + seed), rounded_as(rounding, ways), applied(model, *faults):
        return as_run(model.record(IDS), precision=rounding)


def main(args):
    return verb([str(arg) for arg in args])


def log(run, folder):
    """What the real llama.cpp printed."""
    path = folder / f"{run}.txt"
    path.write_bytes(gzip.decompress((FOLDER / f"{run}.txt.gz").read_bytes()))
    return path


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path / "cache"))


# -- what a precision is


def test_a_precision_may_be_a_pair_of_which_each_half_is_known():
    assert in_full("llama.cpp") == HALVES
    assert in_full("int8") == "bfloat16:int8"  # as engines run it
    assert in_full(F32) == F32
    assert in_full("bfloat16") == "bfloat16"
    assert (dtype_of(HALVES), rounding_of(HALVES)) == (np.float32, "llama.cpp")
    assert (dtype_of("bfloat16").name, rounding_of("bfloat16")) == ("bfloat16", "")
    for pair in PAIRS:
        assert EPS[pair] == EPS[dtype_of(pair).name]
        assert TOLERANCES[pair].rel > TOLERANCES["bfloat16"].rel
    with pytest.raises(InputError, match=r"'abacus' is not known; known are float64, .*llama.cpp"):
        in_full("abacus")


def test_a_run_of_llama_on_a_file_of_codes_rounds_its_inputs_and_no_other_run_does(model, models):
    printed = read_any(FOLDER / "llamacpp-ple-Q4_K_M.bin")
    assert of_run(as_run(printed, model)) == HALVES
    assert as_run(printed, models["dense"]) is printed  # its weights are no codes
    assert as_run(printed) is printed
    ours = model.record(IDS, ["logits"])
    assert as_run(ours, model) is ours
    told = as_run(printed, model, "llama.cpp-f32")
    assert as_run(told, model) is told  # what somebody has said stays
    plain = as_run(printed, model, "float32")
    assert as_run(plain, model) is plain
    assert told["logits"] is printed["logits"]


# -- runs that are right


@pytest.mark.parametrize("rounding", ["llama.cpp", "llama.cpp-f32"])
@pytest.mark.parametrize("seed", range(3))
def test_a_right_run_with_codes_turned_is_noise_and_far_from_plain_float32(model, truth, floors, seed, rounding):
    run = engine_run(model, seed, rounding=rounding, turned=True)
    found = diff(truth, run, floor=floors[in_full(rounding)])
    assert (found.verdict, found.count(FAULT)) == ("same", 0), found.first
    assert diff(truth, run).verdict == "same"  # by the table too
    assert diff(truth, as_run(run, precision="float32")).verdict == "differs"


@pytest.mark.parametrize("seed", range(3))
def test_no_step_of_a_right_run_is_wrong_and_each_is_known_better_than_one_code(model, seed, cache):
    found = replay(model, engine_run(model, seed))
    assert (found.first, found.exit_code) == (None, 0), found.verdict
    assert not [s.name for s in found.points if s.state == FAULT], found.verdict
    assert len([s.name for s in found.points if s.state == SUSPECT]) <= 1, found.verdict  # none, on most BLAS
    exact = [s for s in found.points if s.name.endswith(("q_proj", "gate_proj", "o_proj", "lm_head"))]
    assert max(s.rel for s in exact) < 1e-5  # what enters is the dump's own: no code turns
    plain = replay(model, as_run(engine_run(model, seed), precision="float32"))
    assert plain.exit_code == 1  # without the engine's rounding nearly every product is wrong


def test_a_run_of_outputs_of_layers_alone_has_steps_in_which_codes_turn(model, cache):
    for seed in range(3):
        run = engine_run(model, seed)
        few = Dump(run.meta, {n: x for n, x in run.items() if n.endswith(".out") or n == "logits"}, run.axes)
        found = replay(model, few)
        assert not [s.name for s in found.points if s.state == FAULT], found.verdict


def test_a_run_that_an_emulation_has_is_proven_and_the_proof_is_said(model, cache):
    with rounded_as("llama.cpp-f32"):
        run = as_run(model.record(IDS), precision="llama.cpp-f32")
    found = replay(model, run)
    assert found.proven
    assert found.exit_code == 0
    assert found.first is None
    assert "the engine is right on this file: run 1 of 8 has its numbers" in found.verdict
    assert "Nothing to explain: the engine is right" in whatif(model, run).verdict


def test_a_step_that_no_emulation_compares_is_judged_though_all_others_are_proven(cache):
    model = load(FOLDER / "moe-Q4_0.gguf")
    with rounded_as("llama.cpp-f32"):
        run = as_run(model.record(IDS), precision="llama.cpp-f32")
    name = "layers.0.router.ids"
    absent = np.setdiff1d(np.arange(model.outline.layers[0].E), run[name][4])[0]
    run.arrays[name] = run[name].copy()
    run.arrays[name][4, 0] = absent
    found = replay(model, run)
    assert not found.proven
    assert (found.first, found.exit_code) == (name, 1)


@pytest.mark.parametrize(("run", "words"), [("ple-Q4_K_M", ["--precision", "llama.cpp-f32"]), ("moe-Q4_0.halves", [])])
def test_doctor_calls_a_real_clean_run_right(run, words, tmp_path, capsys, cache):
    file = FOLDER / f"{run.partition('.')[0]}.gguf"
    ids = np.fromfile(FOLDER / f"llamacpp-{run}-tokens.bin", np.int32).tolist()
    args = ["doctor", file, log(run, tmp_path), "--ids", ",".join(map(str, ids)), *words]
    assert main([*args, "--html", tmp_path / "page.html"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The engine is right on this file as far as lm_head: run" in said
    assert (tmp_path / "page.html").stat().st_size > 10_000


# -- runs that are wrong


def test_doctor_finds_the_fault_that_was_planted_in_a_real_run(tmp_path, capsys, cache):
    run = "ple-Q4_K_M.faulty"  # the weight of layer 2's pre_feedforward_layernorm is 1.3 times what it should be
    args = ["doctor", FILE, log(run, tmp_path), "--ids", ",".join(map(str, IDS)), "--precision", "llama.cpp-f32"]
    assert main(args) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "layers.2.pre_feedforward_layernorm" in said.partition("It shows in")[0]
    assert "right on this file" not in said


@pytest.mark.parametrize("fault", ["T02", "T04", "T12"])
def test_a_planted_fault_is_localised_and_named_under_the_rounding(model, truth, floors, fault, cache):
    run = engine_run(model, 0, fault)
    found = whatif(model, run)
    assert fault in [name for c in found.candidates for name in c.faults], found.verdict
    assert found.replay.first is not None
    assert diff(truth, run, floor=floors[F32]).verdict == "differs"


def test_doctor_says_of_a_planted_fault_what_it_is_and_asks_for_the_engines_own_runs_once(model, cache):
    asked = []
    found = doctor(model, engine_run(model, 1, "T12"), told=asked.append)
    assert found.kind == ENGINE
    assert "layer_scalar" in found.cause
    runs = [text for text in asked if text and text.startswith(f"{F32}, run ")]
    assert len(runs) == len(set(runs)) == 11


def test_doctor_calls_a_right_run_noise_where_no_emulation_has_it(model, cache):
    found = doctor(model, engine_run(model, 2, turned=True))
    assert found.kind == NOISE, found.says
    assert "right on this file" not in found.says


# -- weights of codes on other engines


def test_int8_by_a_plain_loop():
    x = np.random.default_rng(0).normal(0, 3, (4, 50)).astype(np.float32)
    x[2] = 0
    for row, y in zip(x, int8_token(x), strict=True):
        scale = np.float32(np.abs(row).max() / np.float32(127))
        for value, rounded in zip(row, y, strict=True):
            code = 0.0 if scale == 0 else float(np.rint(value / scale))
            assert rounded == np.float32(code) * scale
            assert abs(code) <= 127


def test_fp8_keeps_four_binary_digits_of_each_number_under_the_scale_of_its_token():
    x = np.random.default_rng(1).normal(0, 3, (4, 200)).astype(np.float32)
    x[2] = 0
    y = fp8_token(x)
    assert not y[2].any()
    x, y = np.delete(x, 2, 0), np.delete(y, 2, 0)
    largest = np.abs(x).max(-1, keepdims=True)
    assert (np.abs(y - x) <= np.maximum(np.abs(x) * 2**-4, largest / 448 * 2**-10) * 1.0001).all()
    assert np.abs(y - x).max() > np.abs(x).max() * 2**-7  # and no more
    at = np.abs(x).argmax(-1)
    np.testing.assert_allclose(
        np.take_along_axis(y, at[:, None], -1), np.take_along_axis(x, at[:, None], -1), rtol=1e-6
    )


@pytest.fixture(scope="module", params=["int8", "fp8"])
def coded(request, tmp_path_factory):
    """A checkpoint with weights of that kind, and its rounding."""
    folder = tiny.write(tmp_path_factory.mktemp(request.param), tiny.DENSE)
    found = {}
    for name, x in load_file(folder / "model.safetensors").items():
        if x.ndim != 2 or "embed" in name:
            found[name] = x
            continue
        most = 127 if request.param == "int8" else 448
        w = np.asarray(x, np.float32)
        scale = np.abs(w).max(-1, keepdims=True) / most
        codes = np.rint(w / scale).astype(np.int8) if most == 127 else (w / scale).astype(ml_dtypes.float8_e4m3fn)
        found |= {name: codes, f"{name}_scale": scale.astype(np.float32)}
    save_file(found, folder / "model.safetensors")
    return load(folder), request.param


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_codes_times_codes_are_their_own_integers(coded, dtype):
    model, rounding = coded
    w = model.weights["layers.0.mlp.gate_proj.weight"]
    x = np.random.default_rng(2).normal(size=(5, w.shape[1])).astype(dtype)
    rounded = (int8_token if rounding == "int8" else fp8_token)(x.astype(np.float32)).astype(np.float64)
    with rounded_as(rounding):
        y = ops.linear(x, w)
    assert y.dtype == x.dtype
    want = rounded @ np.asarray(w, np.float64).T
    np.testing.assert_allclose(y.astype(np.float64), want, rtol=0, atol=float(EPS[dtype]) * 4 * np.abs(want).max())


def test_a_scale_that_the_file_has_for_all_tokens_takes_the_place_of_each_token_s_own(coded, tmp_path, cache):
    model, rounding = coded
    folder, name = model.checkpoint.folder, "layers.0.mlp.gate_proj"
    stored = {key: np.array(x) for key, x in open_safetensors(folder / "model.safetensors").tensors.items()}
    key = next(key for key in stored if key.endswith(f"{name}.weight"))
    save_file(stored | {key.replace("weight", "input_scale"): np.float32([0.01])}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    static = load(tmp_path)
    w = static.weights[f"{name}.weight"]
    x = np.random.default_rng(2).normal(size=(5, w.shape[1])).astype(np.float32)
    x[1] *= 100  # beyond all codes
    want = np.empty_like(x)
    for t, i in np.ndindex(*x.shape):
        code = x[t, i] / np.float32(0.01)
        if rounding == "int8":
            want[t, i] = max(-128, min(127, round(float(code)))) * np.float32(0.01)
        else:
            want[t, i] = np.float32(ml_dtypes.float8_e4m3fn(max(-448, min(448, code)))) * np.float32(0.01)
    with rounded_as(rounding):
        y, own = ops.linear(x, w), ops.linear(x, model.weights[f"{name}.weight"])
    np.testing.assert_allclose(y, want @ np.asarray(w).T, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    assert np.abs(y - own).max() > 1e-3
    np.testing.assert_array_equal(ops.linear(x, w), ops.linear(x, model.weights[f"{name}.weight"]))  # elsewhere nothing


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_their_right_runs_are_noise_and_a_planted_fault_is_named(coded, dtype, cache):
    model, rounding = coded
    precision, ids = f"{dtype}:{rounding}", [2, 30, 44, 9, 108, 77, 21, 3, 5, 12, 60, 31]
    twin = replace(model, dtype=dtype_of(precision))
    with perturbed(99), rounded_as(rounding):
        right = as_run(twin.record(ids), precision=precision)
        with applied(twin, "T12"):
            wrong = as_run(twin.record(ids), precision=precision)
    truth = replace(model, dtype=np.dtype("float64")).record(ids)
    assert diff(truth, right, floor=measure_floor(model, ids, precision)).verdict == "same"
    assert not [s.name for s in replay(model, right).points if s.state == FAULT]
    assert "T12" in [name for c in whatif(model, wrong).candidates for name in c.faults]


# -- the verbs


def test_dump_writes_a_run_of_it_and_says_the_pair(tmp_path, capsys, cache):
    out, ids = tmp_path / "a.safetensors", ",".join(map(str, IDS))
    assert main(["dump", FILE, "--ids", ids, "--precision", "llama.cpp", "-o", out]) == 0
    assert read_dump(out).meta["precision"] == HALVES
    assert main(["doctor", FILE, out]) == 0
    assert "right on this file" in " ".join(capsys.readouterr().out.split())
    for name in ("replay", "whatif"):
        assert main([name, FILE, out]) == 0
        assert "right on this file" in capsys.readouterr().out
    assert main(["replay", FILE, out, "--precision", "abacus"]) == 2
    assert "'abacus' is not known" in capsys.readouterr().err


def test_floor_measures_it_and_says_whether_the_dump_is_hit(tmp_path, capsys, cache):
    dump, out = FOLDER / "llamacpp-ple-Q4_K_M.bin", tmp_path / "floor.json"
    assert main(["floor", FILE, dump, "--precision", "llama.cpp-f32", "-o", out]) == 0
    said = capsys.readouterr().out
    assert f"The floor of {F32}" in said
    assert "the engine is right on this file: run" in said
    assert read_floor(out).precision == F32
    assert not [path for path in (tmp_path / "cache").iterdir() if ":" in path.name]


def test_diff_says_that_the_engine_is_right_and_compares_it_with_a_all_the_same(tmp_path, capsys, cache):
    a, b = tmp_path / "truth.safetensors", FOLDER / "llamacpp-ple-Q4_K_M.bin"
    assert main(["dump", FILE, "--ids", ",".join(map(str, IDS)), "--precision", "float64", "-o", a]) == 0
    assert main(["diff", a, b, "--points", "logits"]) == 1  # as it was: percents off
    capsys.readouterr()
    args = ["diff", a, b, "--points", "logits", "--ckpt", FILE, "--precision", "llama.cpp-f32"]
    assert main(args) == 0
    said = capsys.readouterr().out
    assert "the engine is right on this file: run" in said
    assert "SAME" in said
    assert main([*args, "--floor", "auto"]) == 0
    wrong = read_dump(a)
    wrong.arrays["logits"] = 1.3 * wrong["logits"]
    wrong.save(a)
    capsys.readouterr()
    assert main(args) == 1
    assert "the engine is right on this file: run" in capsys.readouterr().out


def test_diff_without_a_checkpoint_goes_by_the_floor_of_that_precision(model, truth, floors, tmp_path, capsys, cache):
    a, b, floor = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "floor.json"))
    truth.save(a)
    engine_run(model, 0).save(b)
    floors[F32].save(floor)
    assert main(["diff", a, b, "--floor", floor]) == 0
    assert F32 in capsys.readouterr().out
    assert main(["diff", a, b, "--floor", floor, "--precision", "llama.cpp"]) == 2
    assert "measure one with `numgemma floor --precision float32:llama.cpp`" in capsys.readouterr().err
