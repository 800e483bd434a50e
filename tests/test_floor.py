"""The noise floor, and what a comparison under it says: noise is no fault, damage is, however small a part it hits."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tiny

from numgemma import load, ops
from numgemma.cli import main
from numgemma.debug.blame.replay import replay
from numgemma.debug.compare.diff import diff, render, verdict
from numgemma.debug.compare.name_map import NameMap, parse_map
from numgemma.debug.compare.scoring import bench, least_error
from numgemma.debug.measure import metrics
from numgemma.debug.measure.precision import EPS, TOLERANCES, of_run
from numgemma.debug.noise import floor as floors
from numgemma.debug.noise.floor import Floor, Noise, cached_floor, measure_floor, read_floor
from numgemma.debug.noise.perturb import jitter, perturbed
from numgemma.dump import Dump, hashes, new_meta
from numgemma.errors import InputError, NonFiniteError
from numgemma.ops import definitions
from numgemma.prompt.media import read_media

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import calibration

TOKENS = 16


def recorded(model, precision, seed=None, tokens=TOKENS):
    """One run; seed: with perturbed rounding."""
    run, ids = replace(model, dtype=np.dtype(precision)), tiny.prompt(tiny.TEXT, tokens)
    if seed is None:
        return run.record(ids)
    with perturbed(seed):
        return run.record(ids)


@pytest.fixture(scope="module")
def measured(models):
    """Floors by (checkpoint, precision), measured when they are first asked for."""
    found: dict = {}

    def get(name, precision):
        if (name, precision) not in found:
            found[name, precision] = measure_floor(models[name], tiny.prompt(tiny.TEXT, TOKENS), precision)
        return found[name, precision]

    return get


def changed(dump, name, change):
    """A dump in which one tensor is changed in place."""
    x = np.array(dump[name])
    change(x)
    return Dump(dump.meta, dict(dump) | {name: x}, dump.axes)


def state(a, b, name, floor):
    return next(p for p in diff(a, b, floor=floor).points if p.name == name)


# -- runs that are right ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dense", "ple", "moe"])
@pytest.mark.parametrize(("a", "b"), [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")])
def test_two_right_runs_differ_by_noise_alone(models, measured, name, a, b):
    found = diff(recorded(models[name], a), recorded(models[name], b, seed=77), floor=measured(name, b))
    assert found.verdict == "same"
    assert found.count("FAULT", "UNMEASURED", "NON-FINITE", "NOT COMPARABLE") == 0
    assert found.count("SUSPECT") <= 0.02 * len(found.points)


def test_a_run_is_bit_exact_with_itself_under_a_floor(models, measured):
    a = recorded(models["moe"], "bfloat16")
    found = diff(a, a, floor=measured("moe", "bfloat16"))
    assert {p.state for p in found.points} == {"BIT-EXACT"}


def test_the_calibration_in_the_repository_has_no_false_alarm():
    """Remake it: python benchmarks/calibration.py --hf"""
    tree = json.loads((Path(__file__).parents[1] / "benchmarks" / "calibration.json").read_text())
    total = tree["clean, all"]
    assert total["pairs"] >= 400
    assert total["states"].get("FAULT", 0) == 0
    assert total["states"].get("SUSPECT", 0) < 0.01 * sum(total["states"].values())
    assert total["pairs with a SUSPECT or FAULT"] < 0.05 * total["pairs"]
    assert any("sdpa" in kind for kind in tree["clean"])
    assert any("vanishing" in kind for kind in tree["clean"])
    for kind, found in tree["damaged"].items():
        assert set(found["states"]) <= {"FAULT", "SUSPECT", "INHERITED"}, kind
        assert found["states"].get("INHERITED", 0) <= 1, "a token that had chosen other experts for noise hides damage"
        assert found["states"]["FAULT"] >= 10, kind


def test_the_calibration_has_tokens_that_vanish_beside_the_others_and_no_false_alarm_for_them(tmp_path):
    for name, model, ids in calibration.vanishing(tmp_path):
        exact = calibration.record(model, ids, "float32")
        rows = {n: np.linalg.norm(x.astype(np.float64), axis=1) for n, x in exact.items() if exact.axes[n] == "T D"}
        assert min(sizes.min() / sizes.max() for sizes in rows.values()) < 1e-6, name
        floor = measure_floor(model, ids, "float32")
        for seed in (100, 101):
            found = diff(exact, calibration.record(model, ids, "float32", seed), floor=floor)
            assert found.count("FAULT") == 0, (name, found.first)
    narrow, floor = calibration.record(model, ids, "bfloat16"), measure_floor(model, ids, "bfloat16")
    for seed in (100, 104):
        found = diff(narrow, calibration.record(model, ids, "bfloat16", seed), floor=floor)
        assert found.count("FAULT") == 0, "a token of the reference that came out small by chance"


@pytest.mark.hf
@pytest.mark.parametrize(("precision", "how"), [("float32", "eager"), ("bfloat16", "eager"), ("bfloat16", "sdpa")])
@pytest.mark.parametrize("name", ["dense", "moe", "ple"])
def test_transformers_differs_by_noise_alone(models, measured, monkeypatch, name, precision, how):
    pytest.importorskip("transformers")
    from numgemma.debug.capture import hooks as capture

    original = capture.load_hf

    def load_hf(*args, **kwargs):
        hf = original(*args, **kwargs)
        hf.set_attn_implementation(how)
        return hf

    monkeypatch.setattr(capture, "load_hf", load_hf)
    ids = tiny.prompt(tiny.TEXT, TOKENS)
    theirs = Dump(capture.describe(models[name], ids, precision))
    capture.capture(models[name], ids, theirs, precision)
    for reference in ("float32", precision):
        found = diff(recorded(models[name], reference), theirs, floor=measured(name, precision))
        assert found.verdict == "same", verdict(found)
        assert found.count("FAULT") == 0
        assert found.count("SUSPECT") <= 0.02 * len(found.points)


# -- damage -----------------------------------------------------------------------------------------------------------


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rounded(x, precision, rng):
    """x with one perturbed rounding."""
    y = x.astype(precision)
    return jitter(y, rng) if precision != "float32" else (y * (1 + 6e-8 * rng.standard_normal(x.shape))).astype("f4")


def made_floor(x, precision, axes="T D"):
    """The floor of one tensor whose only error is one rounding."""
    rng = np.random.default_rng(5)
    row = TOLERANCES[precision].channel_floor
    found = [metrics.measure(x, rounded(x, precision, rng), axes, row) for _ in range(8)]
    return Floor(precision, {"config": "c"}, list(range(len(x))), 8, {"x": floors.noise(map(metrics.gated, found))})


def single(x, precision="float32", axes="T D"):
    meta = new_meta("numgemma", "0", {"config": "c"}, range(len(x)), precision)
    return Dump(meta, {"x": x}, {"x": axes})


def massive(x):
    """One channel three hundred times larger than the others, as Gemma's residual streams have."""
    y = x.copy()
    y[:, 77] *= 300
    return y


DAMAGE = {
    "one dead channel of 1536": (lambda x: x, lambda y, _: y.__setitem__((slice(None), 900), 0)),
    "one garbage token of 64": (lambda x: x, lambda y, z: y.__setitem__(17, z[17])),
    "a lost factor 1.05": (lambda x: x, lambda y, _: np.multiply(y, 1.05, out=y)),
    "100 bad channels beside one 300 times larger": (
        massive,
        lambda y, z: y.__setitem__((slice(None), slice(200, 300)), z[:, 200:300]),
    ),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_to_a_small_part_is_a_fault(kind, precision):
    shape, damage = DAMAGE[kind]
    x = shape(normal(64, 1536))
    y = x.copy()
    damage(y, normal(64, 1536, seed=1))
    floor, rng = made_floor(x, precision), np.random.default_rng(9)
    clean = single(rounded(x, precision, rng), precision)
    assert state(single(x), clean, "x", floor).state == "NOISE"
    damaged = single(rounded(y, precision, rng).astype(precision), precision)
    found = diff(single(x), damaged, floor=floor)
    assert (found.points[0].state, found.first, found.exit_code) == ("FAULT", "x", 1)
    assert "x the noise floor" in verdict(found)
    assert found.least_xfloor() == found.points[0].xfloor > 5


@pytest.mark.parametrize("size", [0.03, 0.1])
def test_a_lost_factor_of_1_05_shows_in_the_scale_where_the_noise_of_every_number_is_as_large(size):
    x = normal(64, 256)
    runs = [metrics.measure(x, x + np.float32(size) * normal(64, 256, seed=i), "T D") for i in range(1, 9)]
    floor = Floor("float32", {"config": "c"}, list(range(64)), 8, {"x": floors.noise(map(metrics.gated, runs))})
    clean = x + np.float32(size) * normal(64, 256, seed=20)
    assert state(single(x), single(clean), "x", floor).state == "NOISE"
    p = state(single(x), single(np.float32(1.05) * clean), "x", floor)
    assert (p.state, p.by) == ("FAULT", "scale")
    assert p.rel < 5 * p.floor["rel"]
    assert "best-fit scale 1.05 at a relative error of " in verdict(
        diff(single(x), single(np.float32(1.05) * clean), floor=floor)
    )


def one_token(size, seed):
    """64 tokens with rounding of their own, and one whose size is one of few: `size` times the others'."""
    y = normal(64, 256).astype(ml_dtypes.bfloat16).astype(np.float32) + 0.02 * normal(64, 256, seed=seed)
    y[17] = size * normal(1, 256, seed=7)
    return y.astype(ml_dtypes.bfloat16)


def of_few_sizes(sizes):
    """The floor of runs in which that token has these sizes; the truth's is 0.3."""
    truth = one_token(0.3, 0).astype(np.float64)
    found = [metrics.measure(truth, one_token(size, i + 1).astype(float), "T D", 0.1) for i, size in enumerate(sizes)]
    return Floor("bfloat16", {"config": "c"}, list(range(64)), 8, {"x": floors.noise(map(metrics.gated, found))})


def test_a_token_that_came_out_small_in_the_reference_by_chance_is_no_fault_of_the_candidate():
    """The token is 30 times smaller in the reference than in the truth, which one of its few roundings makes of it."""
    floor = of_few_sizes([0.3, 0.01, 0.3, 0.3, 0.01, 0.45, 0.3, 0.3])
    a, b = (single(one_token(size, seed), "bfloat16") for size, seed in ((0.01, 20), (0.3, 21)))
    assert state(a, b, "x", floor).worst_token > 20 * floor.points["x"].worst_token[1]
    assert state(a, b, "x", floor).state == "NOISE"
    assert state(b, a, "x", floor).state == "NOISE"
    loud = single(one_token(6.0, 22), "bfloat16")
    assert state(a, loud, "x", floor).state == "FAULT", "the tensor itself is off then"


@pytest.mark.parametrize("size", [0.15, 0.45, 3.0])
def test_a_token_of_another_size_is_a_fault_where_noise_is_small_beside_it_or_the_reference_exact(size):
    wrong = single(one_token(size, 22), "bfloat16")
    quiet = of_few_sizes([0.3] * 8)
    p = state(single(one_token(0.3, 20), "bfloat16"), wrong, "x", quiet)
    assert (p.state, p.by) == ("FAULT", "worst_token")
    p = state(single(np.float32(1.0001) * one_token(0.3, 0).astype(np.float32)), wrong, "x", quiet)
    assert (p.state, p.by, p.floor["reference"]) == ("FAULT", "worst_token", 0.0)


@pytest.mark.parametrize(
    ("noise", "error", "least"), [(0.0, 9.0, 9.0), (0.1, 9.0, 8.1), (0.5, 0.2, 1 / 6), (1.3, 9.0, 0.9)]
)
def test_an_error_is_taken_relative_to_the_true_token_as_far_as_the_reference_tells_it(noise, error, least):
    assert least_error(error, noise) == pytest.approx(least)


def test_an_error_beside_nothing_at_all_is_no_nan():
    assert [least_error(math.inf, noise) for noise in (0.0, 0.5, 1.0, 1.5)] == [math.inf, math.inf, 1.0, 1.0]


@pytest.mark.parametrize("name", ["dense", "moe", "ple"])
def test_a_lost_factor_of_1_05_is_a_fault_at_the_end_of_a_bfloat16_run(models, measured, name):
    a, b = (recorded(models[name], precision) for precision in ("float32", "bfloat16"))
    point = "layers.1.mlp.down_proj"
    lost = changed(b, point, lambda x: np.multiply(x, x.dtype.type(1.05), out=x))
    assert state(a, b, point, measured(name, "bfloat16")).state == "NOISE"
    p = state(a, lost, point, measured(name, "bfloat16"))
    assert (p.state, p.by) == ("FAULT", "scale")


def exact_gelu(x):
    y = x.astype(definitions.wide(x.dtype))
    return (y / 2 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))).astype(x.dtype)


def test_the_wrong_gelu_of_a_float32_run_is_a_fault_and_would_hide_under_a_bfloat16_floor(
    models, measured, monkeypatch
):
    a = recorded(models["dense"], "float32")
    monkeypatch.setattr(ops, "gated_gelu", lambda gate, up: exact_gelu(gate) * up)
    b = recorded(models["dense"], "float32")
    monkeypatch.undo()
    found = diff(a, b, floor=measured("dense", "float32"))
    assert (found.first, found.verdict) == ("layers.0.mlp.down_proj", "differs")
    error = found.points[list(a).index("layers.0.mlp.down_proj")].rel
    assert error < measured("dense", "bfloat16").points["layers.0.mlp.down_proj"].rel[1]
    with pytest.raises(InputError, match="--precision float32"):
        diff(a, b, floor=measured("dense", "bfloat16"))


def test_a_bfloat16_run_that_was_widened_for_its_file_is_judged_as_one(models, measured):
    a, b = (recorded(models["dense"], precision) for precision in ("float32", "bfloat16"))
    wide = Dump(b.meta | {"precision": "float32"}, {n: x.astype(np.float32) for n, x in b.items()}, b.axes)
    assert [of_run(dump) for dump in (a, b, wide)] == ["float32", "bfloat16", "bfloat16"]
    found = diff(a, wide, floor=[measured("dense", p) for p in ("float32", "bfloat16")])
    assert (found.verdict, found.floor["precision"]) == ("same", "bfloat16")
    assert any("B says float32, but its values are rounded to bfloat16" in line for line in found.warnings)


def test_the_floor_of_a_difference_counts_both_sides(models, measured):
    floor = measured("dense", "float32")
    one, two = bench([floor], ["float64", "float32"]), bench([floor], ["float32", "float32"])
    for name in floor.points:
        median, high = floor.points[name].rel
        for both, sides in ((one, 1), (two, 2)):
            expected = max(math.sqrt(sides) * (2 * high - median), EPS["float32"] / 2)
            assert both.limits(name).rel == pytest.approx(expected)


def test_what_reads_a_fault_is_inherited_and_a_parallel_branch_is_not(models, measured):
    a = recorded(models["dense"], "float32")
    b = recorded(models["dense"], "float32")
    for name in b:
        if name.startswith(("layers.2.self_attn.q_proj", "layers.2.self_attn.k_norm", "layers.2.out", "layers.3")):
            b.arrays[name] = b[name] * np.float32(1.2)
    found = {p.name: p.state for p in diff(a, b, floor=measured("dense", "float32")).points}
    assert found["layers.2.self_attn.q_proj"] == found["layers.2.self_attn.k_norm"] == "FAULT"
    assert found["layers.2.out"] == found["layers.3.input_layernorm"] == "INHERITED"
    assert found["layers.1.out"] == "BIT-EXACT"


# -- discrete choices -------------------------------------------------------------------------------------------------


def routed(ids, weights=None, rest=None):
    """A dump of one layer with experts, over the tokens of `ids`."""
    ids = np.asarray(ids)
    points = {"layers.0.router.weights": np.ones(ids.shape, np.float32) if weights is None else weights}
    points |= {"layers.0.router.ids": ids, "layers.0.experts": normal(len(ids), 32) if rest is None else rest}
    meta = new_meta("numgemma", "0", {"config": "c"}, range(len(ids)), "float32")
    return Dump(meta, points, dict.fromkeys(points, "T J") | {"layers.0.experts": "T D"})


def router_floor(tokens, close):
    small = Noise((1e-6, 2e-6), (2e-6, 3e-6), (2e-6, 3e-6), (1e-7, 3e-7))
    points = {"layers.0.router.weights": small, "layers.0.experts": small}
    return Floor("float32", {"config": "c"}, list(range(tokens)), 8, points, close={"layers.0.router.ids": close})


IDS = [[1, 2], [3, 4], [5, 6], [0, 7]]


def test_a_flip_between_near_equals_is_a_tie_and_what_it_changed_is_judged_apart():
    a = routed(IDS)
    rest = a["layers.0.experts"].copy()
    rest[2] = normal(32, seed=4)
    weights = a["layers.0.router.weights"].copy()
    weights[2] = [0.2, 1.8]
    b = routed([[2, 1], [3, 4], [5, 9], [0, 7]], weights, rest)
    found = diff(a, b, floor=router_floor(4, {2: 1.2}))
    states = {p.name.removeprefix("layers.0."): p.state for p in found.points}
    assert states == {"router.weights": "INHERITED", "router.ids": "TIE", "experts": "INHERITED"}
    assert found.verdict == "same"
    rest[0] *= 1.01
    found = diff(a, routed([[2, 1], [3, 4], [5, 9], [0, 7]], weights, rest), floor=router_floor(4, {2: 1.2}))
    assert found.first == "layers.0.experts"


def test_a_flip_with_a_margin_is_a_fault():
    found = diff(routed(IDS), routed([[1, 2], [3, 4], [5, 9], [0, 7]]), floor=router_floor(4, {1: 0.5, 2: 5.9}))
    assert (found.first, found.points[1].state) == ("layers.0.router.ids", "FAULT")
    assert "tokens 2 choose otherwise" in verdict(found)


def test_a_floor_knows_the_near_ties_of_its_prompt(models, measured):
    found = measured("moe", "bfloat16").close
    assert any(name.endswith("router.ids") for name in found)
    assert "logits" in found
    assert not any(name.endswith("router.ids") for name in measured("moe", "float32").close)
    assert measured("moe", "bfloat16").rough
    assert not measured("moe", "float32").rough


def test_a_fault_of_a_router_is_found_although_ties_are_not_counted(models, measured, monkeypatch):
    original = ops.expert_probs
    a = recorded(models["moe"], "float32")
    monkeypatch.setattr(ops, "expert_probs", lambda scores: original(-scores))
    b = recorded(models["moe"], "bfloat16")
    monkeypatch.undo()
    found = diff(a, b, floor=measured("moe", "bfloat16"))
    assert found.first == "layers.0.router.probs"
    a, b = (Dump(d.meta, {n: x for n, x in d.items() if not n.endswith("probs")}, d.axes) for d in (a, b))
    found = diff(a, b, floor=measured("moe", "bfloat16"), allow_missing=["*.probs"])
    assert found.first in ("layers.0.router.weights", "layers.0.router.ids")


# -- states without numbers, three sides, maps, exit codes ------------------------------------------------------------


def test_a_point_that_is_missing_is_unmeasured_and_no_pass_unless_it_is_allowed(models, measured):
    a, b = recorded(models["dense"], "float32"), recorded(models["dense"], "float32", seed=3)
    del b.arrays["layers.1.self_attn.o_proj"]
    floor = measured("dense", "float32")
    found = diff(a, b, floor=floor)
    assert (found.verdict, found.first, found.exit_code) == ("differs", "layers.1.self_attn.o_proj", 1)
    assert found.count("UNMEASURED") == 1
    assert diff(a, b, floor=floor, allow_missing=["*.o_proj"]).verdict == "same"
    assert diff(a, b, floor=floor, allow_missing=["*.q_proj"]).verdict == "differs"


def test_a_nan_is_non_finite_and_what_reads_it_too(models, measured):
    a = recorded(models["dense"], "float32")
    b = changed(a, "layers.1.out", lambda x: x.__setitem__((3, 5), np.nan))
    found = diff(a, b, floor=measured("dense", "float32"))
    assert (found.first, found.exit_code, found.count("NON-FINITE")) == ("layers.1.out", 4, 1)


def test_three_runs_tell_which_side_is_off(models, measured):
    truth, a = recorded(models["dense"], "float64"), recorded(models["dense"], "float32")
    b = changed(a, "layers.1.mlp.down_proj", lambda x: np.multiply(x, 1.01, out=x))
    floor = measured("dense", "float32")
    for left, right, off in ((a, b, "b"), (b, a, "a"), (b, b, "both"), (a, a, "neither")):
        for judged in ((), floor):
            found = {p.name: p.truth for p in diff(left, right, floor=judged, truth=truth).points}
            assert found["layers.1.mlp.down_proj"]["off"] == off
            assert found["layers.1.mlp.up_proj"]["off"] == "neither"
    assert "B is off" in render(diff(a, b, floor=floor, truth=truth), width=300)
    with pytest.raises(InputError, match="other tokens"):
        diff(a, b, truth=recorded(models["dense"], "float64", tokens=5))


def test_a_layer_map_compares_layers_under_other_numbers(models, measured):
    a = recorded(models["dense"], "float32")
    moved = {n.replace("layers.1.", "layers.4."): x for n, x in a.items() if not n.startswith("layers.4.")}
    axes = {n.replace("layers.1.", "layers.4."): x for n, x in a.axes.items() if not n.startswith("layers.4.")}
    kinds = a.meta["model"] | {"layer_kinds": a.meta["model"]["layer_kinds"] * 2, "config": "another"}
    b = Dump(a.meta | {"model": kinds}, moved, axes)
    assert diff(a, b).verdict == "not comparable"
    found = diff(a, b, mapping=parse_map("1:4,5-5:5-5"), floor=measured("dense", "float32"))
    layers = {p.name.split(".")[1] for p in found.points if p.name.startswith("layers.")}
    assert (found.verdict, layers) == ("same", {"1", "5"})
    assert next(p for p in found.points if p.name == "layers.1.out").name_b == "layers.4.out"
    assert found.left_out == 2 * sum(n.startswith(("layers.0.", "layers.2.", "layers.3.")) for n in a) + sum(
        n.startswith("layers.4.") for n in a
    )


def test_a_map_file_gives_b_other_names(tmp_path):
    x = normal(4, 8)
    meta = new_meta("numgemma", "0", {"config": "c"}, range(4), "float32")
    a = Dump(meta, {"layers.3.out": x, "norm": x}, dict.fromkeys(("layers.3.out", "norm"), "T D"))
    b = Dump(meta, {"l_out-3": x, "result_norm": 2 * x}, dict.fromkeys(("l_out-3", "result_norm"), "T D"))
    (tmp_path / "map").write_text("layers.*.out  l_out-*   # the stream\n\nnorm result_norm\n")
    found = diff(a, b, mapping=parse_map(str(tmp_path / "map")))
    assert [(p.name, p.name_b, p.state) for p in found.points] == [
        ("layers.3.out", "l_out-3", "SAME"),
        ("norm", "result_norm", "DIFFERS"),
    ]


@pytest.mark.parametrize("text", ["1", "1:2:3", "1-3:2-3", "x:y", "", "3-1:3-1", "0-999999999:0-999999999"])
def test_a_layer_map_that_is_none_is_one_sentence(text):
    with pytest.raises(InputError, match="--layer-map"):
        parse_map(text)


def test_a_map_file_with_three_words_names_its_line(tmp_path):
    (tmp_path / "map").write_text("a b\na b c\n")
    with pytest.raises(InputError, match="line 2"):
        parse_map(str(tmp_path / "map"))
    assert not NameMap()


def test_the_exit_code_follows_what_it_shall_fail_on(models, measured):
    a, floor = recorded(models["dense"], "float32"), measured("dense", "float32")
    inner = changed(a, "layers.1.out", lambda x: np.multiply(x, 2, out=x))
    outer = changed(inner, "logits", lambda x: np.multiply(x, -1, out=x))
    codes = [
        [diff(a, b, floor=f).exit_code_for(on) for on in ("point", "logits", "never")]
        for f in ((), floor)
        for b in (a, inner, outer)
    ]
    assert codes == [[0, 0, 0], [1, 0, 0], [1, 1, 0]] * 2
    assert diff(a, inner, points=["layers.*"]).exit_code_for("logits") == 3


def test_values_with_four_decimals_are_judged_as_such():
    x = 0.02 * normal(16, 256)
    short = np.round(x, 4)
    floor = made_floor(x, "float32")
    b = single(short)
    assert state(single(x), b, "x", floor).state == "FAULT"
    b.meta["fidelity"] = "rounded:4dp"
    assert state(single(x), b, "x", floor).state == "NOISE"
    b.arrays["x"] = np.round(1.05 * x, 4)
    assert state(single(x), b, "x", floor).state == "FAULT"


def test_a_point_without_a_floor_is_judged_by_the_table(models, measured):
    a = recorded(models["dense"], "float32")
    floor = replace(measured("dense", "float32"), points={})
    assert diff(a, recorded(models["dense"], "float32", seed=1), floor=floor).verdict == "same"
    assert diff(a, changed(a, "norm", lambda x: np.multiply(x, 1.01, out=x)), floor=floor).first == "norm"


# -- logits -----------------------------------------------------------------------------------------------------------


def test_logits_are_compared_as_probabilities():
    meta = new_meta("numgemma", "0", {"config": "c"}, range(5), "float32")
    x, y = normal(5, 40), normal(5, 40) + 0.2 * normal(5, 40, seed=2)
    y[3] = x[3]
    y[3, x[3].argmin()] = x[3].max() + 1
    (found,) = diff(Dump(meta, {"logits": x}, {"logits": "T V"}), Dump(meta, {"logits": y}, {"logits": "T V"})).logits
    p, q = (np.exp(z.astype(np.float64)) / np.exp(z.astype(np.float64)).sum(-1, keepdims=True) for z in (x, y))
    assert found.kl_ab == pytest.approx((p * np.log(p / q)).sum(-1).mean())
    assert found.kl_ba == pytest.approx((q * np.log(q / p)).sum(-1).mean())
    assert found.kl_worst_at == 3
    assert found.overlap["1"] == pytest.approx((x.argmax(-1) == y.argmax(-1)).mean())
    flip = next(f for f in found.flips if f.token == 3)
    assert (flip.a, flip.b) == (int(x[3].argmax()), int(x[3].argmin()))
    assert flip.margin == pytest.approx(np.ptp(x[3]))
    assert len(found.flips) == (x.argmax(-1) != y.argmax(-1)).sum()


def test_a_constant_added_to_all_logits_of_a_token_changes_no_probability():
    meta = new_meta("numgemma", "0", {"config": "c"}, range(3), "float32")
    x = normal(3, 50)
    a, b = (Dump(meta, {"logits": z}, {"logits": "T V"}) for z in (x, x + np.float32(5)))
    (found,) = diff(a, b).logits
    assert found.kl_ab < 1e-12
    assert found.centred < 1e-6
    assert diff(a, b).points[0].rel > 1


def test_logits_of_noise_are_noise_and_flips_inside_it_are_ties(models, measured):
    floor = measured("dense", "bfloat16")
    found = diff(recorded(models["dense"], "float32"), recorded(models["dense"], "bfloat16", seed=8), floor=floor)
    capped = found.logits[-1]
    assert [x.point for x in found.logits] == ["lm_head", "logits"]
    assert capped.xfloor < 1.5
    assert capped.flips
    assert all(flip.tie for flip in capped.flips)


# -- the floor itself -------------------------------------------------------------------------------------------------


def test_a_floor_grows_with_the_step_of_its_precision(measured):
    sizes = [measured("dense", p).points["layers.5.out"].rel[0] for p in ("float32", "bfloat16")]
    assert 1e3 < sizes[1] / sizes[0] < 1e6
    for noise in measured("dense", "bfloat16").points.values():
        assert 0 < noise.rel[0] <= noise.rel[1] < 0.5
        assert noise.rel[1] <= noise.worst_token[1]


def test_a_precision_that_cannot_hold_the_numbers_is_said_so(tmp_path):
    tensors = tiny.random_tensors(tiny.DENSE)
    tensors["layers.2.mlp.down_proj.weight"] *= 1e5
    model = load(tiny.write(tmp_path / "wide", tiny.DENSE, tensors))
    with pytest.raises(NonFiniteError, match=r"layers\.2\.mlp\.down_proj"):
        measure_floor(model, [5, 6, 7], "float16", runs=1)


def test_a_floor_in_float64_is_refused(models):
    with pytest.raises(InputError, match="'float64'"):
        measure_floor(models["dense"], [5, 6], "float64")


def test_a_floor_survives_its_file(measured, tmp_path):
    for name, precision in (("dense", "float32"), ("moe", "bfloat16")):
        measured(name, precision).save(tmp_path / "f.json")
        assert read_floor(tmp_path / "f.json") == measured(name, precision)
        assert (tmp_path / "f.json").stat().st_size < 100_000
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema": "numgemma.dump/1"}', '{"schema": "numgemma.floor/1"}'])
def test_a_file_that_is_no_floor_is_one_sentence(tmp_path, text):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(InputError, match=r"f\.json.*numgemma floor"):
        read_floor(tmp_path / "f.json")
    with pytest.raises(InputError, match="No such file"):
        read_floor(tmp_path / "none.json")


def test_a_floor_of_an_older_version_is_one_sentence(measured, tmp_path):
    measured("dense", "float32").save(tmp_path / "f.json")
    tree = json.loads((tmp_path / "f.json").read_text()) | {"schema": "numgemma.floor/1"}
    (tmp_path / "f.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"f\.json: is a numgemma\.floor/1 file, this version reads .*/2; measure"):
        read_floor(tmp_path / "f.json")


def test_a_floor_of_another_prompt_or_model_is_refused(models, measured):
    a = recorded(models["dense"], "float32", tokens=5)
    with pytest.raises(InputError, match="another prompt"):
        diff(a, a, floor=measured("dense", "float32"))
    b = recorded(models["ple"], "float32")
    with pytest.raises(InputError, match="another model"):
        diff(b, b, floor=measured("dense", "float32"))


def test_a_floor_is_measured_once_and_then_read_from_the_cache(models, monkeypatch, tmp_path):
    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(floors, "RUNS", 2)
    calls = []
    first = floors.cached_floor(models["dense"], [5, 6, 7], "float32", told=calls.append)
    assert calls == list(range(9))
    again = floors.cached_floor(models["dense"], [5, 6, 7], "float32", told=calls.append)
    assert (again, len(calls)) == (first, 9)
    floors.cached_floor(models["dense"], [5, 6, 8], "float32", told=calls.append)
    assert len(calls) == 18
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_floor_is_that_of_one_picture(multimodal_folders, monkeypatch, tmp_path):
    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path))
    model = load(multimodal_folders["e4b"])
    ids, arrays = tiny.multimodal_prompt("e4b")
    one, other = read_media(arrays), read_media(arrays | {"pixel_values": 1 - arrays["pixel_values"]})
    few = ["*.out", "logits"]
    floor = measure_floor(model, ids, "float32", runs=2, points=few, media=one)
    a, b = (model.record(ids, few, media=media) for media in (one, other))
    assert floor.inputs == hashes(one) != hashes(other)
    assert diff(a, a, floor=floor).verdict == "same"
    for refused in (lambda: diff(b, b, floor=floor), lambda: replay(model, b, media=other, floor=floor, graft="x")):
        with pytest.raises(InputError, match="other pictures or sound"):
            refused()
    assert "pixel_values is not the same array" in diff(a, b).warnings
    where = [floors.cache_path(a.meta["model"], ids, "float32", d.meta["inputs"]) for d in (a, b)]
    assert where[0] != where[1]


def test_padding_and_types_do_not_make_another_picture():
    _, arrays = tiny.multimodal_prompt("26b")
    wider = {
        name: np.pad(x, [(0, 0), (0, 5), (0, 0)], constant_values=-(name != "pixel_values"))
        for name, x in arrays.items()
    }
    wider["pixel_values"] = wider["pixel_values"].astype(np.float64)
    wider["image_position_ids"] = wider["image_position_ids"].astype(np.int32)
    assert hashes(read_media(wider)) == hashes(read_media(arrays))
    assert set(hashes(read_media(arrays))) == {"pixel_values", "image_position_ids"}


# -- perturbed rounding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_jitter_moves_a_few_numbers_by_one_unit_in_the_last_place_and_no_zero(dtype):
    x = normal(200, 300).astype(dtype)
    x[:, 7] = 0
    y = jitter(x, np.random.default_rng(0))
    moved = x != y
    assert 0.5 / 32 < moved.mean() < 2 / 32
    assert not moved[:, 7].any()
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    assert np.abs(wide_y - wide_x).max() <= (np.abs(wide_x) * float(ml_dtypes.finfo(dtype).eps)).max()
    assert ((wide_y > wide_x).sum() / moved.sum()) == pytest.approx(0.5, abs=0.05)


def test_operations_are_themselves_again_after_a_perturbed_run(models):
    before = {name: getattr(ops, name) for name in ops.__all__}
    a = models["dense"].logits([5, 6, 7])
    with perturbed(2):
        assert ops.linear is not before["linear"]
        assert not np.array_equal(models["dense"].logits([5, 6, 7]), a)
    with pytest.raises(InputError), perturbed(1):
        models["dense"].logits([])
    assert {name: getattr(ops, name) for name in ops.__all__} == before
    np.testing.assert_array_equal(models["dense"].logits([5, 6, 7]), a)
    with perturbed(1):
        one = models["dense"].logits([5, 6, 7])
    with perturbed(1):
        np.testing.assert_array_equal(models["dense"].logits([5, 6, 7]), one)


# -- the verbs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a verb in a folder of its own, with a cache of its own; returns (exit code, stdout, stderr)."""
    from numgemma.cli import main

    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*words):
        return main([str(word) for word in words]), *capsys.readouterr()

    return call


def test_the_floor_of_a_dump_is_measured_cached_and_used(run, folders, tmp_path):
    for name, more in (("a", []), ("b", ["--precision", "bfloat16"])):
        assert run("dump", folders["dense"], "--ids", "5,6,7,8,9", "-o", f"{name}.safetensors", *more)[0] == 0
    files = "a.safetensors", "b.safetensors"
    code, out, err = run("diff", *files, "--floor", "auto")
    assert (code, out) == (2, "")
    assert "no bfloat16 floor of these dumps is in the cache; add --ckpt" in err
    code, out, _ = run("floor", folders["dense"], files[1], "-o", "f.json")
    assert code == 0
    assert out.startswith("The floor of bfloat16 over 5 tokens: 126 points, 8 runs.")
    assert read_floor("f.json").precision == "bfloat16"
    for words in (["auto"], ["f.json"], ["auto", "--ckpt", folders["dense"]]):
        code, out, _ = run("diff", *files, "--floor", *words, "--json", "d.json", "--plot", "d.png", "--all")
        assert code == 0, out
        assert out.startswith("SAME (126 points)")
        assert "NOISE" in out
    tree = json.loads(Path("d.json").read_text())
    assert tree["floor"] == {"precision": "bfloat16", "runs": 8, "sides": 1}
    assert {p["state"] for p in tree["points"]} <= {"BIT-EXACT", "NOISE", "SUSPECT"}
    assert Path("d.png").read_bytes().startswith(b"\x89PNG")


def test_the_diff_verb_takes_a_truth_a_layer_map_missing_points_and_what_to_fail_on(run, folders, models):
    ids = [5, 6, 7, 8]
    models["dense"].record(ids).save("a.safetensors")
    wrong = models["dense"].record(ids, edits={"layers.1.mlp.down_proj": lambda x: x * np.float32(1.5)})
    del wrong.arrays["layers.2.self_attn.o_proj"]
    wrong.save("b.safetensors")
    replace(models["dense"], dtype=np.dtype("float64")).record(ids).save("t.safetensors")
    files = "a.safetensors", "b.safetensors"
    code, out, _ = run("diff", *files, "--truth", "t.safetensors")
    assert code == 1
    assert "DIFFERS first at layers.1.mlp.down_proj" in out
    assert "B is off" in " ".join(out.split())
    assert run("diff", *files, "--fail-on", "never")[0] == 0
    assert run("diff", *files, "--points", "layers.2.self_attn.o_proj", "layers.0.*")[0] == 1
    only = ["--points", "layers.2.self_attn.o_proj", "layers.0.*", "--allow-missing", "*.o_proj"]
    assert run("diff", *files, *only)[0] == 0
    assert run("diff", *files, "--layer-map", "0:0", "--fail-on", "point", "--points", "layers.*")[0] == 0
    assert run("diff", *files, "--tolerance", "10", "--allow-missing", "*.o_proj")[0] == 0
    assert run("diff", *files, "--layer-map", "0-1:0")[0] == 2


def test_a_floor_needs_a_prompt(run, folders):
    code, _, err = run("floor", folders["dense"])
    assert code == 2
    assert "give --prompt, --chat, --ids or --inputs, or a DUMP" in err
    code, _, err = run("floor", folders["dense"], "--ids", "5", "--precision", "float32", "bfloat16", "-o", "f.json")
    assert code == 2
    assert "one --precision" in err


class Ended(Exception):
    """As if the process were killed."""


def test_a_floor_that_was_ended_midway_goes_on_from_its_finished_runs(models, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path))
    model, ids = models["moe"], tiny.prompt(tiny.MOE, 9)
    whole = measure_floor(model, ids, "bfloat16")
    seen = []

    def told(run, last=99):
        seen.append(run)
        if run > last:
            raise Ended

    with pytest.raises(Ended):
        cached_floor(model, ids, "bfloat16", lambda run: told(run, 3))
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".runs.json")
    seen.clear()
    assert cached_floor(model, ids, "bfloat16", told) == whole
    assert seen == [0, *range(4, 9)]
    assert left not in tmp_path.iterdir()


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "numgemma.floor-runs/1", "runs": 3}', "[1]"])
def test_what_is_left_of_a_floor_and_cannot_be_read_is_measured_anew(models, tmp_path, text):
    (tmp_path / "f.runs.json").write_text(text)
    model, ids = models["dense"], tiny.prompt(tiny.DENSE, 5)
    found = measure_floor(model, ids, "float32", 3, kept=tmp_path / "f.runs.json")
    assert found == measure_floor(model, ids, "float32", 3)


def test_a_floor_that_has_no_time_says_that_its_runs_are_kept(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path))
    assert main(["floor", str(folders["dense"]), "--ids", "5,6,7", "--budget", "0"]) == 2
    assert "0 seconds are over before all 8 runs in float32 were done" in capsys.readouterr().err


def test_two_checkpoints_of_one_shape_share_no_floor(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path / "cache"))
    for seed in (1, 2):
        model = load(tiny.write(tmp_path / str(seed), tiny.DENSE, tiny.random_tensors(tiny.DENSE, seed)))
        cached_floor(model, [1, 2, 3], "float32")
    assert len(list((tmp_path / "cache").glob("floor-*.json"))) == 2
