"""config.json of model_type gemma4_unified and gemma4_unified_text -> frozen dataclasses.

The text half is a Gemma 4 decoder like 31B's, and its layer table is made like that one's.
"""

from dataclasses import dataclass
from typing import Any

from numgemma.config import build, demand, section
from numgemma.errors import InputError
from numgemma.families.gemma4.config import TextConfig, check_text_config, stops

# What a Gemma 4 config says and this family has none of: released files carry the keys, Transformers drops some.
ABSENT: dict[str, Any] = {"enable_moe_block": False, "hidden_size_per_layer_input": 0, "use_double_wide_mlp": False}

COMPUTED = {"num_soft_tokens", "model_patch_size"}  # of a vision_config: the processor's, and a product of two others
FOUR_SPELLINGS = ("audio_embed_dim", "audio_samples_per_token", "hidden_size", "output_proj_dims")


@dataclass(frozen=True)
class UnifiedVisionConfig:
    """The keys of a `gemma4_unified_vision` config, under their own names."""

    patch_size: int
    pooling_kernel_size: int
    mm_embed_dim: int
    mm_posemb_size: int
    output_proj_dims: int
    rms_norm_eps: float

    @property
    def numbers(self):
        """Of one patch that enters the model: a square of pooling_kernel_size^2 of the processor's, three colours."""
        return 3 * (self.patch_size * self.pooling_kernel_size) ** 2


@dataclass(frozen=True)
class UnifiedAudioConfig:
    """The keys of a `gemma4_unified_audio` config, under their own names."""

    audio_embed_dim: int  # samples of one frame
    rms_norm_eps: float


@dataclass(frozen=True)
class UnifiedConfig:
    """A whole checkpoint's configuration, and which image mask a run is to use: a choice of the user's."""

    text: TextConfig
    vision: UnifiedVisionConfig | None = None
    audio: UnifiedAudioConfig | None = None
    image_token_id: int | None = None
    audio_token_id: int | None = None
    video_token_id: int | None = None
    boi_token_id: int | None = None
    eoi_token_id: int | None = None
    boa_token_id: int | None = None
    eoa_token_id: int | None = None
    eoa_token_index: int | None = None
    tie_word_embeddings: bool = True
    eos_token_id: int | tuple[int, ...] | None = None
    image_mask: str = "intended"  # a key of MASKS in unified.py


def read_config(raw: dict, where: str) -> UnifiedConfig:
    """A parsed config.json of this family; `where` names the file in errors."""
    if raw["model_type"] == "gemma4_unified_text":
        text = read_text_config(raw, where)
        return UnifiedConfig(text=text, tie_word_embeddings=text.tie_word_embeddings)
    if "image_mask" in raw:
        raise InputError(f"{where}: unknown key 'image_mask'; choose the mask when the model is loaded.")
    text = read_text_config(section(raw, "text_config", where), f"{where}, text_config")
    parts = {
        "text": text,
        "vision": read_vision_config(section(raw, "vision_config", where), f"{where}, vision_config"),
        "audio": read_audio_config(section(raw, "audio_config", where), f"{where}, audio_config"),
    }
    rest = {k: v for k, v in raw.items() if k not in ("text_config", "vision_config", "audio_config")}
    return build(UnifiedConfig, rest | parts, where)


def generation(config: UnifiedConfig) -> dict[str, list[int]]:
    """As gemma4's; the ends of sound and pictures, unmasked, are ranked first on some prompts."""
    ends = [i for i in (config.eoa_token_id or config.eoa_token_index, config.eoi_token_id) if i is not None]
    return stops(config.eos_token_id) | ({"suppress_tokens": ends} if ends else {})


def read_text_config(raw, where):
    """As gemma4's, without what this family has none of."""
    for key, value in ABSENT.items():
        if raw.get(key, value) not in (value, None):
            raise InputError(f"{where}: {key} is {raw[key]!r}, which no gemma4_unified has; correct the file.")
    c = build(TextConfig, spelled_text(raw), where)
    check_text_config(c, where)
    return c


def spelled_text(raw):
    """With the keys of a Gemma 4 that Transformers drops here."""
    table = raw.get("vocab_size_per_layer_input") or raw.get("vocab_size")
    return ABSENT | raw | ({} if table is None else {"vocab_size_per_layer_input": table})


def read_vision_config(raw, where):
    if not raw:
        return None
    c = build(UnifiedVisionConfig, spelled_vision(raw), where)
    check_vision_config(c, where)
    side = c.patch_size * c.pooling_kernel_size
    said = raw.get("model_patch_size", side) == side
    demand([(said, "model_patch_size is not patch_size * pooling_kernel_size")], where)
    return c


def spelled_vision(raw):
    return {key: value for key, value in raw.items() if key not in COMPUTED}


def check_vision_config(c: UnifiedVisionConfig, where):
    rules = [
        (min(c.patch_size, c.pooling_kernel_size, c.mm_embed_dim, c.mm_posemb_size) > 0, "a size is not positive"),
        (c.mm_embed_dim == c.output_proj_dims, "mm_embed_dim and output_proj_dims disagree"),
        (c.rms_norm_eps > 0, "rms_norm_eps is not positive"),
    ]
    demand(rules, where)


def read_audio_config(raw, where):
    if not raw:
        return None
    spelled = {key: str(raw[key]) for key in FOUR_SPELLINGS if key in raw}
    if len(set(spelled.values())) > 1:
        raise InputError(f"{where}: {', '.join(spelled)} are one number, here they disagree; correct the file.")
    c = build(UnifiedAudioConfig, spelled_audio(raw), where)
    check_audio_config(c, where)
    return c


def spelled_audio(raw):
    """One number is spelled in four ways: here in one."""
    said = [raw[key] for key in FOUR_SPELLINGS if key in raw]
    rest = {key: value for key, value in raw.items() if key not in FOUR_SPELLINGS}
    return rest | ({"audio_embed_dim": said[0]} if said else {})


def check_audio_config(c: UnifiedAudioConfig, where):
    rules = [(c.audio_embed_dim > 0, "a size is not positive"), (c.rms_norm_eps > 0, "rms_norm_eps is not positive")]
    demand(rules, where)
