"""The kinds of files that enter: a sound one in a folder, and how it is read.

A kind is (name of the file, how it is mutated, what reads the folder).  What reads it may check what it accepts, and
fails with Wrong where that is not right.
"""

import json
from pathlib import Path

import numpy as np
import tiny
import tiny_tokenizer

import numgemma
from hostile_input import families
from hostile_input.mutants import mutated_bytes, mutated_json, mutated_text
from numgemma.debug.compare.diff import diff
from numgemma.debug.compare.name_map import parse_map
from numgemma.debug.noise.floor import measure_floor, read_floor
from numgemma.debug.readers import read_any
from numgemma.debug.sweep import Order, Trends, sweep
from numgemma.debug.sweep.ledger import Ledger
from numgemma.debug.sweep.page import to_html
from numgemma.debug.sweep.prompts import Question, read_questions
from numgemma.prompt.audio import read_sound
from numgemma.prompt.chat import attachments, read_chat
from numgemma.prompt.images import open_image
from numgemma.prompt.processor import read_processor
from numgemma.prompt.template import Template, render
from numgemma.prompt.tokenizer import open_tokenizer
from numgemma.surgery.lint import structure
from numgemma.surgery.recipe import read_recipe

HOSTILE = Path(__file__).parents[1] / "hostile"
FIXTURES = Path(__file__).parents[1] / "fixtures"
IDS = [5, 6, 7, 8]


class Wrong(AssertionError):
    """A mutant was accepted, and what came of it is not right."""


def holds(condition, what):
    if not condition:
        raise Wrong(what)


# what reads a folder


def run_checkpoint(folder):
    structure(folder)
    model = numgemma.load(folder)
    logits = model.logits(IDS[:2])  # by NumPy: nothing is compiled, which would take longer than a mutant may
    holds(logits.shape == (2, model.config.text.vocab_size) and np.isfinite(logits).all(), "logits that are none")
    sampling, V = model.sampling(), model.config.text.vocab_size
    holds(all(0 <= i < V for i in {*model.stop_ids, *sampling.suppress}), "a token that no embedding has")


def look_at_checkpoint(folder):
    structure(folder)
    numgemma.load(folder)


def read_one(folder, name, **how):
    dump = read_any(folder / name, **how)
    found = diff(dump, dump)
    holds(found.exit_code in (0, 3, 4), f"a dump differs from itself: {found.verdict}")


def mapped(folder):
    dump = read_any(folder / "x.npz", folder / "m.json")
    diff(read_any(folder / "a.safetensors"), dump)


def rendered(folder):
    source = (folder / "t.jinja").read_text(encoding="utf-8", errors="replace")
    text = render(
        Template(source, "t.jinja"), {"messages": [{"role": "user", "content": "hello"}], "bos_token": "<bos>"}
    )
    holds(isinstance(text, str), "no text")


def tokenised(folder):
    tokenizer = open_tokenizer(folder)
    ids = tokenizer.encode("hello (((( there")
    holds(isinstance(tokenizer.decode(ids), str), "no text")


def chatted(folder):
    chat = read_chat(folder / "c.json")
    attachments(chat.messages)


def heard(folder):
    sound = read_sound(next(folder.glob("x.*")), read_processor(folder).sound)
    holds(sound.ndim == 1 and np.isfinite(sound).all(), "samples that are no numbers")


def seen(folder):
    holds(open_image(next(folder.glob("x.*"))).mode == "RGB", "no RGB")


def mapped_layers(folder):
    parse_map((folder / "l.txt").read_text(encoding="utf-8", errors="replace"))


# sound files


def checkpoint(folder):
    tiny.write(folder, tiny.PLE)


def multimodal(folder):
    tiny.write(folder, tiny.MULTIMODAL["e4b"])


def sharded(folder):
    """A checkpoint in two files and their index."""
    from safetensors.numpy import load_file, save_file

    tiny.write(folder, tiny.DENSE)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in halves.items():
        save_file({name: tensors[name] for name in some}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, some in halves.items() for name in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def generation(folder):
    checkpoint(folder)
    said = {"eos_token_id": [1, 3], "suppress_tokens": [4], "bos_token_id": 2, "temperature": 1.0}
    (folder / "generation_config.json").write_text(json.dumps(said))


def dumped(folder):
    model = numgemma.load(tiny.write(folder / "ckpt", tiny.PLE))
    model.record(IDS, ["layers.*.out", "logits"]).save(folder / "a.safetensors")


def arrays(folder):
    dumped(folder)
    dump = numgemma.read_dump(folder / "a.safetensors")
    named = {f"blk.{i}.attn": np.array(dump[f"layers.{i}.out"]) for i in range(3)}
    np.savez(folder / "x.npz", **named)
    np.savez_compressed(folder / "y.npz", **{f"layers.{i}": x for i, x in enumerate(named.values())})
    np.save(folder / "layers.0.out.npy", named["blk.0.attn"])
    rule = {"point": "layers.{i}.out", "transpose": [0, 1], "axes": "T D"}
    (folder / "m.json").write_text(json.dumps({"blk.{i}.attn": rule, "other": "norm"}))


def floored(folder):
    model = numgemma.load(tiny.write(folder / "ckpt", tiny.MOE))
    measure_floor(model, IDS, "float32", runs=3).save(folder / "f.json")


def logged(folder):
    lines = ["number of input tokens = 4", *(f"  {i}" for i in IDS)]
    for i in range(3):
        lines.append(
            f"common_debug_cb_eval:  l_out-{i} = (f32)  ADD(a-{i}{{4, 2, 1, 1}}, b{{4, 2, 1, 1}}) = {{4, 2, 1, 1}}"
        )
        lines += ["  [", "   [", *["    [  0.1234,  -1.5000,  2.0000,  nan ],"] * 2, "   ],", "  ]", "  sum = 1.250000"]
    (folder / "x.txt").write_text("\n".join(lines) + "\n")


def tree(folder):
    leaf = {"shape": "torch.Size([1, 4, 3])", "dtype": "torch.float32", "value": ["tensor([[[1.0, 2.0, 3.0]] * 4)"]}
    node = {"module_path": "Gemma4TextModel.layers.0", "inputs": {"args": [leaf]}, "outputs": leaf, "children": []}
    top = {"module_path": "Gemma4TextModel", "inputs": None, "outputs": leaf, "children": [node]}
    (folder / "x.json").write_text(json.dumps(top))


def golden(folder):
    """Logits as JSON, and the likeliest tokens as vLLM has them."""
    logits = np.random.default_rng(0).normal(size=(3, 12)).round(3).tolist()
    (folder / "g.json").write_text(json.dumps({"tokens": [2, 7, 9], "logits": logits}))
    likely = [None, {"7": {"logprob": -0.1, "rank": 1}, "3": {"logprob": -2.5}}, {"9": {"logprob": -0.2}}]
    (folder / "g.jsonl").write_text(json.dumps({"prompt_token_ids": [2, 7, 9], "prompt_logprobs": likely}))


def logits(folder):
    for name in ("llamacpp-ple.bin", "llamacpp-ple-tokens.bin"):
        fixture(name)(folder)


def hidden_states(folder):
    states = np.random.default_rng(0).normal(size=(7, 1, 4, 6)).astype(np.float32)
    np.savez(folder / "x.npz", hidden_states=states)


def recipe(folder):
    part = "- sources:\n  - model: a\n    layer_range: [0, 4]\n"
    text = f"merge_method: passthrough\nbase_model: a\ndtype: bfloat16\nslices:\n{part}{part}"
    (folder / "r.yaml").write_text(text)


def template(folder):
    text = (
        "{% for m in messages %}<|turn>{{ m['role'] }}\n{{ m.content | trim }}<turn|>\n{% endfor %}\n"
        "{% if add_generation_prompt %}{{ bos_token ~ 'x' * 3 }}{% endif %}\n{{ raise_exception('no') if tools }}"
    )
    (folder / "t.jinja").write_text(text)


def tokenizer(folder):
    tiny_tokenizer.write(folder)


def processor(folder):
    official = Path(numgemma.__file__).parent / "data" / "processor" / "gemma4.json"
    (folder / "processor_config.json").write_bytes(official.read_bytes())


def chat(folder):
    items = [{"type": "text", "text": "hello"}, {"type": "image", "path": "a.png"}]
    (folder / "c.json").write_text(json.dumps([{"role": "user", "content": items}, {"role": "model", "content": "hi"}]))


def swept(folder):
    """Three prompts, and the rows of a sweep of them."""
    (folder / "p.jsonl").write_text(
        '"once"\n[5, 6, 7]\n{"name": "a", "messages": [{"role": "user", "content": "hi"}]}\n'
    )
    questions = [Question(str(n), "ids", list(range(3, 3 + n))) for n in (2, 4, 9)]
    sweep(Order([str(tiny.write(folder / "ckpt", tiny.TEXT))], ["float32"], questions, workers=0), folder / "o.jsonl")


def shown(folder):
    with Ledger(folder / "o.jsonl") as ledger:
        found = Trends.of(list(ledger.rows.values()))
    json.dumps(found.to_json(), allow_nan=False)
    holds("</html>" in to_html(found, "a", "b"), "half a page")
    found.records()


def quantised(folder):
    """A checkpoint whose matrices are codes of four bits, in Transformers' own names."""
    from safetensors.numpy import load_file, save_file

    tiny.write(folder, tiny.PLE)
    tensors = load_file(folder / "model.safetensors")
    found = {}
    for name, x in tensors.items():
        if x.ndim == 2 and x.shape[1] % 16 == 0 and ".layers." in name:
            w = np.asarray(x, np.float32).reshape(len(x), -1, 16)
            scale = np.abs(w).max(-1) / 7.5 + 1e-9
            codes = (np.clip(np.rint(w / scale[..., None]), -8, 7) + 8).astype(np.uint8).reshape(x.shape)
            packed = (codes[:, ::2] | codes[:, 1::2] << 4).copy()
            packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4))).view(np.int32)
            module = name.removesuffix(".weight")
            found |= {f"{module}.weight_packed": packed, f"{module}.weight_scale": scale.astype(np.float32)}
            found[f"{module}.weight_shape"] = np.array(x.shape)
        else:
            found[name] = x
    save_file(found, folder / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 16}}}
    raw["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": groups}
    (folder / "config.json").write_text(json.dumps(raw))


def gguf(folder):
    (folder / "x.gguf").write_bytes((FIXTURES / "gguf/moe-Q4_0.gguf").read_bytes())


def run_gguf(folder):
    model = numgemma.load(folder / "x.gguf")
    list(model.checkpoint.tokenizer()["model"]["vocab"])
    holds(model.logits(IDS[:2]).shape == (2, model.outline.vocabulary), "logits that are none")


def adapter(folder):
    tiny.write(folder / "base", tiny.VARIANTS["ple"])
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((FIXTURES / "adapters/ple-lora" / name).read_bytes())


def run_adapter(folder):
    model = numgemma.load(folder / "base", adapters=[folder])
    holds(model.logits(IDS[:2]).shape == (2, model.outline.vocabulary), "logits that are none")


def media(name):
    """A file of tests/hostile under the name x."""

    def write(folder):
        (folder / f"x{Path(name).suffix}").write_bytes((HOSTILE / name).read_bytes())

    return write


def fixture(name):
    def write(folder):
        (folder / name).write_bytes((FIXTURES / name).read_bytes())

    return write


# kind -> what writes the sound files, the one that is mutated, how, what reads
KINDS = {
    "header": (checkpoint, "model.safetensors", mutated_bytes, look_at_checkpoint),
    "config": (checkpoint, "config.json", mutated_json, run_checkpoint),
    "towers": (multimodal, "config.json", mutated_json, look_at_checkpoint),
    "index": (sharded, "model.safetensors.index.json", mutated_json, look_at_checkpoint),
    "generation": (generation, "generation_config.json", mutated_json, run_checkpoint),
    "quantised": (quantised, "config.json", mutated_json, look_at_checkpoint),
    "codes": (quantised, "model.safetensors", mutated_bytes, look_at_checkpoint),
    "gguf": (gguf, "x.gguf", mutated_bytes, run_gguf),
    "adapter": (adapter, "adapter_config.json", mutated_json, run_adapter),
    "delta": (adapter, "adapter_model.safetensors", mutated_bytes, run_adapter),
    "dump": (dumped, "a.safetensors", mutated_bytes, lambda folder: read_one(folder, "a.safetensors")),
    "metadata": (dumped, "a.safetensors", "metadata", lambda folder: read_one(folder, "a.safetensors")),
    "npy": (arrays, "layers.0.out.npy", mutated_bytes, lambda folder: read_one(folder, "layers.0.out.npy")),
    "npz": (arrays, "x.npz", mutated_bytes, mapped),
    "inflated": (arrays, "y.npz", mutated_bytes, lambda folder: read_one(folder, "y.npz")),
    "pickle": (fixture("Pass00000.pt"), "Pass00000.pt", mutated_bytes, lambda f: read_one(f, "Pass00000.pt")),
    "map": (arrays, "m.json", mutated_json, mapped),
    "layers": (lambda f: (f / "l.txt").write_text("18:10,20-22:11-13"), "l.txt", mutated_text, mapped_layers),
    "floor": (floored, "f.json", mutated_json, lambda folder: read_floor(folder / "f.json")),
    "log": (logged, "x.txt", mutated_text, lambda folder: read_one(folder, "x.txt")),
    "tree": (tree, "x.json", mutated_json, lambda folder: read_one(folder, "x.json")),
    "golden": (golden, "g.json", mutated_json, lambda folder: read_one(folder, "g.json")),
    "likely": (golden, "g.jsonl", mutated_json, lambda folder: read_one(folder, "g.jsonl")),
    "logits": (logits, "llamacpp-ple.bin", mutated_bytes, lambda folder: read_one(folder, "llamacpp-ple.bin")),
    "tokens": (logits, "llamacpp-ple-tokens.bin", mutated_bytes, lambda folder: read_one(folder, "llamacpp-ple.bin")),
    "states": (hidden_states, "x.npz", mutated_bytes, lambda folder: read_one(folder, "x.npz")),
    "recipe": (recipe, "r.yaml", mutated_text, lambda folder: read_recipe(folder / "r.yaml")),
    "template": (template, "t.jinja", mutated_text, rendered),
    "tokenizer": (tokenizer, "tokenizer.json", mutated_json, tokenised),
    "processor": (processor, "processor_config.json", mutated_json, read_processor),
    "chat": (chat, "c.json", mutated_json, chatted),
    "prompts": (swept, "p.jsonl", mutated_text, lambda folder: read_questions(folder / "p.jsonl")),
    "rows": (swept, "o.jsonl", mutated_text, shown),
    "png": (media("picture_rgb.png"), "x.png", mutated_bytes, seen),
    "jpeg": (media("picture_progressive.jpg"), "x.jpg", mutated_bytes, seen),
    "wav": (media("sound_16k.wav"), "x.wav", mutated_bytes, heard),
    "flac": (media("sound_16k.flac"), "x.flac", mutated_bytes, heard),
} | families.KINDS
