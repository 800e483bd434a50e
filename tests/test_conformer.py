"""The audio tower against plain loops in float64, against the chunked form of its attention, and its properties."""

import math

import numpy as np
import pytest
import tiny
from closeness import assert_close, relative

import numgemma
from numgemma import ops
from numgemma.checkpoint import Weights
from numgemma.families.gemma4 import layout
from numgemma.layers import conformer
from numgemma.trace import Recorder, Tap

F64 = np.dtype("float64")


@pytest.fixture(scope="module")
def tower(multimodal_folders):
    model = numgemma.load(multimodal_folders["e4b"], "float64")
    return model.weights.at("audio_tower"), model.config.audio


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def sound(frames, rng):
    return rng.normal(-3, 2, (frames, 128))


def hear(tower, features, tap=Tap(), dtype=F64):
    return conformer.audio_tower(features, *tower, dtype, tap)


def points(tower, features):
    found = {}
    hear(tower, features, Recorder(lambda name, x, axes: found.setdefault(name, x), F64, ["*"]))
    return found


def changed(tower, name, x):
    w, c = tower
    return Weights(dict(w.tensors) | {w.scope + name: np.asarray(x)}, scope=w.scope), c


# the operations against loops


@pytest.mark.parametrize(("frames", "bins"), [(1, 1), (2, 3), (5, 4), (6, 8)])
def test_the_convolution_steps_by_two_over_a_border_of_zeros(rng, frames, bins):
    x, w = rng.standard_normal((2, frames, bins)), rng.standard_normal((3, 2, 3, 3))
    y = ops.conv2d(x, w)
    assert y.shape == (3, -(-frames // 2), -(-bins // 2))
    for c, t, m in np.ndindex(y.shape):
        total = 0.0
        for b, i, j in np.ndindex(2, 3, 3):
            frame, bin_ = 2 * t + i - 1, 2 * m + j - 1
            if 0 <= frame < frames and 0 <= bin_ < bins:
                total += w[c, b, i, j] * x[b, frame, bin_]
        assert y[c, t, m] == pytest.approx(total, abs=1e-12)


def test_the_depthwise_convolution_sees_this_frame_and_those_before(rng):
    x, w = rng.standard_normal((3, 7)), rng.standard_normal((3, 1, 5))
    y = ops.causal_conv(x, w)
    for c, t in np.ndindex(3, 7):
        assert y[c, t] == pytest.approx(sum(w[c, 0, 4 - back] * x[c, t - back] for back in range(min(t, 4) + 1)))


def test_layer_norm_takes_the_mean_away_and_divides_by_the_deviation(rng):
    x, w = rng.normal(3, 2, (4, 6)), rng.standard_normal(6)
    for row, found in zip(x, ops.layer_norm(x, w, 1e-6), strict=True):
        assert_close(found, (row - row.mean()) / math.sqrt(row.var() + 1e-6) * w, "float64")


def test_glu_and_silu_and_affine(rng):
    x, w, b = rng.normal(0, 3, (4, 6)), rng.standard_normal((2, 6)), rng.standard_normal(2)
    sigmoid = 1 / (1 + np.exp(-x))
    assert_close(ops.silu(x), x * sigmoid, "float64")
    assert_close(ops.glu(x), x[:, :3] * sigmoid[:, 3:], "float64")
    assert_close(ops.affine(x, w, b), np.einsum("id,od->io", x, w) + b, "float64")
    assert ops.silu(np.float32([-200])) == 0  # where exp overflows


def test_distances_are_sines_then_cosines_from_the_farthest_to_none():
    table = ops.sinusoids(np.arange(12, -1, -1), 10, F64)
    for row, distance in enumerate(range(12, -1, -1)):
        for i in range(5):
            angle = distance / 10000 ** (i / 4)
            assert (table[row, i], table[row, 5 + i]) == pytest.approx((math.sin(angle), math.cos(angle)), abs=1e-12)


def band_inputs(rng, frames, R, N=2, H=4):
    q, k, v = rng.standard_normal((3, frames, N, H))
    return q, k, v, rng.standard_normal((R, N, H)), rng.standard_normal(H), 3.0


def scaled(q, k, per_dim):
    """Queries and keys with their constants: softplus per lane, and powers of two in place of powers of e."""
    q = q * q.shape[-1] ** -0.5 / math.log(2) * np.log1p(np.exp(per_dim))
    return q, k * math.log(1 + math.e) / math.log(2)


@pytest.mark.parametrize("frames", [1, 2, 12, 13, 40])
@pytest.mark.parametrize("R", [2, 5, 13])
def test_each_frame_attends_to_the_last_few_itself_included(rng, frames, R):
    q, k, v, far, per_dim, cap = band_inputs(rng, frames, R)
    found = ops.attend_band(q, k, v, far, per_dim, cap)
    q, k = scaled(q, k, per_dim)
    for t, n in np.ndindex(frames, 2):
        seen = range(max(0, t - (R - 2)), t + 1)  # R - 1 frames
        scores = [cap * math.tanh((q[t, n] @ k[s, n] + q[t, n] @ far[R - 1 - (t - s), n]) / cap) for s in seen]
        weights = np.exp(scores) / np.exp(scores).sum()
        assert_close(found[t, n], sum(p * v[s, n] for p, s in zip(weights, seen, strict=True)), "float64")


def in_chunks(q, k, v, far, per_dim, cap, chunk):
    """The form that Transformers computes: whole chunks against their context, distances by the relative shift."""
    (U, N, H), past = q.shape, len(far) - 1
    q, k = scaled(q, k, per_dim)
    blocks = -(-U // chunk)
    q = np.concatenate([q, np.zeros((blocks * chunk - U, N, H))]).reshape(blocks, chunk, N, H)
    k, v = (np.concatenate([np.zeros((past, N, H)), x, np.zeros((chunk, N, H))]) for x in (k, v))
    context = [slice(b * chunk, b * chunk + chunk + past) for b in range(blocks)]
    content = np.stack([np.einsum("tnh,snh->nts", q[b], k[context[b]]) for b in range(blocks)], 1)  # N blocks t s
    position = np.einsum("btnh,rnh->nbtr", q, far)
    width = chunk + past
    shifted = np.pad(position, ((0, 0), (0, 0), (0, 0), (0, width + 1 - len(far)))).reshape(N, blocks, -1)
    shifted = shifted[:, :, : chunk * width].reshape(N, blocks, chunk, width)
    scores = cap * np.tanh((content + shifted) / cap)
    query = np.arange(blocks * chunk).reshape(blocks, chunk, 1)
    key = np.arange(blocks)[:, None, None] * chunk + np.arange(width) - past
    seen = (key >= 0) & (key < U) & (query - key >= 0) & (query - key < past)
    scores = np.where(seen, scores, -1e9)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    out = np.stack([np.einsum("nts,snh->tnh", probs[:, b], v[context[b]]) for b in range(blocks)])
    return out.reshape(-1, N, H)[:U]


@pytest.mark.parametrize("frames", [1, 11, 12, 13, 24, 50])
def test_the_band_equals_the_chunked_form(rng, frames):
    inputs = band_inputs(rng, frames, 13)
    assert_close(in_chunks(*inputs, chunk=12), ops.attend_band(*inputs), "float64")


# the tower


@pytest.mark.parametrize("frames", range(1, 14))
def test_four_frames_make_a_soft_token_and_a_rest_makes_one_more(tower, rng, frames):
    assert hear(tower, sound(frames, rng)).shape == (-(-frames // 4), tower[1].output_proj_dims)


def test_frames_of_silence_behind_change_nothing_before_them(tower, rng):
    """A padded frame reaches back no farther than its own soft token, and padding begins a token of its own."""
    features = sound(24, rng)
    longer = np.concatenate([features, np.zeros((8, 128))])
    a, b = hear(tower, features), hear(tower, longer)
    assert_close(a, b[:6], "float64")


def test_a_later_frame_cannot_change_an_earlier_soft_token(tower, rng):
    """Token t reads mel frames up to 4 t + 3: the convolutions look one frame ahead, at half and at full rate."""
    features = sound(40, rng)
    before = hear(tower, features)
    for frame in (4, 19, 20, 39):
        other = features.copy()
        other[frame] += 1
        difference = np.abs(hear(tower, other) - before).max(1)
        first = -(-(frame - 3) // 4)
        assert_close(difference[:first], np.zeros(first), "float64", frame)
        assert difference[first] > 1e-6


def test_attention_reaches_as_far_as_it_should_and_no_farther(tower, rng):
    w, c = tower
    x, back = rng.standard_normal((20, c.hidden_size)), np.arange(c.attention_context_left - 1, -1, -1)
    far = ops.sinusoids(back, c.hidden_size, F64)
    here = w.at("layers.0.self_attn")
    before = conformer.attention(x, far, here, c)
    x[10] += 1
    touched = np.flatnonzero(np.abs(conformer.attention(x, far, here, c) - before).max(1) > 1e-9)
    assert touched.tolist() == list(range(10, 10 + c.attention_context_left - 1))


def test_only_half_of_a_feed_forward_is_added(tower, rng):
    found = points(tower, sound(16, rng))
    half = found["layers.0.feed_forward1.post_layer_norm"] / 2
    stem = found["subsample_conv_projection.input_proj_linear"]
    assert_close(stem + half, found["layers.0.feed_forward1.out"], "float64")


def test_bins_come_first_and_channels_second_in_a_subsampled_frame(tower, rng):
    found = points(tower, sound(16, rng))
    x = found["subsample_conv_projection.layer1.out"]  # C U M
    weight = tower[0]["subsample_conv_projection.input_proj_linear.weight"].astype(np.float64)
    by_hand = np.einsum("cum,omc->uo", x, weight.reshape(-1, x.shape[2], x.shape[0]))
    assert_close(by_hand, found["subsample_conv_projection.input_proj_linear"], "float64")
    assert (x >= 0).all()
    assert (x == 0).any()


def test_probabilities_sum_to_one_and_the_farthest_distance_gets_none(tower, rng):
    found = points(tower, sound(40, rng))
    probs, scores = found["layers.1.self_attn.probs"], found["layers.1.self_attn.scores"]
    assert_close(probs.sum(-1), np.ones(probs.shape[:2]), "float64")
    assert not probs[:, :, 0].any()
    assert np.abs(scores).max() < tower[1].attention_logit_cap
    assert np.abs(scores).max() > 0.5 * tower[1].attention_logit_cap  # or else the cap would be untested


def test_every_tensor_of_the_layout_changes_the_soft_tokens(tower, rng):
    features = sound(24, rng)
    w, c = tower
    before = hear(tower, features)
    for name in layout.audio_shapes(c):
        if name.endswith(tiny.NEVER_BITES):
            continue
        other = changed(tower, name, w[name].astype(np.float64) * rng.uniform(0.4, 0.8, w[name].shape))
        assert relative(before, hear(other, features)) > 1e-7, name


def test_every_bound_bites(tower, rng):
    features = sound(24, rng)
    before = hear(tower, features)
    bounds = [name for name in layout.audio_shapes(tower[1]) if name.endswith(("put_min", "put_max"))]
    assert len(bounds) == 2 * 10 * 4
    for name in bounds:
        other = changed(tower, name, -np.inf if name.endswith("min") else np.inf)
        assert (relative(before, hear(other, features)) > 1e-7) != name.endswith(tiny.NEVER_BITES), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_each_precision_is_near_float64(tower, rng, precision):
    features = sound(40, rng)
    found = hear(tower, features, dtype=np.dtype(precision))
    assert relative(hear(tower, features), found) < {"float32": 2e-5, "bfloat16": 0.3}[precision]


def test_watching_changes_nothing(tower, rng):
    features = sound(21, rng)
    assert_close(hear(tower, features), points(tower, features)["out"], "float64")
