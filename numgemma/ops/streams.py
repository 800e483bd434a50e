"""Operations of Gemma 3n's decoder: between its streams, and on the gates of a sparse feed-forward.

Precision as in definitions.py; where Transformers rounds between the steps of one, so does it here.
"""

from statistics import NormalDist

import numpy as np

from numgemma.ops.definitions import by_rows, matmul, relu, wide


def tanh(x):
    """Elementwise; only the result is rounded."""
    return np.tanh(x.astype(wide(x.dtype), copy=False)).astype(x.dtype, copy=False)


def divide(x, constant):
    """x over a Python constant; only the result is rounded, not the constant."""
    real = wide(x.dtype)
    return (x.astype(real, copy=False) / real.type(constant)).astype(x.dtype, copy=False)


def mean_square(x):
    """Mean of x^2 over the last axis, the squares rounded to the run's precision first.  ... D  ->  ... 1"""
    return (x * x).astype(wide(x.dtype), copy=False).mean(-1, keepdims=True).astype(x.dtype, copy=False)


def as_large_as(y, like):
    """y, scaled to the root mean square of `like`, token by token.  y, like: ... D  ->  ... D

    The floor is on the mean of the squares, before the root.  Every step is in the run's precision, as in
    Gemma3nTextModel.
    """
    have = np.maximum(mean_square(y), y.dtype.type(1e-5))
    return y * np.sqrt(mean_square(like)) / np.sqrt(have)


def mix(s, coefs):
    """Into each stream, the weighted sum of all.  s: A T D   coefs: T into from  ->  A T D"""
    y = matmul(coefs, s.transpose(1, 0, 2))  # T A D
    return y.transpose(1, 0, 2)


def mean_of_streams(s):
    """Mean over the first axis, rounded once.  A T D  ->  T D"""
    return s.astype(wide(s.dtype), copy=False).mean(0).astype(s.dtype, copy=False)


@by_rows
def gaussian_topk(x, sparsity):
    """How far x exceeds a threshold, else 0.  x: ... F  ->  ... F

    Were a row's numbers Gaussian, a share `sparsity` of them would lie below the threshold: mean + m deviations, the
    deviation that of the row itself.  Every step is in the run's precision, as in Gemma3nTextMLP.
    """
    y = x.astype(wide(x.dtype), copy=False)
    mean, deviation = (f(y, -1, keepdims=True).astype(x.dtype, copy=False) for f in (np.mean, np.std))
    return relu(x - (mean + deviation * x.dtype.type(NormalDist().inv_cdf(sparsity))))
