"""A chat to text and to ids: the shape of Gemma's templates, where they stand, and every way to give a chat wrong.

Transformers' own rendering of the same templates is compared in test_hf_chat.py.
"""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny_tokenizer

from numgemma.errors import InputError
from numgemma.prompt import chat
from numgemma.prompt.chat import attachments, read_chat, render_chat, special_tokens
from numgemma.prompt.tokenizer import open_tokenizer

TEMPLATES = Path(__file__).parent / "templates"
SOURCES = {path.stem: path.read_text() for path in TEMPLATES.glob("*.jinja")}
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "City"}},
            "required": ["city"],
        },
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
BOS, END_TURN = 2, 106


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint folder whose template is as that of E2B and E4B."""
    return tiny_tokenizer.write(tmp_path_factory.mktemp("small"), SOURCES["small"])


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """As that of 12B, 26B-A4B and 31B."""
    return tiny_tokenizer.write(tmp_path_factory.mktemp("large"), SOURCES["large"])


def complaint(function, *args, **named):
    """The one sentence with which something is refused."""
    with pytest.raises(InputError) as caught:
        function(*args, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the shape of a chat ----------------------------------------------------------------------------------------------


def test_a_chat_is_turns_and_the_beginning_of_the_models(small):
    assert render_chat(small, HELLO) == "<bos><|turn>user\nHello<turn|>\n<|turn>model\n"
    assert render_chat(small, HELLO, add_generation_prompt=False) == "<bos><|turn>user\nHello<turn|>\n"


def test_a_chat_in_ids_has_the_released_special_tokens(small):
    tokenizer = open_tokenizer(small)
    user, model, hello = (tokenizer.rust.token_to_id(word) for word in ("user", "model", "Hello"))
    assert tokenizer.encode_chat(HELLO) == [BOS, 105, user, 107, hello, END_TURN, 107, 105, model, 107]


def test_an_empty_thought_is_added_by_the_large_models_template_alone(small, large):
    assert render_chat(large, HELLO).endswith("<|turn>model\n<|channel>thought\n<channel|>")
    assert open_tokenizer(large).encode_chat(HELLO)[-4:][::3] == [100, 101]
    for folder in (small, large):
        assert render_chat(folder, HELLO, thinking=True).endswith("<|turn>model\n")
        assert render_chat(folder, HELLO, thinking=False) == render_chat(folder, HELLO)


def test_thinking_opens_a_system_turn(small, large):
    for folder in (small, large):
        text = render_chat(folder, HELLO, thinking=True)
        assert text.startswith("<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\nHello<turn|>\n")


def test_a_chat_has_one_bos_even_where_the_tokenizer_adds_its_own(tmp_path):
    tokenizer = open_tokenizer(tiny_tokenizer.write(tmp_path, SOURCES["small"], bos=True))
    assert tokenizer.encode("Hello")[0] == BOS
    assert tokenizer.encode_chat(HELLO).count(BOS) == 1


def test_a_tool_is_declared_called_and_answered(small):
    messages = [
        {"role": "user", "content": "Plan"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert render_chat(small, messages, tools=[WEATHER], thinking=True) == (
        "<bos><|turn>system\n<|think|>\n"
        '<|tool>declaration:weather{description:<|"|>Weather<|"|>,parameters:{'
        'properties:{city:{description:<|"|>City<|"|>,type:<|"|>STRING<|"|>}},'
        'required:[<|"|>city<|"|>],type:<|"|>OBJECT<|"|>}}<tool|><turn|>\n'
        "<|turn>user\nPlan<turn|>\n<|turn>model\n"
        '<|tool_call>call:weather{city:<|"|>Paris<|"|>}<tool_call|>'
        '<|tool_response>response:weather{value:<|"|>sunny<|"|>}<tool_response|>'
        "<|channel>thought\n"
    )


def test_thoughts_of_earlier_turns_are_dropped_and_those_of_this_one_kept(small):
    told = {"role": "assistant", "content": "<|channel>thought\nhm<channel|>Yes", "reasoning": "hmm"}
    assert "hm" not in render_chat(small, [*HELLO, told, *HELLO])
    assert "<|channel>thought\nhmm\n<channel|>Yes<turn|>" in render_chat(small, [*HELLO, told])


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_reach_a_template_under_the_standard_name(tmp_path, name):
    folder = tiny_tokenizer.write(tmp_path, "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}")
    assert render_chat(folder, [{"role": "assistant", name: "hm"}]) == "hm hm"


def test_what_is_none_in_a_message_is_not_there(tmp_path):
    folder = tiny_tokenizer.write(tmp_path, "{{ messages[0].content is defined }}{{ messages[0].role }}")
    assert render_chat(folder, [{"role": "assistant", "content": None}]) == "Falseassistant"


def test_an_image_link_in_openais_form_is_an_image(small):
    item = {"type": "image_url", "image_url": {"url": "cat.png"}}
    assert "<|turn>user\n<|image|><turn|>" in render_chat(small, [{"role": "user", "content": [item]}])
    assert attachments([{"role": "user", "content": [item]}])[0].source == Path("cat.png")


# -- the template and its variables -----------------------------------------------------------------------------------


def test_a_template_stands_in_one_of_several_files_and_its_own_file_goes_first(tmp_path):
    folder = tiny_tokenizer.write(tmp_path, chat_template="tokenizer")
    assert render_chat(folder, HELLO) == "tokenizer"
    (folder / "processor_config.json").write_text(json.dumps({"chat_template": "processor"}))
    assert render_chat(folder, HELLO) == "processor"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "old file"}))
    assert render_chat(folder, HELLO) == "old file"
    (folder / "chat_template.jinja").write_text("file")
    assert render_chat(folder, HELLO) == "file"


def test_one_of_several_templates_is_chosen_by_name(tmp_path):
    named = [{"name": name, "template": name} for name in ("default", "tool_use", "rag")]
    folder = tiny_tokenizer.write(tmp_path / "list", chat_template=named)
    check_choices(folder)
    folder = tiny_tokenizer.write(tmp_path / "files", "default")
    (folder / "additional_chat_templates").mkdir()
    for name in ("tool_use", "rag"):
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(name)
    check_choices(folder)


def check_choices(folder):
    assert render_chat(folder, HELLO) == "default"
    assert render_chat(folder, HELLO, template="rag") == "rag"
    assert render_chat(folder, HELLO, tools=[WEATHER]) == "tool_use"
    assert render_chat(folder, HELLO, tools=[WEATHER], template="default") == "default"
    assert "it has default, rag, tool_use" in complaint(render_chat, folder, HELLO, template="other")


def test_a_template_may_be_a_file_from_elsewhere(tmp_path):
    (tmp_path / "my.jinja").write_text("{{ bos_token }}mine")
    folder = tiny_tokenizer.write(tmp_path / "ckpt")
    assert render_chat(folder, HELLO, template=str(tmp_path / "my.jinja")) == "<bos>mine"


def test_a_checkpoint_without_a_template_is_one_sentence(tmp_path):
    assert "has no chat_template.jinja" in complaint(render_chat, tiny_tokenizer.write(tmp_path), HELLO)


@pytest.mark.parametrize("wrong", [3, [3], [{"name": "default"}], [{"name": "default", "template": 3}], {"a": "b"}])
def test_a_template_of_the_wrong_form_is_one_sentence(tmp_path, wrong):
    folder = tiny_tokenizer.write(tmp_path, chat_template=wrong)
    assert "neither a text nor a list" in complaint(render_chat, folder, HELLO)


def test_special_tokens_are_variables(tmp_path):
    added = {"content": "<eos>", "lstrip": False, "__type": "AddedToken"}
    extra = {"extra_special_tokens": {"image_token": "<|image|>", "sot": "<|turn>"}, "add_bos_token": False}
    tokens = special_tokens(tiny_tokenizer.write(tmp_path, eos_token=added, pad_token=None, **extra))
    assert tokens | {"bos_token": "<bos>", "eos_token": "<eos>", "image_token": "<|image|>", "sot": "<|turn>"} == tokens
    assert not tokens.keys() & {"pad_token", "add_bos_token"}


def test_special_tokens_stand_in_a_file_of_their_own_in_old_checkpoints(tmp_path):
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    assert special_tokens(tmp_path) == {"bos_token": "<s>"}


def test_more_variables_reach_the_template(tmp_path):
    folder = tiny_tokenizer.write(tmp_path, "{{ documents[0].title }}{{ tools }}{{ extra }}{{ bos_token }}")
    assert render_chat(folder, HELLO, documents=[{"title": "T"}], extra=3, bos_token="B") == "TNone3B"


@pytest.mark.parametrize(("thinking", "seen"), [(None, "undefined"), (False, "False"), (True, "True")])
def test_thinking_is_undefined_unless_it_is_chosen(tmp_path, thinking, seen):
    folder = tiny_tokenizer.write(tmp_path, "{{ enable_thinking | default('undefined') }}")
    assert render_chat(folder, HELLO, thinking=thinking) == seen


def test_everything_that_a_template_may_use_works(tmp_path):
    folder = tiny_tokenizer.write(tmp_path, SOURCES["constructs"])
    text = render_chat(
        folder, [{"role": "system", "content": "S"}, *HELLO, {"role": "tool", "content": "T"}], extra="E"
    )
    assert text.startswith("<bos>|<turn|>|<|image|>|||\n  marked outside\n    even 3 2 system True")
    assert '{"role": "user", "content": "Hello"}' in text
    assert "1(2)3\nsystem,user\n[23]1xxx3231-7.0q1NoneTrue\nBLOCK\nfilter{{ raw }}3False\n" in text
    assert text.endswith("None None True E")


def test_what_a_template_says_is_shown(large):
    told = complaint(render_chat, large, [*HELLO, *HELLO])
    assert told.endswith("the template says: the roles should alternate, message 2 is 'user'; change the messages.")


# -- the messages -----------------------------------------------------------------------------------------------------


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def test_a_chat_file_holds_messages_alone_or_with_tools_and_documents(tmp_path):
    assert read_chat(write(tmp_path / "a", HELLO)) == chat.Chat(HELLO)
    both = {"messages": HELLO, "tools": [WEATHER], "documents": [{"title": "T"}]}
    assert read_chat(write(tmp_path / "b", both)) == chat.Chat(**both)
    assert read_chat(write(tmp_path / "a", HELLO), write(tmp_path / "t", [WEATHER])) == chat.Chat(HELLO, [WEATHER])


def test_a_chat_is_read_from_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + json.dumps(HELLO).encode())))
    assert read_chat("-") == chat.Chat(HELLO)


WRONG = {
    "no JSON": ("[{]", "is not JSON"),
    "a key twice": ('[{"role": "user", "role": "tool"}]', "stands there twice"),
    "too deep": ("[" * 100_000, "is not JSON"),
    "a text": ("Hello", "is not JSON"),
    "a number": (3, "should hold a list of messages"),
    "an object": ({"message": HELLO}, "should hold a list of messages"),
    "no message": ([], "there is no message"),
    "null": ({"messages": None}, "there is no message"),
    "unknown key": ({"messages": HELLO, "temperature": 1}, "'temperature' is not known"),
    "text messages": (["Hello"], "list of JSON objects"),
    "one message": ({"role": "user", "content": "Hello"}, "should hold a list of messages"),
    "no role": ([{"content": "Hello"}], "message 0 has no role"),
    "role of a number": ([*HELLO, {"role": 3}], "message 1 has no role"),
    "content of a number": ([{"role": "user", "content": 3}], "the content of message 0"),
    "content of texts": ([{"role": "user", "content": ["Hello"]}], "the content of message 0"),
    "content without type": ([{"role": "user", "content": [{"text": "Hello"}]}], "the content of message 0"),
    "tools of texts": ({"messages": HELLO, "tools": ["weather"]}, "tools: should be a list of JSON objects"),
    "one tool": ({"messages": HELLO, "tools": WEATHER}, "tools: should be a list of JSON objects"),
    "one document": ({"messages": HELLO, "documents": "T"}, "documents: should be a list of JSON objects"),
}


@pytest.mark.parametrize(("value", "said"), WRONG.values(), ids=WRONG)
def test_a_chat_file_of_the_wrong_form_is_one_sentence_with_its_name(tmp_path, value, said):
    path = write(tmp_path / "prompt.chat.json", value)
    told = complaint(read_chat, path)
    assert said in told
    assert path in told


def test_a_chat_file_that_cannot_be_read_is_one_sentence(tmp_path):
    assert "No such file" in complaint(read_chat, str(tmp_path / "none.json"))
    (tmp_path / "latin.json").write_bytes('[{"role": "user", "content": "é"}]'.encode("latin-1"))
    assert "is not UTF-8 (byte 30)" in complaint(read_chat, str(tmp_path / "latin.json"))


def test_what_is_no_chat_is_not_read_to_its_end(tmp_path):
    assert "might never end" in complaint(read_chat, "/dev/zero")
    (tmp_path / "huge.json").touch()
    os.truncate(tmp_path / "huge.json", 10**12)
    assert "is larger than 100,000,000 bytes" in complaint(read_chat, tmp_path / "huge.json")


def test_tools_are_given_once(tmp_path):
    both = write(tmp_path / "c", {"messages": HELLO, "tools": [WEATHER]})
    assert "has tools already" in complaint(read_chat, both, write(tmp_path / "t", [WEATHER]))
    assert "list of JSON objects" in complaint(read_chat, write(tmp_path / "a", HELLO), write(tmp_path / "t", WEATHER))


# -- images and sound in the messages ---------------------------------------------------------------------------------


def asks(*items):
    return {"role": "user", "content": list(items)}


def test_attachments_come_in_the_order_of_their_placeholders(small):
    pixels = np.zeros((2, 2, 3))
    messages = [
        asks({"type": "image", "path": "a.png"}, {"type": "text", "text": "and"}, {"type": "audio", "audio": "b.wav"}),
        {"role": "assistant", "content": "yes"},
        asks({"type": "video", "url": "c.mp4"}, {"type": "image"}, {"type": "image", "image": pixels}),
    ]
    found = attachments(messages)
    assert [a.kind for a in found] == ["image", "audio", "video", "image", "image"]
    assert [a.source for a in found[:4]] == [Path("a.png"), Path("b.wav"), Path("c.mp4"), None]
    assert found[4].source is pixels
    text = render_chat(small, messages)
    assert [part.split("|>")[0] for part in text.split("<|")[1:] if "|>" in part[:7]] == [a.kind for a in found]


@pytest.mark.parametrize(
    "item",
    [
        {"type": "image", "url": "https://example.org/cat.png"},
        {"type": "audio", "audio": "http://example.org/a.wav"},
        {"type": "image", "image": "data:image/png;base64,AA=="},
        {"type": "image", "base64": "AA=="},
        {"type": "video", "path": "file:///a.mp4"},
        {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
    ],
)
def test_nothing_is_fetched(item):
    assert "save it as a file and give its path" in complaint(attachments, [asks(item)])


def test_an_item_names_one_file():
    assert "has path and url" in complaint(attachments, [asks({"type": "image", "path": "a", "url": "b"})])


# -- what would be left out without a word ----------------------------------------------------------------------------

OTHERS_WORDS = {
    "OpenAI's sound": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    "the text of OpenAI's later form": {"type": "input_text", "text": "Hello"},
    "vLLM's clip": {"type": "video_url", "video_url": {"url": "clip.mp4"}},
}


@pytest.mark.parametrize("name", OTHERS_WORDS)
def test_an_item_of_a_type_that_the_template_does_not_know_is_refused_and_not_left_out(large, name):
    said = complaint(render_chat, large, [{"role": "user", "content": [OTHERS_WORDS[name]]}])
    assert f"knows no item of type {OTHERS_WORDS[name]['type']!r}" in said
    assert "chat_template.jinja" in said


def test_a_type_that_the_template_itself_names_is_its_own_business(tmp_path):
    folder = tiny_tokenizer.write(
        tmp_path, "{% for i in messages[0].content %}{{ i.text if i.type == 'poem' }}{% endfor %}"
    )
    assert render_chat(folder, [{"role": "user", "content": [{"type": "poem", "text": "Roses"}]}]) == "Roses"


@pytest.mark.parametrize("text", [None, 5, {"a": 1}])
def test_an_item_whose_text_is_no_text_is_refused_and_not_printed_as_python_would(large, text):
    said = complaint(render_chat, large, [{"role": "user", "content": [{"type": "text", "text": text}]}])
    assert "message 0 has an item whose text is no text" in said


def test_half_a_character_in_a_chat_is_told_with_the_name_of_the_file(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(r'[{"role": "user", "content": "a\ud800b"}]')
    assert str(path) in complaint(read_chat, path)
    path.write_text(r'[{"role": "user", "content": "a\ud83d\ude00"}]')
    assert read_chat(path).messages[0]["content"] == "a\U0001f600"


def test_what_is_not_on_this_machine_is_told_with_the_name_of_the_chat(tmp_path):
    item = {"type": "image", "path": "https://there/a.png"}
    said = complaint(chat.chat_files, [{"role": "user", "content": [item]}], {}, tmp_path / "c.json")
    assert said.startswith(str(tmp_path / "c.json"))
