"""llama.cpp's own arithmetic: real runs of quantised files are hit to the last digits, and a planted fault is found."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from numgemma import load
from numgemma.cli import main
from numgemma.debug.blame.emulate import DIFFERS, MORE, NOISE, PROVEN, emulate, judged, point_of
from numgemma.debug.noise.rounding import half_away, partner, q8_0, q8_k, rounded_as
from numgemma.debug.readers import read_any
from numgemma.dump import Dump
from numgemma.errors import InputError

FOLDER = Path(__file__).parent / "fixtures/gguf"
CLEAN = {"ple-Q4_K_M": "llama.cpp-f32", "moe-Q5_K_M": "llama.cpp-f32", "moe-Q4_0.halves": "llama.cpp"}
FAULTY = "ple-Q4_K_M.faulty"  # the weight of layer 2's pre_feedforward_layernorm is 1.3 times what it should be


def file_of(run):
    return FOLDER / f"{run.partition('.')[0]}.gguf"


def ids_of(run):
    return np.fromfile(FOLDER / f"llamacpp-{run}-tokens.bin", np.int32).tolist()


def log_of(run, folder, model):
    path = folder / f"{run}.txt"
    path.write_bytes(gzip.decompress((FOLDER / f"{run}.txt.gz").read_bytes()))
    return read_any(path, config=model.outline)


@pytest.mark.parametrize(("run", "engine"), CLEAN.items())
def test_a_right_run_is_proven_by_its_logits(run, engine):
    found = emulate(load(file_of(run)), read_any(FOLDER / f"llamacpp-{run}.bin"), engine=engine)
    assert found.state == PROVEN, found.verdict
    assert found.points[0].nearest < 1e-6
    assert found.points[0].spread > 1e-3  # another right run is percents away


@pytest.mark.parametrize(("run", "engine"), CLEAN.items())
def test_a_right_run_is_proven_at_every_point_that_it_prints(run, engine, tmp_path):
    model = load(file_of(run))
    found = emulate(model, log_of(run, tmp_path, model), ids_of(run), engine, MORE)  # eight are too few on some BLAS
    assert found.state == PROVEN, found.verdict
    assert len(found.points) > 50


def test_a_planted_fault_is_found_where_it_was_planted(tmp_path):
    model = load(file_of(FAULTY))
    found = emulate(model, log_of(FAULTY, tmp_path, model), ids_of(FAULTY), "llama.cpp-f32")
    assert found.state == DIFFERS
    assert "at layers.2.pre_feedforward_layernorm: 0.3" in found.verdict


def test_one_run_that_is_not_hit_is_judged_by_the_spread_of_right_ones():
    run = "ple-Q4_K_M"
    dump = read_any(FOLDER / f"llamacpp-{run}.bin")
    found = emulate(load(file_of(run)), dump, engine="llama.cpp-f32", runs=1)
    assert found.state in (PROVEN, DIFFERS)  # one run has no spread
    wrong = emulate(load(file_of(run)), dump, engine="llama.cpp")  # it ran with another cache
    assert wrong.state == NOISE
    assert "right runs differ by" in wrong.verdict


def test_q8_0_by_a_plain_loop():
    x = np.random.default_rng(0).normal(0, 2, (3, 70)).astype(np.float32)
    x[1, 32:64] = 0
    y = np.zeros((3, 96), np.float32)
    for r in range(3):
        for b in range(0, 96, 32):
            block = np.zeros(32, np.float32)
            block[: max(0, min(32, 70 - b))] = x[r, b : b + 32]
            d = np.float32(np.abs(block).max() / np.float32(127))
            for i, value in enumerate(block):
                scaled = value * (np.float32(1) / d) if d else np.float32(0)
                code = np.sign(scaled) * np.floor(abs(scaled) + np.float32(0.5))
                y[r, b + i] = np.float32(code) * np.float32(np.float16(d))
    np.testing.assert_array_equal(q8_0(x), y[:, :70])


def test_q8_k_keeps_the_largest_number_of_a_block_exactly():
    x = np.random.default_rng(1).normal(size=(4, 512)).astype(np.float32)
    y = q8_k(x)
    for row, kept in zip(x.reshape(-1, 256), y.reshape(-1, 256), strict=True):
        at = np.abs(row).argmax()
        assert abs(kept[at] / row[at] - 1) < 1e-6
        assert np.abs(kept - row).max() <= abs(row[at]) / 127 * 0.501
    assert not q8_k(np.zeros((2, 256), np.float32)).any()


def test_halves_go_away_from_zero():
    np.testing.assert_array_equal(half_away(np.float32([0.5, 1.5, -0.5, -2.5, 2.4])), [1, 2, -1, -3, 2])


def test_weights_of_floats_round_what_enters_to_their_own_width_and_wide_ones_nothing():
    x = np.float32([[1.00048828125, 1.001]])
    assert partner("float32") is None
    np.testing.assert_array_equal(partner("float16")(x), x.astype(np.float16).astype(np.float32))
    assert (partner("bfloat16")(x) == 1).all()


def test_outside_of_it_nothing_is_rounded():
    model = load(file_of("moe-Q4_0.halves"))
    before = model.logits([2, 30, 44])
    with rounded_as("llama.cpp"):
        inside = model.logits([2, 30, 44])
    np.testing.assert_array_equal(model.logits([2, 30, 44]), before)
    assert np.abs(inside - before).max() > 1e-4


def test_what_cannot_be_compared_is_one_sentence():
    model = load(file_of("moe-Q5_K_M"))
    dump = read_any(FOLDER / "llamacpp-moe-Q5_K_M.bin")
    with pytest.raises(InputError, match="not known"):
        emulate(model, dump, engine="abacus")
    nameless = Dump({"precision": "float32"}, {"x": np.ones((2, 3), np.float32)}, {"x": "T V"})
    with pytest.raises(InputError, match="--ids"):
        emulate(model, nameless)
    with pytest.raises(InputError, match="No point"):
        emulate(model, nameless, [2, 3], runs=1)


def test_the_verb_says_it_writes_it_and_exits_with_it(tmp_path, capsys):
    run = "moe-Q5_K_M"
    args = ["emulate", str(file_of(run)), str(FOLDER / f"llamacpp-{run}.bin"), "--engine", CLEAN[run]]
    assert main([*args, "--json", str(tmp_path / "e.json")]) == 0
    assert "the engine is right on this file" in capsys.readouterr().out
    found = json.loads((tmp_path / "e.json").read_text())
    assert (found["schema"], found["state"]) == ("numgemma.emulate/1", "proven")


def test_a_dump_with_a_nan_is_proven_by_no_run():
    model = load(file_of("moe-Q5_K_M"))
    ids = ids_of("moe-Q5_K_M")
    with rounded_as("llama.cpp-f32"):
        dump = model.record(ids, ["norm", "logits"])
    assert emulate(model, dump, engine="llama.cpp-f32", runs=2).state == PROVEN
    dump["norm"][3, 5] = np.nan
    found = emulate(model, dump, engine="llama.cpp-f32", runs=2)
    assert found.state == DIFFERS
    assert "norm" in found.verdict
    assert found.to_json()["points"][0]["nearest"] is None


def point(tokens):
    return Dump({"precision": "float32"}, {"norm": np.float32(tokens)}, {"norm": "T D"})


def test_a_loud_first_token_hides_no_error_in_another():
    tokens = np.random.default_rng(0).normal(size=(5, 64))
    tokens[0] *= 1e4  # as the stream of a first token is
    runs = [point(tokens * (1 + 1e-7 * i)) for i in range(3)]
    assert judged("x", (point_of("norm", runs, point(tokens), 3),), runs).state == PROVEN
    tokens[3] *= 1.001
    found = judged("x", (point_of("norm", runs, point(tokens), 3),), runs)
    assert found.points[0].nearest < 1e-6  # of the whole
    assert found.state == DIFFERS
    assert found.verdict.startswith("no run of 3 comes near at norm, in one token: 0.001, where right runs differ by")


def test_decimals_that_a_quiet_token_does_not_have_are_no_error_of_it():
    tokens = np.random.default_rng(0).normal(size=(5, 64))
    tokens[2] *= 0.01
    runs, printed = [point(tokens)], point(tokens.round(4))
    printed.meta["fidelity"] = "rounded:4dp"
    assert point_of("norm", runs, printed, 1).token_rel[0] < 0.2 * 1e-4 / 12**0.5 / 0.01
    printed.arrays["norm"][2] *= 1.02
    assert point_of("norm", runs, printed, 1).token_rel[0] > 5e-3


def test_a_proof_says_how_far_it_goes_and_counts_no_point_of_too_few_digits():
    model = load(file_of("moe-Q5_K_M"))
    with rounded_as("llama.cpp-f32"):
        dump = model.record(ids_of("moe-Q5_K_M"), ["layers.0.out", "layers.1.out"])
    found = emulate(model, dump, engine="llama.cpp-f32", runs=1)
    assert found.verdict.startswith("the engine is right on this file as far as layers.1.out: run 1 of 1 has")
    assert found.verdict.endswith("at all 2 points")
    coarse = {"shape": list(dump["layers.1.out"].shape), "at": [None, None], "slack": {"abs": 10.0}}
    rough = Dump(dump.meta | {"parts": {"layers.1.out": coarse}}, dump.arrays, dump.axes)
    found = emulate(model, rough, engine="llama.cpp-f32", runs=1)
    assert [p.name for p in found.points] == ["layers.0.out"]
    assert "as far as layers.0.out" in found.verdict
