"""Codes multiplied as they lie equal the definition, which decodes rows first; the same on any number of threads."""

import ml_dtypes
import numpy as np
import pytest

from numgemma.ops import coded, columns, decoded, definitions, relay, threads, twins
from numgemma.weights.gguf import tensor
from numgemma.weights.packed import piled
from numgemma.weights.quantised import unpacked

TYPES = {"Q4_0": (2, 18, 32, (0,)), "Q8_0": (8, 34, 32, (0,)), "Q4_K": (12, 144, 256, (0, 2))}
TYPES |= {"Q5_K": (13, 176, 256, (0, 2)), "Q6_K": (14, 210, 256, (208,))}  # id, bytes, weights, where halves stand


def blocks(kind, shape, seed=0):
    """A matrix of random codes and scales, or a stack of them."""
    number, size, weights, halves = TYPES[kind]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (int(np.prod(shape)) // weights, size), np.uint8)
    for at in halves:
        raw[:, at : at + 2] = rng.normal(0, 0.01, (len(raw), 1)).astype(np.float16).view(np.uint8)
    return tensor("f", raw.reshape(-1), 0, "w", shape, number)


def compressed(O, I, group, scale, seed=0):
    rng = np.random.default_rng(seed)
    words = rng.integers(-(2**31), 2**31, (O, I // 8)).astype(np.int32)
    scales = rng.normal(0, 0.01, (O, I // group)).astype(scale)
    leaves = {"m.weight_packed": words, "m.weight_scale": scales, "m.weight_shape": np.array([O, I])}
    return unpacked("f", leaves, {"quantization_config": {"quant_method": "compressed-tensors"}})["m.weight"]


def mlx(O, I, group, scale, seed=0):
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**32, (O, I // 8), np.uint32)
    scales, biases = (rng.normal(0, 0.01, (O, I // group)).astype(scale) for _ in range(2))
    leaves = {"m.weight": words, "m.scales": scales, "m.biases": biases}
    return unpacked("f", leaves, {"quantization": {"group_size": group, "bits": 4}})["m.weight"]


def asymmetric(O, I, group, scale, seed=0):
    """compressed-tensors' codes with zero points, which lie along the rows."""
    rng = np.random.default_rng(seed)
    words, zeros = (rng.integers(-(2**31), 2**31, n).astype(np.int32) for n in ((O, I // 8), (-(-O // 8), I // group)))
    leaves = {"m.weight_packed": words, "m.weight_scale": rng.normal(0, 0.01, (O, I // group)).astype(scale)}
    leaves |= {"m.weight_zero_point": zeros, "m.weight_shape": np.array([O, I])}
    return unpacked("f", leaves, {"quantization_config": {"quant_method": "compressed-tensors"}})["m.weight"]


def experts(zeros, E=3, O=16, I=256, group=64):
    """A stack of compressed-tensors' codes that one tensor holds."""
    rng = np.random.default_rng(0)
    words = rng.integers(-(2**31), 2**31, (E, O, I // 8)).astype(np.int32)
    leaves = {"packed": words, "scale": rng.normal(0, 0.01, (E, O, I // group)).astype(np.float32)}
    if zeros:
        leaves["zero_point"] = rng.integers(-(2**31), 2**31, (E, O // 8, I // group)).astype(np.int32)
    leaves = {f"m.experts.down_proj_{leaf}": x for leaf, x in leaves.items()}
    found = unpacked("f", leaves, {"quantization_config": {"quant_method": "compressed-tensors"}})
    return found["m.experts.down_proj"]


def transposed(kind, O, I, group, scale, seed=0, order=None):
    """Random words of GPTQ or AWQ."""
    rng = np.random.default_rng(seed)
    shapes = ((I // 8, O), (I // group, O // 8)) if kind == "gptq" else ((I, O // 8), (I // group, O // 8))
    words, zeros = (rng.integers(-(2**31), 2**31, n).astype(np.int32) for n in shapes)
    leaves = {"m.qweight": words, "m.qzeros": zeros, "m.scales": rng.normal(0, 0.01, (I // group, O)).astype(scale)}
    if kind == "gptq":
        leaves["m.g_idx"] = (np.arange(I) // group if order is None else order).astype(np.int32)
    return unpacked("f", leaves, {"quantization_config": {"bits": 4}})["m.weight"]


MATRICES = {kind: lambda kind=kind: blocks(kind, (37, 768)) for kind in TYPES}
for kind in ("gptq", "awq"):
    MATRICES[kind] = lambda kind=kind: transposed(kind, 40, 768, 64, np.float16)
    MATRICES[f"{kind} wider than a tile"] = lambda kind=kind: transposed(kind, 2088, 768, 128, ml_dtypes.bfloat16)
for make in (compressed, asymmetric, mlx):
    for scale in (np.float32, np.float16, ml_dtypes.bfloat16):
        MATRICES[f"{make.__name__} {np.dtype(scale)}"] = lambda make=make, scale=scale: make(37, 768, 64, scale)


def assert_near(found, x, w):
    truth = np.asarray(w, np.float64) @ x.astype(np.float64)
    right = definitions.linear(x[None], w)[0]
    terms = np.linalg.norm(np.abs(np.asarray(w)) @ np.abs(x)) / len(x) ** 0.5
    assert np.linalg.norm(found - right) <= 1e-6 * max(np.linalg.norm(right), terms)
    assert np.linalg.norm(found - truth) <= 1e-6 * max(np.linalg.norm(truth), terms)


@pytest.mark.parametrize("name", MATRICES)
def test_one_token_s_product_with_codes_equals_the_definition(name):
    w = MATRICES[name]()
    x = np.random.default_rng(1).normal(size=768).astype(np.float32)
    found = coded.times(x, w)
    assert_near(found, x, w)
    np.testing.assert_array_equal(twins.linear(x[None], w)[0], found)


@pytest.mark.parametrize("name", MATRICES)
def test_a_few_tokens_have_the_bits_of_each_alone(name):
    """As those that a drafter guesses, which one pass checks."""
    w, x = MATRICES[name](), np.random.default_rng(1).normal(size=(twins.DRAFTS, 768)).astype(np.float32)
    for found, one in zip(twins.linear(x, w), x, strict=True):
        np.testing.assert_array_equal(found, coded.times(one, w))


STACKS = {kind: lambda kind=kind: blocks(kind, (3, 8, 256)) for kind in TYPES}
STACKS |= {"centred": lambda: experts(False), "zeroed": lambda: experts(True)}


@pytest.mark.parametrize("name", STACKS)
def test_of_a_stack_each_matrix_is_multiplied_by_its_own_rows(name):
    w = STACKS[name]()
    x = np.random.default_rng(1).normal(size=256).astype(np.float32)
    for matrix in w:
        assert_near(coded.times(x, matrix), x, matrix)


@pytest.mark.parametrize(
    "name", ["Q4_K", "mlx bfloat16", "asymmetric float16", *(name for name in MATRICES if "wider" in name)]
)
def test_any_number_of_threads_gives_the_same_bits(name, monkeypatch):
    w, x = MATRICES[name](), np.random.default_rng(1).normal(size=768).astype(np.float32)
    for file, share in ((coded, "SHARE"), (columns, "SHARE"), (relay, "SHARE"), (relay, "WOKEN")):
        monkeypatch.setattr(file, share, 1)
    found = set()
    for count in (1, 2, 5):
        monkeypatch.setattr(threads, "allowed", lambda count=count: count)
        found.add(coded.times(x, w).tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("count", [1, 3])
def test_rows_are_decoded_to_the_bits_of_the_definition(name, count, monkeypatch):
    monkeypatch.setattr(decoded, "LEAST", 1)
    monkeypatch.setattr(threads, "allowed", lambda: count)
    w = MATRICES[name]()
    found = decoded.decoded(w, slice(5, 36), np.full((31, w.shape[1]), np.nan, np.float32))
    np.testing.assert_array_equal(found.view(np.uint32), w[5:36].view(np.uint32))


def test_rows_of_one_matrix_of_a_stack_are_decoded_where_they_lie():
    w = blocks("Q6_K", (3, 20, 256))[1]
    found = decoded.decoded(w, slice(5, 20), np.empty((15, 256), np.float32))
    np.testing.assert_array_equal(found, w[5:20])


def test_a_stack_that_the_file_holds_in_pieces_is_decoded_without_a_kernel():
    pair = [blocks("Q4_K", (9, 256), seed) for seed in (1, 2)]
    w = piled(pair, (18, 256), "Q4_K")
    found = decoded.decoded(w, slice(4, 14), np.full((10, 256), np.nan, np.float32))
    np.testing.assert_array_equal(found, np.concatenate([pair[0][4:], pair[1][:5]]))


def test_what_is_not_the_file_s_own_codes_any_more_is_decoded():
    """Some of the columns, or rounded to another dtype; and infinity, which the two sums would cancel."""
    w, x = blocks("Q4_K", (8, 512)), np.ones(512, np.float32)
    assert coded.times(x[:256], w[:, :256]) is None
    assert coded.times(x, w.astype(np.float16)) is None
    x[3] = np.inf
    assert coded.times(x, w) is None
    assert not np.isfinite(twins.linear(x[None], w)).any()


def test_columns_whose_groups_stand_in_an_order_of_their_own_are_decoded():
    order = np.random.default_rng(0).permutation(768) // 64
    w, x = transposed("gptq", 40, 768, 64, np.float16, order=order), np.ones(768, np.float32)
    assert coded.times(x, w) is None
    np.testing.assert_allclose(twins.linear(x[None], w)[0], np.asarray(w).sum(1), rtol=1e-4, atol=1e-4)
