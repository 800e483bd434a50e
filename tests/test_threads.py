"""Work is shared among threads without loss, and BLAS gets its threads back."""

import os
import sys
import threading
import timeit
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from numgemma import machine, ops
from numgemma.errors import InputError
from numgemma.masks import causal_mask
from numgemma.ops import cores, definitions, threads

IDS = list(range(5, 45))


@given(st.integers(1, 5), st.integers(1, 100), st.integers(1, 60))
def test_every_row_is_in_one_share(number, n, least):
    seen = []
    with ops.using("numpy", number):
        threads.in_shares(lambda first, end: seen.append((first, end)), n, least)
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
    for choose in (ops.use, lambda *given: ops.using(*given).__enter__()):
        with pytest.raises(InputError, match="give 1 or more"):
            choose("numpy", 0)


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
    last = max(s.index for s in c.layers if s.kv_from == s.index)
    shared = sum(size for n, size in linear.items() if n.startswith("layers.") and int(n.split(".")[1]) > last)
    seen = {s.index: 4 * s.N * s.H * np.asarray(causal_mask(np.arange(50), 0, s.window)).sum() / 50 for s in c.layers}
    of_all = 2 * sum(linear.values()) + sum(seen.values())
    assert machine.flops_per_token(model, True, 50) == pytest.approx(of_all)
    of_sharing = 2 * shared + sum(seen[n] for n in seen if n > last)
    assert machine.flops_per_token(model, False, 50) == pytest.approx(of_all - of_sharing)


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


def test_blas_has_its_threads_back_when_the_last_of_two_threads_lets_it_go():
    before, chosen, other = blas_threads(), threading.Event(), threading.Event()
    with ops.using("numba"):
        thread = threading.Thread(target=lambda: (ops.use("numba"), chosen.set(), other.wait()))
        thread.start()
        chosen.wait()
    assert set(blas_threads()) == {1}
    other.set()
    thread.join()  # it undoes nothing; its choice goes with it
    assert blas_threads() == before


def test_a_thread_begins_without_a_choice():
    seen = []
    with ops.using("numba", 1):
        thread = threading.Thread(target=lambda: seen.append((ops.chosen(), ops.current())))
        thread.start()
        thread.join()
    assert seen == [(None, "numpy")]


def test_twenty_threads_on_two_backends_run_as_if_each_were_alone(models):
    """What each records and generates has the bits that it has alone, and nothing stays chosen."""

    def run(backend, name):
        with ops.using(backend, 1):  # on more, BLAS would have fewer than alone where another runs on numba
            logits = models[name].record(IDS, ["logits"])["logits"]
            story = models[name].generate(IDS[:4], 4, ignore_eos=True)
            assert ops.current() == backend
        return logits.tobytes(), story, ops.chosen(), models[name].generate(IDS[:4], 4, ignore_eos=True), ops.chosen()

    before, interval = blas_threads(), sys.getswitchinterval()
    wanted = [(backend, name) for backend in ops.BACKENDS for name in ("ple", "moe")] * 5
    alone = {given: run(*given) for given in set(wanted)}
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(len(wanted)) as pool:
            found = list(pool.map(run, *zip(*wanted, strict=True)))
    finally:
        sys.setswitchinterval(interval)
    assert found == [alone[given] for given in wanted]
    assert alone["numpy", "ple"][2::2] == (None, None)
    assert ops.chosen() is None
    assert blas_threads() == before


V1 = {"quota": "cpu.cfs_quota_us", "period": "cpu.cfs_period_us"}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, [1.5]),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "cpu.max": "50000 50000"}, [3, 1]),
        ("0::/of/the/host", {"cpu.max": "200000 100000"}, [2]),  # a container sees its own group at the top
        ("0::/", {"cpu.max": "max 100000"}, []),
        ("0::/", {"cpu.max": "nonsense"}, []),
        (
            "4:memory:/m\n2:cpu,cpuacct:/d",
            {f"cpu,cpuacct/d/{V1['quota']}": "250000", f"cpu,cpuacct/d/{V1['period']}": "100000"},
            [2.5],
        ),
        ("1:cpu:/", {f"cpu/{V1['quota']}": "-1", f"cpu/{V1['period']}": "100000"}, []),
        ("", {}, []),
    ],
)
def test_the_time_that_a_container_has_is_read_where_the_system_writes_it(tmp_path, groups, files, expected):
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert sorted(set(cores.shares(tmp_path)), reverse=True) == expected


def test_a_container_s_share_bounds_the_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for found, expected in (([], 16), ([2.5], 3), ([0.5], 1), ([40.0, 6.0], 6)):
        monkeypatch.setattr(cores, "shares", lambda found=found: found)
        assert cores.usable.__wrapped__() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert cores.usable.__wrapped__() == 2


def test_looking_an_operation_up_costs_less_than_a_microsecond():
    def one(x):
        return x

    def cost(op):
        return min(timeit.repeat(lambda: op(1), number=100, repeat=300)) / 100

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(definitions), "relu", one)
        assert cost(ops.relu) - cost(one) < 1e-6


@pytest.mark.parametrize("wrong", [("numpy", 0), ("cupy", 1)])
def test_a_choice_that_is_refused_changes_nothing(wrong):
    before = ops.chosen(), ops.current(), threads.allowed()
    with pytest.raises(InputError):
        ops.use(*wrong)
    assert (ops.chosen(), ops.current(), threads.allowed()) == before
