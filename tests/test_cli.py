"""The command line, as a user runs it: outputs, exit codes, one sentence per error."""

import json
import re
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file

import numgemma
from numgemma.cli import VERBS, main


@pytest.fixture
def run(capsys):
    """Run a verb; returns (exit code, stdout, stderr)."""

    def call(*words):
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def dumped(run, folders, tmp_path):
    """A dump of the PLE checkpoint on ids 5,6,7,8."""
    out = tmp_path / "a.safetensors"
    assert run("dump", folders["ple"], "--ids", "5,6,7,8", "-o", out)[0] == 0
    return out


def test_help_of_every_verb_names_its_arguments(capsys):
    for name in VERBS:
        verb = import_module(f"numgemma.cli.{name}")
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        assert verb.__doc__.strip().split()[0] in capsys.readouterr().out


def test_inspect_counts_the_bundled_checkpoint(run):
    code, out, _ = run("inspect", "tiny")
    assert code == 0
    assert "total                                2,597,624" in out


def test_inspect_knows_the_official_configs_by_name(run):
    code, out, _ = run("inspect", "gemma-4-E4B-it", "--json")
    found = json.loads(out)
    assert code == 0
    assert len(found["layers"]) == 42
    assert found["parameters"]["total"] + found["parameters"]["buffers"] == 7_941_101_802


def test_inspect_of_an_unknown_name_lists_the_known_ones(run):
    code, _, err = run("inspect", "gemma-5")
    assert code == 2
    assert err.startswith("numgemma: gemma-5: no such checkpoint")
    assert "gemma-4-E4B-it" in err
    assert err.count("\n") == 1


def test_generate_tells_a_story_and_prints_its_ids(run):
    code, out, err = run("generate", "tiny", "--prompt", "Once upon", "--max-new-tokens", "12", "--print-ids")
    text, ids = out.strip().split("\n")
    assert code == 0
    assert text.startswith("Once upon a ")
    model = numgemma.load("tiny")
    assert [int(i) for i in ids.split(",")] == model.generate(model.tokenizer.encode("Once upon"), 12)
    assert "12 tokens" in err


def test_generate_without_a_tokenizer_prints_ids(run, folders):
    code, out, _ = run("generate", folders["moe"], "--ids", "5,6", "--max-new-tokens", "3", "--print-ids")
    assert code == 0
    assert len(out.strip().split(",")) == 3


def test_dump_writes_what_record_returns(run, dumped, models):
    dump = numgemma.read_dump(dumped)
    expected = models["ple"].record([5, 6, 7, 8])
    assert list(dump) == list(expected)
    np.testing.assert_array_equal(dump["logits"], expected["logits"])


def test_dump_keeps_the_points_that_are_asked_for(run, folders, tmp_path):
    out = tmp_path / "x.safetensors"
    globs = ["layers.2.*", "!*.mlp.*", "logits"]
    assert run("dump", folders["ple"], "--ids", "5,6", "--points", *globs, "-o", out)[0] == 0
    names = list(numgemma.read_dump(out))
    assert "layers.2.self_attn.probs" in names
    assert not any(".mlp." in name or name.startswith("layers.1") for name in names)
    assert names[-1] == "logits"


def test_a_dump_through_the_cache_is_the_same(run, folders, dumped, tmp_path):
    out = tmp_path / "b.safetensors"
    assert run("dump", folders["ple"], "--ids", "5,6,7,8", "--prefill", "2", "-o", out)[0] == 0
    code, text, _ = run("diff", dumped, out)
    assert code == 0
    assert text.startswith("SAME")


def test_a_padded_batch_gives_one_dump_per_row(run, folders, models, tmp_path):
    ids = np.array([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]])
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    save_file({"input_ids": ids, "attention_mask": mask}, tmp_path / "in.safetensors")
    code, _, _ = run("dump", folders["ple"], "--inputs", tmp_path / "in.safetensors", "-o", tmp_path / "o.safetensors")
    assert code == 0
    assert sorted(p.name for p in tmp_path.glob("o*")) == ["o.0.safetensors", "o.1.safetensors"]
    for n, row in enumerate([[5, 6, 7], [9, 8, 7, 6, 5]]):
        dump = numgemma.read_dump(tmp_path / f"o.{n}.safetensors")
        assert dump.meta["ids"] == row
        np.testing.assert_array_equal(dump["logits"], models["ple"].logits(row))


def test_one_row_batched_or_not_gives_one_dump(run, folders, tmp_path):
    for shape in ([4], [1, 4]):
        save_file({"input_ids": np.arange(5, 9).reshape(shape)}, tmp_path / "in.safetensors")
        out = tmp_path / "o.safetensors"
        assert run("dump", folders["ple"], "--inputs", tmp_path / "in.safetensors", "-o", out)[0] == 0
        assert numgemma.read_dump(out).meta["ids"] == [5, 6, 7, 8]


def test_diff_finds_a_broken_twin_at_the_layer_where_it_breaks(run, dumped, tmp_path):
    tensors = tiny.random_tensors(tiny.PLE)
    tensors["layers.2.self_attn.q_norm.weight"] += 1
    twin = tiny.write(tmp_path / "twin", tiny.PLE, tensors)
    assert run("dump", twin, "--ids", "5,6,7,8", "-o", tmp_path / "b.safetensors")[0] == 0
    words = ["diff", dumped, tmp_path / "b.safetensors", "--json", tmp_path / "d.json", "--plot", tmp_path / "d.png"]
    code, out, _ = run(*words)
    assert code == 1
    assert out.startswith("DIFFERS first at layers.2.self_attn.q_norm (full attention)")
    found = json.loads((tmp_path / "d.json").read_text())
    assert (found["schema"], found["verdict"]) == ("numgemma.diff/1", "differs")
    assert found["first"] == "layers.2.self_attn.q_norm"
    assert {"name", "state", "rel", "cos", "scale", "worst_token", "worst_channel", "max_abs"} <= set(
        found["points"][0]
    )
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")


def test_diff_of_other_tokens_is_not_comparable(run, folders, dumped, tmp_path):
    assert run("dump", folders["ple"], "--ids", "5,6,7,9", "-o", tmp_path / "b.safetensors")[0] == 0
    code, out, _ = run("diff", dumped, tmp_path / "b.safetensors")
    assert code == 3
    assert "position 3" in out


def test_a_run_that_overflows_names_the_point_and_exits_with_4(run, tmp_path):
    tensors = tiny.random_tensors(tiny.DENSE)
    tensors["layers.1.mlp.down_proj.weight"] *= np.inf
    folder = tiny.write(tmp_path / "inf", tiny.DENSE, tensors)
    code, _, err = run("dump", folder, "--ids", "5,6", "-o", tmp_path / "x.safetensors")
    assert code == 4
    assert "layers.1.mlp.down_proj: first non-finite value" in err
    assert not (tmp_path / "x.safetensors").exists()


def test_an_output_is_never_one_of_the_inputs(run, dumped):
    before = dumped.read_bytes()
    code, out, err = run("diff", dumped, dumped, "--json", dumped)
    assert (code, out) == (2, "")
    assert "would be overwritten" in err
    assert dumped.read_bytes() == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "extra.json"])
def test_no_output_takes_the_place_of_a_file_in_a_checkpoint_that_is_read(run, tmp_path, name):
    folder = tiny.write(tmp_path / "ckpt", tiny.PLE)
    (folder / "extra.json").write_text("{}")
    (tmp_path / "link").symlink_to(folder)
    before = (folder / name).read_bytes()
    for output in (folder / name, tmp_path / "link" / name):
        code, _, err = run("dump", folder, "--ids", "5", "-o", output)
        assert (code, err.count("\n")) == (2, 1)
        assert "choose another --out" in err
    assert (folder / name).read_bytes() == before


def test_an_output_beside_a_checkpoint_may_replace_an_older_one_and_a_new_one_may_lie_in_it(run, tmp_path):
    folder = tiny.write(tmp_path / "ckpt", tiny.PLE)
    for _ in range(2):
        assert run("dump", folder, "--ids", "5", "--points", "norm", "-o", tmp_path / "x.safetensors")[0] == 0
    assert run("dump", folder, "--ids", "5", "--points", "norm", "-o", folder / "new.safetensors")[0] == 0


def test_a_link_in_a_checkpoint_to_a_file_elsewhere_is_part_of_it(run, tmp_path):
    folder = tiny.write(tmp_path / "ckpt", tiny.PLE)
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    before = (tmp_path / "blob").read_bytes()
    assert run("dump", folder, "--ids", "5", "-o", folder / "model.safetensors")[0] == 2
    assert (tmp_path / "blob").read_bytes() == before


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"input_ids": np.zeros((0, 3), np.int64)}, "[rows, tokens]"),
        ({"input_ids": np.full((1, 4), 5), "attention_mask": np.array([[1, 1, 2, 2]])}, "2 is neither"),
        ({"input_ids": np.full((1, 2), 5), "attention_mask": np.array([[0, -1e9]])}, "-1000000000.0 is neither"),
    ],
)
def test_inputs_without_a_row_and_masks_that_say_more_than_padding_are_refused(run, folders, tmp_path, arrays, says):
    save_file(arrays, tmp_path / "i.safetensors")
    code, out, err = run(
        "dump", folders["ple"], "--inputs", tmp_path / "i.safetensors", "-o", tmp_path / "o.safetensors"
    )
    assert (code, out) == (2, "")
    assert "i.safetensors: " in err
    assert says in err


@pytest.mark.parametrize("layers", ["99:0", "0:99", "0:0,0:1", ""])
def test_a_layer_map_of_layers_that_are_not_there_or_of_none_compares_nothing_silently(run, dumped, layers):
    code, out, err = run("diff", dumped, dumped, "--layer-map", layers)
    assert (code, out) == (2, "")
    assert "--layer-map" in err


def test_a_device_is_not_replaced_and_a_link_is_followed(run, folders, tmp_path):
    code, _, err = run("dump", folders["ple"], "--ids", "5", "-o", "/dev/null")
    assert code == 2
    assert "is no file" in err
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "real.safetensors")
    assert run("dump", folders["ple"], "--ids", "5", "-o", tmp_path / "link.safetensors")[0] == 0
    assert (tmp_path / "link.safetensors").is_symlink()
    assert len(numgemma.read_dump(tmp_path / "real.safetensors"))


def test_globs_that_select_nothing_are_refused(run, folders, tmp_path):
    code, _, err = run("dump", folders["ple"], "--ids", "5", "--points", "nothing.*", "-o", tmp_path / "x.safetensors")
    assert code == 2
    assert "selects no point" in err
    assert not list(tmp_path.iterdir())


def test_a_run_beyond_the_models_positions_is_remarked_on(run):
    ids = ",".join(["5"] * 1024)
    one = ("--max-new-tokens", "1")
    assert "1025 tokens, but the model was made for 1024" in run("generate", "tiny", "--ids", ids, *one)[2]
    assert "was made for" not in run("generate", "tiny", "--ids", "5", *one)[2]


def test_a_checkpoint_is_no_dump(run, folders):
    file = folders["ple"] / "model.safetensors"
    code, _, err = run("diff", file, file)
    assert code == 2
    assert "holds weights" in err


ERRORS = {
    "a negative tolerance": (["diff", "a.safetensors", "b.safetensors", "--tolerance", "-1"], "--tolerance is -1"),
    "no checkpoint": (["generate", "nowhere", "--ids", "1"], "nowhere: No such file"),
    "no number": (["generate", "tiny", "--ids", "1,x"], "--ids '1,x'"),
    "outside the vocabulary": (["generate", "tiny", "--ids", "1,4096"], "Token id 4096 is outside"),
    "a hot greedy": (["generate", "tiny", "--ids", "1", "--top-k", "3"], "--temperature above 0"),
    "no dump": (["diff", "a.safetensors", "b.safetensors"], "a.safetensors: No such file"),
    "no room": (
        ["dump", "tiny", "--ids", "1", "-o", "no/where.safetensors"],
        "where.safetensors: cannot be",
    ),
    "a family of its own": (["inspect", "gemma-3-1b-it"], "is Gemma 3, which numgemma does not run yet"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_sentence_and_exit_2(run, case):
    words, message = ERRORS[case]
    code, out, err = run(*words)
    assert code == 2
    assert message in err
    assert err.startswith("numgemma: ")
    assert err.count("\n") == 1
    assert out == ""


BAD_INPUTS = {
    "no ids": {"tokens": np.arange(3)},
    "images": {"input_ids": np.arange(3), "pixel_somethings": np.zeros((1, 2, 3), np.float32)},
    "a mask of another shape": {"input_ids": np.arange(3), "attention_mask": np.ones(4, int)},
    "a mask with a hole": {"input_ids": np.arange(3), "attention_mask": np.array([1, 0, 1])},
    "nothing but padding": {"input_ids": np.arange(3), "attention_mask": np.zeros(3, int)},
    "fractions": {"input_ids": np.ones(3, np.float32)},
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_an_inputs_file_that_cannot_be_run_is_refused(run, folders, tmp_path, case):
    save_file(BAD_INPUTS[case], tmp_path / "in.safetensors")
    code, _, err = run(
        "dump", folders["ple"], "--inputs", tmp_path / "in.safetensors", "-o", tmp_path / "o.safetensors"
    )
    assert code == 2
    assert "in.safetensors" in err


def test_wrong_usage_exits_with_2():
    run = subprocess.run([sys.executable, "-m", "numgemma", "dump"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr


def test_a_closed_pipe_is_no_error(folders):
    code = f"{sys.executable} -m numgemma inspect gemma-4-31B-it | head -1"
    run = subprocess.run(["bash", "-o", "pipefail", "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_the_demo_shows_a_story_a_match_and_a_broken_twin(run, tmp_path):
    code, out, _ = run("demo", "--out", tmp_path)
    assert code == 0
    assert "Once upon a" in out
    verdicts = [line for line in out.splitlines() if line.startswith(("SAME", "DIFFERS"))]
    assert len(verdicts) == 2
    assert verdicts[0].startswith("SAME (150 points)")
    assert verdicts[1].startswith("DIFFERS first at layers.3.self_attn.k_norm (sliding attention)")
    assert (tmp_path / "broken-twin.png").exists()


def test_bench_says_how_fast_and_how_near_the_limits(run, folders):
    words = ["--lengths", "4", "--decode", "2", "--rounds", "1"]
    code, out, _ = run("bench", folders["ple"], *words)
    assert code == 0
    assert "prefill, all layers, 4 tokens" in out
    assert "GB/s reading" in out
    code, out, _ = run("bench", folders["ple"], *words, "--json", "--backend", "numpy")
    found = json.loads(out)
    assert found["schema"] == "numgemma.bench/1"
    assert found["engine"].startswith("numpy")
    assert [row["job"] for row in found["speed"]] == ["prefill", "prefill, all layers", "decode"]
    assert all(row["numgemma"] > 0 for row in found["speed"])
    assert run("bench", folders["ple"], "--rounds", "0")[0] == 2


def test_generate_says_what_computes(run, folders):
    code, _, err = run("generate", folders["ple"], "--ids", "5,6", "--print-ids", "--max-new-tokens", "3", "--verbose")
    assert code == 0
    assert "BLAS" in err
    assert "prompt: 2 tokens" in err


def test_inspect_says_what_a_long_context_takes(run):
    code, out, _ = run("inspect", "gemma-4-E2B-it", "--context", "131072")
    assert code == 0
    assert re.search(r"cache of full layers at 131072 tokens +1\.611 GB", out)  # 3 layers, 1 head, 512, keys and values
    _, memory = out.split("pages\n")
    assert len({len(line) for line in memory.splitlines()}) == 1  # one column, however long a label
    assert 3 * 2 * 512 * 4 * 131072 == 1610612736
    assert run("inspect", "gemma-4-E2B-it", "--context", "0")[0] == 2


def test_a_backend_that_one_command_chose_is_not_the_next_ones(run, folders, tmp_path):
    from numgemma import ops
    from numgemma.ops import threads

    before = ops.chosen(), ops.current(), threads.allowed()
    out = tmp_path / "x.safetensors"
    assert run("dump", folders["ple"], "--ids", "5,6", "--backend", "numba", "--threads", "1", "-o", out)[0] == 0
    assert (ops.chosen(), ops.current(), threads.allowed()) == before


def test_generate_in_float64_runs_on_the_definitions_unless_told_otherwise(run, folders):
    words = ("--ids", "5,6", "--print-ids", "--max-new-tokens", "2", "--verbose", "--precision", "float64")
    assert run("generate", folders["ple"], *words)[2].startswith("numpy")
    assert run("generate", folders["ple"], *words, "--backend", "numba")[2].startswith("numba")
