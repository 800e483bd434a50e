"""Every catalogued fault, applied to a model, is caught by comparison with the stored runs of Transformers.

So the tests of equality that the project rests on are shown to hold each of them.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from closeness import TOLERANCE, relative, worst_token

import numgemma
from numgemma.debug.faults import CATALOGUE, applied, find, swapped
from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.prompt.media import NO_MEDIA, Media, read_media
from numgemma.trace import Tap

STORED = Path(__file__).parents[1] / "reference_outputs"
NAMES = ["tiny", "dense", "moe", "ple", *tiny.MULTIMODAL, "12b"]
ELSEWHERE = {"T17-extra", "T13-exact"}  # they need a model without a soft cap, a bfloat16 run: tests of their own
ELSEWHERE |= {id for id in CATALOGUE if id.startswith("S01") and id.endswith("of4")}  # they need as many heads
ELSEWHERE |= {id for id, fault in CATALOGUE.items() if fault.later}  # of a second pass: test_spans.py
ELSEWHERE |= {id for id in CATALOGUE if id.startswith(("C03", "C04"))}  # of another sequence: test_spans.py
ELSEWHERE |= {id for id in CATALOGUE if id.startswith(("N", "G"))}  # of Gemma 3n: test_gemma3n.py
ELSEWHERE |= {id for id in CATALOGUE if id.startswith("D")}  # of drafters: test_drafter_debug.py
ELSEWHERE |= {id for id in CATALOGUE if id.startswith("E")} | {"P06"}  # of EmbeddingGemma 2: test_embedding_debug.py
ELSEWHERE |= {id for id in CATALOGUE if id.startswith("F")}  # of DiffusionGemma: test_diffusion_debug.py


@dataclass(frozen=True)
class Run:
    """A model, its prompt, Transformers' stored run of it, our clean run with all points."""

    model: numgemma.Model
    media: Media
    reference: Dump
    clean: Dump

    def record(self, points=("*",)):
        return self.model.record(self.reference.meta["ids"], points, media=self.media)

    def shows(self, fault):
        """Whether the fault can act here.  With media, only those that need them: the rest is shown without."""
        past = len(self.reference.meta["ids"]) > self.model.config.text.sliding_window
        plain = self.media is NO_MEDIA or not fault.can_show(self.model, NO_MEDIA)
        return fault.can_show(self.model, self.media) and plain and (past or not fault.past_window)


@pytest.fixture(scope="module")
def runs(folders, multimodal_folders, tmp_path_factory):
    """The PLE checkpoint has the keys and values too that sharing layers leave unread, as released files do: the
    faults that read them need them there."""
    raw = tiny.PLE
    with_leftovers = tmp_path_factory.mktemp("leftovers")
    tiny.write(with_leftovers, raw, tiny.random_tensors(raw) | tiny.leftover_tensors(raw))
    unified = tiny.write(tmp_path_factory.mktemp("unified"), tiny.UNIFIED)
    where = folders | multimodal_folders | {"tiny": "tiny", "ple": with_leftovers, "12b": unified}
    found = {}
    for name in NAMES:
        model, reference = numgemma.load(where[name]), numgemma.read_dump(STORED / f"{name}_float32.safetensors")
        media = read_media(tiny.multimodal_prompt(name)[1]) if name in tiny.MULTIMODAL else NO_MEDIA
        media = read_media(tiny.unified_prompt(tiny.UNIFIED_STORED)[1]) if name == "12b" else media
        found[name] = Run(model, media, reference, model.record(reference.meta["ids"], ["*"], media=media))
    return found


def caught(a, b):
    """Whether the tests' tolerance tells candidate b from the reference a."""
    if a.dtype.kind == "i":
        return bool((np.sort(a) != np.sort(b)).any())
    rel, token = TOLERANCE["float32"]
    if a.shape != b.shape:
        return True
    return not (relative(a, b) <= rel and worst_token(a, b) <= token)


@pytest.mark.parametrize("name", NAMES)
def test_the_clean_run_is_not_caught(runs, name):
    reference, clean = runs[name].reference, runs[name].clean
    assert not [point for point in reference if caught(reference[point], clean[point])]


@pytest.mark.parametrize("name", NAMES)
def test_every_fault_is_caught_and_first_changes_the_point_that_its_entry_names(runs, name):
    run, tried = runs[name], 0
    for fault in filter(run.shows, (f for f in CATALOGUE.values() if not f.later)):
        with applied(run.model, fault.id):
            broken = run.record()
        changed = [p for p in run.clean if p not in broken or not np.array_equal(run.clean[p], broken[p])]
        assert fault.shown_by(changed[0]), (fault.id, changed[0])
        if fault.layered and changed[0].startswith("layers."):
            # K05 overwrites in the first place, which shows in the next of that kind
            first = fault.places(run.model)[fault.id == "K05" and 2]
            assert int(changed[0].split(".")[1]) == first, (fault.id, changed[0])
        assert any(caught(run.reference[p], broken[p]) for p in changed if p in run.reference), fault.id
        tried += 1
    assert tried >= 16


def test_every_fault_can_act_in_some_checkpoint(runs):
    acting = {id for run in runs.values() for id in CATALOGUE if run.shows(CATALOGUE[id])}
    assert acting - ELSEWHERE == set(CATALOGUE) - ELSEWHERE


def test_a_slip_in_what_a_fault_asks_of_a_layer_is_not_taken_for_one_that_cannot_act(runs):
    slip = replace(CATALOGUE["T07"], at=lambda spec, model: spec.windoww is None)
    with pytest.raises(AttributeError, match="windoww"):
        slip.places(runs["dense"].model)


@pytest.mark.parametrize("rank", range(1, 5))
def test_a_rank_of_four_is_missing_its_heads(tmp_path, rank):
    model = numgemma.load(tiny.write(tmp_path, tiny.DENSE | {"num_attention_heads": 8, "num_key_value_heads": 4}))
    ids = tiny.prompt(tiny.DENSE, 9)
    clean = model.record(ids, ["*"])
    with applied(model, f"S01-missing{rank}of4", layers=[1]):
        broken = model.record(ids, ["*"])
    changed = [point for point in clean if not np.array_equal(clean[point], broken[point])]
    assert changed[0] == "layers.1.self_attn.o_proj"
    w = model.weights["layers.1.self_attn.o_proj.weight"].astype(np.float64)
    context = clean["layers.1.self_attn.context"].reshape(9, 4, -1).astype(np.float64)
    context[:, rank - 1] = 0
    np.testing.assert_allclose(broken[changed[0]], context.reshape(9, -1) @ w.T, rtol=1e-3, atol=1e-5)


def test_a_cap_where_the_config_has_none_changes_only_the_logits(tmp_path):
    model = numgemma.load(tiny.write(tmp_path, tiny.DENSE | {"final_logit_softcapping": None}))
    ids = tiny.prompt(tiny.DENSE, 9)
    clean = model.record(ids)
    with applied(model, "T17-extra"):
        broken = model.record(ids)
    assert [point for point in clean if not np.array_equal(clean[point], broken[point])] == ["logits"]
    np.testing.assert_allclose(broken["logits"], 30 * np.tanh(clean["logits"] / 30), rtol=1e-5)


def test_a_bfloat16_run_can_forget_to_round_the_embedding_scale():
    model = numgemma.load("tiny", "bfloat16")
    ids = [5, 6, 7]
    clean = model.record(ids, ["embed_tokens"])["embed_tokens"]
    with applied(model, "T13-exact"):
        broken = model.record(ids, ["embed_tokens"])["embed_tokens"]
    assert relative(clean, broken) > 1e-4
    with pytest.raises(InputError, match="cannot act"), applied(model, "T13-rounded"):
        pass


@pytest.mark.parametrize("id", CATALOGUE)
def test_an_entry_says_what_is_wrong_and_what_to_do(id):
    fault = find(id)
    for text in (fault.says, fault.fix):
        assert len(text) > 10
        assert not text.endswith(".")  # it stands inside a sentence of the report


def test_after_a_fault_the_model_is_as_before(runs):
    run = runs["ple"]
    with applied(run.model, "T07", "P05", "K01"):
        run.record()
    again = run.record()
    assert all(np.array_equal(run.clean[point], again[point]) for point in run.clean)


def test_a_fault_hits_the_chosen_layers_only(runs):
    run = runs["dense"]
    model, rows = run.model, run.model.config.text.layers
    choices = {"full": [s.index for s in rows if s.window is None], "sliding": [0, 1, 3, 4], (4,): [4], "all": range(6)}
    for layers, expected in choices.items():
        # the weight of V's norm is fixed, so what a layer's v_norm makes of its own v_proj tells whether it was hit
        with applied(model, "T03", layers=list(layers) if isinstance(layers, tuple) else layers):
            broken = run.record()
        for spec in rows:
            v, raw = (broken[f"layers.{spec.index}.self_attn.{p}"] for p in ("v_norm", "k_proj"))
            raw = raw if spec.k_eq_v else broken[f"layers.{spec.index}.self_attn.v_proj"]
            assert np.array_equal(v, raw) == (spec.index in expected), (layers, spec.index)
        assert set(broken) == set(run.clean)


def test_two_faults_act_together(runs):
    model = runs["tiny"].model
    with applied(model, "T12", "T15-silu"):
        both = runs["tiny"].record()
    with applied(model, "T15-silu"):
        one = runs["tiny"].record()
    assert np.array_equal(both["layers.0.mlp.down_proj"], one["layers.0.mlp.down_proj"])
    scalar = model.weights["layers.0.layer_scalar"].astype(np.float32)
    np.testing.assert_allclose(one["layers.0.out"], both["layers.0.out"] * scalar, rtol=1e-6)


def test_a_fault_that_cannot_act_is_refused_by_name(runs):
    dense, ple = runs["dense"].model, runs["ple"].model
    with pytest.raises(InputError, match=r"P01 .* cannot act"), applied(dense, "P01"):
        pass
    with pytest.raises(InputError, match=r"V05-whole .* cannot act"), applied(dense, "V05-whole"):
        pass
    with pytest.raises(InputError, match=r"K01 .* cannot act"), applied(ple, "K01", layers=[0, 1]):
        pass
    with pytest.raises(InputError, match=r"T21 .* cannot act"), applied(dense, "T21", layers=[0]):
        pass
    with pytest.raises(InputError, match="No fault is called 'T99'"), applied(dense, "T99"):
        pass
    with pytest.raises(InputError, match="Layers 'odd'"), applied(dense, "T03", layers="odd"):
        pass


def test_a_swapped_function_is_given_back_even_after_an_error():
    from numgemma.families.gemma4 import gemma4

    before = gemma4.mlp

    def use():
        with swapped("families.gemma4.gemma4.mlp", lambda original, x: x):
            assert gemma4.mlp("as it came", None, Tap()) == "as it came"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert gemma4.mlp is before
