"""Comparing two dumps: what counts as the same, where they first part, and how that is told."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import numgemma
from numgemma.debug.compare.diff import diff, render, verdict
from numgemma.debug.measure import logits, metrics
from numgemma.debug.measure.precision import TOLERANCES
from numgemma.debug.noise.floor import Floor, Noise
from numgemma.debug.report.depth import plot
from numgemma.dump import Dump, new_meta, read_dump
from numgemma.errors import InputError

KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


def dump(points, axes="T D", precision="float32", T=64, **meta):
    """A dump of the given arrays; axes: of all points, or by name."""
    about = new_meta("numgemma", "0.1.0", {"config": "c", "layer_kinds": KINDS}, range(T), precision) | meta
    return Dump(about, dict(points), axes if isinstance(axes, dict) else dict.fromkeys(points, axes))


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def deep(noise=0.0, layers=4):
    """A dump of some points per layer, with noise of a given size from layer 2's q_rope on."""
    names = ["embed_tokens"]
    for i in range(layers):
        names += [f"layers.{i}.{leaf}" for leaf in ("self_attn.q_norm", "self_attn.q_rope", "after_attention", "out")]
    names += ["norm", "logits"]
    start = names.index("layers.2.self_attn.q_rope")
    return dump({n: normal(8, 16) + np.float32(noise * (i >= start)) for i, n in enumerate(names)}, T=8)


def only(a, b, **about):
    """The one point of a comparison of two arrays."""
    result = diff(dump({"x": a}, **about), dump({"x": b}, **about))
    assert len(result.points) == 1
    return result.points[0]


# -- the numbers ------------------------------------------------------------------------------------------------------


def test_a_dump_is_the_same_as_itself():
    result = diff(deep(), deep())
    assert (result.verdict, result.first, result.exit_code) == ("same", None, 0)
    assert {p.rel for p in result.points} == {0.0}


@pytest.mark.parametrize("precision", ["float64", "float32", "float16", "bfloat16"])
def test_a_lost_factor_has_cosine_1_and_still_differs(precision):
    x = normal(64, 32, dtype=np.float64)
    p = only(x, 1.05 * x, precision=precision)
    assert p.cos == pytest.approx(1)
    assert p.scale == pytest.approx(1.05)
    assert p.state == "DIFFERS"


def test_the_verdict_names_a_lost_factor():
    x = normal(64, 32)
    assert "(B is A times 1.05)" in verdict(diff(dump({"x": x}), dump({"x": x * np.float32(1.05)})))


def test_one_garbage_token_of_64_at_a_thousandth_of_the_scale_is_caught_by_its_own_error():
    x = normal(64, 256)
    x[17] *= 1e-3
    y = x.copy()
    y[17] = 1e-3 * normal(256, seed=1)
    p = only(x, y, precision="bfloat16")
    assert p.state == "DIFFERS"
    assert p.rel < TOLERANCES["bfloat16"].rel / 100
    assert p.worst_token > 1
    assert p.worst_token_at == [17]


@pytest.mark.parametrize("size", [1.0, 0.3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_dead_channel_of_1536_is_caught_by_its_own_error(precision, size):
    x = normal(64, 1536)
    x[:, 900] *= size
    y = x.copy()
    y[:, 900] = 0
    p = only(x, y, precision=precision)
    assert p.worst_channel == pytest.approx(1)
    assert p.worst_channel_at == [900]
    assert p.state == "DIFFERS"


def test_a_dead_channel_too_quiet_for_the_tensors_error_is_still_caught():
    x = normal(64, 1536)
    x[:, 900] *= 5e-4
    y = x.copy()
    y[:, 900] = 0
    p = only(x, y)
    assert p.rel < TOLERANCES["float32"].rel
    assert p.state == "DIFFERS"


def test_noise_on_a_channel_that_is_almost_zero_is_no_fault():
    x = normal(64, 256)
    x[:, 3] *= 1e-9
    x[5] *= 1e-9
    assert only(x, x + np.float32(2e-8) * normal(64, 256, seed=1)).state == "SAME"


@pytest.mark.parametrize("axes", ["T N H", "N T S", "N H T", "A N H", "T S O"])
@pytest.mark.parametrize("size", [1, 7, 30, 10**6])
def test_blocks_give_the_same_numbers_as_the_formula_over_the_whole_tensor(monkeypatch, axes, size):
    monkeypatch.setattr(metrics, "BLOCK", size)
    a = normal(3, 4, 5, dtype=np.float64)
    b = a + 0.1 * normal(3, 4, 5, seed=1, dtype=np.float64)
    letters, d = "".join(axes.split()), a - b
    token = "T" if "T" in letters else ""
    channel = "".join(letter for letter in letters if letter not in "TSO")

    def by(kept, x):
        return np.einsum(f"{letters},{letters}->{kept}", x, x)

    m = metrics.measure(a, b, axes)
    at = np.unravel_index(np.abs(d).argmax(), d.shape)
    assert m.rel == pytest.approx(np.sqrt(by("", d) / by("", a)))
    assert m.cos == pytest.approx(np.einsum("abc,abc", a, b) / np.sqrt(by("", a) * by("", b)))
    assert m.scale == pytest.approx(np.einsum("abc,abc", a, b) / by("", a))
    assert m.worst_token == pytest.approx(np.sqrt(by(token, d) / by(token, a)).max())
    assert m.worst_channel == pytest.approx(np.sqrt(by(channel, d) / by(channel, a)).max())
    assert [len(at or ()) for at in (m.worst_token_at, m.worst_channel_at)] == [len(token), len(channel)]
    assert (m.max_abs, m.max_abs_at) == (np.abs(d).max(), [int(i) for i in at])
    assert (m.a_at, m.b_at) == (a[at], b[at])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("axes", ["T N H", "N T S", "T S O"])
def test_blocks_whose_bits_are_equal_count_as_the_others_do(monkeypatch, axes, dtype):
    monkeypatch.setattr(metrics, "BLOCK", 20)
    a = normal(6, 4, 5).astype(dtype)
    b = a.copy()
    b[3, 2, 1] += dtype(0.5)
    x, y = (side.astype(np.float64) for side in (a, b))
    m = metrics.measure(a, b, axes)
    assert m.rel == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x))
    assert m.scale == pytest.approx(np.vdot(x, y) / np.vdot(x, x))
    assert m.max_abs_at == [3, 2, 1]
    assert m.rms == pytest.approx(np.sqrt((x * x).mean()))
    same = metrics.measure(a, a.copy(), axes)
    assert (same.rel, same.scale, same.worst_token, same.worst_channel, same.max_abs) == (0, 1, 0, 0, 0)
    b[:] = a
    a[5, 0, 0] = b[5, 0, 0] = np.nan
    assert metrics.measure(a, b, axes).nonfinite == ("a", "b")


def test_zeros_of_either_sign_are_equal_though_their_bits_are_not():
    x = normal(4, 6)
    x[2] = 0
    assert only(x, np.where(x == 0, -x, x)).rel == 0


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_numbers_whose_squares_float32_cannot_hold_are_measured(size):
    x = normal(8, 16) * np.float32(size)
    p = only(x, 2 * x)
    assert (p.rel, p.scale, p.max_abs) == pytest.approx((1, 2, float(np.abs(x).max())))


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (3, 0), (2, 3, 4), (1, 9)])
def test_blocks_cover_every_element_once(shape):
    seen = np.zeros(shape, int)
    for index in metrics.blocks(shape, 4):
        assert seen[index].size <= 4
        seen[index] += 1
    assert (seen == 1).all()


def test_zero_tensors_are_equal_and_anything_else_is_infinitely_far_from_zero():
    zero, one = np.zeros((4, 3), np.float32), np.ones((4, 3), np.float32)
    assert (only(zero, zero).state, only(zero, zero).rel) == ("SAME", 0.0)
    assert (only(zero, one).state, only(zero, one).rel) == ("DIFFERS", np.inf)
    assert (only(one, zero).state, only(one, zero).rel) == ("DIFFERS", 1.0)
    result = diff(dump({"x": zero}), dump({"x": one}))
    assert result.exit_code == 1
    assert result.to_json()["points"][0]["rel"] is None


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_empty_tensors_are_the_same(shape):
    assert only(np.zeros(shape, np.float32), np.zeros(shape, np.float32)).state == "SAME"


def test_bfloat16_tensors_are_compared_exactly_and_the_coarser_precision_counts():
    x = normal(16, 32)
    a = dump({"x": x})
    b = dump({"x": x.astype(ml_dtypes.bfloat16)}, precision="bfloat16")
    for result in (diff(a, b), diff(b, a)):
        assert (result.precision, result.verdict) == ("bfloat16", "same")
    wide = x.astype(ml_dtypes.bfloat16).astype(np.float64)
    assert result.points[0].rel == pytest.approx(np.linalg.norm(x - wide) / np.linalg.norm(wide))
    assert diff(a, dump({"x": b["x"]})).verdict == "differs"


def test_the_tolerance_that_passes_does_pass_and_a_smaller_one_does_not():
    a, b = dump({"x": normal(8, 4)}), dump({"x": normal(8, 4) + 0.1 * normal(8, 4, seed=1)})
    least = diff(a, b).points[0].tolerance_that_passes
    assert least is not None
    assert diff(a, b, tolerance=least).verdict == "same"
    assert diff(a, b, tolerance=0.999 * least).verdict == "differs"
    assert diff(a, a, tolerance=0).verdict == "same"


def test_a_precision_without_tolerances_is_refused_in_one_sentence():
    with pytest.raises(InputError, match="'int4', which has no tolerances"):
        diff(dump({"x": normal(2, 2)}), dump({"x": normal(2, 2)}, precision="int4"))


# -- logits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("V", [1, 3, 12, 500, 5003])
def test_the_highest_logits_are_those_of_a_sort(V):
    k, x = min(10, V), normal(6, V, seed=V)
    x[4] = 0  # all equal: any ten
    found = logits.highest(x, k)
    expected = np.argsort(-x, axis=-1, kind="stable")[:, :k]
    assert np.array_equal(found[:4], expected[:4])
    assert len(set(found[4])) == k


@pytest.mark.parametrize("block", [4, 64, 10**6])
@pytest.mark.parametrize("size", [1e-5, 1.0, 900.0])
def test_logits_in_pieces_give_the_divergence_of_the_formula(monkeypatch, block, size):
    monkeypatch.setattr(logits, "BLOCK", block)
    x = normal(5, 40, dtype=np.float64)
    y = x + size * normal(5, 40, seed=1, dtype=np.float64)
    y[1] = x[1]
    p, q = (z - z.max(-1, keepdims=True) for z in (x, y))
    p, q = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (p, q))
    found = logits.compare(x, y)
    assert found.kl_ab == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-4)
    assert found.kl_ba == pytest.approx((np.exp(q) * (q - p)).sum(-1).mean(), rel=1e-4)
    d, x = (z - z.mean(-1, keepdims=True) for z in (x - y, x))
    assert found.centred == pytest.approx(np.linalg.norm(d) / np.linalg.norm(x))
    y[2, 3] = np.nan
    assert logits.compare(x, y) is None
    assert logits.compare(y, y) is None


# -- experts ----------------------------------------------------------------------------------------------------------


def test_the_order_of_a_tokens_experts_does_not_matter_and_a_different_expert_does():
    ids = np.array([[1, 2], [3, 4], [5, 6], [7, 0]])
    weights = normal(4, 2)
    names = ("layers.0.router.ids", "layers.0.router.weights")
    a = dump(dict(zip(names, (ids, weights), strict=True)), "T J")
    b = dump(dict(zip(names, (ids[:, ::-1], weights[:, ::-1]), strict=True)), "T J")
    assert diff(a, b).verdict == "same"
    b.arrays[names[0]] = np.array([[2, 1], [3, 4], [5, 8], [7, 0]])
    chosen = diff(a, b).points[0]
    assert (chosen.state, chosen.rel, chosen.worst_token_at) == ("DIFFERS", 0.25, [2])


def test_other_integers_must_be_equal_in_place():
    x = np.arange(6).reshape(3, 2)
    assert only(x, x[:, ::-1]).rel == 1.0
    assert only(x, x.astype(np.int32)).state == "SAME"


# -- the join ---------------------------------------------------------------------------------------------------------


def test_a_missing_point_is_never_a_pass():
    a = deep()
    b = deep()
    del b.arrays["layers.1.out"]
    for result in (diff(a, b), diff(b, a)):
        assert (result.verdict, result.first, result.exit_code) == ("differs", "layers.1.out", 1)
        assert result.points[8].state == "MISSING"
    assert "missing in B" in verdict(diff(a, b))


def test_points_that_a_dump_was_not_asked_for_are_counted_and_not_missing():
    maps = {"layers.0.self_attn.probs": normal(2, 4, 4), "norm": normal(4, 3)}
    axes = {"layers.0.self_attn.probs": "N T S", "norm": "T D"}
    a, b = dump(maps, axes, coverage=["*"]), dump({"norm": maps["norm"]}, axes)
    result = diff(a, b)
    assert result.verdict == "same"
    assert result.not_recorded == {"a": [], "b": ["layers.0.self_attn.probs"]}
    assert "1 point was not recorded by B (--points)" in render(result, width=80)


def test_points_stand_in_the_order_of_the_first_dump_with_those_of_the_second_at_their_place():
    x = normal(2, 2)
    a = dump(dict.fromkeys("acde", x))
    b = dump(dict.fromkeys(["start", "a", "b1", "b2", "e", "d", "end"], x))
    assert [p.name for p in diff(a, b).points] == ["start", "a", "b1", "b2", "c", "d", "end", "e"]


def test_a_point_that_differs_is_named_before_one_that_is_missing():
    a, b = deep(), deep(noise=0.5)
    del b.arrays["embed_tokens"]
    result = diff(a, b)
    assert (result.points[0].state, result.first) == ("MISSING", "layers.2.self_attn.q_rope")


def test_points_of_other_shape_or_axes_are_not_comparable_and_no_pass():
    a = dump({"x": normal(4, 6), "y": normal(4, 6)})
    b = dump({"x": normal(4, 5), "y": normal(4, 6)}, {"x": "T D", "y": "T F"})
    result = diff(a, b)
    assert [p.state for p in result.points] == ["NOT COMPARABLE"] * 2
    assert (result.verdict, result.first) == ("differs", "x")
    assert "shape [4, 6] in A and [4, 5] in B" in verdict(result)


def test_globs_choose_the_points_that_are_compared():
    result = diff(deep(), deep(noise=1), points=("layers.*", "!*.q_rope"))
    assert len(result.points) == 12
    assert result.first == "layers.2.after_attention"


def test_different_token_ids_are_not_comparable():
    a = deep()
    for ids, text in (
        ([0, 1, 2, 9, 4, 5, 6, 7], "position 3: 3 in A, 9 in B"),
        ([0, 1], "position 2: 2 in A, no token"),
    ):
        b = deep()
        b.meta["ids"] = ids
        result = diff(a, b)
        assert (result.verdict, result.exit_code, result.points) == ("not comparable", 3, [])
        assert text in render(result, width=200)


def test_dumps_without_a_common_point_are_not_comparable():
    result = diff(dump({"x": normal(2, 2)}), dump({"y": normal(2, 2)}))
    assert (result.verdict, result.exit_code) == ("not comparable", 3)


def test_another_configuration_is_a_warning_only():
    b = deep()
    b.meta["model"] = {"config": "other"}
    result = diff(deep(), b)
    assert result.verdict == "same"
    assert "warning: the models' configurations differ" in render(result, width=80)


# -- what goes out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["a", "b"])
def test_a_non_finite_value_gives_exit_code_4_and_valid_json(value, side):
    a, b = deep(), deep()
    {"a": a, "b": b}[side].arrays["norm"][3, 5] = value
    result = diff(a, b)
    assert (result.exit_code, result.nonfinite, result.first) == (4, ["norm"], "norm")
    tree = json.loads(json.dumps(result.to_json(), allow_nan=False))
    point = next(p for p in tree["points"] if p["name"] == "norm")
    assert (point["rel"], point["max_abs_at"], point["nonfinite"]) == (None, [3, 5], [side])
    assert f"NaN or infinity in {side.upper()}, first at [3, 5]" in verdict(result)


def test_a_non_finite_value_in_a_point_that_only_one_dump_has_is_found():
    b = dump({"x": normal(2, 2), "y": np.full((2, 2), np.nan, np.float32)})
    assert diff(dump({"x": normal(2, 2)}), b).exit_code == 4


def test_the_json_has_a_schema_and_the_numbers_of_every_point():
    tree = diff(deep(), deep(noise=0.5)).to_json()
    assert (tree["schema"], tree["verdict"]) == ("numgemma.diff/1", "differs")
    assert tree["first"] == "layers.2.self_attn.q_rope"
    keys = ["name", "state", "rel", "cos", "scale", "worst_token", "worst_channel", "max_abs"]
    keys += ["worst_token_at", "worst_channel_at", "max_abs_at", "a_at", "b_at", "tolerance", "tolerance_that_passes"]
    assert all(set(keys) <= set(p) for p in tree["points"])


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("every", [True, False])
def test_the_report_fits_the_terminal_and_names_the_first_point_that_differs(width, every):
    b = deep(noise=0.5)
    b.arrays["layers.3.out"] = normal(8, 3)
    long = "vision_tower.encoder.layers.12.self_attn.post_feedforward_layernorm"
    a = deep()
    for d in (a, b):
        d.arrays[long], d.axes[long] = normal(8, 16), "T D"
    text = render(diff(a, b), all=every, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert text.startswith("DIFFERS first at layers.2.self_attn.q_rope")
    assert "SHAPES  shape [8, 16]" in text
    assert ("vision_tower.e" in text) == every
    assert "…" in text or not every
    assert ("--all" in text) != every


def test_the_report_shows_about_a_dozen_of_many_points():
    rows = render(diff(deep(layers=35), deep(noise=0.5, layers=35)), width=80).split("\n\n")[-1].splitlines()[2:-1]
    assert 8 <= len(rows) <= 14
    names = [row.split()[0] for row in rows]
    expected = ["layers.2.self_attn.q_norm", "layers.2.self_attn.q_rope", "layers.34.out", "norm", "logits"]
    assert [name for name in names if name in expected] == expected


def test_the_verdict_names_the_layer_kind_the_error_and_the_counts():
    b = deep()
    b.arrays["layers.1.out"] = 2 * b["layers.1.out"]
    expected = (
        "layers.1.out (full attention): relative error 1, tolerance 2e-05 (B is A times 2); 1 of 19 points differ"
    )
    assert verdict(diff(deep(), b)) == f"DIFFERS first at {expected}, 0 missing."


def test_dumps_read_from_files_compare_as_those_in_memory(tmp_path):
    a, b = deep(), deep(noise=0.5)
    for name, d in (("a", a), ("b", b)):
        d.save(tmp_path / name)
    assert diff(read_dump(tmp_path / "a"), read_dump(tmp_path / "b")).to_json() == diff(a, b).to_json()


def test_the_package_compares_what_its_readers_read(tmp_path):
    a, b = deep(), deep(noise=0.5)
    a.save(tmp_path / "a.safetensors")
    np.savez(tmp_path / "b.npz", input_ids=np.arange(8), **{name: b[name] for name in b})
    found = numgemma.diff(tmp_path / "a.safetensors", tmp_path / "b.npz", ["*.out"])
    assert (found.verdict, found.first) == ("differs", "layers.2.out")
    assert numgemma.diff(a, str(tmp_path / "a.safetensors")).verdict == "same"
    (tmp_path / "model.gguf").write_bytes(b"GGUF\0")
    with pytest.raises(InputError, match="none of what can be read"):
        numgemma.diff(a, tmp_path / "model.gguf")


def test_a_picture_is_written_whole_and_leaves_nothing_else(tmp_path):
    a, b = deep(), deep(noise=0.5)
    del b.arrays["layers.0.out"]
    b.arrays["norm"][0, 0] = np.nan
    plot(diff(a, b), tmp_path / "x.png", title="a title")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        plot(diff(deep(), deep()), tmp_path / "none" / "x.png")
    with pytest.raises(InputError, match="nothing to draw"):
        plot(diff(dump({"x": normal(2, 2)}), dump({"y": normal(2, 2)})), tmp_path / "x.png")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        plot(diff(deep(), deep()), tmp_path / "folder")


def test_comparing_does_not_import_matplotlib():
    code = "import sys, numgemma.debug.report.depth; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_picture_with_a_floor_shows_every_state(tmp_path):
    a, b = deep(), deep(noise=0.5)
    del b.arrays["layers.0.out"]
    b.arrays["layers.1.out"] = np.nextafter(b["layers.1.out"], np.float32(9))
    b.arrays["norm"][0, 0] = np.nan
    small = Noise((1e-7, 2e-7), (1e-7, 2e-7), (1e-7, 2e-7), (1e-8, 3e-8))
    floor = Floor("float32", {"config": "c"}, list(range(8)), 8, dict.fromkeys(a, small))
    found = diff(a, b, floor=floor)
    assert {"BIT-EXACT", "NOISE", "FAULT", "INHERITED", "NON-FINITE", "UNMEASURED"} == {p.state for p in found.points}
    plot(found, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    text = render(found, all=True, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert all(state in text for state in ("BIT-EXACT", "NOISE", "FAULT", "INHERITED", "NON-FINITE", "UNMEASURED"))
    json.dumps(found.to_json(), allow_nan=False)
