"""EmbeddingGemma 2: its sizes, who sees whom, what must hold of any vector, and stored runs of Transformers."""

import json

import numpy as np
import pytest
import tiny
import tiny_embedding
from closeness import assert_same_run, relative
from reference_3n import digest

import numgemma
from numgemma import ops
from numgemma.cli.inspect import describe
from numgemma.errors import InputError
from numgemma.families import find, read_config
from numgemma.families.embedding import embedding
from numgemma.families.gemma4.shrink import SCALES
from numgemma.graph import graph_of
from numgemma.masks import band_mask
from numgemma.official import official
from numgemma.opening import DATA
from numgemma.prompt.media import read_media
from numgemma.surgery.lint import lint
from numgemma.surgery.recipe import of_one, parse_slices
from numgemma.surgery.stack import plan
from numgemma.surgery.synth import synth

OFFICIAL = json.loads(official("embeddinggemma-2").read_text())
STORED = DATA.parents[1] / "reference_outputs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_embedding.write(tmp_path_factory.mktemp("embedding") / "whole", tiny_embedding.WHOLE)


@pytest.fixture(scope="module")
def model(folder):
    return numgemma.load(folder)


# sizes


def test_the_official_config_counts_to_the_published_sizes():
    table = describe("embeddinggemma-2")["parameters"]
    assert table["total"] + table["buffers"] == 744_371_992
    assert (table["buffers"], table["tensors"]) == (480 + 24, 1376)
    found = table["modules"]
    layers = sum(n for name, n in found.items() if name.startswith("layers: "))
    assert (found["embed_tokens"], layers + 24, found["norm"]) == (134_217_728, 130_099_224, 512)
    assert (found["ple"], found["embedding_projection"]) == (6_291_968, 393_216)
    assert (found["vision_tower"], found["embed_vision"]) == (167_364_608, 393_216)
    assert (found["audio_tower"] + 480, found["embed_audio"]) == (304_825_088, 786_432)


def test_the_layer_table_is_that_of_the_release():
    rows = read_config(OFFICIAL, "x").text.layers
    full = [spec for spec in rows if spec.window is None]
    assert [spec.index for spec in full] == [5, 11, 17, 23]
    assert {(s.N, s.K, s.H, s.theta, s.angles) for s in full} == {(4, 1, 512, 1e6, 256)}
    sliding = {(s.N, s.K, s.H, s.theta, s.angles, s.window) for s in rows if s.window}
    assert sliding == {(4, 2, 256, 1e4, 128, 512)}
    assert {(s.F, s.k_eq_v, s.E, s.kv_from - s.index) for s in rows} == {(2048, False, 0, 0)}


def test_a_token_in_the_middle_of_a_long_text_sees_1025_others_and_itself_counted():
    seen = np.asarray(band_mask(2000, 512))
    assert seen[1000].sum() == 1025
    assert seen[1000, [488, 1512]].all()
    assert not seen[1000, [487, 1513]].any()
    assert (seen == seen.T).all()
    assert np.asarray(band_mask(2000, 512))[0].sum() == 513


@pytest.mark.parametrize("spelling", ["per_layer_config", "two numbers", "neither"])
def test_full_layers_are_as_wide_as_either_spelling_says(spelling):
    text = {key: value for key, value in tiny_embedding.TEXT.items() if key != "per_layer_config"}
    says = {"per_layer_config": {"per_layer_config": {"2": {"head_dim": 32}, "05": {"head_dim": 32}}}}
    says |= {"two numbers": {"global_head_dim": 32, "num_global_key_value_heads": 3}, "neither": {}}
    row = read_config(text | says[spelling], "x").text.layers[2]
    assert f"{row.K} of {row.H}" == ("1 of 512" if spelling == "neither" else "3 of 32")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers is 2, which no embedding_gemma2 has"),
        ({"attention_k_eq_v": True}, "attention_k_eq_v is True"),
        ({"use_bidirectional_attention": "vision"}, "use_bidirectional_attention is 'vision'"),
        ({"embedding_dim": 0}, "embedding_dim is not a positive number"),
        ({"embedding_dim": True}, "embedding_dim is not a positive number"),
        ({"hidden_size_per_layer_input": 0}, "hidden_size_per_layer_input is not positive"),
        ({"per_layer_config": {"2": {"head_dims": 4}}}, "per_layer_config '2' holds more than"),
        ({"new_key": 1}, "unknown key 'new_key'"),
        ({"layer_types": 3}, "layer_types should be"),
    ],
)
def test_a_config_that_is_no_embedding_gemma_is_refused_in_one_sentence(change, said):
    with pytest.raises(InputError, match=said):
        read_config(tiny_embedding.TEXT | change, "config.json")


@pytest.mark.parametrize("key", ["dim", "embedding_dim"])
def test_the_width_of_a_vector_stands_in_text_config_alone(key):
    with pytest.raises(InputError, match=f"unknown key '{key}'; a vector is as wide as embedding_dim of text_config"):
        read_config(tiny_embedding.WHOLE | {key: 16}, "config.json")


# the run


def test_the_run_has_the_points_of_its_graph(model):
    ids, arrays = tiny_embedding.multimodal_prompt(tiny_embedding.STORED)
    run, graph = model.record(ids, ["*"], media=read_media(arrays)), graph_of(tiny_embedding.WHOLE, 3, 1)
    assert list(run) == list(graph.points)
    assert all(graph.axes(name) == run.axes[name] for name in run)
    assert graph.parents("ple.per_layer_model_projection") == ("inputs_embeds",)
    assert graph.parents("vector") == ("pooled",)


def test_the_twin_of_the_official_model_has_its_points_and_a_shallow_one_a_layer_of_each_kind():
    family = find(OFFICIAL, "x")
    twin = family.read_config(family.twin(OFFICIAL, "x"), "x")
    assert len(family.shapes(twin)) == 1376
    shallow = family.read_config(family.twin(OFFICIAL, "x", shallow=True), "x")
    assert {spec.kind for spec in shallow.text.layers} == {"sliding_attention", "full_attention"}


def test_a_later_token_changes_an_earlier_one_and_beyond_all_radii_only_through_a_full_layer(model):
    ids = tiny_embedding.prompt(40)
    other = np.array([*ids[:-1], 50])
    a, b = model.record(ids, ["*.out"]), model.record(other, ["*.out"])
    changed = {name: np.flatnonzero((a[name] != b[name]).any(1)) for name in a if name.count(".") == 2}
    assert changed["layers.0.out"].tolist() == list(range(32, 40))
    assert changed["layers.1.out"].tolist() == list(range(25, 40))
    assert changed["layers.2.out"].tolist() == list(range(40))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_recorded_run_has_the_numbers_of_one_that_makes_no_maps(model, folder, backend, precision):
    """With the maps of attention it is computed at once, without them in blocks, or by compiled loops."""
    pytest.importorskip("numba")
    model, ids = numgemma.load(folder, precision), tiny_embedding.prompt(300)
    with ops.using("numpy"):
        mapped = model.record(ids, ["*scores", "vector"])["vector"]
    with ops.using(backend):
        plain = model.record(ids, ["vector"])["vector"]
    assert relative(mapped, plain) < (2e-5 if precision == "float32" else 2e-2)


def test_the_vector_is_the_mean_of_all_tokens_and_of_length_1(folder):
    model = numgemma.load(folder, "float64")
    run = model.record(tiny_embedding.prompt(9))
    np.testing.assert_allclose(run["pooled"], run["embedding_projection"].mean(0), 1e-14, 1e-14)
    np.testing.assert_allclose(run["vector"], run["pooled"] / np.linalg.norm(run["pooled"]), 1e-14)
    late = run["norm"].mean(0) @ model.weights["embedding_projection.weight"].astype(float).T
    np.testing.assert_allclose(late, run["pooled"], 1e-12)  # projecting the mean is the mean of projections


def test_a_vector_of_zeros_stays_one(model):
    assert not embedding.vector(np.zeros(4, np.float32), None).any()


# stored runs of Transformers


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return tiny_embedding.stored_runs(tmp_path_factory.mktemp("stored"))


@pytest.mark.parametrize("name", ["embedding_text_float32", "embedding_text_bfloat16", "embedding_float32"])
def test_a_stored_run_of_transformers_is_ours(stored, name):
    checkpoint, ids, media, dtype, points = stored[name]
    model, theirs = numgemma.load(checkpoint, dtype), numgemma.read_dump(STORED / f"{name}.safetensors")
    manifest = json.loads((STORED / "manifest_embedding.json").read_text())
    assert manifest[name]["weights"] == digest(model), "remake with reference_outputs/make_reference_embedding.py"
    ours = model.record(ids, points, media=media)
    assert theirs.axes == ours.axes
    assert_same_run(*({n: x[None] if x.ndim == 1 else x for n, x in run.items()} for run in (theirs, ours)), dtype)


# checkpoints made and examined


@pytest.mark.parametrize("scale", SCALES)
def test_a_shrunk_model_keeps_what_the_release_has(scale):
    small = find(OFFICIAL, "x").shrunk(OFFICIAL, SCALES[scale], "x")
    config = read_config(small, "x")
    rows = config.text.layers
    assert {(s.K, s.H // rows[0].H) for s in rows if s.window is None} == {(1, 2)}
    assert {s.K for s in rows if s.window} == {2}
    assert [s.kind for s in rows[:6]] == [s.kind for s in read_config(OFFICIAL, "x").text.layers[:6]]
    assert config.embedding_dim == 1.5 * config.text.hidden_size
    assert config.vision.use_clipped_linears < config.audio.use_clipped_linears


def test_a_made_checkpoint_is_one_that_lint_finds_nothing_in_and_whose_tokenizer_puts_both_ends(tmp_path):
    synth("embeddinggemma-2", tmp_path / "m", scale="tiny")
    assert lint(tmp_path / "m") == []
    model = numgemma.load(tmp_path / "m")
    assert model.tokenizer.encode("ab")[::3] == [2, 1]
    assert set(model.weights) == set(model.family.shapes(model.config))


@pytest.mark.parametrize("change", ["lost", "strange", "narrow"])
def test_lint_names_the_tensor_that_is_not_in_its_place(tmp_path, change):
    tensors = tiny.random_tensors(tiny_embedding.TEXT)
    name = "layers.2.ple_block.per_layer_projection.weight"
    if change == "lost":
        del tensors[name]
    tensors |= {"strange": {"lm_head.weight": np.ones((199, 48))}, "narrow": {name: np.ones((48, 8))}}.get(change, {})
    found = lint(tiny_embedding.write(tmp_path / "m", tiny_embedding.TEXT, tensors))
    assert found[0].severity == "error"
    assert ("lm_head.weight" if change == "strange" else name) in found[0].text + " ".join(found[0].tensors)


def test_lint_names_a_pooling_that_is_not_the_model_s(folder, tmp_path):
    here = tmp_path / "m"
    (here / "1_Pooling").mkdir(parents=True)
    for path in folder.iterdir():
        (here / path.name).symlink_to(path)
    steps = [{"type": kind, "path": "1_Pooling"} for kind in ("Transformer", "Pooling", "Normalize")]
    (here / "modules.json").write_text(json.dumps(steps))
    (here / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    (finding,) = (found for found in lint(here) if found.severity == "error")
    assert finding.rule == "pooling"
    assert "pools by cls" in finding.text


def test_its_layers_are_not_stacked(folder, tmp_path):
    with pytest.raises(InputError, match="is of EmbeddingGemma 2, whose layers are not stacked; name a decoder"):
        plan(of_one(str(folder), parse_slices("0-5")))
