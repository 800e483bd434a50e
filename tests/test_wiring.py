"""A step that is right of other inputs than its own says which; one that is wrong in itself, or right, says nothing."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import tiny

from numgemma import ops
from numgemma.debug.blame.replay import locally, replay, subject_of, wired
from numgemma.debug.blame.whatif import whatif
from numgemma.debug.blame.words import render
from numgemma.debug.compare.result import FAULT
from numgemma.debug.faults import Rewired, applied, swapped
from numgemma.dump import Dump
from numgemma.graph import graph_of, learned

TOKENS = 14


def mlp_of_attentions_input(original, w, tap):
    def read(name):
        return lambda y, seen: ops.linear(seen["input_layernorm"], w[f"mlp.{name}.weight"])

    return original(tap=Rewired(tap, {f"mlp.{name}": read(name) for name in ("gate_proj", "up_proj")}))


def no_residual(original, tap):
    return original(tap=Rewired(tap, {"after_attention": lambda y, seen: seen["post_attention_layernorm"]}))


def per_layer_inputs_one_too_early(original, tokens):
    return original(tokens=replace(tokens, ple=tokens.ple[:, [0, *range(tokens.ple.shape[1] - 1)]]))


def mlp_as_usual_and_a_bit_more(original, tap):
    return original(tap=Rewired(tap, {"mlp.down_proj": lambda y, seen: y * y.dtype.type(1.05)}))


@contextmanager
def another(path, change, model):
    with swapped(path, change, model.family):
        yield


def run(model, variant, acting):
    """What the local errors and the wrong arrows of a dump with that fault say."""
    with acting:
        dump = model.record(tiny.prompt(tiny.VARIANTS[variant], TOKENS))
    subject = subject_of(model, dump)
    return dump, wired(subject, locally(subject))


WIRINGS = [  # variant, a fault of the catalogue or (what it swaps, the change), what the first step says
    ("moe", "M01", "reads layers.0.pre_feedforward_layernorm_2 where layers.0.after_attention is due"),
    ("dense", "T05-norm", "reads layers.2.self_attn.k_norm where layers.2.self_attn.k_proj is due"),
    (
        "ple",
        "K01",
        "reads {0}.k_rope, {0}.v_norm where {1}.k_rope, {1}.v_norm are due".format(
            "layers.1.self_attn", "layers.3.self_attn"
        ),
    ),
    (
        "dense",
        ("block", mlp_of_attentions_input),
        "reads layers.0.input_layernorm where layers.0.pre_feedforward_layernorm is due",
    ),
    (
        "ple",
        ("families.gemma4.gemma4.layers", per_layer_inputs_one_too_early),
        "reads layer 1 where layer 2 of per_layer_inputs is due",
    ),
    ("ple", ("block", no_residual), "does not read embed_tokens"),
]


@pytest.mark.parametrize(("variant", "what", "says"), WIRINGS, ids=[str(i) for i in range(len(WIRINGS))])
def test_a_wrong_arrow_is_named(models, variant, what, says):
    model = models[variant]
    acting = applied(model, what) if isinstance(what, str) else another(*what, model)
    _, found = run(model, variant, acting)
    steps = [step for step in found.points if step.edge]
    assert says in [str(step.edge) for step in steps]
    first = next(step for step in found.points if step.state == FAULT)
    assert first.edge
    assert str(first.edge) in found.verdict
    assert str(first.edge) in first.reason


def test_a_fault_of_the_step_itself_and_a_right_run_name_no_arrow(models):
    model = models["dense"]
    _, found = run(model, "dense", another("block", mlp_as_usual_and_a_bit_more, model))
    assert found.first == "layers.0.mlp.down_proj"
    assert not any(step.edge or step.reason for step in found.points)
    _, found = run(model, "dense", another("block", lambda original: original(), model))
    assert found.first is None
    assert not any(step.edge for step in found.points)


def test_replay_prints_the_arrow_and_whatif_says_it_where_no_known_fault_fits(models, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path))
    model = models["dense"]
    dump, _ = run(model, "dense", another("block", mlp_of_attentions_input, model))
    found = replay(model, dump)
    says = "reads layers.0.input_layernorm where layers.0.pre_feedforward_layernorm is due"
    assert says in render(found, width=1000)
    first = next(step for step in found.to_json()["points"] if step["name"] == found.first)
    assert first["edge"] == {"due": "layers.0.pre_feedforward_layernorm", "read": "layers.0.input_layernorm"}
    named = whatif(model, dump)
    assert named.candidates == ()
    assert says in named.verdict


def test_only_what_came_before_the_step_can_have_been_read(models):
    model = models["dense"]
    dump = model.record(tiny.prompt(tiny.DENSE, TOKENS))
    later = {"layers.0.mlp.gate_proj": np.asarray(dump["layers.0.mlp.gate_proj"]) * 2}
    found = wired(subject_of(model, wrong := Dump(dump.meta, dump.arrays | later, dump.axes)), locally_of(model, wrong))
    assert found.first == "layers.0.mlp.gate_proj"
    assert not any(step.edge for step in found.points if step.name == found.first)


def test_a_choice_of_experts_is_too_little_to_tell_an_arrow_by(models):
    model = models["moe"]
    dump = model.record(tiny.prompt(tiny.MOE, TOKENS))
    ids = np.array(dump["layers.3.router.ids"])
    ids[4, -1] = next(e for e in np.argsort(dump["layers.3.router.probs"][4]) if e not in ids[4])
    wrong = Dump(dump.meta, dump.arrays | {"layers.3.router.ids": ids}, dump.axes)
    found = wired(subject_of(model, wrong), locally_of(model, wrong))
    assert found.first == "layers.3.router.ids"
    assert not any(step.edge for step in found.points if step.name == found.first)


def locally_of(model, dump):
    return locally(subject_of(model, dump))


def test_a_graph_that_is_first_asked_for_while_a_fault_acts_is_that_of_the_source(models):
    model = models["dense"]
    raw = model.checkpoint.config
    truth = graph_of(raw)
    learned.cache_clear()
    with another("block", no_residual, model), applied(model, "T05-norm"):
        assert dict(graph_of(raw).points) == dict(truth.points)
        bad = model.record(tiny.prompt(tiny.DENSE, TOKENS))  # and the faults act again
    assert np.array_equal(bad["layers.1.after_attention"], bad["layers.1.post_attention_layernorm"])
    right = model.record(tiny.prompt(tiny.DENSE, TOKENS))
    assert not np.array_equal(right["layers.1.after_attention"], right["layers.1.post_attention_layernorm"])
    assert dict(graph_of(raw).points) == dict(truth.points)
