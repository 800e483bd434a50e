"""Random checkpoints: any shape, the same bytes from the same seed, whole on disk or not there."""

import copy
import errno
import hashlib
import json
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tiny

import numgemma
from numgemma.checkpoint import open_checkpoint
from numgemma.cli import main
from numgemma.errors import InputError
from numgemma.families import find, read_config
from numgemma.families.gemma4.layout import stored_name, tensor_shapes
from numgemma.families.gemma4.shrink import SCALES, shrunk
from numgemma.opening import DATA
from numgemma.prompt.tokenizer import open_tokenizer
from numgemma.surgery import synth, transplant, writer
from numgemma.surgery.writer import Tensor, by_rows, copied, in_one, write_checkpoint
from numgemma.weights.safetensors import open_safetensors, read_header, release

BF16 = np.dtype(ml_dtypes.bfloat16)
GEMMA4 = find({"model_type": "gemma4"}, "the test")
OFFICIAL = sorted(
    path.stem for path in (DATA / "configs").glob("*.json") if json.loads(path.read_text())["model_type"] == "gemma4"
)


def official(name):
    return json.loads((DATA / "configs" / f"{name}.json").read_text())


def bits(tensor):
    """The bytes that a Tensor would write."""
    return b"".join(np.ascontiguousarray(piece).tobytes() for piece in tensor.pieces())


def digest(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def e2b(tmp_path_factory):
    """A tiny E2B: sharing, double width, per-layer inputs, both towers with clipped linears."""
    folder = tmp_path_factory.mktemp("synth") / "e2b"
    synth.synth("gemma-4-E2B-it", target=folder, scale="tiny")
    return folder


# the values


def test_the_same_seed_gives_the_same_files_and_another_seed_other_ones(tmp_path, e2b):
    synth.synth("gemma-4-E2B-it", target=tmp_path / "again", scale="tiny")
    synth.synth("gemma-4-E2B-it", target=tmp_path / "other", scale="tiny", seed=1)
    assert digest(tmp_path / "again") == digest(e2b)
    mine, other = (open_checkpoint(folder).weights.tensors for folder in (e2b, tmp_path / "other"))
    assert not any(np.array_equal(mine[name], other[name]) for name in mine if mine[name].size > 1)


def test_two_models_share_no_tensor_at_one_seed(tmp_path, e2b):
    synth.synth("gemma-4-E4B-it", target=tmp_path / "e4b", scale="tiny")
    held = {x.tobytes() for x in open_checkpoint(e2b).weights.tensors.values() if x.size > 1}
    other = open_checkpoint(tmp_path / "e4b").weights.tensors
    assert not [name for name, x in other.items() if x.size > 1 and x.tobytes() in held]


def test_a_tiny_gemma_3_is_a_parent_for_a_transplant_with_the_published_choices(tmp_path, e2b):
    synth.synth("gemma-3-1b-it", target=tmp_path / "text", scale="tiny")
    transplant.write(transplant.plan(tmp_path / "text", e2b), tmp_path / "child")
    logits = numgemma.load(tmp_path / "child").logits([2, 9, 33])
    assert np.isfinite(logits).all()


def test_a_tensor_depends_on_its_name_and_shape_alone():
    """Neither on the order, nor on what other tensors there are, nor on the pieces it is written in."""
    few, many = (read_config(tiny.PLE | {"num_kv_shared_layers": n}, "test") for n in (5, 4))
    a, b = (synth.random_tensors(GEMMA4, config, BF16, seed=3) for config in (few, many))
    same = [name for name in a if name in b and a[name].shape == b[name].shape]
    assert len(same) > 100
    found = {name: bits(a[name]) for name in reversed(same)}
    assert all(bits(b[name]) == found[name] for name in same)


def test_the_size_of_the_pieces_changes_nothing(monkeypatch):
    config = read_config(tiny.MOE, "test")
    whole = {name: bits(t) for name, t in synth.random_tensors(GEMMA4, config, BF16, 0).items()}
    monkeypatch.setattr(synth, "PIECE", 1000)
    assert {name: bits(t) for name, t in synth.random_tensors(GEMMA4, config, BF16, 0).items()} == whole


def test_no_tensor_is_left_at_a_value_that_hides_a_fault(e2b):
    weights = open_checkpoint(e2b).weights
    for name, x in weights.tensors.items():
        x = x.astype(np.float64)
        assert np.isfinite(x).all(), name
        assert not np.isin(x, (0, 1)).all(), name
        assert x.size == 1 or x.std() > 0.01 * np.abs(x).mean(), name
        if name.endswith("put_min"):
            assert x < 0 < weights[name.replace("put_min", "put_max")], name
        if name.endswith("k_norm.weight"):
            assert 0 < x.max() < 1, name


def test_linears_that_read_one_input_clip_it_alike_and_their_outputs_apart(e2b):
    w = open_checkpoint(e2b).weights.at("vision_tower.encoder.layers.1")
    for group in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
        for bound, different in (("input_min", 1), ("input_max", 1), ("output_min", len(group))):
            assert len({float(w[f"{name}.{bound}"]) for name in group}) == different


@pytest.mark.parametrize("name", ["gemma-4-E4B-it", "gemma-4-26B-A4B-it", "gemma-4-31B-it"])
def test_the_stream_stays_of_one_size_and_every_branch_counts_in_it(tmp_path, name):
    synth.synth(name, target=tmp_path / "m", scale="tiny", dtype="float32")
    run = numgemma.load(tmp_path / "m").record(np.arange(40) % 37 + 5, ["*"])
    sizes = {point: np.sqrt(np.mean(x.astype(float) ** 2)) for point, x in run.items() if x.dtype.kind == "f"}
    for point, size in sizes.items():
        if point.endswith(".out") and point.startswith("layers."):
            assert 0.1 < size < 10, point
        if re.search(r"post_(attention|feedforward|per_layer_input)_?(layer)?norm$", point):
            assert size > 0.1, point
    assert 0.3 < sizes["logits"] < 3
    if "26B" in name:
        chosen = run["layers.3.router.ids"]
        assert len(np.unique(chosen)) == 8  # no expert is left out
        assert run["layers.3.router.probs"].std() > 0.05  # and they do not weigh the same


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes_hold_the_same_numbers(tmp_path, e2b, dtype):
    synth.synth("gemma-4-E2B-it", target=tmp_path / "m", scale="tiny", dtype=dtype)
    found = open_checkpoint(tmp_path / "m")
    assert found.config["dtype"] == found.config["text_config"]["dtype"] == dtype
    for name, x in open_checkpoint(e2b).weights.tensors.items():
        assert found.weights[name].dtype == dtype
        np.testing.assert_allclose(found.weights[name].astype(float), x.astype(float), rtol=2**-8, atol=1e-6)


def test_keys_that_nobody_reads_are_there_as_in_released_files_or_not_as_in_resaved_ones(tmp_path, e2b):
    synth.synth("gemma-4-E2B-it", target=tmp_path / "m", scale="tiny", unread=False)
    released, resaved = (open_checkpoint(folder).weights for folder in (e2b, tmp_path / "m"))
    assert set(resaved) == set(tensor_shapes(numgemma.load(e2b).config))
    extra = set(released) - set(resaved)
    assert extra == {
        f"layers.{i}.self_attn.{leaf}.weight" for i in range(10, 20) for leaf in ("k_proj", "v_proj", "k_norm")
    }


# the shapes


def features(config):
    """What a shrunk model must keep of a config."""
    c, kinds = config.text, config.text.kinds
    fulls = [spec.index for spec in c.layers if spec.kind == "full_attention"]
    sliding, full = kinds["sliding_attention"], kinds["full_attention"]
    return {
        "period": fulls[1] - fulls[0],
        "first full layer": fulls[0],
        "last kind": c.layer_types[-1],
        "shares": c.num_kv_shared_layers > 0,
        "first sharing layer follows a full one": c.layers[-c.num_kv_shared_layers - 1].kind,
        "double width": max(s.F for s in c.layers) / min(s.F for s in c.layers),
        "raw keys": [full.k_eq_v, sliding.k_eq_v],
        "heads by kind": full.H / sliding.H,
        "keys by kind": [sliding.K > full.K, sliding.N / sliding.K, full.N / full.K],
        "experts": full.E > full.J > 1,
        "per-layer inputs": bool(c.hidden_size_per_layer_input),
        "towers": [config.vision is not None, config.audio is not None],
        "clips": config.vision and [config.vision.use_clipped_linears, config.vision.standardize],
        "turning": full.angles / full.H,
        "images": c.use_bidirectional_attention,
    }


@pytest.mark.parametrize("scale", ["tiny", "pilot"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_a_shrunk_model_has_every_feature_of_the_official_one(name, scale):
    raw = official(name)
    small = read_config(shrunk(raw, SCALES[scale], name), "small")
    assert features(small) == features(read_config(raw, name))
    assert sum(np.prod(shape) for shape in tensor_shapes(small).values()) < {"tiny": 4e6, "pilot": 2e8}[scale]
    if small.text.num_kv_shared_layers:
        sharing = [s.kind for s in small.text.layers if s.kv_from != s.index]
        assert min(sharing.count(kind) for kind in small.text.kinds) >= 2


@pytest.mark.parametrize("name", OFFICIAL)
def test_special_tokens_fit_the_shrunk_vocabulary_and_stay_apart(name):
    raw = official(name)
    small = shrunk(raw, SCALES["tiny"], name)
    keys = [key for key in raw if key.endswith(("_token_id", "_token_index")) and isinstance(raw[key], int)]
    moved = {raw[key]: small[key] for key in keys}
    assert len(set(moved.values())) == len(moved) >= 6
    assert min(moved.values()) > 128
    assert max(moved.values()) < small["text_config"]["vocab_size"]
    assert sorted(moved) == sorted(moved, key=moved.get)
    assert small.get("eos_token_id") == raw.get("eos_token_id")


def test_a_stop_token_at_the_end_of_the_vocabulary_moves_too():
    raw = official("gemma-4-E2B-it") | {"eos_token_id": [1, 258882]}
    small = shrunk(raw, SCALES["tiny"], "test")
    assert small["eos_token_id"] == [1, small["eoi_token_id"]]
    generation = json.loads(synth.generation(raw, small)["generation_config.json"])
    assert generation["eos_token_id"] == small["eos_token_id"]


def test_both_spellings_of_a_config_shrink_to_the_same_model():
    old = official("gemma-4-31B-it")
    new = copy.deepcopy(old)
    text = new["text_config"]
    heads = {"head_dim": text.pop("global_head_dim"), "num_key_value_heads": text.pop("num_global_key_value_heads")}
    full = [i for i, kind in enumerate(text["layer_types"]) if kind == "full_attention"]
    text["per_layer_config"] = {f"{i:02}": heads for i in full}
    a, b = (read_config(shrunk(raw, SCALES["tiny"], "test"), "test").text.layers for raw in (old, new))
    assert a == b


def test_a_small_model_is_not_shrunk():
    small = shrunk(tiny.PLE, replace(SCALES["pilot"], full_layers_sharing=9), "test")
    assert small == tiny.PLE | {"layer_types": list(tiny.PLE["layer_types"])}


def test_the_byte_tokenizer_gives_back_any_text_and_knows_the_special_tokens(e2b):
    config, tokens = open_checkpoint(e2b).config, open_tokenizer(e2b)
    for text in ("Hello, world", "  zwei  Leerzeichen", "日本語\n\n\tз", "", "a\u2581b".replace("\u2581", " ")):
        ids = tokens.encode(text)
        assert ids[0] == 2
        assert max(ids) < 512
        assert tokens.decode(ids) == text
    ids = tokens.encode("<|turn>user\n<|image|><turn|>")
    assert ids[1] == 105
    assert ids[-2:] == [config["image_token_id"], 106]


# the files


def few(n=3, rows=5):
    return {f"t{i}": in_one(np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + i) for i in range(n)}


def loadable(folder):
    """Whatever in a directory numgemma would open as a checkpoint."""
    found = []
    for path in folder.iterdir():
        try:
            found.append(open_checkpoint(path).folder)
        except InputError:
            continue
    return found


def test_shards_hold_no_more_than_asked_and_read_as_one(tmp_path, e2b):
    synth.synth("gemma-4-E2B-it", target=tmp_path / "m", scale="tiny", shard=500_000)
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    numbers = range(1, 1 + len(files))
    assert [path.name for path in files] == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in numbers]
    for path in files:
        tensors = open_safetensors(path).tensors
        assert sum(x.nbytes for x in tensors.values()) <= 500_000 or len(tensors) == 1
    one, parts = open_checkpoint(e2b).weights, open_checkpoint(tmp_path / "m").weights
    assert list(one) == list(parts)
    assert all(one[name].tobytes() == parts[name].tobytes() for name in one)
    sizes = json.loads((tmp_path / "m" / writer.INDEX).read_text())["metadata"]
    assert sizes == {
        "total_size": sum(x.nbytes for x in one.tensors.values()),
        "total_parameters": sum(x.size for x in one.tensors.values()),
    }


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    from safetensors.numpy import load_file

    mixed = few() | {"half": in_one(np.arange(7, dtype=np.float16)), "scalar": in_one(np.array(2.5, np.float64))}
    write_checkpoint(tmp_path / "m", {}, mixed, {})
    found = load_file(tmp_path / "m" / "model.safetensors")
    assert found.keys() == mixed.keys()
    for name, tensor in mixed.items():
        assert found[name].tobytes() == bits(tensor)
        assert found[name].shape == tensor.shape
    placed = read_header(tmp_path / "m" / "model.safetensors")
    assert all((placed.data_start + e.start) % e.dtype.itemsize == 0 for e in placed.entries.values())


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_write_leaves_nothing(tmp_path, fault):
    def pieces():
        yield np.zeros(3, np.float32)
        raise fault

    broken = few() | {"late": Tensor((9,), np.dtype(np.float32), pieces)}
    with pytest.raises(InputError if isinstance(fault, OSError) else fault):
        write_checkpoint(tmp_path / "m", {}, broken, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [np.zeros(8, np.float32), np.zeros(10, np.float32), np.zeros(9, np.float64)])
def test_a_tensor_that_is_not_as_planned_is_not_written(tmp_path, wrong):
    with pytest.raises(ValueError, match="late"):
        write_checkpoint(tmp_path / "m", {}, {"late": Tensor((9,), np.dtype(np.float32), lambda: [wrong])}, {})
    assert list(tmp_path.iterdir()) == []


SLOW = """
import sys, time
from numgemma.surgery.synth import synth
synth("gemma-4-E2B-it", target=sys.argv[1], scale="tiny", shard=200_000, progress=lambda *_: time.sleep(0.01))
"""


def test_a_killed_write_leaves_nothing_that_loads(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path / "m")])
    while not list(tmp_path.glob(".m.*.partial/model-00005-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "m").exists()
    assert len(list(tmp_path.iterdir())) == 1
    assert loadable(tmp_path) == []
    synth.synth("gemma-4-E2B-it", target=tmp_path / "m", scale="tiny")  # and it does not stand in the way
    assert loadable(tmp_path) == [tmp_path / "m"]


def test_a_target_that_exists_is_replaced_only_by_force_and_only_when_the_new_is_whole(tmp_path):
    old, new = few(1), few(2)
    write_checkpoint(tmp_path / "m", {"old": 1}, old, {"extra": b"x"})
    before = digest(tmp_path / "m")
    with pytest.raises(InputError, match="is there already"):
        write_checkpoint(tmp_path / "m", {}, new, {})
    broken = new | {"late": Tensor((9,), np.dtype(np.float32), lambda: [np.zeros(3, np.float32)])}
    with pytest.raises(ValueError, match="late"):
        write_checkpoint(tmp_path / "m", {}, broken, {}, force=True)
    assert digest(tmp_path / "m") == before
    write_checkpoint(tmp_path / "m", {"new": 1}, new, {}, force=True)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_force_replaces_nothing_but_a_checkpoint(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "m")
    for name in ("m", "file", "link"):
        with pytest.raises(InputError, match="is no checkpoint directory"):
            write_checkpoint(tmp_path / name, {}, few(), {}, force=True)
    (tmp_path / "m" / "config.json").touch()
    for parent in (tmp_path / "m", tmp_path / "m" / "parent"):
        with pytest.raises(InputError, match="would delete"):
            write_checkpoint(tmp_path / "m", {}, few(), {}, force=True, parents=[parent])
    assert (tmp_path / "m" / "thesis.tex").exists()
    with pytest.raises(InputError, match="no such directory"):
        write_checkpoint(tmp_path / "a" / "b", {}, few(), {})


def test_a_disk_too_small_is_told_before_the_first_byte(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: usage(10**12, 0, 10**9))
    untouched = Tensor((10**6, 10**3), np.dtype(np.float32), lambda: pytest.fail("it was written to"))
    with pytest.raises(InputError, match=r"needs 4\.00 GB where 1\.00 GB are free"):
        write_checkpoint(tmp_path / "m", {}, {"large": untouched}, {})
    assert list(tmp_path.iterdir()) == []


def test_memory_holds_a_piece_and_not_a_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "PIECE", 1 << 18)
    made = by_rows((4096, 2048), np.dtype(np.float32), lambda a, b: np.full((b - a, 2048), a, np.float32))
    tracemalloc.start()
    write_checkpoint(tmp_path / "m", {}, {"large": made}, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.nbytes == 1 << 25
    assert peak < 1 << 21
    x = open_checkpoint(tmp_path / "m").weights["large"]
    np.testing.assert_array_equal(x[::32, 0], np.arange(0, 4096, 32))


def resident():
    """Bytes of mapped files in this process's memory."""
    return 1024 * int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_copying_a_mapped_tensor_leaves_its_pages_out_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "PIECE", 1 << 20)
    large = np.random.default_rng(0).random((1 << 11, 1 << 11))
    write_checkpoint(tmp_path / "m", {}, {"a": in_one(np.ones(3)), "large": in_one(large)}, {})
    x = open_checkpoint(tmp_path / "m").weights["large"]
    before, sums = resident(), []
    for piece in copied(x).pieces():
        sums.append(piece.sum())
        assert resident() - before < x.nbytes / 4
    assert len(sums) == 32
    np.testing.assert_array_equal(x, large)  # the pages come back
    assert resident() - before > x.nbytes / 2
    release(x)
    assert resident() - before < x.nbytes / 4
    release(x[100:200])
    release(x[:0])
    release(np.zeros(3))  # of no file: nothing to do
    np.testing.assert_array_equal(x, large)


# the command


def test_stored_names_are_those_of_transformers():
    assert stored_name("norm.weight", "gemma4") == "model.language_model.norm.weight"
    assert stored_name("norm.weight", "gemma4_text") == "model.norm.weight"
    assert stored_name("lm_head.weight", "gemma4") == "lm_head.weight"
    assert stored_name("embed_vision.embedding_projection.weight", "gemma4").startswith("model.embed_vision.")


def test_the_verb_writes_what_inspect_reads(tmp_path, capsys):
    out = tmp_path / "m"
    assert main(["synth", "gemma-4-26B-A4B-it", "--scale", "tiny", "--max-shard-size", "1MB", "-o", str(out)]) == 0
    assert re.search(r"295 tensors, 1,\d{3},\d{3} numbers, 0.003 GB in 3 file\(s\)", capsys.readouterr().out)
    assert main(["inspect", str(out)]) == 0
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [1, 106, 50]
    assert (out / "processor_config.json").read_bytes() == (DATA / "processor" / "gemma4.json").read_bytes()


def test_a_directory_lends_its_config_and_at_full_scale_its_other_files(tmp_path):
    folder = tiny.write(tmp_path / "p", tiny.PLE)
    (folder / "tokenizer.json").write_text("{}")
    synth.synth(str(folder), target=tmp_path / "m", dtype="float32")
    child = numgemma.load(tmp_path / "m")
    assert child.config == numgemma.load(folder).config
    assert (tmp_path / "m" / "tokenizer.json").read_text() == "{}"
    synth.synth(str(folder / "config.json"), target=tmp_path / "n")
    assert not (tmp_path / "n" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no such config.json"),
        (["gemma-4-E2B-it", "--max-shard-size", "much"], "should be a size"),
    ],
)
def test_what_cannot_be_made_ends_in_one_sentence(tmp_path, capsys, arguments, message):
    assert main(["synth", *arguments, "-o", str(tmp_path / "m")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
