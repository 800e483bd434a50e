"""config.json of model_type gemma4_assistant and gemma4_unified_assistant -> frozen dataclasses, one row per layer.

The text half is spelled as the target's.  No layer of it makes keys: a row's kv_from is the kind of layer whose keys
the target hands over.
"""

from dataclasses import asdict, dataclass, replace
from functools import cached_property

from numgemma.config import build, demand, section
from numgemma.errors import InputError
from numgemma.families.family import Outline, first_of_each_kind
from numgemma.families.gemma4.config import LayerSpec, TextConfig, check_text_config, layer_table
from numgemma.families.unified.config import spelled_text

ABSENT = ("enable_moe_block", "hidden_size_per_layer_input", "use_double_wide_mlp", "vocab_size_per_layer_input")


@dataclass(frozen=True)
class DrafterConfig:
    """A whole drafter's configuration: its four layers, the target's width, and how its head looks for a token."""

    text: TextConfig
    backbone_hidden_size: int = 1536  # the target's width
    use_ordered_embeddings: bool = False  # the head looks at the best clusters of tokens alone
    num_centroids: int = 2048
    centroid_intermediate_top_k: int = 32
    tie_word_embeddings: bool = True
    image_token_id: int | None = None
    audio_token_id: int | None = None
    video_token_id: int | None = None
    boi_token_id: int | None = None
    eoi_token_id: int | None = None
    boa_token_id: int | None = None
    eoa_token_id: int | None = None
    eoa_token_index: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    @cached_property
    def layers(self) -> tuple[LayerSpec, ...]:
        """One row per layer; all read the target's keys."""
        rows = layer_table(self.text)
        return tuple(LayerSpec(**(asdict(spec) | {"kv_from": spec.kind})) for spec in rows)

    @cached_property
    def kinds(self) -> dict[str, LayerSpec]:
        """The first layer of each kind."""
        return first_of_each_kind(self.layers)

    @property
    def clusters(self) -> int:
        """How many clusters the head chooses among; 0: it looks at every token."""
        return self.num_centroids if self.use_ordered_embeddings else 0


def read_config(raw: dict, where: str) -> DrafterConfig:
    """A parsed config.json of a drafter; `where` names the file in errors."""
    text = read_text_config(section(raw, "text_config", where), f"{where}, text_config")
    rest = {key: value for key, value in raw.items() if key != "text_config"}
    c = build(DrafterConfig, rest | {"text": text}, where)
    check_config(c, where)
    return c


def read_text_config(raw, where) -> TextConfig:
    """As gemma4's, of layers that all share: their rows are made as if none did."""
    for key in ABSENT:
        if raw.get(key):
            raise InputError(f"{where}: {key} is {raw[key]!r:.40}, which no drafter has; correct the file.")
    layers = raw.get("num_hidden_layers")
    if raw.get("num_kv_shared_layers") not in (None, 0, layers):
        raise InputError(f"{where}: num_kv_shared_layers is not num_hidden_layers, but all layers of a drafter share.")
    c = build(TextConfig, spelled(raw), where)
    check_text_config(c, where)
    return c


def spelled(raw):
    """With the keys of a Gemma 4 that have one value here."""
    table = {"vocab_size_per_layer_input": raw.get("vocab_size")} if "vocab_size" in raw else {}
    return spelled_text(raw | table) | {"num_kv_shared_layers": 0}


def check_config(c: DrafterConfig, where):
    V, E = c.text.vocab_size, c.num_centroids
    clustered = not c.use_ordered_embeddings
    rules = [
        (c.tie_word_embeddings and c.text.tie_word_embeddings, "tie_word_embeddings false is not computed here"),
        (c.backbone_hidden_size > 0, "backbone_hidden_size is not positive"),
        (clustered or E > 0 == V % E, f"num_centroids does not divide the {V} tokens of the vocabulary"),
        (clustered or 0 < c.centroid_intermediate_top_k <= E, "centroid_intermediate_top_k is not 1 to num_centroids"),
    ]
    demand(rules, where)


def outline(config: DrafterConfig) -> Outline:
    """What the rest of the package asks of a config."""
    c = config.text
    return Outline(
        layers=config.layers,
        width=c.hidden_size,
        vocabulary=c.vocab_size,
        longest=c.max_position_embeddings,
        bos=c.bos_token_id,
        stops=c.eos_token_id if config.eos_token_id in (None, ()) else config.eos_token_id,
    )


def with_layers(config: DrafterConfig, rows: tuple[LayerSpec, ...]) -> DrafterConfig:
    """The same config with another layer table."""
    config = replace(config)
    vars(config)["layers"] = rows  # where the cached property looks first
    return config
