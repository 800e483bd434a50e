"""A sixth family, for the tests: three layers without attention, and nothing of it known outside this folder."""

from numgemma.families import Family, Outline
from toy import toy
from toy.config import read_config, shapes, with_layers

FAMILY = Family(
    name="Toy",
    model_types=("toy",),
    read_config=read_config,
    outline=lambda c: Outline(c.layers, c.hidden_size, c.vocab_size, longest=64, stops=1),
    with_layers=with_layers,
    shapes=shapes,
    parts={
        "forward": toy.forward,
        "enter": toy.enter,
        "layers": toy.layers,
        "forget": toy.forget,
        "leave": toy.leave,
        "head": toy.head,
        "block": toy.block,
        "mlp": toy.mlp,
    },
)
