"""Solutions of 12_guessing_ahead.ipynb: each stands in for the cell that begins with the same line."""


# exercise 12.1: how many guesses are kept? (greedy: the target would write its likeliest token)
def kept(guesses, best):
    """guesses: k ids   best: k + 1 ids, the target's likeliest token at each place  ->  0 ... k"""
    n = 0
    while n < len(guesses) and guesses[n] == best[n]:
        n += 1
    return n


# exercise 12.2: tokens a pass, for a drafter that is right with chance a
def tokens_a_pass(a, k):
    """a: from 0 to 1   k: guesses a round  ->  from 1 to k + 1"""
    return sum(a**n for n in range(k + 1))


# exercise 12.3: the distribution of the token that this rule writes
def law(p, x, keep):
    """p: V, the target's chances   x: the guess, kept with chance `keep`, else drawn from p without x  ->  V"""
    others = np.where(np.arange(len(p)) == x, 0, p)
    written = (1 - keep) * others / others.sum()
    written[x] += keep
    return written
