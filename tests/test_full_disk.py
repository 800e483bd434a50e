"""A full disk, at every write of every verb: one sentence, the old or the new and whole, nothing half.

The whole of it takes minutes: python tests/hostile_input/full_disk.py VERB.  Here the verbs that are quick are refused
at every write, and those that compute for long before they write at a few: they write by the same three functions.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from hostile_input import kills
from hostile_input.writers import COMMANDS, alone, environment, prepare

from numgemma.cli import FILES_WRITTEN, VERBS, parser

FOLDER = Path(__file__).parent / "hostile_input"
QUICK = ("dump", "preprocess", "precheck", "score", "synth", "stack", "transplant")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("full") / "in")


def test_every_verb_that_writes_is_tried():
    """A new one enters by a line of COMMANDS in tests/hostile_input/writers.py."""
    (verbs,) = (action for action in parser(VERBS)._actions if isinstance(action.choices, dict))
    paths = {verb: {a.dest for a in sub._actions if a.type is Path} for verb, sub in verbs.choices.items()}
    writing = {verb for verb, found in paths.items() if found & {*FILES_WRITTEN, "png"}}
    assert writing == {name.split()[0] for name in COMMANDS}


@pytest.mark.parametrize("verb", [verb for verb in alone() if verb != "capture"])
def test_a_disk_that_is_full_at_a_write_is_one_sentence_and_nothing_half(verb, inputs, tmp_path):
    most = 100 if verb in QUICK else 3
    command = [sys.executable, FOLDER / "full_disk.py", verb, inputs, tmp_path / "work", str(most)]
    env = environment(inputs)  # where what draws learns the system's fonts once, not for each verb
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a disk that was full in" in done.stdout


def test_kills_leave_the_old_or_the_new_and_the_next_run_nothing_else():
    hit, wrong = kills.run(6, 2026, ["synth", "score"])
    assert not wrong
    assert sum(hit.values()) >= 2
