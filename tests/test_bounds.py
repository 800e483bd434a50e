"""Whole numbers of files, made huge, are refused or cost nothing: each file in a process with a limit of its own."""

import re
import signal
import subprocess
import sys

import pytest
from hostile_input import bounds
from hostile_input.harness import late
from hostile_input.writers import environment

from numgemma.config import HARMLESS, PASSED_OVER
from numgemma.errors import InputError
from numgemma.families import read_config


@pytest.mark.parametrize("what", bounds.WHAT)
def test_no_whole_number_of_a_file_makes_work_without_end(what, tmp_path):
    command = [sys.executable, bounds.__file__, what]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    tried = re.search(r"(\d+) whole numbers made huge, 0 of them", done.stdout)
    assert tried
    assert int(tried[1]) >= 4


def test_work_without_end_and_memory_without_end_are_noticed(monkeypatch):
    def takes_all(raw):
        raise MemoryError

    monkeypatch.setattr(bounds, "SECONDS", 0.1)
    before = signal.signal(bounds.CLOCK[1], late)
    try:
        assert bounds.outcome(lambda raw: sum(1 for _ in iter(int, 1)), {}).startswith("Hang")
        assert bounds.outcome(takes_all, {}).startswith("MemoryError")
        assert bounds.outcome(lambda raw: raw, {}) == ""
    finally:
        signal.signal(bounds.CLOCK[1], before)


def test_numbers_are_found_wherever_they_stand():
    raw = {"a": 1, "b": {"c": [2, 3, 4], "d": True, "e": 1.5}, "f": [{"g": 5}]}
    found = list(bounds.numbers(raw))
    assert found == [("a",), ("b", "c", 0), ("b", "c", 1), ("f", 0, "g")]
    assert bounds.changed(raw, found[-1], 7)["f"] == [{"g": 7}]
    assert raw["f"] == [{"g": 5}]


# numbers of a section that no number of a run depends on, beside those that config.py knows
IDLE = {
    "num_soft_tokens",
    "num_classes",
    "initializer_range",
    "se_ratio",
    "dw_kernel_size_end",
    "pw_kernel_size",
    "force_in_chs",
}


@pytest.mark.parametrize("odd", [float("inf"), float("nan"), 10**400, True], ids=str)
@pytest.mark.parametrize("family", bounds.FAMILIES)
def test_what_is_no_number_is_refused_wherever_a_number_stands(family, odd):
    raw = bounds.FAMILIES[family][0]
    accepted, said = set(), []
    for path in bounds.numbers(raw, kinds=(int, float)):
        try:
            read_config(bounds.changed(raw, path, odd), "config.json")
        except InputError as error:
            said.append(str(error))
        else:
            accepted.add(path[-1])
    assert max(map(len, said)) < 300
    assert accepted <= HARMLESS | PASSED_OVER | IDLE
