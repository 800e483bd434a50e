"""A checkpoint, opened and checked: what `numgemma.load` returns.  It only calls multimodal.py and generate.py."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
import numpy as np

from numgemma.checkpoint import Checkpoint, Weights, check_tensors, open_checkpoint
from numgemma.config import Config, read_config
from numgemma.dump import Dump, new_meta
from numgemma.errors import InputError
from numgemma.families.gemma4 import layout, multimodal
from numgemma.generate import Memory, Sampling, continuation, steps
from numgemma.prompt.chat import chat_files, render_chat
from numgemma.prompt.media import NO_MEDIA, check_fit, check_prefill, read_media, spans
from numgemma.prompt.processor import join, listed, place
from numgemma.prompt.tokenizer import Tokenizer, open_tokenizer
from numgemma.streaming import streamed
from numgemma.trace import EVERYTHING_BUT_MAPS, NONE, Recorder
from numgemma.version import __version__

PRECISIONS = {name: np.dtype(name) for name in ("float32", "float64", "bfloat16")}  # ml_dtypes names the last

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, eq=False)
class Model:
    """An opened checkpoint and the precision to run it in."""

    checkpoint: Checkpoint
    config: Config
    dtype: np.dtype

    def __repr__(self):
        c = self.config.text
        return f"<Model {self.checkpoint.folder.name}: {len(c.layers)} layers of width {c.hidden_size}, {self.dtype}>"

    @property
    def weights(self) -> Weights:
        return self.checkpoint.weights

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises InputError where the checkpoint has no tokenizer.json."""
        return open_tokenizer(self.checkpoint.folder)

    def prompt_ids(self, text, files=NONE, soft_tokens=None):
        """A text as it enters the model.  -> ids, media

        files: of "image", "audio" and "video" the paths, in the order of their placeholders (`<|image|>`); where the
        text has none, they go before it.  soft_tokens: at most so many for each picture and frame.
        """
        files = listed(files)
        text = place(text, files, self.config, self.tokenizer)
        return self.joined(text, files, self.tokenizer.encode, soft_tokens)

    def chat_ids(self, messages, files=NONE, soft_tokens=None, **choices):
        """A chat as it enters the model, spelled out by the checkpoint's template.  -> ids, media

        messages: as [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "?"}]}].
        files: for items that name none, by kind.  choices: tools, thinking, ... of chat.render_chat.
        """
        text = render_chat(self.checkpoint.folder, messages, **choices)
        return self.joined(text, chat_files(messages, listed(files)), self.tokenizer.encode_rendered, soft_tokens)

    def joined(self, text, files, encode, soft_tokens=None):
        """A text with placeholders, and the files that they stand for.  -> ids, media"""
        if not any(files.values()):
            return encode(text), NO_MEDIA
        arrays = join(text, files, self.checkpoint.folder, self.config, self.tokenizer, encode, soft_tokens)
        return arrays["input_ids"][0].tolist(), read_media(arrays)

    def logits(self, ids, media=NO_MEDIA):
        """Logits of every token.  ids: T, with as many placeholders as media have soft tokens  ->  T V"""
        return multimodal.forward(self.checked(ids, media), media, self.weights, self.config, self.dtype, {})

    def record(self, ids, points=EVERYTHING_BUT_MAPS, edits=NONE, prefill=None, text=None, media=NO_MEDIA) -> Dump:
        """Run once and keep the activations whose names match `points`.  ids: T

        points: globs; one with a leading `!` excludes.  edits: name -> function array -> array, applied where that
        tensor is born.  prefill: run so many tokens at once and the others one by one through the cache.  media: what
        stands at the placeholders.
        """
        dump = Dump(self.describe(ids, points, text, prefill, media))
        self.record_into(dump, ids, points, edits, prefill, media)
        return dump

    def record_into(self, sink, ids, points=EVERYTHING_BUT_MAPS, edits=NONE, prefill=None, media=NO_MEDIA):
        """Run once; each point goes to sink.keep(name, x, axes) as it is computed, sink.start says from which token."""
        kvs: dict = {}
        ids = self.checked(ids, media)
        check_prefill(ids, self.config, prefill)
        for start, part in steps(ids, prefill):
            sink.start = start
            tap = Recorder(sink.keep, self.dtype, points, edits)
            with np.errstate(all="ignore"):  # the recorder says it in words
                multimodal.forward(part, media, self.weights, self.config, self.dtype, kvs, start, tap)
            media = NO_MEDIA  # all of it was in the first part
            if start == 0 and tap.unmet:
                raise InputError(f"No point is called '{min(tap.unmet)}'; see `list(model.record(ids))` for the names.")

    def generate(
        self, ids, max_new_tokens=20, sampling=None, ignore_eos=False, media=NO_MEDIA, memory: Memory | None = None
    ) -> list[int]:
        """New token ids after `ids`, the stop token included.

        sampling: of `model.sampling(...)`, which also suppresses what generation_config.json suppresses; None: greedy.
        """
        return list(self.continued(ids, max_new_tokens, sampling, ignore_eos, media, memory))

    def continued(
        self, ids, max_new_tokens=20, sampling=None, ignore_eos=False, media=NO_MEDIA, memory: Memory | None = None
    ) -> Iterator[int]:
        """`generate`, one id at a time as it is found."""
        if max_new_tokens < 0:
            raise InputError(f"max_new_tokens is {max_new_tokens}; it should be 0 or more.")
        sampling = sampling or self.sampling()
        ids = self.checked(ids, media)
        new = continuation(ids, media, self.weights, self.config, self.dtype, sampling, memory or Memory())
        for i in islice(new, max_new_tokens):
            yield i
            if i in self.stop_ids and not ignore_eos:
                return

    def sampling(self, **choices) -> Sampling:
        """A Sampling that also suppresses the tokens which generation_config.json suppresses."""
        suppress = (self.checkpoint.generation_config or {}).get("suppress_tokens") or ()
        return Sampling(suppress=tuple(suppress), **choices)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """From generation_config.json, or else from config.json."""
        found = (self.checkpoint.generation_config or {}).get("eos_token_id")
        for ids in (found, self.config.eos_token_id, self.config.text.eos_token_id):
            if ids is not None:
                return frozenset([ids] if isinstance(ids, int) else ids)
        return frozenset()

    def checked(self, ids, media=NO_MEDIA):
        """Token ids as an array, none outside the vocabulary, and a placeholder for every soft token of media."""
        ids = np.asarray(ids)
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise InputError("Token ids should be one or more integers below 2^63; a batch is a loop outside.")
        V = self.config.text.vocab_size
        if ids.min() < 0 or ids.max() >= V:
            raise InputError(f"Token id {ids[(ids < 0) | (ids >= V)][0]} is outside the vocabulary of {V} tokens.")
        check_fit(ids, media, self.weights, self.config)
        return ids

    def describe(self, ids, points=EVERYTHING_BUT_MAPS, text=None, prefill=None, media=None):
        """What a dump of this model says of itself.  media: what stands at the placeholders; None: not said."""
        model = fingerprint(self.checkpoint, self.config)
        meta = new_meta("numgemma", __version__, model, ids, str(self.dtype), points, text, prefill, media)
        return meta if media is None else meta | {"media": spans(self.checked(ids, media), media, self.config)}


def fingerprint(checkpoint: Checkpoint, config: Config):
    """Which model this is, without reading its weights."""
    return {
        "name": checkpoint.folder.resolve().name,
        "config": hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode()).hexdigest(),
        "shards": checkpoint.header_hashes,
        "layer_kinds": list(config.text.layer_types),
    }


def load(path, precision="float32") -> Model:
    """Open a checkpoint: a directory, or one .safetensors file beside its config.json, or "tiny", the bundled one.

    precision: "float32", "float64" or "bfloat16".  Weights stay on disk until they are used.
    Raises InputError with one sentence where something does not fit.
    """
    if precision not in PRECISIONS:
        raise InputError(f"Precision '{precision}' is not one of {', '.join(PRECISIONS)}.")
    checkpoint = open_checkpoint(resolve(path))
    config = read_config(checkpoint.config, str(checkpoint.folder / "config.json"))
    check_model_tensors(checkpoint.weights, config)
    weights = streamed(checkpoint.weights, len(config.text.layers))
    return Model(replace(checkpoint, weights=weights), config, PRECISIONS[precision])


def resolve(path) -> Path:
    """A path, or the bundled checkpoint by its bare name."""
    path = Path(path)
    return DATA / "tiny" if str(path) == "tiny" and not path.exists() else path


def check_model_tensors(weights, config: Config):
    """Every tensor of the model is there in its shape, and nothing is there that nobody knows.

    A tower may be absent altogether: text-only copies keep the config of the whole.
    """
    c = config.text
    expected = layout.text_shapes(c)
    expected |= {name: shape for name, shape in layout.unread_by_sharing_layers(c).items() if name in weights}
    if "lm_head.weight" in weights or not config.tie_word_embeddings:
        expected["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    for part in (layout.vision_part(config), layout.audio_part(config)):
        if any(name in weights for name in part):
            expected |= part
    towers = (("vision", config.vision), ("audio", config.audio))
    unread = [rf"({name}_tower|embed_{name})\..*" for name, c in towers if c is None]  # the config is text's alone
    check_tensors(weights, expected, unread)
