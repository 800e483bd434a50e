"""bfloat16 by its bits is ml_dtypes' to the bit, and the bundled model runs where NumPy is all there is."""

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from numgemma import smallfloats
from numgemma.smallfloats import cast, computable, nearest

ROOT = Path(__file__).parents[1]
BITS = np.arange(1 << 16, dtype="<u2")
BLOCKED = ("ml_dtypes", "tokenizers", "safetensors", "jinja2", "numba", "threadpoolctl", "fcntl", "gguf")

ALONE = f"""
import sys
sys.modules |= dict.fromkeys({BLOCKED!r})  # importing any of them raises ModuleNotFoundError
import numpy as np
import numgemma
"""


def alone(code, *args):
    """What a fresh Python prints that has NumPy and none of the blocked packages."""
    run = subprocess.run(
        [sys.executable, "-c", ALONE + code, *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def same_bits(x):
    """Ours and theirs agree, but for which NaN a NaN becomes where it already is one."""
    return np.array_equal(nearest(x), x.astype(ml_dtypes.bfloat16).view(np.uint16))


@given(st.lists(st.floats(width=32), min_size=1))
def test_the_nearest_bfloat16_is_that_of_ml_dtypes(numbers):
    assert same_bits(np.array(numbers, np.float32))


def test_numbers_around_every_halfway_point_round_as_in_ml_dtypes():
    halfway = (BITS.astype("<u4") << 16) + 0x8000
    with np.errstate(invalid="ignore"):
        for off in (-1, 0, 1):
            assert same_bits((halfway + np.uint32(off % (1 << 32))).view("<f4"))


def test_every_bfloat16_widens_to_the_float32_of_ml_dtypes(monkeypatch):
    monkeypatch.setattr(smallfloats, "COMPUTES", False)
    monkeypatch.setattr(smallfloats, "BFLOAT16", np.dtype([("bfloat16", "<u2")]))
    ours = computable(BITS.view(smallfloats.BFLOAT16))
    with np.errstate(invalid="ignore"):
        theirs = BITS.view(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(ours.view("<u4"), theirs.view("<u4"))
    assert np.array_equal(cast(ours, smallfloats.BFLOAT16).view("<u2")[~np.isnan(ours)], BITS[~np.isnan(ours)])


def test_the_bundled_model_runs_on_numpy_alone_and_gives_the_same_logits(tmp_path):
    here = __import__("numgemma").load("tiny")
    ids = here.tokenizer.encode("Once upon a time")
    printed = alone(
        """
model = numgemma.load("tiny")
ids = model.tokenizer.encode("Once upon a time")
np.save(sys.argv[1], model.record(ids)["logits"])
print(ids, model.checkpoint.samples)
""",
        tmp_path / "logits.npy",
    )
    assert printed.strip() == f"{ids} {here.checkpoint.samples}"
    assert np.array_equal(np.load(tmp_path / "logits.npy"), here.record(ids)["logits"])


def test_a_checkpoint_in_bfloat16_is_written_alike_on_numpy_alone(tmp_path):
    from numgemma.surgery.synth import synth

    synth("gemma-4-E2B", tmp_path / "here", scale="tiny")
    make = "from numgemma.surgery.synth import synth; synth('gemma-4-E2B', sys.argv[1], scale='tiny')"
    alone(make, tmp_path / "alone")
    files = [sorted(p.relative_to(folder) for p in folder.rglob("*")) for folder in tmp_path.iterdir()]
    assert files[0] == files[1]
    for name in files[0]:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_a_run_in_bfloat16_is_refused_on_numpy_alone_and_a_fault_in_it_cannot_act():
    printed = alone("""
try:
    numgemma.load("tiny", "bfloat16")
except numgemma.InputError as error:
    print(error)
from numgemma.debug.faults.fault import find
import numgemma.debug.faults
model = numgemma.load("tiny")
print(find("T02").places(model))
""")
    sentence, acts = printed.splitlines()
    assert sentence == "Precision 'bfloat16' is not one of float32, float64; install ml_dtypes for bfloat16."
    assert acts == "()"


def test_of_every_bfloat16_it_is_known_whether_it_is_finite():
    every = np.arange(1 << 16).astype(np.uint16).reshape(256, 256).T.view(smallfloats.BFLOAT16)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(smallfloats.is_finite(every), np.isfinite(every))
    for real in (np.float32([1, np.nan, -np.inf]), np.arange(3)):
        np.testing.assert_array_equal(smallfloats.is_finite(real), np.isfinite(real))
