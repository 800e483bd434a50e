"""Remakes tests/fixtures/gguf/ and gguf_towers/: small checkpoints converted and quantised by llama.cpp itself.

    python reference_outputs/make_gguf.py --llama BUILD

BUILD is a build folder of llama.cpp with llama-quantize in it (benchmarks/README.md tells how to make one).  Needs the
extra `hf` and the packages gguf and sentencepiece.  The originals are remade by tests/gguf_shapes.py.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
import gguf  # noqa: E402
import gguf_shapes  # noqa: E402
from to_gguf import convert, source  # noqa: E402

OUT, TOWERS = ROOT / "tests/fixtures/gguf", ROOT / "tests/fixtures/gguf_towers"
RUNS = {
    "ple-Q4_K_M": None,
    "moe-Q5_K_M": None,
    "moe-Q4_0.halves": None,
    "ple-Q4_K_M.faulty": ("blk.2.ffn_norm.weight", 1.3),
}
RECIPES = {"ple": ("Q4_K_M", "Q2_K"), "moe": ("Q4_0", "Q5_K_M"), "3n": ("Q4_0",)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=Path, required=True, metavar="BUILD", help="a build folder of llama.cpp")
    args = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for name, recipes in RECIPES.items():
            folder, plain = gguf_shapes.write(Path(work) / name, name), Path(work) / f"{name}.gguf"
            convert(folder, "bf16", plain, source(args.llama))
            for recipe in recipes:
                out = OUT / f"{name}-{recipe}.gguf"
                quantise = [args.llama / "bin/llama-quantize", plain, out, recipe, "1"]
                subprocess.run(quantise, check=True, capture_output=True)
                print(out.name, out.stat().st_size)
        for name in gguf_shapes.SEEN:
            folder, out = gguf_shapes.write(Path(work) / name, name), TOWERS / name
            out.mkdir(parents=True, exist_ok=True)
            (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0] * 3, "image_std": [1] * 3}))
            convert(folder, "bf16", out / "text.gguf", source(args.llama))
            convert(folder, "bf16", out / "mmproj.gguf", source(args.llama), "--mmproj")
        for name, change in RUNS.items():
            run(args.llama / "bin", Path(work), name, change)


def run(tools, work, name, change):
    """llama.cpp's own run of a file, or of one with a weight changed: what it prints, and its logits."""
    recipe = name.partition(".")[0]
    file = OUT / f"{recipe}.gguf" if change is None else changed(OUT / f"{recipe}.gguf", work / f"{name}.gguf", *change)
    plain = ["-m", file, "-p", "abc def hello", "-fa", "off", "-t", "1", "--no-warmup"]
    cache = [] if name.endswith(".halves") else ["-ctk", "f32", "-ctv", "f32"]
    command = [tools / "llama-debug", *plain, *cache]
    made = subprocess.run([*command, "--verbose"], check=True, capture_output=True, text=True)
    with gzip.open(OUT / f"{name}.txt.gz", "wt") as out:
        out.write(made.stdout + made.stderr)
    logits = work / name
    subprocess.run([*command, "--save-logits", "--logits-output-dir", logits], check=True, capture_output=True)
    tokens = next(logits.glob("*-tokens.bin"))
    shutil.copy(tokens, OUT / f"llamacpp-{name}-tokens.bin")
    shutil.copy(tokens.with_name(tokens.name.replace("-tokens", "")), OUT / f"llamacpp-{name}.bin")


def changed(path, out, tensor, factor):
    """A copy of a file with one tensor of floats scaled."""
    shutil.copy(path, out)
    found = next(t for t in gguf.GGUFReader(out, "r+").tensors if t.name == tensor)
    found.data[:] *= factor
    return out


if __name__ == "__main__":
    main()
