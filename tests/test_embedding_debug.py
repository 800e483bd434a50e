"""The debugger on EmbeddingGemma 2, which ends in a vector: every verb; each known fault caught, placed and named."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import tiny
import tiny_embedding
from closeness import TOLERANCE, relative

import numgemma
from numgemma.cli import main
from numgemma.debug.blame.replay import replay
from numgemma.debug.blame.whatif import whatif
from numgemma.debug.faults import CATALOGUE, applied
from numgemma.dump import Dump
from numgemma.prompt.media import NO_MEDIA, Media, read_media

OWN = [id for id in CATALOGUE if id.startswith("E") or id == "P06"]
CUT = 24  # numbers of a vector that is cut


@dataclass(frozen=True)
class Run:
    """A model, its prompt, and our clean run of it."""

    model: numgemma.Model
    ids: np.ndarray
    media: Media
    clean: Dump

    def record(self):
        return self.model.record(self.ids, ["*"], media=self.media)

    def shows(self, fault):
        return fault.can_show(self.model, self.media) and (
            self.media is NO_MEDIA or not fault.can_show(self.model, NO_MEDIA)
        )


def made(folder, content, precision="float32", dim=None):
    ids, arrays = (tiny_embedding.prompt(30), {}) if content is None else tiny_embedding.multimodal_prompt(content)
    model, media = numgemma.load(folder, precision), read_media(arrays) if arrays else NO_MEDIA
    model = replace(model, config=replace(model.config, dim=dim))
    return Run(model, ids, media, model.record(ids, ["*"], media=media))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    raw = tiny_embedding.WHOLE
    return tiny_embedding.write(tmp_path_factory.mktemp("embedding") / "m", raw, tiny.random_tensors(raw, 1))


@pytest.fixture(scope="module")
def runs(folder):
    return {
        "text": made(folder, None),
        "media": made(folder, tiny_embedding.STORED),
        "cut": made(folder, None, dim=CUT),
    }


def caught(a, b):
    """Whether the tests' tolerance tells candidate b from the reference a."""
    return a.shape != b.shape or relative(a, b) > TOLERANCE["float32"][0]


def run_of(runs, id):
    """The run in which a fault of this family can show."""
    return next(run for run in runs.values() if CATALOGUE[id].can_show(run.model, run.media))


# -- faults


def test_the_faults_of_this_family_are_these():
    ids = "E01-half E01-strict E01-causal E03 E06 E07 E08 E09 E10-first E10-last E10-bos E11 E12 P06"
    assert sorted(OWN) == sorted(ids.split())
    other = numgemma.load("tiny")
    assert not [id for id in OWN if CATALOGUE[id].places(other)]


@pytest.mark.parametrize("name", ["text", "media", "cut"])
def test_every_fault_is_caught_and_first_changes_the_point_that_its_entry_names(runs, name):
    run, tried = runs[name], []
    some = CATALOGUE.values() if name != "cut" else [CATALOGUE["E08"]]
    for fault in filter(run.shows, (fault for fault in some if not fault.later)):
        with applied(run.model, fault.id):
            broken = run.record()
        changed = [p for p in run.clean if p not in broken or not np.array_equal(run.clean[p], broken[p])]
        assert fault.shown_by(changed[0]), (fault.id, changed[0])
        assert any(p not in broken or caught(run.clean[p], broken[p]) for p in changed), fault.id
        tried.append(fault.id)
    assert len(tried) >= {"text": 25, "media": 8, "cut": 1}[name]


@pytest.mark.parametrize("id", OWN)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replay_places_each_fault_and_whatif_names_it_first(folder, runs, id, precision):
    run = run_of(runs, id)
    if precision == "bfloat16":
        model = replace(run.model, dtype=numgemma.load(folder, precision).dtype)
        run = replace(run, model=model)
    with applied(run.model, id):
        broken = run.record()
    found = replay(run.model, broken, media=run.media)
    assert CATALOGUE[id].shown_by(found.first)
    best = whatif(run.model, broken, media=run.media).candidates[0]
    assert best.faults == (id,), best
    assert best.explains == best.of


@pytest.mark.parametrize("id", ["T12", "T11-before-ple", "P02-joint", "P03-silu", "T20", "T21", "T13"])
def test_faults_of_gemma_4_are_named_here_too(runs, id):
    run = runs["text"]
    with applied(run.model, id):
        broken = run.record()
    assert whatif(run.model, broken).candidates[0].faults == (id,)


def test_a_dump_of_the_right_run_has_no_fault_also_where_its_vector_is_cut(runs):
    for run in runs.values():
        found = replay(numgemma.load(run.model.checkpoint.folder), run.clean, media=run.media)
        assert found.exit_code == 0
        assert {step.name for step in found.points} >= {"pooled", "vector", "embedding_projection"}


# -- verbs


def test_every_verb_of_the_debugger_says_something_of_a_vector(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path / "floors"))
    model, ids = numgemma.load(folder), tiny_embedding.prompt(30)
    with applied(model, "E03"):
        model.record(ids).save("broken.safetensors")
    listed = ",".join(map(str, ids))
    for words, code, said in (
        (f"dump {folder} --ids {listed} -o a.safetensors", 0, "points over 30 tokens"),
        (f"dump {folder} --ids {listed} --precision bfloat16 -o b.safetensors", 0, "points over 30 tokens"),
        ("precheck a.safetensors broken.safetensors", 0, "COMPARABLE"),
        (f"floor {folder} --ids {listed} --precision float32 -o f.json", 0, "vector"),
        ("diff a.safetensors broken.safetensors --floor f.json --html d.html", 1, "pooled"),
        (f"diff a.safetensors b.safetensors --floor auto --ckpt {folder}", 0, "NOISE"),
        (f"replay {folder} broken.safetensors --html r.html", 1, "First local fault: pooled"),
        (f"whatif {folder} broken.safetensors", 1, "E03: the mean is taken before the last norm"),
        (f"doctor {folder} broken.safetensors", 1, "Cause: E03"),
    ):
        assert main(words.split()) == code, words
        assert said in " ".join(capsys.readouterr().out.split()), words
    for page in ("d.html", "r.html"):
        assert "families/embedding/embedding.py" in (tmp_path / page).read_text()
