"""Threads that wait for shares of products lose none, mix no runs up, and go when they are called."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import ml_dtypes
import numpy as np
import pytest

from numgemma import ops
from numgemma.ops import blocks, kernels, relay, threads, twins

SHAPES = [(1, 70_000), (3, 40_000), (64, 1024), (301, 256), (2000, 100), (9001, 37)]

BLOCKS = [("Q8_0", 32, 34), ("Q4_0", 32, 18), ("Q4_K", 256, 144), ("Q5_K", 256, 176), ("Q6_K", 256, 210)]  # bytes


def drawn(shape, stored=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(stored)


def alone(x, w):
    """What one thread computes in one call."""
    y = np.empty(len(w), np.float32)
    kernels.times_one(twins.bits(w), x, y, 0, len(w))
    return y


def waiting():
    return int((relay.boxes[:, relay.STATE] == relay.WAITING).sum())


def until(condition):
    """Whether it comes true within ten seconds."""
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(1e-3)
    return condition()


def shares_done():
    return int(relay.boxes[:, relay.DONE].sum())


@pytest.fixture
def many(monkeypatch):
    """As many processors as a test has threads, and every product worth a share for each."""
    monkeypatch.setattr(relay.cores, "usable", lambda: 64)
    monkeypatch.setattr(relay, "SHARE", 1)
    monkeypatch.setattr(relay, "WOKEN", 1)


@pytest.fixture
def patient(many, monkeypatch):
    """Whoever waits does so for a second or more, so that a test finds it there."""
    monkeypatch.setattr(relay, "PATIENCE", 1 << 30)
    yield
    monkeypatch.undo()
    threads.handed_out[0] += 1
    assert until(lambda: not waiting())  # one that is about to go would count as awake in the next test


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_has_the_bits_of_one_thread_whoever_is_awake(patient, shape, stored, tokens):
    w, x = drawn(shape, stored), drawn((tokens, shape[1]), seed=1)
    with ops.using("numba", 1):
        one = ops.linear(x, w)
    for number in (2, 3, 5):
        with ops.using("numba", number):
            before = shares_done()
            for _ in range(3):
                np.testing.assert_array_equal(ops.linear(x, w), one)
                assert len(w) < 4 * number or until(lambda: waiting() > 0)
            assert len(w) < 4 * number or shares_done() > before


@pytest.mark.parametrize(("name", "size", "width"), BLOCKS)
def test_codes_have_the_bits_of_one_thread_whoever_is_awake(patient, name, size, width):
    rows, x = np.random.default_rng(0).integers(0, 64, (301, 4 * width), np.uint8), drawn(4 * size, seed=1)
    sums, one = x.reshape(-1, blocks.SIXTEEN).sum(1), np.empty(301, np.float32)
    blocks.KERNELS[name](rows, x, sums, one, 0, 301)
    assert np.isfinite(one).all()
    for number in (2, 3, 5):
        with ops.using("numba", number):
            before = shares_done()
            for _ in range(3):
                np.testing.assert_array_equal(relay.times_codes(name, rows, x, sums), one)
                assert until(lambda: waiting() > 0)
            assert shares_done() > before


def test_a_thread_that_waits_takes_a_share_and_where_nobody_does_nothing_is_done(patient):
    w, x, y = drawn((512, 1024)), drawn(1024, seed=1), np.zeros(512, np.float32)
    request = partial(relay.asked, relay.KINDS[w.dtype], w, x[None], x, y[None], len(w))
    assert not relay.passed_on(request(), np.zeros_like(relay.boxes), 1)
    assert not y.any()
    with ops.using("numba", 2):
        ops.linear(x, w)
        assert until(lambda: waiting() > 0)
        shares = shares_done()
        assert relay.passed_on(request(), relay.boxes, 1)
    np.testing.assert_array_equal(y, alone(x, w))
    assert shares_done() == shares + 1


def test_who_waits_goes_after_a_while(many, monkeypatch):
    monkeypatch.setattr(relay, "PATIENCE", 1 << 10)
    with ops.using("numba", 3):
        ops.linear(drawn(1024), drawn((2048, 1024)))
    assert until(lambda: waiting() == 0)


def test_who_waits_comes_for_other_work(many, monkeypatch):
    """With the patience of this test it would otherwise be waited for, for many minutes."""
    monkeypatch.setattr(relay, "PATIENCE", 1 << 40)
    x, w, rows = drawn(2048), drawn((512, 2048)), drawn((64, 2048))

    def run():
        with ops.using("numba", 3):
            for _ in range(20):
                ops.linear(x, w)
                ops.rms_norm(rows, x, 1e-6)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(120)
    done = not thread.is_alive()
    monkeypatch.undo()
    threads.handed_out[0] += 1  # whoever waits is patient no more
    assert done


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_a_matrix_without_rows_gives_nothing(tokens):
    with ops.using("numba", 2):
        assert ops.linear(drawn((tokens, 64)), np.empty((0, 64), np.float32)).shape == (tokens, 0)


def test_many_runs_at_once_do_not_mix_their_products(many):
    """Twenty threads, each with its own matrix and its own number of helpers, among other work that is shared."""

    def run(n):
        w, rows, weight = drawn((700 + n, 512), ml_dtypes.bfloat16, seed=n), drawn((40, 1024)), drawn(1024)
        with ops.using("numba", 1 + n % 4):
            wrong = 0
            for seed in range(50):
                x = drawn(512, seed=seed)
                wrong += not np.array_equal(ops.linear(x, w), alone(x, w))
                if seed % 7 == n % 7:
                    ops.rms_norm(rows, weight, 1e-6)
        return wrong

    before = shares_done()
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(run, range(20))) == [0] * 20
    assert shares_done() > before


def test_experts_have_the_same_bits_side_by_side_and_one_after_another(models, monkeypatch):
    found = []
    for waited in (True, False):
        monkeypatch.setattr(relay, "waited", lambda waited=waited: waited)
        with ops.using("numba", 3):
            found.append(models["moe"].record([5, 6, 7], ["logits"])["logits"])
    np.testing.assert_array_equal(*found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_process_does_not_wait_for_threads_that_only_its_parent_has():
    script = """
import os, signal, warnings
import numpy as np
from numgemma import ops
from numgemma.ops import relay, threads
relay.PATIENCE, relay.cores.usable = 1 << 32, lambda: 64
warnings.simplefilter("ignore")
ops.use("numba", 3)
w, x = np.ones((512, 1024), np.float32), np.ones(1024, np.float32)
y = ops.linear(x, w)
child = os.fork()
if not child:
    signal.alarm(60)
    y = ops.linear(x, w)
    os._exit(0 if (y == 1024).all() and relay.boxes[2:].sum() == 0 else 1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
threads.handed_out[0] += 1
print(code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["0"]


def test_a_thread_has_one_box_for_good(patient):
    seen = set()

    def note(first, end):
        seen.add((threading.get_ident(), threads.busy.box))

    with ops.using("numba", 2):
        for _ in range(30):
            threads.in_shares(note, 2, 1, relay.stay)
    boxes = [box for _, box in seen if box is not None]
    assert len(boxes) == len(set(boxes)) == 1


def test_where_threads_are_more_than_processors_nobody_waits_awake(many, monkeypatch):
    monkeypatch.setattr(relay.cores, "usable", lambda: 2)
    x, w = drawn(1024), drawn((2048, 1024))
    with ops.using("numba", 3):
        before = shares_done()
        for _ in range(3):
            np.testing.assert_array_equal(ops.linear(x, w), alone(x, w))
        assert shares_done() == before


def test_what_a_thread_cannot_do_after_its_share_ends_neither_it_nor_the_run():
    asked = []

    def after():
        asked.append(threading.get_ident())
        raise ZeroDivisionError

    with ops.using("numba", 2):
        for _ in range(3):
            threads.in_shares(lambda first, end: None, 2, 1, after)
    assert until(lambda: len(asked) == 3)  # nobody waits for the last one
    assert threading.get_ident() not in asked
