"""Folders and files of named tensors: `.pt` of sglang's and vLLM's dumpers, `.npy`, `.npz`, bare safetensors.

Names that are module paths are mapped by themselves; for others there is a map file.  Products that an engine makes in
one (`qkv_proj`, `gate_up_proj`) are split where the model's config gives the widths.
"""

import re
import zipfile
import zlib
from io import BytesIO

import ml_dtypes
import numpy as np

from numgemma.debug.readers.common import Haul, make_dump, token_ids
from numgemma.debug.readers.mapping import Mapping
from numgemma.debug.readers.names import Unfit, fit, is_batched, sizes_for
from numgemma.debug.readers.torch_file import read_torch, stored
from numgemma.errors import InputError
from numgemma.json_files import explained
from numgemma.weights.safetensors import MAX_TENSORS, open_safetensors

INFLATED = 1 << 31  # bytes that one compressed .npz may grow to
IDS = re.compile(r"(prompt_)?(input_ids|tokens|token_ids)$")
SGLANG = re.compile(r"(\w+?)=(.*?)(?:___|$)")
RANK = re.compile(r"(?:^|[_/])(?:rank|TP)[=_]?(\d+)", re.IGNORECASE)


def read_tensors(path, kind, table=None, config=None):
    """A Dump from a folder or a file of one kind: "pt", "npy", "npz" or "safetensors"."""
    named = list(LISTED[kind](path))
    ids = next((token_ids(x, path) for name, x in named if IDS.search(name)), None)
    mapping = Mapping(table, path)
    found, unused = [], {}
    for label, x in named:
        for point, part in mapping.points(label, x, config):
            if point:
                found.append((point, label, part))
            elif not IDS.search(label):
                unused[label] = "no point of ours"
    arrays, axes = fitted(found, unused, mapping, config)
    engine = {"pt": "torch dump", "npy": "NumPy files", "npz": "NumPy archive", "safetensors": "safetensors"}[kind]
    return make_dump(path, engine, Haul(arrays, axes, unused=unused), ids=ids)


def fitted(found, unused, mapping, config):
    """arrays and axes; the first tensor of a name counts."""
    arrays, axes = {}, {}
    batched = is_batched([(point, x.shape) for point, _, x in found])
    for point, label, x in found:
        if point in arrays:
            unused[label] = f"a second {point}"
            continue
        try:
            arrays[point], axes[point] = fit(point, x, sizes_for(point, config), batched)
            axes[point] = mapping.axes.get(point, axes[point])
        except Unfit as error:
            unused[label] = str(error)
    return arrays, axes


def from_safetensors(path):
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    for file in files:
        yield from open_safetensors(file).tensors.items()


def from_npy(path):
    for file in sorted(path.glob("*.npy")) if path.is_dir() else [path]:
        yield file.stem, load_npy(file)


def load_npy(file):
    """A memory-mapped array.  Objects are never unpickled."""
    with explained(file):
        try:
            return real(np.load(file, mmap_mode="r", allow_pickle=False), file)
        except (ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError) as error:
            raise InputError(f"{file}: is no array of numbers ({first_line(error)}); write it with np.save.") from None


def from_npz(path):
    """The arrays of an archive; compressed ones are inflated, within reason."""
    with explained(path):
        try:
            with zipfile.ZipFile(path) as archive:
                members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
                inflated = sum(info.file_size for info in members if info.compress_type)
                if inflated > INFLATED or len(members) > MAX_TENSORS:
                    raise InputError(f"{path}: would inflate to more than {INFLATED} bytes; write it with np.savez.")
                for info in members:
                    raw = stored(path, info).tobytes() if not info.compress_type else archive.read(info)
                    yield info.filename.removesuffix(".npy"), real(np.load(BytesIO(raw), allow_pickle=False), path)
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError, SyntaxError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: is damaged ({first_line(error)}); write it again with np.savez.") from None
        except (zlib.error, TypeError, OverflowError, MemoryError) as error:
            raise InputError(f"{path}: is damaged ({first_line(error)}); write it again with np.savez.") from None


def real(x, file):
    """The array, bfloat16 where NumPy knew only that a value has two bytes."""
    if x.dtype.str[1:] == "V2":
        x = x.view(ml_dtypes.bfloat16)
    if x.dtype.kind not in "fiub" and x.dtype != ml_dtypes.bfloat16:
        raise InputError(f"{file}: holds values of type {x.dtype}, not numbers; write floats or integers.")
    return x


def first_line(error):
    return str(error).splitlines()[0][:100] if str(error) else type(error).__name__


def from_pt(path):
    """name -> tensor of every .pt below a folder: one tensor per file, or one dict of them per pass."""
    files = sorted(path.rglob("*.pt")) if path.is_dir() else [path]
    if len(files) > MAX_TENSORS:
        raise InputError(f"{path}: holds {len(files)} files; give the folder of one run.")
    passes = [file for file in files if re.fullmatch(r"Pass\d+\.pt", file.name)]
    if passes:
        check_one([file.parent for file in passes], path)
        files = passes[:1]  # the first pass is the prompt, the others are one new token each
    check_one([match[1] for file in files if (match := RANK.search(str(file.relative_to(path.parent))))], path)
    for file in files:
        yield from named_tensors(file, read_torch(file))


def check_one(ranks, path):
    if len(set(ranks)) > 1:
        raise InputError(f"{path}: holds the shards of {len(set(ranks))} ranks; dump a run on one (tensor parallel 1).")


def named_tensors(file, value):
    """The tensors of one file: {"value", "meta"} of sglang's dumper, a tensor, or a dict of them."""
    if isinstance(value, dict) and isinstance(value.get("value"), np.ndarray):
        value = value["value"]
    if isinstance(value, np.ndarray):
        yield file_label(file), value
        return
    for key, x in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        if isinstance(x, list):  # a module that returned several: the first is its output
            x = next((y for y in x if isinstance(y, np.ndarray)), None)
        if isinstance(x, np.ndarray):
            yield str(key), x


def file_label(file):
    """The name in a file's name: `step=0___rank=0___name=attn_out___layer_id=3.pt`, or the file's own."""
    fields = dict(SGLANG.findall(file.stem))
    if "name" not in fields:
        return file.stem
    layer = fields.get("layer_id")
    return f"layers.{layer}.{fields['name']}" if layer and "layers." not in fields["name"] else fields["name"]


LISTED = {"pt": from_pt, "npy": from_npy, "npz": from_npz, "safetensors": from_safetensors}
