"""Writes a small tokenizer.json of Gemma 4's kind, with the special tokens at their released ids where those fit."""

import json
from pathlib import Path

SPECIAL = {
    0: "<pad>",
    1: "<eos>",
    2: "<bos>",
    3: "<unk>",
    4: "<mask>",
    46: "<|tool>",
    47: "<tool|>",
    48: "<|tool_call>",
    49: "<tool_call|>",
    50: "<|tool_response>",
    51: "<tool_response|>",
    52: '<|"|>',
    98: "<|think|>",
    100: "<|channel>",
    101: "<channel|>",
    105: "<|turn>",
    106: "<turn|>",
}
# at 255999 and 258880 to 258884 in the released file
MEDIA = {600: "<|image>", 601: "<|audio>", 602: "<|image|>", 603: "<|audio|>"}
MEDIA |= {604: "<image|>", 605: "<audio|>", 606: "<|video|>"}

NEWLINES = {107: "\n", 108: "\n\n", 109: "\n\n\n"}  # added, and not special
SPACES = {138: "▁▁", 139: "▁▁▁", 140: "▁▁▁▁"}
BYTES = {238 + byte: f"<0x{byte:02X}>" for byte in range(256)}
WORDS = (
    "▁▁▁▁",
    "▁Hello",
    "▁how",
    "▁are",
    "▁you",
    "▁日本",
    "Hello",
    "user",
    "model",
    "system",
    "thought",
    "ein",
    "é",
    "::",
)
SIZE = 640

NAMED = {"bos_token": "<bos>", "eos_token": "<turn|>", "unk_token": "<unk>", "pad_token": "<pad>"}
NAMED |= {"mask_token": "<mask>", "image_token": "<|image|>", "audio_token": "<|audio|>", "boi_token": "<|image>"}
NAMED |= {"eoi_token": "<image|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}


def merges():
    """Every word grows from its first character, one at a time; a run of four spaces also from two of two."""
    pairs = [(word[:i], word[i]) for word in WORDS for i in range(1, len(word))]
    return list(dict.fromkeys([("▁", "▁"), ("▁▁", "▁▁"), *pairs]))


def vocabulary():
    """Piece -> id: the fixed ones, then characters and words in the gaps."""
    fixed = SPECIAL | MEDIA | NEWLINES | SPACES | BYTES
    pieces = [*map(chr, range(33, 127)), "▁", *"".join(WORDS), *(a + b for a, b in merges())]
    pieces = [piece for piece in dict.fromkeys(pieces) if piece not in fixed.values()]
    gaps = [i for i in range(SIZE) if i not in fixed]
    assert len(pieces) <= len(gaps)
    unused = [f"<unused{i}>" for i in range(len(gaps) - len(pieces))]
    return {piece: i for i, piece in (fixed | dict(zip(gaps, pieces + unused, strict=True))).items()}


def added(i, token, special):
    return {"id": i, "content": token, "special": special, "normalized": False} | dict.fromkeys(
        ("single_word", "lstrip", "rstrip"), False
    )


def tokenizer_json(bos=False):
    """As a dict; bos: put <bos> first, as the tokenizers of the base models do."""
    tokens = [added(i, token, True) for i, token in (SPECIAL | MEDIA).items()]
    tokens += [added(i, token, False) for i, token in NEWLINES.items()]
    first = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}] if bos else []
    a, b = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(tokens, key=lambda token: token["id"]),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*first, a],
            "pair": [*first, a, b],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}} if bos else {},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary(),
            "merges": merges(),
        },
    }


def write(folder, template=None, bos=False, **config):
    """tokenizer.json, tokenizer_config.json with more keys, and chat_template.jinja.  Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = NAMED | {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"} | config
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(bos)))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
