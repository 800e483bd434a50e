"""The checkpoints that tests/fixtures/gguf/ was made from: wide enough for blocks of 256 weights, and small."""

import tiny
import tiny3n

KINDS = tiny.KINDS
BASE = tiny.TEXT | {
    "vocab_size": 608,
    "vocab_size_per_layer_input": 608,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "global_head_dim": 64,
}
PLE = BASE | {
    "hidden_size_per_layer_input": 32,
    "layer_types": [KINDS[letter] for letter in "sfsf"],
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
}
MOE = BASE | {
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 96,  # no multiple of 256: its blocks fall back to smaller ones
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "layer_types": [KINDS[letter] for letter in "sf"],
    "num_hidden_layers": 2,
}
GEMMA_3N = tiny3n.TEXT | {
    "vocab_size": 608,
    "vocab_size_per_layer_input": 600,  # the converter pads it to the other
    "hidden_size": 128,
    "hidden_size_per_layer_input": 32,
    "intermediate_size": [128] * 4,
    "num_hidden_layers": 4,
    "layer_types": [KINDS[letter] for letter in "sfsf"],
    "num_kv_shared_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.0],
    "laurel_rank": 32,
}
SHAPES = {"ple": PLE, "moe": MOE, "3n": GEMMA_3N}

# With towers, whose file says nothing of what all releases have.
HEARD = {"attention_chunk_size": 12, "attention_context_left": 13, "attention_logit_cap": 50.0}
WHOLE = {"eoa_token_id": tiny.IDS["eoa"], "eoa_token_index": tiny.IDS["eoa"]}
LONG = {"vocab_size": 608, "vocab_size_per_layer_input": 608}  # room for the pieces of a tokenizer
SEEN = {
    "e4b": tiny.E4B
    | WHOLE
    | {"text_config": tiny.E4B["text_config"] | LONG, "audio_config": tiny.E4B["audio_config"] | HEARD},
    "26b": tiny.A4B | WHOLE | {"text_config": tiny.A4B["text_config"] | LONG},
    "12b": tiny.UNIFIED
    | WHOLE
    | {
        "text_config": tiny.UNIFIED["text_config"] | LONG | {"architectures": None},
        "vision_config": tiny.UNIFIED["vision_config"] | {"mm_embed_dim": 12, "output_proj_dims": 12},
    },
}


NEVER_DRAWN = {"12b": [tiny.IDS["eoa"], tiny.IDS["eoi"]]}  # as in the released generation_config.json


def write(folder, name):
    """The checkpoint of that name, always with the same numbers."""
    if name == "3n":
        return tiny3n.write(folder, GEMMA_3N)
    never = {"eos_token_id": 1, "suppress_tokens": NEVER_DRAWN[name]} if name in NEVER_DRAWN else None
    return tiny.write(folder, (SHAPES | SEEN)[name], generation=never)
