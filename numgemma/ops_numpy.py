"""The operations, defined.  Every name here is one step of the architecture figure; ops.py is how the model calls them.

Precision: arithmetic inside an operation is in float32 (float64 in a float64 run), and its result is rounded once to
the dtype of x.  That is what PyTorch does, so a bfloat16 run rounds where a bfloat16 PyTorch run rounds.

Weights come as they lie in the file, [out, in] and in the file's dtype.  They take the run's precision here, as
loading them into a PyTorch model of that precision would.
"""

import math

import numpy as np

from numgemma.trace import Tap

BLOCK = 1 << 20  # numbers of a stored matrix expanded at a time: 4 MB of float32 stay in a core's cache


def wide(dtype):
    """The dtype that arithmetic inside an operation uses: at least float32."""
    return np.promote_types(dtype, np.float32)


def stored(w, dtype):
    """A stored tensor, rounded to the run's dtype, ready for arithmetic."""
    return w.astype(dtype, copy=False).astype(wide(dtype), copy=False)


def linear(x, w):
    """x W^T.  x: ... I   w: O I  ->  ... O"""
    a = x.astype(wide(x.dtype), copy=False)
    y = np.empty((*x.shape[:-1], len(w)), a.dtype)
    rows = max(1, BLOCK // w.shape[1])
    for i in range(0, len(w), rows):
        y[..., i : i + rows] = a @ stored(w[i : i + rows], x.dtype).T
    return y.astype(x.dtype, copy=False)


def embed(ids, w, dtype):
    """Rows of a table.  ids: T   w: V D  ->  T D"""
    return w[ids].astype(dtype)


def scale(x, factor):
    """x times a stored tensor or a Python constant; only the result is rounded, not the constant."""
    factor = stored(factor, x.dtype) if isinstance(factor, np.ndarray) else wide(x.dtype).type(factor)
    return (x.astype(wide(x.dtype)) * factor).astype(x.dtype)


def rms_norm(x, w, eps):
    """x / rms(x) * w, over the last axis; w None where the norm has no weight.  x: ... D   w: D  ->  ... D

    Equals Gemma4RMSNorm: the weight multiplies as stored (Gemma 3 and older multiply by 1 + weight).
    """
    y = x.astype(wide(x.dtype))
    y = y * (1 / np.sqrt((y * y).mean(-1, keepdims=True) + y.dtype.type(eps)))
    if w is not None:
        y = y * stored(w, x.dtype)
    return y.astype(x.dtype)


def gelu_tanh(x):
    """The tanh approximation of GELU, elementwise (Hendrycks and Gimpel 2016; `gelu_pytorch_tanh`)."""
    y = x.astype(wide(x.dtype))
    c = y.dtype.type(math.sqrt(2 / math.pi))
    y = y / 2 * (1 + np.tanh(c * (y + y.dtype.type(0.044715) * y * y * y)))
    return y.astype(x.dtype)


def softcap(x, cap):
    """cap tanh(x / cap): bounds x smoothly, leaves small x alone.  Elementwise."""
    cap = x.dtype.type(cap)
    return np.tanh(x / cap) * cap


def softmax(x, mask=None):
    """exp(x) / sum exp(x) over the last axis, where mask is True; elsewhere 0."""
    y = x.astype(wide(x.dtype))
    if mask is not None:
        y = np.where(mask, y, -np.inf)
    y = np.exp(y - y.max(-1, keepdims=True))
    return (y / y.sum(-1, keepdims=True)).astype(x.dtype)


def rope_table(positions, H, theta, angles, factor, dtype):
    """cos and sin of the rotary embedding.  positions: T  ->  T H, T H   (Su et al. 2021, arXiv 2104.09864)

    Lanes i and i + H/2 are one pair, turned by position * theta^(-2i/H).  Only the first `angles` pairs turn, the
    others have frequency zero ("proportional" rope); the exponent's denominator stays the whole width H.
    """
    real = wide(dtype).type
    pairs = np.arange(0, 2 * angles, 2).astype(real) / real(H)
    frequencies = np.zeros(H // 2, real)
    frequencies[:angles] = 1 / np.power(real(theta), pairs) / real(factor)
    turn = positions[:, None].astype(real) * frequencies
    turn = np.concatenate([turn, turn], -1)
    return np.cos(turn).astype(dtype), np.sin(turn).astype(dtype)


def rope(x, cos, sin):
    """Turn each pair of lanes (i, i + H/2) by its angle.  x: T N H   cos, sin: T H  ->  T N H"""
    left, right = np.split(x, 2, -1)
    turned = np.concatenate([-right, left], -1)
    return x * cos[:, None] + turned * sin[:, None]


def attend(q, k, v, mask, tap=Tap()):
    """Every query takes its softmax-weighted mean of the values.  q: T N H   k, v: S K H   mask: T S  ->  T N H

    The G = N / K query heads of a group read the same key/value head (Ainslie et al. 2023, arXiv 2305.13245).
    The scale is 1: q_norm and k_norm carry it.  Scores that the mask hides read as 0.
    """
    (T, N, H), (S, K, _) = q.shape, k.shape
    q = q.reshape(T, K, N // K, H).transpose(1, 2, 0, 3)  # K G T H
    k, v = k.transpose(1, 2, 0)[:, None], v.transpose(1, 0, 2)[:, None]  # K 1 H S, K 1 S H
    scores = tap("scores", np.where(mask, matmul(q, k).reshape(N, T, S), q.dtype.type(0)), "N T S")
    probs = tap("probs", softmax(scores, mask), "N T S")
    context = matmul(probs.reshape(K, N // K, T, S), v)  # K G T H
    return context.transpose(2, 0, 1, 3).reshape(T, N, H)


def matmul(a, b):
    """a @ b, summed in float32 or wider and rounded once."""
    return (a.astype(wide(a.dtype), copy=False) @ b.astype(wide(b.dtype), copy=False)).astype(a.dtype, copy=False)


def expert_probs(scores):
    """Softmax over all experts, in float32 even in a bfloat16 run, as Gemma4TextRouter does.  T E  ->  T E"""
    return softmax(scores.astype(wide(scores.dtype)))


def choose_experts(probs, J, per_expert_scale, dtype):
    """The J likeliest experts of each token, and their weights.  probs: T E  ->  weights T J, ids T J

    The chosen probabilities are made to sum to 1, and only then multiplied by each expert's own scale.
    """
    ids = np.argsort(-probs, axis=-1, kind="stable")[:, :J]
    weights = np.take_along_axis(probs, ids, -1)
    weights = weights / weights.sum(-1, keepdims=True)
    return weights * stored(per_expert_scale, dtype)[ids], ids
