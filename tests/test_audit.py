"""The audit: a faithful file of every format stays silent, and of a broken one the tensor and the cause are named."""

import re

import gguf
import ml_dtypes
import numpy as np
import pytest

from numgemma.surgery.audit import COARSE, EXTRA, FAITHFUL, MISSING, WRONG, audit
from numgemma.weights.gguf import tensor as gguf_tensor
from numgemma.weights.packed import Packed
from numgemma.weights.quantised import unpacked

D, F, E, L, P = 128, 192, 4, 2, 32
SHAPES = {"embed_tokens.weight": (320, D), "norm.weight": (D,), "embed_tokens_per_layer.weight": (320, L * P)}
for i in range(L):
    SHAPES |= {f"layers.{i}.self_attn.{x}_proj.weight": (D, D) for x in "qkvo"}
    SHAPES |= {f"layers.{i}.mlp.gate_proj.weight": (F, D), f"layers.{i}.mlp.up_proj.weight": (F, D)}
    SHAPES |= {f"layers.{i}.mlp.down_proj.weight": (D, F), f"layers.{i}.input_layernorm.weight": (D,)}
    SHAPES |= {f"layers.{i}.experts.gate_up_proj": (E, 2 * 64, D), f"layers.{i}.experts.down_proj": (E, D, 64)}
    SHAPES |= {f"layers.{i}.layer_scalar": (1,), f"layers.{i}.router.per_expert_scale": (E,)}


@pytest.fixture(scope="module")
def original():
    rng = np.random.default_rng(5)
    tensors = {name: rng.normal(0, 0.04, shape) for name, shape in SHAPES.items()}
    for name in tensors:
        if name.endswith(("norm.weight", "layer_scalar", "per_expert_scale")):
            tensors[name] = rng.uniform(0.3, 1.9, SHAPES[name])
    return {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}


# files, quantised as their tools do


def in_gguf(x, kind):
    q = gguf.GGMLQuantizationType[kind]
    raw = gguf.quants.quantize(np.asarray(x, np.float32), q)
    return gguf_tensor("f", raw.ravel(), 0, "t", x.shape, int(q))


def words(codes, bits):
    """Codes of some bits as rows of little-endian words."""
    rows = codes.reshape(len(codes), -1)
    ones = (rows[..., None] >> np.arange(bits) & 1).astype(np.uint8).reshape(len(rows), -1)
    return np.packbits(np.pad(ones, ((0, 0), (0, -ones.shape[1] % 32))), axis=1, bitorder="little").view(np.int32)


def int4_leaves(x, group=32):
    """compressed-tensors' symmetric int4, of one matrix."""
    w = np.asarray(x, np.float32).reshape(len(x), -1, group)
    scale = np.abs(w).max(-1, keepdims=True) / 7.5
    codes = np.clip(np.rint(w / scale), -8, 7).astype(np.int64).reshape(x.shape)
    return codes, scale[..., 0], {"weight_shape": np.array(x.shape)}


def in_int4(codes, scale, rest):
    leaves = {"m.weight_packed": words(codes + 8, 4), "m.weight_scale": scale}
    return unpacked("f", leaves | {f"m.{leaf}": x for leaf, x in rest.items()}, {})["m.weight"]


def is_matrix(name, x):
    return x.ndim > 1


def quantised(original, kind):
    """All matrices of a checkpoint in one format; vectors stay."""
    if kind == "int4":
        flat = {name: in_int4(*int4_leaves(x)) for name, x in original.items() if x.ndim == 2}
        return dict(original) | flat
    return {name: in_gguf(x, kind) if x.ndim > 1 else x for name, x in original.items()}


FORMATS = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "BF16", "int4")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_faithful_file_is_faithful_in_every_tensor(original, kind):
    found = audit(quantised(original, kind), original)
    assert [(v.name, v.state) for v in found.tensors if v.state != FAITHFUL] == []
    assert found.faithful


# broken files: what is done to the quantised tensor, and what the cause says

QUERY, GATE, UP = "layers.0.self_attn.q_proj.weight", "layers.0.mlp.gate_proj.weight", "layers.0.mlp.up_proj.weight"
NORM, SCALAR, EXPERTS = "layers.1.input_layernorm.weight", "layers.1.layer_scalar", "layers.0.experts.gate_up_proj"
TABLE = "embed_tokens_per_layer.weight"


def with_codes(change):
    """An int4 matrix whose codes or scales are changed after they were chosen."""
    return lambda x: in_int4(*change(*int4_leaves(x)))


def swapped_nibbles(codes, scale, rest):
    return codes[:, np.arange(codes.shape[1]) ^ 1], scale, rest


def in_halves(codes, scale, rest):
    order = np.arange(codes.shape[1]).reshape(-1, 2, 16).swapaxes(1, 2).ravel()
    return codes[:, order], scale, rest


def twos_complement(codes, scale, rest):
    return (codes + 16) % 16 - 8, scale, rest


def of_wrong_groups(codes, scale, rest):
    return codes, np.roll(scale * np.linspace(0.6, 1.5, scale.shape[1]), 1, 1), rest


def clipped(codes, scale, rest):
    return np.clip(codes + 1, -8, 7), scale, rest


def heads_rolled(x):
    return x.reshape(4, -1, x.shape[-1])[[1, 2, 3, 0]].reshape(x.shape)


def repacked(x):
    return np.ascontiguousarray(x.reshape(len(x), L, P).swapaxes(1, 2)).reshape(x.shape)


def q8(change):
    return lambda x: in_gguf(change(np.asarray(x, np.float32)), "Q8_0")


def q4(change):
    return lambda x: in_gguf(change(np.asarray(x, np.float32)), "Q4_0")


def scale_lost(x):
    scale = np.abs(np.asarray(x, np.float32)).max(1, keepdims=True) / 127
    codes = np.rint(np.asarray(x, np.float32) / scale).astype(np.int8)
    return unpacked("f", {"m.weight": codes, "m.weight_scale": np.ones_like(scale)}, {})["m.weight"]


def once_more(x):
    return in_gguf(in_int4(*int4_leaves(x, group=64))[:], "Q4_0")


FOLD = np.array([0.4, 1.7, 0.9, 1.3], np.float32)[:, None, None]

BROKEN = [
    ("a norm in the other convention", NORM, lambda x: x + 1, "is 1 \\+ w"),
    ("a norm less one", NORM, lambda x: x - 1, "is w - 1"),
    ("a scalar that was not exported", SCALAR, np.ones_like, "not exported"),
    ("a matrix of zeros", QUERY, q8(np.zeros_like), "not exported"),
    ("a doubled factor", QUERY, q8(lambda x: x * 2), "is 2 times"),
    ("a factor 1.13", UP, q8(lambda x: x * 1.13), "is 1.13 times"),
    ("a sign", QUERY, q8(np.negative), "is -1 times"),
    ("scales of rows lost", QUERY, scale_lost, "each row under a factor"),
    ("scales of groups rolled", QUERY, with_codes(of_wrong_groups), "of their own"),
    ("codes off by one", QUERY, with_codes(clipped), "zero point"),
    ("two's complement", QUERY, with_codes(twos_complement), "two's complement"),
    ("neighbours exchanged", QUERY, with_codes(swapped_nibbles), "four-bit codes in another order"),
    ("halves for neighbours", QUERY, with_codes(in_halves), "four-bit codes in another order"),
    ("a matrix transposed", QUERY, q8(np.transpose), "transposed"),
    ("heads rolled", QUERY, q8(heads_rolled), "rows in another order"),
    ("rows reversed", "embed_tokens.weight", q8(lambda x: x[::-1].copy()), "rows in another order"),
    ("columns reversed", QUERY, q8(lambda x: x[:, ::-1].copy()), "columns in another order"),
    ("slices packed the other way", TABLE, q8(repacked), "columns in another order"),
    ("gate and up exchanged", EXPERTS, q8(lambda x: np.roll(x, 64, 1)), "gate and up exchanged"),
    ("experts rolled", EXPERTS, q8(lambda x: np.roll(x, 1, 0)), "experts in another order"),
    ("a factor of each expert kept and folded", "layers.0.experts.down_proj", q8(lambda x: x * FOLD), "of the experts"),
    ("quantised twice", UP, once_more, "quantised before"),
    ("another model's", QUERY, q8(lambda x: np.random.default_rng(0).normal(0, 0.04, x.shape)), "nothing to do"),
    ("half a matrix noise", QUERY, q4(lambda x: np.where(np.arange(128) < 64, x, 0.02)), ""),
]


@pytest.mark.parametrize(("told", "name", "broken", "cause"), BROKEN, ids=[case[0] for case in BROKEN])
def test_a_broken_tensor_is_wrong_and_its_cause_is_named(original, told, name, broken, cause):
    some = {n: original[n] for n in {name: 0, QUERY: 0, UP: 0, NORM: 0, EXPERTS: 0}}
    found = audit(quantised(some, "Q8_0") | {name: broken(original[name])}, some)
    assert [v.name for v in found.tensors if v.state == WRONG] == [name]
    (wrong,) = found.of(WRONG)
    assert not found.faithful
    if cause:
        assert any(re.search(cause, why) for why in wrong.causes), wrong.causes


def test_tensors_that_hold_each_others_content_are_named(original):
    file = quantised(original, "Q8_0")
    file[GATE], file[UP] = file[UP], file[GATE]
    found = {v.name: v.causes for v in audit(file, original).of(WRONG)}
    assert found == {GATE: (f"holds what the original has as {UP}",), UP: (f"holds what the original has as {GATE}",)}


def test_what_is_missing_and_what_is_more_is_told_and_what_may_be_absent_is_not(original):
    file = quantised(original, "Q4_0")
    del file[NORM], file[GATE]
    file["spare.weight"] = np.zeros((2, 2), np.float32)
    found = audit(file, original, optional=lambda name: name == NORM)
    assert ([v.name for v in found.of(MISSING)], [v.name for v in found.of(EXTRA)]) == ([GATE], ["spare.weight"])
    assert not found.faithful


def test_a_tensor_with_more_error_than_its_bits_should_cost_is_coarse(original):
    codes, scale, rest = int4_leaves(original[QUERY])
    wide = np.asarray(original[QUERY], np.float32).reshape(*scale.shape, -1) / (2.2 * scale[..., None])
    coarse = in_int4(np.clip(np.rint(wide), -8, 7).astype(np.int64).reshape(codes.shape), 2.2 * scale, rest)
    (verdict,) = audit({QUERY: coarse}, {QUERY: original[QUERY]}).tensors
    assert verdict.state == COARSE


@pytest.mark.parametrize(("rank", "says"), [(1, "one direction"), (5, "rank 5")])
def test_a_touched_float_matrix_tells_the_rank_of_its_change(original, rank, says):
    rng = np.random.default_rng(rank)
    delta = 0.02 * rng.normal(size=(D, rank)) @ rng.normal(size=(rank, D))
    w = (np.asarray(original[QUERY], np.float64) + delta).astype(np.float32)
    found = audit(dict(original) | {QUERY: w}, original)
    assert [v.name for v in found.of(WRONG)] == [QUERY]
    assert says in found.of(WRONG)[0].causes[0]


def test_floats_of_another_width_are_faithful_where_rounding_explains_them(original):
    halves = {name: np.asarray(x, np.float32).astype(np.float16) for name, x in original.items()}
    assert audit(halves, original).faithful
    wider = {name: np.asarray(x, np.float32) for name, x in original.items()}
    assert audit(wider, original).faithful


def test_nan_is_wrong_and_said(original):
    w = np.asarray(original[QUERY], np.float32)
    w[3, 4] = np.nan
    (wrong,) = audit(dict(original) | {QUERY: w}, original).of(WRONG)
    assert wrong.causes == ("holds NaN or infinity",)


def test_a_stack_is_read_matrix_by_matrix():
    x = np.random.default_rng(0).normal(size=(3, 8, 32)).astype(np.float32)
    w = in_gguf(x, "Q8_0")
    assert isinstance(w, Packed)
    np.testing.assert_array_equal(w[1][2:5], np.asarray(w)[1, 2:5])
    np.testing.assert_array_equal(w[2][np.array([7, 0])], np.asarray(w)[2, [7, 0]])


# the verb


def test_the_verb_prints_writes_and_exits_with_what_it_finds(tmp_path, capsys):
    import json
    import shutil

    import tiny
    from safetensors.numpy import load_file, save_file

    from numgemma.cli import main

    base = tiny.write(tmp_path / "base", tiny.VARIANTS["ple"])
    copy = shutil.copytree(base, tmp_path / "copy<b>")
    assert main(["audit", str(copy), "--against", str(base)]) == 0
    assert "faithful" in capsys.readouterr().out
    tensors = load_file(copy / "model.safetensors")
    name = next(n for n in tensors if n.endswith("layers.2.input_layernorm.weight"))
    save_file(tensors | {name: (tensors[name] + 1).astype(tensors[name].dtype)}, copy / "model.safetensors")
    out = [f"--json={tmp_path / 'a.json'}", f"--html={tmp_path / 'a.html'}"]
    assert main(["audit", str(copy), "--against", str(base), *out]) == 1
    said = capsys.readouterr().out
    assert "layers.2.input_layernorm.weight" in said
    assert "is 1 + w" in said
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["schema"], found["counts"]["WRONG"], found["faithful"]) == ("numgemma.audit/1", 1, False)
    page = (tmp_path / "a.html").read_text()
    assert "copy&lt;b&gt;" in page
    assert "copy<b>" not in page
