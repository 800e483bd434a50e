"""Text to token ids and back, with the checkpoint's own tokenizer.json."""

import json
import re
from functools import cached_property
from pathlib import Path

from numgemma.errors import InputError
from numgemma.incoming import by_library, read_bytes
from numgemma.prompt.bytelevel import InPython
from numgemma.prompt.chat import render_chat

HALF = "�"  # what stands for bytes that are no whole character
PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]')  # no Gemma has one; `tokenizers` panics on a wrong one
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # a token that stands for one byte


class Tokenizer:
    """The tokenizer of one checkpoint."""

    def __init__(self, path: Path, raw: bytes | None = None):
        """path: of tokenizer.json; raw: its content, where it comes from elsewhere"""
        raw = read_bytes(path) if raw is None else raw
        with by_library(f"{path}: is no tokenizer.json", "copy it from the model's repository"):
            self.rust = opened(raw, path)
        self.folder = Path(path).parent

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; the tokenizer's own post-processor decides whether a <bos> is put first."""
        return self.ids(text, True)

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a text that has its special tokens already, as a rendered chat: no second <bos>."""
        return self.ids(text, False)

    def encode_chat(self, messages, **choices) -> list[int]:
        """Token ids of a chat, spelled out by the checkpoint's template; choices as of chat.render_chat.

        Equals transformers.PreTrainedTokenizerBase.apply_chat_template; placeholders of media stand alone still.
        """
        return self.encode_rendered(render_chat(self.folder, messages, **choices))

    def ids(self, text, add_special_tokens):
        with by_library(f"{self.folder}/tokenizer.json: fails on a text", "copy it from the model's repository"):
            try:
                return self.rust.encode(text, add_special_tokens=add_special_tokens).ids
            except TypeError:
                raise InputError("A text to tokenise should be a str without lone surrogates; remove them.") from None

    def decode(self, ids, special=False) -> str:
        """The text of token ids; special: with <bos>, <turn|> and the like."""
        return self.rust.decode([int(i) for i in ids], skip_special_tokens=not special)

    def pieces(self, ids) -> list[str]:
        """The text of each token by itself, special tokens by name."""
        return [self.rust.decode([int(i)], skip_special_tokens=False) for i in ids]

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids that `decode` leaves out."""
        added = self.rust.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)


def opened(raw: bytes, path):
    """`tokenizers`' own, or where that is not installed what reads the bundled model's file in its place."""
    try:
        from tokenizers import Tokenizer as Rust
    except ModuleNotFoundError:
        return InPython(raw, path)
    if PREFIX.search(raw):
        raise ValueError("its pieces have a prefix")
    rust = Rust.from_buffer(raw)
    rust.no_truncation()  # what training left in the file would cut a prompt in silence
    rust.no_padding()
    return rust


def open_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise InputError(f"{path}: no such file; copy it from the model's repository, or give token ids with --ids.")
    return Tokenizer(path)


def tokenizer_of(checkpoint) -> Tokenizer:
    """A checkpoint's, as tokenizer.json says it, or else as its weights do, where a GGUF file holds one."""
    path = checkpoint.folder / "tokenizer.json"
    if checkpoint.tokenizer is None or path.exists():
        return open_tokenizer(checkpoint.folder)
    return Tokenizer(path, json.dumps(checkpoint.tokenizer()).encode())


def stream(tokenizer: Tokenizer, ids, special=False):
    """The text of a growing sequence, piece by piece: characters are held back until all their bytes are there.

    The pieces together are `decode` of all ids.  Each step decodes the last few tokens alone: those not yet shown,
    and before them those shown last, since a decoder may treat the first token of a text differently.
    """
    shown: list[int] = []
    held: list[int] = []
    for i in ids:
        token = tokenizer.rust.id_to_token(int(i))
        if token is None or (i in tokenizer.special and not special):
            continue  # as `decode` does, so that bytes on both sides of such a token still meet
        held.append(i)
        if BYTE.fullmatch(token):
            continue  # a run of bytes is decoded as a whole: one that is wrong spoils all before it
        before, text = tokenizer.decode(shown, special), tokenizer.decode(shown + held, special)
        if not text.endswith(HALF):
            yield text[len(before) :]
            shown, held = held, []
    if held:
        yield tokenizer.decode(shown + held, special)[len(tokenizer.decode(shown, special)) :]
