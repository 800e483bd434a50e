"""The audio tower of E2B and E4B: log-mel frames of a sound in, one soft token for every four of them out.

Two convolutions quarter the frame rate.  Then come conformer layers (Gulati et al. 2020, arXiv 2005.08100): half a
feed-forward, attention to the last twelve frames, a convolution over the last five, half a feed-forward.  No frame
sees a later one, and a sound runs alone, without the padding that Transformers masks.
"""

import numpy as np

from numgemma import ops
from numgemma.layers.feedforward import clipped_linear
from numgemma.trace import Tap


def audio_tower(features, w, c, dtype, tap=Tap()):
    """Soft tokens of one sound.  features: U M, log-mel  ->  O W   (equals Gemma4AudioModel)   c: the AudioConfig"""
    scope = "subsample_conv_projection"
    x = subsample(features.astype(dtype), w.at(scope), c, tap.at(scope))
    back = np.arange(c.attention_context_left - 1, -1, -1)  # R, the farthest first; that one is never attended to
    distances = tap("rel_pos_enc", ops.sinusoids(back, c.hidden_size, dtype), "R C")
    for i in range(c.num_hidden_layers):
        x = block(x, distances, w.at(f"layers.{i}"), c, tap.at(f"layers.{i}"))
    soft = tap("output_proj", ops.affine(x, w["output_proj.weight"], w["output_proj.bias"]), "O W")
    return tap("out", soft, "O W")


def subsample(features, w, c, tap=Tap()):
    """A quarter of the frames.  features: U M  ->  U/4 C, rounded up   (Gemma4AudioSubSampleConvProjection)"""
    x = features[None]  # one channel
    for name in ("layer0", "layer1"):
        x = halve(x, w.at(name), c, tap.at(name))
    frames = x.transpose(1, 2, 0).reshape(x.shape[1], -1)  # U MC: bins first, then the channels of a bin
    return tap("input_proj_linear", ops.linear(frames, w["input_proj_linear.weight"]), "U C")


def halve(x, w, c, tap=Tap()):
    """Half the frames and half the bins.  x: B U M  ->  C U/2 M/2, rounded up

    Equals Gemma4AudioSubSampleConvProjectionLayer.
    """
    h = tap("conv", ops.conv2d(x, w["conv.weight"]), "C U M")
    h = tap("norm", ops.layer_norm(h.transpose(1, 2, 0), w["norm.weight"], c.rms_norm_eps), "U M C")
    return tap("out", ops.relu(h).transpose(2, 0, 1), "C U M")


def block(x, distances, w, c, tap=Tap()):
    """One layer.  x: U C   distances: R C  ->  U C   (equals Gemma4AudioLayer)"""
    x = feed_forward(x, w.at("feed_forward1"), c, tap.at("feed_forward1"))

    h = norm("norm_pre_attn", x, w, c, tap)
    h = attention(h, distances, w.at("self_attn"), c, tap.at("self_attn"))
    h = norm("norm_post_attn", h, w, c, tap)
    x = tap("after_attention", x + h, "U C")

    x = light_conv(x, w.at("lconv1d"), c, tap.at("lconv1d"))
    x = feed_forward(x, w.at("feed_forward2"), c, tap.at("feed_forward2"))
    return norm("norm_out", x, w, c, tap)


def norm(name, x, w, c, tap):
    """RMSNorm with the weight of that name.  x: U C  ->  U C"""
    return tap(name, ops.rms_norm(x, w[f"{name}.weight"], c.rms_norm_eps), "U C")


def feed_forward(x, w, c, tap=Tap()):
    """Half a feed-forward branch: only half of its output is added.  x: U C  ->  U C   (Gemma4AudioFeedForward)"""
    h = norm("pre_layer_norm", x, w, c, tap)
    h = tap("ffw_layer_1", clipped_linear(h, w.at("ffw_layer_1")), "U F")
    h = tap("ffw_layer_2", clipped_linear(ops.silu(h), w.at("ffw_layer_2")), "U C")
    h = norm("post_layer_norm", h, w, c, tap)
    return tap("out", x + ops.scale(h, c.residual_weight), "U C")


def attention(x, distances, w, c, tap=Tap()):
    """Attention of each frame to the last few.  x: U C   distances: R C  ->  U C   (Gemma4AudioAttention)

    A score has a term for how far back the frame lies (Dai et al. 2019, arXiv 1901.02860), whose sinusoids `distances`
    holds, and a soft cap: ops.attend_band.
    """
    N, H = c.num_attention_heads, c.hidden_size // c.num_attention_heads
    q = tap("q_proj", clipped_linear(x, w.at("q_proj")).reshape(-1, N, H), "U N H")
    k = tap("k_proj", clipped_linear(x, w.at("k_proj")).reshape(-1, N, H), "U N H")
    v = tap("v_proj", clipped_linear(x, w.at("v_proj")).reshape(-1, N, H), "U N H")
    far = tap("relative_k_proj", ops.linear(distances, w["relative_k_proj.weight"]).reshape(-1, N, H), "R N H")
    context = ops.attend_band(q, k, v, far, w["per_dim_scale"], c.attention_logit_cap, tap)
    context = tap("context", context, "U N H")
    return tap("post", clipped_linear(context.reshape(len(x), -1), w.at("post")), "U C")


def light_conv(x, w, c, tap=Tap()):
    """A gated convolution over the last few frames, channel by channel.  x: U C  ->  U C   (Gemma4AudioLightConv1d)"""
    h = norm("pre_layer_norm", x, w, c, tap)
    h = tap("linear_start", clipped_linear(h, w.at("linear_start")), "U F")  # twice C, for the gate
    h = tap("glu", ops.glu(h), "U C")
    h = tap("depthwise_conv1d", ops.causal_conv(h.T, w["depthwise_conv1d.weight"]), "C U").T
    h = norm("conv_norm", h, w, c, tap)
    h = tap("linear_end", clipped_linear(ops.silu(h), w.at("linear_end")), "U C")
    return tap("out", x + h, "U C")
