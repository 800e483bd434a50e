"""What goes wrong around a comparison: a buffer used again, a token of vanishing size, and the words for it."""

import numpy as np
import pytest
import tiny

import numgemma
from numgemma.debug.blame import words
from numgemma.debug.blame.replay import replay
from numgemma.debug.compare.diff import diff, render, verdict
from numgemma.dump import Dump

IDS = [5, 9, 17, 42, 3, 101, 77, 8, 30, 11]
OUTPUTS = ("embed_tokens", "layers.*.out", "norm", "logits")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return numgemma.load(tiny.write(tmp_path_factory.mktemp("field") / "m", tiny.TEXT))


@pytest.fixture(scope="module")
def truth(model):
    return model.record(IDS)


def port(model, **arrays):
    """What another engine wrote: the outputs of its layers, some of them replaced."""
    dump = model.record(IDS, OUTPUTS)
    return Dump(dump.meta, dict(dump.arrays) | arrays, dump.axes)


def test_a_buffer_that_was_overwritten_before_it_was_written_is_the_dump_and_not_the_run(model, truth):
    dump = port(model, **{"layers.0.out": truth["layers.1.after_attention"]})
    found = diff(truth, dump)
    assert (found.verdict, found.exit_code) == ("differs", 1)
    assert found.overwritten == {"layers.0.out": "layers.1.after_attention"}
    assert verdict(found).startswith("THE DUMP, NOT THE RUN: B's layers.0.out holds the numbers of layers.1.after_att")
    again = replay(model, dump)
    assert again.overwritten == found.overwritten
    assert words.render(again).startswith("THE DUMP, NOT THE RUN: layers.0.out holds")


def test_a_fault_whose_consequences_are_in_the_dump_is_no_overwritten_buffer(model, truth):
    broken = model.record(IDS, OUTPUTS, edits={"layers.0.out": lambda x: truth["layers.1.after_attention"]})
    assert diff(truth, broken).overwritten == {}
    assert replay(model, broken).overwritten == {}


def test_a_wrong_tensor_that_is_nobody_elses_is_no_overwritten_buffer(model, truth):
    dump = port(model, **{"layers.0.out": truth["layers.0.out"] * np.float32(1.5)})
    assert diff(truth, dump).overwritten == {}
    assert replay(model, dump).overwritten == {}


@pytest.mark.parametrize("seed", range(4))
def test_tokens_of_vanishing_size_are_no_difference(tmp_path, seed):
    """Gates that are all shut leave rounding of a token: 0 here, 8e-9 there, and the norm after it makes that 8e-6."""
    model = numgemma.load(tiny.write(tmp_path / "m", tiny.PLE, tiny.random_tensors(tiny.PLE, seed)))
    rng = np.random.default_rng(seed)

    def shut(size):
        def edit(x):
            x = x.copy()
            x[4] = size * rng.standard_normal(x.shape[1])
            return x

        return {"layers.3.per_layer_projection": edit}

    a, b = (model.record(IDS, edits=shut(size)) for size in (0.0, 8e-9))
    moved = np.abs(b["layers.3.post_per_layer_input_norm"][4]).max()
    assert 1e-6 < moved < 1e-4
    for found in (diff(a, b), diff(b, a)):
        assert found.verdict == "same", verdict(found)
    assert replay(model, b).exit_code == 1, "the edit itself is a fault, whose size is the tensor's"


def test_a_loud_token_that_should_vanish_is_a_difference():
    x = np.ones((6, 8), np.float32)
    x[2] = 1e-9
    for size, state in ((2e-6, "same"), (1e-2, "differs")):
        y = x.copy()
        y[2] = size
        a, b = (Dump({"ids": IDS[:6]}, {"norm": side}, {"norm": "T D"}) for side in (x, y))
        assert diff(a, b).verdict == state


def test_a_comparison_without_a_floor_says_that_one_would_tell_noise_from_fault(model, truth):
    dump = port(model, norm=truth["norm"] * np.float32(1.01))
    assert "A floor tells noise from fault: --floor auto" in render(diff(truth, dump), width=200)
    assert "floor" not in render(diff(truth, port(model)), width=200)
