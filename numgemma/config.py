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


def section(raw, key, where):
    if not isinstance(raw.get(key), dict | None):
        raise InputError(f"{where}: {key} should be an object, it is {raw[key]!r}.")
    return raw.get(key) or {}


def build(cls, raw, where):
    """A dataclass from a JSON object: every key known or harmless, none missing, each of its type."""
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(raw.keys() - known.keys() - HARMLESS)
    if unknown:
        raise InputError(
            f"{where}: unknown key '{unknown[0]}' could change the numbers; remove it if it has no effect on them."
        )
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
