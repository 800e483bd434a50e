"""What a file has measured of what enters a product: read from every format, and rounded as its own tool rounds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from numgemma import load, ops
from numgemma.debug.noise.rounding import e2m1, int8_given, mobile, nvfp4_given, rounded_as
from numgemma.smallfloats import BFLOAT16
from numgemma.weights.bits import E2M1
from numgemma.weights.packed import Entering, Packed, joined, stacked
from numgemma.weights.quantised import entering

TOOLS = load_file(Path(__file__).parent / "fixtures/entering.safetensors")  # of reference_outputs/make_entering.py
ROUND = {"nvfp4": nvfp4_given, "int8": int8_given, "int8-zeroed": int8_given}


def leaves_of(case):
    return {name.partition("/")[2]: x for name, x in TOOLS.items() if name.startswith(f"{case}/")}


@pytest.mark.parametrize("case", ROUND)
def test_what_enters_is_rounded_to_compressed_tensors_own_bits(case):
    leaves = leaves_of(case)
    x, told = leaves.pop("x"), entering(leaves)
    y = ROUND[case](x, told)
    np.testing.assert_array_equal(y, leaves["rounded"])
    assert np.abs(y - x).max() > 1  # the loud token is beyond all codes
    assert (told.zero != 0) == (case == "int8-zeroed")


def test_e2m1_is_the_nearest_of_its_values_and_of_two_the_even_one():
    values, even = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6]), [0, 2, 2, 4, 4, 6, 6]
    assert set(values) == set(np.abs(E2M1))
    for a, b, code in zip(values, values[1:], even, strict=False):
        middle = np.float32((a + b) / 2)
        assert e2m1(middle) == values[code]
        assert e2m1(np.nextafter(middle, np.float32(9))) == b
        assert e2m1(-np.nextafter(middle, np.float32(0))) == -a
    assert e2m1(np.float32(900)) == 6


def test_each_tools_leaves_say_the_same_scale():
    one = np.float32([0.25])
    assert entering({"input_scale": one}) == Entering(0.25)
    assert entering({"activation_scale": one}) == Entering(0.25)
    assert entering({"input_global_scale": 1 / one}) == Entering(0.25)  # it divides
    assert entering({"input_scale": one, "input_zero_point": np.int8([-7])}) == Entering(0.25, -7)
    both = {"input_activation_scale": one[0], "output_activation_scale": 2 * one[0]}
    assert entering(both) == Entering(0.25, out=0.5)
    assert entering(both | {"input_activation_scale": np.float32(0)}) == Entering(0, out=0.5)
    for nothing in (np.float32([0.1, 0.2]), 0 * one, np.nan * one, np.inf * one, -one):
        assert entering({"input_scale": nothing}) is None
    assert entering({}) is None
    assert entering({"input_global_scale": 0 * one}) is None
    assert entering({"input_scale": one, "input_zero_point": np.int8([1, 2])}) is None


def coded(form, enters=None):
    x = np.random.default_rng(3).normal(size=(6, 32)).astype(np.float32)
    return Packed(x.shape, form, lambda at: x[at], (x,), enters=enters)


def test_a_matrix_of_nvfp4_without_a_scale_for_what_enters_is_of_weights_alone():
    x = np.random.default_rng(4).normal(size=(3, 32)).astype(np.float32)
    alone, both = coded("nvfp4"), coded("nvfp4", Entering(0.01))
    with rounded_as("nvfp4"):
        np.testing.assert_array_equal(ops.linear(x, alone), x @ np.asarray(alone).T)
        y = ops.linear(x, both)
    np.testing.assert_allclose(y, nvfp4_given(x, Entering(0.01)) @ np.asarray(both).T, rtol=1e-5, atol=1e-5)
    assert np.abs(y - ops.linear(x, both)).max() > 1e-3


def test_rows_that_are_no_multiple_of_sixteen_end_in_a_short_block():
    x = np.random.default_rng(5).normal(size=(3, 40)).astype(np.float32)
    np.testing.assert_array_equal(nvfp4_given(x, Entering(0.01))[:, :32], nvfp4_given(x[:, :32], Entering(0.01)))
    np.testing.assert_array_equal(nvfp4_given(x, Entering(0.01))[:, 32:], nvfp4_given(x[:, 32:], Entering(0.01)))


def test_each_expert_of_a_stack_keeps_its_own_and_gate_and_up_take_the_wider():
    some = [coded("int8", Entering(scale)) for scale in (0.1, 0.2)]
    assert [w.enters for w in stacked(some, "int8")] == [Entering(0.1), Entering(0.2)]
    assert [w.enters for w in joined([some, some[::-1]], "int8")] == [Entering(0.2)] * 2
    assert joined([[some[0], coded("int8")]], "int8")[0].enters is None
    plain = np.ones((2, 3), np.float32)
    assert stacked([plain, plain], "float32")[1].enters is None


def test_a_mobile_file_rounds_what_enters_and_what_comes_out():
    x = np.random.default_rng(6).normal(size=(3, 32)).astype(np.float32)
    for told in (Entering(0.05, out=0.5), Entering(0.05), Entering(0, out=0.5)):
        w = coded("mobile-int4", told)
        with rounded_as("mobile"):
            y = ops.linear(x, w)
        codes = np.clip(np.rint(x / np.float32(0.05)), -128, 127) * np.float32(0.05)
        want = (codes if told.scale else x) @ np.asarray(w).T
        if told.out:
            want = np.clip(np.rint(want / np.float32(0.5)), -128, 127) * np.float32(0.5)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
        assert np.abs(y - ops.linear(x, w)).max() > 1e-3


def test_a_narrow_stream_is_rounded_in_its_own_dtype():
    x = np.random.default_rng(7).normal(size=(3, 32)).astype(BFLOAT16)
    y = mobile(x, 0.013)
    scale = BFLOAT16.type(0.013)
    assert y.dtype == x.dtype
    for value, rounded in zip(x.ravel(), y.ravel(), strict=True):
        code = np.float32(BFLOAT16.type(np.float32(value) / np.float32(scale)))
        assert rounded == BFLOAT16.type(BFLOAT16.type(max(-128, min(127, np.rint(code)))) * scale)


def test_a_file_with_a_zero_point_is_read_with_it(tmp_path):
    folder, found = tiny.write(tmp_path / "m", tiny.DENSE), {}
    for name, x in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if x.ndim != 2 or "embed" in name:
            found[name] = x
            continue
        w = np.asarray(x, np.float32)
        scale = np.abs(w).max(-1, keepdims=True) / np.float32(127)
        found |= {name: np.rint(w / scale).astype(np.int8), f"{name}_scale": scale}
        found |= {f"{module}.input_scale": np.float32([0.02]), f"{module}.input_zero_point": np.int8([-30])}
    save_file(found, folder / "model.safetensors")
    model, ids = load(folder), [2, 30, 44, 9, 108, 77]
    w = model.weights["layers.0.mlp.gate_proj.weight"]
    assert w.enters == Entering(float(np.float32(0.02)), -30)
    x = np.random.default_rng(8).normal(size=(4, w.shape[1])).astype(np.float32)
    with rounded_as("int8"):
        y, logits = ops.linear(x, w), model.logits(ids)
    q = np.clip(np.rint(x / np.float32(0.02) - 30), -128, 127)
    np.testing.assert_allclose(y, (q + 30) * np.float32(0.02) @ np.asarray(w).T, rtol=1e-4, atol=1e-5)
    centred = replace(w, enters=Entering(w.enters.scale))
    with rounded_as("int8"):
        assert np.abs(ops.linear(x, centred) - y).max() > 1e-2  # the codes reach farther up than down
    assert np.abs(logits - model.logits(ids)).max() > 1e-3
