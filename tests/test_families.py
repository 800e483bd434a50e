"""The record of a family: what is asked of one, and that a new one needs no file outside its folder."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import toy
from safetensors.numpy import save_file

import numgemma
from numgemma import families
from numgemma.cli import main
from numgemma.debug.blame.replay import replay
from numgemma.debug.blame.whatif import whatif
from numgemma.debug.faults import CATALOGUE, applied
from numgemma.errors import InputError
from numgemma.graph import graph_of

RAW = {
    "model_type": "toy",
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-6,
}
IDS = np.random.default_rng(1).integers(2, 61, 12)
RECORDS = list(dict.fromkeys(families.find({"model_type": kind}, "") for kind in families.FOLDERS))
GENERAL = {"T01", "T02", "T15-erf", "T15-silu"}  # of norms and of the MLP


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    families.register(toy.FAMILY)
    folder, rng = tmp_path_factory.mktemp("toy"), np.random.default_rng(0)
    shapes = toy.FAMILY.shapes(toy.read_config(RAW, "the test"))
    tensors = {name: tiny.random_tensor(name, shape, rng).astype(np.float32) for name, shape in shapes.items()}
    save_file({f"model.{name}": x for name, x in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(RAW))
    yield folder
    families.REGISTERED.clear()


@pytest.fixture
def model(folder):
    return numgemma.load(folder)


def test_no_file_outside_a_family_names_it():
    root = Path(toy.__file__).parents[2]
    said = subprocess.run(["git", "grep", "-ilw", "toy"], cwd=root, capture_output=True, text=True, check=True)
    others = {line for line in said.stdout.split() if line.endswith(".py") and "toy/" not in line}
    assert others == {"tests/test_families.py", "tests/test_named.py"} & others
    assert {path.name for path in Path(toy.__file__).parent.glob("*.py")} == {
        "__init__.py",
        "config.py",
        "named.py",
        "toy.py",
    }


def test_a_family_from_elsewhere_is_found_by_its_model_type(folder):
    assert families.find(RAW, "config.json") is toy.FAMILY
    with pytest.raises(InputError, match=r"model_type is llama; numgemma runs 'gemma4', .*'toy'"):
        families.find({"model_type": "llama"}, "config.json")


def test_its_cached_run_equals_its_whole_run_at_every_point(folder):
    model = numgemma.load(folder, "float64")
    whole, parts = model.record(IDS, ["*"]), model.record(IDS, ["*"], prefill=5)
    assert len(whole) == 3 + 3 * 10
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], 1e-12, 1e-12)


def test_it_generates_what_its_logits_say(model):
    new = model.generate(IDS, 5, ignore_eos=True)
    assert len(new) == 5
    ids = list(IDS)
    for i in new:
        assert model.logits(ids)[-1].argmax() == i
        ids.append(i)


def test_diff_finds_the_weight_that_another_run_lost(model):
    point = "layers.1.past.mean"
    broken = model.record(IDS, ["*"], {point: lambda x: 1.1 * x})
    assert numgemma.diff(model.record(IDS, ["*"]), broken).first == point


def test_the_general_faults_act_in_it_and_show_where_they_say(model):
    acting = {id for id, fault in CATALOGUE.items() if fault.places(model)}
    assert acting >= GENERAL
    clean = model.record(IDS, ["*"])
    for id in sorted(GENERAL):
        with applied(model, id):
            broken = model.record(IDS, ["*"])
        first = next(name for name in clean if not np.array_equal(clean[name], broken[name]))
        assert CATALOGUE[id].shown_by(first), (id, first)


@pytest.mark.parametrize("id", CATALOGUE)
def test_no_fault_stumbles_over_what_another_family_lacks(model, id):
    if CATALOGUE[id].places(model) and CATALOGUE[id].media(numgemma.model.NO_MEDIA):
        with applied(model, id):
            model.record(IDS, ["*"])


def test_every_fault_fits_its_family_and_one_that_asks_for_what_a_block_lacks_does_not_fit_the_toy(model):
    kinds = {"U": "gemma4_unified", "N": "gemma3n", "D": "gemma4_assistant", "E": "embedding_gemma2"}
    kinds |= {"F": "diffusion_gemma"}
    for id, fault in CATALOGUE.items():
        assert fault.fits(families.find({"model_type": kinds.get(id[0], "gemma4")}, "")), id
    assert not CATALOGUE["P03"].fits(toy.FAMILY)  # it asks for the layer's own per-layer input
    assert CATALOGUE["P03"].places(model) == ()
    assert not CATALOGUE["V10"].fits(toy.FAMILY)  # there is no part that merges soft tokens


def test_its_graph_is_learned_like_any_other(model):
    learned = graph_of(RAW)
    assert list(learned.points) == list(model.record(IDS, ["*"]))
    assert learned.parents("layers.1.past.mean") == ("layers.1.past.v_proj",)
    assert learned.points["layers.1.past.mean"].file.endswith("toy/toy.py")


def test_replay_names_the_step_that_another_run_computes_otherwise(model):
    point = "layers.1.past.mean"
    found = replay(model, model.record(IDS, ["*"], {point: lambda x: 1.1 * x}))
    assert found.first == point
    assert {step.name for step in found.points if step.state == "FAULT"} == {point}
    assert replay(model, model.record(IDS, ["*"])).exit_code == 0


@pytest.mark.parametrize("id", sorted(GENERAL))
def test_whatif_finds_a_general_fault(model, id):
    with applied(model, id):
        broken = model.record(IDS, ["*"])
    best, *_ = whatif(model, broken).candidates
    assert best.faults == (id,)


def test_the_report_shows_the_line_where_the_point_is_born(model, tmp_path):
    broken = model.record(IDS, ["*"], {"layers.1.past.mean": lambda x: 1.1 * x})
    for name, dump in (("ours", model.record(IDS, ["*"])), ("theirs", broken)):
        dump.save(tmp_path / f"{name}.safetensors")
    ours, theirs, page = (str(tmp_path / name) for name in ("ours.safetensors", "theirs.safetensors", "r.html"))
    assert main(["diff", ours, theirs, "--html", page]) == 1
    page = Path(page).read_text()
    assert "layers.1.past.mean" in page
    assert "running_mean(v, before, n)" in page


def test_inspect_tells_its_layers_and_its_parameters(folder, capsys):
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.count("averaging") == 3
    assert "layers: mlp" in said


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_every_part_stands_where_a_fault_can_swap_it(record):
    for part, function in record.parts.items():
        assert getattr(sys.modules[function.__module__], function.__name__) is function is record.part(part)
