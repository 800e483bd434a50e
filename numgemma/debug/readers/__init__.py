"""Other engines' dumps, read into ours: names mapped, batch axis dropped, and how exact they are carried along.

Transformers   with model_addition_debugger_context(model, debug_path="folder", use_repr=False): model.forward(...)
llama.cpp      llama-eval-callback -m model.gguf -p "text" -ctk f32 -ctv f32 -fa off > log.txt 2>&1
               llama-debug -m model.gguf -p "text" --save-logits
sglang         --debug-tensor-dump-output-folder FOLDER
any other      np.save, np.savez, torch.save or safetensors, under module paths or with a map file

    names         whose tensor is it: other engines' names -> our points and axes
    common        what every reader ends with: a Dump that says how exact it is
    mapping       a map file, for names that are no module paths
    torch_file    what `torch.save` wrote, without torch and without unpickling
    states        Transformers' output_hidden_states, in a list, a stack or a folder
    tensors       folders and files of .pt, .npy, .npz and .safetensors
    golden        JSON and JSONL with logits, or with the likeliest tokens
    hf_debugger   Transformers' own debugger
    llama_text    llama.cpp's printed tensors
    llama_logits  llama.cpp's files of logits
"""

from pathlib import Path

from numgemma.debug.readers.common import encoding_of, summary
from numgemma.debug.readers.golden import is_golden, read_golden
from numgemma.debug.readers.hf_debugger import read_hf_debugger
from numgemma.debug.readers.llama_logits import is_logits, read_llama_logits
from numgemma.debug.readers.llama_text import read_llama_text
from numgemma.debug.readers.tensors import read_tensors
from numgemma.dump import Dump, read_dump
from numgemma.errors import InputError
from numgemma.incoming import explained, open_regular
from numgemma.weights.safetensors import open_safetensors

__all__ = ["read_any", "summary"]

READ = (
    "a dump, the folder of Transformers' debugger, a log of llama-eval-callback or llama-debug, llamacpp-*.bin, "
    "golden logits as JSON or JSONL, or .pt, .npy, .npz, .safetensors"
)


def read_any(path, map=None, config=None) -> Dump:
    """A Dump from whatever lies at `path`.

    map: a JSON file, a preset's name or a dict, their names -> our points, for .pt, .npy, .npz and safetensors.
    config: the model's outline, with which joined axes and fused products are split.
    Raises InputError where nothing there can be read.
    """
    path = Path(path)
    with explained(path, "check the path"):
        path.stat()
    if path.is_dir():
        return read_folder(path, map, config)
    kind = path.suffix.removeprefix(".")
    if kind == "safetensors":
        file = open_safetensors(path)
        if "numgemma" in file.metadata:
            return read_dump(path)
        if all(name.endswith((".weight", ".bias", "_scalar", "_min", "_max")) for name in file.tensors) and not map:
            raise InputError(f"{path}: holds weights, no activations; run it with `numgemma dump`.")
        return read_tensors(path, kind, map, config)
    if is_logits(path):
        return read_llama_logits(path)
    if kind in ("pt", "npy", "npz"):
        return read_tensors(path, kind, map, config)
    if kind == "jsonl" or (kind == "json" and is_golden(path)):
        return read_golden(path)
    if kind == "json":
        return read_hf_debugger(path, config)
    if looks_like_text(path):
        return read_llama_text(path)
    raise InputError(f"{path}: is none of what can be read, which is {READ}.")


def read_folder(path, map, config):
    if any(path.glob("*_debug_tree_*.json")) or any(path.glob("*_outputs.safetensors")):
        return read_hf_debugger(path, config)
    logits = [file for file in sorted(path.glob("*.bin")) if is_logits(file)]
    if len(logits) > 1:
        raise InputError(f"{path}: holds {len(logits)} files of logits; name one of them, as {logits[0].name}.")
    if logits:
        return read_llama_logits(logits[0])
    for kind, glob in (("pt", "**/*.pt"), ("npy", "*.npy"), ("safetensors", "*.safetensors")):
        if next(path.glob(glob), None):
            return read_tensors(path, kind, map, config)
    raise InputError(f"{path}: is a folder with none of what can be read, which is {READ}.")


def looks_like_text(path):
    """Whether a file may be a log: no zero byte near its beginning."""
    with open_regular(path) as file, explained(path):
        return encoding_of(file) != "utf-8" or b"\0" not in file.read(1 << 16)
