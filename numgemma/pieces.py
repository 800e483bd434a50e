"""tokenizer.json as Gemma's is made, around what differs from file to file: pieces, merges and marks.

A piece has ▁ where the text has a space; a character that is no piece is cut into its bytes, a piece each.
"""

from typing import Any

SPACE = "▁"
STEPS: dict[str, Any] = {
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    "pre_tokenizer": None,
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    },
}


def tokenizer_json(vocab: dict[str, int], merges: list, unknown: str, added: list, around) -> dict[str, Any]:
    """What `tokenizers` reads.  vocab: piece -> id   added: of `mark`   around: the post-processor, or None"""
    model = {"type": "BPE", "unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
    model |= {"vocab": vocab, "merges": merges}
    return {"version": "1.0", "added_tokens": added, **STEPS, "post_processor": around, "model": model}


def mark(i: int, piece: str, special: bool = True) -> dict[str, Any]:
    """An added token, which is found before the text is cut.  special: `decode` leaves it out"""
    looks = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": piece, "special": special} | looks
