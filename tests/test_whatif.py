"""Which mistake it was: the catalogue names what was planted, alone or in pairs, and nothing where it knows nothing."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

import numgemma
from numgemma.cli import main
from numgemma.debug.blame.alone import again
from numgemma.debug.blame.budget import OutOfTime
from numgemma.debug.blame.one_step import local
from numgemma.debug.blame.replay import locally, subject_of
from numgemma.debug.blame.trial import Trial
from numgemma.debug.blame.whatif import searched, whatif
from numgemma.debug.blame.words import render_whatif
from numgemma.debug.faults import CATALOGUE, applied, canvas, drafts
from numgemma.debug.noise.perturb import perturbed
from numgemma.dump import Dump
from numgemma.prompt.media import read_media

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import mutation_score
from mutation_score import modules_only

TOKENS = 14


def wrong(model, variant, *faults, layers=None):
    """What the modules of another engine return that makes these mistakes and rounds in its own way."""
    with perturbed(99), applied(model, *faults, layers=layers):
        return modules_only(model.record(tiny.prompt(tiny.VARIANTS[variant], TOKENS), ["*"]))


NAMED = [  # one of each sort; all of them: benchmarks/mutation_score.py
    ("ple", "T07", "full"),
    ("ple", "P05", None),
    ("ple", "K01", (5, 6)),
    ("ple", "K06-rope", "shared"),
    ("dense", "T18", "sliding"),
    ("dense", "T12", "all"),
    ("dense", "T17-product", None),
    ("moe", "M02-order", "all"),
    ("moe", "M05-halves", "all"),
]


@pytest.mark.parametrize(("variant", "fault", "layers"), NAMED)
def test_a_planted_fault_is_named_with_the_layers_where_it_acts(models, variant, fault, layers):
    found = whatif(models[variant], wrong(models[variant], variant, fault))
    best = found.candidates[0]
    assert (best.faults, best.layers) == ((fault,), layers)
    assert best.explains == best.of
    assert best.xfloor < 2


def test_a_fault_in_a_few_layers_is_named_with_those(models):
    best = whatif(models["dense"], wrong(models["dense"], "dense", "T03", layers=[1, 4])).candidates[0]
    assert (best.faults, best.layers, best.spares) == (("T03",), (1, 4), 4)
    assert "T03: V is not normalised, in layers 1, 4." in best.says


def test_the_answer_is_a_sentence_with_a_residual_and_a_fix(models):
    best = whatif(models["ple"], wrong(models["ple"], "ple", "T07")).candidates[0]
    assert best.says == (
        "T07: proportional rope rotated as a prefix, paired within it, in full layers. "
        f"Residual after applying it: {best.xfloor:.2g} x floor. Fix: pair lane i with i + H/2."
    )


@pytest.mark.parametrize("faults", [("T15-silu", "T07"), ("T03", "T04")])
def test_two_faults_are_named_as_a_pair(models, faults):
    best = whatif(models["dense"], wrong(models["dense"], "dense", *faults)).candidates[0]
    assert set(best.faults) == set(faults)
    assert best.explains == best.of
    assert len(best.layers) == 2


def test_two_faults_in_two_layers_are_told_apart(models):
    """Each is named with its own layer, though both could act in either, and in the same step."""
    model = models["dense"]
    for pair in (("T15-silu", "T04"), ("T15-silu", "T15-erf")):
        with perturbed(99), applied(model, pair[0], layers=[1]), applied(model, pair[1], layers=[4]):
            dump = modules_only(model.record(tiny.prompt(tiny.DENSE, TOKENS), ["*"]))
        best = whatif(model, dump).candidates[0]
        assert (best.faults, best.layers, best.breaks) == (pair, ((1,), (4,)), 0)
        assert ", in layer 1; and T" in best.says
        assert ", in layer 4. Residual after applying both" in best.says


def logits_alone(model, fault, layers):
    with perturbed(99), applied(model, fault, layers=layers):
        return model.record(tiny.prompt(tiny.DENSE, TOKENS), ["logits"])


@pytest.mark.parametrize("layers", [(2,), "full"])
def test_a_fault_in_one_layer_is_found_from_logits_alone(models, layers):
    model = models["dense"]
    best = whatif(model, logits_alone(model, "T03", layers)).candidates[0]
    assert (best.faults, best.layers) == (("T03",), layers)


def test_a_search_stops_when_its_time_is_over_and_says_what_was_not_tried(models, monkeypatch):
    dump = logits_alone(models["dense"], "T03", (2,))
    found = whatif(models["dense"], dump, budget=0.0)
    assert found.candidates == ()
    assert found.not_tried[-1] == "pairs of faults"
    assert found.not_tried[0].startswith("each of ")
    assert "Not tried, for want of time: each of " in render_whatif(found, 1000)
    assert "No known fault was found in the time there was" in found.verdict


def test_what_was_found_before_the_time_was_over_is_kept(models):
    """Time ends after the first fault that fits one of two local faults."""
    model, outcomes = models["dense"], []
    with perturbed(99), applied(model, "T15-silu", layers=[1]), applied(model, "T04", layers=[4]):
        subject = subject_of(model, modules_only(model.record(tiny.prompt(tiny.DENSE, TOKENS), ["*"])))
    found = locally(subject)

    def told(text):
        if outcomes:
            raise OutOfTime

    left_out = searched(Trial(subject, found.base, found.bad(), told), outcomes)
    assert [o.faults[0].id for o in outcomes] == ["T15-silu"]
    assert left_out[0].startswith("each of "), "there were others to try"


def test_a_fault_that_would_break_what_is_right_says_so(models):
    """T24-order bends q_norm and k_norm; here k_norm is right, and so is what is made of both."""
    model = models["dense"]
    dump = modules_only(model.record(tiny.prompt(tiny.DENSE, TOKENS), ["*"]))
    base = locally(subject_of(model, dump)).base
    bent = again(subject_of(model, dump), base, {2}, lambda: applied(model, "T24-order"))
    right = np.asarray(bent.truth["layers.2.self_attn.q_norm"], np.float32)
    edits = {"layers.2.self_attn.q_norm": lambda x: right}
    found = whatif(model, modules_only(model.record(dump.meta["ids"], ["*"], edits=edits)))
    whole = [c for c in found.candidates if c.faults == ("T24-order",)]
    assert whole[0].explains == whole[0].of
    assert whole[0].breaks > 0
    assert "that the dump has right would be wrong" in whole[0].says


def test_two_faults_in_one_step_are_named_though_neither_fits_alone(models):
    best = whatif(models["dense"], wrong(models["dense"], "dense", "T04", "T18")).candidates[0]
    assert set(best.faults) == {"T04", "T18"}


def test_the_outputs_of_layers_alone_are_enough(models):
    dump = wrong(models["ple"], "ple", "T15-silu")
    blocks = Dump(dump.meta, {n: x for n, x in dump.items() if n.endswith(".out")}, dump.axes)
    assert whatif(models["ple"], blocks).candidates[0].faults == ("T15-silu",)


def test_a_bfloat16_engine_is_understood_too(folders):
    model = numgemma.load(folders["moe"], "bfloat16")
    found = whatif(model, wrong(model, "moe", "M01"))
    assert found.replay.precision == "bfloat16"
    assert found.candidates[0].faults == ("M01",)


def test_damage_that_no_fault_makes_has_no_candidate(models):
    dump = wrong(models["dense"], "dense")
    x = np.array(dump["layers.2.mlp.down_proj"])
    x[:, 5:9] = x[:, 9:13]
    found = whatif(models["dense"], Dump(dump.meta, dump.arrays | {"layers.2.mlp.down_proj": x}, dump.axes))
    assert found.candidates == ()
    assert found.replay.first == "layers.2.mlp.down_proj"
    assert "No known fault, and no pair" in render_whatif(found)


def test_where_no_fault_fits_the_verdict_says_what_the_tensor_looks_like(models):
    dump = wrong(models["dense"], "dense")
    x = np.float32(1.05) * dump["layers.3.self_attn.q_norm"]
    found = whatif(models["dense"], Dump(dump.meta, dump.arrays | {"layers.3.self_attn.q_norm": x}, dump.axes))
    assert found.candidates == ()
    assert found.hints[0].kind == "scaled"
    assert "1.05" in found.verdict
    assert json.loads(json.dumps(found.to_json()))["hints"][0]["point"] == "layers.3.self_attn.q_norm"


def test_a_fault_of_a_tower_is_named(multimodal_folders):
    model = numgemma.load(multimodal_folders["e4b"])
    ids, arrays = tiny.multimodal_prompt("e4b")
    media = read_media(arrays)
    for fault in ("V05-whole", "A08-centred", "P04-id"):
        with perturbed(99), applied(model, fault):
            dump = modules_only(model.record(ids, ["*"], media=media))
        assert whatif(model, dump, media=media).candidates[0].faults == (fault,)


def test_a_right_run_leaves_nothing_to_explain(models):
    found = whatif(models["dense"], wrong(models["dense"], "dense"))
    assert found.candidates == ()
    assert found.verdict.startswith("Nothing to explain: no local fault")


def test_the_numbers_are_reproduced_by_the_layers_in_question_alone(models):
    """`again` on one layer gives that layer's numbers of the whole pass, and runs no other."""
    model = models["ple"]
    dump = wrong(model, "ple", "T12")
    subject = subject_of(model, dump)
    base = local(subject, runs=1)
    one = again(subject, base, {5})
    inside = [name for name in base.errors if name.startswith("layers.5.")]
    assert [name for name in one.errors if name.startswith("layers.")] == inside
    assert all(one.errors[name] == base.errors[name] for name in inside)
    fixed = again(subject, base, {5}, lambda: applied(model, "T12"))
    assert fixed.errors["layers.5.out"].rel < 1e-6 < base.errors["layers.5.out"].rel


def test_the_verb_names_the_fault_writes_json_and_exits_by_the_dump(tmp_path, capsys, models, folders):
    wrong(models["dense"], "dense", "T08").save(tmp_path / "wrong.safetensors")
    wrong(models["dense"], "dense").save(tmp_path / "right.safetensors")
    code = main(["whatif", str(folders["dense"]), str(tmp_path / "wrong.safetensors"), "--json", str(tmp_path / "w")])
    shown = capsys.readouterr().out
    assert code == 1
    assert shown.startswith("First local fault: layers.2.self_attn.{q_norm, k_norm, v_norm -> o_proj}")
    tree = json.loads((tmp_path / "w").read_text())
    assert tree["schema"] == "numgemma.whatif/1"
    best = tree["candidates"][0]
    assert (best["faults"], best["layers"]) == (["T08"], "full")
    assert best["says"] in " ".join(shown.split())
    assert 0 < best["xfloor"] < 2
    assert (
        main(["whatif", str(folders["dense"]), str(tmp_path / "right.safetensors"), "--json", str(tmp_path / "w")]) == 0
    )
    assert json.loads((tmp_path / "w").read_text())["candidates"] == []


def test_the_score_counts_what_it_says(monkeypatch):
    monkeypatch.setattr(mutation_score.tiny, "VARIANTS", {"dense": tiny.DENSE})
    monkeypatch.setattr(mutation_score.tiny, "MULTIMODAL", {})
    found = list(mutation_score.cases(["T15-erf", "T05-norm"]))
    seen = {(c.fault, c.variant, c.precision): (c.expected, c.localised, c.first) for c in found}
    assert seen["T15-erf", "dense", "float32"] == ("layers.0.mlp.down_proj", True, True)
    assert seen["T15-erf", "dense", "bfloat16"][0] is None  # 2e-4 hides under a bfloat16 floor
    assert seen["T05-norm", "dense", "bfloat16"] == ("layers.2.self_attn.v_norm", True, True)
    assert {c.table for c in found} == {""}  # other families have a table of their own faults
    text = mutation_score.page(found)
    assert "| T05-norm | V is copied from K after k_norm | 2 | 2 | 2 |  |  |" in text
    assert "- named first by `whatif`: 4 of 4 (100%)" in text


def test_the_score_plants_every_fault_that_only_one_family_has(tmp_path):
    """But those of a loop around passes, which no dump shows; and G01, whose weights are out of range."""
    planted = {title: set() for title in mutation_score.OWN}
    for content in mutation_score.contents(tmp_path):
        planted[content.table] |= {fault.id for fault in content.faults("float32")}
    for title, ids in mutation_score.OWN.items():
        loops = (drafts.in_the_loop, canvas.in_the_sampler)
        own = {f.id for f in CATALOGUE.values() if f.id.startswith(ids) and f.media not in loops and not f.later}
        assert planted[title] == own - {"G01"} or not title, title
        assert not {f.id for f in CATALOGUE.values() if f.media in loops or f.later} & planted[title]
