"""The debugger on drafters: each fault of a step is caught, localised and named; those of the loop act there."""

import numpy as np
import pytest
import tiny_drafter
from test_faults import caught
from test_speculative import prompt, texts
from test_whatif import modules_only

import numgemma
from numgemma import speculative
from numgemma.debug.blame.replay import replay
from numgemma.debug.blame.whatif import whatif
from numgemma.debug.faults import CATALOGUE, applied
from numgemma.debug.noise.perturb import perturbed
from numgemma.generate import Sampling
from numgemma.speculative import Draft

LOOP = {"D06", "D07", "D13", "D14", "D22"}
# fault -> the point that replay names among what modules return, and the layers that whatif names
STEP = {
    "D01": ("pre_projection", None),
    "D01-scale": ("pre_projection", None),
    "D03": ("layers.0.self_attn.o_proj", "all"),
    "D20": ("layers.0.self_attn.o_proj", "all"),
    "D04": ("layers.0.self_attn.o_proj", "sliding"),
    "D04-narrow": ("layers.0.self_attn.o_proj", "sliding"),
    "D05": ("logits", None),
    "D05-one": ("logits", None),
    "D15": ("post_projection", None),
    "D21": ("logits", None),
}
CLUSTERED = {"D05", "D05-one", "D21"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base = tmp_path_factory.mktemp("drafters")
    return {name: numgemma.load(tiny_drafter.write(base / name, name)) for name in ("clustered", "k_eq_v")}


def step_of(model):
    """More keys than the window and one, without a mask of padding."""
    given = tiny_drafter.step(model.checkpoint.config, keys=23)
    del given["attention_mask"]
    return given


def cases():
    return [(name, id) for name in ("clustered", "k_eq_v") for id in STEP if name == "clustered" or id not in CLUSTERED]


def test_every_fault_of_drafters_is_here():
    assert {id for id in CATALOGUE if id.startswith("D")} == {*LOOP, *STEP}


@pytest.mark.parametrize(("name", "id"), cases())
def test_a_fault_of_a_step_is_caught_and_first_changes_the_point_that_its_entry_names(models, name, id):
    model, fault = models[name], CATALOGUE[id]
    clean = model.record(inputs=step_of(model), points=["*"])
    with applied(model, id):
        broken = model.record(inputs=step_of(model), points=["*"])
    changed = [p for p in clean if not np.array_equal(clean[p], broken[p])]
    assert fault.shown_by(changed[0])
    assert any(caught(clean[p], broken[p]) for p in changed)


@pytest.mark.parametrize(("name", "id"), cases())
def test_it_is_localised_and_named_first(models, name, id):
    model = models[name]
    with perturbed(99), applied(model, id):
        dump = modules_only(model.record(inputs=step_of(model), points=["*"]))
    found = whatif(model, dump)
    point, layers = STEP[id]
    assert found.replay.first == point
    assert (found.candidates[0].faults, found.candidates[0].layers) == ((id,), layers)


@pytest.mark.parametrize("name", ["clustered", "k_eq_v"])
def test_a_clean_step_has_no_fault(models, name):
    model = models[name]
    with perturbed(99):
        assert replay(model, modules_only(model.record(inputs=step_of(model), points=["*"]))).first is None


@pytest.mark.parametrize("id", ["T02", "T04", "T12", "T15-silu"])
def test_faults_of_any_decoder_act_in_a_drafter_too(models, id):
    model = models["k_eq_v"]
    with perturbed(99), applied(model, id):
        dump = modules_only(model.record(inputs=step_of(model), points=["*"]))
    assert whatif(model, dump).candidates[0].faults == (id,)


# the loop


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folders = tiny_drafter.agreeing_pair(tmp_path_factory.mktemp("pair"), "k_eq_v", 5, 0.3)
    return tuple(map(numgemma.load, folders))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """A random pair: nearly every draft is refused."""
    folders = tiny_drafter.write_pair(tmp_path_factory.mktemp("strangers"), "k_eq_v", 5)
    return tuple(map(numgemma.load, folders))


def rounds_under(pair, *ids, sampling=None):
    target, drafter = pair
    with applied(target, *ids):
        return list(target.rounds(prompt(15), Draft(drafter, 4), 60, sampling, ignore_eos=True))


def test_stale_keys_change_drafts_after_a_refusal_and_never_the_text(pair):
    right, stale = (list(rounds_under(pair, *ids)) for ids in ((), ("D13",)))
    assert texts(stale) == texts(right)
    refused = next(n for n, one in enumerate(right) if one.accepted < len(one.drafted))
    assert stale[: refused + 1] == right[: refused + 1]
    assert [one.drafted for one in stale] != [one.drafted for one in right]


def test_keys_that_stay_in_sliding_layers_change_the_text(strangers):
    assert texts(rounds_under(strangers, "D07")) != texts(rounds_under(strangers))


def test_the_stream_before_its_norm_makes_worse_drafts_of_the_same_text(strangers):
    right, wrong = rounds_under(strangers), rounds_under(strangers, "D14")
    assert texts(wrong) == texts(right)
    assert [one.drafted for one in wrong] != [one.drafted for one in right]


def test_what_is_never_sampled_is_drafted_in_vain(pair):
    target, _ = pair
    never = tuple(target.generate(prompt(15), 6, ignore_eos=True))
    right, wrong = (rounds_under(pair, *ids, sampling=Sampling(suppress=never)) for ids in ((), ("D06",)))
    assert texts(wrong) == texts(right)
    assert {i for one in wrong for i in one.drafted} & set(never)
    assert not {i for one in right for i in one.drafted} & set(never)


@pytest.mark.parametrize(("ids", "share"), [((), 0.5), (("D22",), 0.8333)])
def test_the_ratio_of_probabilities_moves_what_is_sampled(pair, ids, share):
    """The target has one half for each of two tokens, the drafter 6 in 10 for the one that it drafts."""
    rng, logits = np.random.default_rng(3), np.log([[0.5, 0.5]] * 2)
    with applied(pair[0], *ids):
        kept = [
            speculative.check([0], [np.log([0.6, 0.4])], logits, Sampling(temperature=1.0), rng) for _ in range(20_000)
        ]
    assert np.mean([one[0] == 0 for one in kept]) == pytest.approx(share, abs=0.01)


def test_by_that_ratio_greedy_text_is_the_same(pair):
    assert rounds_under(pair, "D22") == rounds_under(pair)
