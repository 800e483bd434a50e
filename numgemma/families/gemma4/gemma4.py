"""Gemma 4, the text model: E2B, E4B, 26B-A4B and 31B are this one forward pass over different layer tables.

A layer keeps a residual stream x and adds to it: attention, feed-forward and, in E2B and E4B, the per-layer input.
Attention and feed-forward have a norm before and a norm after them; the per-layer input reads the stream as it is, and
has the one after.  Last of all the whole stream is multiplied by the layer's scalar.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from numgemma import ops
from numgemma.cache import drop
from numgemma.layers.attention import attention
from numgemma.layers.feedforward import experts, mlp, router
from numgemma.layers.per_layer import per_layer_inputs, per_layer_residual
from numgemma.masks import causal_mask
from numgemma.trace import Tap


def forward(ids, w, run, tap=Tap()):
    """Logits of every token.  ids: T, the first at position run.start  ->  T V   (equals Gemma4ForCausalLM)

    run: a families.Run; its kvs carry keys and values from call to call, its dtype is that of the stream.
    `load` runs multimodal.forward, which equals this where no picture and no sound is given.
    """
    return head(hidden(ids, w, run, tap), w, run, tap)


def hidden(ids, w, run, tap=Tap()):
    """The stream after the last norm, before the head.  ids: T  ->  T D   (equals Gemma4TextModel)"""
    config = run.config.text
    x = embed(ids, w, config, run.dtype, tap)
    ple = per_layer_inputs(ids, x, w, config, tap) if config.hidden_size_per_layer_input else None
    tokens = with_tables(x, ple, causal_masks(len(ids), config, run.start), run, tap)
    return leave(layers(tokens, config.layers, w, run, tap), w, run, tap)


def embed(ids, w, config, dtype, tap=Tap()):
    """Token embeddings times sqrt(D), the factor rounded to the run's precision.  ids: T  ->  T D

    Equals Gemma4TextScaledWordEmbedding.
    """
    x = ops.embed(ids, w["embed_tokens.weight"], dtype)
    return tap("embed_tokens", ops.scale(x, dtype.type(math.sqrt(config.hidden_size))), "T D")


@dataclass(frozen=True, eq=False)
class Tokens:
    """All that flows into a layer, of some tokens."""

    x: np.ndarray  # T D, the stream
    ple: np.ndarray | None  # T L P, the per-layer inputs
    ropes: dict  # kind of layer: cos T H, sin T H
    masks: dict  # kind of layer: T S

    def of(self, some):
        """The same for some of the tokens, a slice: layers that only read keys run for the last one alone."""
        ropes = {kind: (cos[some], sin[some]) for kind, (cos, sin) in self.ropes.items()}
        masks = {kind: mask[some] for kind, mask in self.masks.items()}
        return Tokens(self.x[some], None if self.ple is None else self.ple[some], ropes, masks)


def with_tables(x, ple, masks, run, tap=Tap()):
    """The tokens as they enter the first layer.  x: T D   ple: T L P, or None   masks: kind of layer: T S"""
    positions = np.arange(run.start, run.start + len(x))
    kinds = run.config.text.kinds
    ropes = {kind: rope_table(positions, spec, x.dtype, tap) for kind, spec in kinds.items()}
    return Tokens(x, ple, ropes, masks)


def layers(tokens, rows, w, run, tap=Tap()):
    """These layers, one after another.  tokens: Tokens   rows: of the layer table  ->  Tokens"""
    x = tokens.x
    for spec in rows:
        scope, rope, mask = f"layers.{spec.index}", tokens.ropes[spec.kind], tokens.masks[spec.kind]
        own = None if tokens.ple is None else tokens.ple[:, spec.index]
        x = block(x, own, w.at(scope), spec, rope, mask, run.kvs, tap.at(scope))
    return replace(tokens, x=x)


def leave(tokens, w, run, tap=Tap()):
    """The last norm, when all layers are done; keys that no later token can see go.  tokens: Tokens  ->  T D"""
    forget(run.kvs, run.config.text.layers)
    return norm("norm", tokens.x, w, run.config.text.rms_norm_eps, tap)


def block(x, own, w, spec, rope, mask, kvs, tap=Tap()):
    """One layer.  x: T D   own: T P, its per-layer input, or None  ->  T D   (equals Gemma4TextDecoderLayer)"""
    h = norm("input_layernorm", x, w, spec.eps, tap)
    h = attention(h, w.at("self_attn"), spec, rope, mask, kvs, tap.at("self_attn"))
    h = norm("post_attention_layernorm", h, w, spec.eps, tap)
    x = tap("after_attention", x + h, "T D")

    h = norm("pre_feedforward_layernorm", x, w, spec.eps, tap)
    h = mlp(h, w.at("mlp"), tap.at("mlp"))
    if spec.E:
        h = add_experts(h, x, w, spec, tap)
    h = norm("post_feedforward_layernorm", h, w, spec.eps, tap)
    x = tap("after_mlp", x + h, "T D")

    if own is not None:
        x = x + per_layer_residual(x, own, w, spec, tap)
    return tap("out", ops.scale(x, w["layer_scalar"]), "T D")


def add_experts(h, x, w, spec, tap=Tap()):
    """The routed experts, beside the dense MLP.  h: T D, the MLP's output   x: T D, the stream  ->  T D"""
    dense = norm("post_feedforward_layernorm_1", h, w, spec.eps, tap)
    weights, ids = router(x, w.at("router"), spec, tap.at("router"))
    h = norm("pre_feedforward_layernorm_2", x, w, spec.eps, tap)
    h = tap("experts", experts(h, weights, ids, w.at("experts")), "T D")
    return dense + norm("post_feedforward_layernorm_2", h, w, spec.eps, tap)


def head(x, w, run, tap=Tap()):
    """Logits: the embedding table, unscaled, or a head of its own; then the soft cap.  x: T D  ->  T V"""
    tied = "lm_head.weight" not in w
    logits = tap("lm_head", ops.linear(x, w["embed_tokens.weight" if tied else "lm_head.weight"]), "T V")
    cap = run.config.text.final_logit_softcapping
    return tap("logits", ops.softcap(logits, cap) if cap else logits, "T V")


def norm(name, x, w, eps, tap):
    """RMSNorm with the weight of that name.  x: T D  ->  T D"""
    return tap(name, ops.rms_norm(x, w[f"{name}.weight"], eps), "T D")


def rope_table(positions, spec, dtype, tap=Tap()):
    """The rotary table that all layers of one kind share.  positions: T  ->  cos T H, sin T H

    Only the first spec.angles pairs of lanes turn.  Equals Gemma4TextRotaryEmbedding.
    """
    cos, sin = ops.rope_table(positions, spec.H, spec.theta, spec.angles, spec.rope_factor, dtype)
    tap = tap.at(f"rotary_emb.{spec.kind}")
    return tap("cos", cos, "T H"), tap("sin", sin, "T H")


def causal_masks(count, config, start=0):
    """Who sees whom among so many tokens, the first at position start, and those before them.  -> kind of layer: T S"""
    positions = np.arange(start, start + count)
    return {kind: causal_mask(positions, oldest_key(start, spec), spec.window) for kind, spec in config.kinds.items()}


def oldest_key(start, spec):
    """Position of the first key that a layer still holds when `start` tokens have gone before."""
    return 0 if spec.window is None else max(0, start - (spec.window - 1))


def forget(kvs, rows):
    """Drop the keys that no later query of a sliding layer can see.

    Only when the pass is done: a sharing layer may be the last to read all that this pass has made.
    """
    for spec in rows:
        if spec.kv_from == spec.index and spec.window is not None:
            drop(kvs, spec.index, max(0, len(kvs[spec.index]) - (spec.window - 1)))
