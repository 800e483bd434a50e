"""The operations, defined; ops/__init__.py binds the names by which the model calls them.

Precision: arithmetic inside an operation is in float32 (float64 in a float64 run), and its result is rounded once to
the dtype of x.  That is what PyTorch does, so a bfloat16 run rounds where a bfloat16 PyTorch run rounds.

Weights come as they lie in the file, [out, in] and in the file's dtype.  They take the run's precision here, as
loading them into a PyTorch model of that precision would.
"""

import math
from functools import wraps

import numpy as np

from numgemma.masks import Spans, everything
from numgemma.ops.threads import in_parallel
from numgemma.trace import Tap

BLOCK = 1 << 20  # numbers of a stored matrix expanded at a time: 4 MB of float32 stay in a core's cache


def wide(dtype):
    """The dtype that arithmetic inside an operation uses: at least float32."""
    return np.promote_types(dtype, np.float32)


def stored(w, dtype):
    """A stored tensor, rounded to the run's dtype, ready for arithmetic."""
    return w.astype(dtype, copy=False).astype(wide(dtype), copy=False)


def by_rows(op):
    """An operation on rows that know nothing of each other: large arrays in blocks, on all cores."""

    @wraps(op)
    def blocked(x, *args):
        if x.size <= BLOCK:
            return op(x, *args)
        rows = max(1, BLOCK // 4 // (x.size // len(x)))  # several arrays of one block in a core's cache
        first = op(x[:rows], *args)
        y = np.empty((len(x), *first.shape[1:]), first.dtype)
        y[:rows] = first

        def run(i):
            y[i : i + rows] = op(x[i : i + rows], *args)

        in_parallel(run, range(rows, len(x), rows))
        return y

    return blocked


def linear(x, w):
    """x W^T.  x: ... I   w: O I  ->  ... O"""
    if hasattr(w, "times"):  # an adapter beside its base has an order of operations of its own
        return w.times(x, linear, scale)
    a = x.astype(wide(x.dtype), copy=False)
    y = np.empty((*x.shape[:-1], len(w)), a.dtype)
    rows = max(1, max(BLOCK, 4 * x.size) // w.shape[1])  # the more tokens, the dearer it is to go over x again
    for i in range(0, len(w), rows):
        np.matmul(a, stored(w[i : i + rows], x.dtype).T, out=y[..., i : i + rows])
    return y.astype(x.dtype, copy=False)


def clipped_linear(x, w, inner, outer):
    """x W^T, x held within one pair of stored bounds and the result within another.  inner, outer: two 0-d each"""
    return clip(linear(clip(x, *inner), w), *outer)


def affine(x, w, b):
    """x W^T + b, rounded once.  x: ... I   w: O I   b: O  ->  ... O"""
    y = linear(x.astype(wide(x.dtype)), stored(w, x.dtype)) + stored(b, x.dtype)
    return y.astype(x.dtype, copy=False)


def embed(ids, w, dtype):
    """Rows of a table.  ids: T   w: V D  ->  T D"""
    return w[ids].astype(dtype)


def scale(x, factor):
    """x times a stored tensor or a Python constant; only the result is rounded, not the constant."""
    factor = stored(factor, x.dtype) if isinstance(factor, np.ndarray) else wide(x.dtype).type(factor)
    return (x.astype(wide(x.dtype), copy=False) * factor).astype(x.dtype, copy=False)


@by_rows
def rms_norm(x, w, eps):
    """x / rms(x) * w, over the last axis; w None where the norm has no weight.  x: ... D   w: D  ->  ... D

    Equals Gemma4RMSNorm: the weight multiplies as stored (Gemma 3 and older multiply by 1 + weight).
    """
    y = x.astype(wide(x.dtype))
    y *= 1 / np.sqrt((y * y).mean(-1, keepdims=True) + y.dtype.type(eps))
    if w is not None:
        y *= stored(w, x.dtype)
    return y.astype(x.dtype, copy=False)


@by_rows
def gelu_tanh(x):
    """x/2 (1 + tanh u), the approximation of GELU by Hendrycks and Gimpel 2016 (`gelu_pytorch_tanh`), elementwise.

    Written as x / (1 + e^(-2u)), which is the same: where u is far below 0 there is no 1 for tanh u to cancel.
    """
    y = x.astype(wide(x.dtype))
    u = y.dtype.type(0.044715) * y  # then in place: u = sqrt(2/pi) (y + 0.044715 y^3), times -2
    u *= y
    u *= y
    u += y
    u *= y.dtype.type(-2 * math.sqrt(2 / math.pi))
    with np.errstate(over="ignore"):  # exp overflows to infinity where the result is 0
        np.exp(u, out=u)
    u += 1
    y /= u
    return y.astype(x.dtype, copy=False)


def gated_gelu(gate, up):
    """gelu(gate) * up, elementwise: what a gated feed-forward does between its matrices."""
    return gelu_tanh(gate) * up


@by_rows
def layer_norm(x, w, eps, b=None):
    """(x - mean) / deviation * w + b, over the last axis; b None: no bias.  x: ... C   w, b: C  ->  ... C"""
    y = x.astype(wide(x.dtype))
    y = y - y.mean(-1, keepdims=True)
    y = y / np.sqrt((y * y).mean(-1, keepdims=True) + y.dtype.type(eps)) * stored(w, x.dtype)
    if b is not None:
        y += stored(b, x.dtype)
    return y.astype(x.dtype)


def sigmoid(y):
    with np.errstate(over="ignore"):  # exp overflows to infinity where the sigmoid is 0
        return 1 / (1 + np.exp(-y))


@by_rows
def silu(x):
    """x sigmoid(x), elementwise."""
    y = x.astype(wide(x.dtype))
    return (y * sigmoid(y)).astype(x.dtype)


@by_rows
def glu(x):
    """The first half, gated by the sigmoid of the second (Dauphin et al. 2017, arXiv 1612.08083).  ... 2C -> ... C"""
    value, gate = np.split(x.astype(wide(x.dtype)), 2, -1)
    return (value * sigmoid(gate)).astype(x.dtype)


def relu(x):
    """max(x, 0), elementwise."""
    return np.maximum(x, x.dtype.type(0))


@by_rows
def clip(x, low, high):
    """x held between two stored numbers.  low, high: 0-d"""
    low, high = low.astype(x.dtype), high.astype(x.dtype)
    if x.dtype.kind == "f":
        return np.clip(x, low, high)
    return np.minimum(np.maximum(x, low), high)  # np.clip would widen bfloat16


def softcap(x, cap):
    """cap tanh(x / cap): bounds x smoothly, leaves small x alone.  Elementwise."""
    cap = x.dtype.type(cap)
    return np.tanh(x / cap) * cap


def softmax(x, mask=None):
    """exp(x) / sum exp(x) over the last axis, where mask is True; elsewhere 0."""
    y = x.astype(wide(x.dtype), copy=False)
    if mask is not None:
        y = np.where(mask, y, -np.inf)
    y = y - y.max(-1, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(-1, keepdims=True)
    return y.astype(x.dtype, copy=False)


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
    """Turn each pair of lanes (i, i + H/2) by its angle (apply_rotary_pos_emb).  x: T N H   cos, sin: T H  ->  T N H"""
    left, right = np.split(x, 2, -1)
    turned = np.concatenate([-right, left], -1)
    return x * cos[:, None] + turned * sin[:, None]


def attend(q, k, v, mask, tap=Tap()):
    """Every query takes its softmax-weighted mean of the values.  q: T N H   k, v: S K H   mask: T S  ->  T N H

    The G = N / K query heads of a group read the same key/value head (Ainslie et al. 2023, arXiv 2305.13245).
    The scale is 1: q_norm and k_norm carry it.  Scores that the mask hides read as 0.  Equals eager_attention_forward.
    """
    if isinstance(mask, Spans) and not (tap.watches("scores") or tap.watches("probs")):
        return attend_in_blocks(q, k, v, mask, 128)
    (T, N, H), (S, K, _) = q.shape, k.shape
    q = q.reshape(T, K, N // K, H).transpose(1, 2, 0, 3)  # K G T H
    k, v = k.transpose(1, 2, 0)[:, None], v.transpose(1, 0, 2)[:, None]  # K 1 H S, K 1 S H
    scores = tap("scores", np.where(mask, matmul(q, k).reshape(N, T, S), q.dtype.type(0)), "N T S")
    probs = tap("probs", softmax(scores, mask), "N T S")
    context = matmul(probs.reshape(K, N // K, T, S), v)  # K G T H
    return context.transpose(2, 0, 1, 3).reshape(T, N, H)


def attend_all(q, k, v, tap=Tap()):
    """`attend` where everything sees everything.  q: I N H   k, v: I K H  ->  I N H"""
    if not (tap.watches("scores") or tap.watches("probs")):
        return attend_in_blocks(q, k, v, everything(len(q), len(k)), len(q))
    G = q.shape[1] // k.shape[1]
    keys, values = np.repeat(k.transpose(1, 2, 0), G, 0), np.repeat(v.transpose(1, 0, 2), G, 0)  # N H I, N I H
    scores = tap("scores", matmul(q.transpose(1, 0, 2), keys), "N I I")
    probs = tap("probs", softmax(scores), "N I I")
    return matmul(probs, values).transpose(1, 0, 2)


def attend_in_blocks(q, k, v, mask, most):
    """The same without the map of N T S, which is 6 GB for a large image: some queries, and the keys that they see.

    mask: Spans   most: queries to take together, at most  ->  T N H
    """
    T, N, H = q.shape
    K, G = k.shape[1], N // k.shape[1]
    context = np.empty_like(q)
    rows = max(1, min(most, 4 * BLOCK // (G * mask.S)))
    for t in range(0, T, rows):
        part = mask[t : t + rows]
        first, end = part.first.min(), part.end.max()
        seen = np.asarray(part)[:, first:end].repeat(G, 0)  # TG S
        for n in range(K):
            heads = slice(n * G, (n + 1) * G)
            scores = matmul(q[t : t + rows, heads].reshape(-1, H), k[first:end, n].T)  # TG S
            context[t : t + rows, heads] = average(scores, v[first:end, n], seen).reshape(-1, G, H)
    return context


def average(scores, v, seen):
    """softmax(scores) @ v, overwriting scores.  scores: T S   v: S H   seen: T S, bool  ->  T H"""
    if scores.dtype != wide(scores.dtype):
        return matmul(softmax(scores, seen), v)  # whose result is rounded between the two
    rows = max(1, BLOCK // 4 // scores.shape[1])

    def exponentials(i):
        part = scores[i : i + rows]
        if not seen[i : i + rows].all():
            part[~seen[i : i + rows]] = -np.inf
        part -= part.max(-1, keepdims=True)
        np.exp(part, out=part)

    in_parallel(exponentials, range(0, len(scores), rows))
    return matmul(scores, v) / scores.sum(-1, keepdims=True)


def softplus(x):
    """log(1 + e^x), elementwise."""
    return np.logaddexp(0, x.astype(wide(x.dtype), copy=False)).astype(x.dtype, copy=False)


def attend_frames(q, k, v, distances, frames, cap, tap=Tap()):
    """Attention to so many frames, this one and those before.  q, k, v: U N H   distances: R N H  ->  U N H"""
    U, R = len(q), len(distances)
    content = matmul(q[:, :, None], last_frames(k, R))  # U N 1 R
    position = matmul(q.transpose(1, 0, 2), distances.transpose(1, 2, 0))  # N U R
    scores = softcap(content[:, :, 0].transpose(1, 0, 2) + position, cap)
    back = np.arange(R)[::-1]
    seen = (back < frames) & (back <= np.arange(U)[:, None])
    scores = tap("scores", np.where(seen, scores, scores.dtype.type(0)), "N U R")
    probs = tap("probs", softmax(scores, seen), "N U R")
    context = matmul(last_frames(v, R), probs.transpose(1, 0, 2)[..., None])  # U N H 1
    return context[..., 0]


def attend_band(q, k, v, distances, per_dim_scale, cap, tap=Tap(), attend=attend_frames):
    """Attention to the last few frames, with a term for the distance.  q, k, v: U N H   distances: R N H  ->  U N H

    Row r of `distances` stands for frames R - 1 - r back (Dai et al. 2019, arXiv 1901.02860).  The farthest is never
    attended to: a frame sees R - 1 frames, itself included.  The soft cap comes before the mask.  Equals the chunked
    form of Gemma4AudioAttention, which computes a block of frames at a time; all of it in float32 as there.
    """
    H, real = q.shape[2], wide(q.dtype)
    per_dim = softplus(per_dim_scale.astype(q.dtype, copy=False))
    queries = q.astype(real) * real.type(H**-0.5 / math.log(2)) * per_dim.astype(real)
    keys = k.astype(real) * real.type(math.log(1 + math.e) / math.log(2))
    frames = len(distances) - 1
    return attend(queries, keys, v.astype(real), distances.astype(real), frames, cap, tap).astype(q.dtype)


def last_frames(x, R):
    """Each frame with the R - 1 before it, zeros where the sound has not begun.  x: U N H  ->  U N H R, a view"""
    before = np.zeros((R - 1, *x.shape[1:]), x.dtype)
    return np.lib.stride_tricks.sliding_window_view(np.concatenate([before, x]), R, axis=0)


def conv2d(x, w):
    """3 x 3 convolution in steps of 2, over a border of zeros.  x: B U M   w: C B 3 3  ->  C U/2 M/2, rounded up"""
    return filtered(windows(x), w, x.dtype)


def windows(x):
    """What each place of a 3 x 3 convolution in steps of 2 sees.  x: B U M  ->  U/2 M/2 B 3 3, a view"""
    places = x.astype(wide(x.dtype), copy=False).transpose(1, 2, 0)  # channels last: those of a place lie together
    bordered = np.pad(places, ((1, 1), (1, 1), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(bordered, (3, 3), axis=(0, 1))[::2, ::2]


def filtered(windows, w, dtype):
    """windows: U M B 3 3   w: C B 3 3  ->  C U M"""
    y = np.tensordot(windows, stored(w, dtype), ((3, 4, 2), (2, 3, 1)))
    return y.astype(dtype, copy=False).transpose(2, 0, 1)


def causal_conv(x, w):
    """One filter per channel, over this frame and those before it.  x: C U   w: C 1 k  ->  C U"""
    k = w.shape[-1]
    frames = x.astype(wide(x.dtype), copy=False).T  # U C: those of a frame lie together
    before = np.pad(frames, ((k - 1, 0), (0, 0)))
    filters = stored(w, x.dtype)
    y = sum(filters[:, 0, j] * before[j : j + len(frames)] for j in range(k))
    return y.astype(x.dtype, copy=False).T


def sinusoids(distances, C, dtype):
    """Sines, then cosines, of each distance at C / 2 rates.  distances: R  ->  R C   (Vaswani et al. 2017)

    The rates fall from 1 to 1/10000 radians per frame.  Every step is in the run's precision, as in Transformers.
    """
    rates = np.exp((np.arange(C // 2) * (-math.log(10000) / max(C // 2 - 1, 1))).astype(dtype))
    turn = distances[:, None].astype(dtype) * rates
    return np.concatenate([np.sin(turn), np.cos(turn)], -1)


def center(pixels, dtype):
    """Pixels from 0..1 to -1..1, rounded once to the run's dtype."""
    y = pixels.astype(wide(dtype))
    return (2 * (y - y.dtype.type(0.5))).astype(dtype)


def mean_of_bins(x, bins):
    """Mean of the rows of each bin, of which all have as many.  x: I C   bins: I, of 0..O-1  ->  O C"""
    y = x.astype(wide(x.dtype), copy=False)[np.argsort(bins, kind="stable")].reshape(bins.max() + 1, -1, x.shape[1])
    return (y * y.dtype.type(1 / y.shape[1])).sum(1).astype(x.dtype, copy=False)


def widen(x, factor):
    """x times a constant, left in float32: it may leave the range of the run's dtype."""
    return x.astype(wide(x.dtype)) * wide(x.dtype).type(factor)


def standardize(x, bias, scale, dtype):
    """(x - bias) * scale, on what `widen` left wide; large numbers cancel here.  x: O C   bias, scale: C  ->  O C"""
    return ((x - stored(bias, dtype)) * stored(scale, dtype)).astype(dtype)


def narrow(x, dtype):
    """What `widen` left wide, rounded to the run's dtype."""
    return x.astype(dtype, copy=False)


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


def each(run, items):
    """run(item) for each, in order.  They know nothing of each other, so that a twin may compute some at once."""
    return map(run, items)
