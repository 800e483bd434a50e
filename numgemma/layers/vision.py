"""The vision tower of E2B, E4B, 26B-A4B and 31B: patches of an image in, soft tokens out.

A patch is 16 x 16 pixels.  Every patch sees every other; where it lies enters twice, as an embedding and by rotary
angles.  At the end each square of 3 x 3 patches is averaged into one soft token.  An image runs alone, without the
padding that Transformers puts behind the patches of a smaller one: there, padding is masked and cut off at the end.
"""

import math

import numpy as np

from numgemma import ops
from numgemma.layers.feedforward import clipped_linear
from numgemma.trace import Tap


def vision_tower(patches, positions, w, c, dtype, tap=Tap()):
    """Soft tokens of one image.  patches: I pixels, 0 to 1   positions: I 2  ->  O C   (equals Gemma4VisionModel)

    positions: column x and row y of each patch.  c is the VisionConfig.
    """
    x = patch_embedder(patches, positions, w.at("patch_embedder"), dtype, tap.at("patch_embedder"))
    x = encoder(x, positions, w.at("encoder"), c, tap.at("encoder"))
    # pooled rows stay float32 in a bfloat16 run: sqrt(C) makes them large, and the bias that is subtracted cancels that
    soft = tap("pooler", pooler(x, positions, c.pooling_kernel_size), "O C")
    if c.standardize:
        soft = ops.standardize(soft, w["std_bias"], w["std_scale"], dtype)
    return tap("out", ops.narrow(soft, dtype), "O C")


def patch_embedder(patches, positions, w, dtype, tap=Tap()):
    """Pixels and place of each patch.  patches: I pixels   positions: I 2  ->  I C   (Gemma4VisionPatchEmbedder)"""
    x = tap("input_proj", ops.linear(ops.center(patches, dtype), w["input_proj.weight"]), "I C")
    columns, rows = w["position_embedding_table"]  # one table by column, one by row
    place = ops.embed(positions[:, 0], columns, dtype) + ops.embed(positions[:, 1], rows, dtype)
    return tap("out", x + tap("position_embedding", place, "I C"), "I C")


def encoder(x, positions, w, c, tap=Tap()):
    """All layers.  x: I C   positions: I 2  ->  I C   (equals Gemma4VisionEncoder)"""
    rope = axial_rope_table(positions, c, x.dtype, tap.at("rotary_emb"))
    for i in range(c.num_hidden_layers):
        x = block(x, w.at(f"layers.{i}"), c, rope, tap.at(f"layers.{i}"))
    return x


def block(x, w, c, rope, tap=Tap()):
    """One layer.  x: I C  ->  I C   (equals Gemma4VisionEncoderLayer)"""
    h = norm("input_layernorm", x, w, c, tap)
    h = attention(h, w.at("self_attn"), c, rope, tap.at("self_attn"))
    h = norm("post_attention_layernorm", h, w, c, tap)
    x = tap("after_attention", x + h, "I C")

    h = norm("pre_feedforward_layernorm", x, w, c, tap)
    h = mlp(h, w.at("mlp"), tap.at("mlp"))
    h = norm("post_feedforward_layernorm", h, w, c, tap)
    return tap("out", x + h, "I C")


def norm(name, x, w, c, tap):
    """RMSNorm with the weight of that name.  x: I C  ->  I C"""
    return tap(name, ops.rms_norm(x, w[f"{name}.weight"], c.rms_norm_eps), "I C")


def attention(x, w, c, rope, tap=Tap()):
    """Self-attention between all patches of the image.  x: I C  ->  I C   (equals Gemma4VisionAttention)"""
    eps, N, K, H = c.rms_norm_eps, c.num_attention_heads, c.num_key_value_heads, c.head_dim
    q = tap("q_proj", clipped_linear(x, w.at("q_proj")).reshape(-1, N, H), "I N H")
    q = tap("q_norm", ops.rms_norm(q, w["q_norm.weight"], eps), "I N H")
    q = tap("q_rope", axial_rope(q, rope), "I N H")
    k = tap("k_proj", clipped_linear(x, w.at("k_proj")).reshape(-1, K, H), "I K H")
    k = tap("k_norm", ops.rms_norm(k, w["k_norm.weight"], eps), "I K H")
    k = tap("k_rope", axial_rope(k, rope), "I K H")
    v = tap("v_proj", clipped_linear(x, w.at("v_proj")).reshape(-1, K, H), "I K H")
    v = tap("v_norm", ops.rms_norm(v, None, eps), "I K H")

    context = tap("context", ops.attend_all(q, k, v, tap), "I N H")  # scale 1: q_norm and k_norm carry it
    return tap("o_proj", clipped_linear(context.reshape(len(x), -1), w.at("o_proj")), "I C")


def mlp(x, w, tap=Tap()):
    """Gated feed-forward.  x: I C  ->  I C   (equals Gemma4VisionMLP)"""
    gate = tap("gate_proj", clipped_linear(x, w.at("gate_proj")), "I F")
    up = tap("up_proj", clipped_linear(x, w.at("up_proj")), "I F")
    return tap("down_proj", clipped_linear(ops.gated_gelu(gate, up), w.at("down_proj")), "I C")


def axial_rope_table(positions, c, dtype, tap=Tap()):
    """cos and sin for both halves of a head: the first turns by column, the second by row.  I 2  ->  I H, I H

    Equals Gemma4VisionRotaryEmbedding.
    """
    half, theta = c.head_dim // 2, float(c.rope_parameters["rope_theta"])
    tables = [ops.rope_table(positions[:, axis], half, theta, half // 2, 1.0, dtype) for axis in (0, 1)]
    cos, sin = (np.concatenate(parts, -1) for parts in zip(*tables, strict=True))
    return tap("cos", cos, "I H"), tap("sin", sin, "I H")


def axial_rope(x, rope):
    """Rotary embedding of two positions; pairs of lanes lie within one half.  x: I N H   cos, sin: I H  ->  I N H

    Equals apply_multidimensional_rope.
    """
    (by_column, by_row), (cos, cos_row), (sin, sin_row) = (np.split(part, 2, -1) for part in (x, *rope))
    return np.concatenate([ops.rope(by_column, cos, sin), ops.rope(by_row, cos_row, sin_row)], -1)


def pooler(x, positions, k):
    """Mean over squares of k x k patches, times sqrt(C).  x: I C  ->  O C, float32 at least   (Gemma4VisionPooler)

    Which square a patch belongs to is told by its position, not by its place in the list.
    """
    column, row = positions.T // k
    squares_across = (positions[:, 0].max() + 1) // k
    mean = ops.mean_of_bins(x, column + squares_across * row)
    return ops.widen(mean, math.sqrt(x.shape[1]))  # times sqrt(C), not rounded
