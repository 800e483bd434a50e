"""Self-attention.

The axis key of the whole package (a letter means the same everywhere, unless a docstring says otherwise; joined axes
are written together, `NH`; of a matrix I and O are what goes in and comes out, of a convolution B and C):

    T  tokens being computed (queries)       D  model width
    S  tokens attended to (keys, values)     F  feed-forward width
    N  query heads                           V  vocabulary
    K  key/value heads                       P  width of the per-layer input
    G  query heads per key/value head        L  layers
    H  head width                            E, J  experts; experts chosen per token
    I  patches of an image                   C  width of a tower
    O  soft tokens                           W  width of what a tower hands over
    U  frames of a sound                     M  mel bins
    R  distances between frames

There is no batch axis: a batch is a loop outside, and padding is stripped before.
"""

from numgemma import ops
from numgemma.cache import append
from numgemma.trace import Tap


def attention(x, w, spec, rope, mask, kvs, tap=Tap()):
    """Self-attention of one layer.  x: T D   mask: T S  ->  T D   (equals Gemma4TextAttention)

    w: the weights of this module, by name.  spec: a row of the layer table, a LayerSpec.  rope: cos T H, sin T H.
    kvs holds the k and v that each layer can still see; a sharing layer reads another layer's entry.
    """
    T = len(x)
    q = tap("q_proj", ops.linear(x, w["q_proj.weight"]).reshape(T, spec.N, spec.H), "T N H")
    q = tap("q_norm", ops.rms_norm(q, w["q_norm.weight"], spec.eps), "T N H")
    q = tap("q_rope", ops.rope(q, *rope), "T N H")

    if spec.kv_from == spec.index:
        k, v = keys_and_values(x, w, spec, rope, tap)
        append(kvs, spec.index, k, v)
    k, v = kvs[spec.kv_from]  # all that can still be seen: of earlier passes too

    context = tap("context", ops.attend(q, k, v, mask, tap), "T N H")  # scale 1: q_norm and k_norm carry it
    return tap("o_proj", ops.linear(context.reshape(T, -1), w["o_proj.weight"]), "T D")


def keys_and_values(x, w, spec, rope, tap=Tap()):
    """What this layer offers to be attended to.  x: T D  ->  k T K H, v T K H"""
    T = len(x)
    k = tap("k_proj", ops.linear(x, w["k_proj.weight"]).reshape(T, spec.K, spec.H), "T K H")
    if spec.k_eq_v:
        v = k  # the raw keys, before their norm and before rope
    else:
        v = tap("v_proj", ops.linear(x, w["v_proj.weight"]).reshape(T, spec.K, spec.H), "T K H")
    k = tap("k_norm", ops.rms_norm(k, w["k_norm.weight"], spec.eps), "T K H")
    k = tap("k_rope", ops.rope(k, *rope), "T K H")
    v = tap("v_norm", ops.rms_norm(v, None, spec.eps), "T K H")
    return k, v
