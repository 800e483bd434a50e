"""Solutions of 11_the_other_families.ipynb: each stands in for the cell that begins with the same line."""


# exercise 11.1: predict
def predicted(s, c):
    """s: A T D, the streams   c: T A A, for each token how much flows into (first) and from (second)  ->  A T D"""
    return s + np.einsum("tab,btd->atd", c, s)


# exercise 11.2: correct
def corrected(p, y, g):
    """p: A T D, the predicted streams   y: T D, what the layer made of stream 0   g: T A  ->  A T D"""
    return p + g.T[:, :, None] * (y - p[0])


# exercise 11.3: a 3 x 3 filter for each channel, zeros outside
def depthwise(x, w):
    """x: Y X C   w: C 3 3  ->  Y X C"""
    Y, X = x.shape[:2]
    around = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    return sum(w[:, i, j] * around[i : i + Y, j : j + X] for i in range(3) for j in range(3))


# exercise 11.4: who sees whom in a sliding layer of the 12B
def sees(picture, window):
    """picture: T, the number of the picture that a token is of, -1 for text  ->  T T, True where row sees column

    A token sees the last `window` tokens, its own included, and those after it that are of its own picture.
    """
    t, k = np.arange(len(picture))[:, None], np.arange(len(picture))
    causal = (k <= t) & (k > t - window)
    ahead = (k > t) & (picture[:, None] == picture) & (picture >= 0)
    return causal | ahead


# exercise 11.5: the vector of a text, cut to its first `dim` numbers, of length 1
def vector(tokens, dim):
    """tokens: T W, what the model makes of each token  ->  dim"""
    mean = tokens.mean(0)[:dim]
    return mean / np.linalg.norm(mean)
