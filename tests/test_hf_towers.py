"""Live against Transformers: both towers and the merged prompt, every module, several contents, both precisions."""

import numpy as np
import pytest
import tiny
from closeness import relative

import numgemma
from numgemma.debug.compare.diff import diff
from numgemma.dump import Dump
from numgemma.prompt.media import Media, read_media

pytestmark = pytest.mark.hf
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from numgemma.debug.capture import hooks as capture  # noqa: E402

REAL_REACH = {"attention_chunk_size": 12, "attention_context_left": 13, "attention_logit_cap": 50.0}

# model, changes to its config, content of the prompt
CASES = {
    "e4b": ("e4b", {}, tiny.CONTENT["e4b"]),
    "26b, two images of different size": ("26b", {}, tiny.CONTENT["26b"]),
    "31b, image and video": ("31b", {}, tiny.CONTENT["31b"]),
    "e4b, video and two clips": ("e4b", {}, {"videos": [[(3, 3)] * 2, [(6, 3)]], "clips": [13, 6]}),
    "e4b, sound alone, released reach": ("e4b", {"audio_config": tiny.AUDIO | REAL_REACH}, {"clips": [150]}),
    "26b, one image": ("26b", {}, {"images": [(12, 9)]}),
    "e4b, four images": ("e4b", {}, {"images": [(3, 3), (9, 3), (3, 9), (6, 6)]}),
    "26b, plain causal": ("26b", {"text_config": tiny.MOE}, tiny.CONTENT["26b"]),
}


def prepared(folder, case, dtype="float32", **choices):
    """A model, ids and media of one case."""
    name, changes, content = CASES[case]
    raw = tiny.MULTIMODAL[name] | changes
    ids, arrays = tiny.multimodal_prompt(name, content, **choices)
    return numgemma.load(tiny.write(folder / "ckpt", raw), dtype), ids, read_media(arrays)


def both(model, ids, inputs, points=("*",)):
    """The captured run and ours."""
    theirs = Dump(capture.describe(model, ids, str(model.dtype), points))
    capture.capture(model, ids, theirs, str(model.dtype), points, inputs)
    return theirs, model.record(ids, points, media=inputs)


def modules_with_an_output(folder):
    """Every module of both towers that Transformers builds and that has no parts, by the name of our point."""
    hf = capture.load_hf(folder, torch.float32)
    names = [name.removeprefix("model.") for name, module in hf.named_modules() if not any(module.children())]
    towers = [name for name in names if name.startswith(("vision_tower", "audio_tower", "embed_vision", "embed_audio"))]
    return {name.removesuffix(".linear") for name in towers if not name.endswith((".act_fn", ".act", "rotary_emb"))}


def assert_same(theirs, ours):
    """The same points, and each within 2e-5, its worst token within 1e-4 and its worst channel within 1e-2."""
    assert set(theirs) == set(ours)
    assert theirs.axes == ours.axes
    found = diff(theirs, ours)
    assert found.verdict == "same", [(p.name, p.rel, p.worst_token, p.worst_channel) for p in found.points if p.reason]


@pytest.mark.parametrize("case", CASES)
def test_every_point_equals_transformers(tmp_path, case):
    assert_same(*both(*prepared(tmp_path, case)))


@pytest.mark.parametrize("case", ["e4b", "26b, one image"])
def test_every_module_of_both_towers_has_its_point(tmp_path, case):
    model, ids, inputs = prepared(tmp_path, case)
    modules = modules_with_an_output(model.checkpoint.folder)
    assert modules
    assert modules <= set(model.record(ids, media=inputs))


@pytest.mark.parametrize("case", CASES)
def test_greedy_ids_equal_those_of_transformers(tmp_path, case):
    model, ids, inputs = prepared(tmp_path, case)
    hf = capture.load_hf(model.checkpoint.folder, torch.float32)
    given = capture.hf_inputs(ids, inputs, model.family.placeholders(model.config))
    given = {name: torch.tensor(x) for name, x in given.items()}
    with torch.no_grad():
        out = hf.generate(**given, max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert model.generate(ids, 20, ignore_eos=True, media=inputs) == out[0, len(ids) :].tolist()


@pytest.mark.parametrize("case", ["e4b", "26b, two images of different size", "31b, image and video"])
def test_bfloat16_towers_round_where_transformers_rounds(tmp_path, case):
    """Up to a few numbers that lie on the edge between two, and what these do to later layers."""
    theirs, ours = both(*prepared(tmp_path, case, "bfloat16"))
    assert {name: x.dtype for name, x in theirs.items()} == {name: x.dtype for name, x in ours.items()}
    towers = [name for name in ours if name.partition(".")[0].rstrip("@012") in ("vision_tower", "audio_tower")]
    off = {name: relative(theirs[name], ours[name]) for name in towers}
    assert np.median(list(off.values())) < 1e-3
    assert max(off.values()) < 0.02
    assert relative(theirs["inputs_embeds"], ours["inputs_embeds"]) < 0.01  # later, routing may flip


@pytest.mark.parametrize("case", ["26b, two images of different size", "e4b, video and two clips"])
def test_our_unpadded_runs_equal_transformers_batch_however_it_is_padded(tmp_path, monkeypatch, case):
    model, ids, inputs = prepared(tmp_path, case)
    ours = model.logits(ids, inputs)
    for padding in (0, 18, 117):
        for make in ("pictures", "sounds"):
            monkeypatch.setattr(getattr(tiny, make), "__defaults__", (padding,))
        _, arrays = tiny.multimodal_prompt(CASES[case][0], CASES[case][2])
        theirs = Dump(capture.describe(model, ids, points=["logits"]))
        capture.capture(model, ids, theirs, points=["logits"], media=read_media(arrays))
        assert relative(theirs["logits"], ours) < 2e-5


@pytest.mark.parametrize("padding", [0, 1, 2, 3, 30])
def test_sounds_of_every_length_equal_transformers_at_the_border_to_their_padding(tmp_path, padding):
    """Where the convolutions of step 2 end between real and padded frames."""
    model = numgemma.load(tiny.write(tmp_path / "ckpt", tiny.E4B))
    features, mask = tiny.sounds(lengths := range(1, 18), np.random.default_rng(padding), padding)
    ids = np.array([2, *[tiny.IDS["audio"]] * sum(-(-n // 4) for n in lengths), 7])
    theirs, ours = both(model, ids, Media(input_features=features, input_features_mask=mask), ["audio*"])
    assert set(theirs) == set(ours)
    assert max(relative(theirs[name], ours[name]) for name in ours) < 1e-4


def test_type_ids_that_were_given_make_the_blocks_for_both(tmp_path):
    """BOI and EOI counted in, as no processor does: both follow."""
    model, ids, inputs = prepared(tmp_path, "26b, one image")
    types = np.isin(ids, [tiny.IDS[kind] for kind in ("boi", "image", "eoi")]).astype(int)
    told = Media(**vars(inputs) | {"mm_token_type_ids": types})
    theirs, ours = both(model, ids, told)
    assert_same(theirs, ours)
    assert relative(ours["logits"], model.logits(ids, inputs)) > 1e-3
