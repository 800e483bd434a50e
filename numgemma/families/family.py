"""What the rest of the package may ask of a family of models.  A new family is a folder with one such record.

Parts are functions of the forward pass by name.  They may run alone, and may be swapped for a while; the names of their
arguments are part of the contract, since faults ask for them by name.  A fault that changes a part which a family lacks
cannot act there.  The package asks for these; a family may list more, for faults to act on:

    forward       ids, media, w, run, tap -> what the model is for: logits T V, or a vector
    block         x, w, spec, ..., tap -> x: one layer, called once for each row of the layer table
    head          x, w, run, tap -> logits T V
    soft tokens   media, w, run, tap -> kind of media: O D, what stands at its placeholders
    rope table    the table of one kind of layer: positions, spec, ...

and for a model that continues a prompt, its forward pass in steps:

    enter         ids, soft, blocks, w, run, tap -> tokens, all that flows into the first layer; soft: kind: O D, and
                  blocks: T numbers the pictures, as prompt.media.picture_blocks does
    layers        tokens, rows, w, run, tap -> tokens, after these rows of the table; tokens.of(slice): some of them
    forget        kvs, rows -> None: drops the keys that no later token can see
    leave         tokens, w, run, tap -> T D, after the last norm; forgets too

Of a family that drafts for another, speculative.py asks for `embed` and `draft`; of one that writes canvases,
denoise.py for `enter encoder`, `encoder weights` and `guess`; of one that embeds, model.py for `vector`.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from numgemma.errors import InputError
from numgemma.prompt.media import NO_MEDIA
from numgemma.prompt.named import Input

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Run:
    """What holds for all tokens of one pass.

    kvs: the keys and values that layers keep, carried from pass to pass: empty for a new sequence.  start: the
    position of the first token of the pass.
    """

    config: Any  # the family's own
    dtype: np.dtype  # of the residual stream: the precision of the run
    kvs: dict = field(default_factory=dict)
    start: int = 0


def started(config, dtype, kvs, start) -> Run:
    """Every run of a model begins here: a fault may give it another layer table."""
    return Run(config, dtype, kvs, start)


def first_of_each_kind(rows) -> dict:
    """Kind of layer -> the first such row of a layer table.  Heads and rope are alike within a kind; F may not be."""
    found: dict = {}
    for spec in rows:
        found.setdefault(spec.kind, spec)
    return found


@dataclass(frozen=True)
class Outline:
    """What every config tells, whatever its spelling."""

    layers: tuple  # a row each, with at least index, kind, window (None: no end), N, H and kv_from
    width: int  # D
    vocabulary: int  # V
    longest: int  # positions that the model was made for
    per_layer: int = 0  # P; 0: no per-layer inputs
    bos: int | None = None
    stops: int | tuple[int, ...] | None = None

    @property
    def kinds(self) -> dict:
        """The first layer of each kind."""
        return first_of_each_kind(self.layers)

    @property
    def layer_kinds(self) -> list[str]:
        return [spec.kind for spec in self.layers]

    @property
    def window(self) -> int | None:
        """Tokens that a sliding layer sees at most, on either side if it sees both; None where there is none."""
        return max((s.window for s in self.layers if s.window is not None), default=None)


@dataclass(frozen=True)
class Section:
    """One object of config.json.

    cls: the dataclass of its keys.  check: such a dataclass, the file's name; raises InputError.  spelled: the object
    as it stands there -> one with the keys of cls.
    """

    cls: type
    check: Callable[[Any, str], None] = lambda c, where: None
    spelled: Callable[[dict], dict] = dict


def nothing(*args) -> dict:
    """What a family answers that has none of it."""
    return {}


def no_media(media, w, config):
    """A text model has nothing to check."""


def not_shrunk(raw, scale, where) -> dict:
    raise InputError(f"{where}: a model of this kind is not shrunk; leave out --scale, or shrink its config by hand.")


def as_stored(name: str, model_type: str) -> str:
    """Transformers' prefix, which is taken off where a checkpoint is opened."""
    return name if name.startswith("lm_head") else f"model.{name}"


def as_it_is(raw: dict, where: str, shallow=False) -> dict:
    """The twin of a model that is small already."""
    return raw


def some_text(config, pictures: int, sounds: int) -> tuple:
    """A prompt for a model that takes nothing but text.  -> ids, media"""
    return np.array([3, 3]), NO_MEDIA


@dataclass(frozen=True, eq=False)
class Family:
    """One kind of model.  `config` below is what its read_config returns.

    name: in words.  model_types: of config.json.
    read_config: a parsed config.json, and the file's name for errors -> config; strict.
    outline: config -> Outline.
    with_layers: config, rows -> the same config with another layer table.
    shapes: config -> name: shape of every tensor that Transformers would build.
    optional: config -> name of a group: its tensors, of which all are there or none.
    besides: config -> name: shape of tensors that files may hold and a run does not need.
    ignored: config -> regular expressions of names that a file may hold all the same.
    stored_name: a tensor's short name, model_type -> its name in a file.
    parts: see above.
    kvs: config, dtype -> an empty cache that stores keys and values in that dtype.
    memory: config, tokens -> what: bytes of a float32 run beyond the weights.
    placeholders: config -> kind of media: the token id that its soft tokens replace.
    counts: media, config -> kind of media: how many soft tokens each picture, frame and clip becomes.
    check_media: media, weights, config; raises InputError where the model cannot take them.
    inputs: config -> name: Input, arrays that a run takes by name, beside or in the place of ids; `forward` takes each
    up with prompt.named.taken, and `sample` gives some.
    image_masks: masks of pictures that a run may choose from; where there are several, config.image_mask is the choice.
    twin: a parsed config.json, and the file's name -> one of a model whose runs have the same points, as small as may
    be; shallow: with few layers of each kind.  graph.py runs it.
    sample: config, number of pictures, of sounds -> ids, media: the shortest prompt with so many.
    shrunk: a parsed config.json, a Scale, and the file's name -> one of a smaller model.
    generation: config -> what a released generation_config.json says that config.json does not; None: not this key.
    as_run: config, a dump -> the config of the run that it is of, where a user may choose something of it.
    instead: what to do where a model of this kind is asked for what it does not give, as the end of a sentence.
    sections: of config.json, for who reads it past its first fault: text, vision, audio, and whole for what is in none.
    """

    name: str
    model_types: tuple[str, ...]
    read_config: Callable[[dict, str], Any]
    outline: Callable[[Any], Outline]
    with_layers: Callable[[Any, tuple], Any]
    shapes: Callable[[Any], Shapes]
    parts: Mapping[str, Callable]
    kvs: Callable[[Any, np.dtype], dict] = nothing
    memory: Callable[[Any, int], dict[str, int]] = nothing
    optional: Callable[[Any], dict[str, Shapes]] = nothing
    besides: Callable[[Any], Shapes] = nothing
    ignored: Callable[[Any], list[str]] = lambda config: []
    stored_name: Callable[[str, str], str] = as_stored
    placeholders: Callable[[Any], dict[str, int]] = nothing
    counts: Callable[[Any, Any], dict[str, list[int]]] = nothing
    check_media: Callable[[Any, Any, Any], None] = no_media
    inputs: Callable[[Any], dict[str, Input]] = nothing
    image_masks: tuple[str, ...] = ("intended",)
    twin: Callable[..., dict] = as_it_is
    sample: Callable[[Any, int, int], tuple] = some_text
    shrunk: Callable[[dict, Any, str], dict] = not_shrunk
    generation: Callable[[Any], dict[str, Any]] = nothing
    as_run: Callable[[Any, Any], Any] = lambda config, dump: config
    instead: str = ""
    sections: Mapping[str, Section] = field(default_factory=dict)

    def text_shapes(self, config) -> Shapes:
        """`shapes` without what is optional: what every token passes through."""
        towers = {name for part in self.optional(config).values() for name in part}
        return {name: shape for name, shape in self.shapes(config).items() if name not in towers}

    def part(self, name: str) -> Callable:
        """The function that stands there now: a fault may have put another in its place.

        So a part is a plain function at the top of its module.
        """
        original = self.parts[name]
        return getattr(sys.modules[original.__module__], original.__name__)
