"""Every tensor of a drafter, from its config alone: name -> shape; what a run takes by name; the memory it needs."""

from numgemma.families.drafter.config import DrafterConfig
from numgemma.families.family import Shapes
from numgemma.families.gemma4.layout import attention_shapes, key_value_shapes, mlp_shapes, scoped
from numgemma.prompt.named import Input

NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
BARE = ("pre_projection", "post_projection", "masked_embedding", "lm_head")  # what stands beside `model.` in a file
SHARED = "shared_kv_states"


def tensor_shapes(config: DrafterConfig) -> Shapes:
    """All tensors that Transformers would build for this config."""
    c, B = config.text, config.backbone_hidden_size
    D, V = c.hidden_size, c.vocab_size
    shapes: Shapes = {"pre_projection.weight": (D, 2 * B)}
    for spec in config.layers:
        layer = scoped("self_attn", attention_shapes(spec, D)) | scoped("mlp", mlp_shapes(D, spec.F))
        layer |= {f"{norm}.weight": (D,) for norm in NORMS} | {"layer_scalar": (1,)}
        shapes |= scoped(f"layers.{spec.index}", layer)
    shapes |= {"norm.weight": (D,), "post_projection.weight": (B, D), "embed_tokens.weight": (V, D)}
    if config.clusters:
        shapes["masked_embedding.centroids.weight"] = (config.clusters, D)
        shapes["masked_embedding.token_ordering"] = (V,)
    return shapes


def besides(config: DrafterConfig) -> Shapes:
    """What a file may hold and a run does without: keys that nobody reads, and the head once more."""
    shapes: Shapes = {"lm_head.weight": (config.text.vocab_size, config.text.hidden_size)}
    for spec in config.layers:
        shapes |= scoped(f"layers.{spec.index}.self_attn", key_value_shapes(spec, config.text.hidden_size))
    return shapes


def stored_name(name: str, model_type: str) -> str:
    """The name that Transformers gives a tensor in a file: norm.weight -> model.norm.weight."""
    return name if name.startswith(BARE) else f"model.{name}"


def inputs(config: DrafterConfig) -> dict[str, Input]:
    """What Transformers passes to one step: [e ; h] of a token, its position, the target's keys and values by kind."""
    found = {
        "inputs_embeds": Input("T W", sizes={"T": 1, "W": 2 * config.backbone_hidden_size}),
        "position_ids": Input("T", "integer", sizes={"T": 1}),
        "attention_mask": Input("S", "integer", needed=False),
    }
    for kind, spec in config.kinds.items():
        found |= {f"{SHARED}.{kind}.{x}": Input("K S H", sizes={"K": spec.K, "H": spec.H}) for x in "kv"}
    return found


def memory(config: DrafterConfig, context: int) -> dict[str, int]:
    """Bytes that a float32 run needs beyond the checkpoint's own pages.  It keeps no keys: the target's are read."""
    widest = max(2 * spec.F + spec.N * spec.H for spec in config.layers) + 4 * config.text.hidden_size
    return {"activations of a draft step": 4 * widest, "logits of a draft step": 4 * config.text.vocab_size}
