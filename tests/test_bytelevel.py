"""Byte-level BPE in plain Python gives what the package `tokenizers` gives, id for id."""

import json

import pytest
import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from numgemma.errors import InputError
from numgemma.opening import DATA
from numgemma.prompt.bytelevel import ByteLevel, words
from numgemma.prompt.tokenizer import open_tokenizer

FILE = DATA / "tiny" / "tokenizer.json"
RUST, OURS = open_tokenizer(DATA / "tiny").rust, ByteLevel(FILE.read_bytes(), FILE)

WORDS = ["Once", " upon", " a", " time", "'s", "'S", "'ll", "'", "1", "12", "é", "日本", "_", "!", "?!"]
WHITE = [" ", "  ", "\n", "\t", "\xa0", "\u3000", "\x1c", "\x85", "\u200b"]
ODD = ["½", "一", "e\u0301", "😀", "ﬁ", "<bos>", "<eos>", "<pad>", "<bo"]
PIECES = st.lists(st.sampled_from(WORDS + WHITE + ODD)).map("".join)


@given(st.text() | PIECES, st.booleans())
def test_it_cuts_every_text_as_the_package_does(text, special):
    assert OURS.encode(text, special).ids == RUST.encode(text, add_special_tokens=special).ids


@given(st.lists(st.integers(0, 1030)), st.booleans())
def test_it_spells_every_list_of_ids_as_the_package_does(ids, skip):
    assert OURS.decode(ids, skip_special_tokens=skip) == RUST.decode(ids, skip_special_tokens=skip)


def test_it_names_every_token_as_the_package_does():
    assert [OURS.id_to_token(i) for i in range(1030)] == [RUST.id_to_token(i) for i in range(1030)]
    theirs = RUST.get_added_tokens_decoder()
    ours = OURS.get_added_tokens_decoder()
    assert {i: token.special for i, token in ours.items()} == {i: token.special for i, token in theirs.items()}


@given(st.text("ande thlou", max_size=300), st.integers(1, 9))
def test_it_joins_long_words_as_the_package_does(text, times):
    text = text.replace(" ", "") * times
    assert OURS.encode(text, False).ids == RUST.encode(text, add_special_tokens=False).ids


def test_words_keep_the_space_before_them_and_all_others_stand_alone():
    assert list(words("Lily's  fox, 12\n\n")) == ["Lily", "'s", " ", " fox", ",", " 12", "\n\n"]


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_lone_surrogate_is_refused_as_the_package_refuses_it(text):
    for one in (OURS, RUST):
        with pytest.raises(TypeError):
            one.encode(text, add_special_tokens=False)


def test_a_tokenizer_of_another_make_is_refused_in_a_sentence(tmp_path):
    file = tiny_tokenizer.write(tmp_path) / "tokenizer.json"
    with pytest.raises(InputError, match=r"is not of the bundled model's make; install `tokenizers` to read it"):
        ByteLevel(file.read_bytes(), file)
    table = json.loads(FILE.read_text())
    table["pre_tokenizer"]["add_prefix_space"] = True
    with pytest.raises(InputError, match="make"):
        ByteLevel(json.dumps(table).encode(), file)
