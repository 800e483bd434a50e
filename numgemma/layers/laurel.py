"""LAuReL: beside the residual stream a second way past attention, of low rank (arXiv 2411.07501).

Addition to the axis key in attention.py:

    Z  rank
"""

from numgemma import ops
from numgemma.trace import Tap


def laurel(x, w, eps, tap=Tap()):
    """x and a product of two thin matrices of it, normed.  x: T D, the normed input  ->  T D

    Equals Gemma3nTextLaurelBlock.
    """
    h = tap("linear_left", ops.linear(x, w["linear_left.weight"]), "T Z")
    h = tap("linear_right", ops.linear(h, w["linear_right.weight"]), "T D")
    h = tap("post_laurel_norm", ops.rms_norm(h, w["post_laurel_norm.weight"], eps), "T D")
    return tap("out", x + h, "T D")
