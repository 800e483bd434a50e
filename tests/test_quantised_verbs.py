"""Every verb that takes a checkpoint takes one of codes, in every form: held to a checkpoint of the decoded weights.

Each check below would fail for a verb that ran on other weights: its numbers are those of a checkpoint of the decoded
weights, and not those of the original.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import gguf_shapes
import numpy as np
import pytest
import quantised_forms
import tiny
import tiny_embedding
from safetensors.numpy import load_file, save_file

from numgemma import diff, load, machine, read_dump
from numgemma.checkpoint import open_checkpoint
from numgemma.cli import VERBS, main
from numgemma.surgery import stack
from numgemma.surgery.lineage import lineage
from numgemma.surgery.recipe import of_one
from numgemma.weights.packed import Packed

GGUF = Path(__file__).parent / "fixtures/gguf"
IDS = "5,6,7,8,9,10"
WIDE = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
RAW = tiny.PLE | WIDE | {"global_head_dim": 64, "hidden_size_per_layer_input": 32}
RAW |= {"vocab_size": 192, "vocab_size_per_layer_input": 192, "num_hidden_layers": 4, "num_kv_shared_layers": 2}
RAW |= {"layer_types": [tiny.KINDS[letter] for letter in "sfsf"]}
FORMS = ("gguf", *quantised_forms.FORMS)


@dataclass
class Case:
    """A checkpoint of codes; the floats it was made of; the floats that its codes mean."""

    path: str
    original: str
    decoded: str
    kind: str  # what the package calls its codes


def decoded(path, folder):
    """The same checkpoint in float32."""
    found = open_checkpoint(path)
    tensors = {name: np.asarray(w, np.float32) for name, w in found.weights.tensors.items()}
    config = {key: value for key, value in found.config.items() if not key.startswith("quantization")}
    return str(tiny.write(folder, config, tensors, "float32"))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    base, made = tmp_path_factory.mktemp("forms"), {}
    tiny.write(base / "original", RAW)
    gguf_shapes.write(base / "ple", "ple")

    def case(form):
        if form not in made:
            path, kind = base / form, quantised_forms.KINDS.get(form, "Q4_K")
            if form == "gguf":
                path = GGUF / "ple-Q4_K_M.gguf"
            else:
                shutil.copytree(base / "original", path)
                assert quantised_forms.write(path, form) > 30
            original = base / ("ple" if form == "gguf" else "original")
            made[form] = Case(str(path), str(original), decoded(path, base / f"{form}-decoded"), kind)
        return made[form]

    return case


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Calls a verb.  -> exit code, what it printed"""
    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for quick in ("read_bandwidth", "gemm_peak"):  # of the machine, whatever the checkpoint
        monkeypatch.setattr(machine, quick, lambda *threads: 1.0)

    def call(*words):
        code = main([str(word) for word in words])
        return code, capsys.readouterr().out

    return call


def inspect(c, run):
    code, out = run("inspect", c.path)
    assert code == 0
    assert c.kind in out


def generate(c, run):
    words = ("--ids", IDS, "--max-new-tokens", "4", "--print-ids", "--backend", "numpy")
    ours, theirs = (run("generate", path, *words) for path in (c.path, c.decoded))
    (code, out), (_, due) = ours, theirs
    assert code == 0
    assert out.splitlines()[-1] == due.splitlines()[-1]
    assert out.splitlines()[-1].count(",") == 3


def dump(c, run):
    for name in ("path", "decoded", "original"):
        assert run("dump", getattr(c, name), "--ids", IDS, "-o", f"{name}.safetensors")[0] == 0
    a, b = read_dump("path.safetensors"), read_dump("decoded.safetensors")
    assert len(a) > 60
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5 * np.abs(b[name]).max(), err_msg=name)
    assert diff("original.safetensors", "path.safetensors").exit_code == 1


def floor(c, run):
    for name in ("path", "decoded"):
        assert run("floor", getattr(c, name), "--ids", IDS, "-o", f"{name}.json")[0] == 0
    a, b = (json.loads(Path(f"{name}.json").read_text())["points"] for name in ("path", "decoded"))
    assert a.keys() == b.keys()
    assert len(a) > 60


def judged(verb):
    """replay, whatif and doctor: a run of these weights is right, one of the original's is not."""

    def check(c, run):
        for name in ("decoded", "original"):
            assert run("dump", getattr(c, name), "--ids", IDS, "-o", f"{name}.safetensors")[0] == 0
        assert run(verb, c.path, "decoded.safetensors")[0] == 0
        if verb == "replay" or c.kind == "int4":  # the others search for a cause for seconds
            more = ["--budget", "3"] if verb != "replay" else []
            assert run(verb, c.path, "original.safetensors", *more)[0] == 1

    return check


def score(c, run):
    found = {}
    for name in ("path", "decoded", "original"):
        assert run("score", getattr(c, name), "--ids", IDS, "--json", f"{name}.json")[0] == 0
        found[name] = json.loads(Path(f"{name}.json").read_text())["perplexity"]
    assert found["path"] == pytest.approx(found["decoded"], rel=1e-5)
    assert found["path"] != pytest.approx(found["original"], rel=1e-5)


def lint(c, run):
    code, out = run("lint", c.path)
    assert code == 0, out
    path, norm = Path(c.path), np.asarray(open_checkpoint(c.path).weights["norm.weight"])
    if path.is_dir():
        path = Path(shutil.copytree(path, "broken")) / "model.safetensors"
    raw = path.read_bytes()
    assert raw.count(norm.tobytes()) == 1
    broken = Path("broken/model.safetensors" if path.parent.name == "broken" else "broken.gguf")
    broken.write_bytes(raw.replace(norm.tobytes(), np.full_like(norm, np.nan).tobytes()))
    code, out = run("lint", broken if broken.suffix == ".gguf" else broken.parent)
    assert code == 1
    assert "norm.weight" in out


def audit(c, run):
    code, out = run("audit", c.path, "--against", c.original)
    assert code == 0, out
    assert c.kind in out
    assert run("audit", c.path, "--against", stranger(c))[0] == 1


def stranger(c):
    """Another checkpoint of that shape."""
    raw = json.loads((Path(c.original) / "config.json").read_text())
    return tiny.write(Path("stranger"), raw, tiny.random_tensors(raw, seed=5))


def traced(c, run):
    code, out = run("lineage", c.path, "--parents", c.original, stranger(c), "--json", "l.json")
    assert code == 0, out
    found = json.loads(Path("l.json").read_text())
    slots = [(slot["parent"], slot["layer"], slot["relation"]) for slot in found["slots"]]
    assert slots == [(c.original, i, "copy") for i in range(len(slots))]
    assert {tensor["relation"] for tensor in found["tensors"]} == {"copy"}


def seams(c, run):
    code, _ = run("seams", c.path, c.original, "--ids", IDS, "--ids", "11,12,13,14", "--json", "s.json")
    assert code == 0
    slots = json.loads(Path("s.json").read_text())["slots"]
    assert [slot["layer"] for slot in slots] == list(range(len(slots)))
    assert all(0.7 < slot["cosine"] < 1 - 1e-6 for slot in slots)


def bench(c, run):
    words = ("--lengths", "4", "--decode", "1", "--rounds", "1", "--backend", "numpy", "--json")
    ours = json.loads(run("bench", c.path, *words)[1])
    assert ours["bytes_per_token"] < machine.bytes_per_token(load(c.decoded)) / 2
    assert ours["speed"]


def show(c, run):
    assert run("dump", c.path, "--ids", IDS, "-o", "a.safetensors")[0] == 0
    more = ["--ckpt", c.path] if c.path.endswith(".gguf") else []  # which has a tokenizer
    assert run("show", "a.safetensors", "--what", "surprise", "-o", "a.png", *more)[0] == 0
    assert Path("a.png").stat().st_size > 1000


def sweep(c, run):
    Path("p.jsonl").write_text(f"[{IDS}]\n")
    words = ("--prompts", "p.jsonl", "--engines", "float32", "--workers", "0")
    assert run("sweep", c.path, *words, "-o", "o.jsonl")[0] == 0
    assert len(Path("o.jsonl").read_text().splitlines()) >= 1


def embed(c, run):
    """Of the one family that embeds; its files are made for this test."""
    raw = tiny_embedding.TEXT | WIDE | {"hidden_size_per_layer_input": 32, "vocab_size": 192, "embedding_dim": 64}
    raw |= {"per_layer_config": {i: {"head_dim": 64} for i in ("02", "05")}}
    form = next(form for form, kind in quantised_forms.KINDS.items() if kind == c.kind)
    tiny_embedding.write("e", raw)
    shutil.copytree("e", "q")
    assert quantised_forms.write(Path("q"), form) > 30
    found = open_checkpoint("q")
    whole = {name: np.asarray(w, np.float32) for name, w in found.weights.tensors.items()}
    tiny_embedding.write("d", raw, whole, "float32")
    for name in "qde":
        assert run("embed", name, "--ids", IDS, "-o", f"{name}.npy")[0] == 0
    q, d, e = (np.load(f"{name}.npy") for name in "qde")
    np.testing.assert_allclose(q, d, atol=1e-6)
    assert np.abs(q - e).max() > 1e-4


CHECKS = {
    **{name.__name__: name for name in (inspect, generate, dump, floor, score, lint, audit, seams, bench, show, sweep)},
    **{verb: judged(verb) for verb in ("replay", "whatif", "doctor")},
    "lineage": traced,
    "embed": embed,
}
ELSEWHERE = {
    "capture": "Transformers opens the checkpoint, and knows which forms it reads",
    "preprocess": "asks config.json and the tokenizer alone",
    "emulate": "of GGUF: test_emulate.py",
    "diff": "compares dumps; two checkpoints by way of seams",
    "precheck": "compares dumps",
    "demo": "runs the bundled checkpoint",
    "synth": "takes a config",
    "stack": "builds from numbers: below",
    "transplant": "builds from numbers: below",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("verb", CHECKS)
def test_a_verb_on_codes_does_what_it_does_on_what_they_mean(verb, form, cases, run):
    if (verb, form) == ("embed", "gguf"):
        pytest.skip("no GGUF of that family is read")
    CHECKS[verb](cases(form), run)


def test_every_verb_is_tried_or_has_a_reason():
    assert set(VERBS) == CHECKS.keys() | ELSEWHERE.keys()
    for verb in ("demo", "synth", "precheck"):
        parser = argparse.ArgumentParser()
        import_module(f"numgemma.cli.{verb}").add_arguments(parser)
        assert not any(action.metavar == "CKPT" for action in parser._actions), verb


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_packed_and_means_nearly_what_it_was_made_of(form, cases):
    c = cases(form)
    tensors = open_checkpoint(c.path).weights.tensors
    codes = [w for w in tensors.values() if isinstance(w, Packed)]
    assert c.kind in {w.dtype for w in codes}
    assert sum(w.size for w in codes) > 0.7 * sum(w.size for w in tensors.values())


@pytest.mark.parametrize("form", ["gguf", "compressed", "fp8"])
def test_what_builds_from_numbers_says_that_it_needs_them(cases, form, tmp_path, run, capsys):
    path = cases(form).path
    layers = f"0-{len(load(path).outline.layers) - 1}"
    assert main(["stack", path, "--slices", layers, "-o", str(tmp_path / "m")]) == 2
    assert "checkpoints are built from floats; name the unquantised original" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


# lineage of codes: what was moved is found, and what is like nothing is not


@pytest.mark.parametrize("form", quantised_forms.FORMS)
def test_the_layers_of_a_stack_are_told_through_its_codes(form, cases, tmp_path):
    original = cases(form).original
    stack.write(stack.plan(of_one(original, ((0, 1), (0, 1), (1, 3)))), tmp_path / "child")
    assert quantised_forms.write(tmp_path / "child", form) > 30
    found = lineage(tmp_path / "child", [original])
    assert [origin.layer for origin in found.slots] == [0, 1, 0, 1, 1, 2, 3]
    assert {r.kind for name, r in found.tensors.items() if name.startswith("layers.")} == {"copy"}
    table = found.tensors["embed_tokens_per_layer.weight"]
    assert (table.kind, table.axis, len(table.spans), table.new) == ("columns", "columns", 3, 0)


@pytest.mark.parametrize("form", quantised_forms.FORMS)
def test_a_matrix_of_another_checkpoint_among_codes_is_told(form, cases, tmp_path):
    original, name = cases(form).original, "layers.2.mlp.up_proj.weight"
    other = tiny.write(tmp_path / "other", RAW, tiny.random_tensors(RAW, seed=5))
    shutil.copytree(original, tmp_path / "child")
    tensors = load_file(tmp_path / "child/model.safetensors")
    key = next(key for key in tensors if key.endswith(name))
    tensors[key] = load_file(other / "model.safetensors")[key]
    save_file(tensors, tmp_path / "child/model.safetensors", {"format": "pt"})
    quantised_forms.write(tmp_path / "child", form)
    found = lineage(tmp_path / "child", [original])
    assert {n for n, r in found.tensors.items() if r.kind != "copy"} == {name}
    assert found.tensors[name].kind == "fresh"
    found = lineage(tmp_path / "child", [original, other])
    assert (found.tensors[name].kind, found.tensors[name].parent) == ("copy", str(other))


def test_the_same_codes_are_the_same_bytes(cases):
    path = cases("gguf").path
    assert all(r.exact for r in lineage(path, [path]).tensors.values())


def test_experts_that_lie_one_by_one_are_the_same_bytes_as_in_one_stack(tmp_path):
    parent = tiny.write(tmp_path / "parent", tiny.MOE)
    shutil.copytree(parent, tmp_path / "child")
    found = {}
    for name, x in load_file(parent / "model.safetensors").items():
        scope, _, leaf = name.rpartition(".experts.")
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(leaf, ()) if scope else ()
        for e, matrix in enumerate(x if parts else ()):
            for part, rows in zip(parts, np.split(matrix, len(parts)), strict=True):
                found[f"{scope}.experts.{e}.{part}.weight"] = rows.copy()
        found |= {} if parts else {name: x}
    save_file(found, tmp_path / "child/model.safetensors", {"format": "pt"})
    tensors = lineage(tmp_path / "child", [parent]).tensors
    assert "layers.0.experts.gate_up_proj" in tensors
    assert all(r.exact for r in tensors.values())
