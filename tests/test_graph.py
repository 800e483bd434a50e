"""The graph that a run teaches: it is that of the figure, and of what in truth changes with what."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny

import numgemma
from numgemma import ops
from numgemma.debug.blame.replay import replay
from numgemma.debug.compare.diff import diff
from numgemma.debug.noise.floor import measure_floor
from numgemma.debug.readers import read_any
from numgemma.debug.readers.names import ours
from numgemma.debug.report.equations import source
from numgemma.dump import Dump
from numgemma.families import read_config
from numgemma.graph import (
    PACKAGE,
    counted,
    graph_of,
    graph_of_dumps,
    in_order,
    learn,
    named,
    official_configs,
)
from numgemma.marks import Marked, carrying, mark, marks
from numgemma.prompt.media import NO_MEDIA, read_media

TEXT, TOWERS = list(tiny.VARIANTS), [*tiny.MULTIMODAL, "12b"]
RAW = tiny.VARIANTS | tiny.MULTIMODAL | {"12b": tiny.UNIFIED}
TWO_OF_EACH = {"images": [(2, 2), (1, 2)], "clips": [2, 3]}


@pytest.fixture(scope="session")
def recorded(models, multimodal_folders, tmp_path_factory):
    """By variant: the model in float64, ids, media, and all that a run records."""

    @cache
    def get(variant):
        if variant in models:
            model, ids, media = models[variant], tiny.prompt(tiny.VARIANTS[variant], 9), NO_MEDIA
        else:
            unified = variant == "12b"
            folder = (
                tiny.write(tmp_path_factory.mktemp("12b"), RAW[variant]) if unified else multimodal_folders[variant]
            )
            ids, arrays = tiny.unified_prompt(TWO_OF_EACH) if unified else tiny.multimodal_prompt(variant)
            model, media = numgemma.load(folder), read_media(arrays)
        model = replace(model, dtype=np.dtype("float64"))
        return model, ids, media, model.record(ids, ["*"], media=media)

    return get


def graph_for(recorded, variant):
    model, _, media, _ = recorded(variant)
    return graph_of(model.checkpoint.config, *counted(media))


# -- what it must be


def golden():
    """Section -> point -> what it is computed from, as tests/golden/arrows.txt has them."""
    sections: dict = {}
    for line in (Path(__file__).parent / "golden/arrows.txt").read_text().splitlines():
        if line.startswith("["):
            rows = sections[line.strip("[]")] = {}
        elif line and not line.startswith("#"):
            name, _, sources = line.partition(" <")
            rows[name] = [s for s in sources.strip().split(", ") if s]
    return sections


def kind(spec, text):
    """The section of the golden file that a layer's arrows stand in."""
    found = "a layer" + " with experts" * bool(spec.E)
    found += " with a per-layer input" * bool(text.hidden_size_per_layer_input)
    found += " that shares keys" * (spec.kv_from != spec.index)
    return found + " whose values are its keys" * spec.k_eq_v


def layer(rows, scope, before, words):
    """The arrows of one layer, its points by their whole names."""
    words = {"before": before} | words
    return {f"{scope}.{name}": {words.get(s) or f"{scope}.{s}" for s in sources} for name, sources in rows.items()}


def numbered(rows, n):
    """Those of a tower with its number."""
    rows = {name: set(sources) for name, sources in rows.items()}
    return {re.sub(r"^(\w+)", rf"\1{n}", k): {re.sub(r"^(\w+)", rf"\1{n}", s) for s in v} for k, v in rows.items()}


def tower(side, n, depth, sections):
    """The arrows of a tower."""
    room = f"{side}_tower"
    scope, end = (f"{room}.encoder.layers", "out") if side == "vision" else (f"{room}.layers", "norm_out")
    enters = "patch_embedder.out" if side == "vision" else "subsample_conv_projection.input_proj_linear"
    table = f"{room}.encoder.rotary_emb"
    words = {"rotary cos": f"{table}.cos", "rotary sin": f"{table}.sin", "rel_pos_enc": f"{room}.rel_pos_enc"}
    found = {name: set(sources) for name, sources in sections[f"around the {side} tower"].items()}
    before = f"{room}.{enters}"
    for i in range(depth):
        found |= layer(sections[f"a layer of the {side} tower"], f"{scope}.{i}", before, words)
        before = f"{scope}.{i}.{end}"
    return numbered({name: {before if s == "last" else s for s in v} for name, v in found.items()}, n)


def arrows(config, pictures, sounds):
    """Every point of a model, with what it is computed from, put together from the golden file."""
    sections, text, found, soft = golden(), config.text, {}, set()
    for side, count, tower_config in (("vision", pictures, config.vision), ("audio", sounds, config.audio)):
        for i in range(count):
            n = f"@{i}" if count > 1 else ""
            if hasattr(tower_config, "num_hidden_layers"):
                found |= tower(side, n, tower_config.num_hidden_layers, sections)
            else:
                found |= numbered(sections[f"around the {side} tower of 12B"], n)
        soft |= {name for name in found if name.endswith(".embedding_projection")}
    before = embeds = "inputs_embeds" if soft else "embed_tokens"
    around = {name: set(sources) for name, sources in sections["around"].items()}
    around["inputs_embeds"] = {"embed_tokens", *soft}
    for spec in text.layers:
        words = {"per_layer_inputs": "per_layer_inputs"}
        words |= {f"rotary {x}": f"rotary_emb.{spec.kind}.{x}" for x in ("cos", "sin")}
        words |= {f"donor {x}": f"layers.{spec.kv_from}.self_attn.{x}" for x in ("k_rope", "v_norm")}
        found |= layer(sections[kind(spec, text)], f"layers.{spec.index}", before, words)
        before = f"layers.{spec.index}.out"
    absent = () if soft else ("inputs_embeds",)
    absent += () if text.hidden_size_per_layer_input else tuple(n for n in around if "per_layer" in n)
    words = {"last": before, "embeds": embeds}
    return found | {n: {words.get(s, s) for s in v} for n, v in around.items() if n not in absent}


@pytest.mark.parametrize("variant", TEXT + TOWERS)
def test_the_learned_edges_are_those_written_by_hand(recorded, variant):
    model, _, media, _ = recorded(variant)
    graph = graph_for(recorded, variant)
    assert {name: set(graph.parents(name)) for name in graph.points} == arrows(model.config, *counted(media))


# Gemma 3n: test_gemma3n.py; drafters: test_drafter.py
WRITTEN = [raw for raw in official_configs() if raw["model_type"] in ("gemma4", "gemma4_unified")]


@pytest.mark.parametrize("raw", WRITTEN, ids=lambda raw: raw["model_type"])
def test_so_they_are_of_every_official_model(raw):
    graph, config = graph_of(raw, 2, 1), read_config(raw, "a test")
    expected = arrows(config, 2, 1 if config.audio else 0)
    assert {name: set(graph.parents(name)) for name in graph.points} == expected


def test_every_section_of_the_golden_file_is_a_layer_of_some_variant():
    configs = [read_config(raw, "a test") for raw in RAW.values()]
    used = {kind(spec, c.text) for c in configs for spec in c.text.layers}
    assert used == {s for s in golden() if s.startswith("a layer") and "tower" not in s}


@pytest.mark.parametrize("variant", TEXT + TOWERS)
def test_order_and_axes_are_those_of_the_run(recorded, variant):
    *_, dump = recorded(variant)
    graph = graph_for(recorded, variant)
    assert list(graph.points) == list(dump)
    assert {name: graph.axes(name) for name in dump} == dump.axes


# -- what in truth changes with what


def one_of_each_kind(recorded):
    """variant -> points: of each leaf of each kind of layer, and of each point of the towers, one, drawn at random."""
    kinds = {}
    for variant in TEXT + TOWERS:
        model, *_, dump = recorded(variant)
        text = model.config.text
        for name in dump:
            at = re.match(r"layers\.(\d+)\.", name)
            what = re.sub(r"\d+", "*", name), at and kind(text.layers[int(at[1])], text)
            kinds.setdefault(what, []).append((variant, name))
    rng, drawn = np.random.default_rng(7), {}
    for some in kinds.values():
        variant, name = some[rng.integers(len(some))]
        drawn.setdefault(variant, []).append(name)
    return drawn


@pytest.mark.parametrize("variant", TEXT + TOWERS)
def test_with_a_point_its_descendants_change_and_nothing_else(recorded, variant):
    model, ids, media, clean = recorded(variant)
    graph = graph_for(recorded, variant)
    experts, rng = model.config.text.num_experts, np.random.default_rng(5)

    def disturbed(x):
        return (x + 1) % experts if x.dtype.kind == "i" else x * rng.uniform(0.3, 1.7, x.shape)

    for name in one_of_each_kind(recorded)[variant]:
        other = model.record(ids, ["*"], edits={name: disturbed}, media=media)
        moved = {p for p in clean if not np.array_equal(clean[p], other[p])}
        expected = {p for p in graph.points if graph.hands_on(name, p)} | {name}
        assert moved <= expected, name
        # a disturbance may leave every choice of experts as it was
        assert all(p.endswith("router.ids") for p in expected - moved), name


# -- questions


def test_a_step_over_unknown_points_names_the_known_ones_before_it():
    graph = graph_of(tiny.PLE)
    known = {"layers.5.self_attn.q_norm", "layers.3.self_attn.k_norm", "layers.3.self_attn.v_norm"}
    sources, between = graph.step("layers.5.self_attn.o_proj", known | {"rotary_emb.sliding_attention.cos"})
    assert set(sources) == known | {"rotary_emb.sliding_attention.cos"}
    assert {"layers.5.self_attn.probs", "layers.3.self_attn.k_rope"} <= set(between)


def test_what_stands_behind_a_router_does_not_stand_behind_the_dense_branch_alone():
    graph = graph_of(tiny.MOE)
    behind = {p for p in graph.points if graph.hands_on("layers.1.router.ids", p)}
    assert {"layers.1.experts", "layers.1.out", "layers.2.self_attn.q_proj", "logits"} <= behind
    assert not behind & {"layers.1.mlp.down_proj", "layers.1.router.weights", "layers.1.pre_feedforward_layernorm_2"}
    before = {p for p in graph.points if graph.hands_on(p, "layers.0.router.ids")}
    assert before >= {"layers.0.router.probs", "embed_tokens"}


@pytest.mark.parametrize(
    ("raw", "fault", "later", "expected"),
    [
        (tiny.DENSE, "embed_tokens", "layers.0.input_layernorm", True),
        (tiny.DENSE, "embed_tokens", "rotary_emb.full_attention.cos", False),
        (tiny.PLE, "embed_tokens", "embed_tokens_per_layer", False),
        (tiny.PLE, "embed_tokens_per_layer", "layers.0.mlp.down_proj", False),
        (tiny.PLE, "embed_tokens_per_layer", "layers.0.per_layer_projection", True),
        (tiny.PLE, "embed_tokens_per_layer", "layers.1.input_layernorm", True),
        (tiny.DENSE, "rotary_emb.full_attention.cos", "layers.2.self_attn.q_norm", False),
        (tiny.DENSE, "rotary_emb.full_attention.cos", "layers.1.self_attn.q_rope", False),
        (tiny.DENSE, "rotary_emb.full_attention.cos", "layers.2.self_attn.q_rope", True),
        (tiny.DENSE, "layers.1.self_attn.k_proj", "layers.1.self_attn.v_norm", False),
        (tiny.DENSE, "layers.2.self_attn.k_proj", "layers.2.self_attn.v_norm", True),
        (tiny.DENSE, "layers.1.self_attn.v_norm", "layers.1.self_attn.scores", False),
        (tiny.MOE, "layers.1.mlp.gate_proj", "layers.1.mlp.up_proj", False),
        (tiny.MOE, "layers.1.pre_feedforward_layernorm", "layers.1.router.norm", False),
        (tiny.MOE, "layers.1.router.ids", "layers.1.experts", True),
        (tiny.PLE, "layers.3.self_attn.k_rope", "layers.6.self_attn.scores", True),
        (tiny.DENSE, "layers.4.out", "norm", True),
        (tiny.DENSE, "layers.4.out", "a point of nobody's", True),
    ],
)
def test_errors_flow_along_the_figures_arrows(raw, fault, later, expected):
    assert graph_of(raw).hands_on(fault, later) == expected


def test_pictures_and_sounds_do_not_read_each_other():
    graph = graph_of(tiny.E4B, 2, 1)
    assert not graph.hands_on("vision_tower@0.out", "vision_tower@1.out")
    assert not graph.hands_on("vision_tower@1.out", "audio_tower.out")
    assert not graph.hands_on("vision_tower@0.out", "embed_tokens")
    assert graph.hands_on("vision_tower@0.patch_embedder.out", "inputs_embeds")
    assert graph.hands_on("audio_tower.out", "per_layer_inputs")


# -- how it is found for a dump


def test_a_dump_of_ours_carries_the_config_that_its_graph_is_learned_from(recorded, tmp_path):
    *_, dump = recorded("26b")
    dump.save(tmp_path / "a.safetensors")
    again = numgemma.read_dump(tmp_path / "a.safetensors")
    assert graph_of_dumps(again) is graph_for(recorded, "26b")


def test_a_dump_of_another_engine_is_matched_to_the_official_model_with_the_same_points():
    e2b = next(raw for raw in official_configs() if (raw.get("text_config") or raw)["num_hidden_layers"] == 35)
    graph = graph_of(e2b, 2, 0)
    some = [name for name in graph.points if not name.endswith(("scores", "probs", "rope"))]
    found = graph_of_dumps(Dump({}, dict.fromkeys(some, np.zeros(1))))
    assert found.points == graph.points


def test_where_no_model_has_these_points_their_order_is_all_that_is_known():
    names = ["layers.0.mlp.gate_proj", "layers.0.mlp.up_proj", "layers.6.out"]
    dump = Dump({}, dict.fromkeys(names, np.zeros(1)))
    graph = graph_of_dumps(dump)
    assert graph.points == in_order(names).points
    assert graph.hands_on(names[0], names[1])
    assert not graph.hands_on(names[1], names[0])
    told = graph_of_dumps(named(dump, tiny.PLE))
    assert not told.hands_on(names[0], names[1])


def test_a_config_or_a_name_of_absurd_size_costs_nothing_and_leaves_the_order():
    wide = tiny.E4B | {"text_config": tiny.E4B["text_config"] | {"num_attention_heads": 3 * 10**9}}
    deep = tiny.E4B | {"vision_config": tiny.VISION | {"num_hidden_layers": 10**9}}
    few, many = ["embed_tokens", "norm"], ["embed_tokens", "vision_tower@999999999.out", "norm"]
    for raw, names in (
        (wide, few),
        (deep, few),
        ({"model_type": []}, few),
        ([1], few),
        (None, few),
        (tiny.E4B, many),
        (None, many),
    ):
        dump = Dump({}, dict.fromkeys(names, np.zeros(1)))
        assert graph_of_dumps(dump, config=raw).points == in_order(names).points


# -- what a run cannot teach wrongly


def test_marks_go_through_indices_assignments_and_results_in_place():
    a, b, i = (mark(np.arange(3), frozenset([name])) for name in "abi")
    assert marks(a[i]) == {"a", "i"}
    y = np.zeros_like(a)
    assert marks(y) == frozenset()
    y[i] += b
    assert marks(y) == {"b", "i"}
    z = np.zeros(3, int)
    z += a
    assert marks(z) == {"a"}
    assert marks(np.concatenate([a, b]).reshape(2, 3).T[None]) == {"a", "b"}
    assert all(marks(part) == {"i"} for part in np.nonzero(i == 1))
    assert type(np.shape(a)) is tuple


def test_operations_are_as_they_were_when_the_run_is_over():
    before = {name: getattr(ops, name) for name in ops.__all__}
    with carrying():
        x = ops.rms_norm(mark(np.ones((2, 4), np.float32), frozenset(["x"])), None, 1e-6)
        assert isinstance(x, Marked)
        assert type(ops.rms_norm(np.ones((2, 4), np.float32), None, 1e-6)) is np.ndarray
    assert {name: getattr(ops, name) for name in ops.__all__} == before


def test_a_graph_is_learned_of_any_run_on_a_tap():
    def run(tap):
        x = tap("x", np.ones((2, 3)), "T D")
        tap = tap.at("layers.0")
        y = tap("y", ops.scale(x, 2.0), "T D")
        tap("z", x + y, "T D")

    graph = learn(run)
    assert {name: birth.parents for name, birth in graph.points.items()} == {
        "x": (),
        "layers.0.y": ("x",),
        "layers.0.z": ("x", "layers.0.y"),
    }
    z = graph.points["layers.0.z"]
    assert 'tap("z"' in Path(z.file).read_text().splitlines()[z.line - 1]


# -- what was wrong where the graph was told


@pytest.mark.parametrize(
    ("variant", "first", "second"),
    [
        ("dense", "layers.2.self_attn.v_norm", "layers.2.self_attn.scores"),
        ("moe", "layers.1.pre_feedforward_layernorm", "layers.1.router.norm"),
        ("26b", "embed_vision@0.embedding_projection", "embed_vision@1.embedding_projection"),
    ],
)
def test_a_fault_that_no_path_excuses_is_not_inherited(recorded, variant, first, second):
    model, ids, media, _ = recorded(variant)
    model = replace(model, dtype=np.dtype("float32"))
    more = {"media": media} if media is not NO_MEDIA else {}
    a = model.record(ids, ["*"], **more)
    b = Dump(a.meta, {name: x * np.float32(1.2 if name in (first, second) else 1) for name, x in a.items()}, a.axes)
    b.arrays |= {name: a[name] for name in a if a[name].dtype.kind == "i"}
    floor = measure_floor(model, ids, "float32", runs=3, points=["*"], **more)
    states = {p.name: p.state for p in diff(a, b, floor=floor).points}
    assert (states[first], states[second]) == ("FAULT", "FAULT")


@pytest.mark.parametrize("variant", ["moe", *TOWERS])
def test_an_archive_under_module_paths_is_read_whole_and_in_order(recorded, variant, tmp_path):
    """Two pictures, and the ids, which no other tensor is taken for."""
    *_, dump = recorded(variant)
    order = list(dump)
    np.savez(tmp_path / "a.npz", input_ids=np.asarray(dump.meta["ids"]), **{n: dump[n] for n in sorted(order)})
    found = read_any(tmp_path / "a.npz")
    assert list(found.meta["ids"]) == list(dump.meta["ids"])
    assert set(found) == set(order)
    graph = graph_for(recorded, variant)
    place = {name: i for i, name in enumerate(found)}
    assert all(place[p] < place[name] for name in order for p in graph.parents(name))
    assert found.axes == dump.axes
    if variant == "moe":
        assert [n for n in found if "rotary" not in n] == [n for n in order if "rotary" not in n]


def test_a_tower_of_a_numbered_picture_is_a_point_of_ours():
    assert ours("model.vision_tower@1.encoder.layers.0.out") == "vision_tower@1.encoder.layers.0.out"
    assert ours("vision_tower@1.encoder.layers.0.nonsense") is None


@pytest.mark.parametrize("variant", TEXT + TOWERS)
def test_every_point_has_the_line_that_names_it(recorded, variant):
    *_, dump = recorded(variant)
    graph = graph_of_dumps(dump)
    for name in dump:
        found = source(name, graph)
        assert f'"{name.rpartition(".")[2]}"' in found.excerpt[found.line - found.first], name


def test_the_line_is_of_the_function_that_made_the_point():
    lines = {"ops/definitions.py": (PACKAGE / "ops/definitions.py").read_text().splitlines()}

    def function(name):
        birth = graph_of(tiny.E4B, 1, 1).points[name]
        text = lines.setdefault(birth.file, (PACKAGE / birth.file).read_text().splitlines())
        return birth.file, next(m[1] for row in text[birth.line - 1 :: -1] if (m := re.match(r"def (\w+)", row)))

    assert function("vision_tower.encoder.layers.0.self_attn.scores") == ("ops/definitions.py", "attend_all")
    assert function("layers.0.self_attn.scores") == ("ops/definitions.py", "attend")
    assert function("audio_tower.layers.0.self_attn.probs") == ("ops/definitions.py", "attend_frames")
    assert function("vision_tower.patch_embedder.out") == ("layers/vision.py", "patch_embedder")
    assert function("audio_tower.layers.1.lconv1d.pre_layer_norm") == ("layers/conformer.py", "light_conv")


def test_floor_and_replay_perturb_the_definitions_whatever_backend_was_chosen(recorded):
    pytest.importorskip("numba")
    model, ids, _, dump = recorded("dense")
    model = replace(model, dtype=np.dtype("float32"))
    dump = model.record(ids)
    plain = measure_floor(model, ids, "float32", runs=2), replay(model, dump)
    with ops.using("numba"):
        chosen = measure_floor(model, ids, "float32", runs=2), replay(model, dump)
    assert plain[0].points == chosen[0].points
    assert [vars(s) for s in plain[1].points] == [vars(s) for s in chosen[1].points]
