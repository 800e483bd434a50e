"""One command from a suspicion to an answer: each verdict, its cause, its command, its time, its page."""

import json

import numpy as np
import pytest
import tiny
from wrong_caches import cache_of_another

import numgemma
from numgemma.cli import main
from numgemma.debug.blame.doctor import doctor
from numgemma.debug.faults import applied
from numgemma.dump import Dump

IDS = [5, 9, 17, 42, 3, 101, 77, 8, 30, 11]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return numgemma.load(tiny.write(tmp_path_factory.mktemp("doctor") / "m", tiny.TEXT))


@pytest.fixture(scope="module")
def broken(model):
    with applied(model, "T15-silu"):
        return model.record(IDS)


def with_ids(dump, ids):
    return Dump(dump.meta | {"ids": ids}, dict(dump.arrays), dump.axes)


def test_a_right_run_is_noise(model):
    told = []
    found = doctor(model, model.record(IDS), say=lambda step, says: told.append(step))
    assert (found.kind, found.exit_code) == ("noise", 0)
    assert told == ["our own run", "precheck", "floor", "diff"]
    assert "agree at 128 points, but for rounding" in found.says


def test_a_broken_engine_is_told_where_why_and_how_sure(model, broken):
    found = doctor(model, broken)
    assert (found.kind, found.exit_code) == ("engine", 1)
    assert found.says.startswith("The engine computes layers.0.mlp.down_proj wrongly")
    assert "numgemma/layers/feedforward.py, line " in found.says
    assert found.cause.startswith("T15-silu: ")
    assert found.confidence.startswith("high: ")
    assert found.command == "whatif @"
    assert [step.step for step in found.steps][-3:] == ["diff", "replay", "whatif"]


def test_other_tokens_are_named_by_their_embeddings(model):
    other = [*IDS[:3], 43, *IDS[4:]]
    found = doctor(model, with_ids(model.record(other), IDS))
    assert (found.kind, found.exit_code) == ("dump", 3)
    assert "at position 3 it ran token 43, not 42 (1 token of 10)" in found.says


def test_ids_that_a_dump_admits_to_be_others_are_told_before_any_number(model):
    found = doctor(model, model.record(IDS[1:]), ids=IDS)
    assert (found.kind, len(found.steps)) == ("dump", 2)
    assert "the token ids first differ at position 0" in found.says


def test_other_weights_are_no_fault_of_a_line(model, tmp_path):
    other = numgemma.load(tiny.write(tmp_path / "m", tiny.TEXT, tiny.random_tensors(tiny.TEXT, seed=1)))
    shared = dict(other.record(IDS).arrays) | {"embed_tokens": model.record(IDS)["embed_tokens"]}
    found = doctor(model, Dump({"ids": IDS, "precision": "float32"}, shared, other.record(IDS).axes))
    assert found.kind == "dump"
    assert "steps are wrong by themselves, so it ran other weights, or another config" in found.says


def test_an_unknown_fault_is_placed_and_not_named(model):
    bent = model.record(IDS, edits={"layers.3.mlp.up_proj": lambda x: x[:, ::-1].copy()})
    found = doctor(model, bent)
    assert found.says.startswith("The engine computes layers.3.mlp.up_proj wrongly")
    assert (found.cause, found.command) == ("", "replay @ --points layers.3.mlp.up_proj --all")
    assert "the cause is none of the known ones" in found.confidence


@pytest.mark.parametrize(("budget", "left"), [(0.0, "our own run"), (1e9, None)])
def test_a_budget_bounds_the_whole_and_says_what_was_not_tried(model, broken, budget, left):
    found = doctor(model, broken, budget=budget)
    assert found.left_out == ((left,) if left else ())


def test_time_that_ends_in_the_search_leaves_the_place(model, broken, monkeypatch):
    from numgemma.debug.blame import doctor as room

    def slow(*args, told, **more):
        raise room.OutOfTime

    monkeypatch.setattr(room, "whatif", slow)
    found = doctor(model, broken)
    assert (found.kind, found.left_out, found.confidence) == ("engine", ("whatif",), "the cause was not looked for")


def test_the_verb_prints_a_line_a_step_and_writes_one_page(model, broken, tmp_path, capsys):
    broken.save(tmp_path / "port.safetensors")
    page, data = tmp_path / "r.html", tmp_path / "r.json"
    folder = str(model.checkpoint.folder)
    words = ["doctor", folder, str(tmp_path / "port.safetensors"), "--html", str(page), "--json", str(data)]
    assert main(words) == 1
    said = capsys.readouterr().out
    for start in (
        "our own run:",
        "precheck:",
        "floor:",
        "diff:",
        "replay:",
        "whatif:",
        "Cause: T15-silu",
        "Confidence: h",
    ):
        assert f"\n{start}" in f"\n{said}", start
    assert f"It shows in: numgemma whatif {folder}"[:40] in said
    head = page.read_text().partition("</header>")[0]
    assert "<b>Cause:</b> T15-silu" in head
    assert json.loads(data.read_text())["kind"] == "engine"
    assert main(["doctor", folder]) == 2
    assert "Give a DUMP, or --against hf" in capsys.readouterr().err


def test_outputs_of_layers_under_other_names_are_enough(model, tmp_path, capsys):
    """A plain .npz of hooks, bfloat16 aside: no ids in it, Transformers' names."""
    with applied(model, "T15-silu"):
        dump = model.record(IDS, ("*.mlp.*", "layers.*.out"))
    np.savez(tmp_path / "h.npz", **{f"model.{name.removesuffix('.out')}": x[None] for name, x in dump.items()})
    ids = ",".join(map(str, IDS))
    assert main(["doctor", str(model.checkpoint.folder), str(tmp_path / "h.npz"), "--ids", ids]) == 1
    assert "Cause: T15-silu" in capsys.readouterr().out


def test_rows_of_another_sequence_are_the_cause_where_its_ids_are_given(model, tmp_path, capsys):
    ids, other = (tiny.prompt(tiny.TEXT, tokens, seed).tolist() for tokens, seed in ((16, 0), (14, 3)))
    cache_of_another(model, ids, other).save(tmp_path / "port.safetensors")
    words = ["doctor", str(model.checkpoint.folder), str(tmp_path / "port.safetensors")]
    assert main([*words, "--other", ",".join(map(str, other))]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "Cause: C04: a later pass reads another sequence's rows of the earlier tokens" in said
    assert "Confidence: high: " in said
    assert f"--other {other[0]},{other[1]}," in said.partition("It shows in: ")[2]
    assert main([*words, "--other", ",".join(map(str, ids[:5]))]) == 2
    assert "the beginning of the dump's own" in capsys.readouterr().err
