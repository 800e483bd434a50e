"""A few random configs of every family against Transformers; `make test-hf-random` runs many."""

import pytest

pytestmark = pytest.mark.hf
pytest.importorskip("torch")
pytest.importorskip("transformers")

import random_cases  # noqa: E402
import random_configs  # noqa: E402

from numgemma.ops import definitions  # noqa: E402

TEXT, MULTIMODAL = 6, 5  # one of each family, without timm's


def test_random_configs_give_transformers_results():
    counts, kinds, faults = random_configs.run(TEXT, MULTIMODAL, seed=1)
    assert faults == []
    assert counts["same"] + counts["rounding"] == TEXT + MULTIMODAL
    named = {kind.removesuffix("_text") for kind in kinds}
    assert {"gemma4", "gemma4_unified", "gemma3n", "diffusion_gemma", "embedding_gemma2"} <= named
    assert any(kind.endswith("_assistant") for kind in kinds)


@pytest.mark.parametrize("n", range(1, TEXT))
def test_a_wrong_activation_is_a_fault_and_float32_alone_is_rounding(monkeypatch, n):
    case = random_cases.case(1, n, multimodal=False)
    monkeypatch.setattr(random_configs, "NEAR", 0)
    assert random_configs.outcome_of(case, n)[0] == "rounding"
    right = definitions.gelu_tanh
    monkeypatch.setattr(definitions, "gelu_tanh", lambda x: right(x) + x.dtype.type(1e-4) * x * x)
    outcome, _, exact = random_configs.outcome_of(case, n)
    assert outcome == "fault"
    assert exact > 1e-7
