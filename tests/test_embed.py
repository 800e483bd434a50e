"""The verb `embed` and Model.embed: rows and their bits, words by task, the files of sentence-transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_embedding
from safetensors.numpy import load_file, save_file

import numgemma
from numgemma.cli import main
from numgemma.errors import InputError, NonFiniteError
from numgemma.prompt.tasks import RELEASED, UNTITLED
from numgemma.surgery.synth import synth

TEXTS = ["What is red?", "Mars is the red planet.", "é🦊 日本"]


HOSTILE = Path(__file__).parent / "hostile"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed") / "m"
    synth("embeddinggemma-2", folder, scale="tiny")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return numgemma.load(folder)


@pytest.fixture
def run(capsys):
    """Calls a verb; returns its exit code, what it printed and what it complained of."""

    def call(*words):
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


def fake(folder, tmp_path, **files):
    """The checkpoint beside files of sentence-transformers.  files: name: content; "1_Pooling": of its config.json"""
    here = tmp_path / "st"
    here.mkdir()
    for path in folder.iterdir():
        (here / path.name).symlink_to(path)
    (here / "1_Pooling").mkdir()
    for name, content in files.items():
        place = here / "1_Pooling" / "config.json" if name == "pooling" else here / f"{name}.json"
        place.write_text(json.dumps(content))
    return here


def modules(*kinds, path="1_Pooling"):
    return [{"idx": i, "path": path if kind == "Pooling" else "", "type": f"st.{kind}"} for i, kind in enumerate(kinds)]


STEPS = modules("Transformer", "Pooling", "Normalize")
MEAN = {"word_embedding_dimension": 96, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


# rows


def test_rows_come_in_order_and_no_row_depends_on_the_others(model):
    rows = model.embed(TEXTS, prompt="query")
    assert rows.shape == (3, 96)
    np.testing.assert_allclose((rows * rows).sum(1), 1, 1e-6)
    for row, text in zip(rows, TEXTS, strict=True):
        np.testing.assert_array_equal(model.embed([text], prompt="query")[0], row)
    np.testing.assert_array_equal(model.embed(TEXTS[::-1], prompt="query"), rows[::-1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_bit_of_a_row(model, folder, tmp_path, run, side):
    texts = [model.tokenizer.encode(text) for text in TEXTS]
    longest = max(map(len, texts)) + 2
    ids, mask = np.zeros((3, longest), int), np.zeros((3, longest), int)
    for row, seen, text in zip(ids, mask, texts, strict=True):
        place = slice(longest - len(text), None) if side == "left" else slice(len(text))
        row[place], seen[place] = text, 1
    save_file({"input_ids": ids, "attention_mask": mask}, tmp_path / "batch.safetensors")
    words = ["--backend", "numpy", "-o", tmp_path / "rows.npy"]
    assert run("embed", folder, "--inputs", tmp_path / "batch.safetensors", *words)[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), model.embed(TEXTS))


def test_the_text_stands_between_bos_and_eos_behind_the_words_of_its_task(model, run, folder, tmp_path):
    ids = model.tokenizer.encode("task: search result | query: fox")
    assert (ids[0], ids[-1]) == (2, 1)
    np.testing.assert_array_equal(model.embed(["fox"], prompt="query")[0], model.vector(ids))
    out = tmp_path / "a.npy"
    listed = ",".join(map(str, ids))
    assert run("embed", folder, "--ids", listed, "2,5,1", "-o", out, "--backend", "numpy")[0] == 0
    np.testing.assert_array_equal(np.load(out), [model.vector(ids), model.vector([2, 5, 1])])


@pytest.mark.parametrize("dim", [1, 7, 96])
def test_a_vector_is_cut_first_and_brought_to_length_1_then(model, dim):
    whole, cut = model.embed(TEXTS), model.embed(TEXTS, dim=dim)
    first = whole[:, :dim]
    np.testing.assert_allclose(cut, first / np.linalg.norm(first, axis=1, keepdims=True), 1e-5)


@pytest.mark.parametrize("dim", [0, -1, 97])
def test_a_width_that_the_model_has_not_is_refused(model, dim):
    with pytest.raises(InputError, match=f"A vector of {dim} numbers cannot be cut from the model's 96; give 1 to 96"):
        model.embed(TEXTS, dim=dim)


def test_one_text_by_itself_is_no_list_of_texts(model):
    for nothing in ("abc", []):
        with pytest.raises(InputError, match="embed takes a list of one or more texts"):
            model.embed(nothing)


def test_a_title_takes_the_place_of_none_in_a_document(model):
    assert model.task_words("document", "The red planet") == "title: The red planet | text: "
    assert model.task_words("document") == UNTITLED
    assert model.task_words() == ""
    with pytest.raises(InputError, match="A title is that of a document"):
        model.task_words("query", "x")
    with pytest.raises(InputError, match="'qurey' is no prompt; perhaps query is meant"):
        model.task_words("qurey")


def test_a_vector_that_is_not_finite_is_an_error(tmp_path):
    tensors = tiny.random_tensors(tiny_embedding.TEXT)
    tensors["norm.weight"] = np.full(48, np.inf)
    model = numgemma.load(tiny_embedding.write(tmp_path / "m", tiny_embedding.TEXT, tensors))
    with pytest.raises(NonFiniteError, match="The vector is not finite"):
        model.vector([2, 5, 1])


# the verb


def test_the_verb_writes_the_rows_that_python_gives(folder, tmp_path, run):
    (tmp_path / "texts").write_text("\r\n".join(TEXTS) + "\n", encoding="utf-8")
    for precision, kept in (("float32", "float32"), ("bfloat16", "bfloat16")):
        model = numgemma.load(folder, precision)
        words = ["--precision", precision, "--prompt", "document", "--title", "T", "--dim", 8, "--backend", "numpy"]
        assert run("embed", folder, "--text", *TEXTS, *words, "-o", tmp_path / "a.safetensors")[0] == 0
        assert run("embed", folder, "--text-file", tmp_path / "texts", *words, "-o", tmp_path / "a.npy")[0] == 0
        rows = load_file(tmp_path / "a.safetensors")["vectors"]
        assert (rows.dtype, np.load(tmp_path / "a.npy").dtype) == (kept, "float32")
        np.testing.assert_array_equal(rows, model.embed(TEXTS, "document", "T", 8))
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), rows.astype(np.float32))


def test_the_table_of_cosines_fits_a_narrow_terminal(folder, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    _, said, _ = run("embed", folder, "--text", *"abcdefghij", "--similarity")
    assert max(map(len, said.splitlines())) <= 40
    numbers = [line.split() for line in said.split("\n\n")[0].splitlines()]
    assert numbers[0] == ["1", "2", "3", "4"]
    assert [float(numbers[i][i]) for i in range(1, 5)] == [1.0] * 4
    assert said.split("\n\n")[2].split()[:2] == ["9", "10"]


@pytest.mark.parametrize(
    ("kind", "file"),
    [("image", "picture_rgb.png"), ("audio", "sound_16k.wav"), ("video", "clip_h264.mp4")],
)
def test_a_medium_alone_has_a_vector_and_one_beside_a_text_another(folder, run, tmp_path, kind, file):
    model = numgemma.load(folder)
    out, words = tmp_path / "a.npy", [f"--{kind}", HOSTILE / file, "--backend", "numpy", "--prompt", "query"]
    assert run("embed", folder, *words, "-o", out)[0] == 0
    alone = np.load(out)[0]
    ids, media = model.prompt_ids("", {kind: HOSTILE / file})
    assert (ids[0], ids[-1]) == (2, 1)
    np.testing.assert_array_equal(alone, model.vector(ids, media))  # the words of a task are those of a text
    assert run("embed", folder, *words, "--text", "a fox", "-o", out)[0] == 0
    ids, media = model.prompt_ids("task: search result | query: a fox", {kind: HOSTILE / file})
    np.testing.assert_array_equal(np.load(out)[0], model.vector(ids, media))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--text a", "Nothing is asked for; give -o FILE.npy"),
        ("--text a -o a.txt", "is neither a .npy nor a .safetensors file"),
        ("-o a.npy", "There is nothing to embed; give --text"),
        ("--ids 2,3 --prompt query -o a.npy", "--prompt joins a text; give it with --text"),
        ("--ids 2,3 --image IN/picture_rgb.png -o a.npy", "--image joins a text"),
        ("--ids 2,512 -o a.npy", "Token id 512 is outside the vocabulary"),
        ("--text a b --image IN/picture_rgb.png -o a.npy", "Files join one text, here are 2"),
        ("--text a --prompt nothing -o a.npy", "'nothing' is no prompt; this checkpoint has query"),
        ("--text a --title T -o a.npy", "A title is that of a document"),
        ("--text a --dim 97 -o a.npy", "give 1 to 96"),
        ("--text-file nowhere -o a.npy", "nowhere: No such file"),
        ("--text <|image|> -o a.npy", "1 image placeholders"),
    ],
)
def test_what_cannot_be_embedded_is_one_sentence_and_leaves_no_file(folder, run, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    code, _, told = run("embed", folder, *words.replace("IN", str(HOSTILE)).split())
    assert (code, told.count("\n")) == (2, 1)
    assert said in told
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("lines", "which"), [("a\n\nb\n", 2), ("", 1), ("a\n \t\n", 2)])
def test_an_empty_line_is_named(folder, run, tmp_path, lines, which):
    (tmp_path / "texts").write_text(lines)
    code, _, told = run("embed", folder, "--text-file", tmp_path / "texts", "--similarity")
    assert code == 2
    assert f"line {which} is empty, and each line is a text; remove it." in told


def test_a_text_longer_than_the_model_was_trained_for_is_remarked_on(folder, run, monkeypatch):
    monkeypatch.setattr("numgemma.cli.embed.ADVISED", 4)
    code, _, told = run("embed", folder, "--text", "a b c d", "--similarity")
    assert (code, told) == (0, "numgemma: a text of 9 tokens; the model was trained for 4.\n")


def test_other_verbs_say_that_there_are_no_logits(folder, run, tmp_path):
    for words in (["generate", folder, "--ids", "2,5"], ["score", folder, "--ids", "2,5,6"]):
        code, said, told = run(*words)
        assert (code, said) == (2, "")
        assert told.endswith("; `numgemma embed` gives its vectors.\n")
    code, _, told = run("dump", folder, "--ids", "2,5,6", "--prefill", 2, "-o", tmp_path / "a.safetensors")
    assert (code, told) == (
        2,
        "numgemma: EmbeddingGemma 2 runs a prompt whole, for its tokens see later ones; give no prefill.\n",
    )
    code, _, told = run("embed", "tiny", "--text", "a", "--similarity")
    assert code == 2
    assert "is of Gemma 4, which makes no vector" in told


# the files of sentence-transformers


def test_prompts_are_read_from_the_files_of_sentence_transformers(folder, tmp_path):
    prompts = {"query": "q: ", "mine": "title: none | mine: "}
    told = {"prompts": prompts, "default_prompt_name": "query", "similarity_fn_name": "cosine"}
    model = numgemma.load(fake(folder, tmp_path, modules=STEPS, pooling=MEAN, config_sentence_transformers=told))
    assert model.task_words() == model.task_words("query") == "q: "
    assert model.task_words("mine", "T") == "title: T | mine: "
    with pytest.raises(InputError, match="'STS' is no prompt; this checkpoint has query, mine"):
        model.task_words("STS")
    np.testing.assert_array_equal(model.embed(["a"]), numgemma.load(folder).embed(["q: a"]))


def test_without_those_files_the_prompts_are_those_of_the_release(model):
    assert len(RELEASED) == 20
    assert model.task_words("STS") == "task: sentence similarity | query: "
    assert model.task_words("Retrieval-document") == "title: none | text: "


@pytest.mark.parametrize("pooling", [MEAN, {"embedding_dimension": 96, "pooling_mode": "mean", "include_prompt": True}])
def test_both_spellings_of_the_mean_are_taken(folder, tmp_path, pooling):
    assert numgemma.load(fake(folder, tmp_path, modules=STEPS, pooling=pooling)).embed(["a"]).shape == (1, 96)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"pooling": MEAN | {"pooling_mode_cls_token": True}}, "pools by cls and mean"),
        ({"pooling": {"pooling_mode_cls_token": True}}, "pools by cls; EmbeddingGemma 2 is the mean"),
        ({"pooling": {"pooling_mode": "lasttoken"}}, "pools by lasttoken"),
        ({"pooling": {}}, "pools by nothing"),
        ({"pooling": MEAN | {"include_prompt": False}}, "leaves the prompt out"),
        ({"pooling": MEAN | {"word_embedding_dimension": 768}}, "word_embedding_dimension is 768, the model's vectors"),
        ({"modules": modules("Transformer", "Pooling")}, "lists Transformer, Pooling; numgemma computes"),
        ({"modules": modules("Transformer", "Pooling", "Dense", "Normalize")}, "lists Transformer, Pooling, Dense"),
        ({"modules": modules("Transformer", "Pooling", "Normalize", path="../x")}, "is '../x', which is no folder"),
        ({"modules": {"a": 1}}, "should be list"),
        ({"modules": [1, 2, 3]}, "should be dict"),
        ({"modules": modules("Transformer", "Pooling", "Normalize", path=None)}, "the path of Pooling should be str"),
        ({"config_sentence_transformers": {"prompts": {"query": 3}}}, "prompts, query should be str"),
        ({"config_sentence_transformers": {"prompts": ["query"]}}, "prompts should be dict"),
        ({"config_sentence_transformers": {"prompts": {}, "default_prompt_name": "x"}}, "default_prompt_name is 'x'"),
    ],
)
def test_files_that_contradict_what_is_computed_are_one_sentence(folder, tmp_path, files, said):
    model = numgemma.load(fake(folder, tmp_path, **{"modules": STEPS, "pooling": MEAN} | files))
    with pytest.raises(InputError, match=said.replace("(", r"\(").replace(".", r"\.")) as error:
        model.embed(["a"])
    assert "\n" not in str(error.value)
