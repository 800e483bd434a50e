"""Attention of many queries, on tiles: their scores with some keys at a time, and by these the mean of the values.

What is known of a query is the largest score so far, the sum of exponentials below it, and their mean of the values
(Dao et al. 2022, arXiv 2205.14135): scores never leave a core's first cache, however long the prompt.  Keys that none
of a few queries sees are not multiplied by them.

A bfloat16 run rounds scores and probabilities, and these need the whole sum first: there keys are gone over twice.
"""

import numpy as np

from numgemma.ops import lanes
from numgemma.ops.compiled import kernel
from numgemma.ops.kernels import PLAIN, exp, number, to_bfloat16
from numgemma.ops.tiles import ROWS, WIDTH, none, plus, put, turn

KEYS = 256  # that are laid out together, as panels of WIDTH
QUERIES = 4 * ROWS  # whose scores with them are in the first cache
LOWEST = np.finfo(np.float32).min  # no score but that of a hidden key is smaller


@kernel(PLAIN)
def means(q, k, v, n, first, end):
    """Of each query of one head the mean of the values.  q: T H   k, v: S K H, of which head n  ->  T H

    first, end: T, the keys that a query sees
    """
    T, H = len(q), v.shape[2]
    keys, values, scores, more = room(q, H)
    top, total, mean = np.full(T, LOWEST, np.float32), np.zeros(T, np.float32), np.zeros((T, H), np.float32)
    for s in range(first.min(), end.max(), KEYS):
        seen = slice(s, min(s + KEYS, end.max()))
        lay_out(k[seen, n].copy(), v[seen, n], keys, values)
        for t in range(0, T, QUERIES):
            few = slice(t, min(t + QUERIES, T))
            some, low = scored(q[few], keys, s, first[few], end[few], scores)
            if some.size:
                known = softmax_on(some, first[few] - s - low, end[few] - s - low, top[few], total[few])
                product(some[: len(known)], values[low * WIDTH :], KEYS, more)
                for r in range(len(known)):
                    for h in range(H):
                        mean[t + r, h] = known[r] * mean[t + r, h] + more[r, h]
    for t in range(T):
        for h in range(H):
            mean[t, h] /= total[t]
    return mean


@kernel(PLAIN)
def rounded_means(q, k, v, n, first, end):
    """The same in a bfloat16 run: first the sum of a query's exponentials, then probabilities, and their mean.

    q: T H, float32, or with k bfloat16 by pairs   v: bfloat16 as integers, and so is the result
    """
    T, H = len(q), v.shape[2]
    keys, values, scores, more = room(q, H)
    top, total, mean = np.full(T, LOWEST, np.float32), np.zeros(T, np.float32), np.zeros((T, H), np.float32)
    for summed in (False, True):
        for s in range(first.min(), end.max(), KEYS):
            seen = slice(s, min(s + KEYS, end.max()))
            lay_out(k[seen, n].copy(), v[seen, n], keys, values)
            for t in range(0, T, QUERIES):
                few = slice(t, min(t + QUERIES, T))
                some, low = scored(q[few], keys, s, first[few], end[few], scores)
                if some.size:
                    round_all(some.reshape(some.size))
                    if summed:
                        probs_on(some, first[few] - s - low, end[few] - s - low, top[few], total[few])
                        product(some[: len(top[few])], values[low * WIDTH :], KEYS, more)
                        mean[few] += more[: len(top[few])]
                    else:
                        softmax_on(some, first[few] - s - low, end[few] - s - low, top[few], total[few])
    rounded = np.empty((T, H), np.uint16)
    for t in range(T):
        for h in range(H):
            rounded[t, h] = to_bfloat16(mean[t, h])
    return rounded


@kernel(PLAIN)
def room(q, H):
    """For some keys and their values, laid out, for the scores of a few queries with them, and for what comes of it."""
    keys, values = np.empty(KEYS * q.shape[1], q.dtype), np.zeros(KEYS * up(H, WIDTH), np.float32)
    return keys, values, np.empty(QUERIES * KEYS, np.float32), np.empty((QUERIES, up(H, WIDTH)), np.float32)


@kernel(PLAIN)
def scored(q, keys, s, first, end, scores):
    """Scores of a few queries with those of the keys laid out from s on that any of them sees, by whole lanes, and how
    many come before these  ->  QUERIES and a number of keys, which is 0 where none is seen
    """
    width = q.shape[1]
    low = max(0, first.min() - s) // lanes.WIDTH * lanes.WIDTH
    count = max(0, up(min(s + KEYS, end.max()) - s - low, lanes.WIDTH))
    some = scores[: QUERIES * count].reshape(QUERIES, count)
    product(q, keys[low * width :], width, some)
    return some, low


@kernel(PLAIN)
def up(n, step):
    """The next multiple of a step."""
    return (n + step - 1) // step * step


@kernel(PLAIN)
def lay_out(k, v, keys, values):
    """Panels of WIDTH keys, turned, and of WIDTH columns of the values, with zeros behind their last row.  k, v: S H"""
    S, H = v.shape
    for s in range(0, S, WIDTH):
        turn(k, s, keys[s * k.shape[1] :])
    for h in range(0, H, WIDTH):
        for s in range(up(S, lanes.WIDTH)):
            at = h * KEYS + s * WIDTH
            if s < S and h + WIDTH <= H:  # a loop over a constant is unrolled
                for i in range(WIDTH):
                    values[at + i] = number(v[s, h + i])
            else:
                for i in range(WIDTH):
                    values[at + i] = number(v[s, h + i]) if s < S and h + i < H else np.float32(0)


@kernel(PLAIN)
def product(x, panels, apart, y):
    """X times as many panels as Y is wide, each of which begins so many rows after the one before it."""
    (T, I), width = x.shape, y.shape[1]
    numbers, into = x.reshape(x.size), y.reshape(y.size)
    for t in range(0, T, ROWS):
        for o in range(0, width, WIDTH):
            six_short_rows(numbers, I, t, T - 1, panels[o * apart :], into, t * width + o, width)


@kernel(PLAIN)
def six_short_rows(x, I, t, last, panel, y, at, width):
    """As tiles.six_rows, but in one run, which is a tenth faster where rows are as short as here."""
    at_a, at_b, at_c = t * I, min(t + 1, last) * I, min(t + 2, last) * I
    at_d, at_e, at_f = min(t + 3, last) * I, min(t + 4, last) * I, min(t + 5, last) * I
    a = b = c = d = e = f = none()
    for i in range(I):
        row = WIDTH * i
        a, b = plus(a, x, at_a + i, panel, row), plus(b, x, at_b + i, panel, row)
        c, d = plus(c, x, at_c + i, panel, row), plus(d, x, at_d + i, panel, row)
        e, f = plus(e, x, at_e + i, panel, row), plus(f, x, at_f + i, panel, row)
    for n, sums in enumerate((a, b, c, d, e, f)):
        put(y, at + n * width, sums, False)


@kernel(PLAIN)
def softmax_on(scores, first, end, top, total):
    """Scores of some more keys to exponentials, 0 where a query does not look.  scores: T S   the others: T

    What is known of each query comes down to its new largest score  ->  by what its mean so far is multiplied, T
    """
    known, weight = top.copy(), np.empty(len(top), np.float32)
    for t in range(len(top)):
        row, most, sums = scores[t], lanes.everywhere(top[t]), lanes.zeros()
        row[: max(0, first[t])] = -np.inf
        row[max(0, end[t]) :] = -np.inf
        for s in range(0, len(row), lanes.WIDTH):
            most = lanes.larger(lanes.numbers(row, s), most)
        top[t] = lanes.largest(most)
        for s in range(0, len(row), lanes.WIDTH):
            some = lanes.exp_below(lanes.numbers(row, s), top[t])
            lanes.put(row, s, some)
            sums = lanes.plus(sums, some)
        weight[t] = lanes.total(sums)
    for t in range(len(top)):
        known[t] = exp(known[t] - top[t])
        total[t] = known[t] * total[t] + weight[t]
    return known


@kernel(PLAIN)
def probs_on(scores, first, end, top, total):
    """Scores to rounded probabilities, 0 where a query does not look.  scores: T S   the others: T"""
    for t in range(len(top)):
        row = scores[t]
        row[: max(0, first[t])] = -np.inf
        row[max(0, end[t]) :] = -np.inf
        for s in range(0, len(row), lanes.WIDTH):
            lanes.put(row, s, lanes.over(lanes.exp_below(lanes.numbers(row, s), top[t]), total[t]))
        round_all(row)


@kernel(PLAIN)
def round_all(x):
    """Each to the nearest bfloat16, in whole lanes."""
    for i in range(0, len(x), lanes.WIDTH):
        lanes.put(x, i, lanes.rounded(lanes.numbers(x, i)))
