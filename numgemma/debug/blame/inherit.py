"""Which point can have its error from which, told from names alone: what lies on parallel branches cannot."""

import math

from numgemma.debug.measure.discrete import layer_of, leaf_of

ATTENTION = {x: tuple(f"self_attn.{x}_{step}" for step in ("proj", "norm", "rope")) for x in "qkv"}
ROUTER = tuple(f"router.{leaf}" for leaf in ("norm", "proj", "probs", "weights", "ids"))
EXPERTS = (*ROUTER, "pre_feedforward_layernorm_2", "experts", "post_feedforward_layernorm_2")
DENSE = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "post_feedforward_layernorm_1")

# Branches of a layer that do not read each other, in groups; a point that is listed nowhere reads them all.
BRANCHES = (
    tuple(ATTENTION.values()),
    (("mlp.gate_proj",), ("mlp.up_proj",)),
    (DENSE, EXPERTS),
    (ROUTER, ("pre_feedforward_layernorm_2",)),
    (("router.weights",), ("router.ids",)),
)

# Where a layer first reads what was made before all layers.
PER_LAYER_INPUT = ("per_layer_projection", "post_per_layer_input_norm", "out")
BEFORE_ROTATION = ("input_layernorm", *(f"self_attn.{x}" for x in ("q_proj", "q_norm", "k_proj", "k_norm", "v_proj")))
BEFORE_ROTATION += ("self_attn.v_norm",)


def hands_on(fault, later, names) -> bool:
    """Whether `later`, which comes after `fault` in order of execution, can have its error from there.

    names: all points of the run; without a v_proj in its layer, v_norm reads k_proj.
    """
    layer, other = layer_of(fault), layer_of(later)
    if layer is None:
        return from_before_the_layers(fault, later)
    if layer != other:
        return other is None or other > layer
    here, there = leaf_of(fault), leaf_of(later)
    if (here, there) == ("self_attn.k_proj", "self_attn.v_norm"):
        return f"layers.{layer}.self_attn.v_proj" not in names
    return not any(parallel(here, there, group) for group in BRANCHES)


def parallel(here, there, group):
    """Whether two leaves lie on different branches of a group."""
    at = [next((i for i, branch in enumerate(group) if leaf in branch), None) for leaf in (here, there)]
    return None not in at and at[0] != at[1]


def from_before_the_layers(fault, later):
    """`hands_on` for a fault in an embedding, a rotary table, a per-layer input, a tower, or behind the last layer."""
    room, other, layer = room_of(fault), room_of(later), layer_of(later)
    if is_source(other) and other != room:
        return False
    if room == "rotary_emb":
        return not other.startswith(("rotary_emb", "per_layer_", "inputs_embeds")) and not (
            layer == 0 and leaf_of(later) in BEFORE_ROTATION
        )
    if room.startswith(("embed_tokens_per_layer", "per_layer_")):
        return (math.inf if layer is None else layer) > 0 or leaf_of(later) in PER_LAYER_INPUT
    return True


def room_of(name):
    """The module at the top of a name; vision_tower@1 is the tower's run over the second picture."""
    return name.split(".")[0].split("@")[0]


def is_source(room):
    """Whether a point of that room reads only what the user gave, and no other point's error."""
    return room in ("rotary_emb", "embed_tokens_per_layer", "embed_tokens") or room.endswith("_tower")
