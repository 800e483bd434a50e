"""Solutions of 03_attention.ipynb: each stands in for the cell that begins with the same line."""


# exercise 3.1: the mask of a whole prompt
def mask_of(T, window=None):
    """window None: no limit  ->  T T, True where query t may attend to key s"""
    t, s = np.arange(T)[:, None], np.arange(T)
    return (s <= t) & (t - s < (window or T))


# exercise 3.2: attention of all heads
def attend(q, k, v, mask):
    """q: T N H   k, v: S K H   mask: T S  ->  T N H"""
    G = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, G, axis=1), np.repeat(v, G, axis=1)  # S N H: each head is there G times in a row
    scores = np.einsum("tnh,snh->nts", q, k)
    scores = np.where(mask, scores, -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs = probs / probs.sum(-1, keepdims=True)
    return np.einsum("nts,snh->tnh", probs, v)


# exercise 3.3: what one head gives to o_proj's output
def of_head(context, weight, n):
    """context: T N H   weight: D NH  ->  T D, the part of `linear(context, weight)` that is from head n"""
    H = context.shape[2]
    return context[:, n] @ weight[:, n * H : (n + 1) * H].T


# exercise 3.4: mean share by distance, over the queries that have so many tokens behind them
def by_distance(probs, reach):
    """probs: T S of one head  ->  reach: entry d is the mean of probs[t, t - d] over t = reach .. T - 1"""
    t = np.arange(reach, len(probs))
    return np.array([probs[t, t - d].mean() for d in range(reach)])


# exercise 3.5: which inputs can reach which outputs through a stack of layers?
def reaches(masks):
    """masks: list of T T, first layer first  ->  T T, True where input s can reach the output of token t"""
    reach = np.eye(len(masks[0]), dtype=bool)
    for mask in masks:
        reach = mask @ reach
    return reach
