"""Layers are asked for ahead of their use, and let go of where they do not all fit."""

import mmap
import os

import numpy as np
import pytest
import tiny

import numgemma
from numgemma import streaming


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the disk, in order."""
    found = []
    monkeypatch.setattr(streaming, "ask", lambda tensors: found.append(("ask", len(tensors))))
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


def test_what_is_read_ahead_is_every_layer_and_what_makes_logits(folders, calls, monkeypatch):
    model = numgemma.load(folders["dense"])
    layers = len(model.config.text.layers)
    streaming.read_ahead(model.weights, layers)
    own = [sum(name.startswith(f"layers.{i}.") for name in model.weights) for i in range(layers)]
    assert calls == [("ask", count) for count in (*own, 1)]
    calls.clear()
    monkeypatch.setattr(streaming, "available_memory", lambda: 1000.0)
    streaming.read_ahead(model.weights, layers)
    assert not calls


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="nothing here tells what is in memory")
def test_an_array_that_was_asked_for_is_in_memory_whole(tmp_path):
    """Also where it is larger than the window that the system reads by itself, and begins within a page."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(3 * streaming.STEP + 12345))
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if in_memory(stream.fileno(), streaming.STEP):
            pytest.skip("this file system keeps its files in memory")
        streaming.come(np.memmap(file, np.uint8, "r", offset=100))
        for at in range(100, file.stat().st_size, mmap.PAGESIZE):
            assert in_memory(stream.fileno(), at)


def in_memory(file, at):
    """Whether a byte of the file can be read without the disk."""
    try:
        return bool(os.preadv(file, [bytearray(1)], at, os.RWF_NOWAIT))
    except BlockingIOError:
        return False


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
