"""Gemma 3n, E2B and E4B: one forward pass over different layer tables.

There are four residual streams.  A layer computes on the first, after all have been mixed into each other, and tells
the others what it found; its per-layer input goes to the others alone.  Beside attention runs a residual of low rank,
and in the first ten layers most of the feed-forward's gates are zero.  No picture sees ahead: all is causal.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from numgemma import ops
from numgemma.families.gemma3n.embedders import placed, soft_tokens, with_hard_tokens
from numgemma.families.gemma4 import gemma4
from numgemma.layers import altup
from numgemma.layers.attention import attention
from numgemma.layers.feedforward import sparse_mlp
from numgemma.layers.laurel import laurel
from numgemma.layers.per_layer import per_layer_residual
from numgemma.trace import Tap


@dataclass(frozen=True, eq=False)
class StreamsOfTokens:
    """All that flows into a layer, of some tokens."""

    streams: np.ndarray  # A T D
    ple: np.ndarray  # T L P
    ropes: dict  # kind of layer: cos T H, sin T H
    masks: dict  # kind of layer: T S

    def of(self, some):
        """The same for some of the tokens, a slice."""
        ropes = {kind: (cos[some], sin[some]) for kind, (cos, sin) in self.ropes.items()}
        masks = {kind: mask[some] for kind, mask in self.masks.items()}
        return StreamsOfTokens(self.streams[:, some], self.ple[some], ropes, masks)


def forward(ids, media, w, run, tap=Tap()):
    """Logits of every token.  ids: T, the first at position run.start  ->  T V

    Equals Gemma3nForConditionalGeneration, and without media Gemma3nForCausalLM.  Media enter with the prompt, at
    start 0; what comes after it is text.
    """
    tokens = enter(ids, soft_tokens(media, w, run, tap), None, w, run, tap)
    tokens = layers(tokens, run.config.text.layers, w, run, tap)
    return gemma4.head(leave(tokens, w, run, tap), w, run, tap)


def enter(ids, soft, blocks, w, run, tap=Tap()):
    """The streams of the first layer, and what else the layers need.  ids: T   soft: kind: O D

    blocks changes nothing: pictures are causal too.
    """
    c = run.config.text
    x = with_hard_tokens(gemma4.embed(ids, w, c, run.dtype, tap), ids, w, run, tap)
    for kind, rows in soft.items():
        x = placed(x, ids == run.config.placeholders[kind], rows)
    x = tap("inputs_embeds", x, "T D")
    ple = per_layer_inputs(ids, x, w, c, tap)
    positions = np.arange(run.start, run.start + len(ids))
    ropes = {kind: gemma4.rope_table(positions, spec, run.dtype, tap) for kind, spec in c.kinds.items()}
    streams = altup.as_streams(x, w, c.altup_num_inputs, tap)
    return StreamsOfTokens(streams, ple, ropes, gemma4.causal_masks(len(ids), c, run.start))


def per_layer_inputs(ids, x, w, c, tap=Tap()):
    """One input per token and layer.  ids: T   x: T D, the stream as it enters the first layer  ->  T L P

    Ids beyond the table have its row 0.  The factors are rounded to the run's precision, which Gemma 4's are not.
    (Equals get_per_layer_inputs followed by project_per_layer_inputs of Gemma3nTextModel.)
    """
    T, L, P, rounded = len(x), c.num_hidden_layers, c.hidden_size_per_layer_input, x.dtype.type
    known = np.where(ids < c.vocab_size_per_layer_input, ids, 0)
    token = ops.scale(ops.embed(known, w["embed_tokens_per_layer.weight"], x.dtype), rounded(math.sqrt(P)))
    token = tap("embed_tokens_per_layer", token, "T LP").reshape(T, L, P)
    context = projected_inputs(x, w, c, tap)
    return tap("per_layer_inputs", ops.scale(context + token, rounded(2**-0.5)), "T L P")


def projected_inputs(x, w, c, tap=Tap()):
    """The half that is projected from the stream.  x: T D  ->  T L P"""
    (T, D), L, P = x.shape, c.num_hidden_layers, c.hidden_size_per_layer_input
    context = tap("per_layer_model_projection", ops.linear(x, w["per_layer_model_projection.weight"]), "T LP")
    context = ops.scale(context, x.dtype.type(D**-0.5)).reshape(T, L, P)
    norm = w["per_layer_projection_norm.weight"]
    return tap("per_layer_projection_norm", ops.rms_norm(context, norm, c.rms_norm_eps), "T L P")


def layers(tokens, rows, w, run, tap=Tap()):
    """These layers, one after another.  tokens: StreamsOfTokens   rows: of the layer table  ->  StreamsOfTokens"""
    s = tokens.streams
    for spec in rows:
        scope, kind = f"layers.{spec.index}", spec.kind
        own = tokens.ple[:, spec.index]
        s = block(s, own, w.at(scope), spec, tokens.ropes[kind], tokens.masks[kind], run.kvs, tap.at(scope))
    return replace(tokens, streams=s)


def block(x, own, w, spec, rope, mask, kvs, tap=Tap()):
    """One layer.  x: A T D   own: T P, its per-layer input  ->  A T D   (equals Gemma3nTextDecoderLayer)"""
    p = altup.predict(x, w.at("altup"), spec.eps, tap.at("altup"))
    h = gemma4.norm("input_layernorm", p[0], w, spec.eps, tap)
    beside = laurel(h, w.at("laurel"), spec.eps, tap.at("laurel"))
    h = attention(h, w.at("self_attn"), spec, rope, mask, kvs, tap.at("self_attn"))
    h = gemma4.norm("post_attention_layernorm", h, w, spec.eps, tap)
    y = tap("after_attention", ops.divide(p[0] + h + beside, math.sqrt(2)), "T D")  # two residuals: the size of one

    h = gemma4.norm("pre_feedforward_layernorm", y, w, spec.eps, tap)
    h = sparse_mlp(h, w.at("mlp"), spec.sparsity, tap.at("mlp"))
    h = gemma4.norm("post_feedforward_layernorm", h, w, spec.eps, tap)
    y = tap("after_mlp", y + h, "T D")

    s = altup.correct(p, y, w.at("altup"), spec.eps, tap.at("altup"))
    scaled = altup.output_scale(s[0], w.at("altup"), tap.at("altup"))
    e = per_layer_residual(scaled, own, w, spec, tap)
    return tap("out", joined(s, e), "A T D")


def joined(s, e):
    """What the per-layer input adds, in all streams but 0, which hears of it in the next layer.  s: A T D   e: T D"""
    return np.concatenate([s[:1], s[1:] + e])


def leave(tokens, w, run, tap=Tap()):
    """All streams as one, after the last norm, when all layers are done; keys out of sight go.  ->  T D"""
    gemma4.forget(run.kvs, run.config.text.layers)
    return gemma4.norm("norm", altup.as_one(tokens.streams, w, tap), w, run.config.text.rms_norm_eps, tap)
