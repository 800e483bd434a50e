"""Against stored runs of Transformers 5.23.0: every point, in float32 and bfloat16.  Remake them: `make reference`."""

import json
from pathlib import Path

import numpy as np
import pytest
from closeness import assert_close, assert_same_run, relative

import numgemma
from numgemma.debug.compare.diff import diff
from numgemma.families.gemma4 import gemma4
from numgemma.masks import causal_mask

STORED = Path(__file__).parents[1] / "reference_outputs"
FLOAT32 = ["tiny", "dense", "moe", "ple"]


def stored(name):
    return numgemma.read_dump(STORED / f"{name}.safetensors")


@pytest.fixture(scope="module")
def checkpoints(folders):
    return folders | {"tiny": "tiny"}


@pytest.mark.parametrize("name", FLOAT32)
def test_every_point_of_transformers_is_ours_in_float32(checkpoints, name):
    reference = stored(f"{name}_float32")
    ours = numgemma.load(checkpoints[name]).record(reference.meta["ids"], reference.meta["coverage"])
    assert_same_run(reference, ours)
    assert reference.axes == ours.axes
    assert diff(reference, ours).verdict == "same"


@pytest.mark.parametrize("name", FLOAT32)
def test_the_stored_weights_are_the_ones_that_were_run(checkpoints, name):
    import hashlib

    manifest = json.loads((STORED / "manifest.json").read_text())
    w = numgemma.load(checkpoints[name]).weights
    total = hashlib.sha256()
    for key in sorted(w):
        total.update(key.encode() + w[key].tobytes())
    assert manifest[f"{name}_float32"]["weights"] == total.hexdigest(), "remake with `make reference`"


def test_each_layer_fed_bfloat16_input_gives_transformers_output_within_two_roundings():
    reference = stored("tiny_bfloat16")
    model = numgemma.load("tiny", "bfloat16")
    c, T = model.config.text, len(reference.meta["ids"])
    x = reference["embed_tokens"]
    for spec in c.layers:
        rope = tuple(reference[f"rotary_emb.{spec.kind}.{part}"] for part in ("cos", "sin"))
        mask = causal_mask(np.arange(T), 0, spec.window)
        ple = reference["per_layer_inputs"][:, spec.index]
        scope = f"layers.{spec.index}"
        y = gemma4.block(x, ple, model.weights.at(scope), spec, rope, mask, {})
        x = reference[f"{scope}.out"]
        assert relative(x, y) <= 3.5e-3, scope


def test_a_whole_bfloat16_run_stays_near_transformers():
    reference = stored("tiny_bfloat16")
    ours = numgemma.load("tiny", "bfloat16").record(reference.meta["ids"])
    assert sorted(ours) == sorted(reference)
    assert {str(x.dtype) for x in ours.values()} == {str(x.dtype) for x in reference.values()} == {"bfloat16"}
    for name in reference:
        assert_close(reference[name], ours[name], "bfloat16", name)
