"""Dumps in memory and on disk: the same numbers back, and never half a file."""

import json
import os
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import numgemma
from numgemma.dump import Dump, DumpWriter, new_meta, placed
from numgemma.errors import InputError

META = new_meta("test", "0", {"layer_kinds": ["full_attention"]}, [1, 2, 3], "float32")


@pytest.fixture(scope="module")
def dump(models):
    return models["moe"].record(tiny.prompt(tiny.MOE, 12), ["*"], text="once")


def test_a_dump_reads_back_as_it_was(dump, tmp_path):
    dump.save(tmp_path / "d.safetensors")
    back = numgemma.read_dump(tmp_path / "d.safetensors")
    assert list(back) == list(dump)
    assert back.axes == dump.axes
    assert back.meta == dump.meta
    for name in dump:
        assert back[name].dtype == dump[name].dtype
        np.testing.assert_array_equal(back[name], dump[name])


def test_the_file_is_one_that_the_safetensors_library_reads(dump, tmp_path):
    from safetensors import safe_open

    dump.save(tmp_path / "d.safetensors")
    with safe_open(tmp_path / "d.safetensors", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("logits"), dump["logits"])
        assert json.loads(file.metadata()["numgemma"])["schema"] == "numgemma.dump/1"


def test_the_meta_says_what_was_run(dump, models):
    assert dump.meta["ids"] == tiny.prompt(tiny.MOE, 12).tolist()
    assert dump.meta["text"] == "once"
    assert dump.meta["precision"] == "float32"
    assert dump.meta["model"]["layer_kinds"] == tiny.MOE["layer_types"]
    assert dump.meta["model"]["shards"] == models["moe"].checkpoint.header_hashes


@pytest.mark.parametrize("prefill", [None, 1, 4])
def test_a_streamed_file_equals_the_dump_in_memory(models, tmp_path, prefill):
    model, ids = models["ple"], tiny.prompt(tiny.PLE, 12)
    with DumpWriter(tmp_path / "d.safetensors", model.describe(ids, ["*"])) as writer:
        model.record_into(writer, ids, ["*"], prefill=prefill)
    streamed = numgemma.read_dump(tmp_path / "d.safetensors")
    in_memory = model.record(ids, ["*"], prefill=prefill)
    assert list(streamed) == list(in_memory)
    for name in in_memory:
        np.testing.assert_array_equal(streamed[name], in_memory[name], err_msg=name)


def test_a_header_that_outgrows_its_room_is_moved(tmp_path):
    x = np.arange(3, dtype=np.float32)
    with DumpWriter(tmp_path / "d.safetensors", META) as writer:
        for i in range(3000):
            writer.keep(f"layers.{i}.a_rather_long_name_for_a_point", x + i, "T")
    back = numgemma.read_dump(tmp_path / "d.safetensors")
    assert len(back) == 3000
    assert all((back[name] == x + i).all() for i, name in enumerate(back))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=4), st.sampled_from(["<f4", "<f8", "<f2", "b"])
)
def test_any_shape_survives_the_file(tmp_path_factory, shapes, dtype):
    dtype = ml_dtypes.bfloat16 if dtype == "b" else np.dtype(dtype)
    path = tmp_path_factory.mktemp("dumps") / "d.safetensors"
    arrays = {f"p{i}": np.full(shape, i, dtype) for i, shape in enumerate(shapes)}
    Dump(META, arrays, dict.fromkeys(arrays, "D F")).save(path)
    back = numgemma.read_dump(path)
    assert {k: (v.shape, v.tolist()) for k, v in back.items()} == {k: (v.shape, v.tolist()) for k, v in arrays.items()}


def test_a_step_goes_to_its_place_in_the_whole():
    shape, index = placed(np.zeros((2, 3, 5)), "T N H", 4, 10)
    assert shape == (10, 3, 5)
    assert index == (slice(4, 6), slice(None), slice(None))
    shape, index = placed(np.zeros((3, 2, 5)), "N T S", 4, 10)  # five keys, of positions 1 to 5
    assert shape == (3, 10, 10)
    assert index == (slice(None), slice(4, 6), slice(1, 6))


def left_behind(folder):
    return sorted(p.name for p in folder.iterdir())


def write_until(error, path):
    with DumpWriter(path, META) as writer:
        writer.keep("x", np.zeros(3, np.float32), "T")
        raise error


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        write_until(RuntimeError, tmp_path / "d.safetensors")
    assert left_behind(tmp_path) == []


def test_an_interrupted_overwrite_keeps_the_old_file(tmp_path):
    Dump(META, {"x": np.ones(3, np.float32)}, {"x": "T"}).save(tmp_path / "d.safetensors")
    with pytest.raises(KeyboardInterrupt):
        write_until(KeyboardInterrupt, tmp_path / "d.safetensors")
    assert left_behind(tmp_path) == ["d.safetensors"]
    assert numgemma.read_dump(tmp_path / "d.safetensors")["x"].all()


def test_a_killed_run_leaves_no_file_that_loads(tmp_path):
    code = (
        "import sys, time, numpy as np; from numgemma.dump import DumpWriter, new_meta\n"
        "with DumpWriter(sys.argv[1], new_meta('t', '0', {}, [1, 2, 3], 'float32')) as w:\n"
        "    w.keep('x', np.ones((3, 4), np.float32), 'T D'); print('written', flush=True); time.sleep(60)\n"
    )
    out = tmp_path / "d.safetensors"
    run = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE)
    assert run.stdout.readline() == b"written\n"
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    assert not out.exists()
    for name in left_behind(tmp_path):
        with pytest.raises(InputError):
            numgemma.read_dump(tmp_path / name)


def test_where_the_system_cannot_reserve_room_it_is_written(dump, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    dump.save(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(numgemma.read_dump(tmp_path / "d.safetensors")["logits"], dump["logits"])


def test_a_full_disk_is_one_sentence_and_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(
            InputError, match=r"d\.safetensors: cannot be written \(No space left on device\); free some space"
        ),
        DumpWriter(tmp_path / "d.safetensors", META) as writer,
    ):
        writer.keep("x", np.zeros(3, np.float32), "T")
    assert left_behind(tmp_path) == []


def test_a_missing_directory_is_one_sentence(tmp_path):
    with (
        pytest.raises(InputError, match=r"nowhere/d\.safetensors: cannot be written"),
        DumpWriter(tmp_path / "nowhere" / "d.safetensors", META),
    ):
        pass


def test_a_file_that_is_no_dump_is_refused(folders, tmp_path):
    with pytest.raises(InputError, match="is not a dump"):
        numgemma.read_dump(folders["ple"] / "model.safetensors")
    Dump(META | {"schema": "numgemma.dump/9"}, {}, {}).save(tmp_path / "d.safetensors")
    with pytest.raises(InputError, match=r"is a numgemma\.dump/9 file"):
        numgemma.read_dump(tmp_path / "d.safetensors")


def test_a_dump_larger_than_its_buffer_does_not_stay_in_memory(tmp_path):
    """256 MB of points go to disk; the memory of the process stays far below that."""
    code = (
        "import sys, resource, numpy as np; from numgemma.dump import DumpWriter, new_meta\n"
        "x = np.ones((1 << 10, 1 << 12), np.float32)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with DumpWriter(sys.argv[1], new_meta('t', '0', {}, [0] * 1024, 'float32')) as w:\n"
        "    for i in range(16): w.keep(f'x{i}', x, 'T D')\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "d.safetensors"], capture_output=True, check=True)
    assert int(run.stdout) < 100
