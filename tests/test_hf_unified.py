"""Live against Transformers: 12B, every module, several contents, both image masks, both precisions."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from closeness import relative, worst_token

import numgemma
from numgemma import ops
from numgemma.dump import Dump
from numgemma.generate import Memory
from numgemma.prompt.media import NO_MEDIA, read_media
from numgemma.surgery.synth import synth

pytestmark = pytest.mark.hf
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from numgemma.debug.capture import hooks as capture  # noqa: E402

CASES = tiny.UNIFIED_CONTENT
MASKS = ("intended", "transformers")
HOSTILE = Path(__file__).parent / "hostile"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("unified") / "ckpt", tiny.UNIFIED)


def prepared(folder, case, dtype="float32", mask="transformers"):
    """A model, ids and media of one case."""
    ids, arrays = tiny.unified_prompt(CASES[case])
    assert len(ids) > tiny.UNIFIED_TEXT["sliding_window"]
    return numgemma.load(folder, dtype, mask), ids, read_media(arrays) if arrays else NO_MEDIA


def captured(model, ids, media, dtype, mask):
    theirs = Dump(capture.describe(model, ids, dtype, ["*"], media=media))
    capture.capture(model, ids, theirs, dtype, ["*"], media, mask)
    return theirs


def assert_as_close_as_transformers_is_to_itself(theirs, ours, exact):
    """Every point within 2e-5, its worst token within 1e-4, wherever float32 in Transformers is that near float64."""
    assert set(theirs) == set(ours)
    assert theirs.axes == ours.axes
    judged = 0
    for name in theirs:
        allowed = relative(exact[name], theirs[name]) <= 2e-5 and worst_token(exact[name], theirs[name]) <= 1e-4
        judged += allowed
        if allowed:
            assert relative(theirs[name], ours[name]) <= 2e-5, name
            assert worst_token(theirs[name], ours[name]) <= 1e-4, name
    assert judged >= 0.99 * len(theirs)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ops.BACKENDS)
def test_every_point_equals_transformers(folder, case, mask, backend):
    if backend == "numba":
        pytest.importorskip("numba")
    if case == "text" and mask == "intended":
        pytest.skip("a text has one mask")
    model, ids, media = prepared(folder, case, mask=mask)
    theirs, exact = (captured(model, ids, media, dtype, mask) for dtype in ("float32", "float64"))
    with ops.using(backend):
        ours = model.record(ids, ["*"], media=media)
    assert_as_close_as_transformers_is_to_itself(theirs, ours, exact)


@pytest.mark.parametrize("case", CASES)
def test_greedy_ids_equal_those_of_transformers(folder, case):
    """Whose `generate`, with the cache it takes of itself, runs its own mask; and in parts that cut no picture."""
    model, ids, media = prepared(folder, case)
    hf = capture.load_hf(folder, torch.float32)
    given = capture.hf_inputs(ids, media, model.family.placeholders(model.config))
    with torch.no_grad():
        out = hf.generate(
            **{name: torch.tensor(x) for name, x in given.items()},
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
        )
    theirs = out[0, len(ids) :].tolist()
    assert model.generate(ids, 20, ignore_eos=True, media=media) == theirs
    assert model.generate(ids, 20, ignore_eos=True, media=media, memory=Memory(chunk=4)) == theirs


@pytest.mark.parametrize("scale", ["tiny", "pilot"])
def test_a_synthetic_12b_loads_in_transformers_and_computes_the_same(tmp_path, scale):
    synth("gemma-4-12B-it", tmp_path / "ckpt", scale)
    model = numgemma.load(tmp_path / "ckpt", image_mask="transformers")
    ids, media = model.prompt_ids(
        "<bos>Look: <|image|> and hear <|audio|>",
        {"image": HOSTILE / "picture_rgb.png", "audio": HOSTILE / "sound_16k.wav"},
    )
    theirs, exact = (captured(model, ids, media, dtype, "transformers") for dtype in ("float32", "float64"))
    assert_as_close_as_transformers_is_to_itself(theirs, model.record(ids, ["*"], media=media), exact)


def test_every_module_has_its_point(folder):
    model, ids, media = prepared(folder, "all")
    hf = capture.load_hf(folder, torch.float32)
    names = [name.removeprefix("model.") for name, module in hf.named_modules() if not any(module.children())]
    modules = {name.removeprefix("language_model.") for name in names if not name.endswith(("act_fn", "rotary_emb"))}
    points = {name.replace("@0", "") for name in model.record(ids, media=media)}
    assert {"embed_vision.patch_ln1", "embed_audio.embedding_projection", "lm_head"} <= modules
    assert modules <= points


@pytest.mark.parametrize("case", CASES)
def test_a_dump_notes_which_image_mask_ran(folder, case):
    pictures = "pixel_values" in tiny.unified_prompt(CASES[case])[1] or "video" in case
    for mask in MASKS:
        model, ids, media = prepared(folder, case, mask=mask)
        theirs, ours = captured(model, ids, media, "float32", mask), model.describe(ids, media=media)
        assert theirs.meta.get("image_mask") == ours.get("image_mask") == (mask if pictures else None)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_rounds_where_transformers_rounds(folder, case):
    """Up to a few numbers that lie on the edge between two."""
    model, ids, media = prepared(folder, case, "bfloat16")
    theirs, ours = captured(model, ids, media, "bfloat16", "transformers"), model.record(ids, ["*"], media=media)
    assert {name: x.dtype for name, x in theirs.items()} == {name: x.dtype for name, x in ours.items()}
    before = [
        name for name in ours if name.startswith(("embed_vision", "embed_audio", "inputs_embeds", "embed_tokens"))
    ]
    off = {name: relative(theirs[name], ours[name]) for name in before}
    assert max(off.values()) < 4e-3, off
    assert np.median(list(off.values())) < 1e-3
    assert relative(theirs["logits"], ours["logits"]) < 2e-2


def test_padding_changes_nothing(folder):
    model, ids, media = prepared(folder, "all")
    ours = model.logits(ids, media)
    for padding in (0, 17):
        _, arrays = tiny.unified_prompt(CASES["all"], padding=padding)
        theirs = Dump(capture.describe(model, ids, points=["logits"]))
        capture.capture(model, ids, theirs, points=["logits"], media=read_media(arrays))
        assert relative(theirs["logits"], ours) < 2e-5


def test_the_text_model_alone_equals_transformers(tmp_path):
    folder = tiny.write(tmp_path / "ckpt", tiny.UNIFIED_TEXT)
    model, ids = numgemma.load(folder), tiny.prompt(tiny.UNIFIED_TEXT, 40)
    theirs, exact = (captured(model, ids, NO_MEDIA, dtype, "transformers") for dtype in ("float32", "float64"))
    assert_as_close_as_transformers_is_to_itself(theirs, model.record(ids, ["*"]), exact)


def test_a_checkpoint_that_transformers_has_saved_again_is_the_same(tmp_path, folder):
    """Which writes the names that released files have, and not those of its modules."""
    capture.load_hf(folder, torch.float32).save_pretrained(tmp_path / "again")
    model, ids, media = prepared(folder, "all", mask="intended")
    again = numgemma.load(tmp_path / "again").logits(ids, media)
    np.testing.assert_array_equal(again, model.logits(ids, media))
