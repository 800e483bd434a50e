"""Gemma 4's config.json -> frozen dataclasses, and from them one row per layer: who attends how far, how wide.

Both spellings are read: the released one (`global_head_dim`, `num_global_key_value_heads`) and the one that
Transformers 5.23 writes (`per_layer_config`).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from numgemma.config import build, demand, is_positive, section, typed
from numgemma.errors import InputError
from numgemma.families.family import Outline, first_of_each_kind


@dataclass(frozen=True)
class LayerSpec:
    """All that distinguishes one decoder layer from another.  Letters: the axis key in attention.py."""

    index: int
    kind: str  # "sliding_attention" | "full_attention"
    window: int | None  # keys a query may see, itself included; None: all
    N: int
    K: int
    H: int
    F: int
    kv_from: int  # the layer whose keys and values are read: its own index, unless it shares
    k_eq_v: bool  # no v_proj: the values are the raw keys
    E: int  # experts; 0: none
    J: int
    theta: float  # base of the rotary embedding
    angles: int  # pairs of lanes that turn, of H / 2
    rope_factor: float  # divides the frequencies
    eps: float


@dataclass(frozen=True)
class TextConfig:
    """The keys of a `gemma4_text` config, under their own names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layer_types: tuple[str, ...]
    sliding_window: int
    rope_parameters: dict
    rms_norm_eps: float
    hidden_activation: str
    final_logit_softcapping: float | None
    attention_k_eq_v: bool
    num_kv_shared_layers: int
    use_double_wide_mlp: bool
    enable_moe_block: bool
    hidden_size_per_layer_input: int | None
    vocab_size_per_layer_input: int
    max_position_embeddings: int
    tie_word_embeddings: bool = True
    use_bidirectional_attention: str | None = None
    attention_bias: bool = False
    num_experts: int | None = None
    top_k_experts: int | None = None
    moe_intermediate_size: int | None = None
    expert_intermediate_size: int | None = None  # an unused key of released configs
    global_head_dim: int | None = None
    num_global_key_value_heads: int | None = None
    per_layer_config: dict | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    @cached_property
    def layers(self):
        """One LayerSpec per decoder layer."""
        return layer_table(self)

    @cached_property
    def last_maker(self):
        """The last layer that makes keys of its own; those after it share."""
        return max(spec.kv_from for spec in self.layers)

    @cached_property
    def kinds(self):
        """The first layer of each kind."""
        return first_of_each_kind(self.layers)


@dataclass(frozen=True)
class VisionConfig:
    """The keys of a `gemma4_vision` config, under their own names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_activation: str
    rms_norm_eps: float
    rope_parameters: dict
    pooling_kernel_size: int
    patch_size: int
    position_embedding_size: int
    use_clipped_linears: bool
    standardize: bool
    max_position_embeddings: int = 131072
    attention_bias: bool = False
    global_head_dim: int | None = None


@dataclass(frozen=True)
class AudioConfig:
    """The keys of a `gemma4_audio` config, under their own names."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    subsampling_conv_channels: tuple[int, ...]
    conv_kernel_size: int
    residual_weight: float
    attention_chunk_size: int
    attention_context_left: int
    attention_context_right: int
    attention_logit_cap: float
    attention_invalid_logits_value: float
    use_clipped_linears: bool
    rms_norm_eps: float
    gradient_clipping: float
    output_proj_dims: int

    @property
    def mel_bins(self) -> int:
        """Of a recording: as many as the first convolution has channels, as Transformers builds the tower."""
        return self.subsampling_conv_channels[0]


@dataclass(frozen=True)
class Config:
    """A whole checkpoint's configuration: the decoder, the towers it has, and the ids that stand for their outputs."""

    text: TextConfig
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    image_token_id: int | None = None
    audio_token_id: int | None = None
    video_token_id: int | None = None
    boi_token_id: int | None = None
    eoi_token_id: int | None = None
    boa_token_id: int | None = None
    eoa_token_id: int | None = None
    eoa_token_index: int | None = None
    vision_soft_tokens_per_image: int | None = None
    tie_word_embeddings: bool = True
    eos_token_id: int | tuple[int, ...] | None = None


def read_config(raw: dict, where: str) -> Config:
    """A parsed config.json of model_type gemma4 or gemma4_text; `where` names the file in errors."""
    if raw["model_type"] == "gemma4_text":
        text = read_text_config(raw, where)
        return Config(text=text, tie_word_embeddings=text.tie_word_embeddings)
    parts = {"text": read_text_config(section(raw, "text_config", where), f"{where}, text_config")}
    for name, cls, check in (("vision", VisionConfig, check_vision_config), ("audio", AudioConfig, check_audio_config)):
        tower = section(raw, f"{name}_config", where)
        parts[name] = build(cls, tower, f"{where}, {name}_config") if tower else None
        if tower:
            check(parts[name], f"{where}, {name}_config")
    rest = {k: v for k, v in raw.items() if k not in ("text_config", "vision_config", "audio_config")}
    return build(Config, rest | parts, where)


def outline(config: Config) -> Outline:
    """What the rest of the package asks of a config."""
    c = config.text
    stops = c.eos_token_id if config.eos_token_id in (None, ()) else config.eos_token_id
    return Outline(
        layers=c.layers,
        width=c.hidden_size,
        vocabulary=c.vocab_size,
        longest=c.max_position_embeddings,
        per_layer=c.hidden_size_per_layer_input or 0,
        bos=c.bos_token_id,
        stops=stops,
    )


def stops(told) -> dict[str, list[int]]:
    """Instruction-tuned models also stop at 50.  told: eos_token_id of config.json"""
    return {"eos_token_id": [*told, 50]} if told == (1, 106) else {}


def with_layers(config: Config, rows: tuple[LayerSpec, ...]) -> Config:
    """The same config with another layer table."""
    text = replace(config.text)
    vars(text)["layers"] = rows  # where the cached property looks first
    return replace(config, text=text)


def read_text_config(raw, where):
    """The text half, built and checked."""
    c = build(TextConfig, raw, where)
    check_text_config(c, where)
    return c


def check_text_config(c: TextConfig, where):
    """Combinations that have no meaning, or one that numgemma does not compute."""
    overrides(c, where)
    rules: list[tuple[Any, str]] = [
        (c.hidden_activation == "gelu_pytorch_tanh", f"hidden_activation '{c.hidden_activation}' is not computed here"),
        (not c.attention_bias, "attention_bias true is not computed here"),
        (c.use_bidirectional_attention in (None, "vision"), "use_bidirectional_attention is neither null nor 'vision'"),
        (len(c.layer_types) == c.num_hidden_layers, "layer_types and num_hidden_layers disagree"),
        (set(c.layer_types) <= {"sliding_attention", "full_attention"}, "layer_types names a kind Gemma 4 lacks"),
        (c.layer_types[-1:] == ("full_attention",), "the last of layer_types should be full_attention, always"),
        (0 <= c.num_kv_shared_layers < c.num_hidden_layers, "num_kv_shared_layers leaves no layer that makes keys"),
        (min(sizes(c)) > 0, "a size is not positive"),
        (c.rms_norm_eps > 0, "rms_norm_eps is not positive"),
        (c.final_logit_softcapping is None or c.final_logit_softcapping > 0, "final_logit_softcapping is not positive"),
        (c.max_position_embeddings > 0, "max_position_embeddings is not positive"),
        (0 <= (c.pad_token_id or 0) < c.vocab_size, "pad_token_id is no token of the vocabulary"),
        ((c.hidden_size_per_layer_input or 0) >= 0, "hidden_size_per_layer_input is negative"),
    ]
    if c.enable_moe_block:
        moe = (c.num_experts, c.top_k_experts, c.moe_intermediate_size)
        rules += [
            (
                all((n or 0) > 0 for n in moe),
                "enable_moe_block needs num_experts, top_k_experts and moe_intermediate_size",
            )
        ]
        rules += [((c.top_k_experts or 0) <= (c.num_experts or 0), "top_k_experts exceeds num_experts")]
    demand(rules, where)
    for kind in dict.fromkeys(c.layer_types):
        check_rope(c.rope_parameters.get(kind), f"{where}: rope_parameters of {kind}")
    for kind in dict.fromkeys(c.layer_types):
        check_kind(c, kind, where)


def check_vision_config(c: VisionConfig, where):
    """As check_text_config, of the vision tower."""
    rope, (N, K, H) = c.rope_parameters, (c.num_attention_heads, c.num_key_value_heads, c.head_dim)
    sizes = (c.hidden_size, c.intermediate_size, c.patch_size, c.pooling_kernel_size, c.position_embedding_size)
    rules: list[tuple[Any, str]] = [
        (c.hidden_activation == "gelu_pytorch_tanh", f"hidden_activation '{c.hidden_activation}' is not computed here"),
        (not c.attention_bias, "attention_bias true is not computed here"),
        (min(*sizes, N, K, H) > 0, "a size is not positive"),
        (N > 0 < K and N % K == 0, "num_attention_heads is not a multiple of num_key_value_heads"),
        (H % 4 == 0, "head_dim is not a multiple of 4, two pairs of lanes"),
        (rope.keys() == {"rope_type", "rope_theta"}, "rope_parameters are not a rope_type and a rope_theta"),
        (rope.get("rope_type") in ("default", "axial"), "rope_type is neither 'default' nor 'axial'"),
        (is_positive(rope.get("rope_theta")), "rope_theta is not positive"),
        (c.rms_norm_eps > 0, "rms_norm_eps is not positive"),
    ]
    demand(rules, where)


def check_audio_config(c: AudioConfig, where):
    """Also what has one value in all releases, so that no other is computed: it would be computed wrongly."""
    rules: list[tuple[Any, str]] = [
        (c.hidden_act == "silu", f"hidden_act '{c.hidden_act}' is not computed here"),
        (len(c.subsampling_conv_channels) == 2, "subsampling_conv_channels are not two numbers"),
        (min(c.hidden_size, c.conv_kernel_size, *c.subsampling_conv_channels) > 0, "a size is not positive"),
        (
            not any(n % 4 for n in c.subsampling_conv_channels[:1]),
            "the first of subsampling_conv_channels, the mel bins, is not a multiple of 4",
        ),
        (c.num_attention_heads > 0, "num_attention_heads is not positive"),
        (c.hidden_size % max(2 * c.num_attention_heads, 1) == 0, "hidden_size does not give its heads an even width"),
        (c.attention_chunk_size == c.attention_context_left - 1 > 0, "attention_context_left is not chunk size + 1"),
        (c.attention_context_right == 0, "attention_context_right is not 0"),
        (c.attention_logit_cap > 0, "attention_logit_cap is not positive"),
        (c.attention_invalid_logits_value < -1000, "attention_invalid_logits_value hides no frame"),
        (c.gradient_clipping >= 1e10, "gradient_clipping below 1e10 is not computed here"),
        (c.rms_norm_eps == 1e-6, "rms_norm_eps other than 1e-6 is not computed here"),
    ]
    demand(rules, where)


def sizes(c):
    """What has to be above zero, each where the config says it."""
    return (
        c.vocab_size,
        c.hidden_size,
        c.intermediate_size,
        c.num_hidden_layers,
        c.num_attention_heads,
        c.num_key_value_heads,
        c.head_dim,
        c.sliding_window,
        c.global_head_dim or 1,
        c.num_global_key_value_heads or 1,
        c.vocab_size_per_layer_input,
    )


def check_rope(rope, what):
    """Raises InputError where rope_parameters of one kind are not computed.  what: what they are called in it"""
    if not isinstance(rope, dict) or rope.get("rope_type") not in ("default", "proportional"):
        raise InputError(f"{what} need rope_type 'default' or 'proportional'.")
    plain = rope["rope_type"] == "default"
    unknown = rope.keys() - {"rope_type", "rope_theta"} - (set() if plain else {"partial_rotary_factor", "factor"})
    if unknown:
        raise InputError(f"{what} have an unknown key '{min(unknown)}' that could change the numbers.")
    numbers = [rope[k] for k in rope.keys() - {"rope_type"}] if "rope_theta" in rope else [None]
    if not all(map(is_positive, numbers)) or rope.get("partial_rotary_factor", 1) > 1:
        raise InputError(f"{what} need a positive rope_theta, and a partial_rotary_factor of at most 1.")


def check_kind(c, kind, where):
    """Raises InputError where layers of one kind have no maker of keys, or heads that do not fit each other."""
    makers = c.layer_types[: c.num_hidden_layers - c.num_kv_shared_layers]
    if kind not in makers:
        raise InputError(f"{where}: {kind} layers share keys that no earlier layer of that kind makes.")
    specs = [spec for spec in c.layers if spec.kind == kind]
    if len({spec.H for spec in specs}) > 1:
        raise InputError(f"{where}: per_layer_config gives {kind} layers different head widths.")
    N, K, H = specs[0].N, specs[0].K, specs[0].H
    if N % K or H % 2:
        raise InputError(
            f"{where}: {kind} layers have {N} heads for {K} key/value heads of width {H}; "
            "the first should be a multiple of the second, and the third even."
        )


def overrides(c, where=""):
    """Layer index -> what per_layer_config says of it; in the released spelling, what the full layers have."""
    if c.per_layer_config is None:
        H = c.global_head_dim or 512  # the family's value where a config is silent
        K = (c.num_global_key_value_heads if c.attention_k_eq_v else None) or c.num_key_value_heads
        full = {"head_dim": H, "num_key_value_heads": K}
        return {i: full for i, kind in enumerate(c.layer_types) if kind == "full_attention"}
    found = {}
    for key, change in c.per_layer_config.items():
        if not key.isdecimal() or not isinstance(change, dict) or change.keys() - {"head_dim", "num_key_value_heads"}:
            raise InputError(f"{where}: per_layer_config '{key}' holds more than head_dim and num_key_value_heads.")
        found[int(key)] = typed(change, dict[str, int], f"{where}: per_layer_config '{key}'")
        if min(change.values(), default=1) < 1:
            raise InputError(f"{where}: per_layer_config '{key}' has a size that is not positive.")
    return found


def layer_table(c: TextConfig) -> tuple[LayerSpec, ...]:
    """One row per decoder layer; every choice that depends on depth is made here, once."""
    first_shared = c.num_hidden_layers - c.num_kv_shared_layers
    changes = overrides(c)
    E, J = (c.num_experts or 0, c.top_k_experts or 0) if c.enable_moe_block else (0, 0)
    maker: dict[str, int] = {}  # kind -> the last layer that made its own keys and values
    rows = []
    for i, kind in enumerate(c.layer_types):
        full, shares = kind == "full_attention", i >= first_shared
        if not shares:
            maker[kind] = i
        H = changes.get(i, {}).get("head_dim", c.head_dim)
        rope = c.rope_parameters[kind]
        rows.append(
            LayerSpec(
                index=i,
                kind=kind,
                window=None if full else c.sliding_window,
                N=c.num_attention_heads,
                K=changes.get(i, {}).get("num_key_value_heads", c.num_key_value_heads),
                H=H,
                F=c.intermediate_size * (2 if shares and c.use_double_wide_mlp else 1),
                kv_from=maker.get(kind, i),
                k_eq_v=full and c.attention_k_eq_v,
                E=E,
                J=J,
                theta=float(rope["rope_theta"]),
                angles=int(rope.get("partial_rotary_factor", 1.0) * H // 2),
                rope_factor=float(rope.get("factor", 1.0)),
                eps=c.rms_norm_eps,
            )
        )
    return tuple(rows)
