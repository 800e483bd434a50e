"""Live against Transformers: every module output of a draft step, with and without keys that the window hides."""

import numpy as np
import pytest
import tiny
import tiny_drafter
from closeness import assert_same_run

import numgemma
from numgemma.debug.compare.diff import diff
from numgemma.debug.faults import applied
from numgemma.dump import Dump
from numgemma.speculative import Draft

pytestmark = pytest.mark.hf
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.generation import candidate_generator  # noqa: E402

from numgemma.debug.capture import hooks  # noqa: E402

PAIRS = list(tiny_drafter.TARGETS)
UNCALLED = {"embed_tokens", "rotary_emb"}  # what Transformers builds and a step does not call


def captured(model, given, dtype="float32"):
    ids, media = model.named_ids(given)
    theirs = Dump(hooks.describe(model, ids, dtype, ["*"], media=media))
    hooks.capture(model, ids, theirs, dtype, ["*"], media)
    return theirs


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kept", [None, 5, 9])
def test_every_point_of_a_step_equals_transformers(tmp_path, name, dtype, kept):
    model = numgemma.load(tiny_drafter.write(tmp_path / "d", name, seed=3, dtype=dtype))
    given = tiny_drafter.step(model.checkpoint.config, keys=23, kept=kept)
    theirs, ours = captured(model, given), model.record(inputs=given, points=["*"])
    hf = hooks.load_hf(tmp_path / "d", torch.float32)
    leaves = {n.removeprefix("model.") for n, module in hf.named_modules() if not any(module.children())}
    uncalled = UNCALLED | ({"lm_head"} if name == "clustered" else set())
    assert {n for n in leaves if not n.endswith("act_fn")} - uncalled <= set(ours)
    assert_same_run(theirs, ours)
    assert diff(theirs, ours).verdict == "same"


def test_padding_left_of_the_keys_is_hidden_as_transformers_hides_it(tmp_path):
    model = numgemma.load(tiny_drafter.write(tmp_path / "d", "k_eq_v"))
    given = tiny_drafter.step(model.checkpoint.config, keys=12, kept=5)
    given["attention_mask"] = (np.arange(13) >= 9)[None].astype(int)
    theirs, ours = captured(model, given), model.record(inputs=given)
    for point in ("layers.0.self_attn.context", "layers.3.self_attn.context", "logits"):
        np.testing.assert_allclose(ours[point], theirs[point], 1e-4, 1e-4)


def test_a_captured_step_can_be_replayed(tmp_path):
    from numgemma.debug.blame.replay import replay

    model = numgemma.load(tiny_drafter.write(tmp_path / "d", "clustered"))
    assert replay(model, captured(model, tiny_drafter.step(model.checkpoint.config))).exit_code == 0


# the loop


def hf_rounds(target, drafter, ids, new):
    """Transformers' assisted generation.  -> the new ids, and the drafts of each round"""
    hf, small = (hooks.load_hf(model.checkpoint.folder, torch.float32) for model in (target, drafter))
    hf.generation_config.eos_token_id = small.generation_config.eos_token_id = None
    kind = candidate_generator.SinglePositionMultiTokenCandidateGenerator
    drafted, original = [], kind.get_candidates

    def noting(self, input_ids, **kwargs):
        found, logits = original(self, input_ids, **kwargs)
        drafted.append(tuple(found[0, input_ids.shape[1] :].tolist()))
        return found, logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "get_candidates", noting)
        out = hf.generate(
            torch.tensor([ids]), assistant_model=small, max_new_tokens=new, do_sample=False, pad_token_id=0
        )
    return out[0, len(ids) :].tolist(), drafted


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("agreeing", [False, True])
@pytest.mark.parametrize("length", [4, 15])
def test_assisted_generation_is_reproduced_draft_by_draft_with_the_keys_that_transformers_leaves(
    tmp_path, name, agreeing, length
):
    """Accepted keys alone, which numgemma hands over, make other drafts after a refusal and the same text."""
    write = tiny_drafter.agreeing_pair if agreeing else tiny_drafter.write_pair
    target, drafter = map(numgemma.load, write(tmp_path, name, 5))
    ids = tiny.prompt({"vocab_size": tiny_drafter.V}, length).tolist()
    theirs, drafts = hf_rounds(target, drafter, ids, 40)
    plain = target.generate(ids, 40, ignore_eos=True)
    rounds = list(target.rounds(ids, Draft(drafter, 4), 40, ignore_eos=True))
    with applied(target, "D13"):
        stale = list(target.rounds(ids, Draft(drafter, 4), 40, ignore_eos=True))
    assert theirs == plain
    assert [i for one in rounds for i in one.kept] == [i for one in stale for i in one.kept] == plain
    assert [one.drafted for one in stale] == drafts
    if not agreeing:
        assert [one.drafted for one in rounds] != drafts


def test_its_rule_of_sampling_moves_what_is_sampled():
    """p = (.5, .5), q = (.6, .4): token 0 in five of six rounds, by their code and by the fault that says so."""
    from transformers.generation.utils import _speculative_sampling

    torch.manual_seed(0)
    p, q = np.log([[0.5, 0.5]] * 2), np.log([[0.6, 0.4]])
    kept = [
        _speculative_sampling(torch.tensor([[7, 0]]), torch.tensor(q)[None], 1, torch.tensor(p)[None])[0][0, 0].item()
        for _ in range(4000)
    ]
    assert np.mean(np.array(kept) == 0) == pytest.approx(5 / 6, abs=0.02)
