"""More broken files, after kinds that people have met: each is WRONG at its tensor, and its cause is named."""

import re

import ml_dtypes
import numpy as np
import pytest
from test_audit import EXPERTS, NORM, QUERY, UP, int4_leaves, is_matrix, original, q8, quantised, words
from test_weights import read

from numgemma.smallfloats import BFLOAT16
from numgemma.surgery.audit import WRONG, audit
from numgemma.weights.quantised import unpacked

assert original  # the fixture
assert is_matrix


def wide(x):
    return np.asarray(x, np.float32)


def fp4_codes(w):
    """The nearest of E2M1's values, as codes."""
    from numgemma.weights.bits import E2M1

    return np.abs(w[..., None] - E2M1).argmin(-1).astype(np.uint8)


def packed_pairs(codes):
    flat = codes.reshape(len(codes), -1)
    return flat[:, ::2] | flat[:, 1::2] << 4


def nvfp4(x, divided_by=lambda g: g):
    """compressed-tensors' NVFP4; the file's global scale may be something else than what was divided by."""
    w = wide(x).reshape(len(x), -1, 16)
    g = np.float32(2688 / np.abs(w).max())
    scale = (np.abs(w).max(-1) / 6 * g).astype(ml_dtypes.float8_e4m3fn)
    codes = fp4_codes(w / (scale.astype(np.float32) / g)[..., None])
    leaves = {"weight_packed": packed_pairs(codes), "weight_scale": scale}
    leaves["weight_global_scale"] = np.array([divided_by(g)], np.float32)
    return unpacked("f", {f"m.{leaf}": v for leaf, v in leaves.items()}, {})["m.weight"]


def mxfp4(x, shift=0):
    w = wide(x).reshape(len(x), -1, 32)
    exponents = np.floor(np.log2(np.abs(w).max(-1))) - 2
    codes = fp4_codes(w / np.exp2(exponents)[..., None])
    leaves = {"m.weight_packed": packed_pairs(codes), "m.weight_scale": (exponents + 127 + shift).astype(np.uint8)}
    return unpacked("f", leaves, {})["m.weight"]


def gptq(x, stored=0, group=32, order=None):
    """GPTQ v2's int4 with zero points of 8; stored: what the file has more of them; order: of columns to groups."""
    w = wide(x)
    index = np.arange(w.shape[1]) // group if order is None else order
    scale = np.stack([np.abs(w[:, index == g]).max(1) / 7.5 for g in range(w.shape[1] // group)], 1)
    scale = scale * np.linspace(0.8, 2.5, scale.shape[1])  # groups that differ, as those of an order do
    codes = np.clip(np.rint(w / scale[:, index]) + 8, 0, 15).astype(np.int64)
    zeros = np.full((scale.shape[1], len(w)), 8 + stored)
    leaves = {
        "qweight": words(codes, 4).T.copy(),
        "qzeros": words(zeros, 4),
        "scales": scale.T.astype(np.float16).copy(),
    }
    settings = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2", "sym": False}
    return unpacked("f", {f"m.{k}": v for k, v in leaves.items()}, {"quantization_config": settings})["m.weight"]


def mlx(x, biases=lambda b: b, group=32):
    w = wide(x).reshape(len(x), -1, group)
    low, high = w.min(-1, keepdims=True), w.max(-1, keepdims=True)
    scale = (high - low) / 15
    codes = np.clip(np.rint((w - low) / scale), 0, 15).astype(np.int64).reshape(x.shape)
    leaves = {"weight": words(codes, 4).view(np.uint32), "scales": scale[..., 0], "biases": biases(low[..., 0])}
    leaves = {f"m.{k}": v.astype(np.float32) if k != "weight" else v for k, v in leaves.items()}
    return unpacked("f", leaves, {"quantization": {"group_size": group, "bits": 4}})["m.weight"]


def int8_unsigned(x):
    """Codes of int8 that a loader took for unsigned ones."""
    scale = np.abs(wide(x)).max(1, keepdims=True) / 127
    codes = np.rint(wide(x) / scale).astype(np.int8)
    w = unpacked("f", {"m.weight": codes, "m.weight_scale": scale}, {})["m.weight"]
    right = w.decode
    from dataclasses import replace

    return replace(w, decode=lambda at: (y := right(at)) + np.where(y < 0, 256 * scale[at], 0).astype(np.float32))


def stale_scales(x):
    """bitsandbytes with another matrix's block scales: here those of the next rows."""
    codes, scale, rest = int4_leaves(x)
    leaves = {"m.weight_packed": words(codes + 8, 4), "m.weight_scale": np.roll(scale, 1, 0) * scale[:, ::-1] / scale}
    return unpacked("f", leaves | {f"m.{k}": v for k, v in rest.items()}, {})["m.weight"]


def interleaved(x):
    """Rows of each head for a rotation of neighbours, where Gemma's halves turn."""
    return x.reshape(4, 2, 16, -1).swapaxes(1, 2).reshape(x.shape)


def one_expert(x):
    return np.broadcast_to(x[:1], x.shape).copy()


def cut_off(x):
    x = x.copy()
    x[96:] = 0
    return x


def merged_twice(x):
    rng = np.random.default_rng(1)
    return x + 2 * rng.normal(0, 0.02, (len(x), 4)) @ rng.normal(0, 0.5, (4, x.shape[1]))


def without_direction(x):
    v = np.random.default_rng(2).normal(size=len(x))
    v /= np.linalg.norm(v)
    return wide(x) - np.outer(v, v @ wide(x))


CHANNELS = np.random.default_rng(3).uniform(0.4, 2.5, 128).astype(np.float32)

# after which thread, the tensor, what was done to it, what the cause says
BROKEN = [
    ("modular 6699: the global scale multiplied", QUERY, lambda x: nvfp4(x, lambda g: 1 / g), "times the original"),
    ("exponents with another bias", QUERY, lambda x: mxfp4(x, 1), "times the original"),
    ("vllm 38966: zero points of GPTQ v1", QUERY, lambda x: gptq(x, 1), "zero point"),
    (
        "an order of groups that was not read",
        QUERY,
        lambda x: gptq(x, order=np.arange(128) % 4),
        "",
    ),  # no two weights under one factor
    ("bitsandbytes 1946: scales of other blocks", QUERY, stale_scales, "of their own"),
    ("minima of the groups lost", QUERY, lambda x: mlx(x, np.zeros_like), "minima|offset"),
    ("minima with the other sign", QUERY, lambda x: mlx(x, np.negative), "minima|offset"),
    ("codes taken for unsigned", QUERY, int8_unsigned, "two's complement"),
    ("mold 1074: a norm with 1 added twice", NORM, lambda x: x + 2, "2 \\+ w"),
    ("an embedding that was scaled already", "embed_tokens.weight", q8(lambda x: x * 128**0.5), "is 11.3"),
    ("llm-compressor 2102: channels rescaled, their norm not", UP, q8(lambda x: x * CHANNELS), "column"),
    ("rows of a head for another rotation", QUERY, q8(interleaved), "rows in another order"),
    ("every expert is the first", EXPERTS, q8(one_expert), "experts in another order"),
    ("a table that ends early", QUERY, q8(cut_off), "zeros"),
    ("unsloth 869: an adapter merged with twice its scale", QUERY, merged_twice, "rank 4"),
    ("a direction removed", QUERY, without_direction, "rank 1"),
]


@pytest.mark.parametrize(("told", "name", "broken", "cause"), BROKEN, ids=[case[0] for case in BROKEN])
def test_a_broken_tensor_is_wrong_and_its_cause_is_named(original, told, name, broken, cause):
    some = {n: original[n] for n in {name: 0, QUERY: 0, UP: 0, NORM: 0, EXPERTS: 0}}
    found = audit(quantised(some, "Q8_0") | {name: broken(original[name])}, some)
    assert [v.name for v in found.tensors if v.state == WRONG] == [name]
    (wrong,) = found.of(WRONG)
    if cause:
        assert any(re.search(cause, why) for why in wrong.causes), wrong.causes


@pytest.mark.parametrize("make", [nvfp4, mxfp4, gptq, mlx])
def test_unbroken_these_files_are_faithful(original, make):
    found = audit(
        quantised({QUERY: original[QUERY]}, "Q8_0") | {QUERY: make(original[QUERY])}, {QUERY: original[QUERY]}
    )
    assert not found.of(WRONG)


# what each format's own tool made, of reference_outputs/make_quantised.py: name -> the seed of its matrix
SEEDS = {"ct-w4a16": 1, "ct-w4a16-asym": 2, "ct-w3a16": 3, "ct-w8a16": 4, "ct-w8a8": 5, "ct-fp8": 6, "ct-nvfp4": 7}
SEEDS |= {"ct-mxfp4": 8, "ct-fp8-block": 9, "fp8": 10, "mlx-mxfp4": 30, "mlx-mxfp8": 31, "mlx-nvfp4": 32}
SEEDS |= {f"mlx-{bits}bit": 20 + i for i, bits in enumerate((2, 3, 4, 5, 6, 8))}
SEEDS |= {"bnb-nf4": 40, "bnb-nf4-nested": 41, "bnb-fp4": 42, "bnb-int8": 43}


@pytest.mark.parametrize("name", SEEDS)
def test_what_the_formats_own_tools_made_is_not_wrong_and_of_another_matrix_it_is(name):
    """A row and a column that stand out cost their neighbours; so some are coarse."""
    w = np.random.default_rng(SEEDS[name]).normal(0, 0.05, (24, 128)).astype(np.float32)
    w[3] *= 40
    w[:, 7] *= 9
    made, _ = read(name)
    found = audit({QUERY: made}, {QUERY: w.astype(BFLOAT16)})
    assert not found.of(WRONG), found.tensors
    turned = audit({QUERY: made}, {QUERY: w[::-1].astype(BFLOAT16)})
    assert turned.of(WRONG)
