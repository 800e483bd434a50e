"""Work is shared among threads without loss, and BLAS gets its threads back."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from numgemma import machine, ops
from numgemma.errors import InputError
from numgemma.ops import threads


@given(st.integers(1, 5), st.integers(1, 100), st.integers(1, 60))
def test_every_row_is_in_one_share(number, n, least):
    seen = []
    before = threads.limit
    threads.limit = number
    try:
        threads.in_shares(lambda first, end: seen.append((first, end)), n, least)
    finally:
        threads.limit = before
    assert sorted(i for first, end in seen for i in range(first, end)) == list(range(n))
    assert len(seen) <= number
    assert len(seen) == 1 or min(end - first for first, end in seen) >= least


def test_what_fails_in_a_thread_fails_here():
    def run(first, end):
        raise ValueError("in a share")

    with pytest.raises(ValueError, match="in a share"):
        threads.in_shares(run, 4, 1)


def blas_threads():
    return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]


def test_numba_holds_blas_to_one_thread_and_lets_it_go_again():
    before = blas_threads()
    with ops.using("numba"):
        assert set(blas_threads()) == {1}
        with ops.using("numpy"):
            assert blas_threads() == before
    assert blas_threads() == before


def test_the_machine_is_measured_in_plausible_numbers():
    assert 0.1 < machine.read_bandwidth(1) < 2000
    assert 0.1 < machine.gemm_peak() < 1e5
    assert not machine.blas_kernel().startswith("unknown (threadpoolctl")


def test_a_forced_slower_kernel_is_said(monkeypatch):
    monkeypatch.setattr(machine, "processor_flags", lambda: "avx2 avx512f")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert "env -u OPENBLAS_CORETYPE" in machine.warnings()[0]
    monkeypatch.setenv("OPENBLAS_CORETYPE", "SkylakeX")
    assert machine.warnings() == []
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert machine.warnings() == []


def test_no_threads_are_refused():
    with pytest.raises(InputError, match="give 1 or more"):
        ops.limit(0)


def test_bytes_and_products_of_a_token_are_those_of_the_weights_it_meets(models):
    model = models["moe"]
    c, w = model.config.text, model.weights
    expert = sum(w[f"layers.{s.index}.experts.{n}"].nbytes for s in c.layers for n in ("gate_up_proj", "down_proj"))
    others = sum(w[n].nbytes for n in w if ".experts." not in n)
    J, E = c.layers[0].J, c.layers[0].E
    assert machine.bytes_per_token(model) == pytest.approx(others + expert * J / E)
    model = models["ple"]
    c, w = model.config.text, model.weights
    linear = {n: w[n].size for n in w if w[n].ndim == 2 and not n.startswith("embed")}
    all_layers = 2 * sum(linear.values())
    assert machine.flops_per_token(model, True) == all_layers
    last = max(s.index for s in c.layers if s.kv_from == s.index)
    shared = sum(size for n, size in linear.items() if n.startswith("layers.") and int(n.split(".")[1]) > last)
    assert machine.flops_per_token(model, False) == all_layers - 2 * shared


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_memory_held_counts_what_was_just_taken():
    before = machine.peak_memory()
    taken = np.ones(1 << 25, np.float32)
    after = machine.peak_memory()
    assert after["anonymous"] - before["anonymous"] > 0.9 * taken.nbytes / 1e9
    assert after["peak"] >= after["anonymous"]


def test_a_limit_holds_for_blas_and_for_the_pool():
    before = blas_threads()
    with ops.undone():
        ops.use("numpy", 1)
        assert set(blas_threads()) == {1}
        assert threads.allowed() == 1
    assert blas_threads() == before


@pytest.mark.parametrize("wrong", [("numpy", 0), ("cupy", 1)])
def test_a_choice_that_is_refused_changes_nothing(wrong):
    before = ops.chosen, ops.current, threads.limit
    with pytest.raises(InputError):
        ops.use(*wrong)
    assert (ops.chosen, ops.current, threads.limit) == before
