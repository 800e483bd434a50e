"""Kinds of files that a family of its own has, and those of formats beside safetensors; kinds.KINDS takes them in."""

import json
from pathlib import Path

import numpy as np
import tiny
import tiny3n
import tiny_drafter
import tiny_embedding
from safetensors.numpy import save_file

import numgemma
from hostile_input.mutants import mutated_bytes, mutated_json
from numgemma.cli.common import read_inputs
from numgemma.config import MOST
from numgemma.denoise import checkpoint_settings, recorded_draws
from numgemma.prompt.media import read_media
from numgemma.prompt.tasks import read_tasks
from numgemma.surgery.lint import structure
from numgemma.weights.safetensors import open_safetensors

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODEL: list = []  # that prompts are read for: made once, of a checkpoint that no mutant touches


def look_at_family(folder):
    structure(folder)
    numgemma.load(folder)


def embedding(folder):
    """With the files of sentence-transformers."""
    tiny_embedding.write(folder, tiny_embedding.WHOLE)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    steps = [{"idx": i, "path": path, "type": f"s.{kind}"} for i, (path, kind) in enumerate(kinds.items())]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True, "include_prompt": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    told = {"prompts": {"query": "task: search result | query: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(told))


def given_tasks(folder):
    words, usual = read_tasks(folder, 48)
    assert all(isinstance(text, str) for text in words.values())
    assert usual is None or usual in words


def processed(folder):
    """What Transformers' processor returns, and a checkpoint."""
    ids, arrays = tiny.multimodal_prompt("e4b")
    rows = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    save_file(rows | arrays, folder / "x.safetensors")
    MODEL[:] = [numgemma.load(tiny.write(folder / "ckpt", tiny.E4B))]


def given_inputs(folder):
    for prompt in read_inputs(folder / "x.safetensors", MODEL[0]):
        MODEL[0].checked(prompt.ids, prompt.media)


def sampled(folder):
    """DiffusionGemma's settings, and what chance decided in another run."""
    told = {"max_new_tokens": 18, "max_denoising_steps": 12, "sampler_config": {"entropy_bound": 0.5}, "t_min": 0.4}
    tiny.write(folder, tiny.DIFFUSION, generation=told | {"t_max": 0.8, "eos_token_id": [1, 106], "pad_token_id": 0})
    draws = ("0.first_canvas", "0.0.sampled", "0.0.random")
    save_file({name: np.arange(6, dtype=np.int32) for name in draws}, folder / "d.safetensors")


def given_settings(folder):
    how = checkpoint_settings(numgemma.load(folder))
    assert how.max_denoising_steps <= MOST["max_denoising_steps"]


def given_draws(folder):
    draw = recorded_draws(dict(open_safetensors(folder / "d.safetensors").tensors), 6, 199, "d.safetensors")
    tokens = draw("0.first_canvas", None)
    assert 0 <= tokens.min() <= tokens.max() < 199


def file_of(name):
    def write(folder):
        (folder / "x.gguf").write_bytes((FIXTURES / name).read_bytes())

    return write


def run_file(folder):
    model = numgemma.load(folder / "x.gguf")
    list(model.checkpoint.tokenizer()["model"]["vocab"])


def towers(folder):
    for name in ("text", "mmproj"):
        (folder / f"{name}.gguf").write_bytes((FIXTURES / f"gguf_towers/26b/{name}.gguf").read_bytes())


def run_towers(folder):
    ids, arrays = tiny.multimodal_prompt("26b")
    numgemma.load(folder).logits(ids, read_media(arrays))


def lora(folder):
    tiny.write(folder / "base", tiny.PLE)
    file_of("adapters/ple-lora/adapter.gguf")(folder)


def run_lora(folder):
    numgemma.load(folder / "base", adapters=[folder / "x.gguf"]).logits([5, 6])


FAMILIES = {
    "gemma3n": lambda folder: tiny3n.write(folder, tiny3n.WHOLE),
    "unified": lambda folder: tiny.write(folder, tiny.UNIFIED),
    "diffusion": lambda folder: tiny.write(folder, tiny.DIFFUSION),
    "drafter": lambda folder: tiny_drafter.write(folder, "clustered"),
    "embedding": embedding,
}
KINDS = {name: (write, "config.json", mutated_json, look_at_family) for name, write in FAMILIES.items()} | {
    "tasks": (embedding, "config_sentence_transformers.json", mutated_json, given_tasks),
    "modules": (embedding, "modules.json", mutated_json, given_tasks),
    "pooling": (embedding, "1_Pooling/config.json", mutated_json, given_tasks),
    "sampler": (sampled, "generation_config.json", mutated_json, given_settings),
    "draws": (sampled, "d.safetensors", mutated_bytes, given_draws),
    "inputs": (processed, "x.safetensors", mutated_bytes, given_inputs),
    "gguf3n": (file_of("gguf/3n-Q4_0.gguf"), "x.gguf", mutated_bytes, run_file),
    "mmproj": (towers, "mmproj.gguf", mutated_bytes, run_towers),
    "lora": (lora, "x.gguf", mutated_bytes, run_lora),
}
