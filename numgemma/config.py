"""Strict reading of a JSON object into a dataclass: what every family's config.py is made of.

A key that is neither known nor known to be harmless is an error that names it, since it could change the numbers.
"""

import types
from dataclasses import MISSING, fields
from typing import get_args, get_origin

from numgemma.errors import InputError

# Keys of a config.json that no number of a forward pass depends on.
HARMLESS = {
    *("architectures", "dtype", "model_type", "torch_dtype", "transformers_version", "_name_or_path"),
    *("attention_dropout", "initializer_range", "is_encoder_decoder", "problem_type", "id2label", "label2id"),
    *("output_attentions", "output_hidden_states", "return_dict", "use_cache", "chunk_size_feed_forward"),
    *("default_output_length", "_attn_implementation", "_attn_implementation_autoset"),
    *("quantization_config", "quantization"),  # of the storage, and read by `weights`
}

# Keys that others write beside these.  Transformers passes over them, and so does a run here; `inspect` names them.
PASSED_OVER = {
    # what noise training adds, and what it is paid for
    *("dropout", "dropout_rate", "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("embd_pdrop", "resid_pdrop", "resid_dropout", "classifier_dropout", "layerdrop", "gradient_checkpointing"),
    *("router_aux_loss_coef", "router_jitter_noise", "output_router_logits", "pretraining_tp", "use_bfloat16"),
    # who wrote the file, and from what
    *("unsloth_fixed", "unsloth_version", "unsloth_tiled_mlp", "auto_map", "license", "language", "tags"),
    *("tokenizer_class", "finetuning_task", "task_specific_params", "prefix", "torchscript", "tf_legacy_loss"),
    *("tie_encoder_decoder", "cross_attention_hidden_size", "pruned_heads", "embed_dim", "model_name"),
    # how older versions chose tokens: it stands in generation_config.json now
    *("temperature", "top_k", "top_p", "typical_p", "do_sample", "max_length", "min_length", "early_stopping"),
    *("num_beams", "num_beam_groups", "num_return_sequences", "diversity_penalty", "length_penalty"),
    *("repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids"),
    *("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "output_scores"),
    *("exponential_decay_length_penalty", "return_dict_in_generate", "decoder_start_token_id", "sep_token_id"),
}


def passed_over(raw, where="") -> list[str]:
    """The keys of a config.json that nothing here reads and that change nothing, with their sections."""
    found = [f"{where}{key}" for key in sorted(raw) if key in PASSED_OVER]
    for key in sorted(raw):
        if key.endswith("_config") and isinstance(raw[key], dict) and key not in HARMLESS:
            found += passed_over(raw[key], f"{where}{key}.")
    return found


def section(raw, key, where):
    if not isinstance(raw.get(key), dict | None):
        raise InputError(f"{where}: {key} should be an object, it is {raw[key]!r}.")
    return raw.get(key) or {}


def build(cls, raw, where):
    """A dataclass from a JSON object: every key known or harmless, none missing, each of its type."""
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(raw.keys() - known.keys() - HARMLESS - PASSED_OVER)
    if unknown:
        told = ", ".join(f"'{key:.40}'" for key in unknown[:5]) + (f" and {len(unknown) - 5} more" * (len(unknown) > 5))
        keys = "key" if len(unknown) == 1 else "keys"
        raise InputError(f"{where}: unknown {keys} {told} could change the numbers; remove what has no effect on them.")
    missing = [name for name, f in known.items() if f.default is MISSING and name not in raw]
    if missing:
        raise InputError(f"{where}: key '{missing[0]}' is missing; add it as Transformers' save_pretrained writes it.")
    return cls(**{name: typed(raw[name], f.type, f"{where}: {name}") for name, f in known.items() if name in raw})


def typed(value, hint, what):
    """The value, if it is of the annotated type; a list becomes the tuple that the annotation asks for."""
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if get_origin(option) is tuple and isinstance(value, list | tuple):
            return tuple(typed(v, get_args(option)[0], what) for v in value)
        if option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        plain = get_origin(option) or option
        if isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
            return value
    raise InputError(f"{what} should be {getattr(hint, '__name__', hint)}, it is {value!r}.")


def demand(rules, where):
    for holds, complaint in rules:
        if not holds:
            raise InputError(f"{where}: {complaint}; correct the file.")


def is_positive(value):
    return isinstance(value, int | float) and value > 0
