"""Remakes tests/fixtures/gguf/: small checkpoints converted and quantised by llama.cpp itself.

    python reference_outputs/make_gguf.py --llama BUILD

BUILD is a build folder of llama.cpp with llama-quantize in it (benchmarks/README.md tells how to make one).  Needs the
extra `hf` and the packages gguf and sentencepiece.  The originals are remade by tests/gguf_shapes.py.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
import gguf_shapes  # noqa: E402
from to_gguf import convert, source  # noqa: E402

OUT = ROOT / "tests/fixtures/gguf"
RECIPES = {"ple": ("Q4_K_M", "Q2_K"), "moe": ("Q4_0", "Q5_K_M")}


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


if __name__ == "__main__":
    main()
