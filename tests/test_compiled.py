"""Compiled code on disk: used where it is whole, made again where it is not, done without where nothing can be kept."""

import errno
import subprocess
import sys

import numpy as np
import pytest
from numba.core import config
from numba.core.caching import CacheImpl, IndexDataCacheFile

from numgemma.ops import compiled

DAMAGE = {
    "nothing": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "garbage": lambda data: bytes(len(data)),
    "garbage behind a whole digest": lambda data: data[: compiled.DIGEST] + b"\xcc" * (len(data) - compiled.DIGEST),
    "one bit less": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "one byte more": lambda data: data + b"x",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "kept"))
    compiled.remark.cache_clear()
    yield tmp_path / "kept"
    compiled.remark.cache_clear()


def fresh():
    """The function as a new process has it, called once; whether its code came from the disk."""

    def twice(x):
        return x + x

    found = compiled.kernel({"contract"})(twice)
    assert found(np.float32(2.5)) == 5
    return bool(found.stats.cache_hits)


def test_what_was_compiled_once_is_read_the_next_time(folder, capsys):
    assert [fresh(), fresh()] == [False, True]
    assert sorted(path.suffix for path in folder.rglob("*.nb?")) == [".nbc", ".nbi"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_again(folder, suffix, damage):
    fresh()
    (path,) = folder.rglob(f"*{suffix}")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert [fresh(), fresh()] == [False, True]


def test_files_that_numba_alone_has_written_are_made_again(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "check", lambda kept: None)
        assert [fresh(), fresh()] == [False, True]
    assert [fresh(), fresh()] == [False, True]


def test_a_file_that_was_removed_is_made_again(folder):
    for suffix in (".nbc", ".nbi"):
        fresh()
        next(folder.rglob(f"*{suffix}")).unlink()
        assert [fresh(), fresh()] == [False, True]


def test_a_full_disk_is_said_in_one_line_and_the_run_goes_on(folder, monkeypatch, capsys):
    def full(self, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "_open_for_write", full)
    assert [fresh(), fresh()] == [False, False]
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line
    assert "NUMBA_CACHE_DIR" in line


def test_where_no_folder_can_be_written_nothing_is_kept_and_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])  # of the places that numba tries none can be written
    assert [fresh(), fresh()] == [False, False]
    (line,) = capsys.readouterr().err.splitlines()
    assert "NUMBA_CACHE_DIR" in line


def test_generate_goes_on_over_damaged_files(tmp_path):
    """On the real kernels, in processes of their own: garbage run as code would end one without a word."""
    words = ["generate", "tiny", "--ids", "5,6,7", "--max-new-tokens", "2", "--print-ids", "--backend", "numba"]
    code = f"import sys; from numgemma.cli import main; sys.exit(main({words}))"
    script = f"import os; os.environ['NUMBA_CACHE_DIR'] = {str(tmp_path / 'kept')!r}; {code}"

    def run():
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    whole = run()
    files = sorted((tmp_path / "kept").rglob("*.nb?"))
    assert len(files) > 10
    for number, path in enumerate(files):
        damage = list(DAMAGE.values())[number % len(DAMAGE)]
        path.write_bytes(damage(path.read_bytes()))
    assert run() == whole
