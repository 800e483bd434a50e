"""Random checkpoints for the benchmarks: E2B's text model in full, a small one like it, a small one of experts.

    python benchmarks/shapes.py [--out DIR] [e2b medium moe]

Weights are bfloat16 and plausible (`numgemma synth` draws them), written by streaming.  No tokenizer: the benchmarks
work on token ids.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from numgemma.surgery.synth import synth

CONFIGS = Path(__file__).parents[1] / "numgemma" / "data" / "configs"

WINDOWED = ["sliding_attention"] * 5 + ["full_attention"]

# name: the released model whose text config it takes, and what differs.  The sizes behind are those of all tensors that
# are read, in billions of numbers.
SHAPES: dict[str, tuple[str, dict]] = {
    "e2b": ("gemma-4-E2B-it", {}),  # 4.63
    "medium": (  # 0.36: the tables of a full vocabulary would be three times the rest
        "gemma-4-E2B-it",
        {
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 12,
            "num_kv_shared_layers": 6,
            "layer_types": WINDOWED * 2,
            "vocab_size": 32768,
            "vocab_size_per_layer_input": 32768,
        },
    ),
    "moe": (  # 2.4, of which a token uses 0.46
        "gemma-4-26B-A4B-it",
        {
            "hidden_size": 1024,
            "intermediate_size": 1536,
            "moe_intermediate_size": 640,
            "num_hidden_layers": 8,
            "layer_types": [*WINDOWED, "sliding_attention", "full_attention"],
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
        },
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"of {', '.join(SHAPES)}; default: all")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "bench", help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="write again what is there")
    args = parser.parse_args()
    if unknown := [shape for shape in args.shapes if shape not in SHAPES]:
        parser.error(f"{unknown[0]} is not one of the shapes {', '.join(SHAPES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for shape in args.shapes or SHAPES:
        folder = args.out / shape
        if folder.exists() and not args.force:
            print(f"{folder}: is there; --force writes it again")
            continue
        write(shape, folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder}: {size / 1e9:.2f} GB", flush=True)


def write(shape, folder):
    """The checkpoint of that shape, as a text model with a config of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(config(shape), file)
    try:
        synth(file.name, folder, unread=False, force=True)
    finally:
        os.unlink(file.name)


def config(shape):
    """Its config.json."""
    released, changes = SHAPES[shape]
    raw = json.loads((CONFIGS / f"{released}.json").read_text())
    return {**raw["text_config"], **changes, "architectures": ["Gemma4ForCausalLM"]}


if __name__ == "__main__":
    main()
