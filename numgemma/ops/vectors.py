"""Operations that make one vector of many: EmbeddingGemma's end.  Precision as in definitions.py.

Each rounds where sentence-transformers' Pooling and Normalize do.
"""

import numpy as np

from numgemma.ops.definitions import wide

LEAST = 1e-12  # length of a vector that is divided by it


def mean_of_tokens(x):
    """Mean over the first axis; the sum is rounded, and the count.  T W  ->  W"""
    total = x.astype(wide(x.dtype), copy=False).sum(0).astype(x.dtype, copy=False)
    return total / x.dtype.type(len(x))


def unit(x):
    """x over its length; the length is rounded too.  W  ->  W   (equals torch.nn.functional.normalize)"""
    y = x.astype(wide(x.dtype), copy=False)
    return x / np.maximum(np.sqrt((y * y).sum()).astype(x.dtype), x.dtype.type(LEAST))
