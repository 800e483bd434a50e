"""Lint: the files of a checkpoint, as far as they can be read; and those beside the weights, against the config."""

import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from numgemma.checkpoint import INDEX, SINGLE, gguf_file, open_checkpoint, read_weight_map, short_name
from numgemma.config import typed
from numgemma.errors import InputError
from numgemma.incoming import read_object
from numgemma.surgery.findings import Finding, error, note, warning
from numgemma.weights.quantised import unpacked
from numgemma.weights.safetensors import open_safetensors


@dataclass(eq=False)
class Parts:
    """What could be read.  config is None where it could not."""

    folder: Path
    config: dict[str, Any] | None = None
    generation: dict[str, Any] | None = None
    tensors: dict[str, np.ndarray] = field(default_factory=dict)  # by short name
    stored: dict[str, str] = field(default_factory=dict)  # short name -> name in the file


def read_parts(path: Path) -> tuple[Parts, list[Finding]]:
    """Everything readable of a checkpoint.  Raises InputError only where there is none of that name."""
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; name a checkpoint.")
    parts = Parts(path if path.is_dir() else path.parent)
    found: list[Finding] = []
    if gguf_file(path):
        opened = tried(found, "file", lambda: open_checkpoint(path))
        if opened:
            parts.config, parts.tensors = opened.config, dict(opened.weights.tensors)
        return parts, found
    parts.config = tried(found, "config", lambda: read_object(parts.folder / "config.json", "add the model's own"))
    if (parts.folder / "generation_config.json").exists():
        file = parts.folder / "generation_config.json"
        parts.generation = tried(found, "generation", lambda: read_object(file, "check its permissions"))
    read_tensors(path, parts, found)
    whole = tried(found, "format", lambda: unpacked(path, parts.tensors, parts.config or {}))
    parts.tensors = parts.tensors if whole is None else whole
    return parts, found


def tried(found: list[Finding], rule: str, read):
    """What read() returns; its complaint goes among the findings."""
    try:
        return read()
    except InputError as problem:
        found.append(error(rule, str(problem)))
        return None


def read_tensors(path: Path, parts: Parts, found: list[Finding]) -> None:
    """All tensors of all files that can be opened."""
    files, listed = tensor_files(path, found)
    stored, where = parts.stored, dict[str, str]()
    for file in files:
        opened = tried(found, "file", lambda file=file: open_safetensors(file))
        for name, x in opened.tensors.items() if opened else ():
            short = short_name(name)
            if short in stored:
                found.append(error("twice", f"{stored[short]!r} and {name!r} are both {short!r}; remove one.", [short]))
            stored[short], where[name], parts.tensors[short] = name, file.name, x
    for name, shard in listed.items():
        if where.get(name) != shard and (path / shard).exists():
            found.append(error("index", f"{INDEX} lists {name!r:.120} in {shard}, and it is not there.", [name]))
    for name in where.keys() - listed.keys() if listed else ():
        found.append(error("index", f"{where[name]} holds {name!r:.120}, and {INDEX} does not list it.", [name]))


def tensor_files(path: Path, found: list[Finding]) -> tuple[list[Path], dict[str, str]]:
    """The files to open, and what the index says of them."""
    if path.is_file():
        return [path], {}
    if (path / SINGLE).exists():
        if (path / INDEX).exists():
            found.append(warning("index", f"{INDEX} lies beside {SINGLE}, which wins; remove what is not meant."))
        return [path / SINGLE], {}
    if not (path / INDEX).exists():
        stray = sorted(file for file in path.glob("*.safetensors"))
        what = f"{len(stray)} safetensors files and no {INDEX}" if stray else f"neither {SINGLE} nor {INDEX}"
        found.append(error("file", f"{path}: has {what}, so nothing loads it; add what is missing."))
        return stray, {}
    listed = tried(found, "index", lambda: read_weight_map(path / INDEX)) or {}
    return [path / shard for shard in sorted(set(listed.values()))], listed


# beside the weights


def companions(parts: Parts, text: dict[str, Any], top: dict[str, Any]) -> list[Finding]:
    """generation_config.json and the tokenizer against the config.  text, top: sections of config.json"""
    vocab = text.get("vocab_size")
    if not isinstance(vocab, int) or isinstance(vocab, bool):
        return []
    found = [*outside(top | text, vocab, "config.json"), *generation_rules(parts.generation, text, top, vocab)]
    return found + tokenizer_rules(parts.folder, text, top, vocab)


def outside(section: dict[str, Any], vocab: int, file: str) -> list[Finding]:
    """Token ids that no embedding has."""
    found = []
    for key, value in section.items():
        if key.endswith(("token_id", "token_index")) or key in ("suppress_tokens", "begin_suppress_tokens"):
            wrong = [i for i in as_list(value) if not (isinstance(i, int) and 0 <= i < vocab)]
            if wrong:
                text = f"{file}: {key} names the token {reprlib.repr(wrong[0])}, and the vocabulary has {vocab}."
                found.append(error("token", text))
    return found


def as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def told(key: str, text: dict[str, Any], top: dict[str, Any]) -> Any:
    """A key of the whole config, or else of its text part."""
    return top[key] if top.get(key) is not None else text.get(key)


def generation_rules(generation, text, top, vocab) -> list[Finding]:
    if generation is None:
        return [note("generation", "There is no generation_config.json, so the stop tokens are those of config.json.")]
    found = outside(generation, vocab, "generation_config.json")
    said = (generation.get("eos_token_id"), told("eos_token_id", text, top))
    stops, ours = ({i for i in as_list(ids) if type(i) is int} for ids in said)  # `outside` tells of the others
    if stops and ours - stops:
        missed = ", ".join(map(str, sorted(ours - stops, key=str)))
        found.append(
            warning("generation", f"config.json stops at token {missed}, and generation_config.json does not.")
        )
    for key in ("bos_token_id", "pad_token_id"):
        a, b = generation.get(key), told(key, text, top)
        if None not in (a, b) and a != b:
            found.append(warning("generation", f"{key} is {a} in generation_config.json and {b} in config.json."))
    return found


SPECIAL = {  # key of tokenizer_config.json -> key of config.json
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "pad_token_id",
    "image_token": "image_token_id",
    "audio_token": "audio_token_id",
    "boi_token": "boi_token_id",
    "eoi_token": "eoi_token_id",
    "boa_token": "boa_token_id",
    "eoa_token": "eoa_token_index",
}


def tokenizer_rules(folder: Path, text, top, vocab) -> list[Finding]:
    path = folder / "tokenizer.json"
    if not path.exists():
        return [note("tokenizer", "There is no tokenizer.json, so the model runs on token ids alone.")]
    try:
        tokens = read_tokens(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        return [error("tokenizer", f"{path}: is no tokenizer ({type(problem).__name__}); copy the parent's.")]
    found, size = [], max(tokens.values(), default=-1) + 1
    if size > vocab:
        found.append(error("tokenizer", f"tokenizer.json makes ids up to {size - 1}, and the vocabulary has {vocab}."))
    elif size < vocab:
        found.append(note("tokenizer", f"tokenizer.json knows {size} tokens, and the vocabulary has {vocab}."))
    return found + special_tokens(folder, tokens, text, top)


def read_tokens(path: Path) -> dict[str, int]:
    """Token -> id, of the vocabulary and of what was added to it."""
    raw = read_object(path, "check its permissions")
    where = f"{path}: is no tokenizer.json, "
    model = typed(raw.get("model"), dict[str, Any], f"{where}model")
    vocab = typed(model.get("vocab", {}), dict[str, int] | list[list[Any]], f"{where}vocab")
    if isinstance(vocab, list):  # unigram: pairs of a piece and its score, by id
        vocab = {str(pair[0]): i for i, pair in enumerate(vocab) if pair}
    added = typed(raw.get("added_tokens", []), list[dict[str, Any]], f"{where}added_tokens")
    ids = {str(token.get("content")): typed(token.get("id"), int, f"{where}id of an added token") for token in added}
    return {**vocab, **ids}


def special_tokens(folder: Path, tokens: dict[str, int], text, top) -> list[Finding]:
    """Tokens that the tokenizer names, and the config gives another id."""
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return []
    found: list[Finding] = []
    named = tried(found, "tokenizer", lambda: read_object(path, "check its permissions")) or {}
    for key, ours in SPECIAL.items():
        token = named.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        ids = as_list(told(ours, text, top)) or as_list(told(ours.replace("_index", "_id"), text, top))
        if not isinstance(token, str) or not ids:
            continue
        if token not in tokens:
            found.append(warning("tokenizer", f"tokenizer_config.json names {key} {token!r:.40}, which has no id."))
        elif tokens[token] not in ids:
            said = f"{key} {token!r:.40} is token {tokens[token]}, and config.json says {ids[0]} ({ours})."
            found.append(warning("tokenizer", said))
    return found
