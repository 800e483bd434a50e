"""Every tensor of an EmbeddingGemma 2 checkpoint, from its config alone: name -> shape, as gemma4's layout.py."""

from numgemma.families.embedding.config import EmbeddingConfig
from numgemma.families.family import Shapes
from numgemma.families.gemma4.layout import TOWERS, audio_part, layer_shapes, scoped, vision_part


def tensor_shapes(config: EmbeddingConfig) -> Shapes:
    """All tensors that Transformers would build for this config."""
    c, W = config.text, config.embedding_dim
    D, P = c.hidden_size, c.hidden_size_per_layer_input or 0
    shapes: Shapes = {
        "embed_tokens.weight": (c.vocab_size, D),
        "norm.weight": (D,),
        "embedding_projection.weight": (W, D),
        "ple.per_layer_model_projection.weight": (c.num_hidden_layers * P, D),
        "ple.per_layer_projection_norm.weight": (P,),
    }
    for spec in c.layers:
        layer = {in_its_block(name): shape for name, shape in layer_shapes(c, spec).items()}
        shapes |= scoped(f"layers.{spec.index}", layer)
    return shapes | vision_part(config) | audio_part(config)


def in_its_block(name):
    """gemma4's name of a tensor in a layer -> the name here: the per-layer residual is a module of its own."""
    return f"ple_block.{name}" if "per_layer" in name else name


def stored_name(name: str, model_type: str) -> str:
    """The name that Transformers gives a tensor in a file of that model_type: nothing is called `model.` here."""
    return name if name.startswith(TOWERS) or model_type.endswith("_text") else f"language_model.{name}"


def memory(config: EmbeddingConfig, context: int) -> dict[str, int]:
    """Bytes that a float32 run needs beyond the checkpoint's own pages.  There is no cache and no head."""
    c = config.text
    widest = max(2 * spec.F + (spec.N + 2 * spec.K) * spec.H for spec in c.layers) + 4 * c.hidden_size
    return {
        "activations per token": 4 * (widest + c.num_hidden_layers * (c.hidden_size_per_layer_input or 0)),
        "one vector": 4 * config.embedding_dim,
    }
