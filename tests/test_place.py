"""A checkpoint's folder takes its place without harm: to what came meanwhile, to another writer, to what was there."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from numgemma import atomic as module
from numgemma.atomic import becoming, begin, inventory, passing, sweep, whole, write_whole
from numgemma.dump import read_dump
from numgemma.errors import InputError
from numgemma.model import load


def fill(folder, text):
    (folder / "config.json").write_text(text)


@pytest.fixture(params=["one step", "three steps"])
def renaming(request, monkeypatch):
    """With the system's own exchange of names, and without."""
    if request.param == "three steps":
        monkeypatch.setattr(module, "rename", lambda old, new, flag: False)


def came(path, kind):
    """Something that was not there at the start."""
    if kind == "folder":
        path.mkdir()
        (path / "thesis.txt").write_text("mine")
    elif kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to("elsewhere")


def written(target, meanwhile, replaces=None):
    """Write a checkpoint, during which something happens."""
    with becoming(target, replaces) as partial:
        fill(partial, "new")
        meanwhile()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_came_while_a_checkpoint_was_written_is_kept_and_the_writer_is_told(tmp_path, renaming, kind):
    with pytest.raises(InputError, match="is there by now"):
        written(tmp_path / "m", lambda: came(tmp_path / "m", kind))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    if kind == "link":
        assert os.readlink(tmp_path / "m") == "elsewhere"
    else:
        assert (tmp_path / "m" / "thesis.txt" if kind == "folder" else tmp_path / "m").read_text() == "mine"


CHANGES = {
    "a new file": lambda folder: (folder / "thesis.txt").write_text("mine"),
    "a longer file": lambda folder: (folder / "config.json").write_text("mine, and longer"),
    "a file of its size": lambda folder: (folder / "config.json").write_text("OLD"),
    "one file less": lambda folder: (folder / "config.json").unlink(),
    "a file below": lambda folder: (folder / "below" / "thesis.txt").write_text("mine"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_since_the_start_is_kept_although_it_was_to_be_replaced(tmp_path, renaming, change):
    (tmp_path / "m" / "below").mkdir(parents=True)
    fill(tmp_path / "m", "old")
    found = []

    def meanwhile():
        time.sleep(0.02)  # clocks of file systems have ticks
        CHANGES[change](tmp_path / "m")
        found.append(inventory(tmp_path / "m"))

    with pytest.raises(InputError, match="has changed"):
        written(tmp_path / "m", meanwhile, inventory(tmp_path / "m"))
    assert [inventory(tmp_path / "m")] == found
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_was_there_and_has_not_changed_is_replaced(tmp_path, renaming):
    (tmp_path / "m").mkdir()
    fill(tmp_path / "m", "old")
    with becoming(tmp_path / "m", replaces=inventory(tmp_path / "m")) as partial:
        fill(partial, "new")
    assert [(path.name, (path / "config.json").read_text()) for path in tmp_path.iterdir()] == [("m", "new")]


def test_of_ten_writers_to_one_folder_one_succeeds_and_nine_are_told(tmp_path, renaming):
    outcomes, gate = [], threading.Barrier(10)

    def write(number):
        try:
            with becoming(tmp_path / "m") as partial:
                fill(partial, str(number))
                gate.wait()
            outcomes.append(number)
        except InputError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [some for some in outcomes if isinstance(some, int)]
    assert sum("is there by now" in str(some) for some in outcomes) == 9
    assert (tmp_path / "m" / "config.json").read_text() == str(winner)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_two_synths_to_one_folder_are_one_checkpoint_and_one_refusal(tmp_path):
    words = ["synth", "gemma-4-E2B-it", "--scale", "tiny", "-o", str(tmp_path / "m")]
    command = [sys.executable, "-m", "numgemma", *words]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    assert any("is there" in text for text in said)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    load(tmp_path / "m")


def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(tmp_path):
    for i in range(3):
        (tmp_path / f".m.{i}.partial").write_text("half")
        (tmp_path / f".n.{i}.partial").mkdir()
    (tmp_path / ".other.1.partial").write_text("not ours to judge")
    living, lock = begin(tmp_path / "m")
    write_whole(tmp_path / "m", "whole")
    with becoming(tmp_path / "n") as partial:
        fill(partial, "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".other.1.partial", living.name, "m", "n"])
    os.close(lock)


def test_a_temporary_folder_goes_with_its_block_and_one_of_a_killed_program_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / ".truth.1.partial").mkdir()
    (tmp_path / ".truth.1.partial" / "large").write_text("x")
    with passing("truth") as first, passing("truth") as second:
        assert {path.name for path in tmp_path.iterdir()} == {first.name, second.name}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_killed_writer_had_set_aside_goes_back(tmp_path):
    (tmp_path / ".m.1.replaced").mkdir()
    fill(tmp_path / ".m.1.replaced", "old")
    sweep(tmp_path / "m")
    assert (tmp_path / "m" / "config.json").read_text() == "old"
    (tmp_path / ".m.2.replaced").mkdir()
    sweep(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("name", ["a" * 250, "\N{GREEK SMALL LETTER ALPHA}" * 120, os.fsdecode(b"\xff" * 250), "[*]?"])
def test_any_name_that_the_system_takes_can_be_written(tmp_path, name):
    with whole(tmp_path / name) as partial:
        partial.write_text("whole")
    assert (tmp_path / name).read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 1


WRITE = """
import sys
from numgemma.cli import main
sys.exit(main(sys.argv[1:]))
"""
VERBS = {
    "dump": ["dump", "tiny", "--ids", "0,5,6", "-o", "OUT/x.safetensors"],
    "synth": ["synth", "gemma-4-E2B-it", "--scale", "tiny", "--force", "-o", "OUT/m"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_and_the_next_run_nothing_else(tmp_path, verb, kind):
    words = [word.replace("OUT", str(tmp_path)) for word in VERBS[verb]]
    subprocess.run([sys.executable, "-c", WRITE, *words], check=True, capture_output=True)
    out = Path(words[-1])
    before = read(out)
    rng = random.Random(f"{verb} {kind}")
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITE, *words], stdout=subprocess.DEVNULL, stderr=-1)
        time.sleep(rng.uniform(0, 1.5))
        process.send_signal(kind)
        process.communicate()
        assert read(out) == before
        if kind == signal.SIGTERM:
            assert [path.name for path in tmp_path.iterdir()] == [out.name]
    subprocess.run([sys.executable, "-c", WRITE, *words], check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def read(out):
    """What a dump or a checkpoint holds: whole, or this fails."""
    if out.is_dir():
        weights = load(out).weights
        return {name: weights[name].tobytes() for name in weights}
    return {name: x.tobytes() for name, x in read_dump(out).items()}
