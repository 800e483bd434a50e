"""Solutions of 08_precision.ipynb: each stands in for the cell that begins with the same line."""


# exercise 8.1: round to b bits of significand (np.round takes ties to the even neighbour, as processors do)
def rounded(x, b):
    """x: float64, any shape  ->  float64"""
    m, e = np.frexp(x)
    return np.ldexp(np.round(m * 2.0**b), e - b)


# exercise 8.2: a dot product that is rounded to bfloat16 after every product, and after every addition
def narrow_dot(x, w):
    """x, w: D, bfloat16  ->  bfloat16"""
    total = bfloat16.type(0)
    for a, b in zip(x, w, strict=True):
        total = total + a * b
    return total


# exercise 8.3: the relative error of the whole tensor, and that of the worst row
def errors(a, b):
    """a, b: T D, a is the truth  ->  two numbers"""
    dd, aa = ((b - a) ** 2).sum(1), (a**2).sum(1)
    return np.sqrt(dd.sum() / aa.sum()), np.sqrt(dd / aa).max()


# exercise 8.4: the points whose relative error is more than `times` the floor's high value, in the order of the run
def suspects(truth, run, floor, times=3):
    """truth, run: name -> array   floor: name -> (median, high)  ->  a list of names"""
    rel = {name: np.sqrt(((run[name] - x) ** 2).sum() / (x**2).sum()) for name, x in truth.items()}
    return [name for name in truth if rel[name] > times * floor[name][1]]
