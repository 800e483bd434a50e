"""A prompt and its files -> the arrays that enter the model: what Transformers' processor returns, under its names.

In the text, `<|image|>`, `<|audio|>` and `<|video|>` stand for the files of each kind, in order.  Each becomes as many
soft tokens as the file calls for, between a token that begins them and one that ends them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from numgemma.errors import InputError
from numgemma.incoming import parse_object, read_object
from numgemma.prompt import audio
from numgemma.prompt.chat import KINDS
from numgemma.prompt.processors import CLASSES, Marks, Processor, ProcessorClass
from numgemma.prompt.tokenizer import Tokenizer

DATA = Path(__file__).parents[1] / "data"
READABLE = "check its permissions"

Files = Mapping[str, list[Path]]  # of "image", "audio" and "video", each in the order of its placeholders


def listed(files: Mapping[str, Any]) -> Files:
    """One path or several of each kind, as lists of paths."""
    for kind in files:
        if kind not in KINDS:
            raise InputError(f"'{kind:.40}' is no kind of file; name them as {', '.join(KINDS)}.")
    several = {kind: [some] if isinstance(some, str | Path) else some for kind, some in files.items()}
    return {kind: [Path(path) for path in some] for kind, some in several.items()}


# the settings


def processor_of(checkpoint) -> Processor:
    """`read_processor`, of an opened checkpoint: a GGUF file has no config.json beside it that tells the model_type."""
    return read_processor(checkpoint.folder, checkpoint.config.get("model_type"))


def read_processor(folder: Path, kind=None) -> Processor:
    """From a checkpoint's processor_config.json or, where it has none, the official one of its model_type.

    kind: the model_type, where it does not stand in a config.json in that folder.  Raises InputError where a setting
    has a value that changes the numbers in a way not computed here.
    """
    path, older = folder / "processor_config.json", folder / "preprocessor_config.json"
    raw = read_object(path, READABLE) if path.exists() else {}
    if older.exists() and not any(isinstance(value, dict) for value in raw.values()):
        return parse_older(older, raw, kind or model_type(folder))
    if path.exists():
        return parse_processor(raw, str(path))
    theirs = released(kind or model_type(folder))
    return parse_processor(parse_object(theirs.read_bytes(), theirs.name), theirs.name)


def model_type(folder: Path):
    config = folder / "config.json"
    return read_object(config, READABLE).get("model_type") if config.exists() else None


def released(kind) -> Path:
    """The released processor_config.json of a model_type; gemma4's, which most models have, for one that has none."""
    files = {path.stem: path for path in (DATA / "processor").iterdir()}
    return files.get(str(kind).removesuffix("_text"), files["gemma4"])


def released_class(kind) -> ProcessorClass:
    """The processor that the models of a model_type come with."""
    path = released(kind)
    return find_class(parse_object(path.read_bytes(), path.name), "", path.name)


def parse_older(path: Path, beside: dict[str, Any], kind) -> Processor:
    """Settings that Transformers before 5 wrote into preprocessor_config.json, of models that are as old."""
    older = read_object(path, READABLE)
    cls = find_class(older | beside, released_class(kind).name, str(path))
    if cls.united is None:
        raise InputError(f"{path}: is of Transformers before 5; save the processor again, as processor_config.json.")
    return cls.parse(cls.united(older, beside), str(path))


def parse_processor(raw: dict[str, Any], where: str) -> Processor:
    """The parsed JSON object; `where` names the file in errors."""
    return find_class(raw, "Gemma4Processor", where).parse(raw, where)


def find_class(raw: dict[str, Any], usual: str, where: str) -> ProcessorClass:
    kind = raw.get("processor_class", usual)
    if not isinstance(kind, str) or kind not in CLASSES:
        raise InputError(f"{where}: processor_class {kind!r:.80} is not one of {', '.join(CLASSES)}.")
    return CLASSES[kind]


def with_budget(p: Processor, soft_tokens: int) -> Processor:
    """Another number of soft tokens at most, for each image and each frame of a video, as max_soft_tokens=N does."""
    if not p.cls.budgets:
        raise InputError("All pictures of this model become as many soft tokens; leave out --soft-tokens.")
    if soft_tokens not in p.cls.budgets:
        raise InputError(f"{soft_tokens} soft tokens is not one of {', '.join(map(str, p.cls.budgets))}.")
    image, frame = (replace(s, max_soft_tokens=soft_tokens) for s in (p.image, p.frame))
    return replace(p, image=image, frame=frame)


# the prompt


def read_marks(config, tokenizer: Tokenizer) -> dict[str, Marks]:
    """The tokens for each kind of file that a checkpoint names, by config.json's ids and the tokenizer's names."""
    rows = (
        ("image", config.boi_token_id, config.image_token_id, config.eoi_token_id),
        ("video", config.boi_token_id, config.video_token_id, config.eoi_token_id),
        ("audio", config.boa_token_id, config.audio_token_id, config.eoa_token_id or config.eoa_token_index),
    )
    found = {}
    for type_id, (kind, begin, soft, end) in enumerate(rows, start=1):
        if begin is None or soft is None or end is None:
            continue
        a, b, c = (tokenizer.rust.id_to_token(i) for i in (begin, soft, end))
        if a and b and c:
            found[kind] = Marks(a, b, c, soft, type_id)
    return found


def prepare(text: str, files: Files, p: Processor, marks: Mapping[str, Marks], encode: Callable[[str], list[int]]):
    """The arrays of one prompt by their names, each with the processor's leading axis.

    encode: text to token ids.  Raises InputError where the placeholders are not as many as the files, or where a file
    cannot be used.  Equals the processor that p is of.
    """
    check_kinds(files, p)
    check_places(text, files, marks)
    arrays: dict[str, np.ndarray] = {}
    spelled: dict[str, list[str]] = {}
    for kind, read in p.cls.read.items():
        if files.get(kind):
            found, spelled[kind] = read(files[kind], p, marks[kind])
            arrays |= found
    text = expand(text, spelled, marks)
    ids = np.array([encode(text)], np.int64)
    for m in marks.values():
        if (ids == m.soft_id).sum() != text.count(m.soft):
            raise InputError(f"The tokenizer does not make one token of {m.soft}; check tokenizer.json.")
    types = sum((m.type_id * (ids == m.soft_id) for m in marks.values()), np.zeros_like(ids))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), p.cls.types: types} | arrays


def join(text, files: Files, settings: Processor, config, tokenizer: Tokenizer, encode, soft_tokens=None):
    """`prepare`, for a model of that config; soft_tokens: another budget than the settings'."""
    if soft_tokens is not None:
        settings = with_budget(settings, soft_tokens)
    return prepare(text, files, settings, read_marks(config, tokenizer), encode)


def place(text, files: Files, config, tokenizer: Tokenizer):
    """A plain prompt with a placeholder for each file: its own, or one before it."""
    bos = config.text.bos_token_id
    name = None if bos is None else tokenizer.rust.id_to_token(bos)
    return placed(text, files, read_marks(config, tokenizer), name)


def placed(text, files: Files, marks, bos: str | None = None):
    """A text without placeholders, with those of its files put before it; after <bos> where the text begins with it."""
    if any(m.soft in text for m in marks.values()):
        return text
    places = "".join(m.soft * len(files.get(kind, ())) for kind, m in marks.items())
    begin = bos if bos and text.startswith(bos) else ""
    return begin + places + text.removeprefix(begin)


def check_kinds(files: Files, p: Processor):
    for kind, paths in files.items():
        if paths and kind not in p.cls.read:
            raise InputError(f"{paths[0]}: this model's processor takes no {kind}; leave out --{kind}.")


def check_places(text, files: Files, marks):
    """The text has as many placeholders of each kind as there are files."""
    for kind, paths in files.items():
        if paths and kind not in marks:
            raise InputError(f"{paths[0]}: this checkpoint's config.json and tokenizer name no tokens for {kind}.")
    for kind, m in marks.items():
        places, given = text.count(m.soft), len(files.get(kind, ()))
        if places != given:
            raise InputError(f"The prompt has {places} {m.soft} for {given} --{kind}; give one file for each.")


def expand(text, spelled, marks):
    """Every placeholder replaced by what stands for its file."""
    queues = {marks[kind].soft: iter(parts) for kind, parts in spelled.items()}
    pattern = "|".join(map(re.escape, queues)) or r"(?!)"
    return re.sub(pattern, lambda match: next(queues[match[0]]), text)


def cut_short(paths, p: Processor):
    """One sentence for each recording of which the model hears a part."""
    limit = p.sound.longest / p.sound.sampling_rate
    for path in paths:
        seconds = audio.duration(path)
        if limit < seconds < 1e9:  # a stream that does not know its length says so by an endless one
            yield f"{path}: lasts {seconds:.0f} s; the model hears the first {limit:.0f} s, as in Transformers."
