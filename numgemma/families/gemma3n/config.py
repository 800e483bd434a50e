"""config.json of a Gemma 3n -> frozen dataclasses, and one row per layer.  Strict, as config.py.

Both spellings are read: the released one (`rope_theta`, `rope_local_base_freq`) and the one that Transformers 5.23
writes (`rope_parameters`).  What a config may leave unsaid is said here as Transformers says it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numgemma.config import MOST, build, demand, is_positive, section
from numgemma.families.family import first_of_each_kind
from numgemma.layers.mobilenet import Architecture, architecture

KINDS = ("sliding_attention", "full_attention")
SPARSE_LAYERS, SPARSITY = 10, 0.95  # where a config is silent and the model is deeper than these
THETA = {"sliding_attention": 10_000.0, "full_attention": 1_000_000.0}
SPELLED = {"sliding_attention": "rope_local_base_freq", "full_attention": "rope_theta"}


@dataclass(frozen=True)
class Gemma3nSpec:
    """All that distinguishes one decoder layer from another.  Letters: the axis key in attention.py."""

    index: int
    kind: str  # "sliding_attention" | "full_attention"
    window: int | None  # keys a query may see, itself included; None: all
    N: int
    K: int
    H: int
    F: int
    kv_from: int  # the layer whose keys and values are read: its own index, unless it shares
    sparsity: float  # share of its feed-forward's gates that is held at zero; 0: none
    theta: float  # base of the rotary embedding
    eps: float
    k_eq_v: bool = False  # the values have a projection of their own
    rope_factor: float = 1.0

    @property
    def angles(self):
        """Pairs of lanes that turn: all."""
        return self.H // 2


@dataclass(frozen=True)
class Gemma3nTextConfig:
    """The keys of a `gemma3n_text` config, under their own names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: tuple[int, ...]
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
    num_kv_shared_layers: int
    hidden_size_per_layer_input: int
    vocab_size_per_layer_input: int
    altup_num_inputs: int
    altup_active_idx: int
    altup_correct_scale: bool
    laurel_rank: int
    activation_sparsity_pattern: tuple[float, ...]
    altup_coef_clip: float | None = None  # of training alone
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    @cached_property
    def layers(self):
        """One Gemma3nSpec per decoder layer."""
        return layer_table(self)

    @cached_property
    def kinds(self):
        """The first layer of each kind."""
        return first_of_each_kind(self.layers)


@dataclass(frozen=True)
class Gemma3nVisionConfig:
    """The keys of a `gemma3n_vision` config, under their own names."""

    architecture: str
    hidden_size: int
    vocab_size: int
    vocab_offset: int
    rms_norm_eps: float
    do_pooling: bool = False
    model_args: dict | None = None

    @cached_property
    def net(self) -> Architecture:
        """The table of block rows."""
        return architecture(self.architecture, self.model_args or {})


@dataclass(frozen=True)
class Gemma3nAudioConfig:
    """The keys of a `gemma3n_audio` config, under their own names."""

    hidden_size: int
    vocab_size: int
    vocab_offset: int
    input_feat_size: int
    rms_norm_eps: float
    gradient_clipping: float
    conf_attention_chunk_size: int
    conf_attention_context_left: int
    conf_attention_context_right: int
    conf_attention_logit_cap: float
    conf_num_attention_heads: int
    conf_num_hidden_layers: int
    conf_conv_kernel_size: int
    conf_reduction_factor: int
    conf_residual_weight: float
    sscp_conv_channel_size: tuple[int, ...]
    sscp_conv_group_norm_eps: float
    sscp_conv_kernel_size: tuple[tuple[int, ...], ...]
    sscp_conv_stride_size: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Gemma3nConfig:
    """A whole checkpoint's configuration: the decoder, the towers it has, and the ids that stand for their outputs."""

    text: Gemma3nTextConfig
    vision: Gemma3nVisionConfig | None = None
    audio: Gemma3nAudioConfig | None = None
    image_token_id: int | None = None
    audio_token_id: int | None = None
    boi_token_id: int | None = None
    eoi_token_id: int | None = None
    boa_token_id: int | None = None
    eoa_token_id: int | None = None
    eoa_token_index: int | None = None  # this and the next are Gemma 4's, and of no use here
    video_token_id: int | None = None
    vision_soft_tokens_per_image: int = 256
    audio_soft_tokens_per_image: int = 188
    tie_word_embeddings: bool = True
    eos_token_id: int | tuple[int, ...] | None = None

    @property
    def placeholders(self):
        """Kind of media -> the token id that its soft tokens replace."""
        ids = {"image": self.image_token_id, "audio": self.audio_token_id}
        return {kind: i for kind, i in ids.items() if i is not None}


IDLE = {"label_names", "num_classes", "initializer_range"}  # of the vision tower


def read_config(raw: dict, where: str) -> Gemma3nConfig:
    """A parsed config.json of family gemma3n or gemma3n_text; `where` names the file in errors."""
    if raw["model_type"] == "gemma3n_text":
        text = read_text_config(raw, where)
        return Gemma3nConfig(text=text, tie_word_embeddings=text.tie_word_embeddings)
    parts: dict[str, Any] = {"text": read_text_config(section(raw, "text_config", where), f"{where}, text_config")}
    towers = (("vision", Gemma3nVisionConfig, check_vision_config), ("audio", Gemma3nAudioConfig, check_audio_config))
    for name, cls, check in towers:
        tower, here = section(raw, f"{name}_config", where), f"{where}, {name}_config"
        parts[name] = build(cls, {k: v for k, v in tower.items() if k not in IDLE}, here) if tower else None
        if tower:
            check(parts[name], here)
    rest = {k: v for k, v in raw.items() if k not in ("text_config", "vision_config", "audio_config")}
    c = build(Gemma3nConfig, rest | parts, where)
    least, a = min(c.vision_soft_tokens_per_image, c.audio_soft_tokens_per_image), c.audio
    silent = a is None or a.vocab_offset < c.text.vocab_size <= a.vocab_offset + a.vocab_size
    rules = [
        (least > 0, "a number of soft tokens is not positive"),
        (silent, "the last token, which stands for silence, is not among those of audio_config"),
    ]
    demand(rules, where)
    return c


def read_text_config(raw, where):
    c = build(Gemma3nTextConfig, spelled_out(raw), where)
    check_text_config(c, where)
    return c


def spelled_out(raw):
    """What the config leaves unsaid, and both spellings of the rotary embedding as one."""
    found, L = dict(raw), raw.get("num_hidden_layers")
    if found.pop("rope_scaling", None) is not None:
        found["rope_scaling"] = raw["rope_scaling"]  # unknown: it would change the numbers
    thetas = {kind: found.pop(key, THETA[kind]) for kind, key in SPELLED.items()}
    if raw.get("rope_parameters") is None:
        found["rope_parameters"] = {kind: {"rope_type": "default", "rope_theta": thetas[kind]} for kind in KINDS}
    if not isinstance(L, int) or not 0 < L <= MOST["num_hidden_layers"]:
        return found  # `build` says what is wrong
    if isinstance(raw.get("intermediate_size"), int):
        found["intermediate_size"] = [raw["intermediate_size"]] * L
    if raw.get("layer_types") is None:
        found["layer_types"] = [KINDS[(i + 1) % 5 == 0] for i in range(L)]
    if raw.get("activation_sparsity_pattern") is None:
        sparse = SPARSE_LAYERS if L > SPARSE_LAYERS else 0
        found["activation_sparsity_pattern"] = [SPARSITY] * sparse + [0.0] * (L - sparse)
    return found


def check_text_config(c: Gemma3nTextConfig, where):
    """Combinations that have no meaning, or one that numgemma does not compute."""
    L, N, K = c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads
    sizes = (c.vocab_size, c.hidden_size, L, N, K, c.head_dim, c.sliding_window, *c.intermediate_size)
    sizes += (c.hidden_size_per_layer_input, c.vocab_size_per_layer_input, c.altup_num_inputs, c.laurel_rank)
    makers = c.layer_types[: L - c.num_kv_shared_layers]
    rules: list[tuple[Any, str]] = [
        (c.hidden_activation == "gelu_pytorch_tanh", f"hidden_activation '{c.hidden_activation}' is not computed here"),
        (not c.attention_bias, "attention_bias true is not computed here"),
        (c.altup_active_idx == 0, "altup_active_idx other than 0 is not computed here"),
        (c.altup_correct_scale, "altup_correct_scale false is not computed here"),
        (min(sizes) > 0, "a size is not positive"),
        (len(c.layer_types) == L, "layer_types and num_hidden_layers disagree"),
        (len(c.intermediate_size) == L, "intermediate_size and num_hidden_layers disagree"),
        (len(c.activation_sparsity_pattern) == L, "activation_sparsity_pattern and num_hidden_layers disagree"),
        (
            all(0 <= s < 1 for s in c.activation_sparsity_pattern),
            "activation_sparsity_pattern is not from 0 to below 1",
        ),
        (set(c.layer_types) <= set(KINDS), "layer_types names a kind Gemma 3n lacks"),
        (0 <= c.num_kv_shared_layers < L, "num_kv_shared_layers leaves no layer that makes keys"),
        (set(makers) == set(c.layer_types), "layers share keys that no earlier layer of their kind makes"),
        (N % max(K, 1) == 0, "num_attention_heads is not a multiple of num_key_value_heads"),
        (c.head_dim % 2 == 0, "head_dim is odd"),
        (c.rms_norm_eps > 0, "rms_norm_eps is not positive"),
    ]
    demand(rules, where)
    for kind in dict.fromkeys(c.layer_types):
        rope = c.rope_parameters.get(kind)
        given = rope if isinstance(rope, dict) else {}
        plain = given.keys() == {"rope_type", "rope_theta"} and given["rope_type"] == "default"
        positive = plain and is_positive(given["rope_theta"])
        demand([(positive, f"rope_parameters of {kind} need rope_type 'default' and a positive rope_theta")], where)


def check_vision_config(c: Gemma3nVisionConfig, where):
    rules: list[tuple[Any, str]] = [
        (not c.do_pooling, "do_pooling true is not computed here"),
        (min(c.vocab_size, c.vocab_offset) > 0, "a size is not positive"),
        (c.rms_norm_eps > 0, "rms_norm_eps is not positive"),
    ]
    demand(rules, where)
    demand([(c.net.width == c.hidden_size, f"hidden_size is not {c.net.width}, as the net has it")], where)


def check_audio_config(c: Gemma3nAudioConfig, where):
    """Also what has one value in all releases, so that no other is computed: it would be computed wrongly."""
    D, N, twice = c.hidden_size, c.conf_num_attention_heads, ((2, 2), (2, 2))
    chunk, left = c.conf_attention_chunk_size, c.conf_attention_context_left
    rules: list[tuple[Any, str]] = [
        (min(D, N, c.vocab_size, c.conf_conv_kernel_size, *c.sscp_conv_channel_size) > 0, "a size is not positive"),
        (len(c.sscp_conv_channel_size) == 2, "sscp_conv_channel_size are not two numbers"),
        (c.sscp_conv_kernel_size == ((3, 3), (3, 3)), "sscp_conv_kernel_size other than 3 is not computed here"),
        (c.sscp_conv_stride_size == twice, "sscp_conv_stride_size other than 2 is not computed here"),
        (D % max(2 * N, 1) == 0, "hidden_size does not give its heads an even width"),
        (chunk == left - 1 > 0, "conf_attention_context_left is not conf_attention_chunk_size + 1"),
        (c.conf_attention_context_right == 0, "conf_attention_context_right is not 0"),
        (c.conf_attention_logit_cap > 0, "conf_attention_logit_cap is not positive"),
        (c.conf_reduction_factor > 0, "conf_reduction_factor is not positive"),
        (c.gradient_clipping >= 1e10, "gradient_clipping below 1e10 is not computed here"),
        (c.rms_norm_eps == 1e-6, "rms_norm_eps other than 1e-6 is not computed here"),
    ]
    demand(rules, where)


def layer_table(c: Gemma3nTextConfig) -> tuple[Gemma3nSpec, ...]:
    """One row per decoder layer; every choice that depends on depth is made here, once."""
    maker: dict[str, int] = {}  # kind -> the last layer that made its own keys and values
    rows = []
    for i, kind in enumerate(c.layer_types):
        if i < c.num_hidden_layers - c.num_kv_shared_layers:
            maker[kind] = i
        rows.append(
            Gemma3nSpec(
                index=i,
                kind=kind,
                window=None if kind == "full_attention" else c.sliding_window,
                N=c.num_attention_heads,
                K=c.num_key_value_heads,
                H=c.head_dim,
                F=c.intermediate_size[i],
                kv_from=maker[kind],
                sparsity=c.activation_sparsity_pattern[i],
                theta=float(c.rope_parameters[kind]["rope_theta"]),
                eps=c.rms_norm_eps,
            )
        )
    return tuple(rows)
