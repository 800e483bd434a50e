"""A merge of which a parent or the base is not given: lineage tells what it can see, and claims nothing else."""

import merges
import numpy as np
import pytest

from numgemma.surgery.certain import ABOUT, LIKELY, SURE, confidence
from numgemma.surgery.summary import summary

SMALL = merges.DENSE | {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
RECIPES = {
    "dare of one": lambda rng: merges.sparse(SMALL, rng, 1, "dare"),
    "dare of two": lambda rng: merges.sparse(SMALL, rng, 2, "dare"),
    "dare of three": lambda rng: merges.sparse(SMALL, rng, 3, "dare"),
    "dare with elected signs": lambda rng: merges.sparse(SMALL, rng, 2, "dare_ties"),
    "dare of three with elected signs": lambda rng: merges.sparse(SMALL, rng, 3, "dare_ties"),
    "ties of one": lambda rng: merges.sparse(SMALL, rng, 1, "ties"),
    "ties of two": lambda rng: merges.sparse(SMALL, rng, 2, "ties"),
    "ties of three": lambda rng: merges.sparse(SMALL, rng, 3, "ties"),
    "task vector of one": lambda rng: merges.task(SMALL, rng, 1),
    "task vectors of two": lambda rng: merges.task(SMALL, rng, 2),
    "linear, two of a family": lambda rng: merges.mixed(SMALL, rng, 2, True),
    "linear, three of a family": lambda rng: merges.mixed(SMALL, rng, 3, True),
    "linear, two strangers": lambda rng: merges.mixed(SMALL, rng, 2, False),
    "linear, three strangers": lambda rng: merges.mixed(SMALL, rng, 3, False),
    "linear, norms of one": lambda rng: merges.mixed(SMALL, rng, 2, True, norms=True),
    "slerp": lambda rng: merges.slerped(SMALL, rng, False),
    "slerp by rows": lambda rng: merges.slerped(SMALL, rng, True),
}
SEEDS = 3


@pytest.mark.parametrize("kind", RECIPES)
def test_without_one_of_its_parents_nothing_is_claimed_of_a_merge(kind):
    """Each parent in turn, and the base, is not given; of several children."""
    for seed in range(SEEDS):
        case = RECIPES[kind](np.random.default_rng([seed, len(kind)]))
        for gone in case.parents:
            found = merges.told_without(case, gone)
            assert merges.misled(case, found, gone) == [], (seed, gone)


def test_what_is_changed_as_a_whole_is_no_copy_with_new_rows():
    """TIES of one leaves many rows nearly as they were; those of which more was kept are not new ones."""
    for seed in range(SEEDS):
        case = RECIPES["ties of one"](np.random.default_rng(seed))
        found = merges.told_without(case, "base")
        assert [name for name, r in found.tensors.items() if r.new] == []


def test_a_copy_that_rounding_does_not_explain_is_said_to_be_only_near():
    parent = merges.model(SMALL, 5)
    child = merges.tuned(parent, np.random.default_rng(1), 0.02)
    found = merges.trace_back("child", merges.sketches(child), {"a": merges.sketches(parent)})
    first = summary(found, {"a": "a"})[0]
    assert first.confidence == LIKELY
    assert first.text.startswith("nearest to a (copy), with 1% to 2% not explained")


def test_a_new_norm_is_new_where_the_rest_of_its_layer_is_a_copy_and_not_told_where_it_was_changed():
    rng = np.random.default_rng(0)
    parent = merges.model(SMALL, 5)
    name = "layers.0.input_layernorm.weight"
    fresh = {name: rng.uniform(0.5, 1.5, parent[name].shape).astype(merges.BF16)}
    changed = merges.tuned(parent, np.random.default_rng(1), 0.3) | fresh
    held = {"a": merges.sketches(parent)}
    beside_copies = merges.trace_back("child", merges.sketches(parent | fresh), held).tensors[name]
    beside_changed = merges.trace_back("child", merges.sketches(changed), held).tensors[name]
    assert (beside_copies.kind, confidence(beside_copies)) == ("fresh", SURE)
    assert (beside_changed.kind, confidence(beside_changed)) == ("fresh", ABOUT)


def test_rows_that_were_trained_on_are_changed_and_not_new():
    """A third of an embedding's rows, a little changed; the others are the parent's."""
    rng = np.random.default_rng(0)
    name, x = "embed_tokens.weight", rng.standard_normal((600, 64)).astype(merges.BF16)
    y = x.astype(np.float32)
    y[rng.permutation(600)[:200]] += 0.2 * rng.standard_normal((200, 64))
    child, held = ({name: v.astype(merges.BF16)} for v in (y, x))
    found = merges.trace_back("child", merges.sketches(child), {"a": merges.sketches(held)})
    r = found.tensors[name]
    assert (r.kind, r.how, r.new, confidence(r)) == ("copy", "changed", 200, LIKELY)
    assert [line.text for line in summary(found, {"a": "a"})] == ["copy, 200 rows changed a"]
