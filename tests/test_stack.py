"""A stack holds what its recipe says, byte for byte, and is refused where it would be no Gemma 4."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny3n
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

import numgemma
from numgemma.checkpoint import open_checkpoint
from numgemma.cli import main
from numgemma.errors import InputError
from numgemma.families import find, read_config
from numgemma.families.gemma4.layout import count, scoped, stored_name, tensor_shapes, unread_by_sharing_layers
from numgemma.families.gemma4.shrink import SCALES, shrunk
from numgemma.opening import DATA
from numgemma.surgery import stack
from numgemma.surgery.recipe import PRESETS, Recipe, Slice, of_one, parse_slices, read_recipe, recipe_yaml
from numgemma.surgery.synth import random_tensors
from numgemma.surgery.writer import write_checkpoint

E4B = json.loads((DATA / "configs" / "gemma-4-E4B-it.json").read_text())

# As E4B, all 42 layers of it, narrow.
NARROW = replace(SCALES["tiny"], hidden=32, head=8, per_layer=8, tower=16, positions=64, channels=4)
LIKE_E4B = shrunk(E4B, replace(NARROW, full_layers_sharing=42), "E4B")

# The source layers of Gemma-4-E6B's 66 slots, as its card lists them.
E6B = [*range(18), *range(10, 26), *range(18, 34), *range(26, 42)]


def written(folder, raw, seed=0, dtype="bfloat16", unread=True):
    """A random parent of that config."""
    tensors = random_tensors(find(raw, "test"), read_config(raw, "test"), np.dtype(dtype), seed, unread)
    stored = {stored_name(name, raw["model_type"]): tensor for name, tensor in tensors.items()}
    write_checkpoint(folder, raw, stored, {"tokenizer.json": b"its own", "chat_template.jinja": b"{{ }}"})
    return str(folder)


@pytest.fixture(scope="module")
def e4b(tmp_path_factory):
    return written(tmp_path_factory.mktemp("stack") / "e4b", LIKE_E4B)


PLAIN = tiny.PLE | {"use_double_wide_mlp": False}  # kinds s s f s f s s f; the last four share


@pytest.fixture(scope="module")
def ple(tmp_path_factory):
    return written(tmp_path_factory.mktemp("stack") / "ple", PLAIN)


def built(recipe, out, **choices):
    stack.write(stack.plan(recipe, **choices), out)
    return open_checkpoint(out)


# what a stack is


def specification(parent, raw, source):
    """Stored name -> bytes of a stack, from a parent's tensors (short name -> array) and the layers it takes."""
    P, L = raw["hidden_size_per_layer_input"], raw["num_hidden_layers"]
    child = {}
    for name, x in parent.items():
        if name == "embed_tokens_per_layer.weight":
            blocks = x.reshape(-1, L, P)
            child[name] = np.stack([blocks[:, j] for j in source], axis=1).tobytes()
        elif name == "per_layer_model_projection.weight":
            blocks = x.reshape(L, P, -1)
            child[name] = np.stack([blocks[j] for j in source]).tobytes()
        elif not name.startswith("layers."):
            child[name] = x.tobytes()
    for slot, j in enumerate(source):
        for name, x in parent.items():
            if name.startswith(f"layers.{j}."):
                child[name.replace(f"layers.{j}.", f"layers.{slot}.", 1)] = x.tobytes()
    return child


def specified_config(raw, source):
    """The text config: kinds follow their layers, and the trailing layers that shared go on sharing."""
    first_shared = raw["num_hidden_layers"] - raw["num_kv_shared_layers"]
    shared = next(n for n in range(len(source) + 1) if n == len(source) or source[-1 - n] < first_shared)
    kinds = [raw["layer_types"][j] for j in source]
    return raw | {"num_hidden_layers": len(source), "layer_types": kinds, "num_kv_shared_layers": shared}


@pytest.mark.parametrize(
    "spans", [PRESETS["e6b"], ((0, 41),), ((0, 5), (0, 23)), ((18, 29), (41, 41), (5, 5), (36, 41))]
)
def test_a_stack_is_what_the_specification_says_byte_for_byte(tmp_path, e4b, spans):
    parent, child = open_checkpoint(e4b), built(of_one(e4b, spans), tmp_path / "m")
    source = [j for first, last in spans for j in range(first, last + 1)]
    text = LIKE_E4B["text_config"]
    expected = specification(parent.weights.tensors, text, source)
    assert {name: x.tobytes() for name, x in child.weights.tensors.items()} == expected
    assert child.config == LIKE_E4B | {"text_config": specified_config(text, source)}
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "m" / name).read_bytes() == (child.folder.parent / e4b / name).read_bytes()


def test_the_published_e6b_has_the_roles_that_its_card_tells(e4b):
    child = stack.plan(of_one(e4b, PRESETS["e6b"]))
    layers = child.config.text.layers
    assert [slot.spec.index for slot in child.slots] == E6B
    assert len(layers) == 66
    assert [spec.index for spec in layers if spec.kv_from != spec.index] == list(range(40, 66))
    donors = {spec.kind: spec.kv_from for spec in layers[40:]}
    assert donors == {"sliding_attention": 38, "full_attention": 39}
    anew = [s.index for s, spec in zip(child.slots, layers, strict=True) if s.shared and spec.kv_from == spec.index]
    assert anew == [32, 33]


def sparse(folder, raw, shapes):
    """A checkpoint of full size whose data nobody wrote: a header, and a hole where tensors would be."""
    folder.mkdir()
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    raw_header = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(raw_header).to_bytes(8, "little") + raw_header)
        file.truncate(8 + len(raw_header) + end)
    (folder / "config.json").write_text(json.dumps(raw))
    return str(folder)


def test_the_published_e6b_has_the_size_that_its_card_tells(tmp_path):
    """11.9 billion: 4.43 in the per-layer table, 0.67 in the embedding.

    The card's 6.65 in "layers" are those of the text model and of both towers, their per-layer riders aside.
    """
    config = read_config(E4B, "E4B")
    parent = tensor_shapes(config) | unread_by_sharing_layers(config.text)
    assert count(parent) == 7_996_157_418  # as the released file
    child = stack.plan(of_one(sparse(tmp_path / "p", E4B, parent), PRESETS["e6b"]))
    shapes = {name: tensor.shape for name, tensor in child.tensors.items()}

    def billions(pattern):
        return round(count({name: shape for name, shape in shapes.items() if re.match(pattern, name)}) / 1e9, 2)

    assert round(count(shapes) / 1e9, 1) == 11.9
    assert billions(r"embed_tokens_per_layer\.") == 4.43
    assert billions(r"embed_tokens\.") == 0.67
    assert billions(r"(?!.*per_layer).*layers\.") == 6.65
    assert count(shapes) == 11_908_716_034


def test_a_slot_gets_the_per_layer_input_of_its_source_layer(tmp_path, ple):
    spans, ids = ((0, 3), (2, 4), (1, 7)), tiny.prompt(PLAIN, 9)
    source = [j for first, last in spans for j in range(first, last + 1)]
    built(of_one(ple, spans), tmp_path / "m")
    theirs, mine = (numgemma.load(path).record(ids)["per_layer_inputs"] for path in (ple, tmp_path / "m"))
    assert_close(theirs[:, source], mine)


def test_a_stack_of_all_layers_in_their_order_computes_what_its_parent_does(tmp_path, ple):
    built(of_one(ple, ((0, 7),)), tmp_path / "m")
    ids = tiny.prompt(PLAIN, 20)
    np.testing.assert_array_equal(numgemma.load(tmp_path / "m").logits(ids), numgemma.load(ple).logits(ids))


def test_a_slot_computes_on_its_own_input_what_its_source_layer_would(tmp_path, ple):
    """Feed a slot that makes its own keys the stream that its source layer saw: out comes the same stream."""
    built(of_one(ple, ((0, 3), (1, 3), (4, 7))), tmp_path / "m")
    parent, child, ids = numgemma.load(ple), numgemma.load(tmp_path / "m"), tiny.prompt(PLAIN, 20)
    theirs = parent.record(ids)
    for slot, layer in ((4, 1), (5, 2), (6, 3)):
        edit = {f"layers.{slot - 1}.out": lambda x, layer=layer: theirs[f"layers.{layer - 1}.out"]}
        mine = child.record(ids, [f"layers.{slot}.out", f"layers.{slot - 1}.out"], edit)
        assert_close(theirs[f"layers.{layer}.out"], mine[f"layers.{slot}.out"])


# keys and values


def test_a_slot_that_must_make_keys_takes_those_that_nobody_read(tmp_path, ple):
    """Slots 4 and 5, from layers 4 and 5, stand before layer 3 comes again: they can no longer share."""
    child = built(of_one(ple, ((0, 5), (3, 7))), tmp_path / "m")
    assert [spec.kv_from for spec in numgemma.load(tmp_path / "m").config.text.layers] == [*range(7), 4, 6, 6, 4]
    for layer in (4, 5):
        theirs, mine = (w.at(f"layers.{layer}.self_attn") for w in (open_checkpoint(ple).weights, child.weights))
        for name in ("k_proj.weight", "k_norm.weight", "v_proj.weight"):
            np.testing.assert_array_equal(mine[name], theirs[name])


def test_a_resaved_parent_that_lacks_them_is_refused_and_the_donors_are_offered(tmp_path):
    parent = written(tmp_path / "p", PLAIN, unread=False)
    recipe = of_one(parent, ((0, 5), (3, 7)))
    with pytest.raises(InputError, match=r"layer 4 read the keys of layer 2, and slot 4 .* --kv-from-donor"):
        stack.plan(recipe)
    child = built(recipe, tmp_path / "m", kv_from_donor=True)
    w = open_checkpoint(parent).weights
    for layer, donor in ((4, 2), (5, 3)):
        mine = child.weights.at(f"layers.{layer}.self_attn")
        for name in ("k_proj.weight", "k_norm.weight", "v_proj.weight"):
            np.testing.assert_array_equal(mine[name], w[f"layers.{donor}.self_attn.{name}"])
        for name in ("q_proj.weight", "q_norm.weight", "o_proj.weight"):
            np.testing.assert_array_equal(mine[name], w[f"layers.{layer}.self_attn.{name}"])
    assert numgemma.load(tmp_path / "m").logits([3, 4, 5]).shape == (3, 199)


def test_a_stack_in_the_order_of_its_parent_needs_no_keys_that_nobody_read(tmp_path):
    parent = written(tmp_path / "p", PLAIN, unread=False)
    assert stack.plan(of_one(parent, ((0, 3), (0, 7)))).config.text.num_kv_shared_layers == 4


def test_fewer_slots_share_where_that_is_asked_for(tmp_path, ple):
    child = built(of_one(ple, ((0, 7),)), tmp_path / "m", shared=1)
    layers = numgemma.load(tmp_path / "m").config.text.layers
    assert [spec.kv_from for spec in layers] == [0, 1, 2, 3, 4, 5, 6, 4]
    assert child.weights.tensors.keys() == open_checkpoint(ple).weights.tensors.keys()


# refusals


@pytest.mark.parametrize(
    ("spans", "choices", "message"),
    [
        (((0, 6),), {}, r"layer 6 of .*, a sliding one, and Gemma 4 ends with a full layer; .* 2, 4, 7\."),
        (((0, 8),), {}, r"has no layers 0-8, only 0-7"),
        (((5, 2),), {}, r"has no layers 5-2"),
        (((5, 7),), {}, r"Slot 0, layer 5 .*, shares the keys of an earlier sliding_attention layer, and no slot"),
        (((2, 2), (5, 7)), {}, r"Slot 1, layer 5 .*, shares the keys of an earlier sliding_attention layer"),
        (((0, 7),), {"shared": 9}, r"9 of 8 slots cannot share"),
        (((0, 7),), {"shared": -1}, r"-1 of 8 slots cannot share"),
    ],
)
def test_slices_that_make_no_gemma_are_refused(ple, spans, choices, message):
    with pytest.raises(InputError, match=message):
        stack.plan(of_one(ple, spans), **choices)


@pytest.mark.parametrize(
    ("spans", "choices", "message"),
    [
        (((0, 5), (3, 7)), {}, r"Slot 4 comes from layer 4 .*, which shared keys and has an MLP of width 144"),
        (((0, 7),), {"shared": 5}, r"Slot 3 comes from layer 3 .*, which made keys and has an MLP of width 72"),
        (((0, 7),), {"shared": 3}, r"Slot 4 comes from layer 4 .*, which shared keys .* to make keys has 72"),
    ],
)
def test_a_layer_of_double_width_keeps_its_role(tmp_path, spans, choices, message):
    parent = written(tmp_path / "p", tiny.PLE)
    with pytest.raises(InputError, match=message):
        stack.plan(of_one(parent, spans), **choices)


def test_double_width_stacks_where_roles_stay(tmp_path):
    parent = written(tmp_path / "p", tiny.PLE)
    built(of_one(parent, ((0, 2), (0, 3), (5, 7), (4, 7))), tmp_path / "m")
    assert [spec.F for spec in numgemma.load(tmp_path / "m").config.text.layers] == [72] * 7 + [144] * 7


# several parents


def test_layers_and_their_columns_come_from_the_parent_that_a_slice_names(tmp_path, ple):
    other = written(tmp_path / "other", PLAIN, seed=5)
    recipe = Recipe((Slice(ple, 0, 3), Slice(other, 2, 4), Slice(ple, 4, 7)), trunk=other)
    child = built(recipe, tmp_path / "m").weights
    a, b = (open_checkpoint(path).weights for path in (ple, other))
    origin = [(a, 0), (a, 1), (a, 2), (a, 3), (b, 2), (b, 3), (b, 4), (a, 4), (a, 5), (a, 6), (a, 7)]
    table, projection = "embed_tokens_per_layer.weight", "per_layer_model_projection.weight"
    for slot, (w, j) in enumerate(origin):
        new, old = (slice(10 * i, 10 * i + 10) for i in (slot, j))
        np.testing.assert_array_equal(child[table][:, new], w[table][:, old])
        np.testing.assert_array_equal(child[projection][new], w[projection][old])
        for name in w.at(f"layers.{j}"):
            np.testing.assert_array_equal(child.at(f"layers.{slot}")[name], w.at(f"layers.{j}")[name])
    for name in ("embed_tokens.weight", "norm.weight", "per_layer_projection_norm.weight"):
        np.testing.assert_array_equal(child[name], b[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": 80}, "intermediate_size is 80"),
        ({"sliding_window": 8}, "sliding_window is 8"),
        ({"global_head_dim": 64}, "would have H = 32, and layer 2"),
        ({"hidden_size_per_layer_input": 12}, "hidden_size_per_layer_input is 12"),
    ],
)
def test_parents_of_another_shape_are_refused(tmp_path, ple, change, message):
    other = written(tmp_path / "other", PLAIN | change)
    with pytest.raises(InputError, match=message):
        stack.plan(Recipe((Slice(ple, 0, 3), Slice(other, 2, 7)), ple))


def test_parents_of_another_dtype_are_refused(tmp_path, ple):
    other = written(tmp_path / "other", PLAIN, dtype="float32")
    with pytest.raises(InputError, match="is in float32, not bfloat16"):
        stack.plan(Recipe((Slice(ple, 0, 3), Slice(other, 2, 7)), ple))
    with pytest.raises(InputError, match="is in bfloat16, not float16"):
        stack.plan(Recipe((Slice(ple, 0, 7),), ple, "float16"))


def new_spelling(raw):
    """As Transformers 5.23 writes a config."""
    heads = {"head_dim": raw["global_head_dim"], "num_key_value_heads": raw["num_global_key_value_heads"]}
    full = [i for i, kind in enumerate(raw["layer_types"]) if kind == "full_attention"]
    dropped = {"global_head_dim": None, "num_global_key_value_heads": None}
    return raw | dropped | {"per_layer_config": {str(i): heads for i in full}}


def test_a_parent_in_the_new_spelling_stacks_to_the_same_layers(tmp_path):
    old, new = written(tmp_path / "old", tiny.DENSE), written(tmp_path / "new", new_spelling(tiny.DENSE))
    spans = ((0, 3), (1, 5), (2, 5))
    a, b = (built(of_one(p, spans), tmp_path / f"child {i}") for i, p in enumerate((old, new)))
    full = [i for i, j in enumerate([0, 1, 2, 3, 1, 2, 3, 4, 5, 2, 3, 4, 5]) if j in (2, 5)]
    assert sorted(b.config["per_layer_config"]) == [f"{i:02}" for i in full]
    layers = [read_config(child.config, "child").text.layers for child in (a, b)]
    assert layers[0] == layers[1]
    assert all(a.weights[name].tobytes() == b.weights[name].tobytes() for name in a.weights)


@pytest.mark.parametrize("variant", [tiny.DENSE, tiny.MOE])
def test_models_without_per_layer_inputs_stack_too(tmp_path, variant):
    parent = written(tmp_path / "p", variant)
    child = built(of_one(parent, ((0, 2), (0, 5))), tmp_path / "m")
    expected = scoped("layers.3", dict.fromkeys(open_checkpoint(parent).weights.at("layers.0")))
    assert {name for name in child.weights if name.startswith("layers.3.")} == set(expected)
    assert numgemma.load(tmp_path / "m").logits([3, 4, 5]).shape == (3, 199)


# recipes


def test_slices_in_text_include_both_ends():
    assert parse_slices("0-17,10-25, 5") == ((0, 17), (10, 25), (5, 5))
    for wrong in ("", "0-", "a-b", "0-17;3", "-1-4", "1-2-3", "0-17,"):
        with pytest.raises(InputError, match="first-last"):
            parse_slices(wrong)


MERGEKIT = """
slices:
  - sources:
      - model: {parent}
        layer_range: [0, 4]
  - sources:
      - layer_range: [2, 8]
        model:
          model:
            path: {parent}
merge_method: passthrough
dtype: bfloat16
"""


def test_a_recipe_of_mergekit_makes_the_same_bytes_as_the_same_slices(tmp_path, ple, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(MERGEKIT.format(parent=ple))
    assert main(["stack", str(path), "-o", str(tmp_path / "a")]) == 0
    assert main(["stack", ple, "--slices", "0-3,2-7", "-o", str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.count("10 layers; 4 share keys, which read those of slots 4 and 5") == 2
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b
    again = read_recipe(tmp_path / "b" / "mergekit_config.yml")  # each child tells how it was made
    assert again == of_one(ple, ((0, 3), (2, 7)))


names = st.text(min_size=1, max_size=12)
spans = st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted)


@given(st.lists(st.builds(lambda p, s: Slice(p, *s), names, spans), min_size=1, max_size=5), names)
@settings(max_examples=25, deadline=None)
def test_a_recipe_written_is_the_recipe_read(tmp_path_factory, slices, trunk):
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    recipe = Recipe(tuple(slices), trunk, "bfloat16")
    path.write_text(recipe_yaml(recipe), encoding="utf-8")
    assert read_recipe(path) == recipe


SLICE = "slices: [{sources: [{model: a, layer_range: [0, 4]}]}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: slerp\n" + SLICE, "run `mergekit-yaml"),
        ("merge_method: dare_ties\nmodels: []", "then `numgemma lint DIR` and `numgemma lineage DIR"),
        ("merge_method: mine\n" + SLICE, "merge_method is not passthrough"),
        ("- a", "merge_method is not passthrough"),
        ("merge_method: passthrough", "has no list of slices"),
        ("merge_method: passthrough\nslices: []", "has no list of slices"),
        ("merge_method: passthrough\nparameters: {scale: 2}\n" + SLICE, "key 'parameters' is not built"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [4, 4]}]}]", "layer_range"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [true, 4]}]}]", "layer_range"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a}]}]", "model and layer_range and nothing else"),
        ("merge_method: passthrough\nslices: [{sources: [{model: 3, layer_range: [0, 1]}]}]", "names its model as 3"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a}, {model: b}]}]", "with one model"),
        ("merge_method: passthrough\nslices: [3]", "with one model"),
        ("merge_method: passthrough\n" + SLICE + "\n" + SLICE, "r.yaml: key 'slices' stands twice"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a, model: b}]}]", "key 'model' stands twice"),
        ("merge_method: [", "is not YAML"),
        ("!!python/object/apply:os.system ['touch RAN']", "is not YAML"),
        ("[" * 1100, "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_recipe_that_is_no_stack_ends_in_one_sentence(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "RAN").exists()


# the command


def test_the_verb_shows_the_slots_before_it_writes(tmp_path, e4b, capsys):
    assert main(["stack", e4b, "--preset", "e6b", "--plan"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[:3] for line in shown.splitlines()[1:7]] == [
        ["0-17", "0-17", "own"],
        ["18-31", "10-23", "own"],
        ["32-33", "24-25", "made"],
        ["34-39", "18-23", "own"],
        ["40-49", "24-33", "shared"],
        ["50-65", "26-41", "shared"],
    ]
    assert "66 layers; 26 share keys, which read those of slots 38 and 39" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slices", "0-7"], "Name a new directory with -o"),
        (["-o", "m"], "which layers?"),
        (["--slices", "0-6", "-o", "m"], "ends with a full layer"),
        (["--slices", "0-7", "-o", "taken"], "is there already"),
    ],
)
def test_what_cannot_be_stacked_ends_in_one_sentence(tmp_path, monkeypatch, capsys, ple, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    assert main(["stack", ple, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_parent_is_never_replaced_by_its_child(tmp_path, capsys):
    parent = written(tmp_path / "p", PLAIN)
    assert main(["stack", parent, "--slices", "0-7", "-o", parent, "--force"]) == 2
    assert "would delete" in capsys.readouterr().err
    assert numgemma.load(parent).config.text.num_hidden_layers == 8


# Gemma 3n


SPANS_3N = [((0, 4), (2, 7)), ((1, 2), (0, 3))]  # of kinds s s f s f s s f, of which the last three share


@pytest.mark.parametrize("spans", SPANS_3N)
def test_what_a_gemma_3n_lists_by_layer_follows_the_layers(tmp_path, spans):
    parent = tiny3n.write(tmp_path / "p", tiny3n.WHOLE, tiny3n.random_tensors(tiny3n.WHOLE, leftovers=True))
    child, was = built(of_one(str(parent), spans), tmp_path / "m"), open_checkpoint(parent)
    source = [j for first, last in spans for j in range(first, last + 1)]
    text = child.config["text_config"]
    for key in ("intermediate_size", "activation_sparsity_pattern", "layer_types"):
        assert text[key] == [tiny3n.TEXT[key][j] for j in source]
    P = tiny3n.TEXT["hidden_size_per_layer_input"]
    table, projection = "embed_tokens_per_layer.weight", "per_layer_model_projection.weight"
    for slot, j in enumerate(source):
        for name in was.weights.at(f"layers.{j}"):
            mine = child.weights[f"layers.{slot}.{name}"]
            assert mine.tobytes() == was.weights[f"layers.{j}.{name}"].tobytes()
        ours, theirs = (slice(i * P, (i + 1) * P) for i in (slot, j))
        np.testing.assert_array_equal(child.weights[table][:, ours], was.weights[table][:, theirs])
        np.testing.assert_array_equal(child.weights[projection][ours], was.weights[projection][theirs])
    rest = [name for name in was.weights if not name.startswith("layers.") and name not in (table, projection)]
    assert len(rest) > 100
    assert all(child.weights[name].tobytes() == was.weights[name].tobytes() for name in rest)
    numgemma.load(tmp_path / "m").logits(np.arange(3, 20))


def test_a_gemma_3n_may_end_in_a_sliding_layer_and_a_slot_takes_its_donors_keys(tmp_path):
    parent = tiny3n.write(tmp_path / "p", tiny3n.TEXT)  # without the keys that nobody reads
    recipe = of_one(str(parent), ((0, 6), (5, 6)))
    with pytest.raises(InputError, match="--kv-from-donor"):
        stack.plan(recipe, shared=0)
    stack.write(stack.plan(recipe, shared=0, kv_from_donor=True), tmp_path / "m")
    child, was = open_checkpoint(tmp_path / "m").weights, open_checkpoint(parent).weights
    assert child["layers.7.self_attn.k_proj.weight"].tobytes() == was["layers.3.self_attn.k_proj.weight"].tobytes()
    numgemma.load(tmp_path / "m").logits(np.arange(3, 20))


def test_parents_of_two_families_are_refused(tmp_path, ple):
    other = str(tiny3n.write(tmp_path / "p", tiny3n.TEXT))
    with pytest.raises(InputError, match=r"is a Gemma 3n, and .* a Gemma 4"):
        stack.plan(Recipe((Slice(ple, 0, 3), Slice(other, 4, 7)), ple))


def test_lineage_finds_what_a_gemma_3n_was_stacked_of_and_its_recipe_makes_the_same_bytes(tmp_path):
    parent = tiny3n.write(tmp_path / "p", tiny3n.TEXT, tiny3n.random_tensors(tiny3n.TEXT, leftovers=True))
    child = built(of_one(str(parent), ((0, 4), (2, 7))), tmp_path / "m")
    words = ("lineage", str(tmp_path / "m"), "--parents", str(parent), "--emit", str(tmp_path / "r.yaml"))
    assert main(words) == 0
    again = built(read_recipe(tmp_path / "r.yaml"), tmp_path / "again")
    assert again.config == child.config
    assert {n: x.tobytes() for n, x in again.weights.tensors.items()} == {
        n: x.tobytes() for n, x in child.weights.tensors.items()
    }
