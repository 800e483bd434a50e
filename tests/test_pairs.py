"""bfloat16 by pairs is the definition within bfloat16's noise, bit for bit the same in any cut and on any threads.

Where the processor lacks the instruction the same kernels run with its steps spelled out, and linear leaves them alone.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from numgemma import ops
from numgemma.masks import causal_mask
from numgemma.ops import definitions, pairs, tiles, twins

OTHER = {  # a processor that has it, whatever this one is
    "NUMBA_CPU_NAME": "znver4",
    "NUMBA_CPU_FEATURES": "+avx2,+fma,+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512bf16",
}
STEPS = ("vdpbf16ps", "vfmadd231ps")  # of pairs, of float32
COMPILED = """
from numba import types
from numgemma.ops import tiles
assert tiles.WIDTH == 32
for number in (types.uint32, types.float32):
    given = types.Array(number, 2, "C", readonly=True)
    tiles.times_many.compile((given, given, types.float32[:, ::1], types.intp))
    print(tiles.times_many.inspect_asm(tiles.times_many.signatures[-1]), "NEXT")
"""


def drawn(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape, np.float32).astype(bfloat16)


@pytest.fixture
def by_pairs(monkeypatch):
    """What linear would do on a processor that has the instruction."""
    monkeypatch.setattr(pairs, "fit", lambda x, w: x.dtype == w.dtype == bfloat16 and x.shape[-1] % 2 == 0)


def model(x, w):
    """What the kernel computes, in NumPy: x: T I  w: O I -> T O.  A float64 holds a sum and a product nearly always."""
    upper, lower = (np.float64(w[:, n::2]) for n in (1, 0))
    y = np.zeros((len(x), len(w)), np.float32)
    for start in range(0, upper.shape[1], tiles.DEPTH):
        sums = np.zeros_like(y)
        for i in range(start, min(start + tiles.DEPTH, upper.shape[1])):
            sums = np.float32(sums + np.outer(np.float64(x[:, 2 * i + 1]), upper[:, i]))
            sums = np.float32(sums + np.outer(np.float64(x[:, 2 * i]), lower[:, i]))
        y = y + sums
    return y


@pytest.mark.parametrize(("T", "O", "I"), [(9, 1, 2), (6, 16, 64), (13, 33, 700), (51, 70, 1100)])
def test_the_kernel_is_the_instruction_that_the_docstring_tells_of(T, O, I):
    x, w, y = drawn(T, I), drawn(O, I, seed=1), np.empty((T, O), np.float32)
    tiles.times_many(pairs.paired(w), pairs.paired(x), y, 0)
    if pairs.CAN:  # a maker may add the two products first
        terms = np.abs(x.astype(np.float64)) @ np.abs(w.astype(np.float64)).T
        assert (np.abs(y - model(x, w)) <= 1e-6 * terms).all()
    else:
        np.testing.assert_array_equal(y, model(x, w))


@settings(deadline=None)
@given(st.integers(9, 20), st.integers(1, 70), st.integers(1, 70))
def test_many_rows_by_pairs_are_the_definition(T, I, O):
    x, w = drawn(T, 2 * I), drawn(O, 2 * I, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "fit", lambda x, w: True)
        found = twins.linear(x, w)
    terms = np.linalg.norm(np.abs(x.astype(np.float32)) @ np.abs(w.astype(np.float32)).T)
    assert found.dtype == bfloat16
    difference = found.astype(np.float64) - definitions.linear(x, w).astype(np.float64)
    assert np.linalg.norm(difference) <= 1e-3 * terms / 3


def test_by_pairs_the_bits_are_the_same_on_any_number_of_threads_and_in_any_cut(by_pairs, monkeypatch):
    x, w = drawn(800, 700), drawn(907, 700, seed=1)
    monkeypatch.setattr(twins, "BLOCK", 1 << 16)
    with ops.using("numba", 1):
        whole = ops.linear(x, w)
    for number in (2, 3, 8):
        with ops.using("numba", number):
            np.testing.assert_array_equal(ops.linear(x, w), whole)
    for t, o in ((1, 0), (0, 1), (5, 7), (745, 100), (700, 202)):
        np.testing.assert_array_equal(twins.linear(x[t:], w[o:]), whole[t:, o:])
        np.testing.assert_array_equal(twins.linear(x[: 800 - t], w[: 907 - o]), whole[: 800 - t, : 907 - o])


@pytest.mark.parametrize("H", [8, 72])
def test_scores_by_pairs_are_the_definition_and_the_same_on_any_number_of_threads(by_pairs, H):
    q, k, v = drawn(300, 4, H), drawn(700, 2, H), drawn(700, 2, H, seed=1)
    mask = causal_mask(np.arange(400, 700), 0, 500)
    with ops.using("numba", 1):
        found = ops.attend(q, k, v, mask)
    difference = found.astype(np.float64) - definitions.attend(q, k, v, mask).astype(np.float64)
    assert np.linalg.norm(difference) <= 1e-3 * np.linalg.norm(found.astype(np.float64))
    for number in (2, 3):
        with ops.using("numba", number):
            np.testing.assert_array_equal(ops.attend(q, k, v, mask), found)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_by_pairs_what_is_not_finite_comes_through(by_pairs, bad):
    for spoilt in range(2):
        x, w = drawn(60, 20), drawn(9, 20, seed=1)
        (x, w)[spoilt][3, 7 + spoilt] = bad
        with np.errstate(all="ignore"):
            found, expected = (f(x, w).astype(np.float32) for f in (twins.linear, definitions.linear))
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
        np.testing.assert_array_equal(found[~np.isfinite(found)], expected[~np.isfinite(expected)])


def test_rows_of_odd_length_and_other_precisions_are_not_paired(monkeypatch):
    monkeypatch.setattr(pairs, "CAN", True)
    assert pairs.fit(drawn(9, 4), drawn(3, 4))
    assert not pairs.fit(drawn(9, 5), drawn(3, 5))
    assert not pairs.fit(drawn(9, 4).astype(np.float32), drawn(3, 4))
    assert not pairs.fit(drawn(9, 4), drawn(3, 4).astype(np.float32))


@pytest.mark.skipif(pairs.CAN, reason="this processor has the instruction")
def test_without_the_instruction_linear_takes_the_float32_way(monkeypatch):
    kinds, real = [], tiles.times_many
    monkeypatch.setattr(tiles, "times_many", lambda w, x, *more: (kinds.append((w.dtype, x.dtype)), real(w, x, *more)))
    twins.linear(drawn(9, 64), drawn(5, 64))
    assert kinds == [(np.uint16, np.float32)]


def test_for_a_processor_that_has_it_the_instruction_is_what_is_compiled(tmp_path):
    """Compiled for it, not run: two registers of W by six rows of X, in pairs and in float32."""
    env = {**os.environ, **OTHER, "NUMBA_CACHE_DIR": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", COMPILED], env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    *codes, _ = found.stdout.split("NEXT")
    for code, step, other in zip(codes, STEPS, STEPS[::-1], strict=True):
        lines = [line for line in code.splitlines() if "zmm" in line]
        assert sum(f"\t{step}\t" in line for line in lines) >= 12
        assert not any(f"\t{other}\t" in line for line in lines)
