"""Mutated files of every kind: each is refused in one short sentence, or accepted and right; none hangs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile_input import harness, mutants
from hostile_input.kinds import KINDS

from numgemma.cli import main
from numgemma.debug.readers import read_any
from numgemma.debug.readers.llama_text import read_llama_text
from numgemma.errors import InputError

MUTANTS = 2000
SEED = 20_261


def test_mutants_of_every_kind_are_refused_well_or_accepted_and_right(capsys):
    counts, wrong, slowest = harness.run(MUTANTS, SEED)
    with capsys.disabled():
        print(f"\n{counts}; slowest: {slowest[1]}, {slowest[0]:.1f} s")
    assert wrong == []
    assert counts["refused well"] > MUTANTS / 4  # else the mutations have no teeth
    assert counts["accepted and right"] > MUTANTS / 20  # and here they have too many


def test_the_harness_tells_a_traceback_a_hang_and_a_bad_message(tmp_path, monkeypatch):
    def bad(number):
        def read(folder):
            if number == 0:
                raise KeyError("x")
            if number == 1:
                time.sleep(60)
            raise InputError("x" * 5 + "\x1b") if number == 2 else ValueError

        return (lambda folder: (folder / "x").write_text("x"), "x", mutants.mutated_bytes, read)

    monkeypatch.setattr(harness, "SECONDS", 0.2)
    monkeypatch.setattr(harness, "KINDS", {str(n): bad(n) for n in range(4)})
    counts, wrong, _ = harness.run(4, 0, tuple("0123"))
    assert counts == {"refused well": 1, "accepted and right": 0, "traceback": 2, "hang": 1}
    assert len(wrong) == 3
    assert harness.judged("x\x1b")[0] == harness.judged("x" * 300)[0] == harness.judged("a\nb")[0] == "traceback"


@pytest.mark.parametrize("fragment", mutants.FRAGMENTS)
@pytest.mark.parametrize("before", ["", "x = (f32) ADD(", "x = (f32) ADD(a{1}) = {1, 2, ", "  [  "])
def test_no_line_of_a_log_takes_time_that_grows_with_its_square(tmp_path, fragment, before):
    path = tmp_path / "log.txt"
    path.write_bytes((before + fragment * (400_000 // len(fragment)) + "\n").encode())
    begun = time.process_time()
    with pytest.raises(InputError):
        read_llama_text(path)
    assert time.process_time() - begun < 2


def named(tmp_path, kind):
    """A thing that is no regular file."""
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to("x")
    return path


WORDS = {
    "diff": ["diff", "PATH", "PATH"],
    "npz": ["diff", "PATH.npz", "PATH.npz"],
    "npy": ["diff", "PATH.npy", "PATH.npy"],
    "pt": ["diff", "PATH.pt", "PATH.pt"],
    "dump": ["diff", "PATH.safetensors", "PATH.safetensors"],
    "tree": ["diff", "PATH.json", "PATH.json"],
    "logits": ["diff", "llamacpp-PATH.bin", "llamacpp-PATH.bin"],
    "chat": ["generate", "tiny", "--chat", "PATH"],
    "template": ["generate", "tiny", "--chat", "SOUND", "--template", "PATH.jinja"],
    "prompt": ["generate", "tiny", "--prompt-file", "PATH"],
    "inputs": ["generate", "tiny", "--ids-file", "PATH"],
    "recipe": ["stack", "PATH.yaml", "--plan"],
    "picture": ["preprocess", "tiny", "--prompt", "x", "--image", "PATH.png", "-o", "out.safetensors"],
    "floor": ["replay", "tiny", "SOUND", "--floor", "PATH"],
    "config": ["synth", "PATH", "-o", "out"],
}


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "loop"])
@pytest.mark.parametrize("what", WORDS)
def test_what_is_no_regular_file_is_one_sentence_and_is_never_waited_for(tmp_path, monkeypatch, capsys, kind, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat.json").write_text('[{"role": "user", "content": "hi"}]')
    word = next(word for word in WORDS[what] if "PATH" in word)
    named(tmp_path, kind).rename(tmp_path / word.replace("PATH", "x"))
    words = [word.replace("PATH", "x").replace("SOUND", "chat.json") for word in WORDS[what]]
    signal.alarm(20)
    try:
        code = main(words)
    finally:
        signal.alarm(0)
    err = capsys.readouterr().err
    assert code == 2
    assert err.count("\n") == 1
    assert len(err) < 300


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 5000])
def test_a_full_disk_at_any_write_is_one_sentence_and_leaves_nothing(tmp_path, size):
    """A limit on the size of files stands for the disk."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        "from numgemma.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for words in (
        ["dump", "tiny", "--ids", "5,6", "-o", "a.safetensors"],
        ["synth", "gemma-4-E2B-it", "--scale", "tiny", "-o", "m"],
        ["preprocess", "tiny", "--prompt", "x" * 9000, "-o", "p.safetensors"],
        ["lint", "tiny"],
    ):
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        assert done.returncode == (0 if words[0] == "lint" else 2), done.stderr
        assert done.stderr.count("\n") <= 1
        assert [path for path in tmp_path.iterdir() if path.name != "__pycache__"] == []


def test_every_reader_has_a_kind():
    assert {"header", "config", "index", "metadata", "map", "floor", "log", "recipe", "template", "png"} <= set(KINDS)
    assert callable(read_any)
    assert Path(harness.__file__).parent.name == "hostile_input"


def test_a_message_shows_no_code_point_that_is_no_character():
    from numgemma.errors import InputError

    text = str(InputError("\u07bd and \U000e0001 and \u00a0 and é"))
    assert all(c.isprintable() for c in text)
    assert text == "\\u07bd and \\U000e0001 and \\xa0 and é"
