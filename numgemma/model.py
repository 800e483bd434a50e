"""A checkpoint, opened and checked: what `numgemma.load` returns.  All it does is call gemma4.py and generate.py."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
import numpy as np

from numgemma import gemma4, layout
from numgemma.checkpoint import Checkpoint, Weights, check_tensors, open_checkpoint
from numgemma.config import Config, read_config
from numgemma.dump import Dump, new_meta
from numgemma.errors import InputError
from numgemma.generate import Sampling, continuation, steps
from numgemma.tokenizer import Tokenizer, open_tokenizer
from numgemma.trace import EVERYTHING_BUT_MAPS, NONE, Recorder
from numgemma.version import __version__

PRECISIONS = {name: np.dtype(name) for name in ("float32", "float64", "bfloat16")}  # ml_dtypes names the last

# Tensors that a text run leaves alone, and why.
IGNORED = (
    r"(vision_tower|embed_vision|audio_tower|embed_audio)\..*",  # images and sound do not enter a text run
)

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, eq=False)
class Model:
    """An opened checkpoint and the precision to run it in."""

    checkpoint: Checkpoint
    config: Config
    dtype: np.dtype

    @property
    def weights(self) -> Weights:
        return self.checkpoint.weights

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises InputError where the checkpoint has no tokenizer.json."""
        return open_tokenizer(self.checkpoint.folder)

    def logits(self, ids):
        """Logits of every token.  ids: T  ->  T V"""
        return gemma4.forward(self.checked(ids), self.weights, self.config.text, self.dtype, {})

    def record(self, ids, points=EVERYTHING_BUT_MAPS, edits=NONE, prefill=None, text=None) -> Dump:
        """Run once and keep the activations whose names match `points`.  ids: T

        points: globs; one with a leading `!` excludes.  edits: name -> function array -> array, applied where that
        tensor is born.  prefill: run so many tokens at once and the others one by one through the cache.
        """
        dump = Dump(self.describe(ids, points, text))
        self.record_into(dump, ids, points, edits, prefill)
        return dump

    def record_into(self, sink, ids, points=EVERYTHING_BUT_MAPS, edits=NONE, prefill=None):
        """Run once; each point goes to sink.keep(name, x, axes) as it is computed, sink.start says from which token."""
        kvs: dict = {}
        for start, part in steps(self.checked(ids), prefill):
            sink.start = start
            tap = Recorder(sink.keep, self.dtype, points, edits)
            with np.errstate(all="ignore"):  # the recorder says it in words
                gemma4.forward(part, self.weights, self.config.text, self.dtype, kvs, start, tap)
            if tap.unmet:
                raise InputError(f"No point is called '{min(tap.unmet)}'; see `list(model.record(ids))` for the names.")

    def generate(self, ids, max_new_tokens=20, sampling: Sampling | None = None, ignore_eos=False) -> list[int]:
        """New token ids after `ids`, the stop token included.  Greedy unless `sampling` says otherwise."""
        return list(self.continued(ids, max_new_tokens, sampling, ignore_eos))

    def continued(self, ids, max_new_tokens=20, sampling=None, ignore_eos=False):
        """`generate`, one id at a time as it is found."""
        sampling = sampling or self.sampling()
        new = continuation(self.checked(ids), self.weights, self.config.text, self.dtype, sampling)
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

    def checked(self, ids):
        """Token ids as an array, none outside the vocabulary."""
        ids = np.asarray(ids)
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise InputError("Token ids should be a list of at least one integer; a batch is a loop outside.")
        V = self.config.text.vocab_size
        if ids.min() < 0 or ids.max() >= V:
            raise InputError(f"Token id {ids[(ids < 0) | (ids >= V)][0]} is outside the vocabulary of {V} tokens.")
        return ids

    def describe(self, ids, points=EVERYTHING_BUT_MAPS, text=None):
        """What a dump of this model says of itself."""
        model = fingerprint(self.checkpoint, self.config)
        return new_meta("numgemma", __version__, model, ids, str(self.dtype), points, text)


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
    check_text_tensors(checkpoint.weights, config)
    return Model(checkpoint, config, PRECISIONS[precision])


def resolve(path) -> Path:
    """A path, or the bundled checkpoint by its bare name."""
    path = Path(path)
    return DATA / "tiny" if str(path) == "tiny" and not path.exists() else path


def check_text_tensors(weights, config: Config):
    """Every tensor of the text model is there in its shape, and nothing is there that nobody knows."""
    c = config.text
    expected = layout.text_shapes(c)
    expected |= {name: shape for name, shape in layout.unread_by_sharing_layers(c).items() if name in weights}
    if "lm_head.weight" in weights or not config.tie_word_embeddings:
        expected["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    check_tensors(weights, expected, IGNORED)
