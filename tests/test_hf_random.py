"""A few random configs of every family that runs against Transformers; `make test-hf-random` runs many."""

import pytest

pytestmark = pytest.mark.hf
pytest.importorskip("torch")
pytest.importorskip("transformers")

import random_configs  # noqa: E402


def test_random_configs_give_transformers_logits():
    counts, kinds, faults = random_configs.run(text=8, multimodal=4, seed=1)
    assert faults == []
    assert counts["same"] + counts["rounding"] == 12
    assert {kind.removesuffix("_text") for kind in kinds} == {"gemma4", "gemma4_unified", "gemma3n"}
