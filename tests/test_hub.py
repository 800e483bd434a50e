"""A model of the Hugging Face hub is named by its id where its cache holds it; nothing is fetched."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny

import numgemma
from numgemma.cli import main
from numgemma.errors import InputError
from numgemma.opening import cached, located, resolve

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put(cache, name, folder):
    """A checkpoint as the cache lays it out: a folder of links to blobs, which a ref names."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    for i, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, home / "blobs" / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty one, and no way to the network."""

    def refuse(*where):
        raise AssertionError(f"connects to {where}")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_an_id_is_the_checkpoint_that_the_cache_holds(cache, folders):
    snapshot = put(cache, "someone/merged-gemma", folders["ple"])
    assert located("someone/merged-gemma") == located(f"someone/merged-gemma@{COMMIT}") == snapshot
    model = numgemma.load("someone/merged-gemma")
    ids = tiny.prompt(tiny.PLE, 5)
    np.testing.assert_array_equal(model.logits(ids), numgemma.load(folders["ple"]).logits(ids))
    assert model.describe(ids)["model"]["name"] == "merged-gemma"


def test_every_verb_that_takes_a_checkpoint_takes_an_id(cache, folders, tmp_path, capsys):
    put(cache, "someone/parent", folders["dense"])
    name = "someone/parent"
    assert main(["inspect", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]
    assert main(["dump", name, "--ids", "5,6", "-o", str(tmp_path / "d.safetensors")]) == 0
    assert main(["stack", name, "--slices", "0-5,3-5", "-o", str(tmp_path / "child")]) == 0
    assert main(["lineage", str(tmp_path / "child"), "--parents", name]) == 0
    assert main(["audit", name, "--against", name]) == 0
    assert main(["lint", name]) in (0, 1)
    assert "someone/parent" in capsys.readouterr().out


def test_what_lies_on_the_disk_comes_before_what_the_cache_holds(cache, folders):
    put(cache, "someone/parent", folders["ple"])
    shutil.copytree(folders["dense"], "someone/parent")
    assert str(located("someone/parent")) == "someone/parent"
    assert len(numgemma.load("someone/parent").outline.layers) == 6


def test_an_id_that_nobody_holds_is_one_sentence_with_the_next_step(cache, capsys):
    with pytest.raises(InputError, match=r"no model of that id; name .*, or fetch it with `hf download no/such-model`"):
        resolve("no/such-model")
    assert main(["generate", "no/such-model", "--ids", "5"]) == 2
    assert "hf download no/such-model" in capsys.readouterr().err


def test_an_official_name_is_a_config_until_the_cache_holds_its_weights(cache, folders, capsys):
    assert main(["inspect", "google/gemma-4-E4B-it"]) == 0
    put(cache, "google/gemma-4-E4B-it", folders["ple"])
    before = capsys.readouterr().out
    assert main(["inspect", "google/gemma-4-E4B-it"]) == 0
    assert capsys.readouterr().out != before


@pytest.mark.parametrize(
    "name", ["", ".", "a", "a/b/c", "../up", "a//b", "a/b.safetensors@", "-/-", "ä/ö", "a/" + "b" * 300]
)
def test_what_is_no_id_is_a_path(cache, name):
    assert cached(name) is None
    located(name)


def test_without_huggingface_hub_an_id_is_a_path(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert cached("someone/parent") is None


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
@pytest.mark.parametrize("offline", ["0", "1"])
def test_the_environment_says_where_the_cache_lies(folders, tmp_path, variable, offline):
    put(tmp_path / "home" / "hub", "someone/parent", folders["ple"])
    place = {"HF_HOME": tmp_path / "home", "HF_HUB_CACHE": tmp_path / "home" / "hub"}[variable]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    code = "import numgemma; print(numgemma.load('someone/parent').checkpoint.folder)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {variable: str(place), "HF_HUB_OFFLINE": offline},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert COMMIT in run.stdout, run.stderr
