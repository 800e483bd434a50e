"""Lineage finds every tensor's source by what it holds, whatever was done to it, and finds none where there is none."""

import json
import mmap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_stack import PLAIN, written
from test_transplant import SMALL

from numgemma.checkpoint import open_checkpoint
from numgemma.cli import main
from numgemma.errors import InputError
from numgemma.surgery import blocks, inventory, stack, transplant
from numgemma.surgery.lineage import lineage, trace_back
from numgemma.surgery.lint_values import examine
from numgemma.surgery.recipe import PRESETS, Recipe, Slice, of_one
from numgemma.surgery.relations import rounded
from numgemma.surgery.sketch import read_sketches, sketch
from numgemma.surgery.synth import synth
from numgemma.surgery.transplant import Choices
from numgemma.weights.safetensors import open_safetensors

SPANS = ((0, 3), (2, 7))
ORIGIN = [0, 1, 2, 3, 2, 3, 4, 5, 6, 7]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A parent with leftover keys, a stranger of the same shape, and a stack of the first."""
    base = tmp_path_factory.mktemp("lineage")
    parent, other = written(base / "parent", PLAIN), written(base / "other", PLAIN, seed=1)
    stack.write(stack.plan(of_one(parent, SPANS)), base / "child")
    return parent, other, str(base / "child")


def tensors_of(path):
    return {name: np.array(x) for name, x in open_checkpoint(path).weights.tensors.items()}


def saved(folder, tensors):
    """A directory of tensors alone: lineage needs no config."""
    folder.mkdir(parents=True)
    save_file({name: np.asarray(x) for name, x in tensors.items()}, folder / "model.safetensors")
    return str(folder)


def origins(found):
    return [(origin.parent, origin.layer, origin.relation) for origin in found.slots]


def kinds(found, *parts):
    """The relations of all tensors whose name holds one of these parts."""
    return {r.kind for name, r in found.tensors.items() if any(part in name for part in parts)}


# stacks


def test_a_stack_is_traced_to_its_slices_byte_for_byte(family):
    parent, other, child = family
    found = lineage(child, [other, parent])
    assert origins(found) == [(parent, j, "copy") for j in ORIGIN]
    assert [(first, last, o.layer) for first, last, o in inventory.slices(found)] == [(0, 3, 0), (4, 9, 2)]
    for name, r in found.tensors.items():
        if name not in (stack.TABLE, stack.PROJECTION):
            assert (r.kind, r.exact, r.parent, r.error) == ("copy", True, parent, 0), name
    for name, axis in ((stack.TABLE, "columns"), (stack.PROJECTION, "rows")):
        r = found.tensors[name]
        assert (r.kind, r.axis, r.new, r.error, r.scale) == (axis, axis, 0, 0, 1)
        assert [(s.start, s.stop, s.source, s.place) for s in r.spans] == [(0, 40, name, 0), (40, 100, name, 20)]
    assert inventory.misplaced_inputs(found) == {}
    assert inventory.strangers(found) == []


def test_a_stack_of_two_parents_is_traced_to_both(tmp_path, family):
    parent, other, _ = family
    stack.write(
        stack.plan(Recipe((Slice(parent, 0, 3), Slice(other, 2, 4), Slice(parent, 4, 7)), other)), tmp_path / "m"
    )
    found = lineage(tmp_path / "m", [parent, other])
    expected = [(parent, 0), (parent, 1), (parent, 2), (parent, 3), (other, 2), (other, 3), (other, 4)]
    assert [o[:2] for o in origins(found)] == expected + [(parent, j) for j in (4, 5, 6, 7)]
    assert {span.parent for span in found.tensors[stack.TABLE].spans} == {parent, other}
    assert found.tensors["embed_tokens.weight"].parent == other
    assert inventory.misplaced_inputs(found) == {}


def altered(tensors, change, seed=0):
    rng = np.random.default_rng(seed)
    return {name: change(x.astype(np.float32), rng).astype(x.dtype) for name, x in tensors.items()}


CHANGES = {
    "noisy": lambda x, rng: x * (1 + 1e-3 * rng.standard_normal(x.shape)),
    "noise of its spread": lambda x, rng: x + 1e-3 * x.std() * rng.standard_normal(x.shape),
    "three times": lambda x, rng: 3 * x,
    "-0.7 times": lambda x, rng: -0.7 * x,
}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("change", CHANGES)
def test_a_stack_that_was_changed_is_traced_all_the_same(tmp_path, family, change, dtype):
    parent, other, child = family
    tensors = {name: x.astype(dtype) for name, x in tensors_of(child).items()}
    path = saved(tmp_path / "changed", altered(tensors, CHANGES[change]))
    found = lineage(path, [other, parent])
    factor = {"three times": 3, "-0.7 times": -0.7}.get(change, 1)
    assert [(o.parent, o.layer) for o in found.slots] == [(parent, j) for j in ORIGIN]
    for name, r in found.tensors.items():
        if name.endswith("layer_scalar") and factor != 1:
            assert r.kind == "fresh"  # one number is any number's multiple
            continue
        expected = {stack.TABLE: "columns", stack.PROJECTION: "rows"}.get(name, "copy" if factor == 1 else "scaled")
        assert (r.kind, r.parent, r.scale) == (expected, parent, factor), name
        assert 0 <= r.error < 5e-3
        if name.startswith("layers."):
            slot, leaf = name.split(".", 2)[1:]
            assert r.source == f"layers.{ORIGIN[int(slot)]}.{leaf}"


def test_a_copy_in_another_dtype_is_a_copy(tmp_path, family):
    parent, other, child = family
    wide = saved(tmp_path / "wide", {name: x.astype(np.float32) for name, x in tensors_of(child).items()})
    found = lineage(wide, [other, parent])
    assert origins(found) == [(parent, j, "copy") for j in ORIGIN]
    assert {r.error for r in found.tensors.values()} == {0}
    rounded_again = lineage(child, [saved(tmp_path / "p32", altered_parent(parent))])
    assert [o.layer for o in rounded_again.slots] == ORIGIN
    assert kinds(rounded_again, "mlp", "norm", "scalar") == {"copy"}
    assert 1e-4 < max(r.error for r in rounded_again.tensors.values()) < 4e-3


def altered_parent(parent):
    """The parent before it was rounded to bfloat16."""
    rng = np.random.default_rng(3)
    return {name: x.astype(np.float32) * (1 + 2**-9 * rng.uniform(-1, 1, x.shape).astype(np.float32))
            for name, x in tensors_of(parent).items()}  # fmt: skip


def test_names_do_not_matter(tmp_path, family):
    """Layers in another order under other slots' names are found where they are."""
    parent, _, _ = family
    tensors = tensors_of(parent)
    turned = {name.replace("layers.", "layers.1") if name.startswith("layers.") else name: x
              for name, x in tensors.items()}  # fmt: skip
    found = lineage(saved(tmp_path / "turned", turned), [parent])
    assert [o.layer for o in found.slots] == [None] * 10 + list(range(8))
    swapped = tensors | {"layers.0.mlp.up_proj.weight": tensors["layers.0.mlp.gate_proj.weight"]}
    found = lineage(saved(tmp_path / "swapped", swapped), [parent])
    assert found.tensors["layers.0.mlp.up_proj.weight"].source == "layers.0.mlp.gate_proj.weight"


def test_a_layer_of_fresh_weights_among_copies_is_fresh(tmp_path, family):
    parent, other, child = family
    tensors, new = tensors_of(child), tensors_of(written(tmp_path / "new", PLAIN, seed=9))
    for name in list(tensors):
        if name.startswith("layers.5."):
            tensors[name] = new[name]
    tensors["layers.7.mlp.up_proj.weight"] = new["layers.7.mlp.up_proj.weight"]
    found = lineage(saved(tmp_path / "m", tensors), [parent, other])
    assert [o.relation for o in found.slots] == ["copy"] * 5 + ["fresh", "copy", "altered", "copy", "copy"]
    assert kinds(found, "layers.5.", "layers.7.mlp.up_proj") == {"fresh"}


def test_of_two_layers_with_the_same_weights_the_one_that_goes_on_is_meant(tmp_path, family):
    child = family[2]  # slots 2, 3 and 4, 5 of the child are the same layers
    stack.write(stack.plan(of_one(child, ((0, 5), (4, 9)))), tmp_path / "grandchild")
    found = lineage(tmp_path / "grandchild", [child])
    expected = [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9]
    assert [o.layer for o in found.slots][:6] == expected[:6]
    assert [ORIGIN[o.layer] for o in found.slots] == [ORIGIN[j] for j in expected]
    assert inventory.misplaced_inputs(found) == {}


def test_of_equals_the_layer_after_the_last_one_is_meant(tmp_path, family):
    child = family[2]  # its layers 2, 3 are its layers 4, 5
    stack.write(stack.plan(of_one(child, ((0, 1), (3, 9)))), tmp_path / "m")
    found = lineage(tmp_path / "m", [child])
    assert [o.layer for o in found.slots] == [0, 1, 3, 4, 5, 6, 7, 8, 9]


def test_per_layer_inputs_that_did_not_move_with_their_layers_are_named(tmp_path, family):
    parent, _, child = family
    tensors = tensors_of(child)
    old = tensors_of(parent)[stack.TABLE]
    tensors[stack.TABLE] = np.concatenate([old, old[:, :20]], axis=1)  # filled up to the new width
    found = lineage(saved(tmp_path / "m", tensors), [parent])
    assert inventory.misplaced_inputs(found) == {stack.TABLE: [4, 5, 6, 7, 8, 9]}
    tensors[stack.TABLE] = old
    found = lineage(saved(tmp_path / "old", tensors), [parent])
    assert inventory.misplaced_inputs(found) == {stack.TABLE: [4, 5, 6, 7, 8, 9]}


# transplants


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def transplanted(request, tmp_path_factory):
    base = tmp_path_factory.mktemp("transplanted")
    (base / "gemma3.json").write_text(json.dumps(SMALL))
    synth(str(base / "gemma3.json"), target=base / "text", dtype=request.param)
    synth("gemma-4-E2B-it", target=base / "tower", scale="tiny", seed=1)  # a seed other than that of what is fresh
    text, tower = str(base / "text"), str(base / "tower")
    transplant.write(transplant.plan(text, tower, Choices(layers=6, window=8, vocab=513)), base / "child")
    return text, tower, lineage(base / "child", [tower, text])


def test_every_component_of_a_transplant_is_recovered(transplanted):
    text, tower, found = transplanted
    for name, r in found.tensors.items():
        full = any(f"layers.{i}.self_attn" in name for i in (2, 5)) and name.startswith("layers")
        leaf = name.split(".", 2)[-1]
        if name.startswith("vision_tower"):
            assert (r.kind, r.parent, r.source) == ("copy", tower, name)
        elif name == "embed_tokens.weight":
            assert (r.kind, r.parent, r.new, r.axis) == ("resized", text, 4, "rows")
        elif name.startswith("embed_vision") or leaf == "layer_scalar":
            assert r.kind == "fresh", name
        elif full and leaf.endswith("norm.weight"):
            assert (r.kind, r.times, r.plus_one, r.source) == ("tiled", 2, True, name)
            assert r.scale == pytest.approx(32**-0.25, rel=2e-3)
        elif full and "o_proj" in name:
            assert (r.kind, r.axis, r.times, r.scale, r.source) == ("split", "columns", 2, 0.5, name)
            assert inventory.block(r) == 16
        elif full:
            assert (r.kind, r.axis, r.times, r.scale, r.source) == ("tiled", "rows", 2, 1, name)
            assert inventory.block(r) == 16
        elif "norm" in name:
            assert (r.kind, r.plus_one, r.parent, r.source) == ("converted", True, text, name)
            expected = 20**-0.25 if "self_attn" in name else 1
            assert r.scale == pytest.approx(expected, rel=2e-3)
        else:
            assert (r.kind, r.exact, r.parent, r.source) == ("copy", True, text, name)
    assert [(o.parent, o.layer, o.relation) for o in found.slots] == [(text, i, "altered") for i in range(6)]
    assert found.tensors["layers.0.layer_scalar"].constant == 1


def test_the_inventory_of_a_transplant_says_what_was_done_in_words(transplanted):
    rows = {(c, text) for c, _, _, text, _ in inventory.inventory(transplanted[2])}
    assert {
        ("embed_tokens", "copy, 4 new rows: the mean"),
        ("layers: self_attn.q_proj", "copy"),
        ("layers: self_attn.q_proj", "rows 2 times"),
        ("layers: self_attn.o_proj", "columns 2 times, each 1/2"),
        ("layers: norms", "1 + w"),
        ("layers: mlp", "copy"),
        ("layers: layer_scalar", "fresh: all 1"),
        ("vision_tower", "copy"),
        ("embed_vision.embedding_projection", "fresh"),
    } <= rows


# nothing where nothing is


SHAPES = [(1,), (), (5,), (8,), (16,), (48,), (97,), (2, 40), (40, 3), (16, 16), (48, 48), (200, 48), (48, 200)]
SHAPES += [(96, 48), (100, 48), (3, 20, 24), (7, 40, 48)]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("seed", range(2))
def test_random_tensors_have_no_parents(seed, dtype):
    """Some ten thousand pairs, in names that agree, with norms that all lie around 1."""
    rng = np.random.default_rng(seed)

    def model():
        tensors = {f"layers.{i}.t{j}.weight": draw(rng, shape) for i in range(12) for j, shape in enumerate(SHAPES)}
        return {name: sketch(name, x.astype(dtype)) for name, x in tensors.items()}

    found = trace_back("child", model(), {"a": model(), "b": model()})
    assert [name for name, r in found.tensors.items() if r.kind != "fresh"] == []
    assert {origin.relation for origin in found.slots} == {"fresh"}


def draw(rng, shape):
    return rng.uniform(0.9, 1.1, shape) if len(shape) < 2 else rng.standard_normal(shape)


def test_random_checkpoints_have_no_parents(family):
    parent, other, _ = family
    found = lineage(other, [parent])
    assert kinds(found, "") == {"fresh"}
    assert {(o.parent, o.layer) for o in found.slots} == {(None, None)}


def test_constant_tensors_prove_nothing(tmp_path):
    """All-ones norms and scalars agree with every other model's, and say nothing of where they are from."""
    rng = np.random.default_rng(0)

    def model():
        return {
            "layers.0.mlp.up_proj.weight": rng.standard_normal((40, 48)).astype(np.float32),
            "layers.0.norm.weight": np.ones(48, np.float32),
            "layers.0.layer_scalar": np.ones(1, np.float32),
            "norm.weight": np.ones(48, np.float32),
        }

    found = lineage(saved(tmp_path / "a", model()), [saved(tmp_path / "b", model())])
    assert kinds(found, "") == {"fresh"}
    assert found.tensors["norm.weight"].constant == 1


# parts of tensors


def parts_of(rng):
    """(child, parent, expected facts): the ways in which a matrix can be part of another."""
    a = rng.standard_normal((120, 48)).astype(np.float32)
    mean = a.mean(0, keepdims=True)
    return {
        "a block of rows": (a[30:70], a, {"kind": "rows", "axis": "rows"}),
        "a block of columns": (a[:, 8:24], a, {"kind": "columns", "axis": "columns"}),
        "half a scaled": (0.25 * a[:60], a, {"kind": "rows", "scale": 0.25}),
        "tiled whole": (np.tile(a, (3, 1)), a, {"kind": "tiled", "times": 3, "axis": "rows"}),
        "tiled across": (np.tile(a, (1, 2)), a, {"kind": "tiled", "times": 2, "axis": "columns"}),
        "repeated by heads": (np.repeat(a.reshape(5, 1, 24, 48), 2, 1).reshape(240, 48), a, {"kind": "tiled"}),
        "split": (np.tile(a / 4, (1, 4)), a, {"kind": "split", "times": 4, "scale": 0.25}),
        "resized": (np.concatenate([a, mean, mean]), a, {"kind": "resized", "new": 2}),
        "with new rows that are no mean": (np.concatenate([a, a[:2] + a[3:5]]), a, {"kind": "rows", "new": 2}),
        "some rows new": (np.where(np.arange(120)[:, None] == 7, 1, a), a, {"kind": "copy", "new": 1}),
        "rows in another order": (a.reshape(6, 20, 48)[[3, 1, 0, 5, 4, 2]].reshape(120, 48), a, {"kind": "rows"}),
        "an expert of several": (a[24:48], a.reshape(5, 24, 48), {"kind": "rows"}),
        "scaled": (-1.5 * a, a, {"kind": "scaled", "scale": -1.5}),
        "with a dead row": (a[20:90] * (np.arange(70)[:, None] != 9), a, {"kind": "rows"}),
    }


@pytest.mark.parametrize("case", parts_of(np.random.default_rng(0)))
@pytest.mark.parametrize("noise", [0, 1e-3])
def test_parts_of_tensors_are_recognised(case, noise):
    rng = np.random.default_rng(1)
    x, source, expected = parts_of(rng)[case]
    x = (x * (1 + noise * rng.standard_normal(x.shape))).astype(np.float32)
    decoys = {f"d{i}": sketch(f"d{i}", rng.standard_normal((120, 48)).astype(np.float32)) for i in range(5)}
    found = trace_back("child", {"x": sketch("x", x)}, {"p": decoys | {"a": sketch("a", source)}}).tensors["x"]
    assert {key: getattr(found, key) for key in expected} == expected
    assert (found.parent, found.source) == ("p", "a")
    assert found.error < 2 * noise + 1e-6


def test_a_line_that_is_alike_by_one_measure_and_not_by_the_other_is_passed(monkeypatch):
    """Rounding decides at the bound; the search has to go on all the same."""
    x = np.random.default_rng(0).standard_normal((20, 48)).astype(np.float32)
    lines, source = (blocks.Lines("rows", "p", sketch(name, x)) for name in ("x", "a"))
    monkeypatch.setattr(blocks, "follow", lambda *which: 0)
    assert [(start, stop) for start, stop, _, _ in blocks.trace(lines, [source])] == [(i, i + 1) for i in range(20)]


def test_spans_say_which_lines_went_where():
    a = np.random.default_rng(0).standard_normal((120, 48)).astype(np.float32)
    order = [3, 1, 0, 5, 4, 2]
    x = a.reshape(6, 20, 48)[order].reshape(120, 48)
    found = trace_back("child", {"x": sketch("x", x)}, {"p": {"a": sketch("a", a)}}).tensors["x"]
    assert [(s.start, s.place) for s in found.spans] == [(20 * i, 20 * j) for i, j in enumerate(order)]
    rebuilt = np.concatenate([a[s.place : s.place + s.stop - s.start] for s in found.spans])
    np.testing.assert_array_equal(rebuilt, x)


def test_large_channels_do_not_make_all_rows_alike():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((2000, 64)) for _ in "ab")
    for x in (a, b):
        x[:, ::8] = 300 + x[:, ::8]
    found = trace_back("child", {"x": sketch("x", b[:500])}, {"p": {"a": sketch("a", a)}}).tensors["x"]
    assert found.kind == "fresh"


def single(x, source):
    """What one tensor is to another."""
    return trace_back("child", {"x": sketch("x", x)}, {"p": {"a": sketch("a", source)}}).tensors["x"]


def test_what_all_rows_have_in_common_does_not_make_them_copies():
    rng = np.random.default_rng(0)
    common = rng.standard_normal(64)
    a, b = (common + 0.2 * rng.standard_normal((n, 64)) for n in (900, 300))
    assert single(b, a).kind == "fresh"
    assert single(a[:300] * 1.001, a).kind == "rows"


def test_columns_that_agree_by_accident_do_not_make_a_copy():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 90, 200))
    b[:, :40] = a[:, :40]
    assert single(b, a).kind == "fresh"
    assert single(b[:50], a).kind == "fresh"


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.2])
def test_a_matrix_that_was_trained_on_is_a_copy_with_an_error(noise):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((90, 200))
    found = single(a + noise * rng.standard_normal(a.shape), a)
    assert (found.kind, found.source) == ("copy", "a")
    assert found.error == pytest.approx(noise, rel=0.1)
    assert single(a + rng.standard_normal(a.shape), a).kind == "fresh"


def test_a_table_of_which_one_block_in_forty_is_another_is_made_of_blocks():
    a = np.random.default_rng(0).standard_normal((80, 400))
    blocks = a.reshape(80, 40, 10)[:, [*range(20), 3, *range(21, 40)]]
    found = single(blocks.reshape(80, 400), a)
    assert (found.kind, found.axis) == ("columns", "columns")
    assert [(s.start, s.place) for s in found.spans] == [(0, 0), (200, 30), (210, 210)]


def test_the_fewer_values_a_vector_has_the_nearer_they_have_to_be():
    rng = np.random.default_rng(0)
    long, short = rng.standard_normal(200), rng.standard_normal(8)
    assert single(long + 0.1 * rng.standard_normal(200), long).kind == "copy"
    assert single(short + 0.1 * rng.standard_normal(8), short).kind == "fresh"
    assert single(short + 1e-3 * rng.standard_normal(8), short).kind == "copy"


def test_vectors_that_only_lie_near_the_same_value_are_no_copies():
    rng = np.random.default_rng(0)
    norm = 1 + 0.01 * rng.standard_normal(300)
    assert single(norm + 0.004 * rng.standard_normal(300), norm).kind == "fresh"
    assert single(norm + 0.001 * rng.standard_normal(300), norm).kind == "copy"


def test_a_factor_is_told_in_as_few_digits_as_its_error_allows():
    assert rounded(0.49998, 1e-4) == 0.5
    assert rounded(0.49998, 0) == 0.49998
    assert rounded(1 / 3, 0) == pytest.approx(1 / 3, rel=1e-6)


@pytest.mark.parametrize("size", [3, 5000, 70_000])
def test_a_sketch_does_not_depend_on_the_pieces_it_is_read_in(monkeypatch, size):
    x = np.random.default_rng(0).standard_normal((size, 37)).astype(np.float32)
    whole = sketch("x", x)
    monkeypatch.setattr("numgemma.surgery.sketch.PIECE", 1 << 12)
    parts = sketch("x", x)
    assert whole.digest == parts.digest
    np.testing.assert_array_equal(whole.rows, parts.rows)
    np.testing.assert_array_equal(whole.columns, parts.columns)


def test_a_sketch_is_small(family):
    for one in read_sketches(family[0]).values():
        assert one.rows.shape[1] <= 32
        assert len(one.columns) <= 32
        assert len(one.values) <= 4096 + one.height + one.width


def resident():
    """Bytes of memory that this process holds, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to tell")
@pytest.mark.parametrize("look", [sketch, examine], ids=["lineage", "lint"])
def test_a_file_that_was_read_does_not_stay_in_memory(tmp_path, look):
    x = np.random.default_rng(0).standard_normal((1 << 15, 512), np.float32)  # 64 MB
    weights = open_safetensors(saved(tmp_path / "m", {"x": x}) + "/model.safetensors").tensors
    look("x", x)  # so that what NumPy keeps is there
    before = resident()
    look("x", weights["x"])
    assert resident() - before < x.nbytes // 4


def test_broken_numbers_do_not_hide_a_copy(tmp_path, family):
    parent, _, child = family
    tensors = tensors_of(child)
    tensors["layers.4.mlp.up_proj.weight"][3, 5] = np.nan
    found = lineage(saved(tmp_path / "m", tensors), [parent]).tensors["layers.4.mlp.up_proj.weight"]
    assert (found.kind, found.source, found.exact) == ("copy", "layers.2.mlp.up_proj.weight", False)


# recipes


@pytest.mark.parametrize("spans", [SPANS, ((0, 7),), ((0, 4), (1, 2), (0, 7)), ((0, 2), (2, 2), (7, 7))])
def test_an_emitted_recipe_stacks_to_the_same_bytes(tmp_path, monkeypatch, family, spans):
    parent, other, _ = family
    monkeypatch.chdir(tmp_path)
    stack.write(stack.plan(of_one(parent, spans)), "child")
    assert main(["lineage", "child", "--parents", other, parent, "--emit", "r.yaml"]) == 0
    command = (tmp_path / "r.yaml").read_text().splitlines()[0].split()
    assert command[:3] == ["#", "numgemma", "stack"]
    assert main([*command[2:-1], "again"]) == 0
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "child" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_recipe_tells_the_options_that_it_cannot_hold(tmp_path, monkeypatch, family):
    resaved = written(tmp_path / "resaved", PLAIN, unread=False)
    monkeypatch.chdir(tmp_path)
    recipe = of_one(resaved, ((0, 5), (4, 7), (4, 7)))  # slots 4 and 5 have to make keys that 4 and 5 never made
    stack.write(stack.plan(recipe, 6, True), "child")
    found = lineage("child", [resaved])
    assert inventory.strangers(found)
    text = inventory.to_recipe(found, "r.yaml")
    assert text.startswith("# numgemma stack r.yaml --shared 6 --kv-from-donor -o DIR\n")
    (tmp_path / "r.yaml").write_text(text)
    assert main(["stack", "r.yaml", "--shared", "6", "--kv-from-donor", "-o", "again"]) == 0
    assert (tmp_path / "child/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()


def test_what_is_no_stack_gives_no_recipe(tmp_path, family, capsys):
    parent, _, child = family
    tensors = tensors_of(child)
    tensors["layers.3.mlp.up_proj.weight"] = 2 * tensors["layers.3.mlp.up_proj.weight"]
    path = saved(tmp_path / "m", tensors)
    assert main(["lineage", path, "--parents", parent, "--emit", str(tmp_path / "r.yaml")]) == 2
    printed = capsys.readouterr()
    assert "layers.3.mlp.up_proj.weight is 2 x" in printed.err
    assert "4-9" in printed.out  # the table is there all the same
    assert not (tmp_path / "r.yaml").exists()


def test_misplaced_per_layer_inputs_give_no_recipe(tmp_path, family):
    parent, _, child = family
    tensors = tensors_of(child)
    tensors[stack.TABLE] = np.roll(tensors[stack.TABLE], 10, axis=1)
    with pytest.raises(InputError, match="gives slot 0 another layer's input"):
        inventory.to_recipe(lineage(saved(tmp_path / "m", tensors), [parent]), "r.yaml")


# the command


def test_the_verb_prints_slices_and_components_and_writes_json_and_picture(tmp_path, family, capsys):
    parent, other, child = family
    out = tmp_path / "l.json"
    assert (
        main(["lineage", child, "--parents", other, parent, "--json", str(out), "--plot", str(tmp_path / "m.png")]) == 0
    )
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines() if line.startswith(("0-3", "4-9"))] == [
        ["0-3", "0-3", "P2", "copy"],
        ["4-9", "2-7", "P2", "copy"],
    ]
    assert "blocks of 20 columns" in shown
    found = json.loads(out.read_text())
    assert found["schema"] == "numgemma.lineage/1"
    assert {"slot": 5, "parent": parent, "layer": 3, "relation": "copy", "error": 0.0} in found["slots"]
    assert {"name", "relation", "parent", "source"} <= found["tensors"][0].keys()
    assert len(found["tensors"]) == len(open_checkpoint(child).weights.tensors)
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def test_the_published_preset_is_recovered_from_a_narrow_parent(tmp_path):
    from test_stack import E6B, LIKE_E4B

    parent = written(tmp_path / "e4b", LIKE_E4B)
    stack.write(stack.plan(of_one(parent, PRESETS["e6b"])), tmp_path / "e6b")
    found = lineage(tmp_path / "e6b", [parent])
    assert [o.layer for o in found.slots] == E6B
    assert {o.relation for o in found.slots} == {"copy"}
    assert kinds(found, "tower", "embed_tokens.", "embed_vision", "embed_audio") == {"copy"}
    assert [(a, b) for a, b, _ in inventory.slices(found)] == [(0, 17), (18, 33), (34, 49), (50, 65)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--parents", "PARENT"], "nowhere"),
        (["CHILD", "--parents", "nowhere"], "nowhere"),
        (["CHILD", "--parents", "PARENT", "PARENT"], "named twice"),
        (["CHILD", "--parents", "PARENT", "--json", "no/such/dir.json"], "cannot be written"),
    ],
)
def test_what_cannot_be_traced_ends_in_one_sentence(tmp_path, monkeypatch, capsys, family, arguments, message):
    monkeypatch.chdir(tmp_path)
    words = {"PARENT": family[0], "CHILD": family[2]}
    assert main(["lineage", *(words.get(word, word) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
