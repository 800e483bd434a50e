"""What prompts ask of a processor of Transformers.  A new one is a file with one such record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from numgemma.config import build
from numgemma.errors import InputError


class Marks(NamedTuple):
    """The tokens that stand for one kind of file."""

    begin: str
    soft: str  # also the placeholder in a prompt
    end: str
    soft_id: int
    type_id: int  # in the array of token types


@dataclass(frozen=True, eq=False)
class ProcessorClass:
    """One processor_class.

    name: as processor_config.json has it.
    parse: that file's object, and its name for errors -> Processor; strict.
    read: kind of file -> a function of paths, processor, marks -> arrays by name, and the text for each file.
    types: the array that tells the kinds of tokens apart.
    budgets: soft tokens that a picture may be given at most; none: all pictures become as many.
    seen: path, settings of pictures -> the picture as the model sees it: height width 3, uint8.
    grid: height, width, settings of pictures -> rows and columns of the soft tokens that a picture becomes.
    heard: path, processor -> frames of a recording U M, without padding, and how many soft tokens it becomes.
    special: id -> the special token that every released tokenizer has there.
    named: a key of config.json -> the special token whose id it tells.
    around: the special tokens that the released tokenizer puts before a text, and behind it.
    united: the object of an older preprocessor_config.json, and that of the file beside it -> one as `parse` reads it.
    """

    name: str
    parse: Callable[[dict, str], "Processor"]
    read: Mapping[str, Callable]
    seen: Callable
    grid: Callable
    heard: Callable
    special: Mapping[int, str]
    named: Mapping[str, str]
    around: tuple[str, str] = ("<bos>", "")
    types: str = "mm_token_type_ids"
    budgets: tuple[int, ...] = ()
    united: Callable[[dict, dict], dict] | None = None


@dataclass(frozen=True)
class Processor:
    """All numbers of a processor_config.json, and what is done with them."""

    cls: ProcessorClass
    image: Any  # settings of its class
    sound: Any
    frame: Any = None  # of a video
    num_frames: int = 0
    timed: bool = False  # whether each frame of a video stands behind its time, where a class leaves that open


# Settings that have one value in every release, and no other meaning here.
PICTURE: dict[str, Any] = {"do_convert_rgb": True, "do_rescale": True, "do_resize": True}
SOUND: dict[str, Any] = {"padding_side": "right", "padding_value": 0.0}
MEL = {"dither": 0.0, "input_scale_factor": 1.0, "per_bin_mean": None, "per_bin_stddev": None}

# Settings on which no number depends.
NAMES = {"processor_class", "image_processor_type", "video_processor_type", "feature_extractor_type"}


def numbers(raw: dict, name: str, fixed: dict[str, Any], idle: set[str], where: str) -> dict[str, Any]:
    """The settings of one section that are numbers to compute with; all others have the value they should."""
    section = raw.get(name)
    if not isinstance(section, dict):
        raise InputError(f"{where}: has no {name}; copy processor_config.json from the model's repository.")
    for key, value in fixed.items():
        if section.get(key, value) != value:
            raise InputError(f"{where}: {name} has {key} {section[key]!r:.60}; numgemma computes {value!r} alone.")
    return {key: value for key, value in section.items() if key not in fixed and key not in idle | NAMES}


def settings(cls: type, raw: dict, name: str, fixed: dict[str, Any], idle: set[str], where: str):
    """One section as the dataclass of its numbers."""
    return build(cls, numbers(raw, name, fixed, idle, where), f"{where}, {name}")


def mel_rules(s, frame_seconds: float, overdrive: int = 1):
    """What a log-mel front end needs.  overdrive: how many times the next power of two the transform's length is"""
    ms = round(1000 * frame_seconds)
    return [
        (s.sampling_rate > 0 and s.feature_size > 0 and s.mel_floor > 0, "a size of the sound is not positive"),
        (
            s.frame_length == round(frame_seconds * s.sampling_rate),
            f"frame_length should be {ms} ms, as Transformers computes it",
        ),
        (s.hop_length == round(0.01 * s.sampling_rate), "hop_length should be 10 ms, as Transformers computes it"),
        (
            s.fft_length == overdrive << (s.frame_length - 1).bit_length(),
            f"fft_length should be the next power of two{', doubled' * (overdrive > 1)}",
        ),
        (0 <= s.min_frequency < s.max_frequency <= s.sampling_rate / 2, "min_frequency and max_frequency are no band"),
    ]
