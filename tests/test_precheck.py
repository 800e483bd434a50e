"""What is looked at before numbers are: tokens, model, inputs, precision; and when a comparison would mean nothing."""

import json

import ml_dtypes
import numpy as np
import pytest

from numgemma.cli import main
from numgemma.debug.compare.diff import diff
from numgemma.debug.compare.precheck import precheck, render
from numgemma.dump import Dump, new_meta

KINDS = ["sliding_attention", "full_attention"]
MODEL = {"config": "c", "shards": {"model.safetensors": "h"}, "samples": {"a": "0", "b": "1"}, "layer_kinds": KINDS}


def dump(ids=(2, 5, 6, 7), points=None, axes=None, **meta):
    about = (
        new_meta("numgemma", "0.1.0", MODEL, ids, "float32", text="some text") | {"cache": "none", "inputs": {}} | meta
    )
    x = np.random.default_rng(0).normal(size=(len(ids), 8)).astype(np.float32)
    points = {"embed_tokens": x} | (points or {})
    return Dump(about, points, {"embed_tokens": "T D"} | (axes or {}))


def finding(a, b, what):
    return next(f for f in precheck(a, b).findings if f.what == what)


def test_nothing_differs_between_a_dump_and_itself():
    found = precheck(dump(), dump())
    assert {f.state for f in found.findings} == {"same"}
    assert (found.comparable, found.exit_code, found.reason) == (True, 0, "")
    assert render(found).startswith("COMPARABLE: nothing differs.")


def test_which_backend_made_a_dump_is_said(models):
    from numgemma import ops

    runs = []
    for backend in ops.BACKENDS:
        with ops.using(backend, 1):
            runs.append(models["dense"].record([5, 6, 7], ["*.out"]))
    assert [run.meta["engine"]["backend"] for run in runs] == list(ops.BACKENDS)
    assert runs[0].meta["engine"]["threads"] == 1
    found = finding(*runs, "engine")
    assert (found.state, found.says) == ("same", "numgemma 0.1.0 numpy in A, numgemma 0.1.0 numba in B")
    assert "numba" in diff(*runs).engines[1]


FATAL = {
    "another token": (dump((2, 5, 9, 7)), "token ids", "position 2: 6 in A, 9 in B"),
    "a second bos": (dump((2, 2, 5, 6, 7)), "token ids", "B begins with a second 2"),
    "no bos": (dump((5, 6, 7)), "token ids", "A begins with one more token, 2"),
    "one token more": (dump((2, 5, 6, 7, 8)), "token ids", "B ends with one more token, 8"),
    "shifted positions": (dump(positions=[1, 2, 3, 4]), "positions", "B's are A's +1"),
    "another number of layers": (
        dump(model=MODEL | {"layer_kinds": KINDS * 2}),
        "configuration",
        "2 layers in A and 4 in B; give a --layer-map",
    ),
    "another layer pattern": (
        dump(model=MODEL | {"layer_kinds": KINDS[::-1]}),
        "configuration",
        "layer 0 is sliding attention in A and full attention in B",
    ),
    "no image": (dump(inputs={"pixel_values": "abc"}), "pixel_values", "only B has pixel_values"),
}


@pytest.mark.parametrize("case", FATAL)
def test_a_difference_that_makes_numbers_meaningless_is_told_and_exits_with_3(case):
    b, what, says = FATAL[case]
    found = precheck(dump(), b)
    assert says in found.reason
    assert (finding(dump(), b, what).state, found.exit_code) == ("differs", 3)
    compared = diff(dump(), b)
    assert (compared.verdict, compared.exit_code, compared.points) == ("not comparable", 3, [])
    assert says in compared.reason


HARMLESS = {
    "the text": (dump(text="some test"), "text", "character 7: 'xt' in A, 'st' in B"),
    "a config": (dump(model=MODEL | {"config": "other"}), "configuration", "configurations differ"),
    "a shard": (
        dump(model=MODEL | {"shards": {"model.safetensors": "k"}}),
        "weights",
        "model.safetensors is not the same file",
    ),
    "other shards": (dump(model=MODEL | {"shards": {"x": "k"}}), "weights", "only A has model.safetensors"),
    "other numbers": (
        dump(model=MODEL | {"samples": {"a": "0", "b": "2"}}),
        "weights",
        "1 of 2 hold other numbers, as b",
    ),
    "fidelity": (dump(fidelity="rounded:4dp"), "fidelity of B", "not exact (rounded:4dp)"),
    "the cache": (dump(cache="prefill 2"), "cache", "no cache in A, a cache prefill 2 in B"),
    "precision": (dump(precision="bfloat16"), "precision", "float32 in A, bfloat16 in B"),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_a_difference_that_leaves_numbers_their_meaning_is_told_in_words(case):
    b, what, says = HARMLESS[case]
    found = finding(dump(), b, what)
    assert (found.state, found.fatal) == ("differs", False)
    assert says in found.says
    assert precheck(dump(), b).exit_code == 0
    assert says in render(precheck(dump(), b))


@pytest.mark.parametrize("key", ["ids", "positions", "text", "cache", "model"])
def test_what_a_dump_does_not_say_is_unknown_and_no_difference(key):
    b = dump()
    del b.meta[key]
    found = precheck(dump(), b)
    assert found.comparable
    assert "unknown" in {f.state for f in found.findings}
    assert "differs" not in {f.state for f in found.findings}


def test_a_dump_without_ids_still_has_a_number_of_tokens():
    b = dump((2, 5, 6))
    del b.meta["ids"]
    found = precheck(dump(), b)
    assert "B has 3 tokens, the other side 4" in found.reason


def test_a_run_that_was_rounded_shows_it_in_its_bits():
    x = np.random.default_rng(1).normal(size=(4, 64)).astype(ml_dtypes.bfloat16).astype(np.float32)
    b = dump(points={"embed_tokens": x})
    says = finding(dump(), b, "precision of B").says
    assert says == "B says float32, but its values are rounded to bfloat16"
    assert says in diff(dump(), b).warnings


def test_layers_that_hold_the_last_token_alone_are_noticed():
    points = {f"layers.{i}.out": np.ones((1, 8), np.float32) for i in (15, 34)}
    b = dump(points=points, axes=dict.fromkeys(points, "T D"))
    says = finding(dump(), b, "tokens of B").says
    assert "1 of 4 tokens in layers 15 to 34" in says
    assert "logits_to_keep is 0" in says


def pixels(change=0.0, shape=(9, 12)):
    x = np.random.default_rng(2).uniform(size=shape).astype(np.float32)
    return dump(points={"pixel_values": x + np.float32(change)}, axes={"pixel_values": "I D"})


def test_pixels_of_another_preprocessing_are_not_comparable_and_rounded_ones_are():
    assert finding(pixels(), pixels(), "pixel_values").state == "same"
    close = finding(pixels(), pixels(1e-4), "pixel_values")
    assert (close.state, close.fatal) == ("differs", False)
    for other in (pixels(0.5), pixels(shape=(6, 12))):
        assert precheck(pixels(), other).exit_code == 3
        assert "pixel_values" in precheck(pixels(), other).reason
    assert precheck(pixels(), dump()).comparable


def test_the_verb_prints_writes_and_exits(tmp_path, capsys):
    paths = []
    for name, d in (("a", dump()), ("b", dump((2, 2, 5, 6, 7))), ("c", dump(precision="bfloat16"))):
        paths.append(str(tmp_path / f"{name}.safetensors"))
        d.save(paths[-1])
    a, b, c = paths
    assert main(["precheck", a, c, "--json", str(tmp_path / "c.json")]) == 0
    assert "x precision" in capsys.readouterr().out
    assert main(["precheck", a, b, "--json", str(tmp_path / "b.json")]) == 3
    assert capsys.readouterr().out.startswith("NOT COMPARABLE: the token ids first differ at position 1")
    trees = [json.loads((tmp_path / f"{name}.json").read_text()) for name in "bc"]
    assert [t["verdict"] for t in trees] == ["not comparable", "comparable"]
    assert all(t["schema"] == "numgemma.precheck/1" for t in trees)
    assert {"what", "state", "says", "fatal"} == set(trees[0]["findings"][0])


def test_where_neither_side_says_anything_the_headline_is_unknown():
    silent = Dump({"precision": "float32"}, {"norm": np.ones((3, 4), np.float32)}, {"norm": "T D"})
    assert render(precheck(silent, silent)).startswith("UNKNOWN, for want of token ids, configuration and weights: ")


def test_one_token_more_or_less_than_the_other_side_is_a_matter_of_the_bos():
    told = Dump({"ids": [2, 5, 9]}, {}, {})
    for rows, says in ((4, "a second <bos>"), (2, "no <bos>")):
        silent = Dump({}, {"norm": np.ones((rows, 4), np.float32)}, {"norm": "T D"})
        assert precheck(told, silent).reason.endswith(f"perhaps B has {says}")


# -- what entered the model


def of_inputs(**arrays):
    return Dump({"ids": [1, 2]}, arrays, {})


PICTURE = np.random.default_rng(0).random((27, 768)).astype(np.float32)
FRAMES = np.log(np.random.default_rng(1).random((42, 128)) * np.linspace(0.1, 9, 42)[:, None] + 1e-3).astype(np.float32)
FRONT_ENDS = {
    "BGR in the place of RGB": ("pixel_values", lambda x: x.reshape(27, -1, 3)[..., ::-1].reshape(x.shape)),
    "colour by colour": ("pixel_values", lambda x: x.reshape(27, -1, 3).swapaxes(1, 2).reshape(x.shape)),
    "2 x - 1": ("pixel_values", lambda x: 2 * x - 1),
    "not divided by 255": ("pixel_values", lambda x: 255 * x),
    "each colour has a mean": (
        "pixel_values",
        lambda x: ((x.reshape(27, -1, 3) - [0.48, 0.46, 0.41]) / [0.27, 0.26, 0.28]).reshape(x.shape),
    ),
    "18 patches, 27 are due, 2 soft tokens and not 3": ("pixel_values", lambda x: x[:18]),
    "base 10": ("input_features", lambda x: x / np.log(10)),
    "of the power, where those of the magnitude": ("input_features", lambda x: 2 * x),
    "come 1 too late": ("input_features", lambda x: np.concatenate([x[:1], x[:-1]])),
    "another bank of mel filters": ("input_features", lambda x: (np.roll(x, 3, 1) + x[:, ::-1]) / 2),
    "40 frames, 42 are due": ("input_features", lambda x: x[:40]),
}


@pytest.mark.parametrize("says", FRONT_ENDS)
def test_another_front_end_is_named_by_its_arrays(says):
    name, change = FRONT_ENDS[says]
    x = PICTURE if name == "pixel_values" else FRAMES
    found = precheck(of_inputs(**{name: x}), of_inputs(**{name: change(x).astype(np.float32)}))
    assert says in found.reason


@pytest.mark.parametrize("filter", ["BILINEAR", "LANCZOS", "NEAREST"])
def test_another_resize_filter_is_named(filter):
    from PIL import Image

    rng = np.random.default_rng(2)
    smooth = Image.fromarray((255 * rng.random((40, 40, 3))).astype(np.uint8)).resize(
        (300, 300), Image.Resampling.BICUBIC
    )

    def patches(how):
        pixels = np.asarray(smooth.resize((96, 96), how), np.float32) / 255
        return pixels.reshape(6, 16, 6, 16, 3).swapaxes(1, 2).reshape(36, 768)

    a, b = patches(Image.Resampling.BICUBIC), patches(Image.Resampling[filter])
    assert "resized by another filter" in precheck(of_inputs(pixel_values=a), of_inputs(pixel_values=b)).reason


def test_arrays_that_are_nothing_known_are_not_explained():
    rng = np.random.default_rng(3)
    for name, x in (("pixel_values", PICTURE), ("input_features", FRAMES)):
        other = rng.standard_normal(x.shape).astype(np.float32)
        assert precheck(of_inputs(**{name: x}), of_inputs(**{name: other})).reason.endswith("the preprocessing differs")


def test_the_headline_follows_what_differs():
    a, b = (
        Dump({"ids": [1], "model": {"config": "c", "shards": {"s": "1"}}, "inputs": {"input_features": h}})
        for h in "xy"
    )
    assert render(precheck(a, b)).startswith("COMPARABLE, but 1 of ")
    assert "(input_features)" in render(precheck(a, b)).splitlines()[0]


def test_weights_that_an_engine_holds_in_another_form_are_unknown_and_the_rest_is_compared():
    """Also where the file is not said: capture of a live model knows what it held, and of no file."""
    live = {"layer_kinds": KINDS, "samples": {"a": "0", "b": None, "of a tower": "9"}}
    found = finding(dump(), dump(model=live), "weights")
    assert found.state == "unknown"
    assert found.says.startswith("1 of 2 weights hold the same numbers")
    assert "1 cannot be compared, as b" in found.says
    edited = finding(dump(), dump(model=live | {"samples": {"a": "7", "b": None}}), "weights")
    assert (edited.state, edited.fatal) == ("differs", False)
    assert "1 of 2 hold other numbers, as a" in edited.says
    assert finding(dump(), dump(model=live | {"samples": {}}), "weights").state == "unknown"
