"""Shell completion: verbs, options and their choices, as argcomplete asks for them."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("argcomplete")


def completed(line, folder):
    """What a shell is offered after this line."""
    out = folder / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
    }
    asked |= {"_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "COMP_TYPE": "9"}
    subprocess.run([sys.executable, "-m", "numgemma"], env=os.environ | asked, cwd=folder, check=False, timeout=300)
    return set(out.read_text().split("\n"))


def test_a_verb_is_completed(tmp_path):
    assert completed("numgemma do", tmp_path) == {"doctor"}
    assert {"diff", "dump", "demo"} <= completed("numgemma d", tmp_path)


def test_options_and_their_choices_are_completed(tmp_path):
    assert {"--against", "--adapter"} <= completed("numgemma score tiny --a", tmp_path)
    assert completed("numgemma score tiny --precision b", tmp_path) == {"bfloat16"}


def test_a_file_is_completed(tmp_path):
    (tmp_path / "theirs.safetensors").touch()
    assert completed("numgemma replay tiny the", tmp_path) == {"theirs.safetensors"}


def test_nothing_is_offered_where_nothing_fits(tmp_path):
    assert completed("numgemma score tiny --precision zeb", tmp_path) == {""}
