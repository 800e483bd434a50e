"""The command line's process keeps the memory that arrays leave."""

import ctypes
import subprocess
import sys

import pytest

from numgemma.__main__ import main as own
from numgemma.cli import main, memory

SCRIPT = """
import ctypes, resource, sys
import numpy as np
from numgemma.cli.memory import keep_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: there are huge pages at times, and few of them to count
if sys.argv[1] == "kept":
    keep_memory()
before = faults()
for _ in range(20):
    np.ones(12 << 20, np.float32)  # 48 MB: of smaller ones glibc learns to keep the memory by itself
print(faults() - before)
"""


def pages(how):
    """New pages that one array after another asks of the system."""
    return int(subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="of glibc alone"
)
def test_an_array_has_the_pages_of_the_one_before_it():
    assert pages("kept") < pages("given back") / 2


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.keep_memory()


def test_a_process_that_goes_on_to_other_things_is_left_alone(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(memory, "keep_memory", lambda: asked.append(True))
    for ours in (False, True):
        monkeypatch.setattr(memory, "ours", ours)
        assert main(["generate", "tiny", "--ids", "5,6", "--max-new-tokens", "1", "--print-ids"]) == 0
        assert bool(asked) == ours


def test_the_command_is_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(memory, "ours", False)
    monkeypatch.setattr(sys, "argv", ["numgemma", "--version"])
    with pytest.raises(SystemExit):
        own()
    assert memory.ours
