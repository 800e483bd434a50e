"""A checkpoint, opened and checked: what `numgemma.load` returns.  It only calls a family's forward and generate.py."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from numgemma import opening, ops
from numgemma.checkpoint import Checkpoint, Weights, open_checkpoint
from numgemma.dump import Dump, hashes, inputs_of, new_meta
from numgemma.errors import InputError, NonFiniteError, meant
from numgemma.families import Family, Outline, Run, find
from numgemma.families.family import started
from numgemma.generate import Memory, Sampling, continuation, steps
from numgemma.ops import threads
from numgemma.prompt.chat import chat_files, render_chat
from numgemma.prompt.media import NAMES, NO_MEDIA, Media, check_places, has_pictures, read_media, spans
from numgemma.prompt.named import IDS, Input, check_prefill, read_named, with_inputs
from numgemma.prompt.processor import join, listed, place, processor_of
from numgemma.prompt.tasks import read_tasks, words_of
from numgemma.prompt.tokenizer import Tokenizer, tokenizer_of
from numgemma.smallfloats import ADVICE, COMPUTES
from numgemma.speculative import Draft, Round, rounds, until_stop
from numgemma.streaming import streamed
from numgemma.trace import EVERYTHING_BUT_MAPS, NONE, Recorder, Tap
from numgemma.version import __version__

PRECISIONS = {name: np.dtype(name) for name in ("float32", "float64", *["bfloat16"] * COMPUTES)}

Ids = Sequence[int] | np.ndarray  # T token ids, the first at position 0
Edits = Mapping[str, Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True, eq=False)
class Model:
    """An opened checkpoint and the precision to run it in.

    Axes of what goes in and comes out are letters of the key in layers/attention.py: T tokens, V vocabulary, D width.
    What does not fit raises InputError, a NaN or an infinity in a recorded run NonFiniteError, which is one.
    """

    checkpoint: Checkpoint
    config: Any  # its family's
    dtype: np.dtype

    def __repr__(self) -> str:
        o = self.outline
        return f"<Model {self.checkpoint.folder.name}: {len(o.layers)} layers of width {o.width}, {self.dtype}>"

    @cached_property
    def family(self) -> Family:
        """What the package knows of this kind of model."""
        return find(self.checkpoint.config, self.checkpoint.told_by)

    @cached_property
    def outline(self) -> Outline:
        """What every config tells: the layer table, widths, the ids that begin and end a text."""
        return self.family.outline(self.config)

    @cached_property
    def given_by_name(self) -> Mapping[str, Input]:
        """The arrays that a run takes by name, beside or in the place of ids; most families take none."""
        return self.family.inputs(self.config)

    @property
    def weights(self) -> Weights:
        """The tree of weights under the checkpoint's own names: read-only views of its files."""
        return self.checkpoint.weights

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back.  Raises InputError where the checkpoint has no tokenizer.json."""
        return tokenizer_of(self.checkpoint)

    def prompt_ids(
        self, text: str, files: Mapping[str, Sequence] = NONE, soft_tokens: int | None = None
    ) -> tuple[list[int], Media]:
        """A text as it enters the model.  -> ids: T, media

        files: of "image", "audio" and "video" the paths, in the order of their placeholders (`<|image|>`); where the
        text has none, they go before it.  soft_tokens: at most so many for each picture and frame.
        Raises InputError where a file cannot be read, or is of a kind that the model does not take.
        """
        files = listed(files)
        text = place(text, files, self.config, self.tokenizer)
        return self.joined(text, files, self.tokenizer.encode, soft_tokens)

    def chat_ids(
        self, messages: list[dict], files: Mapping[str, Sequence] = NONE, soft_tokens: int | None = None, **choices: Any
    ) -> tuple[list[int], Media]:
        """A chat as it enters the model, spelled out by the checkpoint's template.  -> ids: T, media

        messages: as [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "?"}]}].
        files: for items that name none, by kind.  choices: tools, thinking, ... of chat.render_chat.
        Raises InputError where the checkpoint has no template, or the messages do not fit it.
        """
        text = render_chat(self.checkpoint.folder, messages, **choices)
        return self.joined(text, chat_files(messages, listed(files)), self.tokenizer.encode_rendered, soft_tokens)

    def joined(
        self, text: str, files: Mapping, encode: Callable[[str], list[int]], soft_tokens: int | None = None
    ) -> tuple[list[int], Media]:
        """A text with placeholders, and the files that they stand for.  -> ids: T, media"""
        if not any(files.values()):
            return encode(text), NO_MEDIA
        settings = processor_of(self.checkpoint)
        arrays = join(text, files, settings, self.config, self.tokenizer, encode, soft_tokens)
        return arrays["input_ids"][0].tolist(), read_media(arrays)

    def named_ids(self, arrays: Mapping[str, np.ndarray], where: str = "these inputs") -> tuple[list[int], Media]:
        """Arrays by name, as Transformers passes them to a model of this family, as they enter it.  -> ids: T, media

        With a batch axis of 1 or without; what a processor returns may be among them.  `where` names them in errors.
        Raises InputError where a name is not known or missing, or an array does not fit the config.
        """
        of_files = {name: x for name, x in arrays.items() if name in NAMES}
        others = {name: x for name, x in arrays.items() if name not in NAMES}
        found = read_named(others, self.given_by_name, where)
        ids = [int(i) for i in found.pop(IDS, ())]
        return ids, replace(read_media(of_files, where), named=found)

    def media_of(self, dump: Mapping[str, np.ndarray]) -> Media:
        """What the run of a dump was given by name, which it holds.  Raises InputError where that does not fit."""
        due = {name: one for name, one in self.given_by_name.items() if name != IDS}
        return replace(NO_MEDIA, named=read_named(inputs_of(dump), due, "the dump")) if due else NO_MEDIA

    def logits(self, ids: Ids = (), media: Media = NO_MEDIA) -> np.ndarray:
        """Logits of every token, in the model's precision.  ids: T  ->  T V

        ids hold as many placeholders as media have soft tokens.  Raises InputError where they do not, or where an id
        is outside the vocabulary.
        """
        self.check_part("head", "gives no logits")
        return self.forward(self.checked(ids, media), media, self.run())

    def embed(
        self, texts: Sequence[str], prompt: str | None = None, title: str | None = None, dim: int | None = None
    ) -> np.ndarray:
        """A vector of length 1 for each text, in the model's precision.  ->  texts dim

        prompt: the task, as "query", "document" or another that the checkpoint names.  title: of all documents.
        dim: numbers that are kept.  For a text with files, `vector`.  Raises InputError as `vector`.
        """
        if isinstance(texts, str) or not texts:
            raise InputError("embed takes a list of one or more texts, and makes a row of each.")
        words = self.task_words(prompt, title)
        return np.stack([self.vector(self.tokenizer.encode(words + text), dim=dim) for text in texts])

    def vector(self, ids: Ids, media: Media = NO_MEDIA, dim: int | None = None) -> np.ndarray:
        """The vector of one prompt, of length 1, in the model's precision.  ids: T  ->  dim

        dim: numbers that are kept, before the length is made 1; None: all.  Raises InputError where the model makes
        no vector, or fewer numbers, or where ids and media do not fit.
        """
        self.check_part("vector", "makes no vector")
        run, width = self.run(), self.config.embedding_dim
        if dim is not None and not 1 <= dim <= width:
            raise InputError(f"A vector of {dim} numbers cannot be cut from the model's {width}; give 1 to {width}.")
        run = replace(run, config=replace(run.config, dim=dim))
        with np.errstate(all="ignore"):
            found = self.forward(self.checked(ids, media), media, run)
        if not np.isfinite(found).all():
            raise NonFiniteError("The vector is not finite; `numgemma dump` names the point where that begins.")
        return found

    def task_words(self, prompt: str | None = None, title: str | None = None) -> str:
        """What stands before a text whose vector is made for a task.  Raises InputError where there is no such task."""
        self.check_part("vector", "makes no vector")
        return words_of(prompt, title, *read_tasks(self.checkpoint.folder, self.config.embedding_dim))

    def check_part(self, name: str, otherwise: str) -> None:
        """Raises InputError, in these words, where the family lacks a part."""
        if name not in self.family.parts:
            raise InputError(
                f"{self.checkpoint.folder}: is of {self.family.name}, which {otherwise}{self.family.instead}."
            )

    def run(self, kvs: dict | None = None, start: int = 0) -> Run:
        """What one pass over tokens needs to know.  kvs: the keys and values of the passes before it"""
        return started(self.config, self.dtype, {} if kvs is None else kvs, start)

    def forward(self, ids: np.ndarray, media: Media, run: Run, tap: Tap = Tap()) -> np.ndarray:
        """The family's forward pass.  ids: T, checked, the first at position run.start  ->  T V"""
        return self.family.part("forward")(ids, media, self.weights, run, tap)

    def record(
        self,
        ids: Ids = (),
        points: Sequence[str] = EVERYTHING_BUT_MAPS,
        edits: Edits = NONE,
        prefill: int | None = None,
        text: str | None = None,
        media: Media = NO_MEDIA,
        inputs: Mapping[str, np.ndarray] = NONE,
    ) -> Dump:
        """Run once and keep the activations whose names match `points`.  ids: T  ->  a Dump, in the model's precision

        points: globs; one with a leading `!` excludes.  edits: name -> function array -> array, applied where that
        tensor is born.  prefill: run so many tokens at once and the others one by one through the cache.  text: what
        the ids spell, for the record.  media: what stands at the placeholders.  inputs: in the place of ids and media,
        the arrays that a family takes by name, see `named_ids`; the dump keeps them as `inputs.NAME`.
        Raises InputError where nothing has an edit's name, NonFiniteError at the first NaN or infinity.
        """
        if inputs:
            ids, media = self.named_ids(inputs)
        points = with_inputs(points, media)
        dump = Dump(self.describe(ids, points, text, prefill, media))
        self.record_into(dump, ids, points, edits, prefill, media)
        return dump

    def record_into(
        self,
        sink: Any,
        ids: Ids,
        points: Sequence[str] = EVERYTHING_BUT_MAPS,
        edits: Edits = NONE,
        prefill: int | None = None,
        media: Media = NO_MEDIA,
    ) -> None:
        """`record`; each point goes to sink.keep(name, x, axes) as it is computed, sink.start says from which token."""
        kvs: dict = {}
        ids = self.checked(ids, media)
        if prefill is not None and "vector" in self.family.parts:
            raise InputError(f"{self.family.name} runs a prompt whole, for its tokens see later ones; give no prefill.")
        check_prefill(ids, self.family.placeholders(self.config), prefill, media)
        for start, part in steps(ids, prefill):
            sink.start = None if prefill is None else start
            tap = Recorder(sink.keep, self.dtype, points, edits)
            with np.errstate(all="ignore"):  # the recorder says it in words
                self.forward(part, media, self.run(kvs, start), tap)
            media = NO_MEDIA  # all of it was in the first part
            if start == 0 and tap.unmet:
                name = min(tap.unmet)
                offered = meant(name, tap.passed) or "; see `list(model.record(ids))` for the names"
                raise InputError(f"No point is called '{name}'{offered}.")

    def generate(
        self,
        ids: Ids,
        max_new_tokens: int = 20,
        sampling: Sampling | None = None,
        ignore_eos: bool = False,
        media: Media = NO_MEDIA,
        memory: Memory | None = None,
        draft: Draft | None = None,
    ) -> list[int]:
        """New token ids after `ids`, the stop token included.  ids: T

        sampling: of `model.sampling(...)`, which also suppresses what generation_config.json suppresses; None: greedy.
        memory: what bounds the memory of a long prompt, see generate.Memory.  draft: a drafter and how many tokens it
        guesses a round, which changes the time and not the text, see `rounds`.
        Raises InputError as `logits`, NonFiniteError where there is nothing to choose from.
        """
        return list(self.continued(ids, max_new_tokens, sampling, ignore_eos, media, memory, draft))

    def continued(
        self,
        ids: Ids,
        max_new_tokens: int = 20,
        sampling: Sampling | None = None,
        ignore_eos: bool = False,
        media: Media = NO_MEDIA,
        memory: Memory | None = None,
        draft: Draft | None = None,
    ) -> Iterator[int]:
        """`generate`, one id at a time as it is found."""
        if draft is not None:
            found = self.rounds(ids, draft, max_new_tokens, sampling, ignore_eos, media, memory)
            yield from (i for one in found for i in one.kept)
            return
        ids, sampling = self.to_continue(ids, max_new_tokens, media), sampling or self.sampling()
        new = continuation(ids, media, self.weights, self.family, self.run(), sampling, memory or Memory())
        for i in islice(new, max_new_tokens):
            yield i
            if i in self.stop_ids and not ignore_eos:
                return

    def rounds(
        self,
        ids: Ids,
        draft: Draft,
        max_new_tokens: int = 20,
        sampling: Sampling | None = None,
        ignore_eos: bool = False,
        media: Media = NO_MEDIA,
        memory: Memory | None = None,
    ) -> Iterator[Round]:
        """`generate` with a drafter, round by round: what was drafted, how much of it was accepted, what was kept.

        The first round is the prompt's, without drafts; the text is what all rounds kept.  Raises InputError where the
        drafter is another model's.
        """
        ids, sampling = self.to_continue(ids, max_new_tokens, media), sampling or self.sampling()
        found = rounds(self, draft, ids, media, max_new_tokens, sampling, memory or Memory())
        yield from until_stop(found, frozenset() if ignore_eos else self.stop_ids)

    def to_continue(self, ids: Ids, max_new_tokens: int, media: Media) -> np.ndarray:
        """The ids of a text that this model can go on with, checked."""
        self.check_part("enter", "makes no text token by token")
        if max_new_tokens < 0:
            raise InputError(f"max_new_tokens is {max_new_tokens}; it should be 0 or more.")
        return self.checked(ids, media)

    def sampling(self, **choices: Any) -> Sampling:
        """A Sampling that also suppresses the tokens which generation_config.json suppresses."""
        return Sampling(
            suppress=opening.told_ids(self.checkpoint, "suppress_tokens", self.outline.vocabulary), **choices
        )

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """From generation_config.json, or else from config.json."""
        for ids in (opening.told_ids(self.checkpoint, "eos_token_id", self.outline.vocabulary), self.outline.stops):
            if ids not in (None, ()):
                return frozenset([ids] if isinstance(ids, int) else ids)
        return frozenset()

    def checked(self, ids: Ids, media: Media = NO_MEDIA) -> np.ndarray:
        """Token ids as an array T, none outside the vocabulary, and a placeholder for every soft token of media."""
        if len(ids) == 0 and self.given_by_name and IDS not in self.given_by_name:
            return np.zeros(0, np.int64)
        ids = np.asarray(ids)
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise InputError("Token ids should be one or more integers below 2^63; a batch is a loop outside.")
        V = self.outline.vocabulary
        if ids.min() < 0 or ids.max() >= V:
            raise InputError(f"Token id {ids[(ids < 0) | (ids >= V)][0]} is outside the vocabulary of {V} tokens.")
        opening.check_whole(media, self.incomplete, self.weights.source)
        self.family.check_media(media, self.weights, self.config)
        check_places(ids, media, *self.soft_tokens(media))
        return ids

    @cached_property
    def incomplete(self) -> dict[str, tuple[int, int]]:
        """Towers that are not all there, so that text alone runs: vision or audio -> tensors there are, and are due."""
        return opening.incomplete(self.weights, self.config, self.family)

    def soft_tokens(self, media: Media) -> tuple[dict[str, list[int]], dict[str, int]]:
        """Kind of media -> how many soft tokens each picture, frame and clip becomes; kind -> their placeholder."""
        return self.family.counts(media, self.config), self.family.placeholders(self.config)

    def describe(
        self,
        ids: Ids,
        points: Sequence[str] = EVERYTHING_BUT_MAPS,
        text: str | None = None,
        prefill: int | None = None,
        media: Media | None = None,
    ) -> dict[str, Any]:
        """What a dump of this model says of itself.  media: what stands at the placeholders; None: not said."""
        model = opening.fingerprint(self.checkpoint, self.outline)
        meta = new_meta("numgemma", __version__, model, ids, str(self.dtype), points, text, prefill)
        meta["engine"] |= {"backend": ops.current(), "threads": threads.allowed()}  # BLAS adds up as these are
        return meta if media is None else meta | self.describe_media(ids, media)

    def describe_media(self, ids: Ids, media: Media) -> dict[str, Any]:
        """What stands at the placeholders: hashes of the arrays, and where their soft tokens are."""
        chosen = {"image_mask": self.config.image_mask} if self.has_image_mask(media) else {}
        return {"inputs": hashes(media), "media": self.spans(ids, media)} | chosen

    def has_image_mask(self, media: Media) -> bool:
        """Whether a run of this model with such media is one of several, by the image mask chosen."""
        return len(self.family.image_masks) > 1 and has_pictures(media)

    def spans(self, ids: Ids, media: Media) -> dict[str, Any]:
        """Where the soft tokens of each picture, frame and clip stand, as prompt.media.spans."""
        return spans(self.checked(ids, media), media, *self.soft_tokens(media))


def load(
    path: str | Path, precision: str = "float32", image_mask: str = "intended", adapters: Sequence[str | Path] = ()
) -> Model:
    """Open a checkpoint: a directory, a .safetensors file beside its config.json, a .gguf file, or "tiny", the bundled.

    precision: "float32", "float64" or "bfloat16".  Weights stay on disk until they are used, as they are stored.
    adapters: folders of LoRA adapters, laid over the weights one after another.
    image_mask: "transformers" for what Transformers computes of a 12B, where image tokens see each other on full layers
    and past the window too.
    Raises InputError with one sentence where something does not fit.
    """
    if precision not in PRECISIONS:
        raise InputError(f"Precision '{precision}' is not one of {', '.join(PRECISIONS)}{ADVICE}.")
    checkpoint = open_checkpoint(opening.resolve(path))
    where = checkpoint.told_by
    family = find(checkpoint.config, where)
    config = opening.masked(family.read_config(checkpoint.config, where), image_mask, family, where)
    opening.check_model_tensors(checkpoint.weights, config, family)
    for folder in map(opening.resolve, adapters):
        checkpoint = opening.with_adapter(checkpoint, folder)
    headed = "head" in family.parts and "clustered head" not in family.parts  # which reads some of its rows
    weights = streamed(checkpoint.weights, len(family.outline(config).layers), headed)
    return Model(replace(checkpoint, weights=weights), config, PRECISIONS[precision])
