"""A tokenizer for a shrunk vocabulary: every byte is a token, and the family's special tokens keep their meaning."""

from typing import Any

from numgemma.pieces import SPACE, mark, tokenizer_json
from numgemma.prompt.processor import released_class

FIRST_BYTE = 128


def byte_tokenizer(raw: dict[str, Any], vocab: int) -> dict[str, Any]:
    """tokenizer.json for a model of this config.json whose vocabulary has at least 512 tokens."""
    cls = released_class(raw.get("model_type"))
    special = {**cls.special} | {raw[key]: text for key, text in cls.named.items() if raw.get(key) is not None}
    pieces = {i: f"<unused{i}>" for i in range(vocab)}
    pieces |= {FIRST_BYTE + byte: f"<0x{byte:02X}>" for byte in range(256)}
    pieces |= {107: "\n", 108: SPACE} | special
    ids, marks = {text: i for i, text in pieces.items()}, [mark(*token) for token in sorted(special.items())]
    return tokenizer_json(ids, [], "<unk>", marks, put_around(*cls.around))


def put_around(before: str, after: str):
    """The post-processor of a base model: <bos>, then the text; of one that makes vectors, <eos> behind it too."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    names = {name: i for i, name in ((2, "<bos>"), (1, "<eos>")) if name in (before, after)}
    first, *last = ({"SpecialToken": {"id": name, "type_id": 0}} for name in names)
    single = [first, text, *last]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in names.items()},
    }


def tokenizer_config(raw: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json beside it."""
    told = released_class(raw.get("model_type")).named
    media = {key.removesuffix("_id"): text for key, text in told.items() if raw.get(key) is not None}
    names = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk", "mask")}
    return {"tokenizer_class": "GemmaTokenizer", "padding_side": "left", **names, "extra_special_tokens": media}
