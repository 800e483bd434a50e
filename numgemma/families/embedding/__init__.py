"""EmbeddingGemma 2: a vector for a text, a picture, a sound, a clip, or a mix.

In reading order:

    config     config.json: the layers, and how wide a vector is
    layout     every tensor's name and shape, from the config alone
    embedding  the forward pass, top to bottom
    shrink     the same model, smaller; and the smallest, that its graph is learned on
"""

from numgemma.families.embedding import config, embedding, layout, shrink
from numgemma.families.family import Family
from numgemma.families.gemma4 import config as gemma4_config
from numgemma.families.gemma4 import gemma4, multimodal
from numgemma.families.gemma4 import layout as gemma4_layout
from numgemma.families.gemma4 import shrink as gemma4_shrink
from numgemma.layers import feedforward, per_layer
from numgemma.prompt import media

FAMILY = Family(
    name="EmbeddingGemma 2",
    model_types=("embedding_gemma2", "embedding_gemma2_text"),
    read_config=config.read_config,
    outline=gemma4_config.outline,
    with_layers=gemma4_config.with_layers,
    shapes=layout.tensor_shapes,
    memory=layout.memory,
    optional=gemma4_layout.towers,
    ignored=gemma4_layout.ignored,
    stored_name=layout.stored_name,
    parts={
        "forward": embedding.forward,
        "soft tokens": multimodal.soft_tokens,
        "embed": gemma4.embed,
        "merge": multimodal.merge,
        "embedder": multimodal.embedder,
        "all layers": embedding.layers,
        "masks": embedding.both_ways,
        "rope table": gemma4.rope_table,
        "block": embedding.block,
        "mlp": feedforward.mlp,
        "per-layer context": per_layer.projected_inputs,
        "norm": gemma4.norm,
        "pool": embedding.pooled,
        "vector": embedding.vector,
    },
    placeholders=media.placeholders,
    counts=media.counts,
    check_media=media.check_towers,
    twin=shrink.twin,
    sample=gemma4_shrink.sample,
    shrunk=shrink.shrunk,
    as_run=config.as_run,
    instead="; `numgemma embed` gives its vectors",
)
