"""Twins of the slow operations, compiled by numba: same names, same arguments, same numbers but for rounding.

ops_numpy.py says what an operation is.  Here is how it gets fast: weights are read as they lie in the file and become
float32 in a register (one token, or a few) or in a core's cache (many tokens); attention keeps to what each query
sees; a sum is cut the same way whatever the number of threads, so that two runs have the same bits.  Each kernel lets
go of the interpreter and runs on a share of the rows in every thread of threads.py; BLAS is held to one thread, as each
of ours calls it for a block of its own.  A twin that has nothing to gain, as in a float64 run, calls its definition.

No flag here lets the compiler assume that numbers are finite: NaN and infinity come through.
"""

import threading
from functools import partial

import ml_dtypes
import numpy as np
from numba import njit, types
from numba.extending import overload

from numgemma import ops_numpy
from numgemma.masks import Spans, everything
from numgemma.threads import allowed, in_parallel, in_shares
from numgemma.trace import Tap

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BITS = {BFLOAT16: np.uint16, np.dtype(np.float16): np.int16, np.dtype(np.float32): np.float32}  # what kernels are given
EXACT = {np.dtype(np.float32): tuple(BITS), BFLOAT16: (BFLOAT16,)}  # run -> stored: others would be rounded first

FEW = 48  # tokens, up to which stored rows are multiplied as they are read; for more, BLAS is faster
SHARE = 1 << 18  # numbers of a matrix that are worth waking a thread for
KEYS = 256  # whose softmax is taken together, before blocks are joined
LEAST = 1 << 15  # numbers of an elementwise operation that are worth waking a thread for

SUMS = {"reassoc", "contract", "nsz"}  # sums may be taken in any order, and so in many lanes
PLAIN = {"contract"}  # an order that matters, as in `exp`


def kernel(order):
    """Compiled when first called, kept on disk; x / 0 is infinity, as everywhere in this package."""
    return njit(nogil=True, cache=True, error_model="numpy", fastmath=order)


# numbers


def number(stored):
    """A stored number as float32; known to kernels alone, by the type in which `BITS` hands it over."""


@overload(number)
def _(stored):
    if stored == types.uint16:  # bfloat16 is the upper half of a float32
        return lambda stored: np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)
    if stored == types.int16:
        return lambda stored: from_float16(np.uint32(np.uint16(stored)))
    return lambda stored: stored


@kernel(PLAIN)
def from_float16(h):
    """Exponent and fraction moved up, the bias set right by a product; exact for subnormal numbers too."""
    size = h & np.uint32(0x7FFF)
    finite = np.uint32(size << np.uint32(13)).view(np.float32) * np.float32(2.0**112)
    special = np.uint32(np.uint32(0x7F800000) | np.uint32(size << np.uint32(13))).view(np.float32)
    value = special if size >= np.uint32(0x7C00) else finite
    return -value if h & np.uint32(0x8000) else value


@kernel(PLAIN)
def exp(x):
    """e^x to one unit in the last place, without a branch, so that loops over it run in many lanes at once.

    x = n ln 2 + r with |r| <= ln(2)/2; ln 2 in two parts, the first exact in few bits; e^r by its series (Cephes' fit).
    """
    x = np.float32(-104.0) if x < np.float32(-104.0) else x  # e^-104 rounds to 0; NaN passes both
    x = np.float32(89.0) if x > np.float32(89.0) else x
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = (x - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * (r * r) + r + np.float32(1.0)
    whole = np.int32(n)
    half = whole >> np.int32(1)  # 2^n in two steps: it may leave the range of float32 before p comes back into it
    return p * power_of_two(half) * power_of_two(whole - half)


@kernel(PLAIN)
def power_of_two(n):
    return np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)


def bits(x):
    """An array as kernels take it: read-only, and bfloat16 and float16 as integers."""
    x = x.view(BITS[x.dtype])
    x.flags.writeable = False
    return x


def fits(x, *stored):
    """Whether there is a kernel for a run in x's precision on tensors as they are stored."""
    exact = EXACT.get(x.dtype, ())
    return x.dtype in exact and all(w is None or w.dtype in exact for w in stored)


def floats(x):
    return np.ascontiguousarray(x, np.float32)


# products of matrices


@kernel(SUMS)
def times_one(w, x, y, first, end):
    """y = W x, for some of the rows of W."""
    for o in range(first, end):
        total = np.float32(0)
        for i in range(w.shape[1]):
            total += number(w[o, i]) * x[i]
        y[o] = total


@kernel(SUMS)
def times_few(w, x, y, first, end):
    """Y = X W^T for tiles `first` to end - 1 of four rows of W, each read once for all of X, whose rows come by fours."""
    rows = np.empty((4, w.shape[1]), np.float32)
    for tile in range(first, end):
        o = min(4 * tile, len(w) - 4)
        for n in range(4):
            for i in range(w.shape[1]):
                rows[n, i] = number(w[o + n, i])
        for t in range(0, len(x), 4):
            sums = four_by_four(rows[0], rows[1], rows[2], rows[3], x[t], x[t + 1], x[t + 2], x[t + 3])
            for n in range(16):
                y[t + n % 4, o + n // 4] = sums[n]


@kernel(SUMS)
def four_by_four(a, b, c, d, x0, x1, x2, x3):
    """Sixteen scalar products at once: eight numbers loaded for sixteen products, and all sums stay in registers."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = np.float32(0)
    for i in range(len(a)):
        a0, a1, a2, a3 = a0 + a[i] * x0[i], a1 + a[i] * x1[i], a2 + a[i] * x2[i], a3 + a[i] * x3[i]
        b0, b1, b2, b3 = b0 + b[i] * x0[i], b1 + b[i] * x1[i], b2 + b[i] * x2[i], b3 + b[i] * x3[i]
        c0, c1, c2, c3 = c0 + c[i] * x0[i], c1 + c[i] * x1[i], c2 + c[i] * x2[i], c3 + c[i] * x3[i]
        d0, d1, d2, d3 = d0 + d[i] * x0[i], d1 + d[i] * x1[i], d2 + d[i] * x2[i], d3 + d[i] * x3[i]
    return a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3


@kernel(PLAIN)
def expand(w, into):
    for o in range(w.shape[0]):
        for i in range(w.shape[1]):
            into[o, i] = number(w[o, i])


local = threading.local()


def scratch(name, *shape):
    """Memory of this thread that is used again and again: new pages would cost more than the work in them."""
    size = int(np.prod(shape))
    held = getattr(local, name, None)
    if held is None or held.size < size:
        held = np.empty(size, np.float32)
        setattr(local, name, held)
    return held[:size].reshape(shape)


def linear(x, w):
    """x W^T.  x: ... I   w: O I  ->  ... O"""
    if not fits(x, w) or not w.flags.c_contiguous or not x.size:
        return ops_numpy.linear(x, w)
    a = floats(x).reshape(-1, x.shape[-1])
    y = few(a, bits(w)) if len(a) <= FEW else many(a, w)
    return y.reshape(*x.shape[:-1], len(w)).astype(x.dtype, copy=False)


def few(a, w):
    """A W^T for one token, or for some: bound by reading W, as long as they are few."""
    if len(a) == 1 or len(w) < 4:
        y = np.empty((len(a), len(w)), np.float32)
        for t in range(len(a)):
            share = partial(times_one, w, a[t], y[t])
            in_shares(share, len(w), max(1, SHARE // w.shape[1]))
        return y
    by_fours = np.pad(a, ((0, -len(a) % 4), (0, 0)))
    y = np.empty((len(by_fours), len(w)), np.float32)
    in_shares(partial(times_few, w, by_fours, y), -(-len(w) // 4), max(1, SHARE // (w.size // len(w) * len(y))))
    return y[: len(a)]


def many(a, w):
    """A W^T by BLAS: each thread takes blocks of rows of W, as float32 in its cache.

    A sum is the same in a block of any size that is not tiny: only there OpenBLAS adds in another order.
    """
    y = np.empty((len(a), len(w)), np.float32)
    size = np.clip(4 * a.size, 1 << 20, 1 << 22)  # the more tokens, the dearer it is to go over them for each block
    threads = allowed()
    blocks = max(1, min(threads * -(-w.size // (threads * size)), len(a) * w.size >> 21))

    def block(n):
        rows = slice(n * len(w) // blocks, (n + 1) * len(w) // blocks)
        part = w[rows]
        if w.dtype != np.float32:
            part = scratch("rows", *part.shape)
            expand(bits(w[rows]), part)
        np.matmul(a, part.T, out=y[:, rows])

    in_parallel(block, range(blocks))
    return y


# along a row


@kernel(SUMS)
def norm_rows(x, w, eps, y, first, end):
    D = x.shape[1]
    for t in range(first, end):
        squares = np.float32(0)
        for i in range(D):
            squares += x[t, i] * x[t, i]
        factor = np.float32(1) / np.sqrt(squares / np.float32(D) + eps)
        for i in range(D):
            y[t, i] = x[t, i] * factor * number(w[i])


ONES: dict[int, np.ndarray] = {}


def rms_norm(x, w, eps):
    """x / rms(x) * w, over the last axis; w None where the norm has no weight.  x: ... D   w: D  ->  ... D"""
    if not fits(x, w):
        return ops_numpy.rms_norm(x, w, eps)
    D = x.shape[-1]
    w = ONES.setdefault(D, np.ones(D, np.float32)) if w is None else w
    a, w, eps = floats(x).reshape(-1, D), bits(w), np.float32(eps)
    y = np.empty_like(a)
    in_shares(partial(norm_rows, a, w, eps, y), len(a), max(1, LEAST // D))
    return y.reshape(x.shape).astype(x.dtype, copy=False)


@kernel(PLAIN)
def turn_rows(x, cos, sin, y, first, end):
    half = x.shape[2] // 2
    for t in range(first, end):
        for n in range(x.shape[1]):
            for i in range(half):
                left, right = x[t, n, i], x[t, n, i + half]
                y[t, n, i] = left * cos[t, i] - right * sin[t, i]
                y[t, n, i + half] = right * cos[t, i + half] + left * sin[t, i + half]


def rope(x, cos, sin):
    """Turn each pair of lanes (i, i + H/2) by its angle.  x: T N H   cos, sin: T H  ->  T N H"""
    if not x.dtype == cos.dtype == sin.dtype == np.float32:
        return ops_numpy.rope(x, cos, sin)  # a bfloat16 run rounds between the steps
    x, cos, sin = floats(x), floats(cos), floats(sin)
    y = np.empty_like(x)
    least = max(1, LEAST // (x.shape[1] * x.shape[2]))
    in_shares(partial(turn_rows, x, cos, sin, y), len(x), least)
    return y


@kernel(PLAIN)
def gelu_all(x, y):
    """x / 2 (1 + tanh u) = x / (1 + e^(-2u))."""
    for i in range(len(x)):
        u = x[i] * (np.float32(0.7978845608) + np.float32(0.7978845608 * 0.044715) * x[i] * x[i])
        y[i] = x[i] / (np.float32(1) + exp(np.float32(-2) * u))


def gelu_tanh(x):
    """The tanh approximation of GELU, elementwise."""
    if not fits(x):
        return ops_numpy.gelu_tanh(x)
    a = floats(x).ravel()
    y = np.empty_like(a)
    in_shares(lambda first, end: gelu_all(a[first:end], y[first:end]), len(a), LEAST)
    return y.reshape(x.shape).astype(x.dtype, copy=False)


# attention


def attend(q, k, v, mask, tap=Tap()):
    """Every query takes its softmax-weighted mean of the values.  q: T N H   k, v: S K H   mask: T S  ->  T N H

    Without the map of T x S, unless somebody watches it; keys and values may be stored in fewer bits than the run has.
    """
    watched = tap.watches("scores") or tap.watches("probs")
    if watched or q.dtype != np.float32 or k.dtype not in BITS or not isinstance(mask, Spans):
        return ops_numpy.attend(q, k, v, mask, tap)
    if len(q) <= 4:
        return attend_few(q, k, v, mask)
    return attend_many(q, k, v, mask, 128)


def attend_all(q, k, v, tap=Tap()):
    """`attend` where everything sees everything.  q: I N H   k, v: I K H  ->  I N H"""
    if tap.watches("scores") or tap.watches("probs") or q.dtype != np.float32:
        return ops_numpy.attend_all(q, k, v, tap)
    return attend_many(q, k, v, everything(len(q), len(k)), len(q))


def attend_few(q, k, v, mask):
    """Blocks of keys, each with a softmax of its own, are joined at the end (Milakov and Gimelshein 2018).

    mask: Spans  ->  T N H
    """
    (T, N, H), q, k, v = q.shape, floats(q), bits(k), bits(v)
    context = np.empty_like(q)
    for t in range(T):
        first, end = int(mask.first[t]), int(mask.end[t])
        blocks = -(-(end - first) // KEYS)
        top, total = np.empty((2, blocks, N), np.float32)
        means = np.empty((blocks, N, H), np.float32)

        share = partial(attend_blocks, q[t], k, v, first, end, top, total, means)
        in_shares(share, blocks, max(1, SHARE // (KEYS * N * H)))
        join(top, total, means, context[t])
    return context


@kernel(SUMS)
def attend_blocks(q, k, v, first, end, top, total, means, b, stop):
    """For blocks b to stop - 1 of keys: the largest score, the sum of exponentials, and the sum of values by these."""
    N, H = q.shape
    G = N // k.shape[1]
    scores = np.empty(KEYS, np.float32)
    for block in range(b, stop):
        low = first + block * KEYS
        S = min(KEYS, end - low)
        for n in range(N):
            largest = np.float32(-np.inf)
            for s in range(S):
                score = np.float32(0)
                for h in range(H):
                    score += q[n, h] * number(k[low + s, n // G, h])
                scores[s] = score
                largest = max(largest, score)
            exponentials(scores[:S], largest)
            mean, weight = means[block, n], np.float32(0)
            mean[:] = 0
            for s in range(S):
                weight += scores[s]
                for h in range(H):
                    mean[h] += scores[s] * number(v[low + s, n // G, h])
            top[block, n], total[block, n] = largest, weight


@kernel(PLAIN)
def exponentials(scores, largest):
    for s in range(len(scores)):
        scores[s] = exp(scores[s] - largest)


@kernel(PLAIN)
def join(top, total, means, context):
    """One softmax out of those of all blocks."""
    blocks, N, H = means.shape
    for n in range(N):
        largest = top[0, n]
        for b in range(1, blocks):
            largest = max(largest, top[b, n])
        weight = np.float32(0)
        context[n] = 0
        for b in range(blocks):
            share = exp(top[b, n] - largest)
            weight += share * total[b, n]
            for h in range(H):
                context[n, h] += share * means[b, n, h]
        for h in range(H):
            context[n, h] /= weight


def attend_many(q, k, v, mask, most):
    """As ops_numpy.attend_in_blocks; each thread takes heads and blocks of queries of its own."""
    T, N, H = q.shape
    K, G = k.shape[1], N // k.shape[1]
    context = np.empty_like(q)
    rows = max(1, min(most, 1 + ops_numpy.BLOCK // (G * mask.S)))

    def block(at):
        t, n = at
        heads, part = slice(n * G, (n + 1) * G), mask[t : t + rows]
        first, end = int(part.first.min()), int(part.end.max())
        queries = floats(q[t : t + rows, heads]).reshape(-1, H)  # TG H
        scores = scratch("scores", len(queries), end - first)
        np.matmul(queries, k[first:end, n].astype(np.float32, copy=False).T, out=scores)
        total = softmax_rows(scores, part.first - first, part.end - first, G)
        mean = scores @ v[first:end, n].astype(np.float32, copy=False)
        context[t : t + rows, heads] = (mean / total[:, None]).reshape(-1, G, H)

    in_parallel(block, [(t, n) for t in range(0, T, rows) for n in range(K)])
    return context


@kernel(SUMS)
def softmax_rows(scores, first, end, G):
    """Scores to exponentials, zero where a query does not look; returns their sums.  scores: TG S  ->  TG"""
    total = np.empty(len(scores), np.float32)
    for r in range(len(scores)):
        low, high = first[r // G], end[r // G]
        seen = scores[r, low:high]
        largest = np.float32(-np.inf)
        for s in range(len(seen)):
            largest = max(largest, seen[s])
        exponentials(seen, largest)
        weight = np.float32(0)
        for s in range(len(seen)):
            weight += seen[s]
        total[r] = weight
        scores[r, :low] = 0
        scores[r, high:] = 0
    return total
