"""Operations of DiffusionGemma's decoder, as those in definitions.py."""

import numpy as np

from numgemma.ops.definitions import BLOCK, softmax, stored, wide


def mean_row(logits, w, dtype):
    """The mean row of a table under softmax(logits), which is rounded to `dtype` first.  T V, V D  ->  T D"""
    probs = softmax(logits.astype(wide(logits.dtype), copy=False)).astype(dtype).astype(wide(dtype), copy=False)
    rows = max(1, BLOCK // w.shape[1])
    mean = np.zeros((len(probs), w.shape[1]), probs.dtype)
    for i in range(0, len(w), rows):
        mean += probs[:, i : i + rows] @ stored(w[i : i + rows], dtype)
    return mean.astype(dtype, copy=False)
