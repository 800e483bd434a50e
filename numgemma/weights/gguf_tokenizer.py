"""The tokenizer in a GGUF file, as a tokenizer.json: pieces, merges, and which of them are marks.

The file does not say all that tokenizer.json says: an added token that its converter took for a normal one is split
into letters here too.  So a tokenizer.json beside the file is used before this.
"""

from typing import Any

from numgemma.weights.gguf import Gguf, Texts

PIECES, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
CONTROL, USER_DEFINED = 3, 4  # kinds of token that are found before the text is cut
SPACE = "▁"


def holds_tokenizer(file: Gguf) -> bool:
    """Whether both are there: pieces alone, as a converter writes them that found no merges, cut no text."""
    return all(isinstance(file.keys.get(key), Texts) for key in (PIECES, MERGES))


def tokenizer_of(file: Gguf) -> dict[str, Any]:
    """What `tokenizers` reads, from a file that holds it."""
    vocabulary, merges = list(file.keys[PIECES]), file.keys[MERGES]
    kinds = file.keys.get("tokenizer.ggml.token_type", ())
    added = [i for i, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)]
    return {
        "version": "1.0",
        "added_tokens": [mark(i, vocabulary[i], bool(kinds[i] == CONTROL)) for i in added],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        "post_processor": begins_with(vocabulary, file.keys),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": vocabulary[number(file.keys, "unknown_token_id", 3, len(vocabulary))],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(vocabulary)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def mark(i, piece, special):
    """An added token."""
    looks = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": piece, "special": special} | looks


def begins_with(vocabulary, keys):
    """Puts <bos> before a text, where the file says so."""
    if not keys.get("tokenizer.ggml.add_bos_token", True):
        return None
    i = number(keys, "bos_token_id", 2, len(vocabulary))
    bos = {"SpecialToken": {"id": vocabulary[i], "type_id": 0}}
    text = [{"Sequence": {"id": part, "type_id": 0}} for part in "AB"]
    return {
        "type": "TemplateProcessing",
        "single": [bos, text[0]],
        "pair": [bos, *text],
        "special_tokens": {vocabulary[i]: {"id": vocabulary[i], "ids": [i], "tokens": [vocabulary[i]]}},
    }


def number(keys, name, otherwise, below):
    value = keys.get(f"tokenizer.ggml.{name}", otherwise)
    return value if type(value) is int and 0 <= value < below else min(otherwise, below - 1)
