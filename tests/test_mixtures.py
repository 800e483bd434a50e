"""Lineage tells the recipes by which people mix, with their weights, and does not tell what it cannot know."""

import json
import re
from pathlib import Path

import merges
import numpy as np
import pytest
from safetensors.numpy import save_file

from numgemma.cli import main
from numgemma.surgery.edits import edited, highest
from numgemma.surgery.lineage import lineage, trace_back
from numgemma.surgery.mixture import angles, blend
from numgemma.surgery.mixtures import explained
from numgemma.surgery.rounding import digits, rounding
from numgemma.surgery.sketch import sketch
from numgemma.surgery.summary import summary
from numgemma.surgery.thinned import thinned


@pytest.mark.parametrize("kind", merges.RECIPES)
def test_a_recipe_is_told_as_it_was_made(tmp_path, kind):
    """The same that benchmarks/lineage_score.py counts, once for each kind of recipe."""
    case = merges.RECIPES[kind](np.random.default_rng([20261130, len(kind)]))
    found, names = merges.traced(case, tmp_path)
    verdict = merges.judge(case, found, names)
    assert verdict.wrong == []
    assert verdict.recovered, [line.text for line in summary(found, names)]


def lines(found, names):
    return [(line.text, line.where) for line in summary(found, names)]


def case_of(tmp_path, kind, seed=3):
    case = merges.RECIPES[kind](np.random.default_rng(seed))
    return case, *merges.traced(case, tmp_path)


# what a reader sees


def test_a_blend_is_told_in_one_line_with_what_is_not_blended(tmp_path):
    case, found, names = case_of(tmp_path, "linear, norms of one")
    first, *rest = lines(found, names)
    w = case.truth.weights
    assert first == (f"{short(w['a'])} a + {short(w['b'])} b", "everywhere else")
    assert rest
    assert all(text in ("a", "the same in a and b: not told apart") for text, _ in rest)
    assert "norms" in rest[0][1]
    assert {o.relation for o in found.slots} == {"blend"}


def short(x):
    return f"{x:.3f}".rstrip("0")


def test_a_slerp_is_told_by_its_t(tmp_path):
    case, found, names = case_of(tmp_path, "slerp")
    assert f"slerp from a to b, t = {case.truth.t:.3f}".rstrip("0") == lines(found, names)[0][0]


def test_a_task_vector_is_told_over_its_base(tmp_path):
    case, found, names = case_of(tmp_path, "task vector of one", seed=4)
    told = re.fullmatch(r"base \+ ([\d.]+) \(a - base\)", lines(found, names)[0][0])
    assert float(told[1]) == pytest.approx(case.truth.weights["a"], abs=2e-3)


def test_an_abliteration_is_told_with_how_much_is_gone(tmp_path):
    case, found, names = case_of(tmp_path, "abliteration")
    text = dict(lines(found, names)[::-1])
    told = [line for line in text if "of what it writes along one direction" in line]
    assert len(told) == 1
    amount = "all" if case.truth.removed == 1 else short(case.truth.removed)
    assert f"less {amount} of what" in told[0]


def test_a_router_that_does_not_follow_its_experts_is_an_error(tmp_path, capsys):
    _, found, _ = case_of(tmp_path, "experts, router astray")
    layers = sorted({fault.split(":")[0] for fault in found.faults})
    assert layers == [f"layers.{i}" for i in range(6)]
    assert main(["lineage", str(tmp_path / "child"), "--parents", str(tmp_path / "a")]) == 0
    assert "ERROR: layers.0: row" in capsys.readouterr().out


def test_pruned_experts_are_told_with_router_rows_and_scales(tmp_path):
    """Nothing of a pruned layer is new: its rows and its scales are those of the experts that are left."""
    case, found, _ = case_of(tmp_path, "experts pruned")
    assert {r.kind for r in found.tensors.values()} == {"copy", "experts"}
    assert found.faults == []
    scales = found.tensors["layers.2.router.per_expert_scale"]
    assert (scales.kind, scales.experts) == ("experts", case.truth.experts[2])


def test_parents_that_differ_by_less_than_their_rounding_are_not_told_apart(tmp_path):
    _, found, names = case_of(tmp_path, "twins")
    assert {r.kind for r in found.tensors.values()} == {"copy"}
    text = " ".join(text for text, _ in lines(found, names))
    assert "0." not in text  # no weight
    assert "not told apart" in text


def test_without_the_base_two_task_vectors_are_no_confident_blend(tmp_path):
    """base + x (a - base) + y (b - base) is a sum of a and b only where x + y is 1."""
    case = merges.RECIPES["task vectors of two"](np.random.default_rng(3))
    assert abs(case.truth.weights["base"]) > 0.1
    merges.traced(case, tmp_path)
    found = lineage(tmp_path / "child", [tmp_path / "a", tmp_path / "b"])
    told = summary(found, {p: p for p in found.parents})
    assert not any(line.weights for line in told)
    most = max(told, key=lambda line: line.numbers)
    assert most.confidence == "about"
    assert "not explained" in most.text


# the mathematics


def test_rounding_is_as_large_as_it_is_said_to_be():
    x = np.random.default_rng(0).standard_normal(20000)
    left = x - x.astype(merges.BF16).astype(np.float64)
    assert np.sqrt(np.mean(left**2)) == pytest.approx(np.sqrt(np.mean(rounding(x, 8) ** 2)), rel=0.02)


def test_a_wide_type_that_holds_bfloat16_is_judged_as_such():
    x = np.random.default_rng(0).standard_normal((20, 20))
    assert digits(sketch("x", x.astype(np.float32))) == 24
    assert digits(sketch("x", x.astype(merges.BF16).astype(np.float32))) == 8


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9])
def test_the_angle_of_a_slerp_is_found_from_its_weights(t):
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 500))
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    found = angles(np.array([np.sin((1 - t) * angle), np.sin(t * angle)]) / np.sin(angle), a, b)
    assert found[:2] == pytest.approx((t, 1.0))


def test_weights_are_known_to_within_what_is_said(tmp_path):
    """Of many blends the errors are those of a normal distribution of that width, or smaller."""
    off = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        a = rng.standard_normal((40, 50)).astype(merges.BF16)
        b = (a.astype(np.float32) + 0.02 * rng.standard_normal(a.shape)).astype(merges.BF16)
        w = rng.uniform(0.2, 0.8)
        child = (w * a.astype(np.float32) + (1 - w) * b.astype(np.float32)).astype(merges.BF16)
        found = blend(sketch("x", child), [("a", sketch("x", a)), ("b", sketch("x", b))])
        off.append((found.shares[0].weight - w) / found.shares[0].give)
    assert np.sqrt(np.mean(np.square(off))) < 1.2
    assert np.abs(off).max() < 4


def test_a_difference_of_full_rank_is_no_edit():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((60, 80)).astype(merges.BF16)
    b = (a.astype(np.float32) + 0.05 * rng.standard_normal(a.shape)).astype(merges.BF16)
    assert edited(sketch("x", b), ("a", sketch("x", a))) is None


def matrices(folder, **tensors):
    """Checkpoints of one matrix each."""
    for name, x in tensors.items():
        (folder / name).mkdir()
        save_file({"layers.0.mlp.up_proj.weight": x.astype(merges.BF16)}, folder / name / "model.safetensors")


@pytest.mark.parametrize("rank", [24, 60])
def test_an_adapter_of_a_rank_beyond_the_columns_of_a_sketch_is_told(tmp_path, rank):
    rng = np.random.default_rng(rank)
    a = rng.standard_normal((200, 240))
    change = rng.standard_normal((200, rank)) @ rng.standard_normal((rank, 240)) / np.sqrt(rank)
    matrices(tmp_path, a=a, child=a + 0.1 * change)
    found = lineage(tmp_path / "child", [tmp_path / "a"])
    (r,) = found.tensors.values()
    assert (r.kind, r.rank) == ("edited", rank)
    assert lines(found, {str(tmp_path / "a"): "a"})[0][0].startswith(f"a and a difference of rank {rank} (")


@pytest.mark.parametrize("rank", [2, 5, 20])
def test_an_adapter_of_each_expert_is_told_by_the_rank_of_one(tmp_path, rank):
    """Six experts of rank 5 are of rank 30 together, which no sketch of 32 columns shows; one was never trained."""
    rng = np.random.default_rng(rank)
    a = rng.standard_normal((6, 80, 96))
    change = rng.standard_normal((6, 80, rank)) @ rng.standard_normal((6, rank, 96)) / np.sqrt(rank)
    change[0] = 0
    matrices(tmp_path, a=a, child=a + 0.1 * change)
    found = lineage(tmp_path / "child", [tmp_path / "a"])
    (r,) = found.tensors.values()
    assert (r.kind, r.rank) == ("edited", rank)
    assert lines(found, {str(tmp_path / "a"): "a"})[0][0].startswith(
        f"a and a difference of rank {rank} in each expert"
    )


def test_experts_of_which_one_was_changed_in_all_directions_are_not_told_as_edited(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((6, 80, 96))
    change = rng.standard_normal((6, 80, 3)) @ rng.standard_normal((6, 3, 96))
    change[3] = rng.standard_normal((80, 96))
    matrices(tmp_path, a=a, child=a + 0.1 * change)
    (r,) = lineage(tmp_path / "child", [tmp_path / "a"]).tensors.values()
    assert r.kind != "edited"


def test_a_difference_of_too_high_a_rank_is_not_told_and_the_limit_is(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((200, 240))
    matrices(tmp_path, a=a, child=a + 0.1 * rng.standard_normal(a.shape))
    found = lineage(tmp_path / "child", [tmp_path / "a"])
    ((text, _),) = lines(found, {str(tmp_path / "a"): "a"})
    assert text.startswith("nearest to a")
    assert text.endswith(f"no difference of rank {highest((200, 240))} or less")
    assert 60 < highest((200, 240)) < 120


# thinned differences of three


def three(method, seed, size=0.4, shape=(64, 96)):
    """Sketches of (child, base, three fine-tunes), and the recipe."""
    rng = np.random.default_rng(seed)
    b = rng.standard_normal(shape).astype(merges.BF16)
    wide = b.astype(np.float32)
    models = [(wide + size * rng.standard_normal(shape)).astype(merges.BF16) for _ in range(3)]
    w, density = rng.uniform(0.4, 1.0, 3), rng.uniform(0.3, 0.8, 3)
    d = [m.astype(np.float32) - wide for m in models]
    child = (wide + merges.thin(d, w, density, method, rng)).astype(merges.BF16)
    named = [(name, sketch("x", m)) for name, m in zip("abc", models, strict=True)]
    return sketch("x", child), ("base", sketch("x", b)), named, w, density


@pytest.mark.parametrize(("method", "how"), [("dare", "dare"), ("dare_ties", "dare, elected"), ("ties", "ties")])
@pytest.mark.parametrize("seed", range(3))
def test_thinned_differences_of_three_are_told(method, how, seed):
    child, base, models, w, density = three(method, seed)
    found = explained(child, [base, *models], "base", False)
    assert (found.kind, found.how, found.parent) == ("thinned", how, "base")
    if method == "ties":
        w = w / w.sum()
    slack = 4 * max(share.give for share in found.shares) if method != "ties" else 0.0
    assert [share.parent for share in found.shares] == list("abc")
    assert [share.weight for share in found.shares] == pytest.approx(list(w), abs=0.01 + slack)
    assert [share.density for share in found.shares] == pytest.approx(list(density), abs=0.03 + slack)


def test_of_three_parents_of_which_one_has_no_part_two_are_told():
    _, base, models, _, _ = three("dare", 5)
    rng = np.random.default_rng(5)
    b, (x, y) = base[1].whole.astype(np.float32), [models[i][1].whole.astype(np.float32) for i in (0, 2)]
    child = b + 1.2 * (rng.random(b.shape) < 0.5) * (x - b) + 0.9 * (rng.random(b.shape) < 0.6) * (y - b)
    found = explained(sketch("x", child.astype(merges.BF16)), [base, *models], "base", False)
    assert found.kind == "thinned"
    assert [share.parent for share in found.shares] == ["a", "c"]


@pytest.mark.parametrize("method", ["dare", "dare_ties", "ties"])
def test_three_whose_differences_lie_below_their_rounding_are_not_told(method):
    child, base, models, _, _ = three(method, 1, size=0.003)
    assert explained(child, [base, *models], "base", False) is None


@pytest.mark.parametrize(("method", "how"), [("dare", "dare"), ("dare_ties", "dare, elected"), ("ties", "ties")])
@pytest.mark.parametrize("seed", range(4))
def test_three_whose_differences_lie_near_their_rounding_are_told_right_or_not_at_all(method, how, seed):
    child, base, models, w, density = three(method, seed, size=0.012)
    if found := explained(child, [base, *models], "base", False):
        slack = 0.01 + 8 * max(share.give for share in found.shares)
        assert (found.kind, found.how) == ("thinned", how)
        due = w / w.sum() if method == "ties" else w
        assert [share.weight for share in found.shares] == pytest.approx(list(due), abs=slack)
        assert [share.density for share in found.shares] == pytest.approx(list(density), abs=slack)


def test_what_a_sum_of_three_would_explain_by_chance_is_not_taken_for_one():
    """Differences of eight sums each, so close that nearly every number is near one."""
    rng = np.random.default_rng(2)
    b = rng.standard_normal((64, 96)).astype(merges.BF16)
    wide = b.astype(np.float32)
    models = [(n, sketch("x", (wide + 0.03 * rng.standard_normal(b.shape)).astype(merges.BF16))) for n in "abc"]
    child = np.where(rng.random(b.shape) < 0.3, wide, wide + 0.03 * rng.standard_normal(b.shape))
    assert thinned(sketch("x", child.astype(merges.BF16)), ("base", sketch("x", b)), models) is None


def test_broken_rows_do_not_change_the_weights():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 60, 80))
    child = 0.3 * a + 0.7 * b
    child[3, 5], child[7] = np.nan, np.inf
    child, a, b = (x.astype(merges.BF16) for x in (child, a, b))
    found = blend(sketch("x", child), [("a", sketch("x", a)), ("b", sketch("x", b))])
    assert [share.weight for share in found.shares] == pytest.approx([0.3, 0.7], abs=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_unrelated_tensors_are_no_mixtures(seed):
    """Ten parents to choose from, and nothing of any of them in the child."""
    rng = np.random.default_rng(seed)

    def model():
        shapes = {"w": (30, 40), "v": (48,), "s": (1,), "e": (6, 10, 20), "n": (9,)}
        return {f"layers.{i}.{n}.weight": sketch(f"layers.{i}.{n}.weight", rng.uniform(0.5, 1.5, s).astype(merges.BF16))
                for i in range(3) for n, s in shapes.items()}  # fmt: skip

    found = trace_back("child", model(), {str(i): model() for i in range(10)}, base="0")
    assert {r.kind for n, r in found.tensors.items() if ".s." not in n} == {"fresh"}


# memory


def test_sketches_of_a_large_tensor_stay_small_whatever_is_asked_of_them(tmp_path):
    """Three tensors of 64 MB: what is kept of them and worked out on them is far below one of them."""
    import tracemalloc

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((1 << 15, 512), np.float32) for _ in "ab")
    parents = {"a": a, "b": b, "child": 0.25 * a + 0.75 * b}
    for name, x in parents.items():
        (tmp_path / name).mkdir()
        save_file({"layers.0.mlp.up_proj.weight": x}, tmp_path / name / "model.safetensors")
    del parents, a, b, x
    tracemalloc.start()
    found = lineage(tmp_path / "child", [tmp_path / "a", tmp_path / "b"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    r = found.tensors["layers.0.mlp.up_proj.weight"]
    assert [share.weight for share in r.shares] == pytest.approx([0.25, 0.75], abs=1e-6)
    assert peak < 48 << 20


# for machines


def test_the_json_holds_the_recipe_and_its_numbers(tmp_path):
    case, _, _ = case_of(tmp_path, "dare of two")
    out = tmp_path / "l.json"
    parents = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["lineage", str(tmp_path / "child"), "--parents", *parents, "--base", str(tmp_path / "base"),
                 "--json", str(out)]) == 0  # fmt: skip
    held = json.loads(out.read_text())
    first = held["recipe"][0]
    assert first["confidence"] == "sure"
    assert {Path(p).name: w for p, w in first["weights"].items()} == pytest.approx(case.truth.weights, abs=0.01)
    assert {Path(p).name: d for p, d in first["densities"].items()} == pytest.approx(case.truth.densities, abs=0.03)
    assert held["base"] == str(tmp_path / "base")
    assert held["faults"] == []
