"""Remakes tests/fixtures: what other engines' own tools write, so that the readers are tested on the real thing.

    python reference_outputs/make_fixtures.py --source LLAMA.CPP --bin BUILD/bin

Needs the extra `hf`, and llama.cpp in source and built: `cmake -B BUILD -DLLAMA_CURL=OFF LLAMA.CPP`, then
`cmake --build BUILD --target llama-eval-callback llama-debug`.  The source package of llama-cpp-python 0.3.36, which
was used, holds one under vendor/llama.cpp; its converter needs the packages gguf and sentencepiece.
"""

import argparse
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "tests" / "fixtures"
sys.path.insert(0, str(HERE.parent / "tests"))

import numpy as np  # noqa: E402
import tiny  # noqa: E402

from numgemma import load  # noqa: E402
from numgemma.debug.capture.hooks import import_hf, load_hf  # noqa: E402
from numgemma.weights.safetensors import open_safetensors  # noqa: E402

V = 1024
TOKENS = {"vocab_size": V, "vocab_size_per_layer_input": V, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
# llama.cpp lets sharing layers read the last two layers before them, a sliding one and a full one, as in E2B and E4B
SHARING = {"layer_types": [tiny.KINDS[kind] for kind in "ssfsfssf"], "num_kv_shared_layers": 3}
VARIANTS = {"ple": tiny.PLE | TOKENS | SHARING, "moe": tiny.MOE | TOKENS}
PROMPT = "the cat sat"
HF_IDS = [0, 355, 17, 900]
FAULT = "blk.3.attn_k_norm.weight"  # in the faulty twin, times 1.05
EXACT = ["-t", "1", "-c", "64", "-ctk", "f32", "-ctv", "f32", "-fa", "off"]  # a cache in float32


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, metavar="LLAMA.CPP")
    parser.add_argument("--bin", type=Path, required=True, metavar="BUILD/bin")
    args = parser.parse_args()
    FIXTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = write_checkpoints(Path(folder))
        for name, checkpoint in checkpoints.items():
            llama(name, convert(args.source, checkpoint), args.bin)
        faulty(checkpoints["ple"].with_suffix(".gguf"), args.bin)
        debugger(checkpoints["ple"], "bfloat16", use_repr=False)
        debugger(checkpoints["moe"], "float32", use_repr=True)
        torch_files(checkpoints["ple"])
        manifest = {name: digest(checkpoint) for name, checkpoint in checkpoints.items()}
    (FIXTURES / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{sum(path.stat().st_size for path in FIXTURES.iterdir()):,} bytes in {FIXTURES}")


def write_checkpoints(folder):
    """Random checkpoints, each beside a vocabulary that llama.cpp's converter takes."""
    found = {name: tiny.write(folder / name, raw, dtype="float32") for name, raw in VARIANTS.items()}
    for checkpoint in found.values():
        (checkpoint / "tokenizer.json").write_text(json.dumps(vocabulary()))
        special = {f"{kind}_token": f"<{kind}>" for kind in ("bos", "eos", "pad", "unk")}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
        (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    return found


def vocabulary():
    """A tokenizer.json: bytes, ASCII, four merges, and words that never come up."""
    special = ["<bos>", "<eos>", "<pad>", "<unk>"]
    tokens = [*special, *(f"<0x{b:02X}>" for b in range(256)), "▁", *map(chr, range(33, 127))]
    tokens += ["th", "he", "▁t", "▁the"]
    tokens += [f"<unused{i}>" for i in range(V - len(tokens))]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    decoders = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}]
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text} | flags for i, text in enumerate(special)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [0], "tokens": ["<bos>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [*decoders, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": [["t", "h"], ["h", "e"], ["▁", "t"], ["▁t", "he"]],
        },
    }


def convert(source, checkpoint):
    """The checkpoint as a GGUF file in float32, by llama.cpp's own converter."""
    out = checkpoint.with_suffix(".gguf")
    script = str(source / "convert_hf_to_gguf.py")
    command = [sys.executable, script, str(checkpoint), "--outtype", "f32", "--outfile", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out


def llama(name, gguf, tools):
    """The whole log of one run; of the PLE model also a filtered one, with its warm-up, and the logits."""
    log = run([tools / "llama-eval-callback", "-m", gguf, "-p", PROMPT, *EXACT])
    keep(f"llama_eval_callback_{name}.txt", log)
    if name == "ple":
        wanted = ["--tensor-filter", "l_out.*", "--tensor-filter", "result_norm"]
        keep(
            "llama_debug_ple.txt", run([tools / "llama-debug", "-m", gguf, "-p", PROMPT, *EXACT, "--verbose", *wanted])
        )
        with tempfile.TemporaryDirectory() as folder:
            run(
                [
                    tools / "llama-debug",
                    "-m",
                    gguf,
                    "-p",
                    PROMPT,
                    *EXACT,
                    "--save-logits",
                    "--logits-output-dir",
                    folder,
                ]
            )
            for file in ("llamacpp-ple.bin", "llamacpp-ple-tokens.bin"):
                shutil.copy(Path(folder) / file, FIXTURES)


def faulty(gguf, tools):
    """The log of a checkpoint with one norm scaled by 1.05, for instance by a converter."""
    import gguf as package

    twin = gguf.with_stem("faulty")
    shutil.copy(gguf, twin)
    reader = package.GGUFReader(twin, "r+")
    tensor = next(t for t in reader.tensors if t.name == FAULT)
    tensor.data[:] = np.float32(1.05) * tensor.data
    reader.data.flush()
    keep("llama_eval_callback_faulty.txt", run([tools / "llama-eval-callback", "-m", twin, "-p", PROMPT, *EXACT]))


def run(command, times=5):
    """What a tool prints, its log and its tensors.  It loses the last lines when it ends: the best of a few runs."""
    logs = []
    for _ in range(times):
        done = subprocess.run(list(map(str, command)), capture_output=True, check=True)
        logs.append((done.stderr + done.stdout).decode())
    return max(logs, key=len)


def keep(name, log):
    """Compressed, and without the views and permutations of tensors that are there anyway."""
    blocks = log.replace("\ncommon_debug_cb_eval:", "\0common_debug_cb_eval:").split("\0")
    kept = [blocks[0], *(block for block in blocks[1:] if "(view)" not in block.partition(" = ")[0])]
    data = "\n".join(block.strip("\n") for block in kept).encode()
    (FIXTURES / f"{name}.gz").write_bytes(gzip.compress(data, 9, mtime=0))


def debugger(checkpoint, dtype, use_repr):
    """A run under Transformers' debugger, as a zip archive of the folder that it writes."""
    torch, transformers = import_hf()
    with tempfile.TemporaryDirectory() as folder:
        model = load_hf(checkpoint, getattr(torch, dtype))
        with transformers.model_addition_debugger_context(model, debug_path=folder, use_repr=use_repr):
            model.forward(input_ids=torch.tensor([HF_IDS]), use_cache=False)
        name = f"hf_debugger_{'repr' if use_repr else 'files'}.zip"
        with zipfile.ZipFile(FIXTURES / name, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for file in sorted(Path(folder).iterdir()):
                if use_repr or file.suffix == ".safetensors":
                    archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes(), zipfile.ZIP_DEFLATED)


def torch_files(checkpoint):
    """What torch.save makes of a few points: a dict of one pass, and one file per tensor with its description."""
    torch, _ = import_hf()
    dump = load(checkpoint).record(HF_IDS, ["layers.[01].*"])
    heads = [
        torch.tensor(np.array(dump[f"layers.1.self_attn.{name}"])).flatten(1) for name in ("q_proj", "k_proj", "v_proj")
    ]
    tensors = {
        "model.layers.0.mlp.down_proj": torch.tensor(np.array(dump["layers.0.mlp.down_proj"])).bfloat16(),
        "model.layers.0.mlp.up_proj": torch.tensor(np.array(dump["layers.0.mlp.up_proj"])).T.contiguous().T,
        "model.layers.1.self_attn.qkv_proj": torch.cat(heads, 1),
        "model.layers.1": (torch.tensor(np.array(dump["layers.1.out"])), None),
        "model.layers.1.input_layernorm": torch.nn.Parameter(torch.tensor(np.array(dump["layers.1.input_layernorm"]))),
        "input_ids": torch.tensor(HF_IDS),
    }
    torch.save(tensors, FIXTURES / "Pass00000.pt")
    saved = {"value": tensors["model.layers.0.mlp.down_proj"], "meta": {"rank": 0, "dtype": torch.bfloat16, "step": 0}}
    torch.save(saved, FIXTURES / "step=0___rank=0___dump_index=3___name=down___layer_id=0.pt")


def digest(checkpoint):
    """Of the weights: the tests say when their checkpoint is no longer the fixtures'."""
    tensors = open_safetensors(checkpoint / "model.safetensors").tensors
    return hashlib.sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors))).hexdigest()


if __name__ == "__main__":
    main()
