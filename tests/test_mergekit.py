"""mergekit itself merges tiny Gemma 4 parents; lint and lineage take what it writes, and say where it breaks.

Needs mergekit (`make test-merge`), which knows Gemma 4 from the tensors' names alone.
"""

import os

import merges
import numpy as np
import pytest
import tiny

from numgemma.surgery.certain import LIKELY, SURE
from numgemma.surgery.lineage import lineage
from numgemma.surgery.lint import structure
from numgemma.surgery.merge_yaml import to_mergekit
from numgemma.surgery.summary import summary

pytestmark = [pytest.mark.merge, pytest.mark.filterwarnings("ignore")]  # mergekit's own warnings

VARIANTS = {"dense": tiny.DENSE, "moe": tiny.MOE, "ple": tiny.PLE | {"use_double_wide_mlp": False}}


@pytest.fixture(scope="module", params=VARIANTS)
def parents(request, tmp_path_factory):
    """A base and three fine-tunes of it."""
    folder = tmp_path_factory.mktemp(request.param)
    base, models = merges.related(VARIANTS[request.param], np.random.default_rng(5), 3)
    for name, tensors in zip(("base", "a", "b", "c"), (base, *models), strict=True):
        tiny.write(folder / name, VARIANTS[request.param], tensors)
    return folder


def merged(parents, name, config):
    """What mergekit makes of a recipe."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=3)
    run_merge(MergeConfiguration.model_validate(config | {"dtype": "bfloat16"}), str(parents / name), options)
    return str(parents / name)


def models(parents, **numbers):
    """The first two fine-tunes, or as many as there are numbers, with the parameters of each."""
    count = max([2, *(len(value) for value in numbers.values())])
    return [
        {"model": str(parents / name), "parameters": {key: value[i] for key, value in numbers.items()}}
        for i, name in enumerate("abc"[:count])
    ]


def told(parents, child, names="ab"):
    """The line that holds for most numbers."""
    found = lineage(child, [parents / name for name in names], base=parents / "base")
    labels = {str(parents / name): name for name in (*names, "base")}
    return found, summary(found, labels), labels


def weights(line, labels):
    return {labels[parent]: weight for parent, weight in line.weights.items()}


def test_a_linear_blend_and_the_recipe_that_makes_it_again(parents):
    child = merged(parents, "linear", {"merge_method": "linear", "models": models(parents, weight=(0.7, 0.3))})
    found, lines, labels = told(parents, child)
    assert lines[0].confidence == SURE
    assert weights(lines[0], labels) == pytest.approx({"a": 0.7, "b": 0.3}, abs=0.01)
    import yaml

    again = merged(parents, "again", yaml.safe_load(to_mergekit(found, "r.yaml")))
    a, b = (np.frombuffer(open(f"{path}/model.safetensors", "rb").read(), np.uint8) for path in (child, again))  # noqa: SIM115
    assert (a == b).mean() > 0.9  # to within rounding of the weights
    assert not [f for f in structure(child) if f.severity == "error"]


def test_a_slerp(parents):
    both = [{"model": str(parents / name)} for name in "ab"]
    config = {"merge_method": "slerp", "base_model": str(parents / "a"), "models": both, "parameters": {"t": 0.3}}
    _, lines, _ = told(parents, merged(parents, "slerp", config))
    assert (lines[0].confidence, lines[0].t) == (SURE, pytest.approx(0.3, abs=0.01))


def test_task_arithmetic(parents):
    config = {"merge_method": "task_arithmetic", "base_model": str(parents / "base")}
    child = merged(parents, "task", config | {"models": models(parents, weight=(0.6, 0.5))})
    _, lines, labels = told(parents, child)
    assert lines[0].confidence == SURE
    assert weights(lines[0], labels) == pytest.approx({"a": 0.6, "b": 0.5, "base": -0.1}, abs=0.01)


@pytest.mark.parametrize(
    ("method", "manner", "expected"),
    [
        ("dare_linear", "DARE: at random, rescaled)", (0.6, 0.5)),
        ("dare_ties", "signs elected", (0.6, 0.5)),
        ("ties", "TIES", (0.6 / 1.1, 0.5 / 1.1)),
    ],
)
def test_thinned_task_vectors(parents, method, manner, expected):
    config = {"merge_method": method, "base_model": str(parents / "base")}
    child = merged(parents, method, config | {"models": models(parents, weight=(0.6, 0.5), density=(0.5, 0.7))})
    _, lines, labels = told(parents, child)
    assert manner in lines[0].text
    assert lines[0].confidence in (SURE, LIKELY)
    assert weights(lines[0], labels) == pytest.approx(dict(zip("ab", expected, strict=True)), abs=0.01)
    assert list(lines[0].densities.values()) == pytest.approx([0.5, 0.7], abs=0.03)


@pytest.mark.parametrize(
    ("method", "manner"),
    [("dare_linear", "DARE: at random, rescaled)"), ("dare_ties", "signs elected"), ("ties", "TIES")],
)
def test_thinned_task_vectors_of_three(parents, method, manner):
    config = {"merge_method": method, "base_model": str(parents / "base")}
    mix = models(parents, weight=(0.6, 0.5, 0.4), density=(0.5, 0.7, 0.6))
    _, lines, labels = told(parents, merged(parents, f"{method} of three", config | {"models": mix}), "abc")
    assert manner in lines[0].text
    expected = np.array([0.6, 0.5, 0.4]) / (1.5 if method == "ties" else 1)
    assert weights(lines[0], labels) == pytest.approx(dict(zip("abc", expected, strict=True)), abs=0.02)
    assert list(lines[0].densities.values()) == pytest.approx([0.5, 0.7, 0.6], abs=0.03)


OTHERS = {
    "breadcrumbs": {"weight": (0.6, 0.5), "density": (0.5, 0.7)},
    "sce": {},
    "arcee_fusion": {},
    "nearswap": {},
}


@pytest.mark.parametrize("method", OTHERS)
def test_a_method_that_lineage_does_not_know_is_not_called_by_another_ones_name(parents, method):
    over = "a" if method in ("arcee_fusion", "nearswap") else "base"
    config = {"merge_method": method, "base_model": str(parents / over), "models": models(parents, **OTHERS[method])}
    if method == "nearswap":
        config["parameters"] = {"t": 0.01}
    if method == "sce":
        config["parameters"] = {"select_topk": 0.5}
    _, lines, _ = told(parents, merged(parents, method, config))
    sure = [line.text for line in lines if line.confidence == SURE and line.numbers > 500]
    assert not [text for text in sure if "TIES" in text or "DARE" in text or "slerp" in text]


def test_where_it_breaks_layers_that_move_take_nothing_along(parents):
    """Slices: the per-layer table, the kinds of the layers and the sharing of keys stay as they were."""
    slices = [{"sources": [{"model": str(parents / "a"), "layer_range": span}]} for span in ([0, 4], [2, 6])]
    child = merged(parents, "passthrough", {"merge_method": "passthrough", "slices": slices})
    rules = {f.rule for f in structure(child) if f.severity == "error"}
    assert "kind" in rules
    assert lineage(child, [parents / "a"]).slots[4].layer == 2
