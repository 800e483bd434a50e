"""Each operation against a float64 loop or einsum written here, and its rounding against a count by hand."""

import math

import ml_dtypes
import numpy as np
import pytest
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from numgemma.masks import causal_mask
from numgemma.ops import definitions as ops

BF16 = np.dtype(ml_dtypes.bfloat16)
sizes = st.integers(1, 9)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@settings(deadline=None, max_examples=30)
@given(T=sizes, i=sizes, o=sizes, seed=st.integers(0, 99), storage=st.sampled_from(["<f4", "<f2", "<f8", BF16]))
def test_linear_is_the_sum_over_inputs(T, i, o, seed, storage):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((T, i)).astype(np.float32), rng.standard_normal((o, i)).astype(storage)
    expected = np.einsum("ti,oi->to", x.astype(np.float64), w.astype(np.float32).astype(np.float64))
    y = ops.linear(x, w)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_linear_in_blocks_equals_linear_at_once(rng, monkeypatch):
    x, w = rng.standard_normal((3, 8)), rng.standard_normal((21, 8))
    whole = ops.linear(x, w)
    monkeypatch.setattr(ops, "BLOCK", 40)  # four times x is more: twelve rows at a time, the last block is short
    np.testing.assert_allclose(ops.linear(x, w), whole, rtol=1e-15)


def test_a_bfloat16_linear_sums_in_float32_and_rounds_once(rng):
    x, w = rng.standard_normal((4, 500)).astype(BF16), rng.standard_normal((6, 500)).astype(BF16)
    exact = np.einsum("ti,oi->to", x.astype(np.float64), w.astype(np.float64))
    y = ops.linear(x, w)
    assert y.dtype == BF16
    one_rounding = 2.0**-8
    assert (abs(y.astype(np.float64) - exact) <= one_rounding * abs(exact) + 1e-4).all()


def test_weights_take_the_precision_of_the_run_before_they_are_used(rng):
    x, w = np.ones((1, 1), BF16), np.array([[1 + 2.0**-12]], np.float32)  # rounds to 1 in bfloat16
    assert ops.linear(x, w)[0, 0] == 1
    assert ops.rms_norm(np.ones((1, 2), BF16), np.float32([1 + 2.0**-12] * 2), 0.0)[0, 0] == 1


def test_rms_norm_divides_by_the_root_mean_square_and_multiplies_by_the_weight(rng):
    x, w, eps = rng.standard_normal((3, 7)), rng.uniform(0.3, 1.7, 7), 0.1
    for t in range(3):
        rms = math.sqrt(sum(v * v for v in x[t]) / 7 + eps)
        expected = [v / rms * s for v, s in zip(x[t], w, strict=True)]
        np.testing.assert_allclose(ops.rms_norm(x, w, eps)[t], expected, rtol=1e-12)
        np.testing.assert_allclose(ops.rms_norm(x, None, eps)[t], x[t] / rms, rtol=1e-12)


def test_a_bfloat16_norm_is_the_float32_norm_rounded_once(rng):
    x, w = rng.standard_normal((5, 64)).astype(BF16), rng.uniform(0.3, 1.7, 64).astype(BF16)
    wide = ops.rms_norm(x.astype(np.float32), w, 1e-6)
    np.testing.assert_array_equal(ops.rms_norm(x, w, 1e-6), wide.astype(BF16))


def test_scale_rounds_the_result_and_not_the_constant():
    x = np.array([1.0, 3.0], BF16)
    c = 1 + 2.0**-9  # half a bfloat16 step above 1
    assert ops.scale(x, c)[1] == BF16.type(3 * c)
    np.testing.assert_array_equal(ops.scale(x, np.array([c], np.float32)), x)  # but a stored tensor is rounded first


def test_gelu_is_exact_where_its_result_is_small_too():
    x = np.linspace(-9, 9, 40001, dtype=np.float32)
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x.astype(np.float64) ** 3)
    truth = x / (1 + np.exp(-2 * u))
    error = np.abs(ops.gelu_tanh(x) - truth) / np.abs(np.where(x == 0, 1, truth))
    assert (error <= 2e-7 + 5 * 2**-23 * np.abs(u)).all()  # 2u is rounded five times, and e^(-2u) off by what it is off
    assert ops.gelu_tanh(np.float32([-40, -1e9, 1e9])).tolist() == [0, 0, 1e9]


def test_gelu_is_the_tanh_approximation_and_not_the_exact_one():
    x = np.linspace(-4, 4, 33)
    tanh = [v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x]
    exact = [v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    np.testing.assert_allclose(ops.gelu_tanh(x), tanh, rtol=1e-12, atol=1e-15)
    assert abs(ops.gelu_tanh(x) - exact).max() > 1e-4


def test_softcap_bounds_and_keeps_order():
    x = np.array([-1e4, -30.0, 0.1, 30.0, 1e4])
    y = ops.softcap(x, 30.0)
    np.testing.assert_allclose(y, [30 * math.tanh(v / 30) for v in x], rtol=1e-12)
    assert y[2] == pytest.approx(0.1, rel=1e-4)


def test_softmax_gives_hidden_places_nothing(rng):
    x, mask = rng.standard_normal((4, 6)), np.tri(4, 6, 2, dtype=bool)
    y = ops.softmax(x, mask)
    np.testing.assert_allclose(y.sum(-1), 1)
    assert (y[~mask] == 0).all()
    for t in range(4):
        seen = np.exp(x[t, mask[t]])
        np.testing.assert_allclose(y[t, mask[t]], seen / seen.sum())


def test_softmax_does_not_overflow():
    np.testing.assert_allclose(ops.softmax(np.array([[1e4, 1e4, -1e4]])), [[0.5, 0.5, 0]])


@settings(deadline=None, max_examples=25)
@given(T=sizes, half=st.integers(1, 8), seed=st.integers(0, 99), part=st.floats(0, 1))
def test_rope_turns_lane_pairs_i_and_i_plus_half(T, half, seed, part):
    H, angles = 2 * half, int(part * half)
    positions = np.arange(5, 5 + T)
    x = np.random.default_rng(seed).standard_normal((T, 2, H))
    cos, sin = ops.rope_table(positions, H, 1e4, angles, 1.0, np.dtype(float))
    expected = x.copy()
    for t, n, i in np.ndindex(T, 2, angles):
        turn = positions[t] * 1e4 ** (-2 * i / H)
        a, b = x[t, n, i], x[t, n, i + half]
        expected[t, n, i] = a * math.cos(turn) - b * math.sin(turn)
        expected[t, n, i + half] = b * math.cos(turn) + a * math.sin(turn)
    np.testing.assert_allclose(ops.rope(x, cos, sin), expected, rtol=1e-9, atol=1e-9)


def test_rope_makes_scores_depend_on_distance_alone(rng):
    q, k = rng.standard_normal((2, 16))

    def score(i, j):
        cos, sin = ops.rope_table(np.array([i, j]), 16, 1e4, 8, 1.0, np.dtype(float))
        a, b = ops.rope(np.stack([q, k])[:, None], cos, sin)[:, 0]
        return a @ b

    assert score(9, 4) == pytest.approx(score(1009, 1004))
    assert score(9, 4) != pytest.approx(score(9, 3))


def test_rope_factor_slows_every_turn_down():
    fast = ops.rope_table(np.array([3]), 8, 1e4, 4, 1.0, np.dtype(float))
    slow = ops.rope_table(np.array([24]), 8, 1e4, 4, 8.0, np.dtype(float))
    np.testing.assert_allclose(fast, slow)


@settings(deadline=None, max_examples=25)
@given(T=sizes, K=st.integers(1, 3), G=st.integers(1, 3), H=sizes, past=st.integers(0, 5), seed=st.integers(0, 99))
def test_attend_is_the_weighted_mean_of_visible_values(T, K, G, H, past, seed):
    rng = np.random.default_rng(seed)
    S = T + past
    q, k, v = (rng.standard_normal(shape) for shape in ((T, K * G, H), (S, K, H), (S, K, H)))
    mask = causal_mask(np.arange(past, S), 0, 4)
    y = ops.attend(q, k, v, mask)
    for t, n in np.ndindex(T, K * G):
        seen = [s for s in range(S) if past + t - 3 <= s <= past + t]  # a window of 4 counts the query itself
        weights = np.array([math.exp(q[t, n] @ k[s, n // G]) for s in seen])
        expected = sum(w * v[s, n // G] for w, s in zip(weights / weights.sum(), seen, strict=True))
        np.testing.assert_allclose(y[t, n], expected, rtol=1e-9, atol=1e-9)


def test_experts_are_chosen_renormalised_and_only_then_scaled(rng):
    scores, scale = rng.standard_normal((5, 6)), rng.uniform(0.3, 1.7, 6)
    probs = ops.expert_probs(scores)
    weights, ids = ops.choose_experts(probs, 2, scale, scores.dtype)
    for t in range(5):
        best = sorted(range(6), key=lambda e: -probs[t, e])[:2]
        assert ids[t].tolist() == best
        share = probs[t, best] / probs[t, best].sum()
        np.testing.assert_allclose(weights[t], share * scale[best])


def test_routing_stays_in_float32_in_a_bfloat16_run(rng):
    probs = ops.expert_probs(rng.standard_normal((5, 6)).astype(BF16))
    weights, _ = ops.choose_experts(probs, 2, np.ones(6, BF16), BF16)
    assert probs.dtype == weights.dtype == np.float32


def test_a_window_of_one_sees_only_itself():
    np.testing.assert_array_equal(causal_mask(np.arange(3), 0, 1), np.eye(3, dtype=bool))


def test_no_window_sees_all_that_came_before():
    np.testing.assert_array_equal(causal_mask(np.arange(2, 4), 0, None), [[1, 1, 1, 0], [1, 1, 1, 1]])


def test_embed_rounds_to_the_run(rng):
    table = rng.standard_normal((5, 3)).astype(np.float32)
    assert_close(ops.embed(np.array([4, 4, 0]), table, np.dtype(np.float64)), table[[4, 4, 0]], "float64")
    assert ops.embed(np.array([1]), table, BF16).dtype == BF16
