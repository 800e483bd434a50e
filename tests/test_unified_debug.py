"""The debugger on 12B: every fault is found where it is and named, and so is what Transformers' own mask does."""

import numpy as np
import pytest
import tiny
from test_whatif import modules_only

import numgemma
from numgemma.debug.blame.replay import replay
from numgemma.debug.blame.whatif import whatif
from numgemma.debug.faults import CATALOGUE, applied
from numgemma.debug.noise.perturb import perturbed
from numgemma.dump import Dump
from numgemma.prompt.media import read_media

# fault -> the point that replay names among what modules return, and the layers that whatif names
FAULTS = {
    "U01": ("embed_vision@0.patch_ln1", None),
    "U01-bias": ("embed_vision@0.patch_ln1", None),
    "U02": ("embed_vision@0.pos_norm", None),
    "U02-swapped": ("embed_vision@0.pos_norm", None),
    "U04-mean": ("embed_audio@0.embedding_pre_projection_norm", None),
    "U08": ("layers.2.self_attn.o_proj", "full"),
    "U08-far": ("layers.0.self_attn.o_proj", "sliding"),
    "U09": ("embed_vision@0.patch_ln1", None),
    "U11": ("embed_vision@0.patch_ln1", None),
    "U11-centred": ("embed_vision@0.patch_ln1", None),
    "U12": ("layers.0.self_attn.o_proj", "sliding"),
    "U13": ("layers.0.self_attn.o_proj", "sliding"),
    "V12-causal": ("layers.0.self_attn.o_proj", "sliding"),
}
QUIET = {"U09", "U11-centred"}  # a bfloat16 run rounds more coarsely than these are wrong


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """The model in both precisions, ids and media."""
    folder = tiny.write(tmp_path_factory.mktemp("unified"), tiny.UNIFIED)
    ids, arrays = tiny.unified_prompt(tiny.UNIFIED_STORED)
    models = {precision: numgemma.load(folder, precision) for precision in ("float32", "bfloat16")}
    return models, ids, read_media(arrays)


def wrong(model, ids, media, *faults):
    """What the modules of another engine return that makes these mistakes and rounds in its own way."""
    with perturbed(99), applied(model, *faults):
        return modules_only(model.record(ids, ["*"], media=media))


def test_every_fault_of_12b_is_here():
    assert {id for id in CATALOGUE if id.startswith("U")} == {id for id in FAULTS if id.startswith("U")}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("id", FAULTS)
def test_a_planted_fault_is_localised_and_named_first(subjects, id, precision):
    models, ids, media = subjects
    found = whatif(models[precision], wrong(models[precision], ids, media, id), media=media)
    if precision == "bfloat16" and id in QUIET:
        assert found.candidates == ()
        return
    point, layers = FAULTS[id]
    assert found.replay.first == point
    assert (found.candidates[0].faults, found.candidates[0].layers) == ((id,), layers)


def test_the_other_mask_is_named_as_what_transformers_does(subjects):
    """A run with it, under no fault, is U08 and U08-far together: in another engine's dump so too."""
    models, ids, media = subjects
    other = numgemma.load(models["float32"].checkpoint.folder, image_mask="transformers")
    dump = modules_only(other.record(ids, ["*"], media=media))
    found = whatif(models["float32"], dump, media=media)
    assert set(found.candidates[0].faults) == {"U08", "U08-far"}
    assert whatif(other, dump, media=media).candidates == ()
    assert replay(other, dump, media=media).first is None


def test_a_clean_dump_has_no_fault(subjects):
    models, ids, media = subjects
    model = models["float32"]
    assert replay(model, wrong(model, ids, media), media=media).first is None


def test_damage_in_one_patch_is_told_from_damage_in_a_sound(subjects):
    models, ids, media = subjects
    model = models["float32"]
    dump = wrong(model, ids, media)
    for name in ("embed_vision@2.patch_dense", "embed_audio@1.embedding_projection"):
        x = np.array(dump[name])
        x[-1] *= 1.01
        found = replay(model, Dump(dump.meta, dump.arrays | {name: x}, dump.axes), media=media)
        assert found.first == name
