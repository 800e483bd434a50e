"""Solutions of 02_norms_and_the_residual_stream.ipynb: each stands in for the cell that begins with the same line."""


# exercise 2.1: RMSNorm over the last axis
def rms_norm(x, w, eps):
    """x: ... D   w: D  ->  ... D"""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w


# exercise 2.2: the stream after a layer, from the stream before it and what the layer's branches add
def after_layer(x, dump, w, i):
    """x: T D, before layer i  ->  T D, after it"""
    names = ("post_attention_layernorm", "post_feedforward_layernorm", "post_per_layer_input_norm")
    added = sum(dump[f"layers.{i}.{name}"] for name in names)
    return (x + added) * w[f"layers.{i}.layer_scalar"].astype(np.float32)


# exercise 2.3: the feed-forward (ops.gelu_tanh is the gelu; matrices are stored as [out, in])
def mlp(h, gate, up, down):
    """h: T D   gate, up: F D   down: D F  ->  T D"""
    return (ops.gelu_tanh(h @ gate.T) * (h @ up.T)) @ down.T


# exercise 2.4: the share of each layer in the last stream
def weights_at_the_end(scalars):
    """scalars: L  ->  L: what the sum of branches of layer i is multiplied by until the end"""
    return np.cumprod(scalars[::-1])[::-1]


# exercise 2.5: by which factor has a tensor changed in front of a norm?  (find it from before and wrong, both T D)
def best_factor(before, wrong):
    """The c for which c * before is nearest to wrong, in the sum of squares."""
    return (before * wrong).sum() / (before * before).sum()


# exercise 2.6: how far does the largest channel stand out?
def outlier(x):
    """x: T D  ->  the channel of the largest RMS over tokens, and that RMS divided by the median channel's"""
    sizes = np.sqrt((x * x).mean(0))
    return int(sizes.argmax()), sizes.max() / np.median(sizes)
