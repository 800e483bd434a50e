"""A chat on the command line, and where an answer stops."""

import pytest
import tiny
import tiny_tokenizer
from test_chat import HELLO, SOURCES, WEATHER, write

import numgemma
from numgemma import cli
from numgemma.prompt.chat import render_chat
from numgemma.prompt.tokenizer import open_tokenizer

END_TURN = 106


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model that runs, with a tokenizer and a template."""
    raw = tiny.PLE | {"vocab_size": 640, "vocab_size_per_layer_input": 640, "eos_token_id": [1, 106]}
    folder = tiny.write(tmp_path_factory.mktemp("checkpoint"), raw)
    return tiny_tokenizer.write(folder, SOURCES["small"], bos=True)


def test_a_chat_runs_on_the_command_line_as_its_ids_do(checkpoint, tmp_path, capsys):
    path = write(tmp_path / "prompt.chat.json", HELLO)
    ids = open_tokenizer(checkpoint).encode_chat(HELLO, tools=[WEATHER], thinking=True)
    options = ["--chat", path, "--tools", write(tmp_path / "t.json", [WEATHER]), "--thinking"]
    assert cli.main(["dump", str(checkpoint), *options, "--points", "norm", "-o", str(tmp_path / "a.safetensors")]) == 0
    dump = numgemma.read_dump(tmp_path / "a.safetensors")
    assert dump.meta["ids"] == ids
    assert dump.meta["text"] == render_chat(checkpoint, HELLO, tools=[WEATHER], thinking=True)
    capsys.readouterr()


def test_a_chat_prints_the_answer_alone(checkpoint, tmp_path, capsys):
    path = write(tmp_path / "prompt.chat.json", HELLO)
    tokenizer = open_tokenizer(checkpoint)
    new = numgemma.load(checkpoint).generate(tokenizer.encode_chat(HELLO), 8)
    common = ["generate", str(checkpoint), "--chat", path, "--max-new-tokens", "8"]
    assert cli.main(common) == 0
    assert capsys.readouterr().out == tokenizer.decode(new) + "\n"
    assert cli.main([*common, "--show-special"]) == 0
    assert capsys.readouterr().out == tokenizer.decode(new, special=True) + "\n"


def test_generation_stops_at_each_of_the_released_stop_ids(checkpoint, tmp_path):
    ids = open_tokenizer(checkpoint).encode_chat(HELLO)
    free = numgemma.load(checkpoint).generate(ids, 30, ignore_eos=True)
    assert not {1, 50, END_TURN} & set(free)  # so that only what follows can stop it
    for stop in (1, 50, END_TURN):
        model = numgemma.load(with_generation(checkpoint, tmp_path / str(stop), [i for i in range(640) if i != stop]))
        assert model.stop_ids == {1, 50, END_TURN}
        assert model.generate(ids, 5) == [stop]
        assert model.generate(ids, 5, ignore_eos=True) == [stop] * 5


def with_generation(checkpoint, folder, suppress):
    """The checkpoint with the released stop ids, and some tokens that are never chosen."""
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "generation_config.json").unlink()
    write(folder / "generation_config.json", {"eos_token_id": [1, 106, 50], "suppress_tokens": suppress})
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--chat", "none.json"], "none.json: No such file"),
        (["--prompt", "Hello", "--thinking"], "--thinking is an option of --chat"),
        (["--ids", "2,3", "--tools", "t.json"], "--tools is an option of --chat"),
        (["--ids", "2,3", "--template", "default"], "--template is an option of --chat"),
    ],
)
def test_wrong_use_exits_with_2_and_one_sentence(checkpoint, capsys, options, said):
    assert cli.main(["generate", str(checkpoint), *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("source", "said"),
    [("{% for %}", "line 1 of the template"), ("{{ raise_exception('no') }}", "says: no"), ("", "The prompt is empty")],
)
def test_a_template_that_fails_exits_with_2_and_one_sentence(checkpoint, tmp_path, capsys, source, said):
    options = ["--chat", write(tmp_path / "c.json", HELLO), "--template", write(tmp_path / "t.jinja", source)]
    assert cli.main(["generate", str(checkpoint), *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_template_without_bos_is_remarked_upon(checkpoint, tmp_path, capsys):
    options = ["--chat", write(tmp_path / "c.json", HELLO), "--template", write(tmp_path / "t.jinja", "Hello")]
    assert cli.main(["generate", str(checkpoint), *options, "--max-new-tokens", "1"]) == 0
    assert "the template put no <bos> (2)" in capsys.readouterr().err
