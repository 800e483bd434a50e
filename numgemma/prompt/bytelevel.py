"""Two tokenizers in plain Python, for where the package `tokenizers` is not: in a browser.

They read what tokenizer.json of the bundled model is made of (bytes drawn as characters, GPT-2's cut into words, merges
by rank), and of the models that `synth` makes (a token for every byte, no merges), and no more.  Either has a template
that puts <bos> first.  Equal `tokenizers` on such a file, id for id.
"""

import json
import re
import unicodedata
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise
from types import SimpleNamespace

from numgemma.errors import InputError
from numgemma.pieces import SPACE
from numgemma.pieces import STEPS as OF_PIECES

CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
# A word in the kinds of its characters: L letter, N number, O other, S space, W another white one.
WORD = re.compile(r"S?L+|S?N+|S?O+|[SW]+(?![LNO])|[SW]+")
KINDS = {"L": "L", "N": "N"}  # the first letter of a Unicode category
STEPS = {
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "decoder": {"type": "ByteLevel"},
}
MERGING = {"type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False, "ignore_merges": False}
BYTE = re.compile(r"<0x[0-9A-F]{2}>\Z")
FALLING_BACK = {"type": "BPE", "byte_fallback": True, "merges": []}


def drawn() -> dict[int, str]:
    """Byte -> the character that stands for it: itself where it can be seen, else the next one from U+0100 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


DRAWN = drawn()
BYTES = {character: byte for byte, character in DRAWN.items()}


def kind(character: str) -> str:
    """One of the letters of WORD."""
    if character == " ":
        return "S"
    if character.isspace() and character not in "\x1c\x1d\x1e\x1f":  # white in Python, and not in Unicode
        return "W"
    return KINDS.get(unicodedata.category(character)[0], "O")


def words(text: str):
    """GPT-2's cut: contractions, then runs of letters, of numbers, of the rest, each with the space before it."""
    kinds, start = "".join(map(kind, text)), 0
    while start < len(text):
        found = CONTRACTION.match(text, start) or WORD.match(kinds, start)
        assert found, "every character is of a kind"
        yield text[start : found.end()]
        start = found.end()


class InPython:
    """A tokenizer.json of one of those makes, with those methods of tokenizers.Tokenizer that the package calls."""

    def __init__(self, raw: bytes, path):
        """raw: the content of tokenizer.json; path: its name.  Raises InputError where it asks for more than this."""
        table = json.loads(raw)
        added, template = table["added_tokens"], (table["post_processor"] or {"single": [{"Sequence": {}}]})["single"]
        self.added = {token["id"]: SimpleNamespace(**token) for token in added}
        self.ids = table["model"]["vocab"] | {token["content"]: token["id"] for token in added}
        self.names = {i: name for name, i in self.ids.items()}
        self.make = make_of(table, self.ids)
        places = [i for i, one in enumerate(template) if "Sequence" in one]
        if self.make is None or len(places) != 1:
            raise InputError(f"{path}: is of neither make that is read without it; install `tokenizers` to read it.")
        longest = sorted((re.escape(token["content"]) for token in added), key=len, reverse=True)
        self.split = re.compile("|".join(longest) or r"(?!)")
        around = template[: places[0]], template[places[0] + 1 :]
        self.before, self.after = ([self.ids[one["SpecialToken"]["id"]] for one in part] for part in around)

    def encode(self, text: str, add_special_tokens: bool):
        """.ids: token ids of a text.  Raises TypeError where it has lone surrogates, as the package does."""
        try:
            text.encode()
        except (UnicodeEncodeError, AttributeError):
            raise TypeError("no text") from None
        ids, start = [], 0
        for found in self.split.finditer(text):
            ids += [*self.make.plain(text[start : found.start()]), self.ids[found[0]]]
            start = found.end()
        ids += self.make.plain(text[start:])
        return SimpleNamespace(ids=[*self.before, *ids, *self.after] if add_special_tokens else ids)

    def decode(self, ids, skip_special_tokens: bool) -> str:
        """The text of token ids; an id that is no token is left out."""
        kept = [i for i in ids if i in self.names and not (skip_special_tokens and self.is_special(i))]
        return self.make.text([self.names[i] for i in kept])

    def is_special(self, i):
        return i in self.added and self.added[i].special

    def id_to_token(self, i: int) -> str | None:
        """A token as tokenizer.json spells it."""
        return self.names.get(i)

    def get_added_tokens_decoder(self):
        """id -> what tokenizer.json says of it, `special` among it."""
        return self.added


def make_of(table, ids):
    """What reads a tokenizer.json of this make, or None."""
    model = table["model"]
    if all(has(table[key], due) for key, due in STEPS.items()) and has(model, MERGING) and not table["normalizer"]:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        return ByteLevel(ids, {tuple(pair): rank for rank, pair in enumerate(pairs)})
    bare = all(table[key] == due for key, due in OF_PIECES.items())
    every = all(f"<0x{byte:02X}>" in ids for byte in range(256))
    return Bytes(model["vocab"]) if bare and has(model, FALLING_BACK) and every else None


def has(found, due) -> bool:
    """Whether a part of tokenizer.json says all that is due."""
    return isinstance(found, dict) and all(found.get(key) == value for key, value in due.items())


class ByteLevel:
    """The bundled model's make."""

    def __init__(self, ids, ranks):
        """ids: token -> id   ranks: pair of tokens -> its place among the merges"""
        self.ids, self.ranks = ids, ranks
        self.merged = lru_cache(1 << 14)(self.merge)

    def plain(self, text):
        return [i for word in words(text) for i in self.merged(word)]

    def merge(self, word):
        """The ids of one word: of all neighbours that may be joined, those of the lowest rank are, again and again.

        A heap holds them: a word of 200,000 signs takes a second or two.  A part that was joined to the one before it
        is empty.
        """
        parts = [DRAWN[byte] for byte in word.encode()]
        before, after = [*range(-1, len(parts) - 1)], [*range(1, len(parts) + 1)]
        heap = [(self.ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in self.ranks]
        heapify(heap)
        while heap:
            rank, i = heappop(heap)
            j = after[i]
            if j == len(parts) or self.ranks.get((parts[i], parts[j])) != rank:
                continue  # one of the two has been joined to another since
            parts[i], parts[j], after[i] = parts[i] + parts[j], "", after[j]
            if after[i] < len(parts):
                before[after[i]] = i
            for left, right in ((before[i], i), (i, after[i])):
                if left >= 0 and right < len(parts) and (parts[left], parts[right]) in self.ranks:
                    heappush(heap, (self.ranks[parts[left], parts[right]], left))
        return [self.ids[part] for part in parts if part]

    def text(self, tokens) -> str:
        return b"".join(map(spelled, tokens)).decode("utf-8", "replace")


def spelled(token: str) -> bytes:
    """The bytes that a token's characters stand for; a token with any other character stands for itself."""
    known = all(character in BYTES for character in token)
    return bytes(BYTES[character] for character in token) if known else token.encode()


class Bytes:
    """The make of `synth`: a character that is a token is one, and of any other its bytes are."""

    def __init__(self, vocab):
        """vocab: token -> id"""
        self.vocab = vocab

    def plain(self, text):
        return [i for character in text.replace(" ", SPACE) for i in self.spelled(character)]

    def spelled(self, character):
        if character in self.vocab:
            return [self.vocab[character]]
        return [self.vocab[f"<0x{byte:02X}>"] for byte in character.encode()]

    def text(self, tokens) -> str:
        """Neighbouring bytes are a text together, or each of them a sign for none."""
        text, held = "", b""
        for token in [*tokens, ""]:
            if BYTE.match(token):
                held += bytes([int(token[3:5], 16)])
            else:
                text, held = text + whole(held) + token.replace(SPACE, " "), b""
        return text


def whole(some: bytes) -> str:
    try:
        return some.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(some)
