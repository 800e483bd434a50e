"""Layers are asked for ahead of their use, and let go of where they do not all fit."""

import mmap
import os
import sys
import time

import numpy as np
import pytest
import tiny
import tiny_embedding
from numpy.lib.array_utils import byte_bounds

import numgemma
from numgemma import ops, streaming


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
    assert calls == []  # whoever loads a model may not run it
    visited(model.weights, layers)
    assert [kind for kind, _ in calls] == ["ask"] * (layers + 1)  # and the head


@pytest.mark.parametrize(("variant", "head"), [("dense", 1), ("embedding", 0)])
def test_the_head_comes_with_the_last_layer_where_there_is_one(folders, tmp_path, variant, head, monkeypatch):
    found = []
    monkeypatch.setattr(streaming, "ask", found.append)
    monkeypatch.setattr(streaming, "AHEAD", 1)
    folder = folders["dense"] if head else tiny_embedding.write(tmp_path / "m", tiny_embedding.TEXT)
    model = numgemma.load(folder)
    layers = len(model.outline.layers)
    for i in range(layers - 1):
        model.weights.at(f"layers.{i}")
    assert len(found) == layers
    model.weights.at(f"layers.{layers - 1}")
    assert [len(some) for some in found[layers:]] == [1] * head


def test_rows_of_a_large_table_are_asked_for_together_and_once(monkeypatch):
    found, table = [], np.arange(12.0).reshape(6, 2)
    low = byte_bounds(table)[0]
    monkeypatch.setattr(streaming, "advise", lambda *bounds_and_advice: found.append(bounds_and_advice[:2]))
    streaming.rows_needed(np.array([4, 1, 4]), table)
    assert found == []  # a small one comes as it is touched
    monkeypatch.setattr(streaming, "LARGE", 10)
    with ops.using("numba"):
        rows = ops.embed(np.array([4, 1, 4]), table, np.dtype(np.float32))
    np.testing.assert_array_equal(rows, [[8, 9], [2, 3], [8, 9]])
    assert found == [(low + 16, low + 32), (low + 64, low + 80)]


def test_a_model_that_does_not_fit_comes_and_goes_in_every_pass(folders, calls, monkeypatch):
    monkeypatch.setattr(streaming, "available_memory", lambda: 1000.0)
    model = numgemma.load(folders["dense"])
    layers = len(model.config.text.layers)
    visited(model.weights, layers)
    asked = [kind for kind, _ in calls].count("ask")
    assert asked >= 2 * layers
    released = [shape for kind, shape in calls if kind == "release"]
    assert len(released) == 2 * sum(n.startswith("layers.") for n in model.weights)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what it holds of a file")
@pytest.mark.parametrize("system", ["this one", "an older one"])
def test_what_is_asked_for_is_there(tmp_path, system, monkeypatch):
    """Every page of it, whatever the system knows of reading ahead."""
    file, answers, real = tmp_path / "weights", {}, streaming.madvise

    def madvise(start, length, advice):
        unknown = system == "an older one" and advice == streaming.POPULATE_READ
        answers[advice] = -1 if unknown else real(start, length, advice)
        return answers[advice]

    np.arange(1 << 21, dtype=np.float32).tofile(file)
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        x = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.float32).reshape(512, -1)
        monkeypatch.setattr(streaming, "madvise", madvise)
        streaming.will_need([x])
        deadline = time.monotonic() + 60  # WILLNEED does not wait
        while missing := [page for page in range(0, x.nbytes, 4096) if not there(opened, page)]:
            assert time.monotonic() < deadline, missing
    assert (mmap.MADV_WILLNEED in answers) == (answers[streaming.POPULATE_READ] != 0)


def there(file, at):
    """Whether a byte of a file can be read without the disk."""
    try:
        return bool(os.preadv(file.fileno(), [bytearray(1)], at, os.RWF_NOWAIT))
    except BlockingIOError:
        return False
    except OSError as error:
        pytest.skip(f"this file system does not say: {error}")


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
