"""config.json of model_type embedding_gemma2 and embedding_gemma2_text -> frozen dataclasses.

The layers are Gemma 4's, and their table is made like that one's; but `sliding_window` is a radius here: a token of a
sliding layer sees so many tokens before it and as many after it, and itself.
"""

from dataclasses import dataclass, replace
from typing import Any

from numgemma.config import build, demand, section
from numgemma.errors import InputError
from numgemma.families.gemma4.config import (
    AudioConfig,
    TextConfig,
    VisionConfig,
    check_audio_config,
    check_text_config,
    check_vision_config,
)

# What a Gemma 4 config says and this family has none of: no head, no shared keys, no experts.
ABSENT: dict[str, Any] = {
    "final_logit_softcapping": None,
    "attention_k_eq_v": False,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "enable_moe_block": False,
    "use_bidirectional_attention": None,
    "vocab_size_per_layer_input": None,
}
FULL = {"head_dim": 512, "num_key_value_heads": 1}  # of a full layer, where a config is silent


@dataclass(frozen=True)
class EmbeddingConfig:
    """A whole checkpoint's configuration: the layers, the towers it has, and the ids that stand for their outputs."""

    text: TextConfig
    embedding_dim: int  # numbers of a vector; in the file it is a key of text_config
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    image_token_id: int | None = None
    audio_token_id: int | None = None
    video_token_id: int | None = None
    boi_token_id: int | None = None
    eoi_token_id: int | None = None
    boa_token_id: int | None = None
    eoa_token_id: int | None = None
    eoa_token_index: int | None = None
    vision_soft_tokens_per_image: int | None = None
    tie_word_embeddings: bool = True  # of a head that there is not
    eos_token_id: int | tuple[int, ...] | None = None
    dim: int | None = None  # numbers of a vector that are kept, a choice of the user's; None: all


def read_config(raw: dict, where: str) -> EmbeddingConfig:
    """A parsed config.json of this family; `where` names the file in errors."""
    if raw["model_type"] == "embedding_gemma2_text":
        return EmbeddingConfig(read_text_config(raw, where), width_of(raw, where))
    inner, told = section(raw, "text_config", where), f"{where}, text_config"
    for key in {"embedding_dim", "dim"} & raw.keys():
        raise InputError(f"{where}: unknown key '{key}'; a vector is as wide as embedding_dim of text_config says.")
    parts: dict[str, Any] = {"text": read_text_config(inner, told), "embedding_dim": width_of(inner, told)}
    for name, cls, check in (("vision", VisionConfig, check_vision_config), ("audio", AudioConfig, check_audio_config)):
        tower = section(raw, f"{name}_config", where)
        parts[name] = build(cls, tower, f"{where}, {name}_config") if tower else None
        if tower:
            check(parts[name], f"{where}, {name}_config")
    rest = {k: v for k, v in raw.items() if k not in ("text_config", "vision_config", "audio_config")}
    return build(EmbeddingConfig, rest | parts, where)


def width_of(raw, where) -> int:
    """How many numbers a vector has."""
    width = raw.get("embedding_dim")
    demand([(type(width) is int and 0 < width < 2**31, "embedding_dim is not a positive number")], where)
    return width


def as_run(config: EmbeddingConfig, dump) -> EmbeddingConfig:
    """The config of the run that a dump is of: its vector may have been cut."""
    given = len(dump["vector"]) if "vector" in dump and dump["vector"].ndim == 1 else config.embedding_dim
    return replace(config, dim=given) if 0 < given < config.embedding_dim else config


def read_text_config(raw, where):
    """As gemma4's, without what this family has none of."""
    for key, value in ABSENT.items():
        if raw.get(key, value) != value:
            raise InputError(f"{where}: {key} is {raw[key]!r:.60}, which no embedding_gemma2 has; correct the file.")
    c = build(TextConfig, spelled_text(raw), where)
    check_text_config(c, where)
    demand([((c.hidden_size_per_layer_input or 0) > 0, "hidden_size_per_layer_input is not positive")], where)
    return c


def spelled_text(raw):
    """With the keys of a Gemma 4 that Transformers drops here, and its own moved away.  raw: the object as it stands"""
    theirs = {key: value for key, value in raw.items() if key != "embedding_dim"}
    return theirs | ABSENT | {"vocab_size_per_layer_input": raw.get("vocab_size")} | widths(raw)


def widths(raw):
    """per_layer_config, made of the two numbers that it replaces where it is not there."""
    kinds = raw.get("layer_types")
    if raw.get("per_layer_config") is not None or not isinstance(kinds, list | tuple):
        return {}
    H, K = raw.get("global_head_dim"), raw.get("num_global_key_value_heads")
    full = {"head_dim": H or FULL["head_dim"], "num_key_value_heads": K or FULL["num_key_value_heads"]}
    return {"per_layer_config": {str(i): full for i, kind in enumerate(kinds) if kind == "full_attention"}}
