"""The names that the model calls, bound to an implementation of them.  NumPy's is the definition."""

from numgemma.ops_numpy import (
    attend,
    choose_experts,
    embed,
    expert_probs,
    gelu_tanh,
    linear,
    rms_norm,
    rope,
    rope_table,
    scale,
    softcap,
)

__all__ = [
    "attend",
    "choose_experts",
    "embed",
    "expert_probs",
    "gelu_tanh",
    "linear",
    "rms_norm",
    "rope",
    "rope_table",
    "scale",
    "softcap",
]
