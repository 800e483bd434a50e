"""Each compiled twin equals its definition on any shape, with any number of threads; NaN and infinity come through."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import numgemma
from numgemma import ops
from numgemma.cli import main
from numgemma.errors import InputError
from numgemma.masks import Spans, causal_mask, everything
from numgemma.ops import attending, definitions, kernels, threads, twins
from numgemma.trace import Recorder

STORED = st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16])
RUNS = st.sampled_from([np.float32, ml_dtypes.bfloat16])
SIZES = st.integers(1, 70)  # of a row: most are no multiple of a vector
TOKENS = st.integers(1, 20) | st.just(51)  # of which six or four go together from the ninth on


def drawn(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape, np.float32)


def assert_equal(found, definition, least=0.0):
    """Within what rounding makes of a float32 or bfloat16 result, NaN and infinity where the definition has them.

    least: the size below which a result is all rounding.
    """
    assert found.shape == definition.shape
    assert found.dtype == definition.dtype
    limit = 1e-6 if found.dtype == np.float32 else 1e-3
    a, b = found.astype(np.float64), definition.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    finite = np.isfinite(b)
    np.testing.assert_array_equal(a[~finite], b[~finite])
    assert np.linalg.norm(a[finite] - b[finite]) <= limit * max(np.linalg.norm(b[finite]), least)


@settings(deadline=None)
@given(TOKENS, SIZES, SIZES, STORED, RUNS)
def test_linear(T, I, O, stored, run):
    x, w = drawn(T, I).astype(run), drawn(O, I, seed=1).astype(stored)
    terms = np.linalg.norm(np.abs(x.astype(np.float32)) @ np.abs(w.astype(np.float32)).T)  # a sum of them may cancel
    assert_equal(twins.linear(x, w), definitions.linear(x, w), terms / 3)


@settings(deadline=None)
@given(TOKENS, SIZES, SIZES, STORED, RUNS)
def test_affine(T, I, O, stored, run):
    x, w, b = drawn(T, I).astype(run), drawn(O, I, seed=1).astype(stored), drawn(O, seed=2).astype(stored)
    terms = np.linalg.norm(np.abs(x.astype(np.float32)) @ np.abs(w.astype(np.float32)).T)
    assert_equal(twins.affine(x, w, b), definitions.affine(x, w, b), terms / 3)


@pytest.mark.parametrize("T", [1, 4, 30, 60])
@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_linear_over_more_rows_than_a_thread_takes_at_once(T, stored):
    x, w = drawn(T, 300), drawn(9000, 300, seed=1).astype(stored)
    assert_equal(twins.linear(x, w), definitions.linear(x, w))


def test_linear_reads_every_number_that_float16_and_bfloat16_have():
    for dtype in (np.float16, ml_dtypes.bfloat16):
        w = np.arange(1 << 16, dtype=np.uint16).view(dtype)[:, None]
        for T in (1, 2, 60):
            x = np.ones((T, 1), np.float32)
            with np.errstate(invalid="ignore"):
                np.testing.assert_array_equal(twins.linear(x, w), definitions.linear(x, w))


def test_linear_of_weights_that_are_no_plain_rows():
    x, w = drawn(3, 8), drawn(9, 16, seed=1)[:, ::2]
    assert_equal(twins.linear(x, w), definitions.linear(x, w))
    assert twins.linear(x[:0], w).shape == (0, 9)  # an expert that nobody chose


@settings(deadline=None)
@given(TOKENS, SIZES, RUNS, STORED | st.none())
def test_rms_norm(T, D, run, stored):
    assume(run is np.float32 or stored is not np.float16)
    x = (3 * drawn(T, 2, D)).astype(run)
    w = None if stored is None else drawn(D, seed=1).astype(stored)
    assert_equal(twins.rms_norm(x, w, 1e-6), definitions.rms_norm(x, w, 1e-6))


@settings(deadline=None)
@given(TOKENS, st.integers(1, 4), st.integers(1, 20), RUNS)
def test_rope(T, N, half, run):
    x, cos, sin = drawn(T, N, 2 * half).astype(run), *drawn(2, T, 2 * half, seed=1).astype(run)
    assert_equal(twins.rope(x, cos, sin), definitions.rope(x, cos, sin))


@settings(deadline=None)
@given(TOKENS, SIZES, RUNS, st.floats(0.01, 30))
def test_gelu(T, F, run, size):
    x = (size * drawn(T, F)).astype(run)
    assert_equal(twins.gelu_tanh(x), definitions.gelu_tanh(x), np.linalg.norm(x.astype(np.float32)))
    assert_equal(twins.silu(x), definitions.silu(x), np.linalg.norm(x.astype(np.float32)))


@settings(deadline=None)
@given(TOKENS, SIZES, RUNS, RUNS)
def test_gated_gelu(T, F, run, other):
    gate, up = (3 * drawn(T, F)).astype(run), drawn(T, F, seed=1).astype(other)
    assert_equal(twins.gated_gelu(gate, up), definitions.gated_gelu(gate, up), np.sqrt(gate.size))


@settings(deadline=None)
@given(TOKENS, SIZES, SIZES, STORED, RUNS)
def test_clipped_linear(T, I, O, stored, run):
    x, w = drawn(T, I).astype(run), drawn(O, I, seed=1).astype(stored)
    before, inner, outer = x.copy(), *np.array([[-0.7, 0.4], [-0.9, 1.1]]).astype(stored)
    found = twins.clipped_linear(x, w, inner, outer)
    terms = np.linalg.norm(np.abs(np.clip(x, -0.7, 0.4).astype(np.float32)) @ np.abs(w.astype(np.float32)).T)
    assert_equal(found, definitions.clipped_linear(x, w, inner, outer), terms / 3)
    np.testing.assert_array_equal(x, before)


# what of an operation may follow the number of threads is who computes a number, not how


def under(number, call):
    """What the call returns on so many threads."""
    with ops.using("numba", number):
        return call()


SHAPES = [(1, 9001), *((T, 9001) for T in range(2, 10)), (5, 9000), (49, 9001), (61, 301), (701, 907), (2049, 907)]


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("T", "O"), SHAPES)
def test_linear_has_the_same_bits_on_any_number_of_threads(monkeypatch, T, O, stored):
    x, w = drawn(T, 300), drawn(O, 300, seed=1).astype(stored)
    monkeypatch.setattr(twins, "BLOCK", 1 << 18)  # several blocks, of which the last ones are small
    one, *others = (under(number, lambda: twins.linear(x, w)) for number in (1, 2, 3, 8, 2))
    assert_equal(one, definitions.linear(x, w))
    for other in others:
        np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("T", range(2, 9))
def test_few_tokens_times_a_matrix_of_any_height_are_the_definitions(T, stored):
    """Also a matrix of one row, and of odd numbers of rows, whose middle one has no partner."""
    for O in (1, 2, 3, 4, 5, 64, 65):
        x, w = drawn(T, 700), drawn(O, 700, seed=1).astype(stored)
        terms = np.linalg.norm(np.abs(x) @ np.abs(w.astype(np.float32)).T)
        assert_equal(twins.linear(x, w), definitions.linear(x, w), terms / 3)


def test_a_token_among_few_has_the_same_bits_whatever_the_others_are():
    w = drawn(301, 300, seed=1).astype(ml_dtypes.bfloat16)
    for T in range(2, 9):
        x = drawn(T, 300)
        for t in range(T):
            other = np.full_like(x, np.nan)
            other[t] = x[t]
            np.testing.assert_array_equal(twins.linear(other, w)[t], twins.linear(x, w)[t])


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_number_among_many_has_the_same_bits_whatever_is_computed_beside_it(stored):
    """In any tile, also one at an edge; 800 tokens and 700 numbers are more than are gone over at once."""
    x, w = drawn(800, 700), drawn(203, 700, seed=1).astype(stored)
    whole = twins.linear(x, w)
    assert_equal(whole, definitions.linear(x, w))
    for t, o in ((1, 0), (0, 1), (5, 7), (745, 100), (700, 202)):
        np.testing.assert_array_equal(twins.linear(x[t:], w[o:]), whole[t:, o:])
        np.testing.assert_array_equal(twins.linear(x[: 800 - t], w[: 203 - o]), whole[: 800 - t, : 203 - o])
    for T in range(9, 33):  # in sixes and fours, whose last has a row to spare where there are odd ones
        np.testing.assert_array_equal(twins.linear(x[:T], w), whole[:T])


PLAIN = ["gelu_tanh", "silu", "glu", "softcap", "rms_norm", "gated_gelu", "rope"]
PLACES = ["attend", "attend_all", "attend_frames", "causal_conv"]


@pytest.mark.parametrize("name", PLAIN + PLACES)
@pytest.mark.parametrize("run", [np.float32, ml_dtypes.bfloat16])
def test_every_other_twin_has_the_same_bits_on_any_number_of_threads(name, run):
    x, (k, v) = drawn(411, 8, 36).astype(run), drawn(2, 411, 2, 36, seed=1).astype(run)
    given = {
        "rms_norm": (x, None, 1e-6),
        "gated_gelu": (x, 2 * x),
        "glu": (np.concatenate([x, x[::-1]], -1),),  # as many numbers out as in the others: fewer would not be cut
        "softcap": (x, 3.0),
        "attend": (x, k, v, causal_mask(np.arange(411), 0, 100)),
        "attend_all": (x, k, v),
        "attend_frames": (x, x[::-1], 2 * x, x[:13], 12, 50.0),
        "causal_conv": (x.reshape(411, -1).T, drawn(288, 1, 5, seed=2)),
        "rope": (x, *drawn(2, 411, 36, seed=2).astype(run)),
    }.get(name, (x,))
    one, *others = (under(number, lambda: getattr(twins, name)(*given)) for number in (1, 2, 3, 8))
    for other in others:
        np.testing.assert_array_equal(other, one)


@settings(deadline=None)
@given(TOKENS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(0, 600), st.data())
def test_attend(T, K, G, H, past, data):
    S = T + past
    q, k, v = drawn(T, K * G, H), drawn(S, K, H, seed=1), drawn(S, K, H, seed=2)
    if data.draw(st.booleans()):
        mask = causal_mask(np.arange(past, S), 0, data.draw(st.none() | st.integers(1, 300)))
    else:
        end = np.array([data.draw(st.integers(1, S)) for _ in range(T)])
        mask = Spans(np.array([data.draw(st.integers(0, e - 1)) for e in end]), end, S)
    stored = data.draw(STORED)  # what the cache holds
    k, v = k.astype(stored), v.astype(stored)
    whole = definitions.attend(*(x.astype(np.float64) for x in (q, k, v)), np.asarray(mask)).astype(np.float32)
    assert_equal(twins.attend(q, k, v, mask), whole, np.sqrt(q.size) / 3)  # of means of values that may cancel


@settings(deadline=None)
@given(TOKENS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(0, 600), st.data())
def test_attend_rounds_where_a_bfloat16_run_does(T, K, G, H, past, data):
    S = T + past
    drawn_here = drawn(T, K * G, H), drawn(S, K, H, seed=1), drawn(S, K, H, seed=2)
    q, k, v = (x.astype(ml_dtypes.bfloat16) for x in drawn_here)
    mask = causal_mask(np.arange(past, S), 0, data.draw(st.none() | st.integers(1, 300)))
    found, definition = (attend(q, k, v, mask) for attend in (twins.attend, definitions.attend))
    assert found.dtype == definition.dtype
    # one score that a sum in another order rounds otherwise moves one head's row; were scores or probabilities not
    # rounded, a quarter of all numbers would move, or more
    assert (found != definition).mean() <= 0.2 + 2 / found.size
    np.testing.assert_allclose(found.astype(np.float32), definition.astype(np.float32), 2**-7, 1e-2)
    if T <= 4:
        assert_equal(found, definition, np.sqrt(q.size) / 3)
    for number in (1, 3):
        np.testing.assert_array_equal(under(number, lambda: twins.attend(q, k, v, mask)), found)


@pytest.mark.parametrize("H", [64, 72, 300])
@pytest.mark.parametrize("window", [None, 1, 100])
def test_a_bfloat16_run_rounds_so_in_blocks_too(H, window):
    """As softmax over all keys at once, so that a probability is rounded once its sum is known."""
    q, k, v = (x.astype(ml_dtypes.bfloat16) for x in (drawn(300, 2, H), drawn(700, 1, H, seed=1), drawn(700, 1, H)))
    mask = causal_mask(np.arange(400, 700), 0, window)
    assert_equal(twins.attend(q, k, v, mask), definitions.attend(q, k, v, np.asarray(mask)))
    assert_equal(twins.attend_all(q, k, v), definitions.attend(q, k, v, np.ones((300, 700), bool)))


def test_what_is_not_finite_comes_through_a_bfloat16_run():
    q, k, v = (x.astype(ml_dtypes.bfloat16) for x in (drawn(60, 2, 8), drawn(60, 1, 8, seed=1), drawn(60, 1, 8)))
    v[30, 0, 3], v[40, 0, 5], q[50] = np.nan, np.inf, np.nan
    with np.errstate(all="ignore"):
        assert_equal(twins.attend_all(q, k, v), definitions.attend_all(q, k, v))


@settings(deadline=None)
@given(TOKENS, SIZES, RUNS, st.floats(1e-3, 100))
def test_softcap(T, F, run, size):
    x = (size * drawn(T, F)).astype(run)
    found, definition = twins.softcap(x, 30.0), definitions.softcap(x, 30.0)
    assert_equal(found, definition)
    if run is np.float32:  # each number too, not the largest alone
        np.testing.assert_allclose(found, definition, 4e-7)


def test_bfloat16_is_rounded_as_by_its_own_package():
    """Halfway cases to the even one, the largest to infinity, NaN to NaN."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (upper + np.uint32(lower)).view(np.float32)
        with np.errstate(invalid="ignore"):
            expected = x.astype(ml_dtypes.bfloat16)
        found = np.empty(len(x), np.uint16)
        kernels.round_all(x, found)
        in_lanes = x.copy()
        attending.round_all(in_lanes)
        lanes = in_lanes.view(np.uint32)
        assert (lanes & 0xFFFF == 0).all()
        for y in (found, (lanes >> 16).astype(np.uint16)):
            np.testing.assert_array_equal((y & 0x7FFF) > 0x7F80, np.isnan(x))
            np.testing.assert_array_equal(y[~np.isnan(x)], expected.view(np.uint16)[~np.isnan(x)])


def test_attend_on_a_map_and_under_a_watch_is_the_definition():
    q, k, v = drawn(9, 4, 8), drawn(9, 2, 8, seed=1), drawn(9, 2, 8, seed=2)
    mask, seen = causal_mask(np.arange(9), 0, 4), {}
    np.testing.assert_array_equal(
        twins.attend(q, k, v, np.asarray(mask)), definitions.attend(q, k, v, np.asarray(mask))
    )
    tap = Recorder(lambda name, x, axes: seen.update({name: x}), np.dtype(np.float32), ["probs"])
    np.testing.assert_array_equal(twins.attend(q, k, v, mask, tap), definitions.attend(q, k, v, mask, tap))
    assert (seen["probs"][:, ~np.asarray(mask)] == 0).all()


@pytest.mark.parametrize("H", [64, 72, 300])
@pytest.mark.parametrize("window", [None, 1, 100])
def test_attend_of_more_queries_and_keys_than_are_looked_at_together(H, window):
    q, k, v = drawn(300, 2, H), drawn(700, 1, H, seed=1), drawn(700, 1, H, seed=2).astype(ml_dtypes.bfloat16)
    q /= np.float32(H**0.5)
    mask = causal_mask(np.arange(400, 700), 0, window)
    assert_equal(twins.attend(q, k, v, mask), definitions.attend(q, k, v.astype(np.float32), np.asarray(mask)))


def test_keys_behind_the_last_that_is_seen_change_no_bit():
    q, k, v = drawn(30, 2, 24), drawn(300, 2, 24, seed=1), drawn(300, 2, 24, seed=2)
    mask = Spans(np.zeros(30, int), np.full(30, 281), 300)
    whole = twins.attend(q, k, v, mask)
    k[281:], v[281:] = np.nan, np.nan
    np.testing.assert_array_equal(twins.attend(q, k, v, mask), whole)


def test_keys_that_lie_infinitely_far_off_count_nothing():
    """Also where they are all that a query has seen so far."""
    q, k, v = np.abs(drawn(9, 2, 8)), drawn(600, 1, 8, seed=1), drawn(600, 1, 8, seed=2)
    k[:550, :, 3] = -np.inf
    assert_equal(twins.attend(q, k, v, everything(9, 600)), definitions.attend(q, k[550:], v[550:], everything(9, 50)))


def test_the_exponential_of_many_scores_is_right_down_to_the_smallest_number():
    x = np.linspace(-86.9, 0, 1 << 15, dtype=np.float32)[None]
    scores, top, total = x.copy(), np.float32([-1000]), np.float32([3])
    first, end = np.zeros(1, int), np.full(1, x.size)
    np.testing.assert_array_equal(attending.softmax_on(scores, first, end, top, total), [0])
    true = np.exp(x.astype(np.float64))
    assert np.abs(scores / true - 1).max() < 1.5e-7
    assert abs(total[0] / true.sum() - 1) < 1e-6
    ends = np.float32([[0, -87.5, -200, -np.inf, *[np.nan] * 28]])
    attending.softmax_on(ends, first, np.full(1, 4), np.float32([-1000]), total)
    np.testing.assert_array_equal(ends, [[1, *[0] * 31]])


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 2), st.integers(1, 2), st.integers(1, 20), RUNS)
def test_attend_all(patches, K, G, H, run):
    shapes = (patches, K * G, H), (patches, K, H), (patches, K, H)
    q, k, v = (drawn(*shape, seed=n).astype(run) for n, shape in enumerate(shapes))
    least = 0 if run is np.float32 else 2 * np.sqrt(q.size)  # one number that is rounded otherwise may be all there are
    assert_equal(twins.attend_all(q, k, v), definitions.attend_all(q, k, v), least)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 9), st.integers(2, 9), RUNS)
def test_attend_band(frames, N, H, R, run):
    q, k, v = (x.astype(run) for x in drawn(3, frames, N, H))
    given = drawn(R, N, H, seed=1).astype(run), drawn(H, seed=2).astype(run), 50.0
    assert_equal(twins.attend_band(q, k, v, *given), definitions.attend_band(q, k, v, *given), np.sqrt(q.size) / 3)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), RUNS)
def test_attend_frames(sound, N, H, R, frames, run):
    """Also to more frames than there are distances, and to more than the sound has."""
    q, k, v = (x.astype(run) for x in drawn(3, sound, N, H))
    given = v, drawn(R, N, H, seed=1).astype(run), frames, 5.0
    assert_equal(twins.attend_frames(q, k, *given), definitions.attend_frames(q, k, *given), np.sqrt(q.size) / 3)


@settings(deadline=None)
@given(TOKENS, SIZES, RUNS, st.sampled_from([1, 30, 1000]))
def test_glu(T, C, run, size):
    x = (size * drawn(T, 2 * C)).astype(run)
    assert_equal(twins.glu(x), definitions.glu(x), np.sqrt(x.size) / 3)


@pytest.mark.parametrize("frames", [1, 2, 7, 128, 129, 300])
@pytest.mark.parametrize("run", [np.float32, ml_dtypes.bfloat16])
def test_conv2d(frames, run):
    x, w = drawn(2, frames, 11).astype(run), drawn(5, 2, 3, 3, seed=1).astype(ml_dtypes.bfloat16)
    assert_equal(twins.conv2d(x, w), definitions.conv2d(x, w))


@pytest.mark.parametrize("frames", [1, 2, 63, 64, 66, 300])
@pytest.mark.parametrize("run", [np.float32, ml_dtypes.bfloat16])
def test_causal_conv_has_the_bits_of_its_definition(frames, run):
    x, w = drawn(11, frames).astype(run), drawn(11, 1, 5, seed=1).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(twins.causal_conv(x, w), definitions.causal_conv(x, w))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("T", [1, 3, 60])
def test_what_is_not_finite_comes_through(T, bad):
    S, rng = T + 40, np.random.default_rng(T)

    def spoilt(*shape):
        x = drawn(*shape)
        x.ravel()[rng.integers(x.size)] = bad
        return x

    with np.errstate(all="ignore"):
        for x, w in ((spoilt(T, 20), drawn(9, 20)), (drawn(T, 20), spoilt(9, 20))):
            assert_equal(twins.linear(x, w), definitions.linear(x, w))
        x = spoilt(T, 4, 10)
        assert_equal(twins.rms_norm(x, None, 1e-6), definitions.rms_norm(x, None, 1e-6))
        assert_equal(twins.rope(x, *drawn(2, T, 10)), definitions.rope(x, *drawn(2, T, 10)))
        assert_equal(twins.gelu_tanh(x), definitions.gelu_tanh(x))
        assert_equal(twins.silu(x), definitions.silu(x))
        assert_equal(twins.glu(x), definitions.glu(x))
        filters = drawn(4, 1, 3)
        assert_equal(twins.causal_conv(x[:, :, 0].T, filters), definitions.causal_conv(x[:, :, 0].T, filters))
        few = drawn(3, 4, 10)  # distances to all the frames that are seen: what is not seen counts nothing
        for given in ((x, drawn(T, 4, 10), drawn(T, 4, 10)), (drawn(T, 4, 10), x, drawn(T, 4, 10))):
            assert_equal(twins.attend_frames(*given, few, 3, 5.0), definitions.attend_frames(*given, few, 3, 5.0))
        q, k, v = drawn(T, 4, 10), drawn(S, 2, 10), drawn(S, 2, 10)
        mask = everything(T, S)
        for given in ((spoilt(T, 4, 10), k, v), (q, spoilt(S, 2, 10), v), (q, k, spoilt(S, 2, 10))):
            assert_equal(twins.attend(*given, mask), definitions.attend(*given, mask))


def test_the_exponential_is_right_from_the_smallest_number_to_the_largest():
    x = np.linspace(-86.9, 88.7, 40001, dtype=np.float32)
    scores = x.copy()
    kernels.exponentials(scores, np.float32(0))
    assert np.abs(scores / np.exp(x.astype(np.float64)) - 1).max() < 3e-7
    ends = np.float32([-np.inf, -200, 0, 89, np.inf, np.nan])
    kernels.exponentials(ends, np.float32(0))
    np.testing.assert_array_equal(ends, np.float32([0, 0, 1, np.inf, np.inf, np.nan]))


# runs


@pytest.fixture
def numba():
    """Everything runs on numba, and afterwards as before."""
    with ops.using("numba"):
        yield


@pytest.mark.parametrize("variant", tiny.VARIANTS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_a_run_on_numba_equals_the_run_on_numpy_at_every_point(folders, variant, precision, numba):
    model, ids = numgemma.load(folders[variant], precision), tiny.prompt(tiny.VARIANTS[variant], 20)
    found = model.record(ids, ["*"])
    with ops.using("numpy"):
        expected = model.record(ids, ["*"])
    limit = {"float32": 5e-5, "bfloat16": 0.1, "float64": 1e-12}[precision]
    for name, x in expected.items():
        a, b = found[name].astype(np.float64), x.astype(np.float64)
        assert np.linalg.norm(a - b) <= limit * np.linalg.norm(b), name


@pytest.mark.parametrize("name", tiny.MULTIMODAL)
def test_towers_on_numba_equal_towers_on_numpy(multimodal_folders, name, numba):
    model = numgemma.load(multimodal_folders[name])
    ids, arrays = tiny.multimodal_prompt(name)
    media = numgemma.prompt.media.read_media(arrays)
    found = model.record(ids, ["*.out", "logits"], media=media)
    with ops.using("numpy"):
        expected = model.record(ids, ["*.out", "logits"], media=media)
    for point, b in expected.items():
        assert np.linalg.norm(found[point] - b) <= 1e-4 * np.linalg.norm(b), point


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_both_backends_tell_the_same_story(models, variant):
    model, ids = models[variant], tiny.prompt(tiny.VARIANTS[variant], 20)
    stories = []
    for backend in ops.BACKENDS:
        with ops.using(backend):
            stories.append(model.generate(ids, 12, ignore_eos=True))
    assert stories[0] == stories[1]


SCRIPT = """
import sys, hashlib, numpy as np, numgemma
from numgemma import ops
ops.use("numba", int(sys.argv[2]))
model = numgemma.load(sys.argv[1])
ids = np.arange(40) % 7 + 3
digest = hashlib.sha256(model.logits(ids).tobytes())
digest.update(bytes(str(model.generate(ids, 8, ignore_eos=True)), "ascii"))
x, w = np.random.default_rng(0).standard_normal((2, 2000, 700), np.float32)
for T in (1, 5, 300):
    digest.update(ops.linear(x[:T], w).tobytes())
q = x.reshape(-1, 4, 100)
digest.update(ops.attend_all(q[:600], q[:600], q[:600]).tobytes())
print(digest.hexdigest())
"""


def test_the_bits_do_not_depend_on_the_number_of_threads(folders):
    found = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT, folders["moe"], threads], capture_output=True, text=True, check=True
        ).stdout
        for threads in ("1", "2", "3", "2")
    }
    assert len(found) == 1


def test_importing_changes_no_thread_setting_and_a_run_leaves_none_behind(folders):
    script = """
import os, sys, numpy
from threadpoolctl import threadpool_info
before = dict(os.environ), threadpool_info()
import numgemma
from numgemma.ops import twins
assert (dict(os.environ), threadpool_info()) == before
numgemma.load(sys.argv[1]).generate([3, 4, 5], 3, ignore_eos=True)
assert (dict(os.environ), threadpool_info()) == before, threadpool_info()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script, folders["dense"]], check=True)


def test_an_operation_that_somebody_has_replaced_stays_replaced(monkeypatch):
    def broken(x, cos, sin):
        return x

    monkeypatch.setattr(ops, "rope", broken)
    with ops.using("numba"):
        assert ops.rope is broken
    assert ops.rope is broken


def test_what_is_chosen_for_a_while_is_what_generate_runs_on_too(models):
    seen = []

    def notice(x, w):
        seen.append(ops.current())
        return definitions.linear(x, w)

    for backend in ops.BACKENDS:
        with ops.using(backend), pytest.MonkeyPatch.context() as patch:
            patch.setattr(ops, "linear", notice)
            models["dense"].generate([3, 4, 5], 2, ignore_eos=True)
    assert set(seen[: len(seen) // 2]) == {"numpy"}
    assert set(seen[len(seen) // 2 :]) == {"numba"}
    assert ops.chosen() is None
    assert ops.current() == "numpy"


def test_a_run_in_float64_is_left_to_the_definitions():
    assert ops.fastest(np.dtype(np.float64)) == "numpy"
    assert ops.fastest(np.dtype(np.float32)) == "numba"


def test_a_missing_numba_is_said_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    ops.implementations.cache_clear()
    try:
        with pytest.raises(InputError, match=r"pip install 'numgemma\[fast\]'"):
            ops.use("numba")
    finally:
        ops.implementations.cache_clear()


def test_without_numba_generate_runs_on_numpy(monkeypatch):
    monkeypatch.setattr(ops, "installed", lambda: False)
    assert ops.fastest() == "numpy"


@pytest.mark.parametrize("wrong", [["--threads", "0"], ["--chunk", "0"]])
def test_numbers_without_meaning_are_refused(wrong, capsys):
    before = threads.allowed()
    assert main(["generate", "tiny", "--prompt", "Once", *wrong]) == 2
    assert "give 1 or more" in capsys.readouterr().err
    assert threads.allowed() == before
