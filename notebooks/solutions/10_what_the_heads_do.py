"""Solutions of 10_what_the_heads_do.ipynb: each stands in for the cell that begins with the same line."""


# exercise 10.1: the mean share of the token just before
def previous(probs):
    """probs: N T T  ->  N"""
    t = np.arange(1, probs.shape[1])
    return probs[:, t, t - 1].mean(1)


# exercise 10.2: the mean share of what followed the token the first time
def induction(probs, p):
    """probs: N T T, with T = 1 + 2 p  ->  N"""
    t = np.arange(p + 1, 2 * p + 1)
    return probs[:, t, t - p + 1].mean(1)


# exercise 10.3: the edit that puts one row of another run in place (name of a point -> function of the array)
def patch(point, t, other):
    """other: a dump that has `point`  ->  edits for `record`, whose function leaves its array as it is"""

    def put(x):
        mixed = x.copy()
        mixed[t] = other[point][t]
        return mixed

    return {point: put}
