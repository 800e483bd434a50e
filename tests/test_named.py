"""Families whose runs take arrays by name: checked strictly, kept in the dump, and enough to run it again."""

import json

import numpy as np
import pytest
import tiny
import toy
from closeness import assert_same_run
from safetensors.numpy import save_file
from test_families import IDS, RAW
from toy import named

import numgemma
from numgemma import families
from numgemma.cli import main
from numgemma.debug.blame.emulate import emulate
from numgemma.debug.blame.replay import replay
from numgemma.debug.blame.whatif import whatif
from numgemma.debug.faults import applied
from numgemma.errors import InputError
from numgemma.graph import graph_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    families.register(toy.FAMILY)
    families.register(named.FAMILY)
    folder, rng = tmp_path_factory.mktemp("named"), np.random.default_rng(0)
    shapes = named.FAMILY.shapes(toy.read_config(RAW, "the test"))
    tensors = {name: tiny.random_tensor(name, shape, rng).astype(np.float32) for name, shape in shapes.items()}
    for kind in ("toy", "toy_by_name"):
        (folder / kind).mkdir()
        save_file({f"model.{name}": x for name, x in tensors.items()}, folder / kind / "model.safetensors")
        (folder / kind / "config.json").write_text(json.dumps(RAW | {"model_type": kind}))
    yield folder
    families.REGISTERED.clear()


@pytest.fixture
def model(folder):
    return numgemma.load(folder / "toy_by_name")


@pytest.fixture
def given():
    """As Transformers passes them, with a batch axis of 1."""
    rng = np.random.default_rng(3)
    x, past = (rng.standard_normal((1, rows, 16)).astype(np.float32) for rows in (4, 7))
    return {"inputs_embeds": x, "position_ids": np.arange(4)[None], "past.v": past}


def test_a_run_goes_on_from_what_it_was_given(model, given):
    dump = model.record(inputs=given, points=["*"])
    np.testing.assert_array_equal(dump["entered"], given["inputs_embeds"][0])
    for i in range(3):
        v = np.concatenate([given["past.v"][0], dump[f"layers.{i}.past.v_proj"]])
        means = [v[: 8 + t].mean(0) for t in range(4)]
        np.testing.assert_allclose(dump[f"layers.{i}.past.mean"], means, 1e-5, 1e-6)


def test_the_batch_axis_may_be_there_or_not(model, given):
    bare = {name: x[0] for name, x in given.items()}
    assert_same_run(model.record(inputs=given), model.record(inputs=bare), "float64")


def test_a_dump_keeps_what_its_run_was_given_whatever_points_it_keeps(model, given, tmp_path):
    model.record(inputs=given, points=["logits"]).save(tmp_path / "a.safetensors")
    dump = numgemma.read_dump(tmp_path / "a.safetensors")
    assert list(dump) == ["inputs.inputs_embeds", "inputs.past.v", "inputs.position_ids", "logits"]
    np.testing.assert_array_equal(dump["inputs.past.v"], given["past.v"][0])
    assert dump.axes["inputs.past.v"] == "S D"
    assert sorted(dump.meta["inputs"]) == sorted(given)


def test_the_graph_begins_at_what_was_given(model, given):
    learned = graph_of(RAW | {"model_type": "toy_by_name"})
    del given["position_ids"]
    assert list(learned.points) == list(model.record(inputs=given, points=["*"]))
    assert learned.parents("layers.1.past.mean") == ("inputs.past.v", "layers.1.past.v_proj")
    assert learned.parents("inputs.inputs_embeds") == ()


def test_replay_whatif_and_emulate_run_a_dump_again_from_what_it_holds(model, given):
    clean = model.record(inputs=given, points=["*"])
    assert replay(model, clean).exit_code == 0
    assert emulate(model, clean, engine="llama.cpp", runs=1).verdict
    with applied(model, "T15-silu"):
        broken = model.record(inputs=given, points=["*"])
    assert replay(model, broken).first.endswith("gate_proj") or "mlp" in replay(model, broken).first
    assert whatif(model, broken).candidates[0].faults == ("T15-silu",)


def test_what_does_not_fit_is_said_in_a_sentence(model, given):
    wrong = {
        "holds 'input_ids'": {"input_ids": np.arange(3)},
        r"has no past\.v": {"past.v": None},
        r"inputs_embeds should be floats \[T, D = 16\].*is float32 \[1, 4, 15\]": {
            "inputs_embeds": given["inputs_embeds"][..., 1:]
        },
        r"position_ids should be integers \[T = 4\].*is float64 \[4\]": {"position_ids": np.arange(4.0)},
        r"position_ids should be integers \[T = 4\].*is int64 \[5\]": {"position_ids": np.arange(5)},
        r"past\.v should be floats \[S, D = 16\].*is float32 \[2, 7, 16\]": {
            "past.v": np.tile(given["past.v"], (2, 1, 1))
        },
        r"past\.v should be floats.*is float32 \[0, 16\]": {"past.v": given["past.v"][0, :0]},
    }
    for sentence, change in wrong.items():
        arrays = {name: x for name, x in (given | change).items() if x is not None}
        with pytest.raises(InputError, match=sentence):
            model.record(inputs=arrays)


def test_a_run_without_them_is_refused_and_so_is_one_in_parts(model, given):
    with pytest.raises(InputError, match=r"takes inputs_embeds by name.*--inputs"):
        model.record(IDS)
    with pytest.raises(InputError, match="leave --prefill out"):
        model.record(inputs=given, prefill=1)
    with pytest.raises(InputError, match="holds 'inputs_embeds'; by name this model takes nothing"):
        numgemma.load("tiny").record(inputs=given)


def test_a_dump_that_does_not_hold_them_is_refused_in_a_sentence(model, given):
    dump = model.record(inputs=given, points=["*"])
    del dump.arrays["inputs.past.v"]
    with pytest.raises(InputError, match=r"the dump: has no past\.v"):
        replay(model, dump)
    dump.arrays["inputs.past.v"] = np.ones((3, 5), np.float32)
    with pytest.raises(InputError, match=r"the dump: past\.v should be floats \[S, D = 16\]"):
        replay(model, dump)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_the_verbs_take_a_file_and_later_the_dump_alone(folder, given, tmp_path, monkeypatch, capsys, suffix):
    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path / "cache"))
    ckpt, file = str(folder / "toy_by_name"), tmp_path / f"given.{suffix}"
    save_file(given, file) if suffix == "safetensors" else np.savez(file, **given)
    a, b = (str(tmp_path / f"{name}.safetensors") for name in "ab")
    assert main(["dump", ckpt, "--inputs", str(file), "-o", a]) == 0
    assert main(["dump", ckpt, "--inputs", str(file), "--precision", "bfloat16", "-o", b]) == 0
    assert main(["floor", ckpt, a]) == 0
    assert main(["diff", a, a, "--floor", "auto"]) == 0
    assert main(["diff", a, b, "--floor", "auto", "--ckpt", ckpt]) == 0
    assert main(["replay", ckpt, b]) == 0
    assert main(["replay", ckpt, b, "--inputs", str(file)]) == 0
    assert main(["whatif", ckpt, a]) == 0
    assert main(["doctor", ckpt, a]) == 0
    assert "Traceback" not in capsys.readouterr().err
    assert main(["dump", ckpt, "--ids", "1,2", "-o", b]) == 2
    assert "--inputs FILE" in capsys.readouterr().err
