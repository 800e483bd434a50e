"""Text to token ids and back, with the checkpoint's own tokenizer.json."""

from pathlib import Path

from numgemma.errors import InputError


class Tokenizer:
    """The tokenizer of one checkpoint; its post-processor decides whether a <bos> is put first."""

    def __init__(self, path: Path):
        from tokenizers import Tokenizer as Rust

        try:
            self.rust = Rust.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{path}: is no tokenizer.json ({error}); copy it from the model's repository.") from None

    def encode(self, text: str) -> list[int]:
        return self.rust.encode(text).ids

    def decode(self, ids) -> str:
        return self.rust.decode([int(i) for i in ids], skip_special_tokens=True)

    def pieces(self, ids) -> list[str]:
        """The text of each token by itself, special tokens by name."""
        return [self.rust.decode([int(i)], skip_special_tokens=False) for i in ids]


def open_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise InputError(f"{path}: no such file; copy it from the model's repository, or give token ids with --ids.")
    return Tokenizer(path)


def stream(tokenizer: Tokenizer, ids):
    """The text of a growing sequence, piece by piece: characters are held back until all their bytes are there."""
    seen: list[int] = []
    shown = ""
    for i in ids:
        seen.append(i)
        text = tokenizer.decode(seen)
        if text.startswith(shown) and not text.endswith("�"):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(seen)[len(shown) :] if seen else ""
