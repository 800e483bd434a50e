"""Checkpoints as llama.cpp reads them: one GGUF file beside each folder, converted by llama.cpp's own script.

    python benchmarks/to_gguf.py --llama BUILD [--dtype bf16 f32] SHAPE_DIR ...

BUILD is a build folder of llama.cpp (benchmarks/README.md tells how to make one).  A checkpoint without a tokenizer
lends itself one of bytes for the conversion: llama.cpp opens no model without a vocabulary.  Needs the extra `hf` and
the packages gguf and sentencepiece.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

DTYPES = ("bf16", "f32")

# the converter, which knows a vocabulary by its hash, and for Gemma 3n takes no other: the one that is lent is none
RUN = """
import runpy, sys
sys.path.insert(0, folder := sys.argv.pop(1))
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "default"
sys.argv[0] = folder + "/convert_hf_to_gguf.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="SHAPE_DIR")
    parser.add_argument("--llama", type=Path, required=True, metavar="BUILD", help="a build folder of llama.cpp")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES[:1], help="default: bf16")
    args = parser.parse_args()
    for folder in args.folders:
        for dtype in args.dtype:
            path = gguf_path(folder, dtype)
            if path.exists():
                print(f"{path}: is there; remove it to convert again")
                continue
            convert(folder, dtype, path, source(args.llama))
            print(f"{path}: {path.stat().st_size / 1e9:.2f} GB", flush=True)


def gguf_path(folder, dtype):
    """Where a checkpoint's GGUF of that dtype lies: /shapes/medium -> /shapes/medium.bf16.gguf"""
    folder = Path(os.path.abspath(folder))
    return folder.with_name(f"{folder.name}.{dtype}.gguf")


def source(build):
    """The sources that a build folder was made from, as CMake noted them."""
    return Path(re.search(r"CMAKE_HOME_DIRECTORY:\w+=(.*)", (build / "CMakeCache.txt").read_text())[1])


def convert(folder, dtype, path, llama, *options):
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".gguf-") as work:
        lent = Path(work) / folder.name
        lent.mkdir()
        for file in folder.iterdir():
            (lent / file.name).symlink_to(file.resolve())
        if not (folder / "tokenizer.json").exists():
            lend_tokenizer(lent)
        made = Path(work) / path.name
        command = [sys.executable, "-c", RUN, llama, lent, "--outtype", dtype, "--outfile", made, *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{folder}: llama.cpp's converter failed:\n{done.stderr[-2000:]}")
        made.rename(path)


def lend_tokenizer(folder):
    """tokenizer.json and tokenizer_config.json of bytes, with one merge: llama.cpp takes no vocabulary without."""
    from numgemma.pieces import SPACE
    from numgemma.surgery.tokens import byte_tokenizer

    raw = json.loads((folder / "config.json").read_text())
    made = byte_tokenizer(raw, (raw.get("text_config") or raw)["vocab_size"])
    pieces = made["model"]["vocab"]
    pieces[2 * SPACE] = pieces.pop("<unused500>")
    made["model"]["merges"] = [[SPACE, SPACE]]
    (folder / "tokenizer.json").write_text(json.dumps(made))
    names = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
