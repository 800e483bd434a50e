"""A dense Gemma 4 that sees, from Gemma 3's text model and another Gemma 4's vision tower.

The recipe of franken-gemma-4-dense-1b (960,477,824 parameters, from Gemma 3 1B and Gemma 4 E2B).  What differs between
the generations, and what is done about it:

* Gemma 3 multiplies by 1 + w in its norms, Gemma 4 by w: each norm weight is stored plus one;
* Gemma 3 divides scores by sqrt(H), Gemma 4 by nothing: the factor goes into q_norm and k_norm;
* full layers have heads twice as wide: the rows of Q and K are there twice, and O reads the mean of both halves, so
  that O V = O_old V_old for values that are there twice;
* full layers have no V: their values are the raw keys.  Here the old model ends, and training has to begin;
* layer_scalar is new, and 1.  Gemma 4 also norms its values, and turns fewer lanes of its full layers' heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from numgemma.checkpoint import Checkpoint, Weights, check_tensors, open_checkpoint
from numgemma.errors import InputError
from numgemma.families import read_config
from numgemma.families.gemma4 import layout
from numgemma.families.gemma4.config import Config
from numgemma.opening import resolve
from numgemma.surgery.gemma3 import FULL, NORMS, SLIDING, Gemma3, gemma3_shapes, read_gemma3
from numgemma.surgery.synth import generator, normal
from numgemma.surgery.writer import Tensor, by_rows, companions, copied, in_one, write_checkpoint
from numgemma.weights.quantised import refuse_quantised
from numgemma.weights.safetensors import release

WIDER = 2  # heads of full layers, against Gemma 3's
ROPES: dict[str, dict[str, Any]] = {
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.25},  # as all Gemma 4
    "default": {"rope_type": "default"},
}


@dataclass(frozen=True)
class Choices:
    """What the published recipe says as a number, and what it leaves open."""

    layers: int = 18
    vocab: int | None = None  # None: as many rows as the text model has
    window: int = 1024
    positions: int = 32768
    softcap: float = 30.0
    layer_scalar: float = 1.0
    full_scale: str = "width"  # of full layers' scores: "width": 1 / sqrt(new width); "exact": the scores stay
    full_rope: str = "proportional"
    image_attention: str = "vision"  # image tokens see each other, as in 31B; or "causal", as in E2B
    projection_std: float = 0.02  # the initializer_range of the family
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Part:
    """One tensor of the child: where it is from, and what is done to it."""

    component: str
    source: str
    method: str
    tensor: Tensor


@dataclass(frozen=True, eq=False)
class Transplant:
    """All that is known of a child before a byte of it is written."""

    raw: dict[str, Any]  # its config.json
    config: Config
    parts: dict[str, Part]  # by short name
    left: tuple[tuple[str, str], ...]  # what the child does without, and why
    folders: tuple[Path, ...]  # of the parents
    files: dict[str, Path]  # taken over from the tower's checkpoint


def plan(text: str | Path, tower: str | Path, choices: Choices | None = None) -> Transplant:
    """What the recipe makes of two checkpoints.  Raises InputError where they do not fit it.

    text: a Gemma 3 text model.  tower: a Gemma 4 with a vision tower; its tokenizer and processor come along.
    """
    choices = choices or Choices()
    below, above = open_checkpoint(resolve(text)), open_checkpoint(resolve(tower))
    for path, parent in ((text, below), (tower, above)):
        refuse_quantised(path, parent.weights.tensors)
    c = read_gemma3(below.config, str(below.folder / "config.json"))
    check_tensors(below.weights, gemma3_shapes(c), (r"lm_head\.weight",))
    where = str(above.folder / "config.json")
    seeing = read_config(above.config, where)
    if seeing.vision is None:
        raise InputError(f"{where}: has no vision_config; name a Gemma 4 with a vision tower, as E2B.")
    check_choices(c, choices, str(below.folder / "config.json"))
    raw = child_config(c, above.config, choices, below.config)
    config = read_config(raw, "the transplant's config")
    parts = text_parts(c, below.weights, choices) | vision_parts(config, above, below, choices)
    shapes = layout.tensor_shapes(config)
    check_parts(parts, shapes, where)
    parts = {name: parts[name] for name in shapes}
    folders = above.folder, below.folder
    return Transplant(raw, config, parts, left_out(c, choices, seeing), folders, companions(above.folder))


def write(child: Transplant, target: str | Path, card: Callable[[Path], None] | None = None, **how) -> None:
    """Write the child.  card: puts one into the folder.  how: shard, force, progress of `write_checkpoint`."""
    stored = {layout.stored_name(name, "gemma4"): part.tensor for name, part in child.parts.items()}
    files = {**child.files} | ({"README.md": card} if card else {})
    write_checkpoint(target, child.raw, stored, files, parents=child.folders, **how)


def check_choices(c: Gemma3, choices: Choices, where: str) -> None:
    if not 0 < choices.layers <= c.num_hidden_layers or c.layer_types[choices.layers - 1] != FULL:
        full = [i + 1 for i, kind in enumerate(c.layer_types) if kind == FULL]
        raise InputError(
            f"{where}: its first {choices.layers} layers do not end with a full one, as Gemma 4 does; "
            f"choose --layers {', '.join(map(str, full))}."
        )
    if choices.vocab is not None and choices.vocab < c.vocab_size:
        raise InputError(f"{where}: has {c.vocab_size} tokens, more than --vocab {choices.vocab}; rows are only added.")


def check_parts(parts, shapes, where) -> None:
    for name, shape in shapes.items():
        if parts[name].tensor.shape != shape:
            raise InputError(f"{where}: {name} is {list(parts[name].tensor.shape)}, not {list(shape)}; check the file.")


# the config


def child_config(c: Gemma3, tower: dict[str, Any], choices: Choices, text: dict[str, Any]) -> dict[str, Any]:
    """The tower's config.json around a text model of 31B's kind, in the widths of Gemma 3."""
    dtype = text.get("dtype") or text.get("torch_dtype") or "bfloat16"
    full = ROPES[choices.full_rope] | {"rope_theta": c.theta[FULL]}
    changes = {
        "vocab_size": choices.vocab or c.vocab_size,
        "vocab_size_per_layer_input": choices.vocab or c.vocab_size,
        "hidden_size": c.hidden_size,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": choices.layers,
        "layer_types": list(c.layer_types[: choices.layers]),
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "num_global_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "global_head_dim": WIDER * c.head_dim,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "enable_moe_block": False,
        **dict.fromkeys(("num_experts", "top_k_experts", "moe_intermediate_size")),
        "sliding_window": choices.window,
        "max_position_embeddings": choices.positions,
        "rope_parameters": {FULL: full, SLIDING: {"rope_type": "default", "rope_theta": c.theta[SLIDING]}},
        "rms_norm_eps": c.rms_norm_eps,
        "final_logit_softcapping": choices.softcap or None,
        "use_bidirectional_attention": None if choices.image_attention == "causal" else choices.image_attention,
        "tie_word_embeddings": True,
        "dtype": dtype,
    }
    kept = {key: value for key, value in tower["text_config"].items() if key != "per_layer_config"}
    whole = {"architectures": ["Gemma4ForConditionalGeneration"], "audio_config": None, "tie_word_embeddings": True}
    return tower | whole | {"text_config": kept | changes, "dtype": dtype}


# the text model


def text_parts(c: Gemma3, w: Weights, choices: Choices) -> dict[str, Part]:
    parts = {"embed_tokens.weight": embedding(w["embed_tokens.weight"], choices.vocab or c.vocab_size)}
    for i, kind in enumerate(c.layer_types[: choices.layers]):
        found = layer_parts(c, w.at(f"layers.{i}"), kind, choices)
        parts |= {f"layers.{i}.{name}": part for name, part in found.items()}
    parts["norm.weight"] = Part("last norm", "text", "1 + w", plus_one(w["norm.weight"]))
    return parts


def layer_parts(c: Gemma3, w: Weights, kind: str, choices: Choices) -> dict[str, Part]:
    """One layer's tensors.  w: of the old layer"""
    mlp = [f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    parts = {name: Part("MLP", "text", "copied", copied(w[name])) for name in mlp}
    for name in NORMS:
        parts[f"{name}.weight"] = Part("norms", "text", "1 + w", plus_one(w[f"{name}.weight"]))
    dtype = w[f"{NORMS[0]}.weight"].dtype
    scalar = in_one(np.full(1, choices.layer_scalar).astype(dtype))
    parts["layer_scalar"] = Part("layer_scalar", "-", f"set to {choices.layer_scalar:g}", scalar)
    return parts | (full_attention if kind == FULL else sliding_attention)(c, w, choices)


def sliding_attention(c: Gemma3, w: Weights, choices: Choices) -> dict[str, Part]:
    names = [f"self_attn.{name}_proj.weight" for name in "qkvo"]
    parts = {name: Part("sliding Q K V O", "text", "copied", copied(w[name])) for name in names}
    scale = c.query_pre_attn_scalar**-0.5
    return parts | head_norms("sliding Q K norms", w, scale, 1)


def full_attention(c: Gemma3, w: Weights, choices: Choices) -> dict[str, Part]:
    N, K, H, D = c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.hidden_size
    # the product of a doubled query with a doubled key is twice what it was
    scale = c.query_pre_attn_scalar**-0.5 / WIDER if choices.full_scale == "exact" else (WIDER * H) ** -0.5
    q, k, o = (w[f"self_attn.{name}_proj.weight"] for name in "qko")
    rows = f"rows of each head, {WIDER} times"
    return {
        "self_attn.q_proj.weight": Part("full Q K", "text", rows, later((WIDER * N * H, D), q, lambda: tiled(q, N))),
        "self_attn.k_proj.weight": Part("full Q K", "text", rows, later((WIDER * K * H, D), k, lambda: tiled(k, K))),
        "self_attn.o_proj.weight": Part(
            "full O", "text", f"1/{WIDER} in each half of a head", later((D, WIDER * N * H), o, lambda: halved(o, N))
        ),
        **head_norms("full Q K norms", w, scale, WIDER),
    }


def later(shape: tuple[int, ...], x: np.ndarray, make: Callable[[], np.ndarray]) -> Tensor:
    """A tensor made in one piece from x, when it is written."""

    def pieces():
        yield make()
        release(x)

    return Tensor(shape, x.dtype, pieces)


def tiled(x: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head, twice over.  x: NH D  ->  NH D"""
    D = x.shape[1]
    return np.tile(x.reshape(heads, -1, D), (1, WIDER, 1)).reshape(-1, D)


def halved(x: np.ndarray, heads: int) -> np.ndarray:
    """Half of each head's columns, twice over, so that it reads the mean of both halves.  x: D NH  ->  D NH"""
    D = x.shape[0]
    part = (x.astype(np.float32) / WIDER).astype(x.dtype).reshape(D, heads, -1)
    return np.tile(part, (1, 1, WIDER)).reshape(D, -1)


def head_norms(component: str, w: Weights, scale: float, times: int) -> dict[str, Part]:
    """q_norm and k_norm, which share the scale that scores are multiplied by."""
    method = f"(1 + w) x {scale**0.5:.6g}" + (f", {times} times" if times > 1 else "")
    found = {}
    for name in ("self_attn.q_norm.weight", "self_attn.k_norm.weight"):
        x = np.tile((1 + w[name].astype(np.float32)) * np.float32(scale**0.5), times)
        found[name] = Part(component, "text", method, in_one(x.astype(w[name].dtype)))
    return found


def plus_one(x: np.ndarray) -> Tensor:
    return in_one((1 + x.astype(np.float32)).astype(x.dtype))


def embedding(x: np.ndarray, rows: int) -> Part:
    """The table, and below it the mean of its rows for every token that is new."""
    new = rows - len(x)
    if not new:
        return Part("embedding", "text", "copied", copied(x))

    def pieces():
        yield from copied(x).pieces()
        yield np.tile(mean_row(x).astype(x.dtype), (new, 1))

    return Part("embedding", "text", f"copied, {new} new rows: the mean", Tensor((rows, x.shape[1]), x.dtype, pieces))


def mean_row(x: np.ndarray) -> np.ndarray:
    """The mean of all rows, a few thousand at a time.  x: V D  ->  D"""
    total, step = np.zeros(x.shape[1]), 4096
    for start in range(0, len(x), step):
        total += x[start : start + step].astype(np.float32).sum(0, dtype=np.float64)
        release(x[start : start + step])
    return total / len(x)


# what it sees with


def vision_parts(config: Config, tower: Checkpoint, text: Checkpoint, choices: Choices) -> dict[str, Part]:
    """The tower as it is, and a projection from it that nobody has trained."""
    w, dtype = tower.weights, text.weights["embed_tokens.weight"].dtype
    names = [name for name in layout.tensor_shapes(config) if name.startswith("vision_tower.")]
    parts = {name: Part("vision tower", "tower", "copied", converted(w[name], dtype)) for name in names}
    assert config.vision is not None
    name, shape = "embed_vision.embedding_projection.weight", (config.text.hidden_size, config.vision.hidden_size)
    rng = generator(name, choices.seed)
    fresh = (np.float32(choices.projection_std) * normal(rng, shape)).astype(dtype)
    method = f"fresh, normal, std {choices.projection_std:g}"
    return parts | {name: Part("vision projection", "-", method, in_one(fresh))}


def converted(x: np.ndarray, dtype: np.dtype) -> Tensor:
    """A tensor in the child's dtype; as it is where that is its own."""
    if x.dtype == dtype:
        return copied(x)
    if x.ndim == 0:
        return in_one(x.astype(dtype))
    return by_rows(x.shape, dtype, lambda start, stop: x[start:stop])


def left_out(c: Gemma3, choices: Choices, seeing: Config) -> tuple[tuple[str, str], ...]:
    """What neither parent's tensors go into."""
    found = [("full V", "values of full layers are the raw keys")]
    if choices.layers < c.num_hidden_layers:
        found.append((f"layers {choices.layers}-{c.num_hidden_layers - 1}", "of the text model, above those taken"))
    found.append(("the tower's text model", "the child has the other's"))
    if seeing.audio:
        found.append(("audio tower", "the child does not hear"))
    return tuple(found)
