"""Solutions of 14_four_bits.ipynb: each stands in for the cell that begins with the same line."""


# exercise 14.1: weights from codes and scales, one scale for each 32 codes of a row
def decoded(q, s):
    """q: O I, codes   s: O I/32, scales  ->  O I"""
    return q * np.repeat(s, 32, axis=1)


# exercise 14.2: two codes into each byte, the first of a pair in the low half
def packed(q):
    """q: O I, codes from -8 to 7  ->  O I/2, uint8"""
    low, high = q[:, 0::2] + 8, q[:, 1::2] + 8
    return (low + 16 * high).astype(np.uint8)


# exercise 14.3: the share of weights that lie farther than half a step (let 1 % of a step pass for float rounding)
def beyond(W_hat, W, s):
    """W_hat, W: O I   s: O I/32  ->  a number from 0 to 1"""
    return (np.abs(W_hat - W) > 0.51 * np.repeat(s, 32, axis=1)).mean()


# exercise 14.4: how far apart two runs are after each layer: RMS of the difference over RMS of the first
def shares(a, b):
    """a, b: dumps with layers.0.out ... layers.5.out, T D each  ->  6 numbers"""
    names = [f"layers.{i}.out" for i in range(6)]
    return [np.linalg.norm(b[name] - a[name]) / np.linalg.norm(a[name]) for name in names]
