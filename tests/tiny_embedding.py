"""Small random EmbeddingGemma 2 checkpoints, in Transformers' naming, with nothing left at its initial value."""

import json
from pathlib import Path

import numpy as np
import tiny
from safetensors.numpy import save_file

from numgemma.families import find
from numgemma.prompt.media import NO_MEDIA, read_media
from numgemma.trace import EVERYTHING_BUT_MAPS

# Both kinds of layer, full ones wider and with fewer keys, as their numbers are spelled in the release; a radius
# shorter than half of the prompts; vectors wider than the stream.
TEXT = {
    "architectures": ["EmbeddingGemma2TextModel"],
    "model_type": "embedding_gemma2_text",
    "vocab_size": 199,
    "hidden_size": 48,
    "hidden_size_per_layer_input": 24,
    "embedding_dim": 60,
    "intermediate_size": 72,
    "num_hidden_layers": 6,
    "layer_types": [tiny.KINDS[letter] for letter in "ssfssf"],
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "per_layer_config": {i: {"head_dim": 32, "num_key_value_heads": 2} for i in ("02", "05")},
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 7,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "attention_bias": False,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
AXIAL = {"rope_type": "axial", "rope_theta": 100.0}
WHOLE = {
    "architectures": ["EmbeddingGemma2Model"],
    "model_type": "embedding_gemma2",
    **{f"{name}_token_id": i for name, i in tiny.IDS.items() if name != "eoa"},
    "eoa_token_index": tiny.IDS["eoa"],
    "text_config": TEXT,
    "vision_config": tiny.VISION | {"use_clipped_linears": False, "rope_parameters": AXIAL},
    "audio_config": tiny.AUDIO,
}
CONTENT = {
    "text": {},
    "a picture": {"images": [(6, 3)]},
    "two recordings": {"clips": [35, 17]},
    "a video": {"videos": [[(6, 3), (6, 3)]]},
    "a mix": {"images": [(3, 9), (6, 3)], "videos": [[(3, 3)]], "clips": [22]},
}
STORED = {"images": [(6, 3)], "videos": [[(3, 3), (3, 3)]], "clips": [35]}


def write(folder, raw, tensors=None, dtype="bfloat16"):
    """A checkpoint directory that Transformers loads too.  Returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name, tensors = find(raw, "the test").stored_name, tensors or tiny.random_tensors(raw)
    stored = {name(short, raw["model_type"]): np.asarray(x, tiny.DTYPES[dtype]) for short, x in tensors.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def prompt(tokens, seed=0):
    """Random ids of ordinary tokens, with the first and the last as the tokenizer puts them."""
    return np.array([2, *np.random.default_rng(seed).integers(3, 190, tokens - 2), 1])


def multimodal_prompt(content, seed=2):
    """Ids, and a processor's arrays by name, as of tiny.multimodal_prompt."""
    return tiny.multimodal_prompt("e4b", content or {"images": []}, seed)


# of the stored runs what is stored: to keep the files small, of the towers a part
MEDIA_POINTS = (*EVERYTHING_BUT_MAPS, "!*_tower*.layers.0.*", "!audio_tower*.layer0.*", "!layers.[134].*")


def stored_runs(folder):
    """The runs that are stored from Transformers: name -> checkpoint, ids, media, dtype, points."""
    text = write(folder / "text", TEXT)
    ids, arrays = multimodal_prompt(STORED)
    points = (*EVERYTHING_BUT_MAPS, "!layers.[14].*")
    return {
        "embedding_text_float32": (text, prompt(24), NO_MEDIA, "float32", points),
        "embedding_text_bfloat16": (text, prompt(24), NO_MEDIA, "bfloat16", points),
        "embedding_float32": (write(folder / "whole", WHOLE), ids, read_media(arrays), "float32", MEDIA_POINTS),
    }
