"""Text to ids and back: the bundled byte-level tokenizer, and a small one of Gemma 4's kind with byte fallback."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from numgemma.errors import InputError
from numgemma.opening import DATA
from numgemma.prompt.tokenizer import HALF, open_tokenizer, stream

BUNDLED = open_tokenizer(DATA / "tiny")
BOS, TURN, END_TURN = 2, 105, 106


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return open_tokenizer(tiny_tokenizer.write(tmp_path_factory.mktemp("gemma")))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """As of a base model: it puts <bos> first."""
    return open_tokenizer(tiny_tokenizer.write(tmp_path_factory.mktemp("base"), bos=True))


SPECIAL = [*tiny_tokenizer.SPECIAL.values(), *tiny_tokenizer.MEDIA.values()]
TEXTS = st.text().filter(lambda text: not any(token in text for token in SPECIAL))
WORDS = st.lists(st.sampled_from([" Hello", "user", "\n", "  ", "é", "😀", "日本", ":", "�", "\t", "z"])).map("".join)


# -- text to ids ------------------------------------------------------------------------------------------------------


@given(TEXTS | WORDS)
def test_the_bundled_tokenizer_gives_every_text_back(text):
    ids = BUNDLED.encode(text)
    assert ids[0] == 0
    assert BUNDLED.decode(ids) == text


@given(text=TEXTS | WORDS)
def test_a_gemma_tokenizer_gives_every_text_back_but_its_own_space(gemma, text):
    text = text.replace("▁", "")
    assert gemma.decode(gemma.encode(text)) == text


def test_spaces_become_lower_blocks_and_none_is_put_in_front(gemma):
    assert gemma.pieces(gemma.encode("Hello Hello")) == ["Hello", " Hello"]
    hello, space_hello = gemma.encode("Hello Hello")
    assert gemma.encode("Hello") == [hello]
    assert gemma.encode(" Hello") == [space_hello]


@pytest.mark.parametrize(("text", "ids"), [("\n", [107]), ("\n\n", [108]), ("\n\n\n", [109]), ("\n" * 4, [109, 107])])
def test_a_run_of_newlines_is_one_token(gemma, text, ids):
    assert gemma.encode(text) == ids


@pytest.mark.parametrize(("spaces", "ids"), [(2, [138]), (3, [139]), (4, [140])])
def test_a_run_of_spaces_is_one_token(gemma, spaces, ids):
    assert gemma.encode(" " * spaces) == ids


def test_a_character_outside_the_vocabulary_falls_back_to_its_bytes(gemma):
    assert gemma.encode("😀") == [238 + byte for byte in "😀".encode()]


def test_special_tokens_in_a_text_become_their_ids(gemma):
    for i, token in (tiny_tokenizer.SPECIAL | tiny_tokenizer.MEDIA).items():
        assert gemma.encode(token) == [i]


def test_plain_text_gets_its_bos_from_the_post_processor(gemma, base):
    assert base.encode("Hello") == [BOS, *gemma.encode("Hello")]


def test_a_rendered_text_gets_no_second_bos(gemma, base):
    text = "<bos><|turn>user\nHello<turn|>\n"
    assert base.encode_rendered(text) == gemma.encode(text)
    assert base.encode_rendered(text).count(BOS) == 1
    assert base.encode(text).count(BOS) == 2  # what goes wrong otherwise


def test_truncation_and_padding_left_in_the_file_do_nothing(tmp_path):
    folder = tiny_tokenizer.write(tmp_path)
    raw = tiny_tokenizer.tokenizer_json() | {
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 50},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    assert open_tokenizer(folder).pieces(open_tokenizer(folder).encode("user: Hello")) == ["user", ":", " Hello"]


# -- ids to text ------------------------------------------------------------------------------------------------------


def test_special_tokens_are_left_out_unless_asked_for(gemma):
    ids = gemma.encode("<|channel>thought\nHello<channel|>user<turn|>")
    assert gemma.decode(ids) == "thought\nHellouser"
    assert gemma.decode(ids, special=True) == "<|channel>thought\nHello<channel|>user<turn|>"


@st.composite
def ids_of(draw, tokenizer):
    """Any ids: broken characters, special tokens between bytes, and ids that no token has."""
    size = tokenizer.rust.get_vocab_size()
    heavy = [tokenizer.rust.token_to_id(f"<0x{byte:02X}>") for byte in (0x41, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xFF)]
    heavy = [i for i in heavy if i is not None] or [*tokenizer.encode("é€😀�")]
    return draw(st.lists(st.integers(0, size + 1) | st.sampled_from([*heavy, *sorted(tokenizer.special)])))


@given(data=st.data(), special=st.booleans())
def test_the_pieces_of_a_stream_are_the_text_of_all_its_ids(gemma, data, special):
    for tokenizer in (gemma, BUNDLED):
        ids = data.draw(ids_of(tokenizer))
        assert "".join(stream(tokenizer, iter(ids), special)) == tokenizer.decode(ids, special)


@given(text=TEXTS | WORDS)
def test_a_stream_never_shows_half_a_character(gemma, text):
    text = text.replace(HALF, "")
    for tokenizer in (gemma, BUNDLED):
        assert not any(HALF in piece for piece in stream(tokenizer, tokenizer.encode(text)))


def test_a_stream_shows_a_plain_token_as_soon_as_it_is_there(gemma):
    ids = gemma.encode("Hello Hello\n\nuser é")
    taken = []
    for piece in stream(gemma, (taken.append(i) or i for i in ids)):
        assert piece == gemma.decode(ids[len(taken) - 1 : len(taken)])
    assert taken == ids


def test_a_stream_keeps_the_space_that_a_decoder_takes_from_a_first_token_only(tmp_path):
    raw = tiny_tokenizer.tokenizer_json()
    raw["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})  # as Llama's
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = open_tokenizer(tmp_path)
    ids = [TURN, *tokenizer.encode(" Hello Hello"), END_TURN, *tokenizer.encode(" Hello")]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == "Hello Hello Hello"


class Counting:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer):
        self.tokenizer, self.rust, self.special, self.decoded = tokenizer, tokenizer.rust, tokenizer.special, 0

    def decode(self, ids, special=False):
        self.decoded += len(ids)
        return self.tokenizer.decode(ids, special)


def test_a_stream_decodes_a_few_tokens_for_each_new_one(gemma):
    for tokenizer in (gemma, BUNDLED):
        ids = tokenizer.encode("Once upon a time é 日本 😀, " * 100)
        counting = Counting(tokenizer)
        assert "".join(stream(counting, ids)) == tokenizer.decode(ids)
        assert counting.decoded < 20 * len(ids)


# -- what cannot be used ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1, 2]", b"\xff\xfe", b'{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer_file_is_one_sentence(tmp_path, raw):
    (tmp_path / "tokenizer.json").write_bytes(raw)
    with pytest.raises(InputError, match=r"is no tokenizer\.json") as caught:
        open_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="or give token ids with --ids"):
        open_tokenizer(tmp_path)


def test_half_a_surrogate_pair_is_one_sentence(gemma):
    with pytest.raises(InputError, match="lone surrogates"):
        gemma.encode("a\ud800b")


# -- what the library does not survive


def test_a_prefix_of_pieces_is_refused_before_the_library_panics_on_it(tmp_path):
    table = json.loads((BUNDLED.folder / "tokenizer.json").read_text())
    table["model"]["continuing_subword_prefix"] = "abc"
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"tokenizer.json: is no tokenizer.json \(its pieces have a prefix\); copy it"):
        open_tokenizer(tmp_path)


def test_a_panic_of_the_library_is_one_sentence_and_an_interrupt_stays_one(monkeypatch):
    class PanicException(BaseException):
        """As pyo3_runtime's: no Exception."""

    def failing(error):
        def encode(text, add_special_tokens):
            raise error

        return SimpleNamespace(encode=encode)

    tokenizer = open_tokenizer(BUNDLED.folder)
    monkeypatch.setattr(tokenizer, "rust", failing(PanicException("slice index starts at 3 but ends at 1")))
    with pytest.raises(InputError, match=r"fails on a text \(slice index starts at 3 but ends at 1\); copy it"):
        tokenizer.encode("x")
    monkeypatch.setattr(tokenizer, "rust", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("x")


# -- long words -------------------------------------------------------------------------------------------------------

LONG = """
import resource, sys, time
from pathlib import Path
from numgemma.prompt.bytelevel import InPython
from numgemma.prompt.tokenizer import open_tokenizer
folder, sign, ours = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "ours"
file = folder / "tokenizer.json"
encode = InPython(file.read_bytes(), file).encode if ours else open_tokenizer(folder).rust.encode
held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = encode(sign * 200_000, add_special_tokens=False).ids
held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held
print(len(found), time.process_time(), held * 1024)
"""


@pytest.mark.parametrize("sign", ["(", " ", "the"])
@pytest.mark.parametrize("which", ["bundled", "ours", "gemma"])
def test_a_word_of_200_000_signs_takes_neither_minutes_nor_gigabytes(gemma, which, sign):
    folder = gemma.folder if which == "gemma" else BUNDLED.folder
    command = [sys.executable, "-c", LONG, folder, sign, which]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    tokens, seconds, held = map(float, done.stdout.split())
    assert tokens >= 200_000 * len(sign.encode()) / 16
    assert seconds < 15
    assert held < 0.5e9
