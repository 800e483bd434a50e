"""Gemma 4, the text model: E2B, E4B, 26B-A4B and 31B are this one forward pass over different layer tables.

A layer keeps a residual stream x and adds to it three times: attention, feed-forward, per-layer input.  Each branch
has a norm before it and a norm after it.  Last of all the whole stream is multiplied by the layer's scalar.
"""

import math

import numpy as np

from numgemma import ops
from numgemma.cache import drop
from numgemma.layers.attention import attention
from numgemma.layers.feedforward import experts, mlp, router
from numgemma.layers.per_layer import per_layer_inputs, per_layer_residual
from numgemma.masks import causal_mask
from numgemma.trace import Tap

ALL = slice(None)


def forward(ids, w, config, dtype, kvs, start=0, tap=Tap()):
    """Logits of every token.  ids: T, the first at position `start`  ->  T V   (equals Gemma4ForCausalLM)

    kvs carries keys and values from call to call: empty for a new sequence, afterwards what later tokens can see.
    The dtype of the stream is the precision of the run.
    """
    return head(hidden(ids, w, config, dtype, kvs, start, tap), w, config, tap)


def hidden(ids, w, config, dtype, kvs, start=0, tap=Tap(), wanted=ALL):
    """The stream after the last norm, before the head.  ids: T  ->  T D, or of the `wanted` tokens alone"""
    x = embed(ids, w, config, dtype, tap)
    ple = per_layer_inputs(ids, x, w, config, tap) if config.hidden_size_per_layer_input else None
    masks = causal_masks(len(ids), config, start)
    return decoder(x, ple, masks, w, config, kvs, start, tap, wanted)


def embed(ids, w, config, dtype, tap=Tap()):
    """Token embeddings times sqrt(D), the factor rounded to the run's precision.  ids: T  ->  T D"""
    x = ops.embed(ids, w["embed_tokens.weight"], dtype)
    return tap("embed_tokens", ops.scale(x, dtype.type(math.sqrt(config.hidden_size))), "T D")


def decoder(x, ple, masks, w, config, kvs, start=0, tap=Tap(), wanted=ALL):
    """All layers and the last norm.  x: T D   ple: T L P, or None  ->  T D   (equals Gemma4TextModel)

    masks: kind of layer -> T S.  wanted: whose streams are asked for; layers that only read keys run for these alone.
    """
    positions = np.arange(start, start + len(x))
    ropes = {kind: rope_table(positions, spec, x.dtype, tap) for kind, spec in config.kinds.items()}
    for spec in config.layers:
        scope = f"layers.{spec.index}"
        own = None if ple is None else ple[:, spec.index]
        x = block(x, own, w.at(scope), spec, ropes[spec.kind], masks[spec.kind], kvs, tap.at(scope))
        if spec.index == config.last_maker:  # no more keys are made: the other tokens have done their work
            x, ple, ropes, masks = narrowed(wanted, x, ple, ropes, masks)
        if not len(x):
            break
    forget(kvs, config)
    return norm("norm", x, w, config.rms_norm_eps, tap)


def block(x, ple, w, spec, rope, mask, kvs, tap=Tap()):
    """One layer.  x: T D   ple: T P, or None  ->  T D   (equals Gemma4TextDecoderLayer)"""
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

    if ple is not None:
        x = x + per_layer_residual(x, ple, w, spec, tap)
    return tap("out", ops.scale(x, w["layer_scalar"]), "T D")


def add_experts(h, x, w, spec, tap=Tap()):
    """The routed experts, beside the dense MLP.  h: T D, the MLP's output   x: T D, the stream  ->  T D"""
    dense = norm("post_feedforward_layernorm_1", h, w, spec.eps, tap)
    weights, ids = router(x, w.at("router"), spec, tap.at("router"))
    h = norm("pre_feedforward_layernorm_2", x, w, spec.eps, tap)
    h = tap("experts", experts(h, weights, ids, w.at("experts")), "T D")
    return dense + norm("post_feedforward_layernorm_2", h, w, spec.eps, tap)


def head(x, w, config, tap=Tap()):
    """Logits: the embedding table, unscaled, or a head of its own; then the soft cap.  x: T D  ->  T V"""
    tied = "lm_head.weight" not in w
    logits = tap("lm_head", ops.linear(x, w["embed_tokens.weight" if tied else "lm_head.weight"]), "T V")
    cap = config.final_logit_softcapping
    return tap("logits", ops.softcap(logits, cap) if cap else logits, "T V")


def norm(name, x, w, eps, tap):
    """RMSNorm with the weight of that name.  x: T D  ->  T D"""
    return tap(name, ops.rms_norm(x, w[f"{name}.weight"], eps), "T D")


def rope_table(positions, spec, dtype, tap=Tap()):
    """The rotary table that all layers of one kind share.  positions: T  ->  cos T H, sin T H"""
    cos, sin = ops.rope_table(positions, spec.H, spec.theta, spec.angles, spec.rope_factor, dtype)
    tap = tap.at(f"rotary_emb.{spec.kind}")
    return tap("cos", cos, "T H"), tap("sin", sin, "T H")


def causal_masks(tokens, config, start=0):
    """Who sees whom, by kind of layer.  -> T S"""
    positions = np.arange(start, start + tokens)
    return {kind: causal_mask(positions, oldest_key(start, spec), spec.window) for kind, spec in config.kinds.items()}


def narrowed(wanted, x, ple, ropes, masks):
    """The same for some of the tokens."""
    ropes = {kind: (cos[wanted], sin[wanted]) for kind, (cos, sin) in ropes.items()}
    masks = {kind: mask[wanted] for kind, mask in masks.items()}
    return x[wanted], None if ple is None else ple[wanted], ropes, masks


def oldest_key(start, spec):
    """Position of the first key that a layer still holds when `start` tokens have gone before."""
    return 0 if spec.window is None else max(0, start - (spec.window - 1))


def forget(kvs, config):
    """Drop the keys that no later query of a sliding layer can see.

    Only when the pass is done: a sharing layer may be the last to read all that this pass has made.
    """
    for spec in config.layers:
        if spec.kv_from == spec.index and spec.window is not None:
            k, _ = kvs[spec.index]
            drop(kvs, spec.index, max(0, len(k) - (spec.window - 1)))
