"""The gated MLP, and the mixture of experts that 26B-A4B has beside it."""

import numpy as np

from numgemma import ops
from numgemma.trace import Tap


def mlp(x, w, tap=Tap()):
    """Gated feed-forward, GeGLU (Shazeer 2020, arXiv 2002.05202).  x: T D  ->  T D   (equals Gemma4TextMLP)"""
    gate = tap("gate_proj", ops.linear(x, w["gate_proj.weight"]), "T F")
    up = tap("up_proj", ops.linear(x, w["up_proj.weight"]), "T F")
    return tap("down_proj", ops.linear(ops.gated_gelu(gate, up), w["down_proj.weight"]), "T D")


def router(x, w, spec, tap=Tap()):
    """Which experts each token goes to, and with which weight.  x: T D  ->  weights T J, ids T J

    It reads the raw residual stream, under a norm of its own.  (Equals Gemma4TextRouter.)
    """
    h = tap("norm", ops.rms_norm(x, None, spec.eps), "T D")
    h = ops.scale(h, w["scale"])
    h = ops.scale(h, x.shape[-1] ** -0.5)  # the sum over D numbers of size 1 is of size 1 again
    scores = tap("proj", ops.linear(h, w["proj.weight"]), "T E")
    probs = tap("probs", ops.expert_probs(scores), "T E")
    weights, ids = ops.choose_experts(probs, spec.J, w["per_expert_scale"], x.dtype)
    return tap("weights", weights, "T J"), tap("ids", ids, "T J")


def experts(x, weights, ids, w):
    """Weighted sum over the experts each token chose.  x: T D   weights, ids: T J  ->  T D"""

    def expert(e):
        t, j = np.nonzero(ids == e)
        gate, up = np.split(ops.linear(x[t], w["gate_up_proj"][e]), 2, -1)
        out = ops.linear(ops.gated_gelu(gate, up), w["down_proj"][e])
        return t, (weights[t, j, None] * out).astype(x.dtype)

    y = np.zeros_like(x)
    for t, out in ops.each(expert, np.unique(ids)):  # a token chooses an expert at most once
        y[t] += out
    return y
