"""The vision tower against plain loops in float64, and its properties."""

import math

import ml_dtypes
import numpy as np
import pytest
import tiny
from closeness import assert_close, relative

import numgemma
from numgemma import ops
from numgemma.checkpoint import Weights
from numgemma.families.gemma4 import layout
from numgemma.layers import vision
from numgemma.ops import definitions
from numgemma.trace import Recorder, Tap

F64 = np.dtype("float64")


@pytest.fixture(params=["e4b", "26b"])
def tower(request, multimodal_folders):
    """The weights and the config of a clipped tower, and of a standardised one with 4 heads on 2."""
    model = numgemma.load(multimodal_folders[request.param], "float64")
    return model.weights.at("vision_tower"), model.config.vision


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def grid(across, down):
    return np.array([(x, y) for y in range(down) for x in range(across)])


def picture(across, down, rng):
    return rng.uniform(0, 1, (across * down, 768)), grid(across, down)


def see(tower, patches, positions, tap=Tap(), dtype=F64):
    return vision.vision_tower(patches, positions, *tower, dtype, tap)


def points(tower, patches, positions, dtype=F64, wanted=("*",)):
    found = {}
    tap = Recorder(lambda name, x, axes: found.setdefault(name.removeprefix("vision_tower."), x), dtype, wanted)
    see(tower, patches, positions, tap.at("vision_tower"), dtype)
    return found


def changed(tower, name, x):
    w, c = tower
    return Weights(dict(w.tensors) | {w.scope + name: np.asarray(x)}, scope=w.scope), c


# against loops


def test_a_clipped_linear_bounds_what_goes_in_and_what_comes_out(rng):
    x, w = rng.standard_normal((50, 4)), rng.standard_normal((3, 4))
    bounds = {"input_min": -0.4, "input_max": 0.7, "output_min": -0.5, "output_max": 0.9}
    stored = Weights({"linear.weight": w} | {name: np.array(bound) for name, bound in bounds.items()})
    y = vision.clipped_linear(x, stored)
    bare = vision.clipped_linear(x, Weights({"linear.weight": w}))
    for i in range(50):
        for o in range(3):
            inside = sum(min(max(x[i, d], -0.4), 0.7) * w[o, d] for d in range(4))
            assert y[i, o] == pytest.approx(min(max(inside, -0.5), 0.9), abs=1e-14)
            assert bare[i, o] == pytest.approx(sum(x[i, d] * w[o, d] for d in range(4)), abs=1e-14)
    assert {-0.5, 0.9} <= set(y.ravel())


def test_a_patch_is_its_pixels_from_minus_one_to_one_plus_its_column_plus_its_row(tower, rng):
    patches, positions = picture(6, 3, rng)
    w = tower[0].at("patch_embedder")
    weight, (columns, rows) = (w[name].astype(np.float64) for name in ("input_proj.weight", "position_embedding_table"))
    found = points(tower, patches, positions)["patch_embedder.out"]
    for i, (x, y) in enumerate(positions):
        assert_close(found[i : i + 1], (2 * patches[i] - 1)[None] @ weight.T + columns[x] + rows[y], "float64")


def test_the_first_half_of_a_head_turns_by_column_and_the_second_by_row(tower, rng):
    c = tower[1]
    positions, H = np.array([[0, 0], [3, 1], [2, 7]]), c.head_dim
    x = rng.standard_normal((3, 2, H))
    y = vision.axial_rope(x, vision.axial_rope_table(positions, c, F64))
    for i, place in enumerate(positions):
        for n in range(2):
            for half, position in enumerate(place):
                for pair in range(H // 4):
                    a, b = half * H // 2 + pair, half * H // 2 + pair + H // 4
                    angle = position * 100.0 ** (-2 * pair / (H / 2))
                    z = complex(x[i, n, a], x[i, n, b]) * complex(math.cos(angle), math.sin(angle))
                    assert complex(y[i, n, a], y[i, n, b]) == pytest.approx(z, abs=1e-12)


def test_attention_is_a_softmax_over_all_patches_and_heads_share_keys_in_groups(rng):
    q, (k, v) = rng.standard_normal((7, 4, 6)), rng.standard_normal((2, 7, 2, 6))
    y = ops.attend_all(q, k, v)
    for i in range(7):
        for n in range(4):
            weights = np.exp([q[i, n] @ k[j, n // 2] for j in range(7)])
            assert_close(y[i, n], weights @ v[:, n // 2] / weights.sum(), "float64")


@pytest.mark.parametrize("block", [1, 10, 50, 1000])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_attention_in_blocks_equals_attention_at_once(monkeypatch, rng, block, dtype):
    monkeypatch.setattr(definitions, "BLOCK", block)
    q, k, v = rng.standard_normal((3, 11, 4, 6)).astype(dtype)
    seen = []
    tap = Recorder(lambda name, x, axes: seen.append((name, x.shape)), np.dtype(dtype), ["*"])
    watched, unwatched = ops.attend_all(q, k, v, tap), ops.attend_all(q, k, v)
    assert seen == [("scores", (4, 11, 11)), ("probs", (4, 11, 11))]
    assert watched.dtype == unwatched.dtype == dtype
    assert_close(watched, unwatched, dtype)


@pytest.mark.parametrize("block", [4, 24, 100])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_in_blocks_on_all_cores_are_the_rows_at_once_bit_by_bit(monkeypatch, rng, block, dtype):
    x, w = rng.normal(0, 2, (13, 8)).astype(dtype), rng.standard_normal(8).astype(dtype)
    bounds = np.array(-0.5, dtype), np.array(0.7, dtype)
    calls = [(ops.rms_norm, w, 1e-6), (ops.gelu_tanh,), (ops.silu,), (ops.glu,), (definitions.clip, *bounds)]
    at_once = [op(x, *args) for op, *args in calls]
    monkeypatch.setattr(definitions, "BLOCK", block)
    for (op, *args), expected in zip(calls, at_once, strict=True):
        found = op(x, *args)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_what_is_said_of_overflow_holds_on_all_cores(monkeypatch):
    monkeypatch.setattr(definitions, "BLOCK", 4)
    huge = np.full((9, 4), 1e38, np.float32)
    with np.errstate(all="ignore"):
        assert np.isnan(ops.gelu_tanh(huge - np.inf)).all()
    with pytest.raises(FloatingPointError), np.errstate(all="raise"):
        ops.gelu_tanh(huge)


@pytest.mark.parametrize(("across", "down"), [(3, 3), (6, 3), (3, 12), (9, 6)])
def test_a_soft_token_is_the_mean_of_nine_patches_times_the_root_of_the_width(rng, across, down):
    x, positions = rng.standard_normal((across * down, 5)), grid(across, down)
    soft = vision.pooler(x, positions, 3)
    for row in range(down // 3):
        for column in range(across // 3):
            nine = [x[(3 * row + i) * across + 3 * column + j] for i in range(3) for j in range(3)]
            assert_close(soft[row * across // 3 + column], sum(nine) / 9 * 5**0.5, "float64")


# properties


def test_the_order_of_the_patches_does_not_matter(tower, rng):
    patches, positions = picture(6, 9, rng)
    order = rng.permutation(54)
    assert_close(see(tower, patches, positions), see(tower, patches[order], positions[order]), "float64")


def test_every_patch_reaches_every_soft_token(tower, rng):
    patches, positions = picture(6, 6, rng)
    before = see(tower, patches, positions)
    patches[35] = 1 - patches[35]
    assert (np.abs(see(tower, patches, positions) - before).max(1) > 1e-6).all()


def test_an_image_lying_on_its_side_is_another_image(tower, rng):
    """Columns and rows have tables and halves of their own."""
    patches, positions = picture(6, 6, rng)
    a, b = see(tower, patches, positions), see(tower, patches, positions[:, ::-1])
    assert relative(a, b[np.arange(4).reshape(2, 2).T.ravel()]) > 0.05


def test_scores_depend_on_how_far_apart_patches_are_and_not_on_where(tower, rng):
    c = tower[1]
    q, k = rng.standard_normal((2, 2, 1, c.head_dim))
    scores = []
    for moved in ((0, 0), (5, 0), (0, 9), (7, 3)):
        rope = vision.axial_rope_table(np.array([[2, 4], [6, 1]]) + moved, c, F64)
        a, b = vision.axial_rope(q, rope), vision.axial_rope(k, rope)
        scores.append(a[0, 0] @ b[1, 0])
    assert scores == pytest.approx([scores[0]] * 4, abs=1e-12)


def test_every_tensor_of_the_layout_changes_the_soft_tokens(tower, rng):
    patches, positions = picture(6, 3, rng)
    w, c = tower
    before = see(tower, patches, positions)
    for name in layout.vision_shapes(c):
        other = changed(tower, name, w[name].astype(np.float64) * rng.uniform(0.4, 0.8, w[name].shape))
        assert relative(before, see(other, patches, positions)) > 1e-6, name


def test_every_bound_bites(multimodal_folders, rng):
    """Or else no test would see that a bound is ignored."""
    model = numgemma.load(multimodal_folders["e4b"], "float64")
    tower = model.weights.at("vision_tower"), model.config.vision
    patches, positions = picture(3, 3, rng)
    before = see(tower, patches, positions)
    bounds = [name for name in layout.vision_shapes(model.config.vision) if name.endswith(("put_min", "put_max"))]
    assert len(bounds) == 2 * 7 * 4
    for name in bounds:
        other = changed(tower, name, -np.inf if name.endswith("min") else np.inf)
        assert relative(before, see(other, patches, positions)) > 1e-6, name


def test_standardising_cancels_large_numbers_in_float32_even_in_a_bfloat16_run(rng):
    """Released biases reach 54000, where bfloat16 has steps of 256."""
    x = (50000 + rng.uniform(-1, 1, (4, 6))).astype(np.float32)
    bias = np.full(6, 49920, ml_dtypes.bfloat16)  # a bfloat16 number
    soft = ops.standardize(x, bias, np.ones(6, ml_dtypes.bfloat16), np.dtype(ml_dtypes.bfloat16))
    assert soft.dtype == ml_dtypes.bfloat16
    assert relative(x.astype(np.float64) - 49920, soft) < 2e-3


def test_pooled_patches_stay_in_float32_in_a_bfloat16_run(tower, rng):
    found = points(tower, *picture(6, 3, rng), dtype=np.dtype(ml_dtypes.bfloat16))
    assert found["pooler"].dtype == np.float32
    assert {str(x.dtype) for name, x in found.items() if name != "pooler"} == {"bfloat16"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_each_precision_is_near_float64(tower, rng, precision):
    patches, positions = picture(6, 6, rng)
    truth = see(tower, patches, positions)
    found = see(tower, patches, positions, dtype=np.dtype(precision))
    assert relative(truth, found) < {"float32": 1e-5, "bfloat16": 0.1}[precision]


def test_watching_changes_nothing(tower, rng):
    patches, positions = picture(6, 6, rng)
    assert_close(see(tower, patches, positions), points(tower, patches, positions)["out"], "float64")


def test_a_tower_of_one_layer_more_has_more_points(rng, tmp_path):
    raw = tiny.E4B | {"vision_config": tiny.VISION | {"num_hidden_layers": 3}}
    model = numgemma.load(tiny.write(tmp_path / "deep", raw), "float64")
    found = points((model.weights.at("vision_tower"), model.config.vision), *picture(3, 3, rng))
    assert {name for name in found if name.endswith(".out")} == {
        *(f"encoder.layers.{i}.out" for i in range(3)),
        "patch_embedder.out",
    }
