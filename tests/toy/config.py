"""config.json of model_type toy, and its tensors."""

from dataclasses import dataclass, replace
from functools import cached_property

from numgemma.config import build


@dataclass(frozen=True)
class ToyLayer:
    index: int
    kind: str  # there is one
    window: None
    kv_from: int
    eps: float


@dataclass(frozen=True)
class ToyConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    rms_norm_eps: float

    @cached_property
    def layers(self):
        return tuple(ToyLayer(i, "averaging", None, i, self.rms_norm_eps) for i in range(self.num_hidden_layers))


def read_config(raw, where):
    return build(ToyConfig, raw, where)


def with_layers(config, rows):
    config = replace(config)
    vars(config)["layers"] = rows
    return config


def shapes(c):
    """Name -> shape of every tensor."""
    D, F = c.hidden_size, c.intermediate_size
    found = {"embed_tokens.weight": (c.vocab_size, D), "norm.weight": (D,)}
    layer = {"input_layernorm.weight": (D,), "past.v_proj.weight": (D, D), "past.o_proj.weight": (D, D)}
    layer |= {"post_layernorm.weight": (D,), "mlp.gate_proj.weight": (F, D), "mlp.up_proj.weight": (F, D)}
    layer |= {"mlp.down_proj.weight": (D, F)}
    return found | {f"layers.{i}.{name}": shape for i in range(c.num_hidden_layers) for name, shape in layer.items()}
