"""Every tensor of a 12B checkpoint, from its config alone: name -> shape, as gemma4's layout.py.

A file has pictures' weights in two places, `vision_embedder` and `embed_vision`; Transformers runs both in one module
`embed_vision`, and saves them in the two again.
"""

from numgemma.families.family import Shapes
from numgemma.families.gemma4.layout import text_shapes, whole
from numgemma.families.unified.config import UnifiedConfig

BESIDE = ("vision_embedder.", "embed_vision.", "embed_audio.")  # what stands beside language_model


def tensor_shapes(config: UnifiedConfig) -> Shapes:
    """All tensors that Transformers would build for this config."""
    return whole(config, text_shapes(config.text), embedders(config))


def vision_part(config: UnifiedConfig) -> Shapes:
    """What a picture passes through; empty where the config has none."""
    c = config.vision
    if c is None:
        return {}
    W, Q = c.mm_embed_dim, c.numbers
    shapes: Shapes = {"vision_embedder.patch_dense.weight": (W, Q), "vision_embedder.patch_dense.bias": (W,)}
    for norm, width in (("patch_ln1", Q), ("patch_ln2", W), ("pos_norm", W)):
        shapes |= {f"vision_embedder.{norm}.{leaf}": (width,) for leaf in ("weight", "bias")}
    shapes["vision_embedder.pos_embedding"] = (c.mm_posemb_size, 2, W)
    return shapes | {"embed_vision.embedding_projection.weight": (config.text.hidden_size, W)}


def audio_part(config: UnifiedConfig) -> Shapes:
    """What a sound passes through; empty where the config has none."""
    if config.audio is None:
        return {}
    return {"embed_audio.embedding_projection.weight": (config.text.hidden_size, config.audio.audio_embed_dim)}


def embedders(config: UnifiedConfig) -> dict[str, Shapes]:
    """What may be absent altogether: text-only copies keep the config of the whole."""
    return {"vision": vision_part(config), "audio": audio_part(config)}


def besides(config: UnifiedConfig) -> Shapes:
    """What a file may hold and a run may do without: a head of its own, as quantised releases have."""
    return {"lm_head.weight": (config.text.vocab_size, config.text.hidden_size)}


def ignored(config: UnifiedConfig) -> list[str]:
    """Names of tensors that a file may hold all the same: of an embedder that its config does not have."""
    vision = [] if config.vision else [r"(vision_embedder|embed_vision)\..*"]
    return vision + ([] if config.audio else [r"embed_audio\..*"])


def stored_name(name: str, model_type: str) -> str:
    """The name that Transformers gives a tensor in a file of that model_type: norm.weight -> model.norm.weight."""
    if name.startswith("lm_head"):
        return name
    bare = name.startswith(BESIDE) or model_type == "gemma4_unified_text"
    return f"model.{name}" if bare else f"model.language_model.{name}"
