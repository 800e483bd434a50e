"""Faults of the vision tower, and of how soft tokens enter the prompt.

Left out: what is wrong with pixels before the model (V02, V15); padding (of V04 and V07), of which none is left here;
prefill in chunks (V14).
"""

import math
from dataclasses import replace

import numpy as np

from numgemma import ops
from numgemma.debug.faults.attending import ATTENTION, slides
from numgemma.debug.faults.fault import Rewired, fault, has_key, swapped, with_weights
from numgemma.prompt import media

VISION = "vision_tower*"
LAYER = f"{VISION}.encoder.layers.*.self_attn"


def with_images(given):
    return media.has_pictures(given)


def with_clips(given):
    return bool(media.clips(given))


def with_any(given):
    return with_images(given) or with_clips(given)


# -- patches and places


@fault(
    "V01-uncentred",
    "pixels stay between 0 and 1",
    "let the patch embedder compute 2 (x - 0.5)",
    shows=f"{VISION}.patch_embedder.input_proj",
    swaps="ops.center",
)
def uncentred(original, pixels, dtype):
    return pixels.astype(dtype)


@fault(
    "V01-twice",
    "pixels are centred twice",
    "give the model pixels between 0 and 1: it centres them itself",
    shows=f"{VISION}.patch_embedder.input_proj",
    swaps="ops.center",
)
def centred_twice(original, pixels):
    return original(pixels=original(dtype=pixels.dtype))


@fault(
    "V03-colours",
    "a patch lists its colours first",
    "list a patch by rows, then columns, colours last",
    shows=f"{VISION}.patch_embedder.input_proj",
    swaps="ops.center",
)
def colours_first(original, pixels):
    side = math.isqrt(pixels.shape[1] // 3)
    return original(pixels=pixels.reshape(-1, side, side, 3).transpose(0, 3, 1, 2).reshape(pixels.shape))


@fault(
    "V03-places",
    "a patch's place is (row, column)",
    "give column x first, then row y",
    shows=f"{VISION}.patch_embedder.position_embedding",
    swaps="layers.vision.vision_tower",
)
def places_swapped(original, positions):
    return original(positions=positions[:, ::-1])


@fault(
    "V04",
    "one table serves columns and rows",
    "take table 0 at x and table 1 at y",
    shows=f"{VISION}.patch_embedder.position_embedding",
    swaps="layers.vision.patch_embedder",
)
def one_table(original, w):
    columns, _ = w["position_embedding_table"]
    return original(w=with_weights(w, {"position_embedding_table": (columns, columns)}))


# -- the vision tower's attention


@fault(
    "V05-whole",
    "axial rope rotates the head as a whole",
    "rotate each half of the head by itself: lanes i and i + H/4 are a pair",
    shows=f"{LAYER}.q_rope",
    swaps="layers.vision.axial_rope",
)
def whole_rope(original, x, rope):
    return ops.rope(x, *rope)


@fault(
    "V05-column",
    "both halves of a head turn by the column",
    "turn the second half by the row",
    shows=f"{VISION}.rotary_emb.*",
    swaps="layers.vision.axial_rope_table",
)
def column_twice(original, positions):
    return original(positions=positions[:, [0, 0]])


@fault(
    "V06-knorm",
    "k_norm is loaded from q_norm",
    "load each from its own tensor",
    shows=f"{LAYER}.k_norm",
    swaps="layers.vision.attention",
)
def k_norm_from_q(original, w):
    return original(w=with_weights(w, {"k_norm.weight": w["q_norm.weight"]}))


@fault(
    "V06-vnorm",
    "V of the vision tower is not normalised",
    "put V through an RMSNorm without a weight",
    shows=f"{LAYER}.v_norm",
    swaps="ops.rms_norm",
    within="layers.vision.attention",
)
def no_value_norm(original, x, w):
    return x if w is None else original()


@fault(
    "V06-scale",
    "scores of the vision tower are divided by sqrt(head_dim)",
    "use scale 1: q_norm and k_norm carry it",
    shows=f"{LAYER}.scores {LAYER}.context",
    swaps="ops.attend_all",
)
def scaled_scores(original, q):
    return original(q=ops.scale(q, q.shape[-1] ** -0.5))


# -- from patches to soft tokens


@fault(
    "V07-unscaled",
    "pooled patches are not scaled",
    "multiply the mean of 3 x 3 patches by sqrt(C)",
    shows=f"{VISION}.pooler",
    swaps="ops.widen",
)
def pooled_unscaled(original):
    return original(factor=1.0)


@fault(
    "V07-rows",
    "patches are pooled nine by nine as they come",
    "pool the squares that their positions make",
    shows=f"{VISION}.pooler",
    swaps="ops.mean_of_bins",
)
def pooled_in_order(original, bins):
    return original(bins=np.arange(len(bins)) // (len(bins) // (bins.max() + 1)))


@fault(
    "V08",
    "soft tokens are not standardised",
    "compute (x - std_bias) * std_scale after pooling, in float32",
    shows=f"{VISION}.out",
    swaps="ops.standardize",
    at=lambda spec, model: "vision_tower.std_bias" in model.weights,
)
def not_standardised(original, x, dtype):
    return x.astype(dtype)


@fault(
    "V09",
    "soft tokens are normalised after their projection",
    "normalise, without a weight, then project",
    shows="embed_*.embedding_pre_projection_norm",
    swaps="embedder",
)
def norm_after_projection(original, soft, c, tap):
    equations = {
        "embedding_pre_projection_norm": lambda y, seen: soft,
        "embedding_projection": lambda y, seen: ops.rms_norm(y, None, c.rms_norm_eps),
    }
    return original(tap=Rewired(tap, equations))


@fault(
    "V10",
    "soft tokens are scaled like embeddings",
    "put them into the stream as they are",
    shows="inputs_embeds",
    swaps="merge",
)
def soft_tokens_scaled(original, x, soft):
    factor = math.sqrt(x.shape[1])
    return original(soft={kind: ops.scale(rows, factor) for kind, rows in soft.items()})


def clipped(tower):
    return lambda spec, model: any(name.startswith(tower) and name.endswith("input_min") for name in model.weights)


@fault(
    "V11",
    "the bounds of the vision tower's linears are ignored",
    "clamp the input and the output of a linear to its four stored bounds",
    shows=f"{VISION}_proj",
    swaps="ops.clipped_linear",
    within="layers.vision.vision_tower",
    at=clipped("vision_tower"),
)
def unclipped(original, x, w):
    return ops.linear(x, w)


# -- who sees whom


WHO_SEES = "use_bidirectional_attention"


def sees_images(spec, model):
    return has_key(model, WHO_SEES) and model.config.text.use_bidirectional_attention == "vision"


def one_mask(model):
    """Where a run can choose between two, the other is U08."""
    return len(model.family.image_masks) == 1


@fault(
    "V12-causal",
    "tokens of one image do not see each other",
    "on sliding layers let them, within the window",
    shows=f"{ATTENTION}.scores",
    swaps="image mask",
    at=lambda spec, model: sees_images(spec, model) and slides(spec, model),
    by_kind=True,
    media=with_images,
)
def causal_images(original, blocks):
    return original(blocks=np.full_like(blocks, -1))


@fault(
    "V12-full",
    "tokens of one image see each other on full layers too",
    "leave full layers causal",
    shows=f"{ATTENTION}.scores",
    swaps="layers",
    at=lambda spec, model: sees_images(spec, model) and not slides(spec, model) and one_mask(model),
    by_kind=True,
    media=with_images,
)
def images_everywhere(original, tokens):
    both = np.asarray(tokens.masks["full_attention"]) | np.asarray(tokens.masks["sliding_attention"])
    return original(tokens=replace(tokens, masks=tokens.masks | {"full_attention": both}))


@fault(
    "V12-always",
    "tokens of one image see each other although the model is causal",
    "follow use_bidirectional_attention: null means causal",
    shows=f"{ATTENTION}.scores",
    swaps="enter",
    at=lambda spec, model: has_key(model, WHO_SEES) and not sees_images(spec, model) and slides(spec, model),
    by_kind=True,
    media=with_images,
)
def images_see_each_other(original, run):
    text = replace(run.config.text, use_bidirectional_attention="vision")
    return original(run=replace(run, config=replace(run.config, text=text)))


@fault(
    "V13",
    "all images of a prompt are one block",
    "let a block be one unbroken run of placeholders",
    shows=f"{ATTENTION}.scores",
    swaps="image mask",
    at=lambda spec, model: sees_images(spec, model) and slides(spec, model),
    by_kind=True,
    media=lambda given: len(media.images(given)) + len(media.frames(given)) > 1,
)
def one_block(original, blocks, window):
    mask, inside, positions = np.array(original()), blocks >= 0, np.arange(len(blocks))
    mask[:, -len(blocks) :] |= inside[:, None] & inside & (positions[:, None] - positions < window)
    return mask


def pads(spec, model):
    """Whether placeholders are looked up as padding, before soft tokens take their places."""
    return "merge" in model.family.parts


@fault(
    "P04-id",
    "per-layer embeddings are looked up by the placeholders' own ids",
    "look up the padding id at placeholders",
    shows="embed_tokens_per_layer",
    swaps="enter",
    at=pads,
    media=with_any,
)
def placeholders_looked_up(original, ids):
    with swapped("layers.per_layer.per_layer_inputs", lambda inputs: inputs(ids=ids)):
        return original()


@fault(
    "P04-context",
    "the per-layer projection reads the padding token's embedding at placeholders",
    "project the stream with its soft tokens",
    shows="per_layer_model_projection",
    swaps="enter",
    at=pads,
    media=with_any,
)
def context_without_soft_tokens(original, tap):
    tap = Rewired(tap, {})
    with swapped("layers.per_layer.per_layer_inputs", lambda inputs: inputs(x=tap.seen["embed_tokens"])):
        return original(tap=tap)
