"""What a Gemma 3 text checkpoint holds: only as much of it as is needed to take its weights elsewhere."""

from dataclasses import dataclass
from typing import Any

from numgemma.errors import InputError
from numgemma.families.gemma4.layout import Shapes, mlp_shapes, scoped
from numgemma.families.gemma4.shrink import Scale, move_tokens, token_moves, width

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Gemma3:
    """The keys of a `gemma3_text` config that a transplant depends on, under their own names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    query_pre_attn_scalar: float
    layer_types: tuple[str, ...]
    theta: dict[str, float]  # kind -> base of the rotary embedding
    sliding_window: int
    max_position_embeddings: int
    rms_norm_eps: float


def read_gemma3(raw: dict[str, Any], where: str) -> Gemma3:
    """A parsed config.json of model_type gemma3_text, in its old spelling or in that of Transformers 5."""
    if raw.get("model_type") != "gemma3_text":
        raise InputError(
            f"{where}: model_type is {raw.get('model_type')!r:.60}, not 'gemma3_text'; name a Gemma 3 text model."
        )
    names = Gemma3.__annotations__.keys() - {"layer_types", "theta"}
    plain: dict[str, Any] = {name: raw.get(name) for name in sorted(names)}
    for name, value in plain.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise InputError(f"{where}: {name} is {value!r:.60}, not a positive number; download the file again.")
    kinds, theta = layer_kinds(raw, plain["num_hidden_layers"], where), rope_bases(raw, where)
    return Gemma3(**plain, layer_types=kinds, theta=theta)


def layer_kinds(raw, layers, where) -> tuple[str, ...]:
    """Sliding or full, from the list or from the period."""
    kinds = raw.get("layer_types")
    if kinds is None:
        period = raw.get("sliding_window_pattern", raw.get("_sliding_window_pattern", 6))
        kinds = [FULL if (i + 1) % period == 0 else SLIDING for i in range(layers)]
    if len(kinds) != layers or not set(kinds) <= {FULL, SLIDING}:
        raise InputError(f"{where}: layer_types does not name the kind of each of {layers} layers; correct the file.")
    return tuple(kinds)


def rope_bases(raw, where) -> dict[str, float]:
    ropes = raw.get("rope_parameters")
    if ropes is None:
        if raw.get("rope_scaling"):
            raise InputError(f"{where}: rope_scaling has no place in the recipe; name a Gemma 3 1B.")
        return {FULL: float(raw.get("rope_theta", 1e6)), SLIDING: float(raw.get("rope_local_base_freq", 1e4))}
    if any(ropes.get(kind, {}).get("rope_type") != "default" for kind in (FULL, SLIDING)):
        raise InputError(f"{where}: rope_parameters are not of type default; name a Gemma 3 1B.")
    return {kind: float(ropes[kind]["rope_theta"]) for kind in (FULL, SLIDING)}


def shrunk_gemma3(raw: dict[str, Any], scale: Scale, where: str) -> dict[str, Any]:
    """A config.json like this one, for a model as narrow as that scale and as deep as it was: `transplant` counts."""
    c = read_gemma3(raw, where)
    ratio, head = min(1, scale.hidden / c.hidden_size), width(c.head_dim, min(1, scale.head / c.head_dim))
    moved = token_moves(raw, scale.vocab, c.vocab_size)
    return move_tokens(raw, moved) | {
        "vocab_size": min(c.vocab_size, scale.vocab),
        "hidden_size": width(c.hidden_size, ratio),
        "intermediate_size": width(c.intermediate_size, ratio),
        "head_dim": head,
        "query_pre_attn_scalar": head if c.query_pre_attn_scalar == c.head_dim else c.query_pre_attn_scalar,
        "sliding_window": min(c.sliding_window, scale.window),
    }


def gemma3_shapes(c: Gemma3) -> Shapes:
    """Every tensor, by its name without `model.`."""
    D, NH, KH = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    attention: Shapes = {"q_proj.weight": (NH, D), "k_proj.weight": (KH, D), "v_proj.weight": (KH, D)}
    attention |= {"o_proj.weight": (D, NH), "q_norm.weight": (c.head_dim,), "k_norm.weight": (c.head_dim,)}
    layer = scoped("self_attn", attention) | scoped("mlp", mlp_shapes(D, c.intermediate_size))
    layer |= {f"{norm}.weight": (D,) for norm in NORMS}
    shapes: Shapes = {"embed_tokens.weight": (c.vocab_size, D), "norm.weight": (D,)}
    for i in range(c.num_hidden_layers):
        shapes |= scoped(f"layers.{i}", layer)
    return shapes


NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
