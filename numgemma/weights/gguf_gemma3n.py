"""Gemma 3n's text model in a GGUF file: llama.cpp's names and keys -> the checkpoint's own names, and a config.json.

The converter stacks the projections of the streams, pads the per-layer table with rows of zeros to the height of the
other, and stores the sparsity of a layer as the deviation above which a gate passes.  Its pictures and sound are in
another file, which is not read.
"""

from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np

from numgemma.errors import InputError
from numgemma.weights.gguf import Gguf
from numgemma.weights.gguf_gemma import AROUND, LAYER, Keys, our_name
from numgemma.weights.packed import Packed

LAYER_3N = LAYER | {
    "altup_correct_coef.weight": "altup.correction_coefs.weight",
    "altup_correct_scale.weight": "altup.correct_output_scale",
    "altup_predict_coef.weight": "altup.prediction_coefs.weight",
    "altup_router.weight": "altup.modality_router.weight",
    "altup_router_norm.weight": "altup.router_norm.weight",
    "laurel_l.weight": "laurel.linear_left.weight",
    "laurel_r.weight": "laurel.linear_right.weight",
    "laurel_post_norm.weight": "laurel.post_laurel_norm.weight",
}
STACKS = {"altup_proj.weight": "altup_projections", "altup_unembd_proj.weight": "altup_unembed_projections"}
TABLE = "per_layer_token_embd.weight"

# What no such file says, as all releases have it.
SILENT = {
    "model_type": "gemma3n_text",
    "architectures": ["Gemma3nForCausalLM"],
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "rope_scaling": None,
}


def weights_of(path, file: Gguf) -> dict[str, Any]:
    """The tensors under the checkpoint's names.  Raises InputError for a tensor that has no place in Gemma 3n."""
    found: dict[str, Any] = {}
    for name, tensor in file.tensors.items():
        if name in STACKS:
            check_stack(path, name, tensor)
            found |= {f"{STACKS[name]}.{i}.weight": matrix for i, matrix in enumerate(tensor)}
        else:
            found[our_name(path, name, AROUND, LAYER_3N, "Gemma 3n")] = tensor
    if TABLE in file.tensors:
        found[AROUND[TABLE]] = without_padding(file.tensors[TABLE])
    return found


def check_stack(path, name, tensor):
    if tensor.ndim != 3:
        raise InputError(f"{path}: {name} has {tensor.ndim} axes, and a stack of matrices has three; convert it again.")


def without_padding(table):
    """A table of rows without those at its end that are all zeros."""
    kept, size = len(table), 256
    while kept:
        there = np.flatnonzero(np.any(np.asarray(table[max(0, kept - size) : kept], np.float32), -1))
        if len(there):
            kept = max(0, kept - size) + int(there[-1]) + 1
            break
        kept = max(0, kept - size)
    return replace(table, shape=(kept, table.shape[1])) if isinstance(table, Packed) else table[:kept]


def config_of(path, file: Gguf) -> dict[str, Any]:
    """What config.json would say."""
    keys = Keys(path, file, "gemma3n")
    L = keys.number("block_count")
    return SILENT | {
        "vocab_size": keys.vocabulary(),
        "vocab_size_per_layer_input": len(without_padding(keys.tensor(TABLE))),
        "hidden_size": keys.number("embedding_length"),
        "hidden_size_per_layer_input": keys.number("embedding_length_per_layer_input"),
        "intermediate_size": keys.by_layer("feed_forward_length", L),
        "num_hidden_layers": L,
        "layer_types": keys.kinds(),
        "num_kv_shared_layers": keys.number("attention.shared_kv_layers", 0),
        "num_attention_heads": keys.number("attention.head_count"),
        "num_key_value_heads": keys.number("attention.head_count_kv"),
        "head_dim": keys.number("attention.key_length"),
        "sliding_window": keys.number("attention.sliding_window"),
        "max_position_embeddings": keys.number("context_length"),
        "rms_norm_eps": keys.epsilon(),
        "rope_theta": keys.number("rope.freq_base"),
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10_000.0),  # not there in older files
        "final_logit_softcapping": keys.number("final_logit_softcapping"),
        "altup_num_inputs": keys.number("altup.num_inputs"),
        "altup_active_idx": keys.number("altup.active_idx"),
        "laurel_rank": len(keys.tensor("blk.0.laurel_l.weight")),
        "activation_sparsity_pattern": sparsity(path, keys.get("activation_sparsity_scale"), L),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **keys.marks(),
    }


def sparsity(path, deviations, L):
    """How much of a gate is cut off below so many standard deviations, layer by layer; minus infinity: nothing."""
    if not (isinstance(deviations, np.ndarray) and deviations.dtype.kind == "f" and len(deviations) == L):
        raise InputError(f"{path}: gemma3n.activation_sparsity_scale is no list of {L} numbers; convert it again.")
    return [float(f"{NormalDist().cdf(x):.6g}") if np.isfinite(x) else 0.0 for x in map(float, deviations)]
