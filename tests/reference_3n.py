"""The runs of Gemma 3n that are stored from Transformers: on what each was made.  `make reference-3n` remakes them."""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import tiny3n

from numgemma.checkpoint import Weights
from numgemma.families import Run
from numgemma.families.gemma3n import gemma3n
from numgemma.prompt.media import NO_MEDIA, read_media
from numgemma.trace import EVERYTHING_BUT_MAPS

STORED = Path(__file__).parents[1] / "reference_outputs"

# what is stored: to keep the files small, of the towers a part
TEXT_POINTS = (*EVERYTHING_BUT_MAPS, "!layers.[3-6].*")
WHOLE_POINTS = (*TEXT_POINTS, "!layers.[0127].*", "!*.conv_stem.*", "!*.blocks.0.*", "!*.pw_exp.*", "!*.dw_mid.*")
WHOLE_POINTS += ("!embed_vision.embedding", "!embed_vision.hard_embedding_norm", "!*conv_0.*", "!*msfa.ffn*")


def text(folder, dtype):
    return tiny3n.write(folder / "text", tiny3n.TEXT), tiny3n.prompt(20), NO_MEDIA, dtype


def whole(folder, dtype):
    ids, arrays = tiny3n.multimodal_prompt()
    return tiny3n.write(folder / "whole", tiny3n.WHOLE), ids, read_media(arrays), dtype


def runs():
    """Name -> what makes its checkpoint, ids, media and dtype in a folder."""
    return {
        "3n_text_float32": partial(text, dtype="float32"),
        "3n_text_bfloat16": partial(text, dtype="bfloat16"),
        "3n_float32": partial(whole, dtype="float32"),
    }


def digest(model):
    """A hash of all weights: says whether a stored run is still of this checkpoint."""
    total = hashlib.sha256()
    for name in sorted(model.weights):
        total.update(name.encode() + model.weights[name].tobytes())
    return total.hexdigest()


def run_of(config, tensors, ids):
    """Logits of a config and tensors that were never in a file."""
    run = Run(config, np.dtype("float64"))
    return gemma3n.forward(np.asarray(ids), NO_MEDIA, Weights(tensors, "the test"), run)
