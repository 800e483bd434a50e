"""config.json of model_type diffusion_gemma -> frozen dataclasses.

The text half is 26B-A4B's decoder, whose layer table is made like that one's: the encoder and the decoder of this
family are those layers, run in two ways.
"""

from dataclasses import dataclass
from typing import Any

from numgemma.config import build, demand, section
from numgemma.errors import InputError
from numgemma.families.gemma4.config import TextConfig, VisionConfig, check_text_config, check_vision_config

# What every model of this family has; its files do not say so.
ALWAYS: dict[str, Any] = {
    "attention_k_eq_v": True,
    "enable_moe_block": True,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
}


@dataclass(frozen=True)
class DiffusionConfig:
    """A whole checkpoint's configuration, and which image mask a run is to use: a choice of the user's."""

    text: TextConfig
    vision: VisionConfig | None = None
    canvas_length: int = 256  # tokens that are written at once
    image_token_id: int | None = None
    boi_token_id: int | None = None
    eoi_token_id: int | None = None
    vision_soft_tokens_per_image: int | None = None
    tie_word_embeddings: bool = True
    eos_token_id: int | tuple[int, ...] | None = None
    image_mask: str = "intended"  # a key of MASKS in diffusion.py

    # no fields: what 26B-A4B's config can have and this family cannot
    audio = audio_token_id = video_token_id = boa_token_id = eoa_token_id = eoa_token_index = None


def read_config(raw: dict, where: str) -> DiffusionConfig:
    """A parsed config.json of this family; `where` names the file in errors."""
    if "image_mask" in raw:
        raise InputError(f"{where}: unknown key 'image_mask'; choose the mask when the model is loaded.")
    text = read_text_config(section(raw, "text_config", where), f"{where}, text_config")
    tower = section(raw, "vision_config", where)
    vision = build(VisionConfig, tower, f"{where}, vision_config") if tower else None
    if vision is not None:
        check_vision_config(vision, f"{where}, vision_config")
    rest = {k: v for k, v in raw.items() if k not in ("text_config", "vision_config")}
    c = build(DiffusionConfig, rest | {"text": text, "vision": vision}, where)
    untied = "tie_word_embeddings false, an encoder with weights of its own, is not computed here"
    demand([(c.canvas_length > 0, "canvas_length is not positive"), (c.tie_word_embeddings, untied)], where)
    return c


def generation(config: DiffusionConfig) -> dict[str, Any]:
    """Settings of the sampler in the place of those of a sampler of tokens, which Transformers refuses here."""
    steps: dict[str, Any] = {
        "max_new_tokens": config.canvas_length,
        "max_denoising_steps": 48,
        "t_min": 0.4,
        "t_max": 0.8,
    }
    steps |= {"sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1}}
    steps |= {"stability_threshold": 1, "confidence_threshold": 0.005}
    return dict.fromkeys(("do_sample", "temperature", "top_k", "top_p")) | steps


def read_text_config(raw, where):
    """As gemma4's, with what is said of no such model and holds for each."""
    for key, value in ALWAYS.items():
        if raw.get(key, value) not in (value, None):
            raise InputError(f"{where}: {key} is {raw[key]!r}, and {value!r} in every diffusion_gemma; correct it.")
    c = build(TextConfig, spelled_text(raw), where)
    check_text_config(c, where)
    demand([(c.final_logit_softcapping, "final_logit_softcapping is null, which no diffusion_gemma has")], where)
    return c


def spelled_text(raw):
    """With the keys of a Gemma 4 that are left out here."""
    table = raw.get("vocab_size_per_layer_input") or raw.get("vocab_size")
    return raw | ALWAYS | ({} if table is None else {"vocab_size_per_layer_input": table})
