"""Prompts with images, videos and sound: against stored runs of Transformers, their properties, and known faults."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from closeness import assert_close, relative

import numgemma
from numgemma import cache, masks, ops
from numgemma.debug.compare.diff import diff
from numgemma.errors import InputError
from numgemma.families.gemma4 import gemma4, multimodal
from numgemma.generate import prefill
from numgemma.layers import conformer, vision
from numgemma.ops import definitions
from numgemma.prompt import media
from numgemma.prompt.media import NO_MEDIA, Media, read_media

STORED = Path(__file__).parents[1] / "reference_outputs"
NAMES = list(tiny.MULTIMODAL)


def opened(folders, name, precision="float32"):
    """A model, and a prompt for it: ids and media."""
    ids, arrays = tiny.multimodal_prompt(name)
    return numgemma.load(folders[name], precision), ids, read_media(arrays)


def stored(name):
    return numgemma.read_dump(STORED / f"{name}_float32.safetensors")


# against Transformers


@pytest.mark.parametrize("name", NAMES)
def test_every_stored_point_of_transformers_is_ours(multimodal_folders, name):
    """Its padding was masked, ours was taken off before."""
    reference = stored(name)
    model, ids, inputs = opened(multimodal_folders, name)
    assert reference.meta["ids"] == ids.tolist()
    ours = model.record(ids, reference.meta["coverage"], media=inputs)
    assert set(reference) == set(ours)
    assert reference.axes == ours.axes
    found = diff(reference, ours)
    assert found.verdict == "same", found.first


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_weights_are_the_ones_that_were_run(multimodal_folders, name):
    import hashlib

    w = numgemma.load(multimodal_folders[name]).weights
    total = hashlib.sha256()
    for key in sorted(w):
        total.update(key.encode() + w[key].tobytes())
    manifest = json.loads((STORED / "manifest.json").read_text())
    assert manifest[f"{name}_float32"]["weights"] == total.hexdigest(), "remake with `make reference`"


# known faults: each makes some point differ from what Transformers computes


def without_bounds(x, w):
    return ops.linear(x, w["linear.weight"])


def centered_twice(pixels, dtype):
    return definitions.center(definitions.center(pixels, dtype), dtype)


def one_table(patches, positions, w, dtype, tap):
    x = ops.linear(ops.center(patches, dtype), w["input_proj.weight"])
    columns, _ = w["position_embedding_table"]
    return tap(
        "out", x + ops.embed(positions[:, 0], columns, dtype) + ops.embed(positions[:, 1], columns, dtype), "I C"
    )


def same_position_twice(positions, c, dtype, tap):
    return rope_table(positions[:, [0, 0]], c, dtype, tap)


def across_the_head(x, rope):
    return ops.rope(x, *rope)


def interleaved_lanes(x, rope):
    order = np.arange(x.shape[-1]).reshape(2, -1).T.ravel()
    y = axial_rope(x[..., np.argsort(order)], tuple(part[..., np.argsort(order)] for part in rope))
    return y[..., order]


def named_norm(name, wanted):
    """Weights in which one norm's weight is taken from another's."""

    def fault(monkeypatch):
        original = vision.attention

        def attention(x, w, c, rope, tap):
            swapped = dict(w.tensors) | {f"{w.scope}{name}.weight": w[f"{wanted}.weight"]}
            return original(x, type(w)(swapped, w.source, w.scope), c, rope, tap)

        monkeypatch.setattr(vision, "attention", attention)

    return fault


def scaled_scores(q, k, v, tap):
    return attend_all(q / q.dtype.type(math.sqrt(q.shape[-1])), k, v, tap)


def causal_patches(q, k, v, tap):
    return ops.attend(q, k, v, np.tri(len(q), dtype=bool))


def no_v_norm(x, w, eps):
    return x if w is None and x.ndim == 3 else rms_norm(x, w, eps)


def pooled_by_two(x, positions, k):
    """The upper half is pooled in squares of another size, the lower half lost."""
    return pooler(x, positions, k)[:1].repeat(len(x) // k**2, 0)


def pooled_in_reading_order(x, positions, k):
    return pooler(x, np.stack([np.arange(len(x)), np.zeros(len(x), int)], 1), k)[: len(x) // 9]


def unscaled_pool(x, factor):
    return definitions.widen(x, 1.0)


def norm_after(soft, w, c, tap):
    h = ops.linear(soft, w["embedding_projection.weight"])
    return tap("embedding_projection", ops.rms_norm(h, None, c.rms_norm_eps), "O D")


def scaled_soft_tokens(x, ids, soft, config):
    return merge(x, ids, {kind: rows * np.float32(math.sqrt(x.shape[1])) for kind, rows in soft.items()}, config)


def on_full_layers_too(tokens, config, start=0):
    mask = np.ones((tokens, tokens), bool)
    return dict.fromkeys(config.kinds, mask)


def past_the_window(blocks, window, before):
    return masks.image_mask(blocks, 10**6, before)


def no_image_mask(blocks, window, before):
    return masks.image_mask(np.full_like(blocks, -1), window, before)


def one_block(blocks, window, before):
    places = np.arange(len(blocks))
    together = (blocks[:, None] >= 0) & (blocks >= 0) & (places[:, None] - places < window)
    return np.asarray(masks.image_mask(blocks, window, before)) | together


def block_with_its_marks(ids, inputs, placeholders):
    blocks = picture_blocks(ids, inputs, placeholders)
    return np.where(np.isin(ids, (tiny.IDS["boi"], tiny.IDS["eoi"])), blocks.max(), blocks)


def mel_bins_last(features, w, c, tap):
    x = features[None]
    for name in ("layer0", "layer1"):
        x = conformer.halve(x, w.at(name), c)
    frames = x.transpose(1, 0, 2).reshape(x.shape[1], -1)
    return tap("input_proj_linear", ops.linear(frames, w["input_proj_linear.weight"]), "U C")


def one_frame_more(q, k, v, far, per_dim, cap, tap):
    nearer = np.concatenate([far[:1], far])  # an unseen row in front: all R distances are attended to
    return attend_band(q, k, v, nearer, per_dim, cap)


def plain_causal(q, k, v, far, per_dim, cap, tap):
    longest = np.concatenate([np.repeat(far[:1], len(q), 0), far])
    return attend_band(q, k, v, longest, per_dim, cap)


def forward_and_back(q, k, v, far, per_dim, cap, tap):
    return attend_band(q[::-1], k[::-1], v[::-1], far, per_dim, cap)[::-1]


def no_per_dim_scale(q, k, v, far, per_dim, cap, tap):
    return attend_band(q, k, v, far, np.zeros_like(per_dim), cap)


def plain_per_dim_scale(q, k, v, far, per_dim, cap, tap):
    plain = np.log(np.expm1(np.abs(per_dim.astype(np.float64)) + 0.1)).astype(
        np.float32
    )  # softplus gives |scale| + 0.1
    return attend_band(q, k, v, far, plain, cap)


def no_cap(q, k, v, far, per_dim, cap, tap):
    return attend_band(q, k, v, far, per_dim, 1e6)


def interleaved(distances, C, dtype):
    table = sinusoids(distances, C, dtype)
    return table.reshape(len(table), 2, -1).transpose(0, 2, 1).reshape(table.shape)


def nearest_first(distances, C, dtype):
    return sinusoids(distances[::-1], C, dtype)


def everything_it_should_not(q, k, v, far, per_dim, cap, tap):
    """The mask inverted: uniform where it hides nothing."""
    return np.broadcast_to(v.mean(0), v.shape)


def whole_feed_forward(x, w, c, tap):
    return 2 * feed_forward(x, w, c) - x


def no_second_feed_forward(x, w, c, tap):
    return x if w.scope.endswith("feed_forward2.") else feed_forward(x, w, c, tap)


def centred(x, w):
    ahead = w.shape[-1] // 2
    return causal_conv(np.pad(x, ((0, 0), (0, ahead))), w)[:, ahead:]


def halves_swapped(x):
    return glu(np.roll(x, x.shape[-1] // 2, -1))


def no_projection(x, w, b):
    return x[:, : len(b)]


def no_bias(x, w, b):
    return ops.linear(x, w)


def gated_by_silu(x):
    return ops.silu(x)


# what the faults are made of
rope_table, axial_rope, pooler, feed_forward = (
    vision.axial_rope_table,
    vision.axial_rope,
    vision.pooler,
    conformer.feed_forward,
)
attend_all, rms_norm, attend_band, sinusoids = ops.attend_all, ops.rms_norm, ops.attend_band, ops.sinusoids
causal_conv, glu, merge, picture_blocks = ops.causal_conv, ops.glu, multimodal.merge, media.picture_blocks


def swap(module, name, fault):
    return lambda monkeypatch: monkeypatch.setattr(module, name, fault)


def placeholder_looked_up(monkeypatch):
    monkeypatch.setattr(multimodal, "without_placeholders", lambda ids, config: ids)


def context_of_the_padding(monkeypatch):
    """The per-layer projection sees the stream before soft tokens are merged."""
    original = multimodal.per_layer_inputs

    def per_layer_inputs(ids, x, w, config, tap):
        return original(ids, gemma4.embed(ids, w, config, x.dtype), w, config, tap)

    monkeypatch.setattr(multimodal, "per_layer_inputs", per_layer_inputs)


FAULTS = [
    ("V01 pixels as they are", "e4b", swap(ops, "center", lambda pixels, dtype: pixels.astype(dtype))),
    (
        "V01 scaled twice",
        "e4b",
        swap(ops, "center", lambda x, dtype: definitions.center(definitions.center(x, dtype), dtype)),
    ),
    ("V04 one table", "e4b", swap(vision, "patch_embedder", one_table)),
    ("V05 one position", "e4b", swap(vision, "axial_rope_table", same_position_twice)),
    ("V05 across the head", "e4b", swap(vision, "axial_rope", across_the_head)),
    ("V05 interleaved", "e4b", swap(vision, "axial_rope", interleaved_lanes)),
    ("V06 k_norm from q_norm", "26b", named_norm("k_norm", "q_norm")),
    ("V06 no v_norm", "e4b", swap(ops, "rms_norm", no_v_norm)),
    ("V06 scaled", "26b", swap(ops, "attend_all", scaled_scores)),
    ("V06 causal", "26b", swap(ops, "attend_all", causal_patches)),
    ("V07 lower half lost", "e4b", swap(vision, "pooler", pooled_by_two)),
    ("V07 in reading order", "e4b", swap(vision, "pooler", pooled_in_reading_order)),
    ("V07 not scaled", "e4b", swap(ops, "widen", unscaled_pool)),
    ("V08 not standardised", "26b", swap(ops, "standardize", lambda x, bias, scale, dtype: x.astype(dtype))),
    ("V08 not standardised", "31b", swap(ops, "standardize", lambda x, bias, scale, dtype: x.astype(dtype))),
    ("V09 norm after", "26b", swap(multimodal, "embedder", norm_after)),
    ("V10 soft tokens scaled", "e4b", swap(multimodal, "merge", scaled_soft_tokens)),
    ("V11 unbounded", "e4b", swap(vision, "clipped_linear", without_bounds)),
    ("V12 on full layers too", "26b", swap(gemma4, "causal_masks", on_full_layers_too)),
    ("V12 past the window", "26b", swap(multimodal, "image_mask", past_the_window)),
    ("V12 none", "26b", swap(multimodal, "image_mask", no_image_mask)),
    ("V13 one block", "31b", swap(multimodal, "image_mask", one_block)),
    ("V13 with its marks", "26b", swap(multimodal, "picture_blocks", block_with_its_marks)),
    ("A02 bins last", "e4b", swap(conformer, "subsample", mel_bins_last)),
    ("A03 one frame more", "e4b", swap(ops, "attend_band", one_frame_more)),
    ("A03 plain causal", "e4b", swap(ops, "attend_band", plain_causal)),
    ("A03 backwards", "e4b", swap(ops, "attend_band", forward_and_back)),
    ("A04 scale left zero", "e4b", swap(ops, "attend_band", no_per_dim_scale)),
    ("A04 plain multiply", "e4b", swap(ops, "attend_band", plain_per_dim_scale)),
    ("A04 no cap", "e4b", swap(ops, "attend_band", no_cap)),
    ("A05 interleaved", "e4b", swap(ops, "sinusoids", interleaved)),
    ("A05 nearest first", "e4b", swap(ops, "sinusoids", nearest_first)),
    ("A06 inverted mask", "e4b", swap(ops, "attend_band", everything_it_should_not)),
    ("A07 no half", "e4b", swap(conformer, "feed_forward", whole_feed_forward)),
    ("A07 one feed-forward", "e4b", swap(conformer, "feed_forward", no_second_feed_forward)),
    ("A08 centred", "e4b", swap(ops, "causal_conv", centred)),
    ("A08 halves swapped", "e4b", swap(ops, "glu", halves_swapped)),
    ("A10 skipped", "e4b", swap(ops, "affine", no_projection)),
    ("A10 no bias", "e4b", swap(ops, "affine", no_bias)),
    ("A11 unbounded", "e4b", swap(conformer, "clipped_linear", without_bounds)),
    ("P04 placeholder looked up", "e4b", placeholder_looked_up),
    ("P04 context of the padding", "e4b", context_of_the_padding),
]


@pytest.mark.parametrize(("fault", "name", "make"), FAULTS, ids=[f"{f}-{n}" for f, n, _ in FAULTS])
def test_a_known_fault_is_seen(multimodal_folders, monkeypatch, fault, name, make):
    """At some point: a lost sqrt(width), say, does not reach the logits, as a norm follows."""
    reference = stored(name)
    model, ids, inputs = opened(multimodal_folders, name)
    make(monkeypatch)
    ours = model.record(ids, reference.meta["coverage"], media=inputs)
    off = {n: relative(reference[n], x) for n, x in ours.items() if n in reference and x.shape == reference[n].shape}
    assert max(off.values()) > 0.01


@pytest.mark.parametrize(
    ("fault", "order"),
    [
        ("V03 channels first", np.arange(768).reshape(3, 256).T.ravel()),
        ("V03 columns first", np.arange(768).reshape(16, 16, 3).transpose(1, 0, 2).ravel()),
    ],
)
def test_the_order_of_the_numbers_in_a_patch_matters(multimodal_folders, fault, order):
    model, ids, inputs = opened(multimodal_folders, "e4b")
    other = Media(**vars(inputs) | {"pixel_values": inputs.pixel_values[..., order]})
    a, b = (
        model.record(ids, ["*.input_proj"], media=m)["vision_tower.patch_embedder.input_proj"] for m in (inputs, other)
    )
    assert relative(a, b) > 0.5, fault


# merging


@pytest.mark.parametrize("name", NAMES)
def test_soft_tokens_stand_unscaled_at_their_placeholders_and_nothing_else_changes(multimodal_folders, name):
    model, ids, inputs = opened(multimodal_folders, name)
    run = model.record(ids, media=inputs)
    x, embedded = run["inputs_embeds"], run["embed_tokens"]
    soft = np.isin(ids, [tiny.IDS[kind] for kind in ("image", "video", "audio")])
    np.testing.assert_array_equal(x[~soft], embedded[~soft])
    made = [run[point] for point in run if point.endswith("embedding_projection")]
    np.testing.assert_array_equal(x[soft], np.concatenate(made))  # the prompts have images, videos, sound in this order


def test_per_layer_embeddings_of_soft_tokens_are_those_of_padding_but_see_the_soft_token(multimodal_folders):
    model, ids, inputs = opened(multimodal_folders, "e4b", "float64")
    run = model.record(ids, media=inputs)
    soft = np.isin(ids, [tiny.IDS["image"], tiny.IDS["audio"]])
    c = model.config.text
    table = model.weights["embed_tokens_per_layer.weight"].astype(np.float64) * c.hidden_size_per_layer_input**0.5
    assert_close(run["embed_tokens_per_layer"], table[np.where(soft, 0, ids)], "float64")
    weight = model.weights["per_layer_model_projection.weight"].astype(np.float64)
    assert_close(run["per_layer_model_projection"], run["inputs_embeds"] @ weight.T, "float64")


def test_soft_tokens_fill_placeholders_in_order_wherever_they_stand(multimodal_folders):
    """Two images of one size, swapped in the media, swap their soft tokens."""
    model = numgemma.load(multimodal_folders["26b"])
    ids, arrays = tiny.multimodal_prompt("26b", {"images": [(3, 6), (6, 3)]})
    a = model.record(ids, ["inputs_embeds"], media=read_media(arrays))["inputs_embeds"]
    swapped = {name: x[::-1] for name, x in arrays.items()}
    b = model.record(ids, ["inputs_embeds"], media=read_media(swapped))["inputs_embeds"]
    at = np.flatnonzero(ids == tiny.IDS["image"])
    np.testing.assert_array_equal(a[at], b[np.roll(at, 2)])


@pytest.mark.parametrize("padding", [0, 9, 90])
def test_the_length_of_the_padding_changes_nothing(multimodal_folders, monkeypatch, padding):
    for name in ("e4b", "26b"):
        model, ids, inputs = opened(multimodal_folders, name)
        before = model.logits(ids, inputs)
        with monkeypatch.context() as patch:
            for make in ("pictures", "sounds"):
                patch.setattr(getattr(tiny, make), "__defaults__", (padding,))
            _, arrays = tiny.multimodal_prompt(name)
        np.testing.assert_array_equal(model.logits(ids, read_media(arrays)), before)


def test_pictures_beside_each_other_do_not_mix(multimodal_folders):
    """An image alone and the same image in company have the same soft tokens."""
    model = numgemma.load(multimodal_folders["26b"])
    ids, arrays = tiny.multimodal_prompt("26b")
    both = model.record(ids, ["embed_vision*"], media=read_media(arrays))
    alone = {name: x[1:] for name, x in arrays.items()}
    ids = np.delete(ids, np.flatnonzero(ids == tiny.IDS["image"])[:9])
    run = model.record(ids, ["embed_vision*"], media=read_media(alone))
    name = "embedding_projection"
    np.testing.assert_array_equal(run[f"embed_vision.{name}"], both[f"embed_vision@1.{name}"])


def test_points_of_several_pictures_are_numbered_and_frames_count_on(multimodal_folders):
    model, ids, inputs = opened(multimodal_folders, "31b")  # one image, a video of two frames
    run = model.record(ids, media=inputs)
    assert {name.partition(".")[0] for name in run if name.startswith(("vision", "embed_vision"))} == {
        *(f"{scope}@{i}" for scope in ("vision_tower", "embed_vision") for i in range(3))
    }
    assert {name.partition(".")[0] for name in stored("e4b") if "tower" in name} == {"vision_tower", "audio_tower"}


# who sees whom


def test_a_picture_is_an_unbroken_run_of_placeholders(multimodal_folders):
    places = media.placeholders(numgemma.load(multimodal_folders["31b"]).config)
    image, video, audio, boi, eoi = (tiny.IDS[kind] for kind in ("image", "video", "audio", "boi", "eoi"))
    ids = np.array([2, boi, image, image, eoi, 5, boi, video, video, eoi, audio, audio, image, image, image])
    expected = [-1, -1, 0, 0, -1, -1, -1, 1, 1, -1, -1, -1, 2, 2, 2]
    assert media.picture_blocks(ids, NO_MEDIA, places).tolist() == expected
    types = np.array([0, 1, 1, 1, 1, 0, 0, 2, 2, 0, 3, 3, 0, 0, 1])  # told otherwise, that holds
    expected = [-1, 0, 0, 0, 0, -1, -1, 1, 1, -1, -1, -1, -1, -1, 2]
    assert media.picture_blocks(ids, Media(mm_token_type_ids=types), places).tolist() == expected


def test_the_image_mask_is_causal_or_same_picture_and_within_the_window():
    blocks = np.array([-1, 0, 0, 0, 0, -1, 1, 1, -1])
    found = np.asarray(masks.image_mask(blocks, 3))
    for t, s in np.ndindex(found.shape):
        same = blocks[t] == blocks[s] >= 0
        assert found[t, s] == ((s <= t or same) and t - s < 3)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_a_picture_see_each_other_on_sliding_layers_of_the_large_models_only(multimodal_folders, name):
    model, ids, inputs = opened(multimodal_folders, name)
    run = model.record(ids, ["*.probs"], media=inputs)
    kinds = model.config.text.layer_types
    ahead = [bool(np.triu(run[f"layers.{i}.self_attn.probs"].max(0), 1).any()) for i in range(len(kinds))]
    assert ahead == [name != "e4b" and kind == "sliding_attention" for kind in kinds]


def row_by_row(x, w):
    """The product of a row that knows nothing of those beside it.

    BLAS may add a row up in another order where other rows stand beside it, and how many tokens an expert has follows
    what these are.
    """
    rows = [definitions.linear(row[None], w) for row in x.reshape(-1, x.shape[-1])]
    return np.concatenate([np.empty((0, len(w)), x.dtype), *rows]).reshape(*x.shape[:-1], len(w))


@pytest.mark.parametrize("name", NAMES)
def test_a_later_image_cannot_change_an_earlier_token(multimodal_folders, name, monkeypatch):
    model, ids, inputs = opened(multimodal_folders, name)
    other = Media(**vars(inputs) | {"pixel_values": 1 - inputs.pixel_values})
    first = int(np.flatnonzero(ids == tiny.IDS["image"])[0])
    assert_close(model.logits(ids, inputs)[:first], model.logits(ids, other)[:first])
    monkeypatch.setattr(ops, "linear", row_by_row)
    a, b = model.logits(ids, inputs), model.logits(ids, other)
    np.testing.assert_array_equal(a[:first], b[:first])
    assert (np.abs(a[first:] - b[first:]).max(1) > 1e-6).all()


# the cache


@pytest.mark.parametrize("name", NAMES)
def test_generation_after_images_and_sound_equals_the_uncached_run(multimodal_folders, name):
    model, ids, inputs = opened(multimodal_folders, name, "float64")
    new = model.generate(ids, 8, ignore_eos=True, media=inputs)
    config = model.config
    for n, expected in enumerate(new):
        after = multimodal.without_placeholders(np.array(new[:n], int), config)  # generated ones are padding
        longer = np.concatenate([ids, after])
        assert model.logits(longer, inputs)[-1].argmax() == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_cached_run_equals_the_uncached_run_at_every_point(multimodal_folders, name):
    model, ids, inputs = opened(multimodal_folders, name, "float64")
    ids = np.concatenate([ids, tiny.prompt({"vocab_size": 190}, 8)])  # past the window of 7
    last = int(np.flatnonzero(ids >= 190).max()) + 1
    whole = model.record(ids, ["*"], media=inputs)
    parts = model.record(ids, ["*"], media=inputs, prefill=last)
    missing = {"inputs_embeds"}  # tokens after the media are text
    assert set(whole) == set(parts)
    for point in set(whole) - missing:
        if whole[point].dtype.kind == "f":
            assert relative(whole[point], parts[point]) < 1e-11, point


def test_a_prefill_that_ends_before_the_last_placeholder_is_refused(multimodal_folders):
    model, ids, inputs = opened(multimodal_folders, "26b")
    last = int(np.flatnonzero(ids == tiny.IDS["image"])[-1])
    with pytest.raises(InputError, match=f"A prefill of {last} ends before the last placeholder; give {last + 1} or"):
        model.record(ids, media=inputs, prefill=last)
    model.record(ids, ["logits"], media=inputs, prefill=last + 1)


def test_edits_reach_into_the_towers(multimodal_folders):
    model, ids, inputs = opened(multimodal_folders, "e4b")
    point = "vision_tower.encoder.layers.1.self_attn.probs"
    run = model.record(ids, ["logits"], {point: np.zeros_like}, media=inputs)
    assert relative(model.logits(ids, inputs), run["logits"]) > 1e-3
    with pytest.raises(InputError, match=r"No point is called 'vision_tower@7\.out'"):
        model.record(ids, ["logits"], {"vision_tower@7.out": np.zeros_like}, media=inputs)


def test_text_alone_runs_as_in_a_text_model(multimodal_folders):
    model = numgemma.load(multimodal_folders["26b"])
    ids = tiny.prompt({"vocab_size": 190}, 15)
    text = gemma4.forward(ids, model.weights, model.run())
    np.testing.assert_array_equal(model.logits(ids), text)
    np.testing.assert_array_equal(model.logits(ids, Media(mm_token_type_ids=np.zeros(15, int))), text)
    assert not [name for name in model.record(ids) if "tower" in name or name == "inputs_embeds"]


# what does not fit


@pytest.mark.parametrize(
    ("kind", "change", "found", "expected"),
    [("image", -1, 1, 2), ("image", 1, 3, 2), ("audio", -1, 8, 9), ("audio", 2, 11, 9)],
)
def test_a_count_that_does_not_fit_says_both_counts(multimodal_folders, kind, change, found, expected):
    model, ids, inputs = opened(multimodal_folders, "e4b")
    at = np.flatnonzero(ids == tiny.IDS[kind])
    ids = np.delete(ids, at[:-change]) if change < 0 else np.insert(ids, at[0], [tiny.IDS[kind]] * change)
    with pytest.raises(
        InputError, match=rf"{found} {kind} placeholders \(id {tiny.IDS[kind]}\) where .* {expected} soft"
    ):
        model.logits(ids, inputs)


def test_placeholders_without_media_are_refused(multimodal_folders):
    model, ids, _ = opened(multimodal_folders, "26b")
    with pytest.raises(InputError, match="11 image placeholders"):
        model.generate(ids)


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("26b", {"sound": 1}, "has no audio tower, so it takes no sound"),
        ("e4b", {"types": 1}, "mm_token_type_ids has 3 entries for 25 tokens"),
        ("e4b", {"patch": 1}, "Patches of picture 0 have 767 values, the model takes 768"),
        ("e4b", {"far": 1}, "Picture 0 is 41 x 3 patches, no side may exceed 40"),
        ("e4b", {"twice": 1}, "Picture 0 has 18 patches for a grid of 6 x 3; each patch should be there once"),
        ("e4b", {"odd": 1}, "Picture 0 has 17 patches for a grid of 6 x 3"),
        ("e4b", {"mel": 1}, "input_features have 80 mel bins, the audio tower takes 128"),
    ],
)
def test_media_that_do_not_fit_the_model_are_refused(multimodal_folders, name, arrays, message):
    model = numgemma.load(multimodal_folders[name])
    ids, found = tiny.multimodal_prompt(name)
    if "sound" in arrays:
        found |= dict(
            zip(("input_features", "input_features_mask"), tiny.sounds([8], np.random.default_rng(0)), strict=True)
        )
    if "types" in arrays:
        found["mm_token_type_ids"] = np.zeros(3, int)
    if "patch" in arrays:
        found["pixel_values"] = found["pixel_values"][..., 1:]
    if "far" in arrays:
        found["image_position_ids"][0, 5, 0] = 40
    if "twice" in arrays:
        found["image_position_ids"][0, 1] = 0
    if "odd" in arrays:
        found["image_position_ids"][0, 7] = -1
    if "mel" in arrays:
        found["input_features"] = found["input_features"][..., :80]
    with pytest.raises(InputError, match=message):
        model.logits(ids, read_media(found))


def bad(change):
    _, arrays = tiny.multimodal_prompt("e4b", {"images": [(3, 3)], "videos": [[(3, 3)]], "clips": [9]})
    change(arrays)
    return arrays


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("image_position_ids"), "pixel_values needs image_position_ids beside it"),
        (lambda a: a.pop("num_frames_per_video"), "pixel_values_videos needs num_frames_per_video"),
        (lambda a: a.pop("input_features"), "input_features_mask needs input_features"),
        (
            lambda a: a.update(pixel_values=a["pixel_values"][0]),
            r"pixel_values should be real .* is float32 \[18, 768\]",
        ),
        (lambda a: a.update(image_position_ids=a["image_position_ids"] * 1.0), "image_position_ids should be integers"),
        (lambda a: a["image_position_ids"].__setitem__((0, 0), (-1, 2)), "of picture 0 should be 0 or more, or -1, -1"),
        (lambda a: a["image_position_ids"].fill(-1), "of picture 0 should be 0 or more"),
        (
            lambda a: a.update(num_frames_per_video=np.array([2])),
            r"num_frames_per_video is \[2\], but there are 1 frames",
        ),
        (lambda a: a["input_features_mask"].__setitem__((0, 3), False), "should be ones and then zeros"),
        (lambda a: a["input_features_mask"].fill(0), "should be ones and then zeros"),
        (lambda a: a.update(input_features=a["input_features"][0]), "input_features should be real numbers"),
        (
            lambda a: a.update(input_features_mask=a["input_features_mask"][:, 1:]),
            r"input_features_mask should be \[clips",
        ),
        (lambda a: a.update(mm_token_type_ids=np.zeros((2, 5), int)), "give one prompt at a time"),
    ],
)
def test_arrays_that_are_not_a_processors_are_refused_with_the_name_of_their_file(change, message):
    with pytest.raises(InputError, match=f"^inputs.safetensors: .*{message}"):
        read_media(bad(change), "inputs.safetensors")


def test_arrays_of_a_processor_are_taken_and_all_others_left():
    ids, arrays = tiny.multimodal_prompt("e4b")
    found = read_media(arrays | {"input_ids": ids[None], "attention_mask": 1, "mm_token_type_ids": ids[None] * 0})
    assert found.mm_token_type_ids.shape == ids.shape
    assert {name for name, x in vars(found).items() if x is not None} == {*arrays, "mm_token_type_ids"}
    assert not media.is_empty(found)
    assert media.is_empty(NO_MEDIA)


# checkpoints


def without(tensors, *scopes):
    return {name: x for name, x in tensors.items() if not name.startswith(scopes)}


def test_a_copy_without_towers_runs_text_and_says_so_when_given_an_image(tmp_path, multimodal_folders):
    tensors = tiny.random_tensors(tiny.E4B)
    text = without(tensors, "vision_tower", "embed_vision", "audio_tower", "embed_audio")
    model = numgemma.load(tiny.write(tmp_path / "text", tiny.E4B, text))
    whole, ids, inputs = opened(multimodal_folders, "e4b")
    plain = tiny.prompt({"vocab_size": 190}, 9)
    np.testing.assert_array_equal(model.logits(plain), whole.logits(plain))
    with pytest.raises(InputError, match="has no vision tower, so it takes no images"):
        model.logits(ids, inputs)


def test_a_tower_that_lacks_one_tensor_is_told_from_one_that_is_not_there(tmp_path):
    tensors = tiny.random_tensors(tiny.E4B)
    audio = [name for name in tensors if name.startswith(("audio_tower", "embed_audio"))]
    del tensors["audio_tower.layers.1.self_attn.per_dim_scale"]
    model = numgemma.load(tiny.write(tmp_path / "broken", tiny.E4B, tensors))
    assert model.incomplete == {"audio": (len(audio) - 1, len(audio))}
    without = {name: x for name, x in tensors.items() if name not in audio}
    assert numgemma.load(tiny.write(tmp_path / "silent", tiny.E4B, without)).incomplete == {}


def test_a_tower_tensor_that_nobody_reads_is_refused(tmp_path):
    tensors = tiny.random_tensors(tiny.A4B) | {"vision_tower.encoder.layers.0.self_attn.q_proj.input_min": np.zeros(())}
    with pytest.raises(InputError, match="read by nobody: 1"):
        numgemma.load(tiny.write(tmp_path / "odd", tiny.A4B, tensors))


@pytest.mark.parametrize(
    ("tower", "change", "message"),
    [
        ("vision", {"hidden_activation": "silu"}, "hidden_activation 'silu' is not computed here"),
        ("vision", {"attention_bias": True}, "attention_bias true"),
        ("vision", {"head_dim": 6}, "head_dim is not a multiple of 4"),
        ("vision", {"num_key_value_heads": 2}, "not a multiple of num_key_value_heads"),
        ("vision", {"num_key_value_heads": 0}, "a size is not positive"),
        ("vision", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1.0}}, "neither 'default' nor 'axial'"),
        ("vision", {"rope_parameters": {"rope_type": "axial", "rope_theta": -1}}, "rope_theta is not positive"),
        (
            "vision",
            {"rope_parameters": {"rope_type": "axial", "rope_theta": 9.0, "factor": 2}},
            "a rope_type and a rope",
        ),
        ("vision", {"rms_norm_eps": 0.0}, "rms_norm_eps is not positive"),
        ("audio", {"hidden_act": "relu"}, "hidden_act 'relu' is not computed here"),
        ("audio", {"attention_chunk_size": 5}, "attention_context_left is not chunk size"),
        ("audio", {"attention_context_right": 1}, "attention_context_right is not 0"),
        ("audio", {"num_attention_heads": 5}, "does not give its heads an even width"),
        ("audio", {"num_attention_heads": 0}, "num_attention_heads is not positive"),
        ("audio", {"attention_invalid_logits_value": -10.0}, "attention_invalid_logits_value hides no frame"),
        ("audio", {"attention_logit_cap": 0.0}, "attention_logit_cap is not positive"),
        ("audio", {"gradient_clipping": 1.0}, "gradient_clipping below 1e10"),
        ("audio", {"rms_norm_eps": 1e-5}, "rms_norm_eps other than 1e-6"),
        ("audio", {"subsampling_conv_channels": [8]}, "are not two numbers"),
        ("audio", {"conv_kernel_size": 0}, "a size is not positive"),
    ],
)
def test_a_tower_that_would_be_computed_wrongly_is_refused(tmp_path, tower, change, message):
    raw = tiny.E4B | {f"{tower}_config": tiny.E4B[f"{tower}_config"] | change}
    with pytest.raises(InputError, match=f"config.json, {tower}_config: .*{message}"):
        numgemma.load(tiny.write(tmp_path / "wrong", raw, {}))


@pytest.mark.parametrize("name", NAMES)
def test_token_types_of_the_whole_prompt_serve_a_prefill_of_its_first_part(multimodal_folders, name):
    """A processor says of every token of the prompt what it is."""
    model, ids, inputs = opened(multimodal_folders, name)
    kinds = {"image": 1, "video": 2, "audio": 3}
    types = np.zeros(len(ids), int)
    for kind, i in media.placeholders(model.config).items():
        types[ids == i] = kinds[kind]
    typed = replace(inputs, mm_token_type_ids=types)
    last = int(np.flatnonzero(types)[-1])
    assert last + 1 < len(ids)
    whole, parts = (model.record(ids, ["logits"], media=typed, prefill=n)["logits"] for n in (None, last + 1))
    assert np.linalg.norm(parts - whole) < 1e-4 * np.linalg.norm(whole)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [1, 4, 9])
def test_a_prompt_of_pictures_and_sound_in_chunks_ends_in_the_same_stream(multimodal_folders, name, chunk):
    model, ids, inputs = opened(multimodal_folders, name)
    whole = multimodal.hidden(ids, inputs, model.weights, model.run())
    run = model.run(cache.empty(model.outline.layers, model.dtype))
    x = prefill(ids, inputs, model.weights, model.family, run, chunk)
    assert np.linalg.norm(x - whole[-1:]) < 1e-4 * np.linalg.norm(whole[-1:])


def test_a_tower_that_is_not_all_there_blocks_pictures_and_not_text(tmp_path, capsys):
    from safetensors.numpy import load_file, save_file

    from numgemma.cli import main

    folder = tiny.write(tmp_path / "m", tiny.MULTIMODAL["e4b"])
    whole = numgemma.load(folder).logits([5, 9, 4])
    tensors = load_file(folder / "model.safetensors")
    kept = {name: x for name, x in tensors.items() if "vision_tower.encoder.layers.1" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    model = numgemma.load(folder)
    np.testing.assert_array_equal(model.logits([5, 9, 4]), whole)
    there, due = model.incomplete["vision"]
    assert due - there == len(tensors) - len(kept) > 0
    ids, arrays = tiny.multimodal_prompt("e4b")
    with pytest.raises(InputError, match=f"{there} of {due} tensors of its vision tower"):
        model.logits(ids, read_media(arrays))
    assert main(["generate", str(folder), "--ids", "5,9,4", "--max-new-tokens", "1", "--print-ids"]) == 0
    assert "only text runs" in capsys.readouterr().err
