"""The tokenizers in plain Python give what the package `tokenizers` gives, id for id."""

import json

import pytest
import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from numgemma.errors import InputError
from numgemma.opening import DATA
from numgemma.prompt.bytelevel import InPython, words
from numgemma.prompt.tokenizer import opened
from numgemma.surgery.synth import find_config
from numgemma.surgery.tokens import FIRST_BYTE, byte_tokenizer

FILE = DATA / "tiny" / "tokenizer.json"


def made(name):
    """tokenizer.json as `synth` writes it for a model."""
    return json.dumps(byte_tokenizer(find_config(name)[0], 1024)).encode()


RAW = {"bundled": FILE.read_bytes(), "E4B": made("gemma-4-E4B-it"), "a vector": made("embeddinggemma-2")}
BOTH = {make: (InPython(raw, FILE), opened(raw, FILE)) for make, raw in RAW.items()}
OURS, RUST = BOTH["bundled"]
each = pytest.mark.parametrize(("ours", "rust"), BOTH.values(), ids=BOTH)

WORDS = ["Once", " upon", " a", " time", "'s", "'S", "'ll", "'", "1", "12", "é", "日本", "_", "!", "?!"]
WHITE = [" ", "  ", "\n", "\t", "\xa0", "\u3000", "\x1c", "\x85", "\u200b"]
ODD = ["½", "一", "e\u0301", "😀", "ﬁ", "<bos>", "<eos>", "<pad>", "<bo", "▁", "<0x41>", "<unused7>", "<|image|>"]
PIECES = st.lists(st.sampled_from(WORDS + WHITE + ODD)).map("".join)


@each
@given(st.text() | PIECES, st.booleans())
def test_it_cuts_every_text_as_the_package_does(ours, rust, text, special):
    assert ours.encode(text, special).ids == rust.encode(text, add_special_tokens=special).ids


@each
@given(st.lists(st.integers(0, 1030)) | st.binary().map(lambda raw: [FIRST_BYTE + byte for byte in raw]), st.booleans())
def test_it_spells_every_list_of_ids_as_the_package_does(ours, rust, ids, skip):
    assert ours.decode(ids, skip_special_tokens=skip) == rust.decode(ids, skip_special_tokens=skip)


@each
def test_it_names_every_token_as_the_package_does(ours, rust):
    assert [ours.id_to_token(i) for i in range(1030)] == [rust.id_to_token(i) for i in range(1030)]
    theirs = rust.get_added_tokens_decoder()
    ours = ours.get_added_tokens_decoder()
    assert {i: token.special for i, token in ours.items()} == {i: token.special for i, token in theirs.items()}


@given(st.text("ande thlou", max_size=300), st.integers(1, 9))
def test_it_joins_long_words_as_the_package_does(text, times):
    text = text.replace(" ", "") * times
    assert OURS.encode(text, False).ids == RUST.encode(text, add_special_tokens=False).ids


def test_words_keep_the_space_before_them_and_all_others_stand_alone():
    assert list(words("Lily's  fox, 12\n\n")) == ["Lily", "'s", " ", " fox", ",", " 12", "\n\n"]


@each
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_lone_surrogate_is_refused_as_the_package_refuses_it(ours, rust, text):
    for one in (ours, rust):
        with pytest.raises(TypeError):
            one.encode(text, add_special_tokens=False)


def test_a_tokenizer_of_another_make_is_refused_in_a_sentence(tmp_path):
    file = tiny_tokenizer.write(tmp_path) / "tokenizer.json"
    with pytest.raises(
        InputError, match=r"is of neither make that is read without it; install `tokenizers` to read it"
    ):
        InPython(file.read_bytes(), file)
    table = json.loads(FILE.read_text())
    table["pre_tokenizer"]["add_prefix_space"] = True
    with pytest.raises(InputError, match="make"):
        InPython(json.dumps(table).encode(), file)
    table = json.loads(RAW["E4B"])
    table["model"]["merges"] = [["▁", "▁"]]
    with pytest.raises(InputError, match="make"):
        InPython(json.dumps(table).encode(), file)
