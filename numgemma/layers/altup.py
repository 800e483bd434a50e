"""AltUp: several residual streams, of which each layer computes on one and tells the others (arXiv 2301.13310).

Additions to the axis key in attention.py:

    A  streams; the layer works on stream 0        AA  into each stream, from each stream

Before a layer every stream is predicted from all of them.  The layer runs on the predicted stream 0.  What it found
beyond the prediction then corrects all streams.  How much flows where is told per token by a small router.
"""

import numpy as np

from numgemma import ops
from numgemma.trace import Tap


def as_streams(x, w, A, tap=Tap()):
    """The streams of the first layer: the embedding, and projections of it made as large as it.  x: T D  ->  A T D"""
    streams = [x]
    for a in range(A - 1):
        y = tap(f"altup_projections.{a}", ops.linear(x, w[f"altup_projections.{a}.weight"]), "T D")
        streams.append(ops.as_large_as(y, x))
    return tap("streams", np.stack(streams), "A T D")


def as_one(s, w, tap=Tap()):
    """The mean of all streams, each projected back and made as large as stream 0.  s: A T D  ->  T D"""
    streams = [s[0]]
    for a in range(len(s) - 1):
        y = ops.linear(s[a + 1], w[f"altup_unembed_projections.{a}.weight"])
        y = tap(f"altup_unembed_projections.{a}", y, "T D")
        streams.append(ops.as_large_as(y, s[0]))
    return tap("mean_of_streams", ops.mean_of_streams(np.stack(streams)), "T D")


def predict(s, w, eps, tap=Tap()):
    """Each stream, and what the others add to it.  s: A T D  ->  A T D   (equals Gemma3nTextAltUp.predict)"""
    T, A = s.shape[1], len(s)
    modalities = router(s[0], w, eps, tap)
    coefs = tap("prediction_coefs", ops.linear(modalities, w["prediction_coefs.weight"]), "T AA")
    return tap("predict", ops.mix(s, coefs.reshape(T, A, A)) + s, "A T D")


def correct(p, y, w, eps, tap=Tap()):
    """The predicted streams, corrected by what the layer made of stream 0.  p: A T D   y: T D  ->  A T D

    Equals Gemma3nTextAltUp.correct.
    """
    modalities = router(y, w, eps, tap, "#1")
    coefs = tap("correction_coefs", ops.linear(modalities, w["correction_coefs.weight"]), "T A")
    innovation = y - p[0]
    return tap("correct", innovation * gains(coefs).T[..., None] + p, "A T D")


def gains(coefs):
    """How much of the innovation each stream takes: all of it, unless the router says otherwise.  T A  ->  T A"""
    return coefs + coefs.dtype.type(1)


def router(x, w, eps, tap=Tap(), again=""):
    """What kind of token this is, as a number between -1 and 1 for each stream.  x: T D  ->  T A

    again: "#1" where it runs for the second time in a layer.  Equals Gemma3nTextAltUp.compute_router_modalities.
    """
    h = tap(f"router_norm{again}", ops.rms_norm(x, w["router_norm.weight"], eps), "T D")
    h = ops.scale(h, x.dtype.type(1 / x.shape[-1]))
    h = tap(f"modality_router{again}", ops.linear(h, w["modality_router.weight"]), "T A")
    return tap(f"modalities{again}", ops.tanh(h), "T A")


def output_scale(x, w, tap=Tap()):
    """Stream 0 as the per-layer input's gate reads it; the stream itself goes on unscaled.  x: T D  ->  T D

    Equals Gemma3nTextAltUp.forward.
    """
    return tap("out", ops.scale(x, w["correct_output_scale"]), "T D")
