"""Drafters: what config.json alone gives, one step of the forward pass, the clustered head, small copies."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import tiny
import tiny_drafter
from closeness import assert_close, assert_same_run

import numgemma
from numgemma import ops
from numgemma.cli import main
from numgemma.cli.inspect import describe
from numgemma.debug.blame.replay import replay
from numgemma.errors import InputError
from numgemma.families import find, read_config
from numgemma.families.drafter import drafter
from numgemma.graph import graph_of
from numgemma.surgery.lint import lint
from numgemma.surgery.synth import synth
from numgemma.trace import Tap

# numbers and tensors of the released files; widths of the first layer and of the last, and of pre_projection
RELEASED = {
    "E2B": (77_993_476, 50, 2_098_433, 2_622_977, 786_432),
    "E4B": (78_779_908, 50, 2_098_433, 2_622_977, 1_310_720),
    "12B": (422_856_964, 48, 33_558_785, 41_947_649, 7_864_320),
    "26B-A4B": (419_711_236, 48, 33_558_785, 41_947_649, 5_767_168),
    "31B": (469_518_596, 48, 41_947_393, 58_724_865, 11_010_048),
}
PAIRS = list(tiny_drafter.TARGETS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tiny_drafter.write(tmp_path_factory.mktemp("drafter") / name, name) for name in PAIRS}


@pytest.mark.parametrize("size", RELEASED)
def test_inspect_counts_a_released_drafter_to_the_last_number(size, capsys):
    total, tensors, first, last, pre = RELEASED[size]
    name = f"gemma-4-{size}-it-assistant"
    table = describe(name)["parameters"]
    assert table["total"] + table["buffers"] == total
    assert table["tensors"] == tensors
    assert table["modules"]["pre_projection"] == pre
    layers = sum(n for module, n in table["modules"].items() if module.startswith("layers"))
    assert layers + 4 == 3 * first + last
    assert main(["inspect", name]) == 0
    said = capsys.readouterr().out
    assert f"{total:,}" in said
    rows = said.split("\n\n")[1]
    raw = rows.count("raw keys")  # whose keys, and where some differ whose values, of four layers
    assert rows.count("the target") == (8 - raw if raw else 4)


def test_the_clustered_head_of_the_small_ones_is_counted():
    modules = describe("gemma-4-E2B-it-assistant")["parameters"]
    assert modules["modules"]["masked_embedding"] == 524_288
    assert modules["buffers"] == 262_144 + 4


@pytest.mark.parametrize("size", RELEASED)
@pytest.mark.parametrize("scale", ["tiny", "pilot"])
def test_a_small_copy_fits_its_target_at_the_same_scale(size, scale):
    from numgemma.families.gemma4.shrink import SCALES

    configs = []
    for name in (f"gemma-4-{size}-it", f"gemma-4-{size}-it-assistant"):
        raw = json.loads((numgemma.opening.DATA / "configs" / f"{name}.json").read_text())
        configs.append(read_config(find(raw, name).shrunk(raw, SCALES[scale], name), name))
    target, small = configs
    assert small.backbone_hidden_size == target.text.hidden_size != small.text.hidden_size
    assert small.text.vocab_size == target.text.vocab_size
    for kind, spec in small.kinds.items():
        theirs = target.text.kinds[kind]
        shared = ("window", "K", "H", "k_eq_v", "theta", "angles", "rope_factor")
        assert {key: asdict(spec)[key] for key in shared} == {key: asdict(theirs)[key] for key in shared}
        assert spec.kv_from == kind
    assert small.clusters == 0 or 0 < small.centroid_intermediate_top_k < small.clusters


@pytest.mark.parametrize("size", ["E2B", "12B"])
def test_synth_makes_one_that_runs_and_lint_finds_nothing(size, tmp_path):
    synth(f"gemma-4-{size}-it-assistant", tmp_path / "d", "tiny", dtype="bfloat16")
    model = numgemma.load(tmp_path / "d")
    given = tiny_drafter.step(model.checkpoint.config, keys=30)
    assert np.isfinite(model.record(inputs=given)["logits"]).all()
    assert [finding for finding in lint(tmp_path / "d") if finding.severity != "note"] == []


def changed(folder, name, change):
    """A copy of a drafter whose tensors `change` has changed.  Returns its findings."""
    raw = tiny_drafter.drafter("clustered")
    tensors = tiny_drafter.tensors(raw, 0)
    change(tensors)
    return [(f.severity, f.rule) for f in lint(tiny.write(folder / name, raw, tensors)) if f.rule != "tokenizer"]


def test_lint_knows_the_rules_of_drafters(tmp_path):
    ordering = "masked_embedding.token_ordering"
    assert changed(tmp_path, "right", lambda t: None) == []
    assert ("error", "ordering") in changed(tmp_path, "zeros", lambda t: t.update({ordering: 0 * t[ordering]}))
    assert ("error", "missing") in changed(tmp_path, "none", lambda t: t.pop(ordering))
    keys = {"layers.0.self_attn.k_proj.weight": np.ones((7, 40))}
    assert ("error", "shape") in changed(tmp_path, "keys", lambda t: t.update(keys))
    stray = {"layers.0.self_attn.k_bias": np.ones(7)}
    assert ("error", "stray") in changed(tmp_path, "stray", lambda t: t.update(stray))
    raw = tiny_drafter.drafter("clustered") | {"num_centroids": 15}
    found = lint(tiny.write(tmp_path / "config", raw, tiny_drafter.tensors(tiny_drafter.drafter("clustered"), 0)))
    assert [f.rule for f in found if f.severity == "error"] == ["config"]


@pytest.mark.parametrize("name", PAIRS)
def test_a_step_is_recorded_from_a_file_without_the_batch_axis(folders, name, tmp_path):
    from safetensors.numpy import save_file

    raw = tiny_drafter.drafter(name)
    given = tiny_drafter.step(raw)
    save_file(given, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    assert main(["dump", str(folders[name]), "--inputs", str(tmp_path / "in.safetensors"), "-o", str(out)]) == 0
    dump = numgemma.read_dump(out)
    assert dump["pre_projection"].shape == (1, 40)
    assert dump["post_projection"].shape == (1, 48)
    assert dump["logits"].shape == (1, tiny_drafter.V)
    keys = "shared_kv_states.full_attention.k"
    np.testing.assert_array_equal(dump[f"inputs.{keys}"], given[keys][0])
    assert_same_run(numgemma.load(folders[name]).record(inputs=given), dump)


@pytest.mark.parametrize("name", PAIRS)
def test_its_graph_is_that_of_a_run(folders, name):
    model = numgemma.load(folders[name])
    given = tiny_drafter.step(model.checkpoint.config)
    del given["attention_mask"]
    learned = graph_of(model.checkpoint.config)
    assert list(learned.points) == list(model.record(inputs=given, points=["*"]))
    assert "inputs.shared_kv_states.full_attention.k" in learned.parents("layers.3.self_attn.scores")
    assert learned.parents("rotary_emb.full_attention.cos") == ("inputs.position_ids",)
    heads = {"clustered": ("norm", "masked_embedding.centroids")}
    assert learned.parents("logits") == heads.get(name, ("lm_head",))


@pytest.mark.parametrize("name", PAIRS)
def test_replay_finds_a_right_step_right_and_a_wrong_one_wrong(folders, name):
    model = numgemma.load(folders[name])
    given = tiny_drafter.step(model.checkpoint.config)
    assert replay(model, model.record(inputs=given, points=["*"])).exit_code == 0
    point = "layers.1.self_attn.context"
    assert replay(model, model.record(inputs=given, points=["*"], edits={point: lambda x: 1.1 * x})).first == point


@pytest.mark.parametrize("name", PAIRS)
def test_sliding_layers_see_the_newest_keys_of_a_window_and_one_more(folders, name):
    model = numgemma.load(folders[name])
    given = tiny_drafter.step(model.checkpoint.config, keys=20)
    window = model.outline.window
    probs = model.record(inputs=given, points=["*.probs"])
    for i in range(4):
        seen = (probs[f"layers.{i}.self_attn.probs"] > 0).all((0, 1)).nonzero()[0]
        assert seen.tolist() == list(range(0 if i == 3 else 20 - window - 1, 20))


def test_keys_of_padding_are_left_out(folders):
    """Wherever it stands: a step with padded keys is the step without them."""
    model = numgemma.load(folders["k_eq_v"])
    given = tiny_drafter.step(model.checkpoint.config, keys=12, kept=5)
    mask = np.ones((1, 13), int)
    mask[0, :9] = 0  # of five sliding keys, the newest 7 to 12, two are padding
    padded = model.record(inputs=given | {"attention_mask": mask}, points=["*"])
    for name in given:
        if "full" in name:
            given[name] = given[name][:, :, 9:]
        if "sliding" in name:
            given[name] = given[name][:, :, 2:]
    del given["attention_mask"]
    alone = model.record(inputs=given, points=["*"])
    assert_close(padded["logits"], alone["logits"], "float32")
    with pytest.raises(InputError, match="attention_mask has 3 entries for 12 keys"):
        model.record(inputs=tiny_drafter.step(model.checkpoint.config) | {"attention_mask": mask[:, :3]})


def test_the_clustered_head_looks_at_the_tokens_of_the_best_clusters_alone(folders):
    model = numgemma.load(folders["clustered"], "float64")
    w, y = model.weights, np.random.default_rng(5).standard_normal((1, 40))
    order = np.asarray(w["masked_embedding.token_ordering"]).reshape(16, 13)
    table = np.asarray(w["embed_tokens.weight"], np.float64)
    scores = np.asarray(w["masked_embedding.centroids.weight"], np.float64) @ y[0]
    best = sorted(range(16), key=lambda c: -scores[c])[:3]
    ids = [i for c in best for i in order[c]]
    expected = np.full(tiny_drafter.V, min(table[i] @ y[0] for i in ids) - 1)
    for i in ids:
        expected[i] = table[i] @ y[0]
    np.testing.assert_allclose(drafter.head(y, w, model.run(), Tap())[0], expected, 1e-12)


@pytest.mark.parametrize("token", [-1, tiny_drafter.V, 10**15, -(2**63)])
def test_an_order_of_tokens_that_names_another_is_one_sentence(tmp_path, token):
    raw = tiny_drafter.drafter("clustered")
    tensors = tiny_drafter.tensors(raw, 0)
    tensors["masked_embedding.token_ordering"] = np.full(tiny_drafter.V, token)
    model = numgemma.load(tiny.write(tmp_path / "d", raw, tensors))
    with pytest.raises(InputError, match="token_ordering names a token outside the vocabulary"):
        model.record(inputs=tiny_drafter.step(raw))


def test_both_backends_agree(folders):
    pytest.importorskip("numba")
    model = numgemma.load(folders["clustered"])
    given = tiny_drafter.step(model.checkpoint.config)
    with ops.using("numba"):
        fast = model.record(inputs=given)
    assert_same_run(model.record(inputs=given), fast)


WRONG = {
    "num_kv_shared_layers is not": ("text_config", {"num_kv_shared_layers": 2}),
    "hidden_size_per_layer_input is 8": ("text_config", {"hidden_size_per_layer_input": 8}),
    "enable_moe_block is True": ("text_config", {"enable_moe_block": True}),
    "num_centroids does not divide": (None, {"num_centroids": 15}),
    "centroid_intermediate_top_k is not 1 to": (None, {"centroid_intermediate_top_k": 17}),
    "backbone_hidden_size is not positive": (None, {"backbone_hidden_size": 0}),
    "tie_word_embeddings false": (None, {"tie_word_embeddings": False}),
    "unknown key 'twist'": (None, {"twist": 1}),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_config_that_no_drafter_has_is_refused(sentence):
    part, change = WRONG[sentence]
    raw = tiny_drafter.drafter("clustered")
    raw |= {part: raw[part] | change} if part else change
    with pytest.raises(InputError, match=f"config.json.*{sentence}"):
        read_config(raw, "config.json")


def test_a_missing_count_of_sharing_layers_means_all():
    raw = tiny_drafter.drafter("k_eq_v")
    del raw["text_config"]["num_kv_shared_layers"]
    assert [spec.kv_from for spec in read_config(raw, "c").layers] == ["sliding_attention"] * 3 + ["full_attention"]


def test_a_drafter_makes_no_text_alone(folders):
    model = numgemma.load(folders["clustered"])
    with pytest.raises(InputError, match="makes no text token by token"):
        model.generate([2, 5])
    with pytest.raises(InputError, match="takes inputs_embeds by name"):
        model.logits([2, 5])
