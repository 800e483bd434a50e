"""Every tensor of a DiffusionGemma checkpoint, from its config alone: name -> shape, as gemma4's layout.py.

Encoder and decoder are one set of weights, which a file holds once, under `model.decoder.`.  The encoder's own are its
layer scalars and what pictures pass through.  Here the shared weights bear the names of 26B-A4B, and so do pictures'.
"""

from numgemma.families.diffusion.config import DiffusionConfig
from numgemma.families.family import Shapes
from numgemma.families.gemma4 import layout as gemma4_layout
from numgemma.families.gemma4.layout import mlp_shapes, scoped, text_shapes, vision_part

ENCODER = "encoder.language_model"  # where the encoder's own scalars stand


def tensor_shapes(config: DiffusionConfig) -> Shapes:
    """All tensors that Transformers would build for this config, those that are tied once."""
    c = config.text
    condition: Shapes = {"pre_norm.weight": (c.hidden_size,), **mlp_shapes(c.hidden_size, c.intermediate_size)}
    scalars: Shapes = {f"{ENCODER}.layers.{spec.index}.layer_scalar": (1,) for spec in c.layers}
    return text_shapes(c) | scoped("self_conditioning", condition) | scalars | vision_part(config)


def towers(config: DiffusionConfig) -> dict[str, Shapes]:
    """What may be absent altogether: text-only copies keep the config of the whole."""
    return {"vision": vision_part(config)}


def besides(config: DiffusionConfig) -> Shapes:
    """What a file may hold and a run may do without: the head once more, which is the table of embeddings."""
    return {"lm_head.weight": (config.text.vocab_size, config.text.hidden_size)}


def ignored(config: DiffusionConfig) -> list[str]:
    """Names of tensors that a file may hold all the same: of a tower that its config does not have."""
    return [] if config.vision else [r"(vision_tower|embed_vision)\..*"]


def stored_name(name: str, model_type: str) -> str:
    """The name that Transformers gives a tensor in a file: norm.weight -> model.decoder.norm.weight."""
    if name.startswith("lm_head"):
        return name
    if name.startswith(ENCODER):
        return f"model.{name}"
    return f"model.encoder.{name}" if name.startswith(("vision_tower.", "embed_vision.")) else f"model.decoder.{name}"


def memory(config: DiffusionConfig, context: int) -> dict[str, int]:
    """Bytes that a float32 run needs, as of 26B-A4B.  A canvas adds nothing to the cache: its keys are not kept."""
    found = gemma4_layout.memory(config, context)
    logits = found.pop("logits per token of a recorded pass")
    return found | {"logits of a canvas, as often as three": config.canvas_length * logits}
