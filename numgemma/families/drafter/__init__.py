"""The drafters of Gemma 4: small models that guess several tokens, for their target to check in one pass.

In reading order:

    config   config.json: four layers that read the target's keys
    layout   every tensor's name and shape, and what a step is given, from the config alone
    drafter  one step, top to bottom
    shrink   the same model, smaller; and the smallest, that its graph is learned on
"""

from numgemma.families.drafter import config, drafter, layout, shrink
from numgemma.families.family import Family, Section
from numgemma.families.gemma4 import gemma4
from numgemma.layers import feedforward

FAMILY = Family(
    name="a Gemma 4 drafter",
    model_types=("gemma4_assistant", "gemma4_unified_assistant"),
    read_config=config.read_config,
    outline=config.outline,
    with_layers=config.with_layers,
    shapes=layout.tensor_shapes,
    besides=layout.besides,
    stored_name=layout.stored_name,
    memory=layout.memory,
    inputs=layout.inputs,
    parts={
        "forward": drafter.forward,
        "draft": drafter.draft,
        "block": gemma4.block,
        "mlp": feedforward.mlp,
        "norm": gemma4.norm,
        "rope table": gemma4.rope_table,
        "newest keys": drafter.newest,
        "hand back": drafter.hand_back,
        "head": drafter.head,
        "clustered head": drafter.clustered,
        "clusters": drafter.in_clusters,
        "handed over": drafter.handed_over,
    },
    twin=shrink.twin,
    sample=shrink.sample,
    shrunk=shrink.shrunk,
    sections={"whole": Section(config.DrafterConfig)},
)
