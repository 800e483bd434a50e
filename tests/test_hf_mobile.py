"""Google's QAT mobile files in Transformers, which rounds what enters and what comes out of each product."""

import json

import numpy as np
import pytest
import quantised_forms
import tiny
from safetensors.numpy import load_file, save_file

from numgemma import load
from numgemma.debug.noise.rounding import mobile, rounded_as

pytestmark = pytest.mark.hf
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gemma_quant = pytest.importorskip("transformers.integrations.gemma_quant")

WIDE = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
RAW = tiny.TEXT | WIDE | {"global_head_dim": 64, "vocab_size": 192, "vocab_size_per_layer_input": 192}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("scale", [0.0, 0.013, 1e-9])
def test_what_is_rounded_has_its_bits(dtype, scale):
    x = torch.tensor(np.random.default_rng(0).normal(0, 2, (64, 32))).to(getattr(torch, dtype))
    theirs = gemma_quant.apply_srq(x, torch.tensor(scale)).float().numpy()
    ours = mobile(x.float().numpy().astype(np.dtype(dtype) if dtype != "bfloat16" else tiny.DTYPES[dtype]), scale)
    np.testing.assert_array_equal(ours.astype(np.float32), theirs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A mobile checkpoint; its scales are about what its own run needs."""
    folder = tiny.write(tmp_path_factory.mktemp("mobile") / "m", RAW)
    assert quantised_forms.write(folder, "mobile") > 30
    found = load_file(folder / "model.safetensors")
    for name in [name for name in found if name.endswith("input_activation_scale")]:
        found[name] = np.array(0.03, np.float32)
        found[name.replace("input", "output")] = np.array(0.05, np.float32)
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"] |= {"quantize_embeddings": False, "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def test_a_run_that_rounds_as_the_file_says_has_its_logits_and_a_plain_one_is_percents_off(folder):
    """A code may turn by chance, and then all that follows: so one of a few prompts is enough, and most have it."""
    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, **how).eval()
    model, rounded, plain = load(folder), [], []
    for seed in range(5):
        ids = np.random.default_rng(seed).integers(3, RAW["vocab_size"], 5)
        with torch.no_grad():
            theirs = hf(torch.tensor(ids)[None]).logits[0].numpy()
        size = np.sqrt((theirs**2).mean())
        plain.append(np.sqrt(((model.logits(ids) - theirs) ** 2).mean()) / size)
        with rounded_as("mobile"):
            rounded.append(np.sqrt(((model.logits(ids) - theirs) ** 2).mean()) / size)
    assert min(rounded) < 2e-5, rounded
    assert np.median(rounded) < min(plain), (rounded, plain)
    assert min(plain) > 5e-3, plain
