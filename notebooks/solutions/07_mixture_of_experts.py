"""Solutions of 07_mixture_of_experts.ipynb: each stands in for the cell that begins with the same line."""


# exercise 7.1: choose J experts for each token, the likeliest first, and their weights
def choose(probs, J, per_expert_scale):
    """probs: T E   per_expert_scale: E  ->  weights T J, ids T J"""
    ids = np.argsort(-probs, -1)[:, :J]
    weights = np.take_along_axis(probs, ids, -1)
    return weights / weights.sum(-1, keepdims=True) * per_expert_scale[ids], ids


# exercise 7.2: the routed sum, expert by expert
def experts(h, weights, ids, gate_up, down):
    """h: T D   weights, ids: T J   gate_up: E 2F D   down: E D F  ->  T D"""
    y = np.zeros_like(h)
    for e in range(len(down)):
        t, j = np.nonzero(ids == e)  # the tokens that chose e, and in which place
        gate, up = np.split(h[t] @ gate_up[e].T, 2, -1)
        y[t] += weights[t, j, None] * ((ops.gelu_tanh(gate) * up) @ down[e].T)
    return y


# exercise 7.3: the parameters that one token is computed with
def active(shapes, E, J):
    """shapes: name -> shape of every tensor; those called ...experts... have E as their first axis"""
    routed = {name: shape for name, shape in shapes.items() if ".experts." in name}
    return layout.count(shapes) - layout.count(routed) * (E - J) // E


# exercise 7.4: the margin of each token
def margins(probs, J):
    """probs: T E  ->  T"""
    ranked = np.sort(probs, -1)
    return ranked[:, -J] - ranked[:, -J - 1]
