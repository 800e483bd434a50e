"""The compiled loops behind twins.py.

Those that take `first` and `end` do a share of the work, from the one up to, not including, the other.  All let go of
the interpreter meanwhile, and compute a number in the same way whoever computes its neighbours.  Stored numbers come as
in the file, bfloat16 and float16 as integers, and become float32 in a register.  No flag here lets the compiler assume
that numbers are finite: NaN and infinity come through.
"""

import numpy as np
from numba import types
from numba.extending import overload

from numgemma.ops.compiled import in_llvm, kernel

KEYS = 256  # whose softmax is taken together, before blocks are joined

SUMS = {"reassoc", "contract", "nsz"}  # sums may be taken in any order, and so in many lanes
PLAIN = {"contract"}  # an order that matters, as in `exp`


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


def rounded(value, like):
    """A float32 as an array like that one stores it; known to kernels alone."""


@overload(rounded)
def _(value, like):
    if like.dtype == types.uint16:
        return lambda value, like: to_bfloat16(value)
    return lambda value, like: value


@kernel(PLAIN)
def to_bfloat16(x):
    """The nearer of the two upper halves, of two as near the even one; NaN stays NaN."""
    whole = np.float32(x).view(np.uint32)
    nearest = (whole + np.uint32(0x7FFF) + ((whole >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(nearest) if x == x else np.uint16((whole >> np.uint32(16)) | np.uint32(0x40))


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
    x = np.float32(-104.0) if x < np.float32(-87.0) else x  # to 0, not to subnormal numbers: a product with those is
    x = np.float32(89.0) if x > np.float32(89.0) else x  # a hundred times slower.  NaN passes both
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


@in_llvm
def apart(typing):
    """The kernel where this stands is never compiled into another: the compiler would order its sums by what it finds
    around them there, and they would have other bits.
    """

    def emit(context, builder, signature, args):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), emit


@kernel(PLAIN)
def round_all(x, y):
    for i in range(len(x)):
        y[i] = to_bfloat16(x[i])


# products of matrices


@kernel(SUMS)
def times_one(w, x, y, first, end):
    """y = W x, for some of the rows of W: four at a time, one of each quarter, as four runs through memory come sooner
    than one.  Where the last quarter is short its last row is taken again, so that every sum is one of four.
    """
    apart()
    quarter = (end - first + 3) // 4
    for o in range(first, first + quarter):
        p, q, r = min(o + quarter, end - 1), min(o + 2 * quarter, end - 1), min(o + 3 * quarter, end - 1)
        a, b, c, d = w[o], w[p], w[q], w[r]
        to_a = to_b = to_c = to_d = np.float32(0)
        for i in range(len(a)):
            to_a, to_b = to_a + number(a[i]) * x[i], to_b + number(b[i]) * x[i]
            to_c, to_d = to_c + number(c[i]) * x[i], to_d + number(d[i]) * x[i]
        y[o], y[p], y[q], y[r] = rounded(to_a, y), rounded(to_b, y), rounded(to_c, y), rounded(to_d, y)


@kernel(SUMS)
def times_drafts(w, x, y, first, end):
    """Y = X W^T for two to eight rows of X, as a drafter's guesses are: W is read once, by pairs of rows.

    A row of the upper half goes with one of the lower, so that memory is read in two runs without a jump; the two share
    what is loaded of X, and all their sums stay in registers.  first, end: of the pairs
    """
    apart()
    half, T = (len(w) + 1) // 2, len(x)
    most = T if T <= 5 else (T + 1) // 2  # the sums of more do not fit the sixteen registers that some processors have
    for o in range(first, end):
        p = min(o + half, len(w) - 1)
        for t in range(0, T, most):
            count = min(most, T - t)
            if count == 5:
                two_by_five(w[o], w[p], x, t, y, o, p)
            elif count == 4:
                two_by_four(w[o], w[p], x, t, y, o, p)
            elif count == 3:
                two_by_three(w[o], w[p], x, t, y, o, p)
            else:
                two_by_two(w[o], w[p], x, t, y, o, p)


@kernel(SUMS)
def two_by_two(u, v, x, t, y, o, p):
    """Rows o and p of W, u and v, times rows of X from t on; so do those below, for more of X."""
    a, b = x[t], x[t + 1]
    ua = ub = va = vb = np.float32(0)
    for i in range(len(u)):
        m, n = number(u[i]), number(v[i])
        ua, ub = ua + m * a[i], ub + m * b[i]
        va, vb = va + n * a[i], vb + n * b[i]
    y[t, o], y[t + 1, o] = ua, ub
    y[t, p], y[t + 1, p] = va, vb


@kernel(SUMS)
def two_by_three(u, v, x, t, y, o, p):
    a, b, c = x[t], x[t + 1], x[t + 2]
    ua = ub = uc = va = vb = vc = np.float32(0)
    for i in range(len(u)):
        m, n = number(u[i]), number(v[i])
        ua, ub, uc = ua + m * a[i], ub + m * b[i], uc + m * c[i]
        va, vb, vc = va + n * a[i], vb + n * b[i], vc + n * c[i]
    y[t, o], y[t + 1, o], y[t + 2, o] = ua, ub, uc
    y[t, p], y[t + 1, p], y[t + 2, p] = va, vb, vc


@kernel(SUMS)
def two_by_four(u, v, x, t, y, o, p):
    a, b, c, d = x[t], x[t + 1], x[t + 2], x[t + 3]
    ua = ub = uc = ud = va = vb = vc = vd = np.float32(0)
    for i in range(len(u)):
        m, n = number(u[i]), number(v[i])
        ua, ub, uc, ud = ua + m * a[i], ub + m * b[i], uc + m * c[i], ud + m * d[i]
        va, vb, vc, vd = va + n * a[i], vb + n * b[i], vc + n * c[i], vd + n * d[i]
    y[t, o], y[t + 1, o], y[t + 2, o], y[t + 3, o] = ua, ub, uc, ud
    y[t, p], y[t + 1, p], y[t + 2, p], y[t + 3, p] = va, vb, vc, vd


@kernel(SUMS)
def two_by_five(u, v, x, t, y, o, p):
    a, b, c, d, e = x[t], x[t + 1], x[t + 2], x[t + 3], x[t + 4]
    ua = ub = uc = ud = ue = va = vb = vc = vd = ve = np.float32(0)
    for i in range(len(u)):
        m, n = number(u[i]), number(v[i])
        ua, ub, uc, ud, ue = ua + m * a[i], ub + m * b[i], uc + m * c[i], ud + m * d[i], ue + m * e[i]
        va, vb, vc, vd, ve = va + n * a[i], vb + n * b[i], vc + n * c[i], vd + n * d[i], ve + n * e[i]
    y[t, o], y[t + 1, o], y[t + 2, o], y[t + 3, o], y[t + 4, o] = ua, ub, uc, ud, ue
    y[t, p], y[t + 1, p], y[t + 2, p], y[t + 3, p], y[t + 4, p] = va, vb, vc, vd, ve


# along a row


@kernel(SUMS)
def norm_rows(x, w, eps, y, first, end):
    D = x.shape[1]
    for t in range(first, end):
        squares = np.float32(0)
        for i in range(D):
            squares += number(x[t, i]) * number(x[t, i])
        factor = np.float32(1) / np.sqrt(squares / np.float32(D) + eps)
        for i in range(D):
            y[t, i] = rounded(number(x[t, i]) * factor * number(w[i]), y)


@kernel(PLAIN)
def turn_rows(x, cos, sin, y, first, end):
    half = x.shape[2] // 2
    for t in range(first, end):
        for n in range(x.shape[1]):
            for i in range(half):
                j, left, right = i + half, number(x[t, n, i]), number(x[t, n, i + half])
                y[t, n, i] = rounded(step(left * number(cos[t, i]), y) - step(right * number(sin[t, i]), y), y)
                y[t, n, j] = rounded(step(right * number(cos[t, j]), y) + step(left * number(sin[t, j]), y), y)


@kernel(PLAIN)
def step(value, like):
    """What a bfloat16 run rounds on its way to a result; a float32 run goes on with it as it is."""
    return number(rounded(value, like))


@kernel(PLAIN)
def gelu(x):
    """x / 2 (1 + tanh u) = x / (1 + e^(-2u))."""
    u = x * (np.float32(0.7978845608) + np.float32(0.7978845608 * 0.044715) * x * x)
    return x / (np.float32(1) + exp(np.float32(-2) * u))


@kernel(PLAIN)
def gelu_all(x, y):
    for i in range(len(x)):
        y[i] = rounded(gelu(number(x[i])), y)


@kernel(PLAIN)
def silu_all(x, y):
    for i in range(len(x)):
        value = number(x[i])
        y[i] = rounded(value / (np.float32(1) + exp(-value)), y)


@kernel(PLAIN)
def gate_all(gate, up, y):
    for i in range(len(gate)):
        y[i] = rounded(step(gelu(number(gate[i])), y) * number(up[i]), y)


@kernel(PLAIN)
def cap_all(x, cap, y):
    for i in range(len(x)):
        y[i] = rounded(step(tanh(step(number(x[i]) / cap, y)), y) * cap, y)


@kernel(PLAIN)
def tanh(x):
    """By its series near 0 (Cephes' fit), where 1 would swallow what 1 - 2 / (e^(2x) + 1) is about."""
    z = x * x
    p = np.float32(-5.70498872745e-3)
    p = p * z + np.float32(2.06390887954e-2)
    p = p * z + np.float32(-5.37397155531e-2)
    p = p * z + np.float32(1.33314422036e-1)
    p = p * z + np.float32(-3.33332819422e-1)
    far = np.float32(1) - np.float32(2) / (exp(x + x) + np.float32(1))
    return far if z > np.float32(0.390625) else p * z * x + x


# attention


@kernel(SUMS)
def attend_blocks(q, k, v, top, total, means, first, end):
    """For some blocks of keys: the largest score, the sum of exponentials, and the sum of values by these."""
    N, H = q.shape
    G = N // k.shape[1]
    scores = np.empty(KEYS, np.float32)
    for block in range(first, end):
        start = block * KEYS
        S = min(KEYS, len(k) - start)
        for n in range(N):
            largest = np.float32(-np.inf)
            for s in range(S):
                score = np.float32(0)
                for h in range(H):
                    score += q[n, h] * number(k[start + s, n // G, h])
                scores[s] = score
                largest = max(largest, score)
            total[block, n], top[block, n] = exponentials(scores[:S], largest), largest
            mean = means[block, n]
            mean[:] = 0
            for s in range(S):
                for h in range(H):
                    mean[h] += scores[s] * number(v[start + s, n // G, h])


@kernel(SUMS)
def attend_heads(q, k, v, context, first, end):
    """One query, in a bfloat16 run: scores and probabilities are rounded.  q, context: N H   k, v: S K H"""
    (N, H), (S, K, _) = q.shape, k.shape
    scores, mean = np.empty(S, np.float32), np.empty(H, np.float32)
    for n in range(first, end):
        head = n * K // N
        for s in range(S):
            score = np.float32(0)
            for h in range(H):
                score += number(q[n, h]) * number(k[s, head, h])
            scores[s] = step(score, q)
        total = exponentials(scores, largest_of(scores))
        mean[:] = 0
        for s in range(S):
            prob = step(scores[s] / total, q)
            for h in range(H):
                mean[h] += prob * number(v[s, head, h])
        for h in range(H):
            context[n, h] = rounded(mean[h], context)


@kernel(SUMS)
def exponentials(scores, largest):
    """Scores to exponentials; their sum."""
    total = np.float32(0)
    for s in range(len(scores)):
        scores[s] = exp(scores[s] - largest)
        total += scores[s]
    return total


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


@kernel(PLAIN)
def largest_of(x):
    """The largest number: compared as integers, in many lanes at once; floats, with NaN, would go one by one."""
    stored, largest = x.view(np.int32), np.int32(-(2**31))
    for i in range(len(x)):
        largest = max(largest, in_order(stored[i]))
    return np.int32(in_order(largest)).view(np.float32) if len(x) else np.float32(-np.inf)


@kernel(PLAIN)
def in_order(stored):
    """Bits of a float as an integer that is the larger the larger the float is; the other way by the same steps."""
    return stored ^ ((stored >> np.int32(31)) & np.int32(0x7FFFFFFF))
