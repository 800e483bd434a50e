"""Live against Transformers: DiffusionGemma, every module of both stacks, and its sampler step for step."""

import numpy as np
import pytest
import tiny
from test_hf_unified import assert_as_close_as_transformers_is_to_itself
from test_whatif import modules_only

import numgemma
from numgemma import denoise, ops
from numgemma.debug.blame.replay import replay
from numgemma.dump import Dump
from numgemma.prompt.media import NO_MEDIA, read_media
from numgemma.surgery.synth import synth

pytestmark = pytest.mark.hf
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.24")

import hf_denoising  # noqa: E402
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig  # noqa: E402

from numgemma.debug.capture import hooks as capture  # noqa: E402
from numgemma.debug.capture.canvas import masks_for  # noqa: E402

MASKS = ("intended", "transformers")
FIRST = {True: "later pass", False: "first pass"}
SETTINGS = {"max_new_tokens": 18, "max_denoising_steps": 12, "confidence_threshold": 0.6, "pad_token_id": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("diffusion") / "ckpt", tiny.DIFFUSION)


@pytest.fixture(scope="module")
def settling(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("settling") / "ckpt", tiny.DIFFUSION, tiny.calm())


def prepared(folder, case, condition=True, dtype="float32", mask="intended"):
    """A model, ids, and what else one pass takes."""
    model = numgemma.load(folder, dtype, mask)
    ids, media = model.named_ids(tiny.diffusion_inputs(case, condition))
    assert len(ids) > tiny.DIFFUSION["text_config"]["sliding_window"]
    return model, ids, media


def captured(model, ids, media, dtype="float32", mask="intended"):
    theirs = Dump(capture.describe(model, ids, dtype, ["*"], media=media))
    capture.capture(model, np.array(ids), theirs, dtype, ["*"], media, mask)
    return theirs


@pytest.mark.parametrize("condition", FIRST, ids=FIRST.get)
@pytest.mark.parametrize(("case", "mask"), [("text", "intended"), *(("pictures", mask) for mask in MASKS)])
@pytest.mark.parametrize("backend", ops.BACKENDS)
def test_every_point_equals_transformers(folder, case, mask, condition, backend):
    if backend == "numba":
        pytest.importorskip("numba")
    model, ids, media = prepared(folder, case, condition, mask=mask)
    theirs, exact = (captured(model, ids, media, dtype, mask) for dtype in ("float32", "float64"))
    with ops.using(backend):
        ours = model.record(ids, ["*"], media=media)
    assert_as_close_as_transformers_is_to_itself(theirs, ours, exact)
    assert theirs.meta.get("image_mask") == ours.meta.get("image_mask") == (mask if case == "pictures" else None)


def test_without_a_canvas_one_is_asked_for(folder):
    model = numgemma.load(folder)
    with pytest.raises(numgemma.InputError, match="decoder_input_ids by name, which was not given"):
        capture.capture(model, np.array([5, 6]), Dump({"ids": [5, 6]}))


def test_every_module_has_its_point(folder):
    model, ids, media = prepared(folder, "pictures")
    hf = capture.load_hf(folder, torch.float32)
    names = [name.removeprefix("model.") for name, module in hf.named_modules() if not any(module.children())]
    modules = {name for name in names if not name.endswith(("act_fn", "rotary_emb"))}
    points = {name.replace("@0", "") for name in model.record(ids, media=media)}
    assert {"encoder.vision_tower.patch_embedder.input_proj", "decoder.self_conditioning.post_norm"} <= modules
    clipped = {name.removesuffix(".linear") for name in modules}
    assert {name for name in clipped if not name.endswith("router")} <= points


@pytest.mark.parametrize("condition", FIRST, ids=FIRST.get)
@pytest.mark.parametrize("case", tiny.DIFFUSION_CONTENT)
def test_bfloat16_rounds_where_transformers_rounds(folder, case, condition):
    """Each step, made of what Transformers had before it, is right but for rounding; and all have its dtypes."""
    model, ids, media = prepared(folder, case, condition, "bfloat16")
    theirs, ours = captured(model, ids, media, "bfloat16"), model.record(ids, ["*"], media=media)
    assert {name: x.dtype for name, x in theirs.items()} == {name: x.dtype for name, x in ours.items()}
    found = replay(model, theirs, media=media)
    assert found.first is None, found.verdict


def test_a_synthetic_one_loads_in_transformers_and_computes_the_same(tmp_path):
    synth("diffusiongemma-26B-A4B-it", tmp_path / "ckpt", "tiny")
    model = numgemma.load(tmp_path / "ckpt")
    rng, V = np.random.default_rng(0), model.outline.vocabulary
    arrays = {
        "input_ids": rng.integers(3, 400, 30),
        "decoder_input_ids": rng.integers(0, V, model.config.canvas_length),
    }
    ids, media = model.named_ids(arrays)
    theirs, exact = (captured(model, ids, media, dtype) for dtype in ("float32", "float64"))
    assert_as_close_as_transformers_is_to_itself(theirs, model.record(ids, ["*"], media=media), exact)


def test_a_checkpoint_that_transformers_has_saved_again_is_the_same(tmp_path, folder):
    capture.load_hf(folder, torch.float32).save_pretrained(tmp_path / "again")
    model, ids, media = prepared(folder, "pictures")
    again = numgemma.load(tmp_path / "again").logits(ids, media)
    np.testing.assert_array_equal(again, model.logits(ids, media))


def test_a_forward_pass_of_transformers_makes_a_mask_for_pictures_and_does_not_use_it(folder):
    """F06: without a mask that is handed in, its encoder is causal."""
    model, ids, media = prepared(folder, "pictures")
    hf = capture.load_hf(folder, torch.float32)
    given = capture.hf_inputs(ids, media, model.family.placeholders(model.config))
    inputs = {name: torch.tensor(x) for name, x in given.items()} | {
        name: torch.tensor(np.atleast_2d(x)) for name, x in media.named.items() if name == "decoder_input_ids"
    }
    with torch.no_grad():
        plain = hf(**inputs).logits
        masked = hf(**inputs, attention_mask=masks_for(hf, model, ids, media, "transformers")).logits
        del inputs["mm_token_type_ids"]
        causal = hf(**inputs).logits
    assert torch.equal(plain, causal)
    assert (plain - masked).abs().max() > 1e-2


def hf_settings(**changes):
    told = SETTINGS | {"sampler_config": EntropyBoundSamplerConfig(entropy_bound=0.5)} | changes
    return told, denoise.settings(told | {"sampler_config": {"entropy_bound": 0.5}}, "the test")


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of what `generate` imports
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("case", "mask"), [("text", "intended"), *(("pictures", mask) for mask in MASKS)])
def test_a_run_of_generate_is_followed_step_for_step(settling, case, mask, seed):
    """Its draws handed over: canvases, what was accepted, when a block stops, and what is written."""
    model = numgemma.load(settling, image_mask=mask)
    ids, arrays = (
        tiny.multimodal_prompt("26b") if case == "pictures" else (tiny.prompt({"vocab_size": 190}, 20, seed), {})
    )
    media = read_media(arrays) if arrays else NO_MEDIA
    hf = capture.load_hf(settling, torch.float32)
    given = capture.hf_inputs(ids, media, model.family.placeholders(model.config))
    inputs = {name: torch.tensor(x) for name, x in given.items()}
    masks = masks_for(hf, model, ids, media, mask) if (case, mask) == ("pictures", "intended") else None
    told, how = hf_settings(eos_token_id=None if seed % 2 else [106, 59], stability_threshold=seed // 2)
    draws, steps, tokens = hf_denoising.recorded(hf, inputs, seed, masks, **told)
    draw = denoise.recorded_draws(draws, 6, 199, "the test")
    ours = list(denoise.denoised(model, ids, how, draw, media))
    assert [step["at"] for step in steps] == [f"{step.block}.{step.number}" for step in ours]
    for theirs, step in zip(steps, ours, strict=True):
        for name in ("canvas", "best", "accepted", "next_canvas"):
            np.testing.assert_array_equal(theirs[name], getattr(step, name), err_msg=f"{theirs['at']} {name}")
    assert [*ids, *(i for step in ours if step.ids is not None for i in step.ids)] == tokens.tolist()


def test_settings_of_the_checkpoint_are_those_of_transformers(settling):
    """What a generation_config.json does not say has one default in both."""
    config = transformers.models.diffusion_gemma.generation_diffusion_gemma.DiffusionGemmaGenerationConfig
    defaults = config._get_default_generation_params()
    ours = denoise.settings(defaults | {"sampler_config": vars(defaults["sampler_config"])}, "the test")
    assert ours == denoise.Denoising()


def test_a_fault_of_transformers_forward_pass_is_named(folder):
    """Its own run, without a mask handed in, differs from the intended one where pictures are seen."""
    model, ids, media = prepared(folder, "pictures")
    theirs = modules_only(captured(model, ids, media, mask="transformers"))
    found = replay(model, theirs, media=media)
    assert found.first.startswith("encoder.language_model.layers.0.self_attn")
