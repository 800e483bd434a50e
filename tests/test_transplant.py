"""The transplant: every number from where the recipe says, in the size that the card tells, and what it preserves."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import tiny
from test_stack import sparse

import numgemma
from numgemma.checkpoint import open_checkpoint
from numgemma.cli import main
from numgemma.errors import InputError
from numgemma.families import read_config
from numgemma.families.gemma4 import layout
from numgemma.opening import DATA
from numgemma.surgery import transplant
from numgemma.surgery.gemma3 import gemma3_shapes, read_gemma3
from numgemma.surgery.synth import find_config, synth
from numgemma.surgery.transplant import Choices

GEMMA3 = json.loads((DATA / "configs" / "gemma-3-1b-it.json").read_text())
SMALL = GEMMA3 | {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "query_pre_attn_scalar": 20,
    "vocab_size": 509,
    "sliding_window": 8,
    "sliding_window_pattern": 3,
    "rope_theta": 90000,
    "rope_local_base_freq": 800,
}
TAKEN = Choices(layers=6, window=8)  # layers 2 and 5 are full; 6 and 7 stay behind


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """A small Gemma 3 in float32, so that no rounding hides, and a tiny E2B."""
    base = tmp_path_factory.mktemp("transplant")
    (base / "gemma3.json").write_text(json.dumps(SMALL))
    synth(str(base / "gemma3.json"), target=base / "gemma3", dtype="float32")
    synth("gemma-4-E2B-it", target=base / "e2b", scale="tiny")
    return base / "gemma3", base / "e2b"


def built(parents, out, choices=TAKEN):
    transplant.write(transplant.plan(*parents, choices), out)
    return open_checkpoint(out)


@pytest.fixture(scope="module")
def child(parents, tmp_path_factory):
    return built(parents, tmp_path_factory.mktemp("transplant") / "child")


# the published size

CARD = {  # module -> parameters
    "embed_tokens.": 301_989_888,
    "layers.": 490_237_440,
    "norm.": 1_152,
    "vision_tower.patch_embedder.": 16_318_464,
    "vision_tower.encoder.": 151_046_144,
    "vision_tower.": 167_364_608,
    "embed_vision.": 884_736,
    "": 960_477_824,
}


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """The real parents, as files that are all holes."""
    base = tmp_path_factory.mktemp("full")
    shapes = gemma3_shapes(read_gemma3(GEMMA3, "test"))
    assert layout.count(shapes) == 999_885_952
    e2b, _, _ = find_config("gemma-4-E2B-it")
    text = sparse(base / "gemma3", GEMMA3, shapes)
    return text, sparse(base / "e2b", e2b, layout.tensor_shapes(read_config(e2b, "test")))


def parameters(planned, start):
    """As an optimiser would count them: without buffers."""
    buffers = ("layer_scalar", "put_min", "put_max")
    found = {
        n: part.tensor.shape for n, part in planned.parts.items() if n.startswith(start) and not n.endswith(buffers)
    }
    return layout.count(found)


def test_the_published_model_has_the_parameters_of_its_card_module_by_module(full_size):
    planned = transplant.plan(*full_size)
    assert {start: parameters(planned, start) for start in CARD} == CARD
    c = planned.config.text
    assert [spec.kind.split("_")[0] for spec in c.layers] == (["sliding"] * 5 + ["full"]) * 3
    sliding, full = (c.kinds[f"{kind}_attention"] for kind in ("sliding", "full"))
    assert [sliding.N, sliding.K, sliding.H, sliding.window, sliding.theta] == [4, 1, 256, 1024, 10_000]
    assert [full.N, full.K, full.H, full.window, full.theta] == [4, 1, 512, None, 1_000_000]
    assert [full.k_eq_v, sliding.k_eq_v] == [True, False]
    assert [c.hidden_size, c.max_position_embeddings, c.final_logit_softcapping] == [1152, 32768, 30]


def test_four_more_tokens_are_an_option(full_size):
    planned = transplant.plan(*full_size, Choices(vocab=262_148))
    assert planned.config.text.vocab_size == 262_148
    assert parameters(planned, "") == 960_477_824 + 4 * 1152


# where every tensor is from


def test_what_the_recipe_copies_is_copied(parents, child):
    text, tower = (open_checkpoint(path).weights for path in parents)
    sliding = [f"self_attn.{x}_proj.weight" for x in "qkvo"]
    mlp = [f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")]
    copied = {f"layers.{i}.{name}" for i in range(6) for name in [*mlp, *(sliding if i not in (2, 5) else [])]}
    for name in {"embed_tokens.weight"} | copied:
        np.testing.assert_array_equal(child.weights[name], text[name])
    seeing = [name for name in tower if name.startswith("vision_tower.")]
    assert len(seeing) > 80
    for name in seeing:
        np.testing.assert_array_equal(child.weights[name], tower[name].astype(np.float32))


def test_norm_weights_are_stored_plus_one(parents, child):
    text = open_checkpoint(parents[0]).weights
    norms = [f"layers.{i}.{norm}.weight" for i in range(6) for norm in transplant.NORMS]
    for name in ["norm.weight", *norms]:
        np.testing.assert_array_equal(child.weights[name], 1 + text[name])


def test_values_that_are_there_twice_leave_full_attention_as_it_was(parents, child):
    """O V = O_old V_old, to 1e-6, in every head alone."""
    text = open_checkpoint(parents[0]).weights
    v_old = text["layers.2.self_attn.v_proj.weight"].reshape(3, 16, 48)
    o_old = text["layers.2.self_attn.o_proj.weight"].reshape(48, 6, 16)
    o_new = child.weights["layers.2.self_attn.o_proj.weight"].reshape(48, 6, 32)
    v_new = np.concatenate([v_old, v_old], axis=1)
    for head in range(6):
        was, now = o_old[:, head] @ v_old[head // 2], o_new[:, head] @ v_new[head // 2]
        assert np.abs(now - was).max() < 1e-6 * np.abs(was).max()
        half = o_new[:, head, :16] @ v_old[head // 2]
        assert np.abs(half - was).max() > 0.3 * np.abs(was).max()  # one half alone is not it
    assert "layers.2.self_attn.v_proj.weight" not in child.weights


def rms(x):
    return x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6)


def old_scores(w, h):
    """Gemma 3's, without rope.  h: T D  ->  N T T"""
    q = rms((h @ w["q_proj.weight"].T).reshape(-1, 6, 16)) * (1 + w["q_norm.weight"])
    k = rms((h @ w["k_proj.weight"].T).reshape(-1, 3, 16)) * (1 + w["k_norm.weight"])
    return np.einsum("TNH,SNH->NTS", q, np.repeat(k, 2, axis=1)) / np.sqrt(20)


def new_scores(w, h):
    """Gemma 4's, without rope: no factor but what the norms carry."""
    q = rms((h @ w["q_proj.weight"].T).reshape(len(h), 6, -1)) * w["q_norm.weight"]
    k = rms((h @ w["k_proj.weight"].T).reshape(len(h), 3, -1)) * w["k_norm.weight"]
    return np.einsum("TNH,SNH->NTS", q, np.repeat(k, 2, axis=1))


@pytest.mark.parametrize(
    ("layer", "choice", "factor"),
    [(0, "width", 1), (4, "exact", 1), (2, "exact", 1), (5, "width", 2 * (20 / 32) ** 0.5)],
)
def test_scores_without_a_factor_are_those_that_had_one(parents, tmp_path, layer, choice, factor):
    """On full layers 1 / sqrt(new width), the recipe's, makes them sharper; `exact` leaves them."""
    child = built(parents, tmp_path / "m", replace(TAKEN, full_scale=choice))
    scope, h = f"layers.{layer}.self_attn", np.random.default_rng(0).standard_normal((7, 48))
    was = old_scores(open_checkpoint(parents[0]).weights.at(scope), h)
    now = new_scores(child.weights.at(scope), h)
    np.testing.assert_allclose(now, factor * was, rtol=1e-4, atol=1e-5)


def test_what_is_new_is_what_the_options_say(parents, tmp_path):
    choices = Choices(
        layers=3,
        vocab=513,
        window=5,
        positions=99,
        softcap=0,
        layer_scalar=0.5,
        full_rope="default",
        image_attention="causal",
        projection_std=0.1,
        seed=4,
    )
    child = built(parents, tmp_path / "m", choices)
    text = open_checkpoint(parents[0]).weights["embed_tokens.weight"]
    table = child.weights["embed_tokens.weight"]
    np.testing.assert_array_equal(table[:509], text)
    np.testing.assert_allclose(table[509:], np.tile(text.mean(0), (4, 1)), rtol=1e-5, atol=1e-7)
    assert [float(child.weights[f"layers.{i}.layer_scalar"][0]) for i in range(3)] == [0.5] * 3
    fresh = child.weights["embed_vision.embedding_projection.weight"]
    assert abs(fresh.std() - 0.1) < 0.01
    other = built(parents, tmp_path / "n", Choices(layers=3, projection_std=0.1))
    assert not np.array_equal(fresh, other.weights["embed_vision.embedding_projection.weight"])
    c = numgemma.load(tmp_path / "m").config.text
    assert [c.num_hidden_layers, c.vocab_size, c.sliding_window, c.max_position_embeddings] == [3, 513, 5, 99]
    assert [c.final_logit_softcapping, c.use_bidirectional_attention] == [None, None]
    assert [c.layers[2].angles, c.layers[2].theta, c.layers[0].theta] == [16, 90000, 800]


def test_the_child_runs_and_brings_the_towers_files(parents, child):
    model = numgemma.load(child.folder)
    run = model.record(model.tokenizer.encode("Hello"))
    assert all(np.isfinite(x).all() for x in run.values())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (child.folder / name).read_bytes() == (parents[1] / name).read_bytes()
    assert model.config.audio is None
    assert child.config["image_token_id"] == open_checkpoint(parents[1]).config["image_token_id"]


def test_both_spellings_of_a_gemma_3_config_are_read_alike():
    ropes = {"sliding_attention": 800.0, "full_attention": 90000.0}
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 3
    new = {key: value for key, value in SMALL.items() if "rope" not in key and "pattern" not in key}
    new |= {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in ropes.items()}}
    assert read_gemma3(new | {"layer_types": kinds[:8]}, "new") == read_gemma3(SMALL, "old")


# the plan and the command


def test_the_plan_lists_every_tensor_once_and_writes_nothing(parents, tmp_path, capsys):
    arguments = ["--text", str(parents[0]), "--tower", str(parents[1]), "--layers", "6"]
    assert main(["transplant", *arguments, "--plan"]) == 0
    shown = capsys.readouterr().out
    rows = re.findall(r"^\S.{19} +(\d+) +([\d,]+)  (text|tower|-) ", shown, re.MULTILINE)
    planned = transplant.plan(*parents, TAKEN)
    assert sum(int(tensors) for tensors, _, _ in rows) == len(planned.parts)
    assert sum(int(n.replace(",", "")) for _, n, _ in rows) == sum(p.tensor.size for p in planned.parts.values())
    assert f"{parameters(planned, ''):,} parameters" in shown
    assert "without layers 6-7" in shown
    assert "without audio tower" in shown
    assert list(tmp_path.iterdir()) == []
    assert main(["transplant", *arguments, "-o", str(tmp_path / "m")]) == 0
    assert capsys.readouterr().out.startswith(shown)


def with_config(folder, source, **changes):
    """A copy of a checkpoint whose config.json says something else."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 1}, "tensors of the wrong shape"),
        ({"num_hidden_layers": 9}, "tensors missing"),
        ({"num_hidden_layers": 6}, "tensors read by nobody"),
        ({"model_type": "gemma2"}, "not 'gemma3_text'"),
        ({"rope_scaling": {"factor": 8}}, "rope_scaling has no place"),
        ({"head_dim": None}, "head_dim is None, not a positive number"),
        ({"layer_types": ["full_attention"]}, "does not name the kind of each of 8 layers"),
    ],
)
def test_a_text_model_that_is_no_gemma_3_is_refused(parents, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        transplant.plan(with_config(tmp_path / "p", parents[0], **changes), parents[1], TAKEN)


def test_what_does_not_fit_the_recipe_is_refused(parents, tmp_path):
    with pytest.raises(InputError, match=r"first 18 layers do not end with a full one.*--layers 3, 6\."):
        transplant.plan(*parents)
    with pytest.raises(InputError, match=r"has 509 tokens, more than --vocab 500"):
        transplant.plan(*parents, Choices(layers=6, vocab=500))
    blind = tiny.write(tmp_path / "blind", tiny.PLE)
    with pytest.raises(InputError, match="has no vision_config"):
        transplant.plan(parents[0], blind, TAKEN)
