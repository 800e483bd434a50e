"""A LoRA adapter in a GGUF file: llama.cpp's names -> modules of the base, each with PEFT's two matrices.

    NAME.lora_a  r I    NAME.lora_b  O r    of an embedding I r    s = alpha / r, with one alpha for all

The file knows neither rsLoRA nor an alpha of one module's own: such an adapter means something else in it than where it
was trained.  `audit --adapter` with the original folder tells.
"""

from pathlib import Path
from typing import Any

import numpy as np

from numgemma.errors import InputError
from numgemma.incoming import AGAIN
from numgemma.weights.gguf import open_gguf
from numgemma.weights.gguf_gemma import our_name

HALVES = {".lora_a": "lora_A", ".lora_b": "lora_B"}


def read_gguf_adapter(path: Path):
    """-> its settings, module -> leaf -> array, and tensors that it replaces.  Raises InputError where it is none."""
    file = open_gguf(path)
    kind = file.keys.get("adapter.type") if file.keys.get("general.type") == "adapter" else None
    if kind != "lora":
        raise InputError(f"{path}: is no LoRA adapter, as its keys say; name the model as CKPT, and an adapter here.")
    alpha = file.keys.get("adapter.lora.alpha")
    if not isinstance(alpha, float) or not np.isfinite(alpha):
        raise InputError(f"{path}: has no number as adapter.lora.alpha; {AGAIN}.")
    modules: dict[str, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    for stored, tensor in file.tensors.items():
        half = HALVES.get(stored[-7:])
        name = our_name(path, stored[:-7] if half else stored)
        x = np.asarray(tensor, np.float32)
        if half:
            leaf = half.replace("lora_", "lora_embedding_") if name == "embed_tokens.weight" else half
            modules.setdefault(name.removesuffix(".weight"), {})[leaf] = x.T if leaf == "lora_embedding_A" else x
        else:
            whole[name] = x
    return {"lora_alpha": alpha}, modules, whole
