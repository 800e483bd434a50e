"""Layers are asked for ahead of their use, and let go of where they do not all fit."""

import numpy as np
import pytest
import tiny

import numgemma
from numgemma import streaming


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the disk, at once and in order."""
    found = []

    class Now:
        def submit(self, run, *args):
            run(*args)

    monkeypatch.setattr(streaming, "disk", Now)
    monkeypatch.setattr(streaming, "will_need", lambda tensors: found.append(("ask", len(tensors))))
    monkeypatch.setattr(streaming, "release", lambda x: found.append(("release", x.shape)))
    return found


def visited(w, layers, passes=2):
    for _ in range(passes):
        for i in range(layers):
            w.at(f"layers.{i}").at("self_attn")
    return w


def test_a_model_that_fits_is_asked_for_once_and_stays(folders, calls):
    model = numgemma.load(folders["dense"])
    layers = len(model.config.text.layers)
    visited(model.weights, layers)
    assert [kind for kind, _ in calls] == ["ask"] * layers


def test_a_model_that_does_not_fit_comes_and_goes_in_every_pass(folders, calls, monkeypatch):
    monkeypatch.setattr(streaming, "available_memory", lambda: 1000.0)
    model = numgemma.load(folders["dense"])
    layers = len(model.config.text.layers)
    visited(model.weights, layers)
    asked = [kind for kind, _ in calls].count("ask")
    assert asked >= 2 * layers
    released = [shape for kind, shape in calls if kind == "release"]
    assert len(released) == 2 * sum(n.startswith("layers.") for n in model.weights)


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_a_run_from_disk_has_the_same_bits(folders, variant, monkeypatch):
    ids = tiny.prompt(tiny.VARIANTS[variant], 9)
    expected = numgemma.load(folders[variant]).logits(ids)
    monkeypatch.setattr(streaming, "available_memory", lambda: 1000.0)
    model = numgemma.load(folders[variant])
    for _ in range(2):
        np.testing.assert_array_equal(model.logits(ids), expected)


def test_memory_is_limited_by_the_container(tmp_path, monkeypatch):
    assert streaming.available_memory() > 1e6
    monkeypatch.setattr(streaming, "group_limit", lambda: 5e6)
    assert streaming.available_memory() == 5e6
