"""The README is run: its Python, its commands, and the demo's output that it shows."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

import numgemma
from numgemma.cli import main
from numgemma.debug.faults import applied

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_examples_run(code, capsys):
    exec(code, {})
    assert capsys.readouterr().out


def test_the_commands_run_in_the_order_they_stand_in(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ numgemma")]
    assert len(commands) > 5
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
        assert capsys.readouterr().out


def test_every_verb_stands_in_the_readme():
    from numgemma.cli import VERBS

    for verb in VERBS:
        assert f"| `{verb}` |" in README


def test_the_demo_prints_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["demo"]) == 0
    (shown,) = (block for block in blocks("text") if "bundled Gemma 4" in block)
    said = capsys.readouterr().out
    assert plain(shown) == plain(said)
    assert counts(shown) == counts(said)


def test_doctor_says_of_a_wrong_port_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    model = numgemma.load("tiny")
    unseen = [f"!*.{name}" for name in ("scores", "probs", "context", "q_rope", "k_rope", "after_attention")]
    with applied(model, "T04"):
        model.record(model.tokenizer.encode("Once upon a time"), ("*", *unseen)).save("port.safetensors")
    (shown,) = (block for block in blocks("text") if "$ numgemma doctor" in block)
    command, _, shown = shown.partition("\n")
    assert main(shlex.split(command)[2:]) == 1
    said = capsys.readouterr().out
    assert plain(shown) == plain(said)
    assert counts(shown) == counts(said)


def plain(text):
    """The lines without numbers, the name of the noisiest point and which of its errors stands out most: those depend
    on the BLAS of the machine.
    """
    lines = [re.sub(r"largest relative error .*", "", line) for line in text.strip().splitlines()]
    lines = [re.sub(r"(relative error|error of (token|channel) \d+) ", "error ", line) for line in lines]
    return [" ".join(re.sub(r"[\d.]+(e[-+]\d+)?", "#", line).split()) for line in lines]


COUNTS = r"[\d,]+ parameters|\d+ layers|\d+ recorded points|of \d+ points|\d+ points in|lines \d+ to \d+|\d+ runs"


def counts(text):
    """The whole numbers that no rounding moves."""
    found = re.findall(COUNTS, " ".join(text.split()))
    assert len(found) > 3
    return found


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_link_leads_somewhere(page):
    root = Path(__file__).parents[1]
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (root / page).read_text())
    assert targets
    for target in targets:
        assert (root / target).exists(), target


def test_ci_runs_what_must_hold_and_nothing_else():
    root = Path(__file__).parents[1]
    workflow = yaml.safe_load((root / ".github/workflows/ci.yml").read_text())
    assert [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(root / ".ci/run", os.X_OK)
