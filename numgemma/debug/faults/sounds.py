"""Faults of the audio tower.

Left out: what is wrong with mel frames before the model (A01); padding (A09), of which none is left here; an
output_proj that is skipped (A10), which does not fit the next weight; the feed-forwards' clamp (of A07), which only
float16 meets.
"""

from dataclasses import replace

import numpy as np

from numgemma import ops
from numgemma.debug.faults.fault import Rewired, fault
from numgemma.debug.faults.pictures import clipped
from numgemma.trace import Tap

AUDIO = "audio_tower*"


@fault(
    "A02",
    "the convolutions' output is flattened channel by channel",
    "flatten bin by bin, the channels of a bin together",
    shows=f"{AUDIO}.input_proj_linear",
    swaps="layers.conformer.subsample",
    at=lambda spec, model: "audio_tower.subsample_conv_projection.layer0.conv.weight" in model.weights,
)
def channels_first(original, w, tap):
    def equation(y, seen):
        x = seen["layer1.out"]
        return ops.linear(x.transpose(1, 0, 2).reshape(x.shape[1], -1), w["input_proj_linear.weight"])

    return original(tap=Rewired(tap, {"input_proj_linear": equation}))


@fault(
    "A03",
    "a frame sees one frame too many",
    "let it see itself and the 11 before it: the farthest row of the relative table is never used",
    shows=f"{AUDIO}.self_attn.scores {AUDIO}.self_attn.context",
    swaps="ops.attend_band",
)
def one_frame_more(original, distances):
    return original(distances=np.concatenate([np.zeros_like(distances[:1]), distances]), tap=Tap())  # of other axes


@fault(
    "A04-zero",
    "per_dim_scale is left at zero",
    "load it, and scale q by its softplus",
    shows=f"{AUDIO}.self_attn.scores {AUDIO}.self_attn.context",
    swaps="ops.attend_band",
)
def no_per_dim_scale(original, per_dim_scale):
    return original(per_dim_scale=np.zeros_like(per_dim_scale))


@fault(
    "A04-uncapped",
    "the audio tower's scores are not soft-capped",
    "cap them by 50 tanh(x / 50), before the mask",
    shows=f"{AUDIO}.self_attn.scores {AUDIO}.self_attn.context",
    swaps="ops.definitions.softcap",
    within="layers.conformer.attention",
)
def scores_uncapped(original, x):
    return x


@fault(
    "A05",
    "sines and cosines of the relative term alternate",
    "put all sines first, then all cosines",
    shows=f"{AUDIO}.rel_pos_enc",
    swaps="ops.sinusoids",
)
def alternating(original):
    y = original()
    return np.stack(np.split(y, 2, -1), -1).reshape(y.shape)


@fault(
    "A07",
    "the feed-forwards of the audio tower count in full",
    "add half of their output",
    shows=f"{AUDIO}.feed_forward1.out",
    swaps="layers.conformer.feed_forward",
)
def full_feed_forward(original, c):
    return original(c=replace(c, residual_weight=1.0))


@fault(
    "A08-halves",
    "gate and value of the convolution's GLU are swapped",
    "gate the first half by the sigmoid of the second",
    shows=f"{AUDIO}.lconv1d.glu",
    swaps="ops.glu",
)
def glu_swapped(original, x):
    return original(x=np.roll(x, x.shape[-1] // 2, -1))


@fault(
    "A08-centred",
    "the depthwise convolution looks ahead",
    "pad k - 1 frames before, none behind",
    shows=f"{AUDIO}.lconv1d.depthwise_conv1d",
    swaps="ops.causal_conv",
)
def centred_conv(original, x, w):
    ahead = w.shape[-1] // 2
    return original(x=np.pad(x, ((0, 0), (0, ahead))))[:, ahead:]


@fault(
    "A11",
    "the bounds of the audio tower's linears are ignored",
    "clamp the input and the output of a linear to its four stored bounds",
    shows=f"{AUDIO}.ffw_layer_? {AUDIO}.linear_* {AUDIO}_proj {AUDIO}.post",
    swaps="ops.clipped_linear",
    within="layers.conformer.audio_tower",
    at=clipped("audio_tower"),
)
def unclipped(original, x, w):
    return ops.linear(x, w)
