"""Twins of the slow operations, on compiled loops: same names, same arguments, same numbers but for rounding.

definitions.py says what an operation is.  Here is how it gets fast: weights are read as they lie in the file and become
float32 in a register (one token, or a few) or in a core's cache (many tokens); attention keeps to what each query sees;
a sum is cut the same way whatever the number of threads, so that two runs have the same bits.  Each thread of
threads.py takes a share of the rows; BLAS, which convolutions take, is held to one thread, as each of ours calls it for
a block of its own.  A twin that has nothing to gain, as in a float64 run, calls its definition.
"""

import itertools
import threading
from functools import partial

import numpy as np

from numgemma.masks import Spans, everything
from numgemma.ops import attending, coded, definitions, kernels, last, pairs, relay, tiles
from numgemma.ops.decoded import decoded
from numgemma.ops.kernels import KEYS
from numgemma.ops.threads import allowed, in_parallel, in_shares
from numgemma.smallfloats import BFLOAT16
from numgemma.streaming import rows_needed
from numgemma.trace import Tap

# what kernels are given; as dtypes, which NumPy takes sooner than types: one token is hundreds of operations
FLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
BITS = {BFLOAT16: np.dtype(np.uint16), FLOAT16: np.dtype(np.int16), FLOAT32: FLOAT32}
# run, stored: others would be rounded first
EXACT = {*itertools.product([FLOAT32], [*BITS, None]), *itertools.product([BFLOAT16], [BFLOAT16, None])}

BLOCK = 1 << 22  # codes of a matrix that are float32 at a time, about
DRAFTS = 8  # tokens, up to which stored rows are multiplied as they are read
WORK = 1 << 23  # products of numbers that are worth waking a thread for
SHARE = 1 << 18  # numbers of a matrix that are worth waking a thread for
FRAMES = 64  # of a convolution that a thread takes at once
ROWS = 1024  # queries times heads of a group that a thread takes at once
LEAST = 1 << 15  # numbers of an elementwise operation that are worth waking a thread for


def bits(x):
    """An array as kernels take it: read-only, and bfloat16 and float16 as integers."""
    x = x.view(BITS.get(x.dtype, x.dtype))
    if x.flags.writeable:
        x.flags.writeable = False
    return x


def fits(x, w=None):
    """Whether there is a kernel for a run in x's precision on a tensor as it is stored."""
    return (x.dtype, None if w is None else w.dtype) in EXACT


def floats(x):
    return np.ascontiguousarray(x, np.float32)


def plain(x, *shape):
    """An array of the run as kernels read or fill it, bfloat16 as integers."""
    x = np.ascontiguousarray(x).reshape(shape)
    return x if x.dtype == np.float32 else x.view(BITS[x.dtype])


# products of matrices


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
    if hasattr(w, "times"):
        return w.times(x, linear, definitions.scale)
    if not isinstance(w, np.ndarray) and x.dtype == np.float32 and x.size:
        return of_codes(floats(x).reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], len(w))
    if not fits(x, w) or not w.flags.c_contiguous or not x.size:
        return definitions.linear(x, w)
    a = x.reshape(-1, x.shape[-1])
    if len(a) == 1:
        y = relay.times(bits(w), floats(a), BITS[x.dtype]).view(x.dtype)
    else:
        y = rounded(relay.times(bits(w), floats(a)) if len(a) <= DRAFTS else many(*pairs.given(a, w)), x.dtype)
    return y.reshape(*x.shape[:-1], len(w))


def rounded(y, dtype):
    """float32 as a run of that precision has it."""
    if y.dtype == dtype:
        return y
    z = np.empty(y.shape, dtype)
    a, b = y.reshape(-1), plain(z, -1)
    in_shares(lambda first, end: kernels.round_all(a[first:end], b[first:end]), y.size, LEAST)
    return z


def embed(ids, w, dtype):
    """Rows of a table.  ids: T   w: V D  ->  T D"""
    rows_needed(ids, w)
    return definitions.embed(ids, w, dtype)


def affine(x, w, b):
    """x W^T + b, rounded once.  x: ... I   w: O I   b: O  ->  ... O"""
    if x.dtype != np.float32:
        return definitions.affine(x, w, b)
    return linear(x, w) + definitions.stored(b, x.dtype)


def of_codes(a, w):
    """A W^T of a matrix that is stored as codes: as they lie for a few tokens, decoded block by block for more."""
    rows = [y for one in a if (y := coded.times(one, w)) is not None] if len(a) <= DRAFTS else []
    return np.stack(rows) if len(rows) == len(a) else many(a, w)


def many(a, w):
    """A W^T by tiles, which have the same bits wherever W is cut: each thread takes rows of it, some at a time."""
    y, panels = np.empty((len(a), len(w)), np.float32), -(-len(w) // tiles.WIDTH)
    wanted = max(4 * allowed(), w.size // BLOCK)  # so that no thread waits long for another at the end
    pieces = max(1, min(panels, wanted, len(a) * w.size // WORK))
    edges = [*(panels * n // pieces * tiles.WIDTH for n in range(pieces)), len(w)]

    def piece(edge):
        tiles.times_many(bits(rows_of(w, *edge)), bits(a), y, edge[0])

    in_parallel(piece, itertools.pairwise(edges))
    return y


def rows_of(w, first, end):
    """Some rows as they lie, or of codes as numbers, in memory that the next call uses again."""
    if isinstance(w, np.ndarray):
        return np.ascontiguousarray(w[first:end])
    return decoded(w, slice(first, end), scratch("rows", end - first, w.shape[1]))


def clipped_linear(x, w, inner, outer):
    """x W^T, x held within one pair of stored bounds and the result within another.  inner, outer: two 0-d each"""
    if x.dtype != np.float32:
        return definitions.clip(linear(definitions.clip(x, *inner), w), *outer)
    y = linear(hold(floats(x), inner, scratch("held", *x.shape)), w)
    return hold(y, outer, y)  # nobody else has it yet


def hold(x, bounds, into):
    low, high = (bound.astype(np.float32) for bound in bounds)
    a, b = x.reshape(-1), into.reshape(-1)
    in_shares(lambda first, end: np.clip(a[first:end], low, high, out=b[first:end]), len(a), LEAST)
    return into


def conv2d(x, w):
    """3 x 3 convolution in steps of 2, over a border of zeros.  x: B U M   w: C B 3 3  ->  C U/2 M/2, rounded up"""
    windows = definitions.windows(x)
    y = np.empty((*windows.shape[:2], len(w)), x.dtype).transpose(2, 0, 1)

    def block(u):
        y[:, u : u + FRAMES] = definitions.filtered(windows[u : u + FRAMES], w, x.dtype)

    in_parallel(block, range(0, len(windows), FRAMES))
    return y


def causal_conv(x, w):
    """One filter per channel, over this frame and those before it.  x: C U   w: C 1 k  ->  C U"""
    if x.dtype != np.float32:
        return definitions.causal_conv(x, w)
    y = np.empty(x.shape[::-1], np.float32)  # those of a frame lie together
    share = partial(last.filter_last, floats(x.T), floats(definitions.stored(w, x.dtype)[:, 0].T), y)
    in_shares(share, len(y), max(1, LEAST // y.shape[1]))
    return y.T


def each(run, items):
    """run(item) for each, in order; every thread takes some of them.

    Where threads wait for shares of products, as while one token is computed, each item has all of them.
    """
    return map(run, items) if relay.waited() else in_parallel(run, items)


# along a row

ONES: dict[int, np.ndarray] = {}


def rms_norm(x, w, eps):
    """x / rms(x) * w, over the last axis; w None where the norm has no weight.  x: ... D   w: D  ->  ... D"""
    if not fits(x, w):
        return definitions.rms_norm(x, w, eps)
    D = x.shape[-1]
    w = ONES.setdefault(D, np.ones(D, np.float32)) if w is None else w
    y = np.empty(x.shape, x.dtype)
    share = partial(kernels.norm_rows, plain(x, -1, D), bits(w), np.float32(eps), plain(y, -1, D))
    in_shares(share, x.size // D, max(1, LEAST // D))
    return y


def rope(x, cos, sin):
    """Turn each pair of lanes (i, i + H/2) by its angle.  x: T N H   cos, sin: T H  ->  T N H"""
    if not (fits(x) and x.dtype == cos.dtype == sin.dtype):
        return definitions.rope(x, cos, sin)
    y = np.empty(x.shape, x.dtype)
    given = (plain(a, *a.shape) for a in (x, cos, sin, y))
    in_shares(partial(kernels.turn_rows, *given), len(x), max(1, LEAST // (x.shape[1] * x.shape[2])))
    return y


def gated_gelu(gate, up):
    """gelu(gate) * up, elementwise: what a gated feed-forward does between its matrices."""
    if not (fits(gate) and gate.dtype == up.dtype and gate.shape == up.shape):
        return gelu_tanh(gate) * up
    return elementwise(kernels.gate_all, gate, up)


def gelu_tanh(x):
    """The tanh approximation of GELU, elementwise."""
    return elementwise(kernels.gelu_all, x) if fits(x) else definitions.gelu_tanh(x)


def silu(x):
    """x sigmoid(x), elementwise."""
    return elementwise(kernels.silu_all, x) if fits(x) else definitions.silu(x)


def glu(x):
    """The first half, gated by the sigmoid of the second.  ... 2C -> ... C"""
    if x.dtype != np.float32:
        return definitions.glu(x)
    C = x.shape[-1] // 2
    y = np.empty((*x.shape[:-1], C), np.float32)
    share = partial(last.gate_halves, plain(x, -1, 2 * C), plain(y, -1, C))
    in_shares(share, y.size // C, max(1, LEAST // C))
    return y


def softcap(x, cap):
    """cap tanh(x / cap): bounds x smoothly, leaves small x alone.  Elementwise."""
    if not fits(x):
        return definitions.softcap(x, cap)
    cap = np.float32(x.dtype.type(cap))
    return elementwise(lambda x, y: kernels.cap_all(x, cap, y), x)


def elementwise(kernel, *given):
    """The kernel on arrays of one shape and dtype; every thread takes a share of their numbers."""
    y = np.empty(given[0].shape, given[0].dtype)
    flat = [plain(x, -1) for x in (*given, y)]
    in_shares(lambda first, end: kernel(*(x[first:end] for x in flat)), y.size, LEAST)
    return y


# attention


def attend(q, k, v, mask, tap=Tap()):
    """Every query takes its softmax-weighted mean of the values.  q: T N H   k, v: S K H   mask: T S  ->  T N H

    Without the map of T x S, unless somebody watches it; keys and values may be stored in fewer bits than the run has.
    """
    watched = tap.watches("scores") or tap.watches("probs")
    if watched or not fits(q, k) or not isinstance(mask, Spans):
        return definitions.attend(q, k, v, mask, tap)
    if len(q) > 4:
        return attend_many(q, k, v, mask)
    return (attend_few if q.dtype == np.float32 else attend_rounded)(q, k, v, mask)


def attend_all(q, k, v, tap=Tap()):
    """`attend` where everything sees everything.  q: I N H   k, v: I K H  ->  I N H"""
    if tap.watches("scores") or tap.watches("probs") or not fits(q, k):
        return definitions.attend_all(q, k, v, tap)
    return attend_many(q, k, v, everything(len(q), len(k)))


def attend_band(q, k, v, distances, per_dim_scale, cap, tap=Tap()):
    """Attention to the last few frames, with a term for the distance.  q, k, v: U N H   distances: R N H  ->  U N H"""
    return definitions.attend_band(q, k, v, distances, per_dim_scale, cap, tap, attend_frames)


def attend_frames(q, k, v, distances, frames, cap, tap=Tap()):
    """Attention to so many frames, this one and those before.  q, k, v: U N H   distances: R N H  ->  U N H"""
    if tap.watches("scores") or tap.watches("probs") or q.dtype != np.float32:
        return definitions.attend_frames(q, k, v, distances, frames, cap, tap)
    context, given = np.empty_like(q), [floats(x) for x in (q, k, v, distances[-frames:])]
    share = partial(last.attend_last, *given, np.float32(cap), context)
    in_shares(share, len(q), max(1, LEAST // (frames * q[0].size)))
    return context


def attend_few(q, k, v, mask):
    """Blocks of keys, each with a softmax of its own, are joined at the end (Milakov and Gimelshein 2018).

    mask: Spans  ->  T N H
    """
    (T, N, H), q, k, v = q.shape, floats(q), bits(k), bits(v)
    context = np.empty_like(q)
    for t in range(T):
        seen = slice(mask.first[t], mask.end[t])
        blocks = -(-(seen.stop - seen.start) // KEYS)
        top, total = np.empty((2, blocks, N), np.float32)
        means = np.empty((blocks, N, H), np.float32)

        share = partial(kernels.attend_blocks, q[t], k[seen], v[seen], top, total, means)
        in_shares(share, blocks, max(1, SHARE // (KEYS * N * H)))
        kernels.join(top, total, means, context[t])
    return context


def attend_rounded(q, k, v, mask):
    """A few queries of a bfloat16 run; each thread takes some of the heads.  mask: Spans  ->  T N H"""
    (T, N, H), context = q.shape, np.empty(q.shape, q.dtype)
    for t in range(T):
        seen = slice(mask.first[t], mask.end[t])
        given = plain(q[t], N, H), bits(k[seen]), bits(v[seen]), plain(context[t], N, H)
        in_shares(partial(kernels.attend_heads, *given), N, max(1, SHARE // ((seen.stop - seen.start) * H)))
    return context


def attend_many(q, k, v, mask):
    """Each thread takes heads and blocks of queries of its own.  mask: Spans  ->  T N H"""
    T, N, H = q.shape
    K, G = k.shape[1], N // k.shape[1]
    means = attending.means if q.dtype == np.float32 else attending.rounded_means
    context, rows = np.empty_like(q), -(-ROWS // G)
    queries, keys = pairs.given(q, k)
    keys, v = bits(keys), bits(v)

    def block(at):
        t, n = at
        heads, part = slice(n * G, (n + 1) * G), mask[t : t + rows]
        some = np.ascontiguousarray(queries[t : t + rows, heads]).reshape(-1, queries.shape[-1])  # TG H
        spans = (np.repeat(edge, G) for edge in (part.first, part.end))
        context[t : t + rows, heads] = means(some, keys, v, n, *spans).view(q.dtype).reshape(-1, G, H)

    in_parallel(block, [(t, n) for t in reversed(range(0, T, rows)) for n in range(K)])  # the last see most
    return context
