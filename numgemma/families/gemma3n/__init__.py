"""Gemma 3n: E2B and E4B.

In reading order:

    config     config.json: one row per layer, and the towers
    layout     every tensor's name and shape, from the config alone
    embedders  hard tokens and soft ones: what stands at the placeholders of pictures and sound
    gemma3n    the forward pass, with its four streams
    shrink     the same model, smaller; and the smallest, that its graph is learned on
"""

from numgemma import cache
from numgemma.families.family import Family
from numgemma.families.gemma3n import config, embedders, gemma3n, layout, shrink
from numgemma.families.gemma4 import config as gemma4_config
from numgemma.families.gemma4 import gemma4
from numgemma.families.gemma4 import layout as gemma4_layout
from numgemma.layers import altup, feedforward, usm

FAMILY = Family(
    name="Gemma 3n",
    model_types=("gemma3n", "gemma3n_text"),
    read_config=config.read_config,
    outline=gemma4_config.outline,
    with_layers=gemma4_config.with_layers,
    shapes=layout.tensor_shapes,
    kvs=lambda c, dtype: cache.empty(c.text.layers, dtype),
    memory=layout.memory,
    optional=layout.towers,
    besides=gemma4_layout.besides,
    ignored=gemma4_layout.ignored,
    stored_name=gemma4_layout.stored_name,
    parts={
        "forward": gemma3n.forward,
        "soft tokens": embedders.soft_tokens,
        "enter": gemma3n.enter,
        "embed": gemma4.embed,
        "rope table": gemma4.rope_table,
        "masks": gemma4.causal_masks,
        "layers": gemma3n.layers,
        "block": gemma3n.block,
        "joined": gemma3n.joined,
        "stream gains": altup.gains,
        "stream router": altup.router,
        "output scale": altup.output_scale,
        "mlp": feedforward.sparse_mlp,
        "per-layer inputs": gemma3n.per_layer_inputs,
        "per-layer context": gemma3n.projected_inputs,
        "hard tokens": embedders.with_hard_tokens,
        "filled": embedders.filled,
        "sound tower": usm.audio_tower,
        "norm": gemma4.norm,
        "forget": gemma4.forget,
        "leave": gemma3n.leave,
        "head": gemma4.head,
    },
    placeholders=lambda config: config.placeholders,
    counts=embedders.counts,
    check_media=embedders.check_media,
    twin=shrink.twin,
    sample=shrink.sample,
    shrunk=shrink.shrunk,
)
