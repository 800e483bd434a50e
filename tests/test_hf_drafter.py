"""Live against Transformers: every module output of a draft step, with and without keys that the window hides."""

import numpy as np
import pytest
import tiny_drafter
from closeness import assert_same_run

import numgemma
from numgemma.debug.compare.diff import diff
from numgemma.dump import Dump

pytestmark = pytest.mark.hf
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

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
