"""Step by step: a right run has no local fault, and a wrong tensor is named where it was made, not where it hurts."""

import gzip
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny

import numgemma
from numgemma.cli import main
from numgemma.debug.blame.one_step import Rerun, Substitute, fed
from numgemma.debug.blame.replay import replay, subject_of
from numgemma.debug.blame.words import render
from numgemma.debug.compare.result import BIT_EXACT, FAULT, INHERITED, NOISE, SUSPECT, TIE, UNMEASURED
from numgemma.debug.faults import applied
from numgemma.debug.readers import read_any
from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.graph import counted, graph_of
from numgemma.prompt.media import NO_MEDIA, read_media

STORED = Path(__file__).parents[1] / "reference_outputs"
FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(STORED))
import make_fixtures  # noqa: E402

INTERIOR = ("q_rope", "k_rope", "scores", "probs", "context", "after_attention", "after_mlp", "per_layer_inputs")
INTERIOR += ("cos", "sin", "router.weights", "router.ids")


def part(dump, keep):
    return Dump(dump.meta, {name: dump[name] for name in dump if keep(name)}, dump.axes)


def modules(dump):
    return part(dump, lambda name: not name.endswith(INTERIOR))


def changed(dump, name, change):
    """The same dump with another tensor at one point: change(a copy of it) -> tensor."""
    return Dump(dump.meta, dump.arrays | {name: change(np.array(dump[name]))}, dump.axes)


def broken(model, ids, *faults, layers=None):
    """The dump of another engine that makes these mistakes."""
    with applied(model, *faults, layers=layers):
        return model.record(ids)


def stored(name):
    return numgemma.read_dump(STORED / f"{name}.safetensors")


def model_of(name, models):
    return numgemma.load("tiny") if name.startswith("tiny") else models[name.split("_")[0]]


def by_name(found):
    return {step.name: step for step in found.points}


# -- right runs


@pytest.mark.parametrize("name", ["tiny_float32", "tiny_bfloat16", "dense_float32", "moe_float32", "ple_float32"])
def test_transformers_makes_no_local_fault(models, name):
    dump = stored(name)
    for some in (dump, modules(dump), part(dump, lambda p: p.endswith(".out"))):
        found = replay(model_of(name, models), some)
        states = [step.state for step in found.points]
        assert set(states) <= {NOISE, BIT_EXACT, SUSPECT}
        assert states.count(SUSPECT) <= 1
        assert (found.first, found.exit_code) == (None, 0)
        assert len(found.points) == len(some)


@pytest.mark.parametrize("name", ["e4b", "26b"])
def test_transformers_makes_no_local_fault_with_images_and_sound(multimodal_folders, name):
    dump = stored(f"{name}_float32")
    _, arrays = tiny.multimodal_prompt(name)
    found = replay(numgemma.load(multimodal_folders[name]), dump, media=read_media(arrays))
    states = [step.state for step in found.points]
    assert set(states) <= {NOISE, BIT_EXACT, SUSPECT}
    assert states.count(SUSPECT) <= 3


def test_a_dump_with_four_decimals_is_judged_as_such(models):
    dump = stored("dense_float32")
    rounded = {name: np.round(dump[name], 4) if dump[name].dtype.kind == "f" else dump[name] for name in dump}
    found = replay(models["dense"], Dump(dump.meta | {"fidelity": "rounded:4dp"}, rounded, dump.axes))
    assert not [s for s in found.points if s.state in (FAULT, SUSPECT)]
    assert replay(models["dense"], Dump(dump.meta, rounded, dump.axes)).exit_code == 1  # if it claims to be exact


def test_a_bfloat16_run_widened_to_float32_is_judged_as_bfloat16(models):
    dump = stored("tiny_bfloat16")
    wide = Dump(dump.meta | {"precision": "float32"}, {name: dump[name].astype(np.float32) for name in dump}, dump.axes)
    found = replay(numgemma.load("tiny"), wide)
    assert (found.precision, found.first) == ("bfloat16", None)


def test_scores_may_hide_what_the_mask_hides_in_any_way(models):
    model = models["dense"]
    dump = model.record(tiny.prompt(tiny.DENSE, 14), ["*"])
    for hidden in (-np.inf, np.finfo(np.float32).min, -1e9):
        arrays = {n: np.where(x == 0, np.float32(hidden), x) if n.endswith("scores") else x for n, x in dump.items()}
        assert replay(model, Dump(dump.meta, arrays, dump.axes)).exit_code == 0


# -- dumps of llama.cpp and of Transformers' debugger, as their own tools wrote them


@pytest.fixture(scope="module")
def fixture_models(tmp_path_factory):
    made = make_fixtures.write_checkpoints(tmp_path_factory.mktemp("checkpoints"))
    return {name: numgemma.load(folder) for name, folder in made.items()}


def logged(name, tmp_path):
    path = tmp_path / f"{name}.txt"
    path.write_bytes(gzip.decompress((FIXTURES / f"{name}.txt.gz").read_bytes()))
    return read_any(path)


@pytest.mark.parametrize("variant", ["ple", "moe"])
def test_llama_cpp_makes_no_local_fault(fixture_models, tmp_path, variant):
    found = replay(fixture_models[variant], logged(f"llama_eval_callback_{variant}", tmp_path))
    states = {s.state for s in found.points if "router" not in s.name}
    assert (states, found.first) == ({NOISE}, None)  # it prints a few of the experts' numbers only


def test_a_wrong_weight_in_llama_cpp_is_found_where_it_is_used(fixture_models, tmp_path):
    found = replay(fixture_models["ple"], logged("llama_eval_callback_faulty", tmp_path))
    assert found.first == "layers.3.self_attn.k_norm"
    assert abs(by_name(found)[found.first].scale - 1.05) < 0.002


@pytest.mark.parametrize("point", ["embed_tokens", "layers.1.mlp.up_proj", "layers.5.out", "per_layer_inputs"])
def test_five_percent_more_at_one_point_of_a_log_is_a_fault_there(fixture_models, tmp_path, point):
    dump = logged("llama_eval_callback_ple", tmp_path)
    dump.meta["parts"][point]["sum"] *= 1.05
    found = replay(fixture_models["ple"], changed(dump, point, lambda x: np.round(1.05 * x, 4)))
    assert found.first == point


def test_the_debugger_of_transformers_prints_few_digits_and_no_fault(fixture_models, tmp_path):
    with zipfile.ZipFile(FIXTURES / "hf_debugger_repr.zip") as archive:
        archive.extractall(tmp_path)
    model = fixture_models["moe"]
    found = replay(model, read_any(tmp_path, config=model.outline))
    assert found.exit_code == 0
    assert sum(s.state == SUSPECT for s in found.points) <= 1


# -- one wrong tensor

DAMAGES = {
    "a lost factor": lambda x: x * np.float32(1.05),
    "a dead channel": lambda x: x * (np.arange(x.shape[1]) != 7).astype(np.float32),
    "a garbage token": lambda x: x[np.where(np.arange(len(x)) == 9, 2, np.arange(len(x)))],
    "bad channels beside a loud one": lambda x: x * np.where(np.arange(x.shape[1]) < 3, -1, 1).astype(np.float32),
}
PLACES = [
    ("dense", "embed_tokens", "a lost factor"),
    ("dense", "layers.3.self_attn.o_proj", "a lost factor"),
    ("dense", "layers.3.self_attn.o_proj", "a dead channel"),
    ("dense", "layers.3.self_attn.o_proj", "a garbage token"),
    ("dense", "layers.3.self_attn.o_proj", "bad channels beside a loud one"),
    ("dense", "layers.2.self_attn.k_rope", "a garbage token"),
    ("moe", "layers.4.experts", "a dead channel"),
    ("ple", "per_layer_inputs", "a garbage token"),
    ("ple", "layers.6.after_attention", "bad channels beside a loud one"),
    ("ple", "logits", "a dead channel"),
]


@pytest.fixture(scope="module")
def runs(models):
    return {name: models[name].record(tiny.prompt(tiny.VARIANTS[name], 14)) for name in ("dense", "moe", "ple")}


@pytest.mark.parametrize(("variant", "point", "how"), PLACES)
def test_damage_is_a_fault_of_the_step_that_made_it(models, runs, variant, point, how):
    def damage(x):
        return DAMAGES[how](x.reshape(len(x), -1)).reshape(x.shape)

    dump = changed(runs[variant], point, damage)
    found = replay(models[variant], dump)
    assert found.first == point
    graph = subject_of(models[variant], dump).graph
    # the dump's next tensors were not made from the damaged one, so they may be at fault too, and no others
    next_ones = {name for name in dump if point in graph.step(name, dump)[0]}
    assert {s.name for s in found.points if s.state == FAULT} <= {point, *next_ones}


def test_what_follows_a_fault_is_inherited_and_not_at_fault(models):
    model = models["ple"]
    ids = tiny.prompt(tiny.PLE, 14)
    found = replay(model, broken(model, ids, "T15-silu", layers=[1]))
    assert found.first == "layers.1.mlp.down_proj"
    states = [step.state for step in found.points]
    at = [step.name for step in found.points].index(found.first)
    assert set(states[:at]) <= {NOISE, BIT_EXACT}
    assert states.count(FAULT) == 1
    later = by_name(found)["layers.1.out"]
    assert later.state == INHERITED
    assert later.global_xfloor > 5 > later.xfloor
    assert found.verdict.startswith("first local fault: layers.1.mlp.down_proj, ")
    assert f"; {states.count(INHERITED)} later points INHERITED" in found.verdict


def test_a_step_over_unrecorded_points_is_named_with_its_sources(models):
    model = models["ple"]
    ids = tiny.prompt(tiny.PLE, 14)
    dump = broken(model, ids, "T07")
    assert replay(model, dump).first == "layers.2.self_attn.q_rope"
    step = next(s for s in replay(model, modules(dump)).points if s.state == FAULT)
    assert step.arrow == "layers.2.self_attn.{q_norm, k_norm, v_norm -> o_proj}"
    assert "layers.2.self_attn.k_rope" in step.between
    shared = replay(model, modules(broken(model, ids, "K01")))
    assert (
        "layers.5.self_attn.{layers.3.self_attn.k_norm, layers.3.self_attn.v_norm, q_norm -> o_proj}" in shared.verdict
    )


# -- arrows


@pytest.mark.parametrize("variant", ["dense", "moe", "ple", "e4b", "26b"])
def test_the_arrows_of_the_figure_are_those_of_the_code(models, multimodal_folders, variant):
    """Disturb one tensor, feed all others: only the points that the arrows name are computed differently."""
    if variant in models:
        model, ids, media = models[variant], tiny.prompt(tiny.VARIANTS[variant], 9), NO_MEDIA
    else:
        model, (ids, arrays) = numgemma.load(multimodal_folders[variant]), tiny.multimodal_prompt(variant)
        media = read_media(arrays)
    clean = model.record(ids, ["*"], media=media)
    graph = graph_of(model.checkpoint.config, *counted(media))

    def computed(dump):
        seen = {}

        def look(name, y, axes):
            seen[name] = y
            return fed(dump, name, y)

        Rerun(model, dump, ids, "float32", media).run("float64", look)
        return seen

    before = computed(clean)
    last = ("layers.2.", f"layers.{model.config.text.num_hidden_layers - 1}.")  # a sliding or sharing layer, a full one
    inner = [n for n in clean if n.startswith(last) or not n.startswith("layers.")]
    for name in inner if variant in models else [n for n in clean if "_" in n.split(".")[0]]:
        if clean[name].dtype.kind == "i":
            other = changed(clean, name, lambda x: (x + 1) % model.config.text.num_experts)
        else:
            other = changed(clean, name, lambda x: x * np.linspace(0.9, 1.2, x.shape[-1], dtype=x.dtype))
        after = computed(other)
        moved = {p for p in clean if not np.array_equal(before[p], after[p])}
        children = {p for p in clean if name in graph.parents(p)}
        assert moved <= children, name
        assert all(p.endswith("router.ids") for p in children - moved), name  # the same experts may still be best


# -- experts


def test_the_order_in_which_experts_are_listed_does_not_count(models, runs):
    dump = runs["moe"]
    backwards = {n: x[:, ::-1] if n.endswith(("router.ids", "router.weights")) else x for n, x in dump.items()}
    found = replay(models["moe"], Dump(dump.meta, backwards, dump.axes))
    assert found.exit_code == 0
    assert by_name(found)["layers.2.router.ids"].state == BIT_EXACT


def test_another_expert_is_a_fault_and_a_tie_is_none(models):
    model = models["moe"]
    ids = tiny.prompt(tiny.MOE, 14)
    dump = model.record(ids, ["*"])
    name, at = "layers.3.router", 4
    probs = np.array(dump[f"{name}.probs"])
    chosen = dump[f"{name}.ids"][at]
    other = next(e for e in np.argsort(-probs[at]) if e not in chosen)

    def swap(x):
        x[at, -1] = other
        return x

    wrong = by_name(replay(model, changed(dump, f"{name}.ids", swap)))
    assert wrong[f"{name}.ids"].state == FAULT
    assert wrong[f"{name}.ids"].reason == f"other experts at token {at}"

    def level(scores):
        scores[at, other] = scores[at, chosen[-1]]
        return scores

    tied = part(changed(changed(dump, f"{name}.ids", swap), f"{name}.proj", level), lambda p: not p.endswith("probs"))
    assert by_name(replay(model, tied))[f"{name}.ids"].state == TIE


# -- what cannot be measured


def test_nan_is_named_where_it_is_born_and_what_follows_is_computed_without_it(models, runs):
    def spoil(x):
        x[3, 2] = np.nan
        return x

    found = replay(models["dense"], changed(runs["dense"], "layers.1.mlp.up_proj", spoil))
    assert (found.first, found.exit_code) == ("layers.1.mlp.up_proj", 4)
    assert {s.state for s in found.points if s.name != found.first} <= {NOISE, BIT_EXACT}
    assert "NaN or infinity" in found.verdict
    json.dumps(found.to_json(), allow_nan=False)


def test_what_numgemma_does_not_compute_is_unmeasured_and_not_passed_over(models, runs):
    dump = runs["dense"]
    axes = dump.axes | {"layers.0.self_attn.kv_cache": "T D"}
    arrays = dump.arrays | {"layers.0.self_attn.kv_cache": np.ones((14, 3), np.float32)}
    arrays["norm"] = np.array(dump["norm"])[:, :5]
    found = by_name(replay(models["dense"], Dump(dump.meta, arrays, axes)))
    assert found["layers.0.self_attn.kv_cache"].state == found["norm"].state == UNMEASURED
    assert found["norm"].reason == "shape [14, 5] in the dump, [14, 48] here"
    assert found["lm_head"].state == NOISE


def test_a_dump_of_nothing_known_is_refused(models):
    dump = Dump({"ids": [5, 6]}, {"blk.0": np.ones((2, 3), np.float32)}, {"blk.0": "T D"})
    with pytest.raises(InputError, match=r"No point .* at blk.0"):
        replay(models["dense"], dump)


def test_ids_that_a_dump_lacks_are_asked_for(models, runs):
    dump = runs["dense"]
    bare = Dump({k: v for k, v in dump.meta.items() if k not in ("ids", "positions")}, dump.arrays, dump.axes)
    with pytest.raises(InputError, match="--ids"):
        replay(models["dense"], bare)
    assert replay(models["dense"], bare, ids=dump.meta["ids"]).exit_code == 0
    late = Dump(dump.meta | {"positions": list(range(3, 17))}, dump.arrays, dump.axes)
    with pytest.raises(InputError, match="positions"):
        replay(models["dense"], late)


# -- graft


def test_a_graft_behind_the_fault_recovers_and_one_before_it_does_not(models):
    model = models["dense"]
    dump = broken(model, tiny.prompt(tiny.DENSE, 14), "T15-silu", layers=[2])
    behind = replay(model, dump, graft="layers.2.out").graft
    assert {s.state for s in behind.points} <= {NOISE, BIT_EXACT}
    assert "recover" in behind.verdict
    assert all(s.global_rel > 100 * s.rel for s in behind.points)
    before = replay(model, dump, graft="layers.1.out").graft
    assert "still off, first layers.2.mlp.down_proj" in before.verdict
    with pytest.raises(InputError, match=r"layers\.9\.out"):
        replay(model, dump, graft="layers.9.out")


# -- the command line


def test_the_verb_prints_a_verdict_writes_json_and_exits_by_it(tmp_path, capsys):
    model = numgemma.load("tiny")
    ids = [2, 300, 41, 7, 555, 90]
    model.record(ids).save(tmp_path / "right.safetensors")
    broken(model, ids, "T12", layers=[3]).save(tmp_path / "wrong.safetensors")
    assert main(["replay", "tiny", str(tmp_path / "right.safetensors")]) == 0
    assert capsys.readouterr().out.startswith("No local fault in 150 steps")
    code = main(["replay", "tiny", str(tmp_path / "wrong.safetensors"), "--json", str(tmp_path / "r.json"), "--all"])
    shown = capsys.readouterr().out
    assert code == 1
    assert shown.startswith("First local fault: layers.3.out, ")
    assert shown.count("\n") > 150
    tree = json.loads((tmp_path / "r.json").read_text())
    assert tree["schema"] == "numgemma.replay/1"
    assert tree["first"] == "layers.3.out"
    point = next(p for p in tree["points"] if p["name"] == "layers.3.out")
    assert point["state"] == "FAULT"
    assert point["xfloor"] > 5
    assert point["local_rel"] > 0.01
    assert tree["verdict"] in shown.replace("\n  ", " ").replace("First", "first")


def test_the_verb_takes_ids_and_points_and_a_floor(tmp_path, capsys):
    model = numgemma.load("tiny")
    ids = [2, 300, 41]
    dump = model.record(ids)
    meta = {k: v for k, v in dump.meta.items() if k not in ("ids", "positions")}
    Dump(meta, dump.arrays, dump.axes).save(tmp_path / "bare.safetensors")
    path = str(tmp_path / "bare.safetensors")
    assert main(["replay", "tiny", path]) == 2
    assert "--ids" in capsys.readouterr().err
    assert main(["replay", "tiny", path, "--ids", "2,300,41", "--points", "*.out"]) == 0
    assert "6 steps" in capsys.readouterr().out
    assert main(["floor", "tiny", "--ids", "2,300,41", "-o", str(tmp_path / "f.json")]) == 0
    broken(model, ids, "T12").save(tmp_path / "wrong.safetensors")
    assert main(["replay", "tiny", str(tmp_path / "wrong.safetensors"), "--floor", str(tmp_path / "f.json")]) == 1


@pytest.mark.parametrize("width", [50, 80, 140])
def test_no_line_is_wider_than_the_terminal(models, width):
    model = models["moe"]
    dump = modules(broken(model, tiny.prompt(tiny.MOE, 14), "M02-sum"))
    found = replay(model, dump, graft="layers.2.out")
    assert max(map(len, render(found, all=True, width=width).splitlines())) <= width


def test_a_watch_names_points_by_their_scope():
    names = []
    tap = Substitute(lambda name, x, axes: names.append(name) or x, {"layers.0.mlp.up_proj"})
    inner = tap.at("layers.0").at("mlp")
    assert inner("up_proj", 5) == 5
    assert names == ["layers.0.mlp.up_proj"]
    assert inner.watches("up_proj")
    assert not inner.watches("gate_proj")
