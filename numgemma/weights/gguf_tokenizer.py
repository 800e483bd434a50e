"""The tokenizer in a GGUF file, as a tokenizer.json: pieces, merges, and which of them are marks.

The file does not say all that tokenizer.json says: an added token that its converter took for a normal one is split
into letters here too.  So a tokenizer.json beside the file is used before this.
"""

from typing import Any

from numgemma.pieces import mark, tokenizer_json
from numgemma.weights.gguf import Gguf, Texts

PIECES, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
CONTROL, USER_DEFINED = 3, 4  # kinds of token that are found before the text is cut


def holds_tokenizer(file: Gguf) -> bool:
    """Whether both are there: pieces alone, as a converter writes them that found no merges, cut no text."""
    return all(isinstance(file.keys.get(key), Texts) for key in (PIECES, MERGES))


def tokenizer_of(file: Gguf) -> dict[str, Any]:
    """What `tokenizers` reads, from a file that holds it."""
    vocabulary, merges = list(file.keys[PIECES]), file.keys[MERGES]
    kinds = file.keys.get("tokenizer.ggml.token_type", ())
    added = [i for i, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)]
    marks = [mark(i, vocabulary[i], bool(kinds[i] == CONTROL)) for i in added]
    unknown = vocabulary[number(file.keys, "unknown_token_id", 3, len(vocabulary))]
    pairs = [merge.split(" ", 1) for merge in merges]
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    return tokenizer_json(ids, pairs, unknown, marks, begins_with(vocabulary, file.keys))


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
