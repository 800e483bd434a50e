"""What a run keeps of earlier tokens, and the masks over it."""

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from numgemma import cache, generate, ops
from numgemma.errors import InputError
from numgemma.families.gemma4 import gemma4
from numgemma.generate import Memory
from numgemma.masks import Spans, causal_mask, everything, image_mask
from numgemma.prompt.media import NO_MEDIA

PARTS = st.lists(st.integers(1, 700), min_size=1, max_size=6)


def rows(rng, T):
    return rng.standard_normal((T, 2, 4), np.float32)


@given(PARTS, st.none() | st.integers(1, 300))
def test_what_is_kept_is_the_end_of_what_was_appended(parts, window):
    rng = np.random.default_rng(0)
    kvs, all_k, all_v = {}, [], []
    for T in parts:
        k, v = rows(rng, T), rows(rng, T)
        all_k.append(k), all_v.append(v)
        cache.append(kvs, 0, k, v)
        before = [(x, x.copy()) for x in kvs[0]]
        if window:
            cache.drop(kvs, 0, max(0, len(kvs[0]) - window))
        S = len(kvs[0])
        for held, whole in zip(kvs[0], (all_k, all_v), strict=True):
            np.testing.assert_array_equal(held, np.concatenate(whole)[-S:])
        assert min(window or sum(parts), sum(len(x) for x in all_k)) == S
        assert len(kvs[0].k) <= max(len(k), 2 * (S + cache.SPARE), 1.5 * S + 1)
    for view, copy in before:  # what somebody has read stays as it was
        np.testing.assert_array_equal(view, copy)


def test_a_token_costs_no_copy_of_all_that_is_kept():
    kvs, rng, moves = {}, np.random.default_rng(0), 0
    for _ in range(4000):
        held = kvs[0].k if kvs else None
        cache.append(kvs, 0, rows(rng, 1), rows(rng, 1))
        moves += kvs[0].k is not held
    assert moves < 12


def test_a_cache_rounds_to_the_dtype_it_was_made_for(models):
    config = models["dense"].config.text
    kvs = cache.empty(config.layers, np.dtype("bfloat16"))
    k = np.full((3, config.layers[0].K, config.layers[0].H), 1.001, np.float32)
    cache.append(kvs, 0, k, k)
    held, _ = kvs[0]
    assert held.dtype == "bfloat16"
    np.testing.assert_array_equal(held.astype(np.float32), 1)


@pytest.mark.parametrize("variant", tiny.VARIANTS)
@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_a_prompt_in_chunks_ends_in_the_same_stream(models, variant, chunk):
    model, ids = models[variant], tiny.prompt(tiny.VARIANTS[variant], 40)
    kvs = cache.empty(model.config.text.layers, model.dtype)
    x = generate.prefill(ids, NO_MEDIA, model.weights, model.family, model.run(kvs), chunk)
    whole = {}
    expected = gemma4.hidden(ids, model.weights, model.run(whole))
    np.testing.assert_allclose(x, expected[-1:], 1e-3, 1e-4)
    assert kvs.keys() == whole.keys()
    for i in kvs:
        for held, other in zip(kvs[i], whole[i], strict=True):
            np.testing.assert_allclose(held, other, 1e-3, 1e-4)


def test_layers_that_make_no_keys_run_for_the_last_token_alone(models, monkeypatch):
    model, ids = models["ple"], tiny.prompt(tiny.PLE, 20)
    seen, block = {}, gemma4.block

    def counting(x, own, w, spec, *rest):
        seen[spec.index] = seen.get(spec.index, 0) + len(x)
        return block(x, own, w, spec, *rest)

    monkeypatch.setattr(gemma4, "block", counting)
    layers = model.config.text.layers
    for chunk in (7, 64):
        seen.clear()
        run = model.run(cache.empty(layers, model.dtype))
        generate.prefill(ids, NO_MEDIA, model.weights, model.family, run, chunk)
        assert [seen[s.index] for s in layers] == [20 if s.kv_from == s.index else 1 for s in layers]


def test_no_image_is_cut():
    blocks = np.array([-1, 0, 0, 0, -1, -1, 1, 1, 2, 2, 2, -1])
    assert list(generate.parts(blocks, 2)) == [(0, 4), (4, 6), (6, 8), (8, 11), (11, 12)]
    assert list(generate.parts(blocks, 100)) == [(0, 12)]
    assert list(generate.parts(np.full(5, -1), 2)) == [(0, 2), (2, 4), (4, 5)]


def test_a_cache_in_bfloat16_moves_the_stream_by_its_rounding(models):
    model, ids = models["dense"], tiny.prompt(tiny.DENSE, 30)
    ends = []
    for dtype in (np.float32, np.dtype("bfloat16")):
        run = model.run(cache.empty(model.outline.layers, dtype))
        ends.append(generate.prefill(ids, NO_MEDIA, model.weights, model.family, run, 8))
    error = np.linalg.norm(ends[1] - ends[0]) / np.linalg.norm(ends[0])
    assert 1e-5 < error < 0.05


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(InputError, match="give 1 or more"):
        Memory(chunk=0)


# masks


def shown(t, s, window):
    return s <= t and (window is None or t - s < window)


@given(st.integers(1, 9), st.integers(0, 9), st.none() | st.integers(1, 9))
def test_a_query_sees_the_window_that_ends_in_it(T, past, window):
    oldest = 0 if window is None else max(0, past - (window - 1))
    mask = causal_mask(np.arange(past, past + T), oldest, window)
    found = np.asarray(mask)
    assert found.shape == mask.shape == (T, past + T - oldest)
    for t, s in np.ndindex(found.shape):
        assert found[t, s] == shown(past + t, oldest + s, window)


@given(st.lists(st.tuples(st.sampled_from([-1, 0]), st.integers(1, 4)), min_size=1, max_size=5), st.integers(1, 9))
def test_an_image_in_a_later_chunk_sees_itself_and_what_came_before(runs, window):
    blocks = np.concatenate([np.full(n, i if kind == 0 else -1) for i, (kind, n) in enumerate(runs)])
    before = 3
    found = np.asarray(image_mask(blocks, window, before))
    for t, s in np.ndindex(found.shape):
        at = s - before
        together = at >= 0 and blocks[t] == blocks[at] >= 0
        assert found[t, s] == ((at <= t or together) and t - at < window)


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 3), st.integers(0, 20), st.data())
def test_attention_in_blocks_equals_attention_over_the_whole_map(T, K, G, past, data):
    S, H = T + past, 4
    rng = np.random.default_rng(T)
    q, k, v = (rng.standard_normal((n, heads, H)) for n, heads in ((T, K * G), (S, K), (S, K)))
    end = np.array([data.draw(st.integers(1, S)) for _ in range(T)])
    mask = Spans(np.array([data.draw(st.integers(0, e - 1)) for e in end]), end, S)
    np.testing.assert_allclose(ops.attend(q, k, v, mask), ops.attend(q, k, v, np.asarray(mask)), 1e-9, 1e-12)
    np.testing.assert_allclose(
        ops.attend(q, k, v, everything(T, S)), ops.attend(q, k, v, np.ones((T, S), bool)), 1e-9, 1e-12
    )
