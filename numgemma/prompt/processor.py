"""A prompt and its files -> the arrays that enter the model: what Transformers' processor returns, under its names.

In the text, `<|image|>`, `<|audio|>` and `<|video|>` stand for the files of each kind, in order.  Each becomes as many
soft tokens as the file calls for, between a token that begins them and one that ends them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numgemma.config import build
from numgemma.errors import InputError
from numgemma.incoming import parse_object, read_object
from numgemma.prompt import audio, images, video
from numgemma.prompt.chat import KINDS
from numgemma.prompt.processor_classes import CLASSES, ProcessorClass
from numgemma.prompt.tokenizer import Tokenizer

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Processor:
    """All numbers of processor_config.json, and what is done with them."""

    cls: ProcessorClass
    image: images.ImageSettings
    frame: images.ImageSettings  # of a video
    num_frames: int
    sound: Any  # its class's


class Marks(NamedTuple):
    """The tokens that stand for one kind of file."""

    begin: str
    soft: str  # also the placeholder in a prompt
    end: str
    soft_id: int
    type_id: int  # in mm_token_type_ids


Files = Mapping[str, list[Path]]  # of "image", "audio" and "video", each in the order of its placeholders


def listed(files: Mapping[str, Any]) -> Files:
    """One path or several of each kind, as lists of paths."""
    for kind in files:
        if kind not in KINDS:
            raise InputError(f"'{kind:.40}' is no kind of file; name them as {', '.join(KINDS)}.")
    several = {kind: [some] if isinstance(some, str | Path) else some for kind, some in files.items()}
    return {kind: [Path(path) for path in some] for kind, some in several.items()}


# the settings


def read_processor(folder: Path) -> Processor:
    """From a checkpoint's processor_config.json or, where it has none, the official one of its model_type.

    Raises InputError where a setting has a value that changes the numbers in a way not computed here.
    """
    path, older = folder / "processor_config.json", folder / "preprocessor_config.json"
    if path.exists():
        return parse_processor(read_object(path, "check its permissions"), str(path))
    if older.exists():
        raise InputError(f"{older}: is of Transformers before 5; save the processor again, as processor_config.json.")
    config = folder / "config.json"
    kind = read_object(config, "check its permissions").get("model_type") if config.exists() else None
    theirs = released(kind)
    return parse_processor(parse_object(theirs.read_bytes(), theirs.name), theirs.name)


def released(model_type) -> Path:
    """The released processor_config.json of a model_type; gemma4's, which most models have, for one that has none."""
    files = {path.stem: path for path in (DATA / "processor").iterdir()}
    return files.get(model_type, files["gemma4"])


def parse_processor(raw: dict[str, Any], where: str) -> Processor:
    """The parsed JSON object; `where` names the file in errors."""
    kind = raw.get("processor_class", "Gemma4Processor")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise InputError(f"{where}: processor_class {kind!r:.80} is not one of {', '.join(CLASSES)}.")
    cls = CLASSES[kind]
    image, frame, sound = (numbers(raw, name, cls, where) for name in cls.fixed)
    num_frames = frame.pop("num_frames", 0)
    found = Processor(
        cls,
        build(images.ImageSettings, image, f"{where}, image_processor"),
        build(images.ImageSettings, frame, f"{where}, video_processor"),
        num_frames,
        build(cls.sound, sound, f"{where}, feature_extractor"),
    )
    check_processor(found, where)
    return replace(found, image=cls.entering(found.image), frame=cls.entering(found.frame))


def numbers(raw, name, cls: ProcessorClass, where) -> dict[str, Any]:
    """The settings of one section that are numbers to compute with; all others have the value they should."""
    section, fixed = raw.get(name), cls.fixed[name]
    if not isinstance(section, dict):
        raise InputError(f"{where}: has no {name}; copy processor_config.json from the model's repository.")
    for key, value in fixed.items():
        if section.get(key, value) != value:
            raise InputError(f"{where}: {name} has {key} {section[key]!r:.60}; numgemma computes {value!r} alone.")
    return {key: value for key, value in section.items() if key not in fixed and key not in cls.idle[name]}


def check_processor(p: Processor, where):
    """Numbers that have no meaning, or that Transformers would not follow."""
    rules = [
        (p.image.max_soft_tokens in images.BUDGETS, f"max_soft_tokens should be one of {images.BUDGETS}"),
        (p.frame.max_soft_tokens in images.BUDGETS, f"max_soft_tokens of a video should be one of {images.BUDGETS}"),
        (isinstance(p.num_frames, int) and p.num_frames > 0, "num_frames should be a positive number"),
        (min(vars(p.image).values()) > 0 and min(vars(p.frame).values()) > 0, "a size of a picture is not positive"),
        *p.cls.sound_rules(p.sound),
    ]
    for holds, complaint in rules:
        if not holds:
            raise InputError(f"{where}: {complaint}; correct the file.")


def with_budget(p: Processor, soft_tokens: int) -> Processor:
    """Another number of soft tokens at most, for each image and each frame of a video, as max_soft_tokens=N does."""
    if soft_tokens not in images.BUDGETS:
        raise InputError(f"{soft_tokens} soft tokens is not one of {', '.join(map(str, images.BUDGETS))}.")
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
    check_places(text, files, marks)
    arrays: dict[str, np.ndarray] = {}
    spelled: dict[str, list[str]] = {}
    for kind, read in (("image", read_images), ("video", read_videos), ("audio", read_sounds)):
        if files.get(kind):
            found, spelled[kind] = read(files[kind], p, marks[kind])
            arrays |= found
    text = expand(text, spelled, marks)
    ids = np.array([encode(text)], np.int64)
    for m in marks.values():
        if (ids == m.soft_id).sum() != text.count(m.soft):
            raise InputError(f"The tokenizer does not make one token of {m.soft}; check tokenizer.json.")
    types = sum((m.type_id * (ids == m.soft_id) for m in marks.values()), np.zeros_like(ids))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "mm_token_type_ids": types} | arrays


def join(text, files: Files, folder: Path, config, tokenizer: Tokenizer, encode, soft_tokens=None):
    """`prepare`, by the files of a checkpoint; soft_tokens: another budget than its own."""
    settings = read_processor(folder)
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


def read_images(paths, p: Processor, m: Marks):
    pairs = [p.cls.read_picture(path, p.image) for path in paths]
    pixels, places = map(np.stack, zip(*pairs, strict=True))
    spelled = [m.begin + m.soft * images.soft_tokens(xy, p.image) + m.end for xy in places]
    return {"pixel_values": pixels, "image_position_ids": places}, spelled


def read_sounds(paths, p: Processor, m: Marks):
    features, mask = p.cls.read_sounds(paths, p.sound)
    spelled = [m.begin + m.soft * p.cls.sound_tokens(one) + m.end for one in mask]
    return {"input_features": features, "input_features_mask": mask}, spelled


def read_videos(paths, p: Processor, m: Marks):
    """Each frame is spelled as when it is seen, and an image's tokens with the video's placeholder."""
    clips = [video.video_arrays(path, p.frame, p.num_frames) for path in paths]
    spelled = []
    for clip in clips:
        frame = m.begin + m.soft * images.soft_tokens(clip.places[0], p.frame) + m.end
        spelled.append(" ".join(f"{time} {frame}" for time in video.timestamps(clip.seconds)))
    arrays = {
        "pixel_values_videos": np.concatenate([clip.patches for clip in clips]),
        "video_position_ids": np.concatenate([clip.places for clip in clips]),
        "num_frames_per_video": np.array([len(clip.patches) for clip in clips]),
    }
    return arrays, spelled


def cut_short(paths, p: Processor):
    """One sentence for each recording of which the model hears a part."""
    limit = p.sound.longest / p.sound.sampling_rate
    for path in paths:
        seconds = audio.duration(path)
        if limit < seconds < 1e9:  # a stream that does not know its length says so by an endless one
            yield f"{path}: lasts {seconds:.0f} s; the model hears the first {limit:.0f} s, as in Transformers."
