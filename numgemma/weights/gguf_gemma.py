"""Gemma 4 in a GGUF file: llama.cpp's names and keys -> the checkpoint's own names, and a config.json.

The converter changes no value of the text model: norms are stored as they are, nothing is permuted or transposed.
What it leaves out is read off the tensors: layers without attn_v take their keys for values, rope_freqs tells which
lanes turn, the rows of token_embd count the vocabulary.
"""

import re
from typing import Any

import numpy as np

from numgemma.errors import InputError
from numgemma.weights.gguf import Gguf, Texts
from numgemma.weights.packed import format_of, joined

AROUND = {
    "token_embd.weight": "embed_tokens.weight",
    "per_layer_token_embd.weight": "embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "per_layer_projection_norm.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    **{f"attn_{x}.weight": f"self_attn.{x}_proj.weight" for x in "qkv"},
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    **{f"ffn_{x}.weight": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
    "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
    "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight",
    "inp_gate.weight": "per_layer_input_gate.weight",
    "proj.weight": "per_layer_projection.weight",
    "post_norm.weight": "post_per_layer_input_norm.weight",
    "layer_output_scale.weight": "layer_scalar",
    "ffn_gate_inp.weight": "router.proj.weight",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_down_exps.weight": "experts.down_proj",
}
NOT_WEIGHTS = ("rope_freqs.weight",)  # what no checkpoint has; `config_of` reads it
STILL = 1e29  # frequencies are divided by so much, or more, where a pair of lanes does not turn

# What no GGUF says, as all releases have it.
SILENT = {
    "model_type": "gemma4_text",
    "architectures": ["Gemma4ForCausalLM"],
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_bidirectional_attention": None,
}


def weights_of(path, file: Gguf) -> dict[str, Any]:
    """The tensors under the checkpoint's names.  Raises InputError for a tensor that has no place in Gemma 4."""
    found = {}
    for name, tensor in file.tensors.items():
        if name not in NOT_WEIGHTS:
            found[our_name(path, name)] = tensor
    for pair in [n for n in found if n.endswith("experts.gate_proj")]:
        gate, up = found.pop(pair), found.pop(pair.replace("gate", "up"), None)
        if up is None or len(up) != len(gate):
            raise InputError(f"{path}: {pair!r} has no up_proj of as many experts beside it; convert the file again.")
        apart = list(zip(gate, up, strict=True))
        found[pair.replace("gate_proj", "gate_up_proj")] = joined(apart, format_of(gate))
    return found


def our_name(path, name, around=AROUND, leaves=LAYER, what="Gemma 4"):
    """A tensor's name in a checkpoint; the tables are those of a family."""
    if name in around:
        return around[name]
    layer = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    apart = {f"ffn_{x}_exps.weight": f"experts.{x}_proj" for x in ("gate", "up")}
    leaf = (leaves | apart).get(layer[2]) if layer else None
    if layer is None or leaf is None:
        raise InputError(f"{path}: tensor {name!r:.80} has no place in a {what} text model; convert the file again.")
    return f"layers.{layer[1]}.{leaf}"


def config_of(path, file: Gguf) -> dict[str, Any]:
    """What config.json would say, in the released spelling."""
    keys = Keys(path, file)
    L, kinds = keys.number("block_count"), keys.kinds()
    keys.check_heads()
    shared = keys.number("attention.shared_kv_layers", 0)
    heads = keys.by_layer("attention.head_count_kv", L)
    F = keys.by_layer("feed_forward_length", L)
    E = keys.number("expert_count", 0)
    full = kinds.index("full_attention") if "full_attention" in kinds else None
    sliding = kinds.index("sliding_attention") if "sliding_attention" in kinds else 0
    P = keys.number("embedding_length_per_layer_input", 0)
    per_layer = file.tensors.get("per_layer_token_embd.weight")
    return SILENT | {
        "vocab_size": len(keys.tensor("token_embd.weight")),
        "hidden_size": keys.number("embedding_length"),
        "intermediate_size": F[0],
        "use_double_wide_mlp": shared > 0 and F[-1] == 2 * F[0],
        "num_hidden_layers": L,
        "num_attention_heads": keys.number("attention.head_count"),
        "num_key_value_heads": heads[sliding],
        "num_global_key_value_heads": heads[full] if full is not None and heads[full] != heads[sliding] else None,
        "head_dim": keys.number("attention.key_length_swa"),
        "global_head_dim": keys.number("attention.key_length"),
        "layer_types": kinds,
        "sliding_window": keys.number("attention.sliding_window"),
        "rope_parameters": keys.ropes(),
        "rms_norm_eps": keys.epsilon(),
        "final_logit_softcapping": keys.number("final_logit_softcapping", None),
        "attention_k_eq_v": full is not None and f"blk.{full}.attn_v.weight" not in file.tensors,
        "num_kv_shared_layers": shared,
        "enable_moe_block": E > 0,
        "num_experts": E or None,
        "top_k_experts": keys.number("expert_used_count", None) if E else None,
        "moe_intermediate_size": keys.number("expert_feed_forward_length", None) if E else None,
        "hidden_size_per_layer_input": P,
        "vocab_size_per_layer_input": len(per_layer) if per_layer is not None else keys.vocabulary(),
        "max_position_embeddings": keys.number("context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **keys.marks(),
    }


def generation_of(file: Gguf) -> dict[str, Any] | None:
    """What generation_config.json would say and the config does not: ids that are never drawn, in a file of 12B."""
    suppressed = file.keys.get("tokenizer.ggml.suppress_tokens")
    return {"suppress_tokens": suppressed.tolist()} if isinstance(suppressed, np.ndarray) else None


FAMILIES = ("gemma4", "gemma3n")  # of which a file is read
NEEDED: Any = object()


class Keys:
    """The metadata of one file, asked by name; what is missing or of another type is one sentence."""

    def __init__(self, path, file, family="gemma4"):
        self.path, self.file, self.family = path, file, family

    def get(self, name, otherwise=NEEDED, scope=None):
        scope = scope or self.family
        if f"{scope}.{name}" in self.file.keys:
            return self.file.keys[f"{scope}.{name}"]
        if otherwise is NEEDED:
            raise InputError(f"{self.path}: has no key {scope}.{name}; convert it again with a current llama.cpp.")
        return otherwise

    def number(self, name, otherwise=NEEDED, scope=None):
        value = self.get(name, otherwise, scope)
        if value is otherwise or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        raise InputError(f"{self.path}: {scope or self.family}.{name} is no number; convert it again.")

    def by_layer(self, name, L):
        """One number for each layer, where the file has one for all too."""
        value = self.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return [value] * min(L, 1 << 16)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and len(value) == L:
            return value.tolist()
        raise InputError(f"{self.path}: {self.family}.{name} is neither a number nor {L} of them; convert it again.")

    def kinds(self):
        pattern = self.get("attention.sliding_window_pattern")
        if not (isinstance(pattern, np.ndarray) and len(pattern) == self.number("block_count")):
            told = f"{self.family}.attention.sliding_window_pattern does not name each layer's kind"
            raise InputError(f"{self.path}: {told}; convert it again.")
        return ["sliding_attention" if slides else "full_attention" for slides in pattern]

    def check_heads(self):
        """Values are as wide as keys, whole heads turn (what stays still is in rope_freqs), and at no other scale."""
        for kind in ("", "_swa"):
            H = self.number(f"attention.key_length{kind}")
            for name in (f"attention.value_length{kind}", f"rope.dimension_count{kind}"):
                if self.number(name, H) != H:
                    told = f"{self.family}.{name} is {self.get(name)}, where keys are {H} wide"
                    raise InputError(f"{self.path}: {told}, as in no Gemma 4; convert it again.")
        if self.get("rope.scaling.type", "none") != "none":
            raise InputError(f"{self.path}: has {self.family}.rope.scaling, as no Gemma 4 has; convert it again.")

    def tensor(self, name, axes=1):
        """One by its name, of so many axes at least."""
        if name not in self.file.tensors or self.file.tensors[name].ndim < axes:
            raise InputError(f"{self.path}: has no tensor {name!r}{f' of {axes} axes' * (axes > 1)}; convert it again.")
        return self.file.tensors[name]

    def vocabulary(self):
        return len(self.tensor("token_embd.weight"))

    def epsilon(self, name="attention.layer_norm_rms_epsilon"):
        """What was rounded to float32, as it was before."""
        return float(f"{self.number(name):.7g}")

    def marks(self):
        """The tokens that begin a text, end it and fill it up."""
        names = {"bos": ("bos", 2), "eos": ("eos", 1), "pad": ("padding", 0)}
        return {
            f"{ours}_token_id": self.number(f"{key}_token_id", i, "tokenizer.ggml") for ours, (key, i) in names.items()
        }

    def ropes(self):
        """Base and turning lanes of both kinds.  rope_freqs divides the frequencies of full layers, lane by lane."""
        factors = self.file.tensors.get("rope_freqs.weight")
        turning = 1.0 if factors is None else float((np.asarray(factors) < STILL).mean())
        full = {"rope_type": "proportional", "rope_theta": self.number("rope.freq_base")}
        return {
            "full_attention": full | {"partial_rotary_factor": turning},
            "sliding_attention": {"rope_type": "default", "rope_theta": self.number("rope.freq_base_swa")},
        }


def check_architecture(path, file: Gguf) -> None:
    """Raises InputError for a file that holds something else than a Gemma 4 text model."""
    said = file.keys.get("general.architecture")
    kind = file.keys.get("general.type", "model")
    if kind == "adapter":
        raise InputError(f"{path}: is a LoRA adapter; name its base model, and this file with --adapter.")
    if said == "clip":
        raise InputError(
            f"{path}: is an mmproj file, the towers alone; name the text model's GGUF, with this beside it."
        )
    if said not in FAMILIES:
        read = " and ".join(f"'{name}'" for name in FAMILIES)
        raise InputError(f"{path}: holds '{said!s:.40}', and only {read} are read from GGUF; use its safetensors.")


def texts(file: Gguf, key) -> Texts | None:
    found = file.keys.get(f"tokenizer.ggml.{key}")
    return found if isinstance(found, Texts) else None
