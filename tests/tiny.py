"""Writes small random checkpoints of every shape, in Transformers' naming, with nothing left at its initial value."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from numgemma.config import read_config
from numgemma.layout import key_value_shapes, tensor_shapes

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}

# What all shapes have: both kinds of layer, a window shorter than the test prompts, head widths that differ by kind,
# several query heads per key/value head, several key/value heads.
KINDS = {"s": "sliding_attention", "f": "full_attention"}

TEXT = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "vocab_size": 199,
    "vocab_size_per_layer_input": 199,
    "hidden_size": 48,
    "hidden_size_per_layer_input": 0,
    "intermediate_size": 72,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "num_global_key_value_heads": None,
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": [KINDS[letter] for letter in "ssfssf"],
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 0,
    "sliding_window": 7,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "final_logit_softcapping": 30.0,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_k_eq_v": False,
    "use_double_wide_mlp": False,
    "use_bidirectional_attention": None,
    "enable_moe_block": False,
    "num_experts": None,
    "top_k_experts": None,
    "moe_intermediate_size": None,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}

DENSE = TEXT | {"attention_k_eq_v": True, "num_global_key_value_heads": 2}  # as 31B
EXPERTS = {"enable_moe_block": True, "num_experts": 7, "top_k_experts": 3, "moe_intermediate_size": 20}
MOE = DENSE | EXPERTS  # as 26B-A4B
PLE = TEXT | {  # as E2B and E4B; two sharing layers of each kind
    "hidden_size_per_layer_input": 10,
    "num_hidden_layers": 8,
    "layer_types": [
        f"{kind}_attention" for kind in ["sliding", "sliding", "full", "sliding", "full", "sliding", "sliding", "full"]
    ],
    "num_kv_shared_layers": 4,
    "use_double_wide_mlp": True,
}
VARIANTS = {"dense": DENSE, "moe": MOE, "ple": PLE}


def random_tensor(name, shape, rng):
    """A value no default equals: norms, scalars and scales around 1 but not 1, matrices scaled by their fan-in."""
    if "k_norm" in name:
        return rng.uniform(0.1, 0.6, shape)  # below 1, as in released models: it stands in for 1 / sqrt(H)
    if len(shape) <= 1:
        return rng.uniform(0.3, 1.7, shape)
    spread = 0.15 if "embed_tokens" in name else 1.6 * shape[-1] ** -0.5  # so that the branches count in the stream
    return spread * rng.standard_normal(shape)


def random_tensors(raw, seed=0):
    """Short name -> float64 array, for every tensor that the config calls for."""
    rng = np.random.default_rng(seed)
    shapes = tensor_shapes(read_config(raw, "the test"))
    return {name: random_tensor(name, shape, rng) for name, shape in shapes.items()}


def leftover_tensors(raw, seed=1):
    """Keys and values on layers that share: in released files, read by nobody."""
    rng = np.random.default_rng(seed)
    c = read_config(raw, "the test").text
    found = {}
    for spec in c.layers[c.num_hidden_layers - c.num_kv_shared_layers :]:
        for name, shape in key_value_shapes(spec, c.hidden_size).items():
            found[f"layers.{spec.index}.self_attn.{name}"] = random_tensor(name, shape, rng)
    return found


def stored_name(short, prefix):
    return short if short.startswith("lm_head") else prefix + short


def write(folder, raw, tensors=None, dtype="bfloat16", prefix="model.", generation=None):
    """A checkpoint directory that Transformers loads too.  Returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(raw) if tensors is None else tensors
    stored = {stored_name(name, prefix): np.asarray(x, DTYPES[dtype]) for name, x in tensors.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw))
    generation = generation or {"eos_token_id": raw.get("eos_token_id", 1)}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def prompt(raw, tokens, seed=0):
    """Random token ids of the vocabulary's ordinary tokens."""
    return np.random.default_rng(seed).integers(3, raw["vocab_size"], tokens)
