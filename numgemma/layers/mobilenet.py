"""MobileNet-v5, the vision tower of Gemma 3n: a picture of 768 x 768 in, 16 x 16 soft tokens out.

A convolution net of four stages, each at half the resolution of the one before; in the last two, blocks of
convolutions take turns with attention, where all heads share one key and one value.  What the last two stages found
is put together and averaged down to the soft tokens.  Maps are rows, columns, channels.

Additions to the axis key in attention.py:

    Y, X  rows and columns of a map        C  channels        F  channels that a block works on
    I  places that ask, B  places that are asked: those of a map, row by row

The shape of the net is a table: one row per block (equals timm's mobilenetv5_300m_enc).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from numgemma import ops
from numgemma.config import typed
from numgemma.errors import InputError
from numgemma.trace import Tap

EPS = 1e-6

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Edge:
    """An edge residual: one convolution that widens, one that narrows."""

    after: int  # channels
    stride: int
    expand: float
    kernel: int = 3
    before: int = 0  # channels; `wired` says

    @property
    def middle(self):
        return divisible(self.before * self.expand)


@dataclass(frozen=True)
class Inverted:
    """A universal inverted residual: widened and narrowed per place, with up to two filters per channel."""

    after: int
    stride: int
    expand: float
    start: int = 0  # side of the filter before widening; 0: none
    mid: int = 0  # of the one in between
    skips: bool = True  # false: no residual, no gamma
    before: int = 0

    @property
    def middle(self):
        return divisible(self.before * self.expand)


@dataclass(frozen=True)
class SharedAttention:
    """Attention between all places; one key and one value head."""

    after: int
    N: int
    H: int
    kv_stride: int = 1
    kernel: int = 3  # of the filters that make keys and values sparser
    before: int = 0


Row = Edge | Inverted | SharedAttention


@dataclass(frozen=True)
class Architecture:
    """All sizes of a net."""

    stem: int  # channels
    stages: tuple[tuple[Row, ...], ...]
    fusion: Inverted
    side: int  # soft tokens to a side

    @property
    def width(self):
        """Channels of a soft token."""
        return self.fusion.after

    @property
    def shrinks(self):
        """Pixels to a side of one place of the finer of the two maps that are put together, the coarser fitting it."""
        strides = [row.stride for stage in self.stages[:-1] for row in stage if not isinstance(row, SharedAttention)]
        return 2 * math.prod(strides)


WIDTH = 2048  # of a soft token, in every net of this kind

MOBILENETV5_300M = (
    (Edge(128, 2, 4), Edge(128, 1, 4), Edge(128, 1, 4)),
    (
        Inverted(256, 2, 6, start=3, mid=5),
        *(Inverted(256, 1, 4, start=k) for k in (5, 3, 5, 3)),
    ),
    (
        Inverted(640, 2, 6, start=5, mid=5),
        *[Inverted(640, 1, 4, start=5)] * 7,
        Inverted(640, 1, 1),
        *[SharedAttention(640, 12, 64, kv_stride=2), Inverted(640, 1, 2)] * 14,
    ),
    (Inverted(1280, 2, 6, start=5, mid=5), *[SharedAttention(1280, 16, 96), Inverted(1280, 1, 2)] * 19),
)
SIDE = "msfa_output_resolution"
ARCHITECTURES = {"mobilenetv5_300m_enc": MOBILENETV5_300M}


def architecture(name, args: dict[str, Any]) -> Architecture:
    """The table of a net.  args: what timm's create_model is called with; released configs have none."""
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"vision_config: architecture '{name}' is not computed here; numgemma knows {known}.")
    unknown = args.keys() - {"block_args", "stem_size", "msfa_output_resolution"}
    if unknown:
        raise InputError(f"vision_config: model_args '{min(unknown)}' is not computed here; remove it.")
    stem, side = size({"stem_size": 64} | args, "stem_size"), size({SIDE: 16} | args, SIDE)
    given = typed(args.get("block_args"), list[list[dict]] | None, "vision_config: block_args")
    stages = ARCHITECTURES[name] if given is None else tuple(tuple(map(row, stage)) for stage in given)
    if len(stages) < 2 or not all(stages):
        raise InputError("vision_config: block_args has an empty stage, or fewer than two; correct the file.")
    stages = wired(stages, stem)
    fused = sum(stage[-1].after for stage in stages[-2:])
    fusion = Inverted(WIDTH, 1, 2, skips=False, before=fused)
    return Architecture(stem, stages, fusion, side)


def size(block: dict[str, Any], key: str, least: int = 1) -> int:
    """A whole number of a block, within what a net can have."""
    n = typed(block.get(key), int, f"vision_config: {key} of a block")
    if not least <= n <= 1 << 16:
        raise InputError(f"vision_config: {key} of a block is {n}, and should be {least} to 65536; correct the file.")
    return n


def ratio(block: dict[str, Any]) -> float:
    """How much wider a block is inside."""
    wide = typed(block.get("exp_ratio"), float, "vision_config: exp_ratio of a block")
    if not 0 < wide <= 100:
        raise InputError(f"vision_config: exp_ratio of a block is {wide:g}, not above 0 to 100; correct the file.")
    return wide


def row(block: dict[str, Any]) -> Row:
    """A block as timm spells it."""
    kind, after, stride = block.get("block_type"), size(block, "out_chs"), size(block, "stride")
    if kind == "er":
        return Edge(after, stride, ratio(block), size(block, "exp_kernel_size"))
    if kind == "uir":
        start, mid = (size(block, f"dw_kernel_size_{place}", least=0) for place in ("start", "mid"))
        return Inverted(after, stride, ratio(block), start, mid)
    if kind == "mqa":
        heads = (size(block, key) for key in ("num_heads", "key_dim", "kv_stride", "dw_kernel_size"))
        return SharedAttention(after, *heads)
    raise InputError(f"vision_config: block_type '{kind!s:.60}' is not computed here; numgemma knows er, uir and mqa.")


def spelled(row: Row) -> dict[str, Any]:
    """A block as timm spells it; `row` reads it."""
    common = {"out_chs": row.after, "act_layer": None, "noskip": False}
    if isinstance(row, Edge):
        sizes = {"exp_kernel_size": row.kernel, "pw_kernel_size": 1, "force_in_chs": 0, "se_ratio": 0.0}
        return {"block_type": "er", "stride": row.stride, "exp_ratio": float(row.expand)} | sizes | common
    if isinstance(row, Inverted):
        sizes = {"dw_kernel_size_start": row.start, "dw_kernel_size_mid": row.mid, "dw_kernel_size_end": 0}
        sizes |= {"exp_ratio": float(row.expand), "se_ratio": 0.0}
        return {"block_type": "uir", "stride": row.stride} | sizes | common
    heads = {"num_heads": row.N, "key_dim": row.H, "value_dim": row.H, "kv_stride": row.kv_stride}
    return {"block_type": "mqa", "stride": 1, "dw_kernel_size": row.kernel} | heads | common


def wired(stages, channels):
    """The same rows, each told how many channels come in."""
    found = []
    for stage in stages:
        rows = []
        for r in stage:
            rows.append(replace(r, before=channels))
            channels = r.after
        found.append(tuple(rows))
    return tuple(found)


def divisible(channels):
    """The nearest multiple of 8, and not below nine tenths."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


# the net


def mobilenet(pixels, w, net: Architecture, dtype, tap=Tap()):
    """Soft tokens of one picture, on their map.  pixels: C Y X, 0 to 1  ->  Y X C   (equals MobileNetV5Encoder)"""
    x = stem(pixels.transpose(1, 2, 0).astype(dtype), w.at("conv_stem"), tap.at("conv_stem"))
    found = []
    for s, rows in enumerate(net.stages):
        for b, row in enumerate(rows):
            scope = f"blocks.{s}.{b}"
            x = BLOCKS[type(row)](x, w.at(scope), row, tap.at(scope))
        found.append(x)
    return fusion(found[-2], found[-1], w.at("msfa"), net, tap.at("msfa"))


def stem(x, w, tap=Tap()):
    """x: Y X 3  ->  Y/2 X/2 C"""
    h = tap("conv", ops.conv(x, w["conv.weight"], 2, w["conv.bias"]), "Y X C")
    return tap("bn", ops.gelu_tanh(ops.channel_norm(h, w["bn.weight"], EPS)), "Y X C")


def edge(x, w, row: Edge, tap=Tap()):
    """x: Y X C  ->  Y X C, over the stride   (equals EdgeResidual)"""
    h = tap("conv_exp", ops.conv(x, w["conv_exp.weight"], row.stride), "Y X F")
    h = tap("bn1", ops.gelu_tanh(ops.channel_norm(h, w["bn1.weight"], EPS)), "Y X F")
    h = tap("conv_pwl", ops.conv(h, w["conv_pwl.weight"]), "Y X C")
    h = tap("bn2", ops.channel_norm(h, w["bn2.weight"], EPS), "Y X C")
    return tap("out", h + x if adds(row) else h, "Y X C")


def inverted(x, w, row: Inverted, tap=Tap()):
    """x: Y X C  ->  Y X C, over the stride   (equals UniversalInvertedResidual)"""
    h = x
    if row.start:
        h = normed("dw_start", ops.depthwise, h, 1 if row.mid else row.stride, w, tap)
    h = activated("pw_exp", ops.conv, h, 1, w, tap)
    if row.mid:
        h = activated("dw_mid", ops.depthwise, h, row.stride, w, tap)
    h = normed("pw_proj", ops.conv, h, 1, w, tap)
    if not row.skips:
        return tap("out", h, "Y X C")
    h = tap("layer_scale", ops.scale(h, w["layer_scale.gamma"]), "Y X C")
    return tap("out", h + x if adds(row) else h, "Y X C")


def adds(row):
    """Whether what came in is added to what comes out: where both are of one size."""
    return row.stride == 1 and row.before == row.after


def normed(name, op, x, stride, w, tap):
    """A convolution and its norm.  x: Y X C  ->  Y X C"""
    w, tap = w.at(name), tap.at(name)
    h = tap("conv", op(x, w["conv.weight"], stride), "Y X C")
    return tap("bn", ops.channel_norm(h, w["bn.weight"], EPS), "Y X C")


def activated(name, op, x, stride, w, tap):
    """A convolution, its norm and GELU.  x: Y X C  ->  Y X C"""
    w, tap = w.at(name), tap.at(name)
    h = tap("conv", op(x, w["conv.weight"], stride), "Y X C")
    return tap("bn", ops.gelu_tanh(ops.channel_norm(h, w["bn.weight"], EPS)), "Y X C")


def attention(x, w, row: SharedAttention, tap=Tap()):
    """x: Y X C  ->  Y X C   (equals MobileAttention with MultiQueryAttention2d)"""
    inner = tap.at("attn")  # before a letter is bound: there, keys may lie on a smaller map
    h = tap("norm", ops.channel_norm(x, w["norm.weight"], EPS), "Y X C")
    h = attend_places(h, w.at("attn"), row, inner)
    h = tap("layer_scale", ops.scale(h, w["layer_scale.gamma"]), "Y X C")
    return tap("out", h + x, "Y X C")


def attend_places(x, w, row: SharedAttention, tap=Tap()):
    """Every place asks; places, or one of every few, are asked.  x: Y X C  ->  Y X C"""
    q = tap.at("query")("proj", ops.conv(x, w["query.proj.weight"]), "Y X C").reshape(-1, row.N, row.H)
    k = one_head(x, w.at("key"), row, tap.at("key"))
    v = one_head(x, w.at("value"), row, tap.at("value"))
    q = ops.scale(q, row.H**-0.5)
    context = tap("context", ops.attend_places(q, k, v, tap), "I N H")
    h = ops.conv(context.reshape(*x.shape[:2], -1), w["output.proj.weight"])
    return tap.at("output")("proj", h, "Y X C")


def one_head(x, w, row: SharedAttention, tap=Tap()):
    """The keys, or the values, that all heads share.  x: Y X C  ->  B H"""
    if row.kv_stride > 1:
        x = tap("down_conv", ops.depthwise(x, w["down_conv.weight"], row.kv_stride), "Y X C")
        x = tap("norm", ops.channel_norm(x, w["norm.weight"], EPS), "Y X C")
    return tap("proj", ops.conv(x, w["proj.weight"]), "Y X H").reshape(-1, row.H)


BLOCKS: dict[type, Callable] = {Edge: edge, Inverted: inverted, SharedAttention: attention}


def fusion(fine, coarse, w, net: Architecture, tap=Tap()):
    """Both maps on the finer grid, one block on them, averaged; the norm comes last.  Y X C, Y/2 X/2 C  ->  Y X C

    Equals MobileNetV5MultiScaleFusionAdapter.
    """
    times = len(fine) // len(coarse)
    both = np.concatenate([fine, coarse.repeat(times, 0).repeat(times, 1)], -1)
    h = inverted(both, w.at("ffn"), net.fusion, tap.at("ffn"))
    h = ops.mean_of_squares(h, len(h) // net.side)
    return tap("norm", ops.channel_norm(h, w["norm.weight"], EPS), "Y X C")


# its tensors


def net_shapes(net: Architecture) -> Shapes:
    """Name -> shape of every tensor."""
    shapes: Shapes = {"conv_stem.conv.weight": (net.stem, 3, 3, 3)}
    shapes |= {f"conv_stem.{name}": (net.stem,) for name in ("conv.bias", "bn.weight")}
    for s, rows in enumerate(net.stages):
        for b, row in enumerate(rows):
            shapes |= {f"blocks.{s}.{b}.{name}": shape for name, shape in SHAPES[type(row)](row).items()}
    shapes |= {f"msfa.ffn.{name}": shape for name, shape in inverted_shapes(net.fusion).items()}
    return shapes | {"msfa.norm.weight": (net.width,)}


def edge_shapes(row: Edge) -> Shapes:
    """What `edge` reads."""
    return {
        "conv_exp.weight": (row.middle, row.before, row.kernel, row.kernel),
        "bn1.weight": (row.middle,),
        "conv_pwl.weight": (row.after, row.middle, 1, 1),
        "bn2.weight": (row.after,),
    }


def inverted_shapes(row: Inverted) -> Shapes:
    """What `inverted` reads."""
    filters = {
        "dw_start": (row.before, 1, row.start, row.start) if row.start else None,
        "pw_exp": (row.middle, row.before, 1, 1),
        "dw_mid": (row.middle, 1, row.mid, row.mid) if row.mid else None,
        "pw_proj": (row.after, row.middle, 1, 1),
    }
    shapes: Shapes = {}
    for name, shape in filters.items():
        if shape:
            shapes |= {f"{name}.conv.weight": shape, f"{name}.bn.weight": shape[:1]}
    return shapes | ({"layer_scale.gamma": (row.after,)} if row.skips else {})


def attention_shapes(row: SharedAttention) -> Shapes:
    """What `attention` reads."""
    C, k = row.before, row.kernel
    shapes: Shapes = {"norm.weight": (C,), "layer_scale.gamma": (row.after,)}
    for one in ("key", "value"):
        shapes[f"attn.{one}.proj.weight"] = (row.H, C, 1, 1)
        if row.kv_stride > 1:
            shapes |= {f"attn.{one}.down_conv.weight": (C, 1, k, k), f"attn.{one}.norm.weight": (C,)}
    NH = row.N * row.H
    return shapes | {"attn.query.proj.weight": (NH, C, 1, 1), "attn.output.proj.weight": (row.after, NH, 1, 1)}


SHAPES: dict[type, Callable] = {Edge: edge_shapes, Inverted: inverted_shapes, SharedAttention: attention_shapes}
