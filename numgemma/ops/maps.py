"""Operations on maps: rows and columns of a picture, or frames and bins of a sound, the channels last.

Precision as in definitions.py.  Additions to the axis key in attention.py:

    Y, X  rows and columns of a map        B, C  channels before, channels after        k  side of a filter
"""

import numpy as np

from numgemma.masks import everything
from numgemma.ops.definitions import attend_in_blocks, matmul, softmax, softplus, stored, wide
from numgemma.trace import Tap


def conv(x, w, stride=1, b=None):
    """k x k convolution, and a bias where there is one.  x: Y X B   w: C B k k   b: C  ->  Y X C, over the stride"""
    filters = stored(w, x.dtype)
    y = sum(part @ filters[:, :, i, j].T for (i, j), part in parts(x, w.shape[-1], stride))
    return (y if b is None else y + stored(b, x.dtype)).astype(x.dtype, copy=False)


def depthwise(x, w, stride=1):
    """A k x k filter for each channel.  x: Y X C   w: C 1 k k  ->  Y X C, over the stride, rounded up"""
    filters = stored(w, x.dtype)
    y = sum(part * filters[:, 0, i, j] for (i, j), part in parts(x, w.shape[-1], stride))
    return y.astype(x.dtype, copy=False)


def parts(x, k, stride):
    """For each place of a filter, what it meets, over a border of zeros.  x: Y X B  ->  pairs (i, j), Y X B

    TensorFlow's SAME: the border has what the last step lacks; where that is odd, one more behind than before.
    """
    (rows, before_y), (columns, before_x) = (border(n, k, stride) for n in x.shape[:2])
    across, down = (-(-n // stride) for n in x.shape[:2])
    around = (before_y, rows - before_y), (before_x, columns - before_x), (0, 0)
    bordered = np.pad(x.astype(wide(x.dtype), copy=False), around)
    for i in range(k):
        for j in range(k):
            yield (i, j), bordered[i::stride, j::stride][:across, :down]


def border(n, k, stride):
    """Zeros along a side of n: how many in all, and how many of them before."""
    total = max((-(-n // stride) - 1) * stride + k - n, 0)
    return total, total // 2


def channel_norm(x, w, eps):
    """`rms_norm` in the run's precision throughout, as timm's RmsNorm2d rounds.  x: Y X C   w: C  ->  Y X C

    The reciprocal root is rounded once, as PyTorch's rsqrt does but for the rest of a map that fills no vector.
    """
    square = (x * x).astype(wide(x.dtype), copy=False).mean(-1, keepdims=True).astype(x.dtype, copy=False)
    root = np.sqrt((square + x.dtype.type(eps)).astype(wide(x.dtype), copy=False))
    return x * (1 / root).astype(x.dtype, copy=False) * w.astype(x.dtype, copy=False)


def attend_places(q, k, v, tap=Tap()):
    """Every place asks all that are asked; heads share their key and value.  q: I N H   k, v: B H  ->  I N H"""
    if not (tap.watches("scores") or tap.watches("probs")):
        return attend_in_blocks(q, k[:, None], v[:, None], everything(len(q), len(k)), len(q))
    scores = tap("scores", matmul(q.transpose(1, 0, 2), k.T), "N I B")
    probs = tap("probs", softmax(scores), "N I B")
    return matmul(probs, v).transpose(1, 0, 2)


def mean_of_squares(x, k):
    """Mean of each square of k x k.  x: Y X C  ->  Y/k X/k C"""
    rows, columns, channels = x.shape
    squares = x.astype(wide(x.dtype), copy=False).reshape(rows // k, k, columns // k, k, channels)
    return squares.mean((1, 3)).astype(x.dtype, copy=False)


def conv_ahead(x, w):
    """3 x 3 in steps of 2: a frame sees itself and two ahead, a bin its neighbours.  x: U M B   w: C B 3 3  ->  U M C

    Half the frames and half the bins, rounded up.
    """
    frames = np.pad(x.astype(wide(x.dtype), copy=False), ((0, 2), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(frames, (3, 3), axis=(0, 1))[::2, ::2]  # U M B 3 3
    return np.tensordot(windows, stored(w, x.dtype), ((3, 4, 2), (2, 3, 1))).astype(x.dtype, copy=False)


def cumulative_norm(x, w, eps):
    """Over all bins and channels of this frame and those before.  x: U M C   w: C  ->  U M C

    The variance adds up how far each frame lay from the mean as it was then.  In float32 or wider, rounded once.
    Equals Gemma3nAudioCumulativeGroupNorm.
    """
    y = x.astype(wide(x.dtype))
    n = np.cumsum(np.full(len(y), y[0].size, y.dtype))[:, None, None]
    away = y - np.cumsum(y.sum((1, 2), keepdims=True), 0) / n
    variance = np.cumsum((away * away).sum((1, 2), keepdims=True), 0) / n
    return (away / np.sqrt(variance + y.dtype.type(eps)) * stored(w, x.dtype)).astype(x.dtype, copy=False)


def scale_queries(q, per_dim_scale):
    """q / sqrt(H), and each lane by the softplus of its own number over softplus(0).  q: U N H  ->  U N H

    Rounded after each factor, the constant too, as in Gemma3nAudioAttention.
    """
    constant = q.dtype.type(q.shape[-1] ** -0.5 / np.log(2))
    return q * constant * softplus(per_dim_scale.astype(q.dtype, copy=False))
