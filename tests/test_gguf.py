"""GGUF files that llama.cpp converted and quantised: read as what they are, refused in a sentence where damaged."""

import json
import shutil
from pathlib import Path

import gguf as library
import gguf_shapes
import numpy as np
import pytest

from numgemma import load, ops
from numgemma.checkpoint import open_checkpoint
from numgemma.cli import main
from numgemma.errors import InputError
from numgemma.families import read_config
from numgemma.surgery.audit import FAITHFUL
from numgemma.surgery.audit_files import audit_files
from numgemma.weights.gguf import open_gguf
from numgemma.weights.packed import Packed, format_of

FILES = sorted((Path(__file__).parent / "fixtures/gguf").glob("*.gguf"))
IDS = [2, 30, 44, 9, 108, 77, 21, 300, 5, 12, 60, 31]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return {name: gguf_shapes.write(folder / name, name) for name in gguf_shapes.SHAPES}


def original_of(originals, path):
    return originals[path.stem.partition("-")[0]]


by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@by_file
def test_its_keys_are_the_originals_config(originals, path):
    folder = original_of(originals, path)
    theirs = json.loads((folder / "config.json").read_text())
    ours = open_checkpoint(path).config
    assert {key: (ours.get(key), theirs[key]) for key in theirs if ours.get(key) != theirs[key]} == {}
    assert read_config(ours, "f").text.layers == read_config(theirs, "f").text.layers


@by_file
def test_its_tensors_are_those_of_the_library(path):
    theirs = {t.name: t for t in library.GGUFReader(path).tensors}
    ours = open_gguf(path).tensors
    assert ours.keys() == theirs.keys()
    for name, t in theirs.items():
        whole = library.quants.dequantize(t.data, t.tensor_type).reshape(ours[name].shape)
        np.testing.assert_array_equal(np.asarray(ours[name], np.float32), whole)


@by_file
def test_every_tensor_is_faithful_to_the_original(originals, path):
    found = audit_files(path, original_of(originals, path))
    assert [(v.name, v.state, v.format, v.rel) for v in found.tensors if v.state != FAITHFUL] == []
    assert len({v.format for v in found.tensors}) > 2  # a recipe mixes formats


@by_file
def test_neighbouring_values_of_a_block_lie_a_step_apart(path):
    matrices = [w for w in open_gguf(path).tensors.values() if isinstance(w, Packed) and w.ndim == 2]
    assert matrices
    for w in matrices:
        rows, steps = (x[:8].reshape(-1, 16) for x in (w, w.steps(slice(None))))  # no group is smaller
        near = 0
        for row, step in zip(rows, steps, strict=True):
            assert (step == step[0]).all()
            gaps = np.diff(np.unique(row)) / max(step[0], 1e-30)
            assert gaps.min(initial=np.inf) > 0.99, format_of(w)  # never nearer than a step
            near += gaps.size > 0 and gaps.min() < 1.01
        fine = format_of(w) in ("Q8_0", "Q6_K")  # of many codes a block uses few
        assert near > (0.4 if fine else 0.9) * len(rows), format_of(w)  # and mostly that near


@by_file
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_run_is_that_of_the_decoded_weights(path, backend, tmp_path):
    import tiny
    from safetensors.numpy import save_file

    checkpoint = open_checkpoint(path)
    decoded = {name: np.ascontiguousarray(np.asarray(w, np.float32)) for name, w in checkpoint.weights.tensors.items()}
    raw = checkpoint.config
    save_file({tiny.stored_name(n, "model.", raw): w for n, w in decoded.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with ops.using(backend):
        ours, plain = load(path).logits(IDS), load(tmp_path).logits(IDS)
    np.testing.assert_allclose(ours, plain, rtol=2e-5, atol=2e-5 * np.abs(plain).max())


def test_the_tokenizer_in_a_file_makes_the_ids_of_the_one_it_is_from(tmp_path):
    path = shutil.copy(FILES[0], tmp_path)
    model = load(path)
    ids = model.tokenizer.encode("Hello  wörld")
    assert ids[0] == 2
    assert model.tokenizer.decode(ids) == "Hello  wörld"
    pieces = list(open_gguf(Path(path)).keys["tokenizer.ggml.tokens"])
    assert len(pieces) == model.outline.vocabulary


def test_the_verbs_take_a_file(tmp_path, capsys):
    path = str(FILES[0])
    assert main(["inspect", path]) == 0
    assert "bits a number" in capsys.readouterr().out
    assert main(["generate", path, "--ids", "2,30,44", "--max-new-tokens", "3", "--print-ids", "--ignore-eos"]) == 0
    assert len(capsys.readouterr().out.strip().split(",")) == 3
    assert main(["dump", path, "--ids", "2,30,44", "-o", str(tmp_path / "d.safetensors")]) == 0


def test_lint_finds_nothing_wrong_with_it_and_lineage_and_seams_take_it(tmp_path, capsys):
    for path in FILES:
        assert main(["lint", str(path)]) == 0, capsys.readouterr().out
    path, found = str(FILES[0]), tmp_path / "l.json"
    assert main(["lineage", path, "--parents", path, "--json", str(found)]) == 0
    assert all(tensor["exact"] for tensor in json.loads(found.read_text())["tensors"])
    assert main(["seams", path, path, "--ids", "5,6,7"]) == 0


def test_text_is_generated_with_the_tokenizer_that_is_in_it(capsys):
    assert main(["generate", str(FILES[0]), "--prompt", "hello", "--max-new-tokens", "2", "--ignore-eos"]) == 0
    assert "hello" in capsys.readouterr().out


def test_a_file_whose_tokenizer_has_no_merges_takes_ids_alone(tmp_path, capsys):
    path = tmp_path / "pieces.gguf"
    path.write_bytes(FILES[0].read_bytes().replace(b"tokenizer.ggml.merges", b"tokenizer.ggml.losses"))
    asked = ["--ids", "5,6,7", "--max-new-tokens", "2", "--ignore-eos"]
    assert main(["generate", str(path), *asked, "--print-ids"]) == 0
    assert len(capsys.readouterr().out.strip().split(",")) == 2
    assert main(["generate", str(path), *asked]) == 2
    assert "add --print-ids" in capsys.readouterr().err
    assert main(["generate", str(path), "--prompt", "hello"]) == 2
    assert "tokenizer.json: no such file" in capsys.readouterr().err


# damaged files


def test_a_file_that_is_cut_anywhere_is_one_sentence(tmp_path):
    raw = FILES[0].read_bytes()
    header = raw.index(b"blk.0.attn_k.weight")
    for size in (0, 3, 20, 24, 100, 1000, header, header + 50, len(raw) - 1):
        path = tmp_path / "cut.gguf"
        path.write_bytes(raw[:size])
        with pytest.raises(InputError) as told:
            load(path)
        assert str(path) in str(told.value)
        assert "\n" not in str(told.value)


def rewritten(folder, key, value):
    """A sound file with another number under one key."""
    path = shutil.copy(next(path for path in FILES if path.stem == "ple-Q4_K_M"), folder)
    file = library.GGUFReader(path, "r+").fields[key]
    file.parts[file.data[0]][0] = value
    return path


@pytest.mark.parametrize(
    "key", ["attention.value_length", "attention.value_length_swa", "rope.dimension_count", "rope.dimension_count_swa"]
)
def test_a_key_that_would_make_an_engine_compute_something_else_is_refused_and_not_passed_over(tmp_path, key):
    path = rewritten(tmp_path, f"gemma4.{key}", 16)
    assert f"{path}: gemma4.{key} is 16, where keys are " in (refusal(path) or "")


def test_what_is_wrong_with_the_metadata_of_a_file_is_told_with_its_own_name(tmp_path):
    """It has no config.json."""
    path = rewritten(tmp_path, "gemma4.attention.sliding_window", 0)
    assert (refusal(path) or "").startswith(f"{path}: ")


def refusal(path):
    try:
        load(path)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("seed", range(60))
def test_a_file_with_a_changed_header_is_read_or_refused_in_a_sentence(seed, tmp_path):
    raw = bytearray(FILES[seed % len(FILES)].read_bytes())
    rng = np.random.default_rng(seed)
    end = raw.index(b"output_norm.weight")
    for at in rng.integers(0, end, 3):
        raw[at] = rng.integers(0, 256)
    path = tmp_path / "changed.gguf"
    path.write_bytes(raw)
    said = refusal(path)
    assert said is None or "\n" not in said


def test_adapters_towers_and_other_models_are_named(tmp_path):
    for architecture, kind, says in (
        ("gemma4", "adapter", "LoRA"),
        ("clip", "mmproj", "towers"),
        ("llama", "model", "llama"),
    ):
        path = tmp_path / "f.gguf"
        writer = library.GGUFWriter(path, architecture)
        writer.add_type(kind)
        writer.add_tensor("x", np.zeros((2, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(InputError, match=says):
            load(path)
