"""The gated MLP, sparse in Gemma 3n; the linears of the towers; the experts that 26B-A4B has beside its MLP."""

import numpy as np

from numgemma import ops
from numgemma.trace import Tap


def mlp(x, w, tap=Tap()):
    """Gated feed-forward, GeGLU (Shazeer 2020, arXiv 2002.05202).  x: T D  ->  T D   (equals Gemma4TextMLP)"""
    gate = tap("gate_proj", ops.linear(x, w["gate_proj.weight"]), "T F")
    up = tap("up_proj", ops.linear(x, w["up_proj.weight"]), "T F")
    return tap("down_proj", ops.linear(ops.gated_gelu(gate, up), w["down_proj.weight"]), "T D")


def sparse_mlp(x, w, sparsity, tap=Tap()):
    """`mlp` with all but the largest gates at zero.  x: T D  ->  T D   (equals Gemma3nTextMLP)

    sparsity: the share of gates that is zero, were they spread as a Gaussian; 0: none is touched.
    """
    gate = tap("gate_proj", ops.linear(x, w["gate_proj.weight"]), "T F")
    if sparsity:
        gate = tap("gaussian_topk", ops.gaussian_topk(gate, sparsity), "T F")
    up = tap("up_proj", ops.linear(x, w["up_proj.weight"]), "T F")
    return tap("down_proj", ops.linear(ops.gated_gelu(gate, up), w["down_proj.weight"]), "T D")


def clipped_linear(x, w):
    """x W^T; where the checkpoint has bounds, x and the result are held within them.  (Gemma4ClippableLinear)

    The towers of E2B and E4B were trained with these bounds, so they are data like the weight.
    """
    if "input_min" not in w:
        return ops.linear(x, w["linear.weight"])
    inner, outer = (w["input_min"], w["input_max"]), (w["output_min"], w["output_max"])
    return ops.clipped_linear(x, w["linear.weight"], inner, outer)


def router(x, w, spec, tap=Tap()):
    """Which experts each token goes to, and with which weight.  x: T D  ->  weights T J, ids T J

    It reads the raw residual stream, under a norm of its own.  A softmax over all E; the J largest, made to sum to 1;
    then each times its expert's own scale.  (Equals Gemma4TextRouter.)
    """
    h = tap("norm", ops.rms_norm(x, None, spec.eps), "T D")
    h = ops.scale(h, w["scale"])
    h = ops.scale(h, x.shape[-1] ** -0.5)  # the scores, sums over D numbers of size 1, stay of size 1
    scores = tap("proj", ops.linear(h, w["proj.weight"]), "T E")
    probs = tap("probs", ops.expert_probs(scores), "T E")
    weights, ids = ops.choose_experts(probs, spec.J, w["per_expert_scale"], x.dtype)
    return tap("weights", weights, "T J"), tap("ids", ids, "T J")


def experts(x, weights, ids, w):
    """Weighted sum over the experts each token chose.  x: T D   weights, ids: T J  ->  T D   (Gemma4TextExperts)"""

    def expert(e):
        t, j = np.nonzero(ids == e)  # the tokens that chose e, and as which of their choices
        gate, up = np.split(ops.linear(x[t], w["gate_up_proj"][e]), 2, -1)
        out = ops.linear(ops.gated_gelu(gate, up), w["down_proj"][e])
        return t, (weights[t, j, None] * out).astype(x.dtype)

    y = np.zeros_like(x)
    # side by side, where the backend can; a token chooses an expert at most once
    for t, out in ops.each(expert, np.unique(ids)):
        y[t] += out
    return y
