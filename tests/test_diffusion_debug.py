"""The debugger on DiffusionGemma: every fault is caught, found where it is, and named; its stacks are told apart."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from closeness import TOLERANCE, relative, worst_token
from safetensors.numpy import load_file
from test_whatif import modules_only

import numgemma
from numgemma import denoise
from numgemma.debug.blame.replay import replay
from numgemma.debug.blame.whatif import whatif
from numgemma.debug.compare.diff import diff
from numgemma.debug.faults import CATALOGUE, applied
from numgemma.debug.noise.perturb import perturbed
from numgemma.dump import Dump
from numgemma.prompt.media import read_media

STORED = Path(__file__).parents[1] / "reference_outputs"
ENCODER, DECODER = "encoder.language_model.layers", "decoder.layers"
SOFT = "decoder.self_conditioning"

# fault -> whether it shows in the first pass of a block alone, the point that replay names among what modules return,
# and the layers that whatif names
ARRAYS = ("canvas", "entropy", "best", "accepted", "next_canvas")
FAULTS = {
    "F01": (False, f"{ENCODER}.0.out", "all"),
    "F15": (False, f"{DECODER}.0.out", "all"),
    "F02-logits": (True, f"{SOFT}.soft", None),
    "F02-skipped": (True, f"{SOFT}.post_norm", None),
    "F02-norm": (False, f"{SOFT}.post_norm", None),
    "F02-best": (False, f"{SOFT}.soft", None),
    "F03-advanced": (False, f"{DECODER}.0.self_attn.o_proj", "all"),
    "F03-zero": (False, f"{DECODER}.0.self_attn.o_proj", "all"),
    "F13": (False, f"{DECODER}.0.self_attn.o_proj", "sliding"),
    "F13-none": (False, f"{DECODER}.0.self_attn.o_proj", "sliding"),
    "F13-causal": (False, f"{DECODER}.0.self_attn.o_proj", "all"),
    "F14": (False, "logits", None),
    "M01": (False, f"{ENCODER}.0.router.norm", "all"),  # F09
    "T12": (False, f"{ENCODER}.0.out", "all"),
}
QUIET = {"F14"}  # a bfloat16 run is allowed as much as this is wrong


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tiny.write(tmp_path_factory.mktemp("diffusion") / "ckpt", tiny.DIFFUSION)
    return {precision: numgemma.load(folder, precision) for precision in ("float32", "bfloat16")}


def given(model, first=False, case="text"):
    return model.named_ids(tiny.diffusion_inputs(case, not first))


def wrong(model, ids, media, *faults):
    """What the modules of another engine return that makes these mistakes and rounds in its own way."""
    with perturbed(99), applied(model, *faults):
        found = model.record(ids, ["*"], media=media)
    named = {name: found[name] for name in found if name.startswith("inputs.")}
    modules = modules_only(found)
    return Dump(found.meta, named | dict(modules), found.axes)


# fault of the sampler -> the step of a stored run in which it shows, and in what; None: where its block ends
SAMPLER = {
    "F04": ("0.0", "canvas"),
    "F05": ("0.1", "entropy"),
    "F07": None,
    "F08": ("0.0", "accepted"),
    "F10": ("0.0", "entropy"),
    "F10-early": ("0.0", "entropy"),
    "F11": ("0.0", "entropy"),
}


def test_every_fault_is_here():
    assert {id for id in CATALOGUE if id.startswith("F")} == {id for id in (*FAULTS, *SAMPLER) if id.startswith("F")}


@pytest.mark.parametrize("id", SAMPLER)
def test_a_stored_run_of_transformers_catches_a_fault_of_the_sampler_where_it_is(id, tmp_path):
    stored = load_file(STORED / "diffusion_transformers.safetensors")
    model = numgemma.load(tiny.write(tmp_path / "ckpt", tiny.DIFFUSION, tiny.calm()), image_mask="transformers")
    ids, arrays = tiny.multimodal_prompt("26b")
    how = denoise.settings({"max_denoising_steps": 12, "confidence_threshold": 0.6, "entropy_bound": 0.5}, "the test")
    draws = {name: x for name, x in stored.items() if name.endswith(("first_canvas", ".sampled", ".random"))}
    found = []
    with applied(model, id):
        draw = denoise.recorded_draws(draws, 6, 199, "the test")
        for step in denoise.denoised(model, ids, how, draw, read_media(arrays)):
            at = f"{step.block}.{step.number}"
            found += [
                (at, name) for name in ARRAYS if not np.allclose(getattr(step, name), stored[f"{at}.{name}"], 1e-3)
            ]
            if found or step.ids is not None:
                break
    assert (found[0] if found else None) == SAMPLER[id]
    if not found:
        assert step.ids.tolist() != stored["tokens"][len(ids) : len(ids) + 6].tolist()


@pytest.mark.parametrize("id", FAULTS)
def test_a_fault_is_caught_and_first_changes_the_point_that_its_entry_names(models, id):
    model = models["float32"]
    ids, media = given(model, FAULTS[id][0])
    clean = model.record(ids, ["*"], media=media)
    with applied(model, id):
        broken = model.record(ids, ["*"], media=media)
    changed = [name for name in clean if not np.array_equal(clean[name], broken[name])]
    assert CATALOGUE[id].shown_by(changed[0]), changed[0]
    rel, token = TOLERANCE["float32"]
    floats = [name for name in changed if clean[name].dtype.kind == "f"]
    assert any(relative(clean[n], broken[n]) > rel or worst_token(clean[n], broken[n]) > token for n in floats)


def test_the_stored_run_of_transformers_catches_what_shows_in_it(models):
    model, reference = models["float32"], numgemma.read_dump(STORED / "diffusion_float32.safetensors")
    ids, media = given(model, case="pictures")
    for id in (*(id for id, (first, *_) in FAULTS.items() if not first), "U08", "U08-far", "V12-causal"):
        with applied(model, id):
            broken = model.record(ids, reference.meta["coverage"], media=media)
        assert diff(reference, broken).verdict == "differs", id


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("id", FAULTS)
def test_a_planted_fault_is_localised_and_named_first(models, id, precision):
    model, (first, point, layers) = models[precision], FAULTS[id]
    ids, media = given(model, first)
    found = whatif(model, wrong(model, ids, media, id), media=media)
    if precision == "bfloat16" and id in QUIET:
        assert found.candidates == ()
        return
    assert found.replay.first == point
    assert found.candidates, found.verdict
    assert (found.candidates[0].faults, found.candidates[0].layers) == ((id,), layers)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("first", [False, True])
def test_a_clean_dump_has_no_fault(models, precision, first):
    model = models[precision]
    ids, media = given(model, first, "pictures")
    assert replay(model, wrong(model, ids, media), media=media).first is None


def test_damage_in_one_stack_is_told_from_damage_in_the_other(models):
    model = models["float32"]
    ids, media = given(model)
    dump = wrong(model, ids, media)
    for name in (f"{ENCODER}.3.mlp.up_proj", f"{DECODER}.3.mlp.up_proj"):
        x = np.array(dump[name])
        x[-1] *= 1.01
        damaged = Dump(dump.meta, dump.arrays | {name: x}, dump.axes)
        assert replay(model, damaged, media=media).first == name
        assert diff(dump, damaged).first == name
