"""What a wrong tensor looks like: every hint is given for the change it names, and for no other."""

import numpy as np
import pytest

from numgemma.debug.compare.diff import diff, render
from numgemma.debug.compare.hints import hints
from numgemma.dump import Dump, new_meta

T, N, H = 10, 6, 16
NAME = "layers.2.self_attn.q_rope"


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dump(points, axes):
    meta = new_meta("numgemma", "0", {"config": "c", "layer_kinds": ["sliding_attention"] * 4}, range(T), "float32")
    return Dump(meta, points, axes)


def run(seed=0):
    """Three layers with one tensor each, and more in the second."""
    names = [f"layers.{i}.self_attn.{leaf}" for i in (1, 2, 3) for leaf in ("q_rope", "k_norm")]
    points = {name: normal(T, N, H, seed=seed + i) for i, name in enumerate(names)}
    points |= {"lm_head": 40 * normal(T, 30, seed=9)}
    points |= {"logits": 30 * np.tanh(points["lm_head"] / 30)}
    return dump(points, dict.fromkeys(names, "T N H") | {"lm_head": "T V", "logits": "T V"})


def with_point(x, name=NAME):
    d = run()
    d.arrays[name] = np.ascontiguousarray(x, dtype=np.float32)
    return d


def interleaved(x):
    return x.reshape(T, N, 2, H // 2).swapaxes(2, 3).reshape(x.shape)


def one_token(x):
    y = x.copy()
    y[4] = normal(N, H, seed=99)
    return y


def from_token(x):
    y = x.copy()
    y[6:] = normal(4, N, H, seed=99)
    return y


def dead_channels(x):
    y = x.copy()
    y[:, 2, [3, 5]] = 0
    return y


CASES = {
    "scaled": (lambda x: 1.05 * x, "scaled", "B is A times 1.05"),
    "a square root of a width": (lambda x: x / np.sqrt(H), "scaled", "about 1/sqrt(16)"),
    "a sign": (lambda x: -x, "scaled", "its sign changed"),
    "zero": (lambda x: 0 * x, "zero", "all zeros"),
    "a token late": (lambda x: np.concatenate([x[:1] * 3, x[:-1]]), "shifted", "one token late"),
    "a token early": (lambda x: np.concatenate([x[1:], x[:1]]), "shifted", "one token early"),
    "heads": (lambda x: x[:, [1, 0, 2, 3, 5, 4]], "heads permuted", "0 is A's 1, 1 is A's 0, 4 is A's 5, ..."),
    "heads across groups": (lambda x: x[:, [0, 3, 1, 4, 2, 5]], "heads permuted", "interleaved, place pairs"),
    "heads in three groups": (lambda x: x[:, [0, 2, 4, 1, 3, 5]], "heads permuted", "in halves (i, i + 3)"),
    "interleaved lanes": (interleaved, "lanes permuted", "interleaved, lane pairs (2i, 2i + 1) where A has halves"),
    "swapped halves": (lambda x: np.roll(x, H // 2, -1), "lanes permuted", "its two halves swapped"),
    "transposed": (lambda x: x.swapaxes(1, 2).reshape(x.shape), "transposed", "axes N and H exchanged"),
    "transposed tokens": (lambda x: x.swapaxes(0, 1).reshape(x.shape), "transposed", "axes T and N exchanged"),
    "one token": (one_token, "one token", "only token 4 is off"),
    "from a token on": (from_token, "from a token on", "only the tokens from 6 on are off"),
    "dead channels": (dead_channels, "channels", "only 2 channels of 96 are off and zero in B: (2, 3), (2, 5)"),
    "another layer": (
        lambda x: run()["layers.1.self_attn.q_rope"],
        "copy",
        "bit for bit its own layers.1.self_attn.q_rope",
    ),
    "the next operation": (
        lambda x: run()["layers.2.self_attn.k_norm"],
        "copy",
        "bit for bit its own layers.2.self_attn.k_norm",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_the_first_hint_names_the_change(case, noise):
    change, kind, says = CASES[case]
    a = run()
    y = change(a[NAME])
    if kind not in ("copy", "zero") and "dead" not in case:
        y = y + noise * normal(T, N, H, seed=50)
    found = hints(NAME, a, with_point(y), "T N H", limit=1e-4)
    assert found, case
    assert (found[0].kind, found[0].point) == (kind, NAME)
    assert says in found[0].says
    assert found[0].rel_after <= 1e-4


def test_b_that_counts_its_layers_from_one_is_told_apart_from_an_aliased_buffer():
    a, b = run(), run()
    for i in (1, 2):
        b.arrays[f"layers.{i}.self_attn.q_rope"] = a[f"layers.{i + 1}.self_attn.q_rope"]
    del b.arrays["layers.3.self_attn.q_rope"]
    found = hints(NAME, a, b, "T N H", limit=1e-4)
    assert [h.says for h in found] == ["B is A's layers.3.self_attn.q_rope"]


def test_logits_without_their_cap_are_recognised():
    a = run()
    b = with_point(a["lm_head"], "logits")
    assert hints("logits", a, b, "T V", 1e-4)[0].kind == "uncapped"
    found = diff(a, b)
    assert found.first == "logits"
    assert "hint: logits: B's logits are A's lm_head: the soft cap is missing" in render(found, width=200)


@pytest.mark.parametrize("seed", range(5))
def test_another_random_tensor_gets_no_hint(seed):
    assert hints(NAME, run(), with_point(normal(T, N, H, seed=100 + seed)), "T N H", 1e-4) == []


def test_a_tensor_with_noise_alone_gets_no_hint():
    a = run()
    assert hints(NAME, a, with_point(a[NAME] + 1e-3 * normal(T, N, H, seed=5)), "T N H", 1e-4) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_tensors_without_numbers_get_no_hint(bad):
    assert hints(NAME, run(), with_point(np.full((T, N, H), bad)), "T N H", 1e-4) == []
    assert hints(NAME, with_point(np.zeros((T, N, H))), run(), "T N H", 1e-4) == []


def test_a_comparison_carries_the_hints_of_its_first_points_in_text_and_json():
    a = run()
    found = diff(a, with_point(interleaved(a[NAME])))
    assert [h.kind for h in found.hints] == ["lanes permuted"]
    assert "hint: layers.2.self_attn.q_rope: B has A's lanes in another order" in render(found, width=200)
    assert found.to_json()["hints"][0]["kind"] == "lanes permuted"


def test_a_large_tensor_is_judged_by_its_first_tokens(monkeypatch):
    from numgemma.debug.compare import hints as module

    monkeypatch.setattr(module, "ELEMENTS", 3 * N * H)
    a = run()
    assert hints(NAME, a, with_point(-a[NAME]), "T N H", 1e-4)[0].kind == "scaled"
