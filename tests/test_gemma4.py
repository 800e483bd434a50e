"""Properties of the forward pass, on random checkpoints of every shape.  In float64, where equal means equal."""

import numpy as np
import pytest
import tiny
from closeness import assert_close, assert_same_run, relative

import numgemma
from numgemma.checkpoint import Weights
from numgemma.cli import main
from numgemma.families import read_config
from numgemma.families.gemma4 import gemma4, layout
from numgemma.model import Model
from numgemma.trace import EVERYTHING_BUT_MAPS, Recorder

TOKENS = 23  # the window is 7


@pytest.fixture(params=tiny.VARIANTS)
def variant(request):
    return request.param


@pytest.fixture
def model(folders, variant):
    return numgemma.load(folders[variant], "float64")


@pytest.fixture
def ids(variant):
    return tiny.prompt(tiny.VARIANTS[variant], TOKENS)


def changed(tmp_path, variant, config=(), tensors=(), dtype="bfloat16"):
    """The variant's model with other config values or other tensors."""
    raw = tiny.VARIANTS[variant] | dict(config)
    found = tiny.random_tensors(tiny.VARIANTS[variant])
    expected = layout.tensor_shapes(read_config(raw, "the test"))
    found = {name: x for name, x in (found | dict(tensors)).items() if name in expected}
    return numgemma.load(tiny.write(tmp_path / "changed", raw, found, dtype), "float64")


def test_a_later_token_cannot_change_an_earlier_output(model, ids):
    other = ids.copy()
    other[12] += 1
    a, b = model.logits(ids), model.logits(other)
    assert_close(a[:12], b[:12], "float64")  # not bit for bit: an expert's rows are multiplied together
    assert not np.allclose(a[12:], b[12:])


@pytest.mark.parametrize("prefill", [1, 5, 7, 8, 22])
def test_a_cached_run_equals_the_uncached_run_at_every_point(model, ids, prefill):
    assert_same_run(model.record(ids, ["*"]), model.record(ids, ["*"], prefill=prefill), "float64")


def test_a_cached_run_equals_the_uncached_run_far_past_the_window(model, variant):
    ids = tiny.prompt(tiny.VARIANTS[variant], 80)
    assert_same_run(
        model.record(ids, ["*.out", "logits"]), model.record(ids, ["*.out", "logits"], prefill=3), "float64"
    )


def test_the_cache_keeps_a_window_on_sliding_layers_and_nothing_on_sharing_layers(model, ids):
    kvs = {}
    gemma4.forward(ids, model.weights, model.run(kvs))
    for spec in model.config.text.layers:
        if spec.kv_from != spec.index:
            assert spec.index not in kvs
        else:
            assert {len(x) for x in kvs[spec.index]} == {spec.window - 1 if spec.window else TOKENS}


def test_a_window_as_long_as_the_prompt_equals_any_longer_one(tmp_path, variant, ids):
    a = changed(tmp_path, variant, {"sliding_window": TOKENS}).logits(ids)
    b = changed(tmp_path, variant, {"sliding_window": 1000}).logits(ids)
    np.testing.assert_array_equal(a, b)


def test_a_shorter_window_changes_only_the_tokens_beyond_it(tmp_path, variant, ids):
    a = changed(tmp_path, variant, {"sliding_window": 7}).logits(ids)
    b = changed(tmp_path, variant, {"sliding_window": 8}).logits(ids)
    assert_close(a[:7], b[:7], "float64")
    assert not np.allclose(a[7], b[7])


def test_float32_is_within_one_hundred_thousandth_of_float64(folders, variant, ids):
    a, b = (numgemma.load(folders[variant], p).record(ids) for p in ("float64", "float32"))
    for name in a:
        if a[name].dtype.kind == "f":
            assert relative(a[name], b[name]) < 1e-5, name


def test_every_tensor_of_the_layout_is_read_and_no_other(model, ids):
    read = set()

    class Noting(Weights):
        def __getitem__(self, name):
            read.add(self.scope + name)
            return super().__getitem__(name)

    w = Noting(model.weights.tensors)
    gemma4.forward(ids, w, model.run())
    assert read == set(layout.text_shapes(model.config.text))


def test_every_tensor_changes_the_logits(model, variant, ids):
    """A weight that is read and then thrown away would pass every test of shapes."""
    before = model.logits(ids)
    rng = np.random.default_rng(3)
    for name, x in model.weights.tensors.items():
        noise = rng.uniform(0.5, 1.5, x.shape)
        w = Weights(dict(model.weights.tensors) | {name: x.astype(np.float64) * noise})
        assert not np.array_equal(before, gemma4.forward(ids, w, model.run())), name


def test_values_are_the_raw_keys_where_k_eq_v(tmp_path, ids):
    """A checkpoint whose v_proj is a copy of its k_proj computes the same."""
    tensors = tiny.random_tensors(tiny.DENSE)
    k = {name: x for name, x in tensors.items() if name.endswith("k_proj.weight")}
    copied = {name.replace("k_proj", "v_proj"): x for name, x in k.items()}
    a = changed(tmp_path / "a", "dense", {}, {n: x for n, x in copied.items() if n in tensors})
    full = {
        str(spec.index): {"head_dim": 32, "num_key_value_heads": 2} for spec in a.config.text.layers if not spec.window
    }
    raw = tiny.DENSE | {"attention_k_eq_v": False, "per_layer_config": full}
    b = numgemma.load(tiny.write(tmp_path / "b", raw, tensors | copied), "float64")
    np.testing.assert_array_equal(a.logits(ids), b.logits(ids))


def test_a_head_of_its_own_is_used_when_the_file_has_one(tmp_path, folders, variant, ids):
    raw = tiny.VARIANTS[variant] | {"tie_word_embeddings": False}
    tensors = tiny.random_tensors(tiny.VARIANTS[variant])
    tied = numgemma.load(folders[variant], "float64").logits(ids)
    copy = tensors | {"lm_head.weight": tensors["embed_tokens.weight"]}
    np.testing.assert_array_equal(numgemma.load(tiny.write(tmp_path / "a", raw, copy), "float64").logits(ids), tied)
    other = tensors | {"lm_head.weight": 2 * tensors["embed_tokens.weight"]}
    assert not np.allclose(numgemma.load(tiny.write(tmp_path / "b", raw, other), "float64").logits(ids), tied)


def test_keys_that_released_files_carry_for_sharing_layers_change_nothing(tmp_path, folders):
    ids = tiny.prompt(tiny.PLE, TOKENS)
    tensors = tiny.random_tensors(tiny.PLE) | tiny.leftover_tensors(tiny.PLE)
    released = numgemma.load(tiny.write(tmp_path / "released", tiny.PLE, tensors), "float64")
    np.testing.assert_array_equal(released.logits(ids), numgemma.load(folders["ple"], "float64").logits(ids))


@pytest.mark.parametrize("prefix", ["", "model.", "model.language_model.", "language_model.model."])
def test_the_prefix_of_the_names_does_not_matter(tmp_path, models, prefix):
    folder = tiny.write(tmp_path / "renamed", tiny.PLE, prefix=prefix)
    ids = tiny.prompt(tiny.PLE, 5)
    np.testing.assert_array_equal(numgemma.load(folder).logits(ids), models["ple"].logits(ids))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_any_stored_dtype_runs(tmp_path, variant, models, dtype):
    """Values that all dtypes hold exactly give the same logits whatever the file's dtype."""
    tensors = {k: np.float16(x).astype("bfloat16") for k, x in tiny.random_tensors(tiny.VARIANTS[variant]).items()}
    ids = tiny.prompt(tiny.VARIANTS[variant], 9)
    a = numgemma.load(tiny.write(tmp_path / "a", tiny.VARIANTS[variant], tensors))
    b = numgemma.load(tiny.write(tmp_path / "b", tiny.VARIANTS[variant], tensors, dtype))
    assert_close(a.logits(ids), b.logits(ids))


def test_an_edit_acts_where_the_tensor_is_born(model, ids):
    clean = model.record(ids, ["*"])
    cut = model.record(ids, ["*"], edits={"layers.2.self_attn.context": np.zeros_like})
    names = list(clean)
    at = names.index("layers.2.self_attn.context")
    for name in names[:at]:
        np.testing.assert_array_equal(clean[name], cut[name])
    assert not cut["layers.2.self_attn.o_proj"].any()
    assert not np.allclose(clean["logits"], cut["logits"])


def test_every_floating_point_on_record_is_on_the_way_to_the_logits(model, ids):
    """An edit of any recorded point but the last changes the logits: nothing is recorded beside the computation."""
    clean = model.record(ids, ["*"])
    for name, x in clean.items():
        if x.dtype.kind == "f":
            edits = {name: lambda y: y * y.dtype.type(1.5) + y.dtype.type(0.1)}
            assert not np.array_equal(model.record(ids, ["logits"], edits)["logits"], clean["logits"]), name


def test_a_recorder_does_not_change_what_it_watches(model, ids):
    def keep(name, x, axes):
        pass

    def watched(points):
        tap = Recorder(keep, model.dtype, points)
        return gemma4.forward(ids, model.weights, model.run(), tap)

    np.testing.assert_array_equal(watched(EVERYTHING_BUT_MAPS), model.logits(ids))
    np.testing.assert_allclose(watched(["*"]), model.logits(ids), 1e-9, 1e-12)  # maps in whole are summed otherwise


def test_a_model_runs_where_its_weights_may_not_be_written(model):
    assert isinstance(model, Model)
    assert not any(x.flags.writeable for x in model.weights.tensors.values())


@pytest.mark.parametrize("verb", ["generate", "dump"])
def test_a_token_behind_the_end_of_a_short_per_layer_table_is_named(tmp_path, capsys, verb):
    raw = tiny.PLE | {"vocab_size_per_layer_input": 48}
    folder = tiny.write(tmp_path / "m", raw)
    more = ["--max-new-tokens", "1", "--print-ids"] if verb == "generate" else ["-o", str(tmp_path / "x.safetensors")]
    assert main([verb, str(folder), "--ids", "3,50,7", *more]) == 2
    assert (
        "Token 50 has a row in embed_tokens and none in embed_tokens_per_layer, which has 48" in capsys.readouterr().err
    )
    assert np.isfinite(numgemma.load(folder).logits([3, 47, 7])).all()
