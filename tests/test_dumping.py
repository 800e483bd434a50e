"""Every recipe of docs/dumping.md: it compiles, and what it writes is read without more than the page says."""

import ast
import copy
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import numgemma
from numgemma.debug.compare.diff import diff
from numgemma.debug.readers import read_any

PAGE = Path(__file__).parents[1] / "docs" / "dumping.md"
IDS = [2, 5, 100, 7, 33, 150, 8, 21, 60]
JAX = {  # our point's last part -> DeepMind's module
    "self_attn.q_proj": "attn.q_einsum",
    "self_attn.q_norm": "attn.query_norm",
    "self_attn.k_norm": "attn.key_norm",
    "self_attn.o_proj": "attn.attn_vec_einsum",
    "mlp.down_proj": "mlp",
    "post_feedforward_layernorm": "post_ffw_norm",
    "input_layernorm": "pre_attention_norm",
}


def recipes():
    return dict(re.findall(r"## ([^\n]+)\n.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL))


def test_every_recipe_compiles_and_is_short():
    found = recipes()
    assert len(found) == 7
    for name, text in found.items():
        ast.parse(text)
        assert text.count("\n") <= 14, name


def test_the_sections_name_every_engine():
    text = PAGE.read_text()
    for engine in ("TransformerLens", "nnsight", "vLLM", "sglang", "llama.cpp", "MLX", "JAX"):
        assert re.search(rf"^## .*{re.escape(engine)}", text, re.MULTILINE), engine


@pytest.mark.parametrize("prefix", ["model.", "language_model.model."])
def test_what_the_recipe_of_mlx_writes_is_read(models, tmp_path, prefix):
    ours = models["ple"].record(IDS)
    names = [name for name in ours if name.startswith("layers.") and name.endswith(("_proj", "layernorm", ".out"))]
    kept = {f"{prefix}{name.removesuffix('.out')}": ours[name][None] for name in names}
    kept |= {"input_ids": np.array(IDS, np.int32), f"{prefix}norm": ours["norm"][None].astype(ml_dtypes.bfloat16)}
    save_file({name: np.ascontiguousarray(x) for name, x in kept.items()}, tmp_path / "mlx.safetensors")
    dump = read_any(tmp_path / "mlx.safetensors", config=models["ple"].outline)
    assert dump.meta["ids"] == IDS
    assert set(names) <= set(dump)
    assert diff(ours, dump, ["layers.*"]).verdict == "same"


def test_what_the_recipe_of_jax_writes_is_read_with_the_map_it_names(models, tmp_path):
    ours, found = models["dense"].record(IDS), {}
    for layer in range(6):
        for point, module in JAX.items():
            found[f"layer_{layer}.{module}.__call__"] = ours[f"layers.{layer}.{point}"][None]
        found[f"layer_{layer}.__call__"] = ours[f"layers.{layer}.out"][None]
    found |= {"final_norm.__call__": ours["norm"][None], "embedder.mystery.__call__": np.ones((1, 9, 3), np.float32)}
    np.savez(tmp_path / "jax.npz", input_ids=IDS, logits=ours["logits"][None], **found)
    dump = read_any(tmp_path / "jax.npz", "deepmind", models["dense"].outline)
    assert dump.meta["ids"] == IDS
    assert len(dump) == 6 * (len(JAX) + 1) + 2
    assert list(dump.meta["unused"]) == ["embedder.mystery.__call__"]
    assert diff(ours, dump, list(dump)).verdict == "same"


def run_recipe(text, **names):
    exec(compile(text, "the recipe", "exec"), names)


@pytest.mark.hf
def test_the_recipe_of_pytorch_runs_and_what_it_writes_is_read(folders, models, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from numgemma.debug.capture.hooks import load_hf

    monkeypatch.chdir(tmp_path)
    with torch.no_grad():
        run_recipe(
            recipes()["Any model of PyTorch"], torch=torch, model=load_hf(folders["ple"], torch.float32), ids=IDS
        )
    dump, ours = read_any("port.pt", config=models["ple"].outline), models["ple"].record(IDS)
    assert dump.meta["ids"] == IDS
    assert len(dump) > 120
    assert diff(ours, dump, list(dump)).verdict == "same"


@pytest.mark.hf
def test_the_recipe_of_a_live_model_runs(folders, models, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from numgemma.debug.capture.hooks import load_hf

    monkeypatch.chdir(tmp_path)
    hf = load_hf(folders["ple"], torch.float32)
    run_recipe(recipes()["Transformers, as it stands in memory"], model=hf, ids=IDS)
    assert diff(models["ple"].record(IDS), numgemma.read_dump("theirs.safetensors")).verdict == "same"


class Engine:
    """Takes the part of vLLM's LLM."""

    def __init__(self, hf):
        self.hf, self.apply_model = hf, lambda function: [function(hf)]

    def generate(self, prompt, sampling):
        import torch

        with torch.no_grad():
            self.hf(torch.tensor([prompt["prompt_token_ids"]]))


@pytest.mark.hf
def test_the_recipe_of_vllm_runs_on_a_stand_in_and_what_it_writes_is_read(folders, models, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    from numgemma.debug.capture.hooks import load_hf

    monkeypatch.chdir(tmp_path)
    engine = Engine(load_hf(folders["ple"], torch.float32))
    vllm = SimpleNamespace(LLM=lambda *a, **k: engine, SamplingParams=lambda **k: k)
    run_recipe(recipes()["vLLM"], vllm=vllm, torch=torch, copy=copy, ckpt="", ids=IDS)
    dump, ours = read_any("vllm.pt", config=models["ple"].outline), models["ple"].record(IDS)
    assert len(dump) > 100
    assert diff(ours, dump, list(dump)).verdict == "same"
