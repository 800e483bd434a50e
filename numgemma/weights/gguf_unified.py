"""The embedders of Gemma 4 12B in its mmproj, a GGUF file: llama.cpp's names -> the checkpoint's, and config.

Two kinds of tensor are stored in another form.  llama.cpp cuts a picture into patches of 3 p p numbers, colour by
colour, where the model has p p 3: so run the columns of the patches' matrix, and the norm before it.  The table of
places is two tables, of columns and of rows, where the checkpoint has one of pairs.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from numgemma.errors import InputError
from numgemma.weights.gguf import Gguf
from numgemma.weights.gguf_gemma import Keys
from numgemma.weights.gguf_towers import marks

KINDS = {"gemma4uv", "gemma4ua"}  # of projectors: of pictures, of sound
EMBEDDER = "vision_embedder"
NAMES = {
    **{f"v.patch_embd.{leaf}": f"{EMBEDDER}.patch_dense.{leaf}" for leaf in ("weight", "bias")},
    **{
        f"v.patch_norm.{n}.{leaf}": f"{EMBEDDER}.{norm}.{leaf}"
        for n, norm in ((1, "patch_ln1"), (2, "patch_ln2"), (3, "pos_norm"))
        for leaf in ("weight", "bias")
    },
    "v.position_embd.weight": f"{EMBEDDER}.pos_embedding",
    "mm.input_projection.weight": "embed_vision.embedding_projection.weight",
    "mm.a.input_projection.weight": "embed_audio.embedding_projection.weight",
}
BY_COLOUR = ("v.patch_embd.weight", "v.patch_norm.1.weight", "v.patch_norm.1.bias")
EPSILON = 1e-6  # of sound: in all releases, whatever a file says


def weights_of(path, file: Gguf) -> dict[str, Any]:
    """The tensors under the checkpoint's names.  Raises InputError for one that has no place in 12B's embedders."""
    for name in file.tensors:
        if name not in NAMES:
            raise InputError(f"{path}: tensor {name!r:.80} has no place in 12B's embedders; convert the file again.")
    return {NAMES[name]: as_stored(name, tensor) for name, tensor in file.tensors.items()}


def as_stored(name, x):
    """A tensor in the form that the checkpoint has.  What has not the axes for it stays, and its shape is refused."""
    if name in BY_COLOUR and (side := side_of(x.shape[-1])):
        x = np.asarray(x)
        return np.moveaxis(x.reshape(*x.shape[:-1], 3, side, side), -3, -1).reshape(x.shape)
    return np.asarray(x).swapaxes(0, 1) if name == "v.position_embd.weight" and x.ndim == 3 else x


def side_of(numbers) -> int:
    """How many pixels a patch is wide that has so many numbers; 0 where it is no square of three colours."""
    side = math.isqrt(numbers // 3)
    return side if 3 * side**2 == numbers else 0


def config_of(path, file: Gguf, text: Mapping[str, Any], pieces) -> dict[str, Any]:
    """config.json of the whole.  text: that of the text model; pieces: of its tokenizer"""
    keys = Keys(path, file, "clip")
    text = {**text, "model_type": "gemma4_unified_text", "use_bidirectional_attention": "vision"}
    return {
        "model_type": "gemma4_unified",
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "text_config": {**text, "architectures": ["Gemma4UnifiedForCausalLM"]},
        "vision_config": vision_config(keys) if "clip.vision.projector_type" in file.keys else None,
        "audio_config": audio_config(keys) if "clip.audio.projector_type" in file.keys else None,
        "tie_word_embeddings": text["tie_word_embeddings"],
        **marks(pieces),
    }


def vision_config(keys: Keys) -> dict[str, Any]:
    width, numbers = keys.tensor("v.patch_embd.weight", 2).shape[-2:]
    patch, side = keys.number("vision.patch_size"), side_of(numbers)
    if type(patch) is not int or not 0 < patch <= side or side % patch:
        raise InputError(f"{keys.path}: {numbers} numbers are no patches of {patch} pixels; convert it again.")
    return {
        "model_type": "gemma4_unified_vision",
        "patch_size": patch,
        "pooling_kernel_size": side // patch,
        "model_patch_size": side,
        "mm_embed_dim": width,
        "output_proj_dims": width,
        "mm_posemb_size": keys.tensor("v.position_embd.weight", 3).shape[-2],
        "rms_norm_eps": keys.epsilon("vision.attention.layer_norm_epsilon"),
    }


def audio_config(keys: Keys) -> dict[str, Any]:
    samples = keys.tensor("mm.a.input_projection.weight", 2).shape[-1]
    return {"model_type": "gemma4_unified_audio", "audio_embed_dim": samples, "rms_norm_eps": EPSILON}
