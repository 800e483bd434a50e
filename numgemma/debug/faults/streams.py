"""Faults of Gemma 3n: its streams, sparse gates, hard tokens and towers; and where Google's own package (`gemma`, in
JAX) computes something else than Transformers, which is what numgemma follows: ids with a G.

Left out: what is wrong at loading (N19) or in a processor (N15), what the norm behind it hides (N14).  That package
defines its model without a soft cap: T17-missing.  Its rounding in bfloat16 is another one too, which is no fault.
"""

import numpy as np

from numgemma import ops
from numgemma.debug.faults.fault import Rewired, fault, with_weights
from numgemma.debug.faults.pictures import with_clips, with_images


def has_streams(spec, model):
    return "stream gains" in model.family.parts and model.config.text.altup_num_inputs > 1


def has_laurel(spec, model):
    return f"layers.{spec.index}.laurel.linear_left.weight" in model.weights


def is_sparse(spec, model):
    return hasattr(spec, "sparsity") and spec.sparsity > 0


def sees(spec, model):
    return "vision_tower.timm_model.conv_stem.conv.weight" in model.weights


def hears(spec, model):
    return "audio_tower.subsample_conv_projection.conv_0.conv.weight" in model.weights


@fault(
    "N01",
    "the per-layer residual joins stream 0 too",
    "add it to the other streams alone: stream 0 hears of it in the next layer",
    shows="layers.*.out",
    swaps="joined",
)
def joins_all(original, s, e):
    return s + e


@fault(
    "N02",
    "the gate of the per-layer input reads stream 0 without its scale",
    "multiply what the gate reads by correct_output_scale, and the stream not",
    shows="layers.*.altup.out",
    swaps="output scale",
)
def unscaled(original, x, tap):
    return tap("out", x, "T D")


@fault(
    "N03",
    "LAuReL's residual is the raw stream",
    "add what linear_right gives, normed, to the normed input that attention reads too",
    shows="layers.*.laurel.out",
    swaps="block",
    at=has_streams,
)
def past_the_norm(original, tap):
    return original(tap=Rewired(tap, {"laurel.out": raw_residual}))


def raw_residual(y, seen):
    return seen["altup.predict"][0] + seen["laurel.post_laurel_norm"]


@fault(
    "N04",
    "the two residuals are added and not divided by sqrt(2)",
    "divide the sum of attention's and LAuReL's residual by sqrt(2)",
    shows="layers.*.after_attention",
    swaps="ops.divide",
    at=has_laurel,
)
def undivided(original, x):
    return x


@fault(
    "N05",
    "what the router of the streams reads is divided by sqrt(D)",
    "divide it by D",
    shows="layers.*.altup.modality_router",
    swaps="ops.scale",
    within="stream router",
)
def root_of_width(original, x):
    return original(factor=x.dtype.type(x.shape[-1] ** -0.5))


@fault(
    "N06",
    "correction coefficients lack the 1",
    "add 1 to what correction_coefs gives",
    shows="layers.*.altup.correct",
    swaps="stream gains",
)
def without_one(original, coefs):
    return coefs


@fault(
    "N07",
    "no gate of a sparse layer is held at zero",
    "hold the gates below mean + m deviations at zero, before GELU",
    shows="layers.*.mlp.gaussian_topk",
    swaps="ops.gaussian_topk",
    at=is_sparse,
)
def dense(original, x):
    return x


@fault(
    "N07-count",
    "a sparse layer keeps a share of its gates by count, as they are",
    "subtract the threshold, which is mean + m deviations of the row, and hold what is below it at zero",
    shows="layers.*.mlp.gaussian_topk",
    swaps="ops.gaussian_topk",
    at=is_sparse,
)
def by_count(original, x, sparsity):
    kept = max(1, round((1 - sparsity) * x.shape[-1]))
    least = np.sort(x.astype(np.float32), -1)[..., -kept, None]
    return np.where(x >= least, x, x.dtype.type(0))


@fault(
    "N08",
    "streams enter and leave at their own size",
    "scale every projection to the root mean square of stream 0",
    shows="streams",
    swaps="ops.as_large_as",
    at=has_streams,
)
def own_size(original, y):
    return y


@fault(
    "N09",
    "ids beyond the per-layer table take its last row",
    "give them row 0",
    shows="embed_tokens_per_layer",
    swaps="per-layer inputs",
)
def last_row(original, ids, c):
    return original(ids=np.minimum(ids, c.vocab_size_per_layer_input - 1))


@fault(
    "N10",
    "queries of sharing layers turn as if they stood behind this pass",
    "turn them at their own positions, not from where the donor's cache ends",
    shows="layers.*.self_attn.q_rope",
    swaps="block",
    at=lambda spec, model: has_streams(spec, model) and spec.kv_from != spec.index,
)
def behind_the_pass(original, x, spec, rope):
    return original(rope=turned(rope, x.shape[-2], spec))


def turned(rope, count, spec):
    """The rotary table of positions that lie so many tokens later.  cos T H, sin T H  ->  the same"""
    cos, sin = (part.astype(np.float64) for part in rope)
    more_cos, more_sin = ops.rope_table(np.array([count]), spec.H, spec.theta, spec.angles, spec.rope_factor, cos.dtype)
    later = cos * more_cos - sin * more_sin, sin * more_cos + cos * more_sin
    return tuple(part.astype(rope[0].dtype) for part in later)


@fault(
    "N11",
    "the ends of pictures and sound come from embed_tokens",
    "look up ids from vocab_offset on in the table of their tower",
    shows="embed_*.embedding",
    swaps="hard tokens",
    at=sees,
)
def all_from_one_table(original, x):
    return x


@fault(
    "N12",
    "convolutions of pictures pad alike on both sides",
    "pad as TensorFlow's SAME does, the odd pixel behind",
    shows="vision_tower*.conv_stem.conv",
    swaps="ops.maps.border",
    at=sees,
    media=with_images,
)
def alike(original, k):
    return 2 * (k // 2), k // 2


@fault(
    "N13",
    "the blocks of the picture's net lack their residual",
    "add what came in where the stride is 1 and the widths are equal",
    shows="vision_tower*.blocks.*.out",
    swaps="layers.mobilenet.adds",
    at=sees,
    media=with_images,
)
def no_skip(original):
    return False


@fault(
    "N13-gamma",
    "the blocks of the picture's net leave out layer_scale",
    "multiply what a block adds by its gamma: 1e-5 before training, so that a fresh model hides this",
    shows="vision_tower*.layer_scale",
    swaps="ops.scale",
    within="layers.mobilenet.mobilenet",
    at=sees,
    media=with_images,
)
def no_gamma(original, x, factor):
    return x if np.ndim(factor) else original()


@fault(
    "N16",
    "behind a sound stand zeros",
    "fill up to the fixed number with the last hard token of the sound's table",
    shows="inputs_embeds",
    swaps="filled",
    at=hears,
    media=with_clips,
)
def zeros(original, behind):
    return original(behind=np.zeros_like(behind))


@fault(
    "N17",
    "a frame of sound hears twelve frames, as in Gemma 4",
    "let it hear thirteen: itself and twelve before",
    shows="audio_tower*.scores",
    swaps="ops.attend_frames",
    at=hears,
    media=with_clips,
)
def one_less(original, frames):
    return original(frames=frames - 1)


@fault(
    "N18",
    "a sound is cut where its mask ends, before the convolutions",
    "leave the six frames of padding that they look ahead to, which are silence and not zeros",
    shows="audio_tower*.subsample_conv_projection.conv_?.conv",
    swaps="sound tower",
    at=hears,
    media=with_clips,
)
def cut_at_the_mask(original, features, frames):
    return original(features=features[:frames])


LIMIT = 120.0  # altup_coef_clip of every release
COEFS = ("altup.prediction_coefs.weight", "altup.correction_coefs.weight")


def beyond_the_limit(spec, model):
    w = model.weights.at(f"layers.{spec.index}")
    return any(np.abs(w[name].astype(np.float32)).max() > LIMIT for name in COEFS if name in w)


@fault(
    "G01",
    "the coefficients of the streams are clipped, as in Google's package",
    "clip them to altup_coef_clip in training alone, as Transformers does",
    shows="layers.*.altup.*tion_coefs",
    swaps="block",
    at=beyond_the_limit,
)
def clipped_coefs(original, w):
    return original(w=with_weights(w, {name: np.clip(w[name], -LIMIT, LIMIT).astype(w[name].dtype) for name in COEFS}))


@fault(
    "G02",
    "small streams are made as large as stream 0 too, as in Google's package",
    "hold the mean of a projection's squares at 1e-5 or more before the root, as Transformers does",
    shows="streams mean_of_streams",
    swaps="ops.as_large_as",
    at=has_streams,
)
def without_floor(original, y, like):
    have, wanted = (np.sqrt(np.mean(np.square(x.astype(np.float32)), -1, keepdims=True)) for x in (y, like))
    return y * (wanted / np.maximum(have, np.float32(1e-12))).astype(y.dtype)
