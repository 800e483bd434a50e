"""Strict reading of a JSON object into a dataclass: what every family's config.py is made of.

A key that is neither known nor known to be harmless is an error that names it, since it could change the numbers.
"""

import reprlib
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin

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


LARGEST_INT = 2**31  # the largest table of a Gemma has a thousandth of it
LARGEST = 1e38  # what float32 holds

# Counts by which something is expanded before a tensor is looked at, or that a run goes through one by one: many times
# what any release has.
MOST = {"num_hidden_layers": 1000, "num_experts": 100_000, "num_frames": 100_000, "feature_size": 10_000}
MOST |= {"fft_length": 1 << 20, "frame_length": 1 << 20, "sampling_rate": 1_000_000, "max_soft_tokens": 100_000}
MOST |= {"conf_num_hidden_layers": 1000, "altup_num_inputs": 100, "canvas_length": 100_000}
MOST |= {"attention_context_left": 1000, "conf_attention_context_left": 1000}
MOST |= {"image_seq_length": 100_000, "audio_seq_length": 100_000}
MOST |= {"max_new_tokens": 1_000_000, "max_denoising_steps": 10_000}


def section(raw, key, where):
    if not isinstance(raw.get(key), dict | None):
        raise InputError(f"{where}: {key} should be an object, it is {reprlib.repr(raw[key])}.")
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
    return cls(**{name: of_key(raw, f, where) for name, f in known.items() if name in raw})


def of_key(raw, f, where):
    """The value of one key of a section, of the type and within the bound of the dataclass's field."""
    value = typed(raw[f.name], f.type, f"{where}: {f.name}")
    if f.name in MOST and value is not None and value > MOST[f.name]:
        raise InputError(f"{where}: {f.name} is {value}, and at most {MOST[f.name]} are run; correct the file.")
    return value


def typed(value, hint, what):
    """The value, if it is of the annotated type; a list becomes the tuple that the annotation asks for.

    Understands unions, tuple[A, B] and tuple[A, ...], list[A], dict[str, A], dict[int, A] (JSON's keys are texts) and
    dataclasses.  Numbers are finite, and no bool is one.
    """
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if fits(value, option):
            return converted(value, option, what)
    raise InputError(f"{what} should be {getattr(hint, '__name__', hint)}, it is {reprlib.repr(value)}.")


def fits(value, option):
    """Whether a value is of a type, as far as its outside says."""
    plain = get_origin(option) or option
    if plain is Any:
        return True
    if plain is int:
        return type(value) is int and abs(value) < LARGEST_INT
    if plain is float:
        return type(value) in (int, float) and abs(value) < LARGEST
    if plain is tuple:
        members = get_args(option)
        return isinstance(value, list | tuple) and (members[-1] is Ellipsis or len(value) == len(members))
    return isinstance(value, plain) or (is_dataclass(plain) and isinstance(value, dict))


def converted(value, option, what):
    """A value that fits on its outside, with what it holds made to fit too."""
    plain, members = get_origin(option) or option, get_args(option)
    if plain is float:
        return float(value)
    if is_dataclass(plain) and isinstance(value, dict):
        return build(plain, value, what)
    if plain is tuple:
        kinds = members[:1] * len(value) if members[-1] is Ellipsis else members
        return tuple(typed(v, kind, what) for v, kind in zip(value, kinds, strict=True))
    if plain is list and members:
        return [typed(v, members[0], what) for v in value]
    if plain is dict and members:
        return {key_of(key, members[0], what): typed(v, members[1], f"{what}, {key:.60}") for key, v in value.items()}
    return value


def key_of(key, kind, what):
    if kind is int and not (key.isascii() and key.isdecimal() and len(key) < 10):
        raise InputError(f"{what} has the key {key!r:.60}, which is no number.")
    return kind(key)


def demand(rules, where):
    """Raises InputError with all that does not hold.  rules: (holds, complaint)"""
    if wrong := [complaint for holds, complaint in rules if not holds]:
        raise InputError(f"{where}: {'; '.join(wrong)}; correct the file.")


def is_positive(value):
    """A finite number above 0, whose inverse is finite too; true is none."""
    return type(value) in (int, float) and 1 / LARGEST < value < LARGEST
