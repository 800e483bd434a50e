"""Seams: what is measured is what it says, and a stack leaves its parent's range where its layers were rejoined."""

import json

import numpy as np
import pytest
import tiny
import tiny3n
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stack import PLAIN, written

import numgemma
from numgemma.cli import main
from numgemma.errors import InputError
from numgemma.surgery import seam_fixes, seams, stack
from numgemma.surgery.lineage import Origin
from numgemma.surgery.loops import described, longest_loop, repeated_share, repetition
from numgemma.surgery.recipe import Recipe, Slice, of_one

PROMPTS = [tiny.prompt(tiny.PLE, 19, seed).tolist() for seed in range(4)]
SPANS = "0-3,2-7"
ORIGIN = [0, 1, 2, 3, 2, 3, 4, 5, 6, 7]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    base = tmp_path_factory.mktemp("seams")
    parent, other = written(base / "parent", PLAIN), written(base / "other", PLAIN, seed=1)
    (base / "parent" / "tokenizer.json").unlink()  # it is none
    stack.write(stack.plan(of_one(parent, ((0, 3), (2, 7)))), base / "child")
    return parent, other, str(base / "child")


def quiet(done):
    """Instead of the progress on a terminal."""


def compared(child, parents, how="auto", prompts=PROMPTS, precision="float32"):
    return seams.compare(child, seams.origins(child, parents, how), prompts, precision, quiet)


# what is measured


def specification(path, ids):
    """(rms, entropy, share) of every layer, from a whole recording, in loops."""
    model = numgemma.load(path)
    dump = model.record(ids, ["*"])
    rows = []
    for i in range(model.config.text.num_hidden_layers):
        point = {name: dump[f"layers.{i}.{name}"].astype(float) for name in ("out", "after_mlp", "self_attn.probs")}
        added = dump[f"layers.{i}.post_per_layer_input_norm"].astype(float)
        rows.append(
            (
                np.mean([np.sqrt(np.mean(x * x)) for x in point["out"]]),
                np.mean(
                    [-sum(p * np.log(p) for p in row if p > 0) for head in point["self_attn.probs"] for row in head]
                ),
                np.mean([np.sqrt(np.mean(x * x)) for x in added])
                / np.mean([np.sqrt(np.mean(x * x)) for x in point["after_mlp"]]),
            )
        )
    return np.array(rows), [dump[f"layers.{i}.out"].astype(float) for i in range(len(rows))]


def test_the_numbers_are_what_a_recording_says_in_loops(family):
    parent, _, child = family
    found = compared(child, [parent])
    rows = [(specification(child, ids), specification(parent, ids)) for ids in PROMPTS]
    for slot, j in zip(found.slots, ORIGIN, strict=True):
        assert (slot.parent, slot.layer) == (parent, j)
        mine = np.mean([own[slot.slot] for (own, _), _ in rows], axis=0)
        its = np.mean([theirs[j] for _, (theirs, _) in rows], axis=0)
        for k, name in enumerate(("rms", "entropy", "per_layer")):
            np.testing.assert_allclose(getattr(slot, name), (mine[k], its[k]), rtol=1e-5)
        angles = [
            np.mean([x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a[slot.slot], b[j], strict=True)])
            for (_, a), (_, b) in rows
        ]
        assert slot.cosine == pytest.approx(np.mean(angles), abs=1e-6)
        ratios = [own[slot.slot][0] / theirs[j][0] for (own, _), (theirs, _) in rows]
        assert slot.ratio == pytest.approx(np.exp(np.mean(np.log(ratios))), rel=1e-5)


def test_up_to_the_first_seam_a_stack_is_its_parent_and_behind_it_is_not(family):
    parent, _, child = family
    found = compared(child, [parent])
    for slot in found.slots[:4]:
        assert slot.ratio == pytest.approx(1, abs=1e-6)
        assert slot.cosine == pytest.approx(1, abs=1e-6)
        assert slot.outside == ()
    assert [slot.seam for slot in found.slots] == ["", "", "", "", "rewind", "", "", "", "", ""]
    assert max(slot.cosine for slot in found.slots[4:]) < 0.99
    assert found.leaves.slot >= 4


def test_a_copy_of_the_parent_has_no_seam(tmp_path, family):
    parent = family[0]
    stack.write(stack.plan(of_one(parent, ((0, 7),))), tmp_path / "same")
    found = compared(str(tmp_path / "same"), [parent])
    assert {slot.seam for slot in found.slots} == {""}
    assert found.leaves is None
    np.testing.assert_allclose([slot.cosine for slot in found.slots], 1, atol=1e-6)


def test_a_stream_that_is_scaled_leaves_by_its_size_and_not_by_its_direction(tmp_path, family):
    parent = family[0]
    tensors = {name: np.array(x) for name, x in numgemma.load(parent).weights.tensors.items()}
    tensors["layers.5.layer_scalar"] = tensors["layers.5.layer_scalar"] * np.float32(30).astype("bfloat16")
    child = str(tiny.write(tmp_path / "loud", PLAIN, tensors))
    found = compared(child, [parent])
    slot = found.slots[5]
    assert slot.ratio == pytest.approx(30, rel=1e-2)
    assert slot.cosine == pytest.approx(1, abs=1e-4)
    assert found.leaves == slot
    assert slot.outside == ("rms",)


def test_a_child_of_two_parents_is_compared_with_both(tmp_path, family):
    parent, other, _ = family
    recipe = Recipe((Slice(parent, 0, 3), Slice(other, 2, 5), Slice(parent, 5, 7)), parent)
    stack.write(stack.plan(recipe), tmp_path / "m")
    found = compared(str(tmp_path / "m"), [other, parent])
    assert [(slot.parent, slot.layer) for slot in found.slots] == [
        *((parent, j) for j in range(4)),
        *((other, j) for j in range(2, 6)),
        *((parent, j) for j in range(5, 8)),
    ]
    assert [slot.slot for slot in found.slots if slot.seam == "other parent"] == [4, 8]


def test_a_fresh_slot_is_compared_with_nothing(tmp_path, family):
    parent = family[0]
    tensors = {name: np.array(x) for name, x in numgemma.load(parent).weights.tensors.items()}
    new = tiny.random_tensors(PLAIN, seed=5)
    tensors |= {name: x for name, x in new.items() if name.startswith("layers.4.")}
    found = compared(str(tiny.write(tmp_path / "m", PLAIN, tensors)), [parent])
    assert (found.slots[4].seam, found.slots[4].layer, found.slots[4].cosine) == ("fresh", None, None)
    assert {slot.seam for slot in found.slots[:4] + found.slots[5:]} == {""}


@pytest.mark.parametrize("variant", ["dense", "moe"])
def test_a_model_without_per_layer_inputs_has_no_share_of_them(folders, variant):
    path = str(folders[variant])
    found = compared(path, [path])
    assert {slot.per_layer for slot in found.slots} == {None}
    assert found.leaves is None


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([0, 1, 2], ["", "", ""]),
        ([1, 2, 3], ["skip", "", ""]),
        ([0, 1, 1], ["", "", "rewind"]),
        ([0, 3, 2], ["", "skip", "rewind"]),
        ([0, None, 2], ["", "fresh", ""]),
    ],
)
def test_a_seam_is_named_by_how_a_slot_follows_the_one_before(layers, expected):
    map_ = [Origin(i, None if j is None else "p", j, "copy") for i, j in enumerate(layers)]
    assert [seams.seam(map_, i) for i in range(len(map_))] == expected


# the envelope


def lines_of(child, parent):
    """Lines as `seams.line` makes them, of one number per prompt; the other two agree."""
    return [np.array([c, 1.0, 1.0, p, 1.0, 1.0, 1.0]) for c, p in zip(child, parent, strict=True)]


def outside(child, parent):
    ranges = np.array([[p, 1.0, 1.0] for p in parent])
    return seams.beyond(lines_of(child, parent), ranges)[0]


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=6))
def test_a_child_that_does_as_its_parent_never_leaves_its_envelope(values):
    assert outside(values, values) == ()
    assert outside(values[::-1], values) == ()


def test_the_envelope_is_the_range_over_prompts_widened_by_its_width():
    parent = [1.0, 2.0, 1.5]
    assert outside([2.9, 2.9, 2.9], parent) == ()
    assert outside([3.1, 3.1, 3.1], parent) == ("rms",)
    assert outside([-0.1, -0.1, -0.1], parent) == ("rms",)
    assert outside([3.1, 1.0, 1.0], parent) == ()  # not on most prompts
    assert outside([3.1, 1.0, 3.1], parent) == ("rms",)


def test_one_prompt_has_no_envelope(family):
    parent, _, child = family
    found = compared(child, [parent], prompts=PROMPTS[:1])
    assert found.leaves is None


# the layer map


def test_a_map_by_lineage_by_hand_and_from_a_file_are_the_same(tmp_path, family):
    parent, other, child = family
    file = tmp_path / "map.json"
    assert main(["lineage", child, "--parents", other, parent, "--json", str(file)]) == 0
    maps = [seams.origins(child, [parent], "auto"), seams.origins(child, [parent], SPANS)]
    maps.append(seams.origins(child, [parent], str(file)))
    assert [[(o.parent, o.layer) for o in m] for m in maps] == [[(parent, j) for j in ORIGIN]] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "lineage --json`"), ('{"schema": "x"}', "not what"), ("", "lineage --json`"), (None, "No such file")],
)
def test_a_file_that_is_no_map_is_refused(tmp_path, family, text, message):
    path = tmp_path / "map.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        seams.origins(family[2], [family[0]], str(path))


def test_maps_that_do_not_fit_are_refused(tmp_path, family):
    parent, other, child = family
    for how, message in (("0-3", "layer map is of 4"), ("0-9", "has no layer 8"), ("0-3,2-5", "of 8")):
        with pytest.raises(InputError, match=message):
            compared(child, [parent], how)
    with pytest.raises(InputError, match="of which parent"):
        seams.origins(child, [parent, other], "0-9")
    with pytest.raises(InputError, match="from these parents"):
        compared(child, [other])
    wide = written(tmp_path / "wide", PLAIN | {"hidden_size": 64})
    with pytest.raises(InputError, match="64 wide"):
        seams.compare(child, [Origin(i, wide, 0, "copy") for i in range(10)], PROMPTS, "float32", quiet)


# the commands


def test_the_verb_prints_a_row_for_each_slot_and_a_verdict(tmp_path, monkeypatch, family, capsys):
    parent, _, child = family
    monkeypatch.setenv("COLUMNS", "60")
    out, picture = tmp_path / "s.json", tmp_path / "s.png"
    ids = [word for prompt in PROMPTS for word in ("--ids", ",".join(map(str, prompt)))]
    assert main(["seams", child, parent, *ids, "--json", str(out), "--plot", str(picture)]) == 0
    shown = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["schema"] == "numgemma.seams/1"
    assert report["prompts"] == 4
    assert f"First beyond its parent's range: slot {report['leaves']}" in shown
    rows = [line.split() for line in shown.splitlines()]
    (fifth,) = (row for row in rows if row[:3] == ["4", "P1", "2"])
    assert "rewind" in " ".join(fifth)
    assert float(fifth[3].rstrip("x")) == pytest.approx(report["slots"][4]["ratio"], rel=1e-2)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_texts_and_random_tokens_stand_in_where_no_prompt_is_given(tmp_path, family, capsys):
    stack.write(stack.plan(of_one("tiny", ((0, 3), (2, 5)))), tmp_path / "m")
    assert main(["seams", str(tmp_path / "m"), "tiny"]) == 0
    assert "slot 5, by" in capsys.readouterr().out
    assert main(["seams", family[2], family[0]]) == 0  # without a tokenizer


def test_diff_of_two_checkpoints_says_the_same(family, capsys):
    parent, _, child = family
    assert main(["seams", child, parent]) == 0
    expected = capsys.readouterr().out
    assert main(["diff", child, parent, "--layer-map", "auto"]) == 0
    assert capsys.readouterr().out == expected


def test_the_picture_draws_what_was_measured(family):
    from numgemma.surgery.pictures import layer_matrix, seam_picture

    parent, _, child = family
    found = compared(child, [parent])
    figure = seam_picture(found)
    assert len(figure.axes) == 4
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [slot.cosine for slot in found.slots])
    for ax in figure.axes:
        assert ax.get_xlabel()
        assert ax.get_ylabel()
    from numgemma.surgery.lineage import lineage

    (ax,) = layer_matrix(lineage(child, [parent])).axes
    assert list(zip(*ax.lines[0].get_data(), strict=True)) == list(enumerate(ORIGIN))


# repetition


def counted(ids, gram):
    """The share of runs that were there before, in a loop."""
    seen, repeats, total = set(), 0, 0
    for i in range(len(ids) - gram + 1):
        run = tuple(ids[i : i + gram])
        repeats, total = repeats + (run in seen), total + 1
        seen.add(run)
    return repeats / total if total else 0.0


def loops(ids):
    """The longest stretch that goes twice or more through the same tokens, trying them all: its length."""
    best = 0
    for start in range(len(ids)):
        for period in range(1, (len(ids) - start) // 2 + 1):
            stop = start + period
            while stop < len(ids) and ids[stop] == ids[stop - period]:
                stop += 1
            if stop - start >= 2 * period:
                best = max(best, stop - start)
    return best


@given(st.lists(st.integers(0, 3), max_size=24), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_repetition_is_what_a_loop_counts(ids, gram):
    x = np.array(ids, dtype=int)
    assert repeated_share(x, gram) == pytest.approx(counted(ids, gram))
    start, length, period = longest_loop(x)
    assert length == loops(ids)
    assert all(ids[i] == ids[i - period] for i in range(start + period, start + length))


def test_a_loop_is_said_in_words():
    r = repetition([9, 8, 7, *[1, 2, 3] * 4, 5])
    assert (r.start, r.length, r.period, r.times) == (3, 12, 3, 4)
    assert described(r).endswith("longest loop: 3 tokens 4.0 times, from token 3 of 16")
    assert "no loop in 3 tokens" in described(repetition([1, 2, 3]))


def test_generate_says_how_much_a_raw_stack_repeats_itself(tmp_path, capsys):
    stack.write(stack.plan(of_one("tiny", ((0, 1), (5, 5)))), tmp_path / "m")  # layers 2 to 4 left out
    words = ["--prompt", "Once upon", "--max-new-tokens", "60", "--ignore-eos", "--loops", "--print-ids"]
    shares = []
    for path in ("tiny", str(tmp_path / "m")):
        assert main(["generate", path, *words]) == 0
        *_, said, ids = capsys.readouterr().out.splitlines()
        found = repetition([int(i) for i in ids.split(",")])
        assert said == described(found)
        shares.append(found.share)
    assert shares[0] < 0.05
    assert shares[1] > 0.3


def test_the_streams_of_a_gemma_3n_are_compared_token_by_token(tmp_path):
    parent = str(tiny3n.write(tmp_path / "p", tiny3n.TEXT, tiny3n.random_tensors(tiny3n.TEXT, leftovers=True)))
    stack.write(stack.plan(of_one(parent, ((0, 4), (2, 7)))), tmp_path / "m")
    ids = tiny3n.prompt(9).tolist()
    found = compared(str(tmp_path / "m"), [parent], prompts=[ids])
    assert [slot.layer for slot in found.slots] == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7]
    mine, its = (numgemma.load(path).record(ids, ["layers.*.out"]) for path in (tmp_path / "m", parent))
    for slot in found.slots:
        a, b = mine[f"layers.{slot.slot}.out"].astype(float), its[f"layers.{slot.layer}.out"].astype(float)
        each = [x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a.reshape(-1, 48), b.reshape(-1, 48), strict=True)]
        assert slot.cosine == pytest.approx(np.mean(each), abs=1e-6)
    assert [slot.cosine == pytest.approx(1) for slot in found.slots] == [True] * 5 + [False] * 6


# fixes


def test_each_fix_does_to_a_run_what_its_name_says(family):
    parent, _, child = family
    map_ = seams.origins(child, [parent], "auto")
    model, ids = numgemma.load(child), [2, 9, 33, 5]
    ways = seam_fixes.fixes(map_)
    held = {name: dict(model.record(ids, edits=fix(model, {parent: numgemma.load(parent)}, ids)).items())
            for name, fix in ways.items()}  # fmt: skip
    raw, zeroed, moved, halved = held.values()
    assert not zeroed["per_layer_inputs"][:, 4:].any()
    np.testing.assert_array_equal(zeroed["per_layer_inputs"][:, :4], raw["per_layer_inputs"][:, :4])
    theirs = numgemma.load(parent).record(ids)["per_layer_inputs"]
    np.testing.assert_array_equal(moved["per_layer_inputs"][:, 9], theirs[:, 7])  # the last of ten, of eight
    np.testing.assert_array_equal(halved["layers.3.out"], raw["layers.3.out"])  # before the seam nothing changes
    assert rms(halved["layers.4.post_attention_layernorm"]) == pytest.approx(
        rms(raw["layers.4.post_attention_layernorm"]) / 2, rel=1e-5
    )


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def test_the_verb_ranks_slots_and_says_what_fixes_do(tmp_path, family, capsys):
    parent, _, child = family
    (tmp_path / "ids").write_text("")
    assert main(["seams", child, parent, "--fixes", "--plot", str(tmp_path / "s.png")]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("as it is", "per-layer inputs zeroed", "by destination", "writes halved"))
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_ranks_are_by_how_far_a_slot_is_beyond():
    far, near = (seams.Drift(i, "p", i, "", outside=("rms",), excess=x) for i, x in ((0, 9.0), (1, 2.0)))
    inside = seams.Drift(2, "p", 2, "")
    found = seams.Seams("c", ("p",), 2, (near, inside, far))
    assert seam_fixes.ranked(found) == [far, near]
    assert seam_fixes.verdict({"as it is": found, "a": found}).startswith("No fix")
    mended = seams.Seams("c", ("p",), 2, (inside,))
    assert "with: a" in seam_fixes.verdict({"as it is": found, "a": mended})


def test_a_file_of_prompts_is_read_a_line_at_a_time(tmp_path, capsys):
    (tmp_path / "p.txt").write_text("Once upon a time.\n\nTom liked the rain.\n")
    assert main(["seams", "tiny", "tiny", "--layer-map", "0-5", "--prompts", str(tmp_path / "p.txt")]) == 0
    assert "On 2 prompts no slot leaves" in capsys.readouterr().out
    (tmp_path / "empty").write_text("\n")
    assert main(["seams", "tiny", "tiny", "--layer-map", "0-5", "--prompts", str(tmp_path / "empty")]) == 2
    assert "holds no prompt" in capsys.readouterr().err
