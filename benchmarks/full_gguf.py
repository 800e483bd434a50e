"""A GGUF file of 31B's shape at full size: its header, its decode and its audit, in time and memory.

    python benchmarks/full_gguf.py DIR --llama BUILD [--layers 60] [--audit]

llama.cpp's own tools convert and quantise (Q4_K_M) six random layers, a whole period of the model, as wide as 31B's;
the file repeats them up to --layers, so that writing it is bound by the disk.  60 layers take 18 GB, and 18 more while
the six are quantised.  With --audit the bfloat16 original is written beside it, 2 GB a layer.  Each step runs with cold
files in a process of its own; printed are seconds, bytes from disk and the peaks of memory.  Exits with 1 where a bound
does not hold: `inspect` within 2 s, 1 GB of anonymous memory in decode and in audit, nothing WRONG.  Removes what it
wrote.  BUILD is a build folder of llama.cpp (README.md tells how to make one); needs the extra `hf` and the packages
gguf and sentencepiece.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import full_size
import gguf
from disk import forget
from shapes import CONFIGS
from surgery import FAULTS, check, files_of, reading
from to_gguf import convert, source

from numgemma.checkpoint import open_checkpoint
from numgemma.families import find
from numgemma.surgery.synth import synth
from numgemma.surgery.writer import copied, write_checkpoint

PERIOD = 6
LISTS = ("gemma4.attention.sliding_window_pattern", "gemma4.attention.head_count_kv", "gemma4.feed_forward_length")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--llama", type=Path, required=True, metavar="BUILD")
    parser.add_argument("--layers", type=int, default=60, help=f"a multiple of {PERIOD} (60)")
    parser.add_argument("--scale", choices=("pilot", "full"), default="full", help="a smaller model, to try this out")
    parser.add_argument("--audit", action="store_true", help="against the original, which is written beside it")
    args = parser.parse_args()
    if args.layers % PERIOD:
        parser.error(f"--layers: {args.layers} is no multiple of {PERIOD}")
    with tempfile.TemporaryDirectory(prefix="gguf.", dir=args.folder) as scratch:
        measure(Path(scratch), args)
    print("\n".join(FAULTS) or "all as it should be")
    return 1 if FAULTS else 0


def measure(work, args):
    part, whole, original = work / "part", work / "whole.gguf", work / "original"
    period(part, args.scale)
    repeat(quantised(part, args.llama), whole, args.layers // PERIOD)
    if args.audit:
        write_original(part, original, args.layers // PERIOD)
    print(f"{args.layers} layers in {whole.stat().st_size / 1e9:.1f} GB", flush=True)
    step([], "inspect", whole)  # so that Python's own files are read
    spent, _ = step([whole], "inspect", whole)
    check(spent < 2, f"inspect took {spent:.1f} s")
    ids = ",".join(str(1000 + 7 * i) for i in range(full_size.TOKENS))
    for new in (1, 4):
        _, peak = step([whole], "generate", whole, "--ids", ids, "--max-new-tokens", new, "--ignore-eos", "--print-ids")
        check(peak < 1e9, f"decode took {peak / 1e9:.2f} GB of anonymous memory")
    if args.audit:
        audit(whole, original, work / "audit.json")


def audit(whole, original, out):
    files = [whole, *files_of([original])]
    forget(files)
    reading(files)
    _, peak = step(files, "audit", whole, "--against", original, "--json", out)
    check(peak < 1e9, f"audit took {peak / 1e9:.2f} GB of anonymous memory")
    states = [row["state"] for row in json.loads(out.read_text())["tensors"]]
    print({state: states.count(state) for state in sorted(set(states))})
    check(set(states) == {"FAITHFUL"}, "audit finds more than faithful tensors")


def period(folder, scale):
    """The random checkpoint of as many layers as the pattern of attention has."""
    text = json.loads((CONFIGS / "gemma-4-31B-it.json").read_text())["text_config"]
    kinds = text["layer_types"][:PERIOD]
    short = {"num_hidden_layers": PERIOD, "layer_types": kinds, "architectures": ["Gemma4ForCausalLM"]}
    folder.with_suffix(".json").write_text(json.dumps(text | short))
    synth(str(folder.with_suffix(".json")), folder, scale, unread=False)


def quantised(folder, llama):
    plain, coded = folder.with_suffix(".bf16.gguf"), folder.with_suffix(".Q4_K_M.gguf")
    convert(folder, "bf16", plain, source(llama))
    subprocess.run([llama / "bin/llama-quantize", plain, coded, "Q4_K_M"], check=True, capture_output=True)
    plain.unlink()
    return coded


def repeat(part, whole, times):
    """Write a GGUF file with all layers of another so many times."""
    reader = gguf.GGUFReader(part)
    writer = gguf.GGUFWriter(whole, "gemma4")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kinds = [gguf.GGUFValueType(kind) for kind in field.types]
            writer.add_key_value(key, longer(key, field.contents(), times), kinds[0], *kinds[1:2])
    tensors = [(name, x) for x in reader.tensors for name in names(x.name, times)]
    for name, x in tensors:
        writer.add_tensor_info(name, x.data.shape, x.data.dtype, x.data.nbytes, x.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, x in tensors:
        writer.write_tensor_data(x.data)
    writer.close()


def longer(key, value, times):
    if key == "gemma4.block_count":
        return value * times
    return value * times if key in LISTS and isinstance(value, list) else value


def names(name, times, start="blk."):
    """blk.4.attn_q.weight -> its names in all repetitions"""
    if not name.startswith(start):
        return [name]
    layer, _, leaf = name.removeprefix(start).partition(".")
    return [f"{start}{int(layer) + PERIOD * i}.{leaf}" for i in range(times)]


def write_original(part, target, times):
    checkpoint = open_checkpoint(part)
    config = checkpoint.config | {"num_hidden_layers": PERIOD * times}
    config["layer_types"] = checkpoint.config["layer_types"] * times
    stored = find(config, str(part)).stored_name
    tensors = {
        stored(name, config["model_type"]): copied(x)
        for short, x in checkpoint.weights.tensors.items()
        for name in names(short, times, "layers.")
    }
    write_checkpoint(target, config, tensors, {})


def step(files, *verb):
    """A verb of numgemma with cold files.  -> seconds, peak of anonymous memory in bytes"""
    forget(files)
    begun = time.monotonic()
    command = [sys.executable, "-m", "numgemma", *map(str, verb)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak: dict[str, int] = {}
    threading.Thread(target=watch, args=(process.pid, peak), daemon=True).start()
    status = process.wait()
    seconds = time.monotonic() - begun
    told = ", ".join(f"{key} {value / 1e9:.2f} GB" for key, value in peak.items())
    print(f"{verb[0]}{' of ' + str(verb[5]) if verb[0] == 'generate' else ''}: {seconds:.1f} s, {told}", flush=True)
    check(status == 0, f"{verb[0]} ended with {status}")
    return seconds, peak.get("anonymous", 0)


def watch(pid, peak, keys=(("status", "RssAnon", 1024, "anonymous"), ("io", "read_bytes", 1, "from disk"))):
    """Look at a process every 20 ms until it is gone."""
    while True:
        for file, key, unit, name in keys:
            try:
                lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/{file}").read_text().splitlines())
            except OSError:
                return
            if key not in lines:
                return
            peak[name] = max(peak.get(name, 0), int(lines[key].split()[0]) * unit)
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
