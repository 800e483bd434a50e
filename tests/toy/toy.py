"""The toy: a token reads the mean of all that came before it.  kvs: layer -> the sum so far, and of how many tokens."""

from dataclasses import dataclass, replace

import numpy as np

from numgemma import ops
from numgemma.layers.feedforward import mlp
from numgemma.trace import Tap


@dataclass(frozen=True)
class Tokens:
    x: np.ndarray  # T D

    def of(self, some):
        return Tokens(self.x[some])


def forward(ids, media, w, run, tap=Tap()):
    """ids: T  ->  T V"""
    tokens = layers(enter(ids, {}, None, w, run, tap), run.config.layers, w, run, tap)
    return head(leave(tokens, w, run, tap), w, run, tap)


def enter(ids, soft, blocks, w, run, tap=Tap()):
    return Tokens(tap("embed_tokens", ops.embed(ids, w["embed_tokens.weight"], run.dtype), "T D"))


def layers(tokens, rows, w, run, tap=Tap()):
    x = tokens.x
    for spec in rows:
        x = block(x, w.at(f"layers.{spec.index}"), spec, run.kvs, tap.at(f"layers.{spec.index}"))
    return replace(tokens, x=x)


def block(x, w, spec, kvs, tap=Tap()):
    """x: T D  ->  T D"""
    h = tap("input_layernorm", ops.rms_norm(x, w["input_layernorm.weight"], spec.eps), "T D")
    h = past(h, w.at("past"), spec, kvs, tap.at("past"))
    x = tap("after_past", x + h, "T D")
    h = tap("post_layernorm", ops.rms_norm(x, w["post_layernorm.weight"], spec.eps), "T D")
    return tap("out", x + mlp(h, w.at("mlp"), tap.at("mlp")), "T D")


def past(x, w, spec, kvs, tap=Tap()):
    """x: T D  ->  T D"""
    v = tap("v_proj", ops.linear(x, w["v_proj.weight"]), "T D")
    before, n = kvs.get(spec.index, (np.zeros_like(v[0]), 0))
    mean = tap("mean", running_mean(v, before, n), "T D")
    kvs[spec.index] = before + v.sum(0), n + len(v)
    return tap("o_proj", ops.linear(mean, w["o_proj.weight"]), "T D")


def running_mean(v, before, n):
    """An operation that no other family has.  v: T D   before: D, the sum of n tokens  ->  T D"""
    count = np.arange(n + 1, n + 1 + len(v), dtype=v.dtype)[:, None]
    return (before + np.add.accumulate(v)) / count


def forget(kvs, rows):
    """A sum forgets nothing."""


def leave(tokens, w, run, tap=Tap()):
    return tap("norm", ops.rms_norm(tokens.x, w["norm.weight"], run.config.rms_norm_eps), "T D")


def head(x, w, run, tap=Tap()):
    return tap("logits", ops.linear(x, w["embed_tokens.weight"]), "T V")
