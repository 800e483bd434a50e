"""The compiled loops of a sound's tower: what a frame takes from those just before it, and a gated half.

As in kernels.py, `first` and `end` say which frames are this share's.
"""

import numpy as np

from numgemma.ops.compiled import kernel
from numgemma.ops.kernels import PLAIN, SUMS, exp, exponentials, largest_of, tanh

EXACT: set[str] = set()  # each product and each sum rounded, as NumPy does


@kernel(SUMS)
def attend_last(q, k, v, distances, cap, context, first, end):
    """definitions.attend_frames, to as many as there are distances.  q, k, v, context: U N H   distances: R N H"""
    (_, N, H), R = q.shape, len(distances)
    scores = np.empty(R, np.float32)
    for u in range(first, end):
        seen = min(R, u + 1)
        for n in range(N):
            for back in range(seen):
                content = position = np.float32(0)
                for h in range(H):
                    content += q[u, n, h] * k[u - back, n, h]
                    position += q[u, n, h] * distances[R - 1 - back, n, h]
                scores[back] = tanh((content + position) / cap) * cap
            total = exponentials(scores[:seen], largest_of(scores[:seen]))
            mean = context[u, n]
            mean[:] = 0
            for back in range(seen):
                for h in range(H):
                    mean[h] += scores[back] / total * v[u - back, n, h]


@kernel(EXACT)
def filter_last(x, w, y, first, end):
    """definitions.causal_conv.  x, y: U C   w: k C, the nearest frame's last"""
    k = len(w)
    for u in range(first, end):
        y[u] = 0
        for j in range(max(0, k - 1 - u), k):
            for c in range(x.shape[1]):
                y[u, c] += w[j, c] * x[u - k + 1 + j, c]


@kernel(PLAIN)
def gate_halves(x, y, first, end):
    """definitions.glu.  x: U 2C   y: U C"""
    C = y.shape[1]
    for u in range(first, end):
        for c in range(C):
            y[u, c] = x[u, c] / (np.float32(1) + exp(-x[u, C + c]))
