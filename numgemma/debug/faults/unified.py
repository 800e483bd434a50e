"""Faults of 12B: patches and frames projected straight into the decoder, and who sees whom among them.

Left out: what is wrong before the model (the last frame of a sound dropped, U04) or at loading (U05, U07, U10); tokens
that sampling should suppress (U06).  U03 is V12-causal; U14 is V12-causal in 12B, V12-always in E2B and E4B.
"""

import numpy as np

from numgemma import ops
from numgemma.debug.faults.attending import ATTENTION, slides
from numgemma.debug.faults.fault import Rewired, fault
from numgemma.debug.faults.pictures import sees_images, with_clips, with_images
from numgemma.families.unified.unified import masks_of_transformers

PATCHES = "embed_vision*"


# -- patches and places


@fault(
    "U01",
    "the norms of patches are RMSNorms",
    "take the mean away too, and add the bias: these are LayerNorms",
    shows=f"{PATCHES}.patch_ln1",
    swaps="layer norm",
)
def rms_for_layer_norm(original, name, x, w, tap, axes):
    return tap(name, ops.rms_norm(x, w[f"{name}.weight"], 1e-6), axes)


@fault(
    "U01-bias",
    "the biases of the norms of patches are left out",
    "load and add patch_ln1.bias, patch_ln2.bias and pos_norm.bias",
    shows=f"{PATCHES}.patch_ln1",
    swaps="layer norm",
)
def no_bias(original, name, x, w, tap, axes):
    return tap(name, ops.layer_norm(x, w[f"{name}.weight"], 1e-5), axes)


@fault(
    "U02",
    "the place of a patch is one number, x times the rows plus y",
    "add the row of the table for x and the row for y",
    shows=f"{PATCHES}.placed",
    swaps="place patches",
)
def one_index(original, positions):
    x, y = positions.T
    flat = x * (y.max() + 1) + y
    return original(positions=np.stack([flat, flat], -1))


@fault(
    "U02-swapped",
    "columns and rows of a patch's place are exchanged",
    "take the first of both tables for x, the column",
    shows=f"{PATCHES}.placed",
    swaps="place patches",
)
def rows_for_columns(original, positions):
    return original(positions=positions[:, ::-1])


@fault(
    "U09",
    "the norms of patches use the eps of the config, 1e-6",
    "use 1e-5, which is PyTorch's where none is said",
    shows=f"{PATCHES}.patch_ln1",
    swaps="layer norm",
)
def eps_of_the_config(original, name, x, w, tap, axes):
    return tap(name, ops.layer_norm(x, w[f"{name}.weight"], 1e-6, w[f"{name}.bias"]), axes)


@fault(
    "U11",
    "a patch is handed in as a tower's, nine patches of 16 x 16 one after another",
    "cut the picture into squares of 48 x 48 pixels, row by row",
    shows=f"{PATCHES}.patch_ln1",
    swaps="place patches",
)
def nine_patches(original, patches):
    side = round((patches.shape[1] / 3) ** 0.5) // 3
    nine = patches.reshape(-1, 3, side, 3, side, 3).transpose(0, 1, 3, 2, 4, 5)
    return original(patches=np.ascontiguousarray(nine).reshape(patches.shape))


@fault(
    "U11-centred",
    "pixels are centred as for a tower, 2 x - 1",
    "hand them in as they are, between 0 and 1",
    shows=f"{PATCHES}.patch_ln1",
    swaps="place patches",
)
def centred(original, patches):
    return original(patches=2 * patches - patches.dtype.type(1))


@fault(
    "U04-mean",
    "the mean of a sound's frame is taken away, as in the norms of patches",
    "divide each frame by its size alone: this norm is an RMSNorm without a weight",
    shows="embed_audio*.embedding_pre_projection_norm",
    swaps="hear",
    at=lambda spec, model: bool(model.config.audio) and model.config.audio.audio_embed_dim > 0,
    media=with_clips,
)
def sound_centred(original, frames, run, tap):
    def centred(y, seen):
        x = ops.narrow(frames - frames.mean(-1, keepdims=True), run.dtype)
        return ops.rms_norm(x, None, run.config.audio.rms_norm_eps)

    return original(tap=Rewired(tap, {"embedding_pre_projection_norm": centred}))


# -- who sees whom


@fault(
    "U08",
    "tokens of one image see each other on full layers too, as in Transformers' forward pass of 12B",
    "leave full layers causal, or compare with --image-mask transformers",
    shows=f"{ATTENTION}.scores",
    swaps="image masks",
    at=lambda spec, model: sees_images(spec, model) and spec.window is None,
    by_kind=True,
    media=with_images,
)
def images_on_full_layers(original, blocks, config, start):
    far = masks_of_transformers(blocks, config.text, start)
    return original() | {kind: far[kind] for kind, spec in config.text.kinds.items() if spec.window is None}


@fault(
    "U08-far",
    "tokens of one image see each other past the window, as in Transformers' forward pass of 12B",
    "let the window end how far back a token sees, or compare with --image-mask transformers",
    shows=f"{ATTENTION}.scores",
    swaps="image masks",
    at=lambda spec, model: sees_images(spec, model) and slides(spec, model),
    by_kind=True,
    media=with_images,
)
def images_past_the_window(original, blocks, config, start):
    far = masks_of_transformers(blocks, config.text, start)
    return original() | {kind: far[kind] for kind, spec in config.text.kinds.items() if spec.window}


@fault(
    "U12",
    "an image longer than the window is dropped to causal",
    "let its tokens see each other within the window",
    shows=f"{ATTENTION}.scores",
    swaps="image masks",
    at=lambda spec, model: sees_images(spec, model) and slides(spec, model),
    by_kind=True,
    media=with_images,
)
def long_images_causal(original, blocks, config):
    sizes = np.bincount(blocks[blocks >= 0], minlength=1)
    long = (blocks >= 0) & (sizes[blocks] > config.text.sliding_window)
    return original(blocks=np.where(long, -1, blocks))


@fault(
    "U13",
    "frames of a sound see each other, as patches of an image do",
    "leave sound causal",
    shows=f"{ATTENTION}.scores",
    swaps="enter",
    at=lambda spec, model: sees_images(spec, model) and slides(spec, model),
    by_kind=True,
    media=with_clips,
)
def sound_is_a_block(original, ids, blocks, run):
    return original(blocks=np.where(ids == run.config.audio_token_id, blocks.max() + 1, blocks))
