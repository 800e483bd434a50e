"""Live: the text and the ids of a chat against Transformers' own apply_chat_template, and the tokenizers as such."""

import os
import re
from pathlib import Path

import pytest
import tiny_tokenizer
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from numgemma.errors import InputError
from numgemma.opening import DATA
from numgemma.prompt.chat import render_chat
from numgemma.prompt.tokenizer import open_tokenizer

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TEMPLATES = Path(__file__).parent / "templates"
slow_to_draw = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Template name -> checkpoint folder, our tokenizer, Transformers'."""
    found = {}
    for path in TEMPLATES.glob("*.jinja"):
        folder = tmp_path_factory.mktemp(path.stem)
        tiny_tokenizer.write(folder, path.read_text(), bos=path.stem == "large")
        found[path.stem] = folder, open_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    return found


# -- what to say ------------------------------------------------------------------------------------------------------

PIECES = [
    "Hello",
    " ",
    "\n",
    "\n\n",
    '"',
    "'",
    "{",
    "}",
    "{{ x }}",
    "{% if %}",
    "<b>",
    "&",
    "<|turn>",
    "<turn|>",
    "<bos>",
]
PIECES += ["<|channel>", "<channel|>", "<|image|>", '<|"|>', "é", "日本", "😀", "\\", "▁", "\r\n", "\u2028", "\0", ""]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=6).map("".join)
NAMES = st.sampled_from(["a", "B", "city", "Ünit", "_x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**12) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(NAMES, VALUES, max_size=3)
ITEMS = st.fixed_dictionaries({"type": st.just("text"), "text": TEXT})
ITEMS |= st.sampled_from([{"type": "image", "path": "a.png"}, {"type": "audio"}, {"type": "video", "url": "v.mp4"}])
CONTENT = TEXT | st.lists(ITEMS, max_size=3)


def message(role, **more):
    return st.fixed_dictionaries({"role": st.just(role), "content": CONTENT}, optional=more)


CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.sampled_from(["1", "2"]),
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": NAMES, "arguments": ARGUMENTS}),
        }
    ),
    max_size=2,
)
RESPONSES = st.lists(st.fixed_dictionaries({"name": NAMES, "response": ARGUMENTS}), max_size=2)
USER = message("user")
ASSISTANT = message(
    "assistant",
    reasoning=TEXT,
    reasoning_content=TEXT | st.none(),
    thinking=TEXT,
    tool_calls=CALLS | st.none(),
    tool_responses=RESPONSES,
)
TOOL = message("tool", tool_call_id=st.sampled_from(["1", "3"]), name=NAMES)
SYSTEM = st.sampled_from(["system", "developer"]).flatmap(
    lambda role: st.fixed_dictionaries({"role": st.just(role), "content": TEXT})
)
CHATS = st.builds(
    lambda system, rest: system + rest,
    st.lists(SYSTEM, max_size=1),
    st.lists(USER | ASSISTANT | TOOL, min_size=1, max_size=6),
)
ALTERNATING = st.builds(
    lambda system, rounds, last: [*system, *(one for both in rounds for one in both), last],
    st.lists(SYSTEM, max_size=1),
    st.lists(st.tuples(USER, ASSISTANT), max_size=2),
    USER,
)
SCHEMAS = st.recursive(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["string", "number", "boolean"])},
        optional={"description": TEXT, "enum": st.lists(TEXT, min_size=1, max_size=2), "nullable": st.booleans()},
    ),
    lambda inner: (
        st.fixed_dictionaries({"type": st.just("object"), "properties": st.dictionaries(NAMES, inner, max_size=2)})
        | st.fixed_dictionaries({"type": st.just("array"), "items": st.just({"type": "string"})})
    ),
    max_leaves=4,
)
PARAMETERS = st.fixed_dictionaries(
    {"type": st.just("object"), "properties": st.dictionaries(NAMES, SCHEMAS, max_size=3)},
    optional={"required": st.lists(NAMES, max_size=2)},
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": NAMES, "description": TEXT}, optional={"parameters": PARAMETERS}
            ),
        }
    ),
    max_size=2,
)
CHOICES = st.fixed_dictionaries(
    {"add_generation_prompt": st.booleans()},
    optional={
        "tools": TOOLS,
        "enable_thinking": st.booleans(),
        "preserve_thinking": st.booleans(),
        "documents": st.just([{"title": "T"}]),
    },
)


def theirs(hf, messages, choices, **how):
    return hf.apply_chat_template(messages, **choices, **how)


def assert_same(pair, messages, choices):
    """One text and one list of ids."""
    folder, tokenizer, hf = pair
    assert render_chat(folder, messages, **choices) == theirs(hf, messages, choices, tokenize=False)
    assert tokenizer.encode_chat(messages, **choices) == theirs(hf, messages, choices, return_dict=False)


# -- the comparison ---------------------------------------------------------------------------------------------------


@slow_to_draw
@given(messages=CHATS, choices=CHOICES)
def test_a_chat_of_a_small_model_is_transformers(pairs, messages, choices):
    assert_same(pairs["small"], messages, choices)


@slow_to_draw
@given(messages=ALTERNATING, choices=CHOICES)
def test_a_chat_of_a_large_model_is_transformers(pairs, messages, choices):
    assert_same(pairs["large"], messages, choices)


@settings(slow_to_draw, max_examples=300)
@given(messages=ALTERNATING.filter(lambda m: m[0]["role"] != "developer"), choices=CHOICES)
def test_a_chat_of_a_gemma_3n_is_transformers(pairs, messages, choices):
    assert_same(pairs["gemma3n"], messages, choices)


@slow_to_draw
@given(messages=CHATS, choices=CHOICES)
def test_every_construct_is_transformers(pairs, messages, choices):
    assert_same(pairs["constructs"], messages, choices)


@pytest.mark.parametrize("messages", [[{"role": "assistant", "content": "a"}], [{"role": "user", "content": "a"}] * 2])
def test_a_chat_that_a_template_refuses_is_refused_in_the_same_words(pairs, messages):
    folder, _, hf = pairs["large"]
    with pytest.raises(Exception, match="the roles should alternate") as refused:
        theirs(hf, messages, {}, tokenize=False)
    with pytest.raises(InputError, match=re.escape(str(refused.value))):
        render_chat(folder, messages)


def test_named_templates_are_chosen_as_in_transformers(tmp_path):
    named = [{"name": name, "template": name + "{{ bos_token }}"} for name in ("default", "tool_use", "rag")]
    folder = tiny_tokenizer.write(tmp_path, chat_template=named)
    hf = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Hello"}]
    for tools in (None, [], [{"type": "function"}]):
        for name in (None, "rag", "default"):
            expected = hf.apply_chat_template(messages, tools=tools, chat_template=name, tokenize=False)
            assert render_chat(folder, messages, tools=tools, template=name) == expected


def test_a_template_of_its_own_goes_before_one_in_the_config_as_in_transformers(tmp_path):
    folder = tiny_tokenizer.write(tmp_path, "file", chat_template="config")
    hf = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Hello"}]
    assert render_chat(folder, messages) == hf.apply_chat_template(messages, tokenize=False) == "file"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"bos_token": {"__type": "AddedToken", "content": "<bos>", "special": True}},
        {"extra_special_tokens": {"video_token": "<|video|>", "soc_token": "<|channel>"}},
        {"mask_token": None, "add_bos_token": True, "unk_token": None},
    ],
)
def test_special_tokens_are_transformers(tmp_path, config):
    names = ["bos", "eos", "unk", "pad", "mask", "sep", "image", "boi", "eoi", "video", "soc", "add_bos"]
    folder = tiny_tokenizer.write(tmp_path, "|".join(f"{{{{ {name}_token }}}}" for name in names), **config)
    hf = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Hello"}]
    assert render_chat(folder, messages) == hf.apply_chat_template(messages, tokenize=False)


# -- the tokenizers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bundled", "gemma", "gemma of Transformers' own class"])
def tokenizers(request, tmp_path_factory):
    """Ours and Transformers', of one file."""
    if request.param == "bundled":
        folder = DATA / "tiny"
    elif request.param == "gemma":
        folder = tiny_tokenizer.write(tmp_path_factory.mktemp("gemma"), bos=True)
    else:  # built anew from the vocabulary and the merges in the file
        folder = tiny_tokenizer.write(tmp_path_factory.mktemp("class"), bos=True, tokenizer_class="GemmaTokenizer")
    return open_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)


@slow_to_draw
@given(text=TEXT)
def test_the_ids_of_a_text_are_transformers(tokenizers, text):
    ours, hf = tokenizers
    assert ours.encode(text) == hf(text)["input_ids"]
    assert ours.encode_rendered(text) == hf(text, add_special_tokens=False)["input_ids"]


@slow_to_draw
@given(data=st.data())
def test_the_text_of_ids_is_transformers(tokenizers, data):
    ours, hf = tokenizers
    ids = data.draw(st.lists(st.integers(0, ours.rust.get_vocab_size() - 1)))
    assume(ids)
    assert ours.decode(ids) == hf.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, special=True) == hf.decode(ids)
