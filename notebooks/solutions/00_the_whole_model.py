"""Solutions of 00_the_whole_model.ipynb: each stands in for the cell that begins with the same line."""


# exercise 0.1: softmax over the last axis
def softmax(logits):
    """logits: ... V  ->  ... V"""
    y = np.exp(logits - logits.max(-1, keepdims=True))
    return y / y.sum(-1, keepdims=True)


# exercise 0.2: append `count` tokens greedily, and return them
def continued(ids, count):
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model.logits(ids)[-1].argmax()))
    return ids[-count:]


# exercise 0.3: mean surprise of the tokens 1, 2, ... (nothing predicts token 0)
def mean_surprise(logits, ids):
    """logits: T V   ids: T  ->  nats"""
    probs = definitions.softmax(logits)
    return -np.log(probs[np.arange(len(ids) - 1), ids[1:]]).mean()


# exercise 0.4: how many numbers are in all weights whose name begins with `scope`?
def parameters(weights, scope=""):
    """weights: name -> array, by weights[name]; iterating gives the names."""
    return sum(weights[name].size for name in weights if name.startswith(scope))
