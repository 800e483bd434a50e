"""What a user's files can get wrong ends in one sentence; what is right is read without a copy."""

import contextlib
import json
import os
import sys
import tempfile
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from numgemma.checkpoint import check_tensors, open_checkpoint, short_name
from numgemma.errors import InputError
from numgemma.weights.safetensors import DTYPES, open_safetensors, read_header

CODES = {dtype: code for code, dtype in DTYPES.items()}


def pack(header, data=b""):
    """The bytes of a safetensors file with this header (an object, or raw bytes that need not be one)."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def file_of(tensors, **metadata):
    """Tensors end to end without padding, in the order given."""
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, array in tensors.items():
        header[name] = entry(CODES[array.dtype], list(array.shape), len(data), len(data) + array.nbytes)
        data += array.tobytes()
    return pack(header, data)


def tensor_file(*names):
    return file_of({name: np.ones(1, np.float32) for name in names})


def write(path, tensors):
    path.write_bytes(file_of(tensors))
    return path


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


ONE, TWO, INDEX = "m-1.safetensors", "m-2.safetensors", "model.safetensors.index.json"
WHOLE = {"model.safetensors": tensor_file("a"), "config.json": b"{}"}


def whole(**changed):
    """The files of a checkpoint, some of them (config, generation_config) replaced."""
    return WHOLE | {f"{name}.json": content for name, content in changed.items()}


def shards(weight_map, index=None):
    """Tensor a in m-1, b in m-2, and an index that may say otherwise."""
    index = index or json.dumps({"weight_map": weight_map}).encode()
    return {ONE: tensor_file("a"), TWO: tensor_file("b"), INDEX: index, "config.json": b"{}"}


def opened(folder, *names):
    return open_checkpoint(write_files(folder, WHOLE | {"model.safetensors": tensor_file(*names)})).weights


def assert_says(message, *words):
    assert "\n" not in message
    assert "; " in message, "the next step follows a semicolon"
    assert message.endswith(".")
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"


# one file


def test_a_file_of_the_safetensors_library_reads_the_same(tmp_path):
    tensors = {code: np.arange(6).astype(dtype).reshape(3, 2) for code, dtype in DTYPES.items()}
    tensors |= {"scalar": np.array(2.0, ml_dtypes.bfloat16), "empty": np.zeros((3, 0, 2)), "last": np.ones(0)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"key": "ü"})
    back, metadata, _ = open_safetensors(tmp_path / "a.safetensors")
    assert metadata == {"key": "ü"}
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(back[name], array)


def test_tensors_are_read_only_views_on_one_map(tmp_path):
    back = open_safetensors(write(tmp_path / "a.safetensors", {"a": np.ones(3), "b": np.ones((2, 2))})).tensors
    owners = set()
    for array in back.values():
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        while isinstance(array.base, np.ndarray):
            array = array.base
        owners.add(id(array.base))
    assert len(owners) == 1


@pytest.mark.parametrize("code", ["BF16", "F16", "F32", "F64", "I64"])
def test_a_tensor_at_an_odd_byte_computes_like_any_other(tmp_path, code):
    array = np.arange(1, 7).astype(DTYPES[code]).reshape(2, 3)
    for pad in range(1, 9):
        path = write(tmp_path / f"{pad}.safetensors", {"pad": np.ones(pad, np.uint8), "x": array})
        x = open_safetensors(path).tensors["x"]
        np.testing.assert_array_equal(x * x + x, array * array + array)
        np.testing.assert_array_equal(x @ x.T, array @ array.T)
        np.testing.assert_array_equal(x.astype(np.float64), array.astype(np.float64))


def test_the_header_hash_follows_the_header_and_not_the_data(tmp_path):
    x, other, longer = (write(tmp_path / str(i), {"x": y}) for i, y in enumerate([np.ones(2), np.zeros(2), np.ones(3)]))
    assert read_header(x).sha256 == read_header(other).sha256 == open_safetensors(x).header_hash
    assert read_header(x).sha256 != read_header(longer).sha256


def test_ten_gigabytes_open_without_reading_the_data(tmp_path):
    resource = pytest.importorskip("resource")
    count, size = 2000, 10 * 2**30 // 2000 // 2 * 2
    header = {f"model.layers.{i}.weight": entry("BF16", [size // 2], i * size, (i + 1) * size) for i in range(count)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack(header))
    with contextlib.suppress(OSError):
        os.truncate(path, path.stat().st_size + count * size)
    if not path.stat().st_blocks * 512 < 2**27 < path.stat().st_size:
        pytest.skip("the file system has no sparse files")
    (tmp_path / "config.json").write_text("{}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    weights = open_checkpoint(tmp_path).weights
    allocated = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert weights["layers.1999.weight"].nbytes == size
    assert allocated < 50e6
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 200e6


# one broken file

EIGHT = bytes(8)


def one(kind="F32", shape=(2,), start=0, stop=8, data=EIGHT):
    return pack({"a": entry(kind, shape, start, stop)}, data)


def two(start):
    return pack({"a": entry("U8", [4], 0, 4), "b": entry("F32", [1], start, start + 4)}, bytes(start + 4))


def without(field):
    return pack({"a": {key: value for key, value in entry("F32", [2], 0, 8).items() if key != field}}, EIGHT)


MILLION = b"{%s}" % b",".join(b'"%d":{"data_offsets":[0,0]}' % i for i in range(10**6))
DEEP = b'{"a":{"dtype":%s,"shape":[],"data_offsets":[0,0]}}' % (b"[" * 400 + b"]" * 400)
BROKEN = {
    "an empty file": (b"", "not a safetensors file", "cut off"),
    "shorter than eight bytes": (b"\x02\0\0", "not a safetensors file", "download it again"),
    "a length above the file's": (b"\xff" + bytes(7) + b"{}", "cut off in its header", "download it again"),
    "an absurd length": (b"\xff" * 8 + b"{}", "not a safetensors file", "convert it"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "a zip of pickles": (b"PK\x03\x04\0\0\x08\x08" + bytes(4000), "not a safetensors file", "convert it"),
    "header is not JSON": (pack(b"{'a': 1}"), "header is not JSON", "download"),
    "header is not UTF-8": (pack(b'{"\xff": 1}'), "header is not JSON", "utf-8"),
    "header is no object": (pack(b"[1, 2]"), "header is not a JSON object"),
    "header is empty": (pack(b""), "header is not JSON"),
    "header is nested too deeply": (pack(b'{"a":' + b"[" * 100_000), "header is not JSON"),
    "a number of too many digits": (pack(b'{"a":' + b"9" * 10_000 + b"}"), "header is not JSON"),
    "a million tensors": (pack(MILLION), "more than 100000 tensors", "shards"),
    "a tensor twice": (pack(b'{"a":{"dtype":"U8"},"a":{"dtype":"U8"}}'), "'a'", "twice"),
    "a field twice": (pack(b'{"a":{"dtype":"U8","dtype":"I8"}}'), "'dtype'", "twice"),
    "metadata that is no object": (pack({"__metadata__": [1]}), "__metadata__"),
    "metadata that is no string": (pack({"__metadata__": {"a": 1}}), "__metadata__"),
    "an entry that is no object": (pack({"a": "dtype"}), "'a'", "lacks"),
    "an entry without dtype": (without("dtype"), "'a'", "lacks"),
    "an entry without shape": (without("shape"), "'a'", "lacks"),
    "an entry without offsets": (without("data_offsets"), "'a'", "lacks"),
    "three offsets": (pack({"a": entry("F32", [2], 0, 8) | {"data_offsets": [0, 4, 8]}}, EIGHT), "'a'", "lacks"),
    "an unknown dtype": (one("F4", [8]), "'a'", "'F4'", "convert it to BF16"),
    "a dtype that is no string": (one(["F32"]), "'a'", "dtype"),
    "a dtype too deep to print": (pack(DEEP), "'a' has dtype"),
    "a shape that is no list": (one(shape=2), "'a'", "impossible shape"),
    "a negative size": (one(shape=[-1, -2]), "'a'", "impossible shape", "-1"),
    "a size that is no integer": (one(shape=[2.0]), "'a'", "impossible shape"),
    "a size that is a bool": (one("F64", [True]), "'a'", "impossible shape"),
    "a size above 64 bits": (one(shape=[2**64, 0], stop=0), "'a'", "impossible shape"),
    "sizes that overflow": (one(shape=[2**40, 2**40], stop=0), "'a'", "impossible shape"),
    "an empty shape that overflows": (one(shape=[0, 2**62], stop=0), "'a'", "impossible shape"),
    "too many axes": (one("F64", [1] * 65), "'a'", "impossible shape"),
    "negative offsets": (one(start=-8, stop=0), "'a'", "impossible data_offsets"),
    "offsets in reverse": (one(start=8, stop=0), "'a'", "impossible data_offsets"),
    "offsets that are no integers": (one(start=0.0, stop=8.0), "'a'", "impossible data_offsets"),
    "bytes that disagree with the shape": (one(shape=[3]), "'a'", "8 bytes", "needs 12"),
    "data cut short": (one(data=bytes(5)), "cut short", "5 of 8 bytes", "download"),
    "offsets past the end": (one(start=8, stop=16), "'a'", "hole"),
    "overlapping tensors": (two(2), "'b'", "overlaps"),
    "a hole between tensors": (two(6), "'b'", "hole"),
    "bytes after the last tensor": (one(shape=[1], stop=4), "4 bytes after its last tensor"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_named_with_its_fault_and_the_next_step(tmp_path, fault):
    content, *words = BROKEN[fault]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    for reader in (read_header, open_safetensors, open_checkpoint):
        with pytest.raises(InputError) as caught:
            reader(path)
        assert_says(str(caught.value), str(path), *words)
        assert len(str(caught.value)) < 600


def test_what_cannot_be_opened_is_named(tmp_path):
    for path in (tmp_path / "absent", tmp_path / "absent.safetensors", tmp_path):
        for reader in (read_header, open_safetensors, open_checkpoint)[: 2 if path.is_dir() else 3]:
            with pytest.raises(InputError) as caught:
                reader(path)
            assert_says(str(caught.value), str(path), "check the path")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_what_may_not_be_read_is_named(tmp_path):
    write_files(tmp_path, WHOLE)
    (tmp_path / "model.safetensors").chmod(0)
    with pytest.raises(InputError) as caught:
        open_checkpoint(tmp_path)
    assert_says(str(caught.value), "model.safetensors", "Permission denied", "permissions")


SMALL = {"model.norm.weight": np.ones(3), "layers.0.k": np.ones((2, 2), ml_dtypes.bfloat16), "ids": np.arange(3)}


def loads_or_says_why(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        path.write_bytes(content)
        try:
            tensors = open_safetensors(path).tensors
        except InputError as error:
            assert_says(str(error), str(path))
        else:
            assert sum(array.copy().nbytes for array in tensors.values()) <= len(content)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damage_anywhere_in_a_file_is_an_input_error_or_harmless(data):
    content = bytearray(file_of(SMALL, key="value"))
    positions = st.integers(0, len(content) - 1)
    for position, byte in data.draw(st.lists(st.tuples(positions, st.integers(0, 255)), max_size=4)):
        content[position] = byte
    loads_or_says_why(bytes(content[: data.draw(st.just(None) | positions)]))


KINDS = st.sampled_from([*DTYPES, "F8_E4M3"])
NUMBERS = st.sampled_from([0, 1, 2, 4, 8, -1, 2**31, 2**62, 2**63, 10**30, 1.5, True, None, "4"])
JSON = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner))
FIELDS = {
    "dtype": KINDS | JSON,
    "shape": st.lists(NUMBERS, max_size=3) | JSON,
    "data_offsets": st.tuples(NUMBERS, NUMBERS),
}
ENTRIES = st.fixed_dictionaries(FIELDS) | st.fixed_dictionaries({}, optional=FIELDS) | JSON


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRIES), st.binary(max_size=8))
def test_a_header_of_anything_is_an_input_error_or_true(header, data):
    loads_or_says_why(pack(header, data))


# a checkpoint


@pytest.mark.parametrize("prefix", ["", "model.", "language_model.", "model.language_model.", "language_model.model."])
def test_a_name_loses_its_prefix_and_nothing_else(prefix):
    for name in ("layers.3.mlp.up_proj.weight", "lm_head.weight", "vision_tower.model.x", "modelling.weight"):
        assert short_name(prefix + name) == name


def test_a_directory_and_its_file_open_alike(tmp_path):
    write_files(tmp_path, whole(config=b'{"model_type": "gemma4"}', generation_config=b'{"top_k": 64}'))
    for path in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        checkpoint = open_checkpoint(path)
        assert checkpoint.config == {"model_type": "gemma4"}
        assert checkpoint.generation_config == {"top_k": 64}
        assert checkpoint.folder == tmp_path
        assert list(checkpoint.weights) == ["a"]
        assert checkpoint.header_hashes == {"model.safetensors": read_header(tmp_path / "model.safetensors").sha256}


def test_shards_join_to_one_tree(tmp_path):
    checkpoint = open_checkpoint(write_files(tmp_path, shards({"a": ONE, "b": TWO})))
    assert list(checkpoint.weights) == ["a", "b"]
    assert list(checkpoint.header_hashes) == [ONE, TWO]
    assert checkpoint.generation_config is None


def test_a_scope_is_a_dotted_path_of_the_full_name(tmp_path):
    weights = opened(tmp_path, "layers.3.self_attn.q_proj.weight", "layers.31.layer_scalar")
    inner = weights.at("layers.3").at("self_attn")
    assert inner["q_proj.weight"] is weights.at("layers.3.self_attn")["q_proj.weight"]
    assert "q_proj.weight" in inner
    assert "k_proj.weight" not in inner
    assert list(weights.at("layers.3")) == ["self_attn.q_proj.weight"]


def test_a_tensor_that_is_not_there_is_named_in_full(tmp_path):
    inner = opened(tmp_path, "model.norm.weight").at("layers.0")
    with pytest.raises(InputError) as caught:
        inner["layer_scalar"]
    assert_says(str(caught.value), str(tmp_path), "'layers.0.layer_scalar'", "config.json")


TWINS = tensor_file("a", "model.a")
BROKEN_CHECKPOINTS = {
    "an empty directory": ({}, "has neither model.safetensors", "name the .safetensors file"),
    "only a pickle": ({"pytorch_model.bin": b"\x80\x04"}, "pytorch_model.bin", "not unpickled", "convert it"),
    "only a file of another name": ({"adapter.safetensors": b""}, "has neither", "name the .safetensors file"),
    "no config.json": ({"model.safetensors": tensor_file("a")}, "config.json", "No such file", "copy config.json"),
    "config.json is not JSON": (whole(config=b"{,}"), "config.json", "not JSON"),
    "config.json is not UTF-8": (whole(config=b"\xff\xfe{}"), "config.json", "not JSON"),
    "config.json is no object": (whole(config=b"[]"), "config.json", "not a JSON object"),
    "config.json says a key twice": (whole(config=b'{"a":1,"a":2}'), "config.json", "'a'", "twice"),
    "config.json is nested too deeply": (whole(config=b"[" * 100_000), "config.json", "not JSON"),
    "generation_config.json is not JSON": (whole(generation_config=b"{"), "generation_config.json", "not JSON"),
    "two names for one tensor": (WHOLE | {"model.safetensors": TWINS}, "'a' and 'model.a' are both 'a'", "remove"),
    "a shard is missing": (shards({"a": ONE, "b": "m-3.safetensors"}), "m-3.safetensors", "No such file", "download"),
    "an index that is not JSON": (shards({}, b"{"), INDEX, "not JSON", "download"),
    "an index that is no object": (shards({}, b"[]"), INDEX, "not a JSON object"),
    "an index without a map": (shards({}, b"{}"), INDEX, "no weight_map"),
    "an index with an empty map": (shards({}), INDEX, "no weight_map"),
    "an index with a list for a map": (shards(["a"]), INDEX, "no weight_map"),
    "a shard that is no string": (shards({"a": [1]}), INDEX, "[1]"),
    "a shard in another directory": (shards({"a": f"../{ONE}"}), INDEX, f"'../{ONE}'", "not the name"),
    "a shard at an absolute path": (shards({"a": f"/{ONE}"}), INDEX, f"'/{ONE}'", "not the name"),
    "a shard behind a backslash": (shards({"a": f"..\\{ONE}"}), INDEX, ONE, "not the name"),
    "a shard that is the parent": (shards({"a": ".."}), INDEX, "'..'", "not the name"),
    "a shard with a null byte": (shards({"a": "m\0.safetensors"}), INDEX, "not the name"),
    "a shard that is a pickle": (shards({"a": "m.bin"}), INDEX, "'m.bin'", "not the name"),
    "a tensor that no shard has": (shards({"a": ONE, "b": TWO, "c": TWO}), f"'c' is listed for, but not in, {TWO}"),
    "a tensor that no list has": (shards({"a": ONE, "c": TWO}), INDEX, f"'b' is in, but not listed for, {TWO}"),
    "tensors in another shard": (shards({"a": TWO, "b": ONE}), INDEX, f"'a' is in, but not listed for, {ONE}"),
}


@pytest.mark.parametrize("fault", BROKEN_CHECKPOINTS)
def test_a_broken_checkpoint_is_named_with_its_fault_and_the_next_step(tmp_path, fault):
    files, *words = BROKEN_CHECKPOINTS[fault]
    with pytest.raises(InputError) as caught:
        open_checkpoint(write_files(tmp_path, files))
    assert_says(str(caught.value), str(tmp_path), *words)


# what a model expects


def test_tensors_that_are_all_expected_or_ignored_pass(tmp_path):
    weights = opened(tmp_path, "norm.weight", "layers.0.k_proj.weight", "vision_tower.a")
    ignored = [r"layers\.0\.k_proj\.weight", r"vision_tower\..*"]
    check_tensors(weights, {"norm.weight": (1,)}, ignored)
    check_tensors(weights.at("layers.0"), {"k_proj.weight": (1,)})


UNFIT = {
    "missing: 1 ('c')": {"a": [1], "b": [1], "c": [1]},
    "missing: 4 ('c', 'd', 'e', ...)": {name: [1] for name in "abcdef"},
    "of the wrong shape: 1 ('b' is [1], not [2, 3])": {"a": [1], "b": [2, 3]},
    "read by nobody: 1 ('b')": {"a": [1]},
    "read by nobody: 2 ('a', 'b')": {},
    "missing: 1 ('c'); tensors read by nobody: 1 ('b')": {"a": [1], "c": [1]},
}


@pytest.mark.parametrize("fault", UNFIT)
def test_tensors_that_do_not_fit_the_model_are_named(tmp_path, fault):
    weights = opened(tmp_path, "a", "b")
    with pytest.raises(InputError) as caught:
        check_tensors(weights, UNFIT[fault], [r"aa|b.+"])
    assert_says(str(caught.value), f"{tmp_path}: tensors {fault}; ", "config.json")


def test_the_samples_of_the_weights_tell_equal_headers_apart(tmp_path):
    folders = [tiny.write(tmp_path / str(seed), tiny.MOE, tiny.random_tensors(tiny.MOE, seed)) for seed in (1, 1, 2)]
    first, again, other = map(open_checkpoint, folders)
    assert first.samples == again.samples
    assert not first.samples.items() & other.samples.items()
    assert first.header_hashes == other.header_hashes
