"""Other people's files that no map is needed for: lists of hidden states, golden logits, a last token alone."""

import json

import numpy as np
import pytest
import tiny

import numgemma
from numgemma.cli import main
from numgemma.debug.compare.diff import diff, verdict
from numgemma.debug.readers import read_any
from numgemma.errors import InputError

IDS = [5, 9, 17, 42, 3, 101, 77]
STREAMS = ("embed_tokens", *(f"layers.{i}.out" for i in range(5)), "norm")  # as Transformers lists them


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return numgemma.load(tiny.write(tmp_path_factory.mktemp("foreign") / "m", tiny.TEXT))


@pytest.fixture(scope="module")
def truth(model):
    return model.record(IDS)


def states(truth):
    return [truth[name][None] for name in STREAMS]


def saved_as_stack(truth, folder):
    np.savez(folder / "hs.npz", hidden_states=np.stack(states(truth)), input_ids=np.array([IDS]))
    return folder / "hs.npz"


def saved_as_bare_stack(truth, folder):
    np.savez(folder / "bare.npz", np.stack(states(truth)))
    return folder / "bare.npz"


def saved_as_files(truth, folder):
    (folder / "hs").mkdir()
    for i, x in enumerate(states(truth)):
        np.save(folder / "hs" / f"hidden_states_{i}.npy", x)
    return folder / "hs"


def saved_under_names(truth, folder):
    np.savez(folder / "n.npz", **{f"hidden_states.{i}": x for i, x in enumerate(states(truth))})
    return folder / "n.npz"


@pytest.mark.parametrize("saved", [saved_as_stack, saved_as_bare_stack, saved_as_files, saved_under_names])
def test_hidden_states_are_recognised_without_a_map(model, truth, tmp_path, saved):
    dump = read_any(saved(truth, tmp_path), config=model.outline)
    assert list(dump) == list(STREAMS)
    found = diff(truth, dump)
    assert found.verdict == "same"
    assert len(found.points) == len(STREAMS)


def test_a_tuple_of_hidden_states_in_a_torch_file_is_recognised(truth, tmp_path):
    torch = pytest.importorskip("torch")
    tuples = tuple(torch.from_numpy(x.copy()) for x in states(truth))
    for name, value in (("bare.pt", tuples), ("named.pt", {"hidden_states": tuples, "logits": tuples[0]})):
        torch.save(value, tmp_path / name)
        assert diff(truth, read_any(tmp_path / name)).points[0].name == "embed_tokens"
        assert list(read_any(tmp_path / name))[:7] == list(STREAMS)


def test_a_list_of_hidden_states_without_the_embeddings_is_off_by_one(model, truth, tmp_path):
    np.savez(tmp_path / "x.npz", np.stack(states(truth)[1:]))
    with pytest.raises(InputError, match=r"holds 6 hidden states, and 6 layers make 7.*off by one"):
        read_any(tmp_path / "x.npz", config=model.outline)


def test_a_map_that_counts_the_embeddings_as_a_layer_is_told_so(model, truth, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", **{f"hidden_states.{i}": x for i, x in enumerate(states(truth))})
    (tmp_path / "map.json").write_text('{"hidden_states.{i}": "layers.{i}.out"}')
    words = [str(model.checkpoint.folder), str(tmp_path / "x.npz"), "--map", str(tmp_path / "map.json")]
    for verb in ("replay", "whatif"):
        assert main([verb, *words, "--ids", ",".join(map(str, IDS))]) == 2
        said = capsys.readouterr().err
        assert "layers.6.out, which is no point of a model of 6 layers; the list is off by one" in said


def golden(truth, tmp_path, **record):
    (tmp_path / "golden.jsonl").write_text(json.dumps({"tokens": IDS} | record) + "\n")
    return read_any(tmp_path / "golden.jsonl")


def test_golden_logits_are_read_from_a_line_of_json(truth, tmp_path):
    rounded = np.round(truth["logits"].astype(float), 5).tolist()
    assert diff(truth, golden(truth, tmp_path, prompt="", logits=rounded)).verdict == "same"
    rounded[3][7] += 0.5
    assert diff(truth, golden(truth, tmp_path, prompt="", logits=rounded)).first == "logits"


def log_probabilities(truth):
    x = truth["logits"].astype(float)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_the_likeliest_tokens_of_vllm_are_compared_with_our_logits(truth, tmp_path):
    table = log_probabilities(truth)
    rows = [{str(i): {"logprob": row[i], "rank": 1} for i in np.argsort(-row)[:4]} for row in table[:-1]]
    found = diff(truth, golden(truth, tmp_path, prompt_logprobs=[None, *rows]))
    assert (found.verdict, [p.name for p in found.points]) == ("same", ["top_ids", "top_logprobs"])
    for entry in rows[2].values():
        entry["logprob"] -= 0.3
    assert diff(truth, golden(truth, tmp_path, prompt_logprobs=[None, *rows])).first == "top_logprobs"


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('{"tokens": [1]}\n{"tokens": [2]}', "holds 2 prompts"),
        ('{"tokens": [1, 2]}', "no logits or prompt_logprobs"),
        ('{"logits": [[1.0]]}', "has no token ids"),
        ('{"tokens": [1, 2], "logits": [[1.0], "x"]}', "no array of numbers"),
        ('{"tokens": [1, 2], "prompt_logprobs": [null, {"3": "x"}]}', "token id -> logprob"),
        ('{"tokens": [1.5, 2], "logits": [[1.0], [2.0]]}', "should be integers"),
        ('{"tokens": ["1", "2"], "logits": [[1.0], [2.0]]}', "should be integers"),
        ('{"tokens": [1, 2], "prompt_logprobs": [null, {"3": 1' + 400 * "0" + "}]}", "token id -> logprob"),
        ('{"tokens": [1, 2], "prompt_logprobs": [null, {"1' + 30 * "0" + '": -0.5}]}', "token id -> logprob"),
        ('{"tokens": [1, 2], "prompt_logprobs": [null, {"-3": -0.5}]}', "token id -> logprob"),
        ("{", "is no JSON"),
    ],
)
def test_golden_files_that_cannot_be_used_are_one_sentence(tmp_path, text, fragment):
    (tmp_path / "g.jsonl").write_text(text)
    with pytest.raises(InputError, match=fragment):
        read_any(tmp_path / "g.jsonl")


@pytest.mark.parametrize("row", [lambda x: x[-1], lambda x: x[-1:], lambda x: x[None, -1:]])
def test_the_logits_of_the_last_token_alone_are_compared_on_that_token(model, truth, tmp_path, row):
    np.savez(tmp_path / "x.npz", logits=row(truth["logits"]))
    found = diff(truth, read_any(tmp_path / "x.npz"))
    assert (found.verdict, len(found.points)) == ("same", 1)
    np.savez(tmp_path / "y.npz", logits=row(truth["logits"][:-1]))
    found = diff(truth, read_any(tmp_path / "y.npz"))
    assert found.verdict == "differs"
    assert found.points[0].worst_token_at == [len(IDS) - 1]


def test_a_transposed_tensor_is_named(model, truth, tmp_path):
    np.savez(tmp_path / "x.npz", **{"layers.0.out": truth["layers.0.out"].T, "norm": truth["norm"]})
    assert "layers.0.out: shape [7, 48] in A and [48, 7] in B: transposed" in said_of(truth, tmp_path / "x.npz")


def said_of(truth, path):
    found = diff(truth, read_any(path))
    return f"{found.first}: {found.points[0].reason}" if found.first else verdict(found)


def test_a_log_in_utf_16_is_read(tmp_path):
    line = "common_debug_cb_eval:               l_out-0 = (f32) ADD(x{2, 1, 1, 1}, y{2, 1, 1, 1}}) = {2, 1, 1, 1}\n"
    rows = "[\n [\n  [      0.1000,      0.2000],\n ],\n]\n sum = 0.300000\n"
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "log.txt").write_text(line + rows, encoding=encoding)
        np.testing.assert_allclose(read_any(tmp_path / "log.txt")["layers.0.out"].ravel(), [0.1, 0.2], rtol=1e-6)


def test_a_dump_is_not_written_under_a_name_that_means_another_format(tmp_path, capsys):
    assert main(["dump", "tiny", "--ids", "2,3", "-o", str(tmp_path / "x.npz")]) == 2
    assert "a dump is a safetensors file, not .npz" in capsys.readouterr().err
