"""The audio tower of Gemma 3n: log-mel frames of a sound in, one soft token for every sixteen of them out.

Two convolutions quarter the frame rate; they look ahead, and their norm is over all that has been heard so far.  Then
come the layers of a Universal Speech Model (arXiv 2303.01037): half a feed-forward, attention to this frame and the
twelve before, a convolution over the last five, half a feed-forward.  At the end one frame of four is kept.

A sound runs alone.  Of the padding that Transformers puts behind it, only what the convolutions look ahead to is here.
"""

import numpy as np

from numgemma import ops
from numgemma.trace import Tap

AHEAD = 6  # frames that the two convolutions see beyond the last one they stand on


def audio_tower(features, frames, w, c, dtype, tap=Tap()):
    """Soft tokens of one sound.  features: U M, log-mel; `frames` of them are real  ->  O C   c: the AudioConfig

    Equals Gemma3nAudioEncoder.  Padding behind the real frames is not silence to it: see AHEAD.
    """
    scope = "subsample_conv_projection"
    x = subsample(features[: frames + AHEAD].astype(dtype), -(-frames // 4), w.at(scope), c, tap.at(scope))
    back = np.arange(c.conf_attention_context_left - 1, -1, -1)  # the farthest frame first
    distances = ops.narrow(ops.sinusoids(back, c.hidden_size, np.promote_types(dtype, np.float32)), dtype)
    for i in range(c.conf_num_hidden_layers):
        x = block(x, distances, w.at(f"conformer.{i}"), c, tap.at(f"conformer.{i}"))
    return tap("out", x[:: c.conf_reduction_factor], "O C")


def subsample(features, frames, w, c, tap=Tap()):
    """A quarter of the frames, of which `frames` are real.  features: U M  ->  U C

    Equals Gemma3nAudioSubSampleConvProjection.
    """
    x = halve(features[..., None], 2 * frames + 1, w.at("conv_0"), c, tap.at("conv_0"))
    x = halve(x, frames, w.at("conv_1"), c, tap.at("conv_1"))
    x = x.reshape(frames, -1)  # U MC: bins first, then the channels of a bin
    return tap("input_proj_linear", ops.linear(x, w["input_proj_linear.weight"]), "U C")


def halve(x, frames, w, c, tap=Tap()):
    """Half the frames and half the bins, rounded up, and of the frames the first so many.  x: U M B  ->  U M C

    Equals Gemma3nAudioSSCPConvBlock.
    """
    h = tap("conv", ops.conv_ahead(x, w["conv.weight"])[:frames], "U M C")
    h = tap("norm", ops.cumulative_norm(h, w["norm.weight"], c.sscp_conv_group_norm_eps), "U M C")
    return tap("out", ops.relu(h), "U M C")


def block(x, distances, w, c, tap=Tap()):
    """One layer.  x: U C   distances: R C  ->  U C   (equals Gemma3nAudioConformerBlock)"""
    x = feed_forward(x, w.at("ffw_layer_start"), c, tap.at("ffw_layer_start"))
    x = attention(x, distances, w.at("attention"), c, tap.at("attention"))
    x = light_conv(x, w.at("lconv1d"), c, tap.at("lconv1d"))
    x = feed_forward(x, w.at("ffw_layer_end"), c, tap.at("ffw_layer_end"))
    return norm("norm", x, w, c, tap)


def norm(name, x, w, c, tap):
    """RMSNorm with the weight of that name.  x: U C  ->  U C"""
    return tap(name, ops.rms_norm(x, w[f"{name}.weight"], c.rms_norm_eps), "U C")


def feed_forward(x, w, c, tap=Tap()):
    """A feed-forward branch, of which half is added.  x: U C  ->  U C   (Gemma3nAudioConformerFeedForward)"""
    h = norm("pre_layer_norm", x, w, c, tap)
    h = tap("ffw_layer_1", ops.linear(h, w["ffw_layer_1.weight"]), "U F")
    h = tap("ffw_layer_2", ops.linear(ops.silu(h), w["ffw_layer_2.weight"]), "U C")
    h = norm("post_layer_norm", h, w, c, tap)
    return tap("out", x + ops.scale(h, c.conf_residual_weight), "U C")


def attention(x, distances, w, c, tap=Tap()):
    """Attention of each frame to the last few.  x: U C   distances: R C  ->  U C   (Gemma3nAudioConformerAttention)"""
    h = norm("pre_attn_norm", x, w, c, tap)
    context = attend(h, distances, w.at("attn"), c, tap.at("attn"))
    h = tap("post", ops.linear(context.reshape(len(x), -1), w["post.weight"]), "U C")
    h = norm("post_norm", h, w, c, tap)
    return tap("out", x + h, "U C")


def attend(x, distances, w, c, tap=Tap()):
    """What each head hears.  x: U C   distances: R C  ->  U N H   (equals Gemma3nAudioAttention)"""
    N, H = c.conf_num_attention_heads, c.hidden_size // c.conf_num_attention_heads
    q = tap("q_proj", ops.linear(x, w["q_proj.weight"]).reshape(-1, N, H), "U N H")
    k = tap("k_proj", ops.linear(x, w["k_proj.weight"]).reshape(-1, N, H), "U N H")
    v = tap("v_proj", ops.linear(x, w["v_proj.weight"]).reshape(-1, N, H), "U N H")
    scope = "relative_position_embedding"
    far = ops.linear(distances, w[f"{scope}.pos_proj.weight"]).reshape(-1, N, H)
    far = tap.at(scope)("pos_proj", far, "R N H")
    q = ops.scale_queries(q, w["per_dim_scale"])
    context = ops.attend_frames(q, k, v, far, len(far), c.conf_attention_logit_cap, tap)
    return tap("context", context, "U N H")


def light_conv(x, w, c, tap=Tap()):
    """A gated convolution over the last few frames, channel by channel.  x: U C  ->  U C

    Equals Gemma3nAudioConformerLightConv1d.
    """
    h = norm("pre_layer_norm", x, w, c, tap)
    h = tap("linear_start", ops.linear(h, w["linear_start.weight"]), "U F")
    h = tap("glu", ops.glu(h), "U C")
    h = tap("depthwise_conv1d", ops.causal_conv(h.T, w["depthwise_conv1d.weight"]), "C U").T
    h = norm("conv_norm", h, w, c, tap)
    h = tap("linear_end", ops.linear(ops.silu(h), w["linear_end.weight"]), "U C")
    return tap("out", x + h, "U C")
