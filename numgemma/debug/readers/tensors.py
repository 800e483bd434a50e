"""Folders and files of named tensors: `.pt` of sglang's and vLLM's dumpers, `.npy`, `.npz`, bare safetensors.

Names that are module paths are mapped by themselves; for others there is a map file.  Products that an engine makes in
one (`qkv_proj`, `gate_up_proj`) are split where the model's config gives the widths.
"""

import math
import re
import zipfile
from io import BytesIO

import numpy as np

from numgemma.debug.readers.common import Haul, make_dump, token_ids
from numgemma.debug.readers.mapping import Mapping, by_itself
from numgemma.debug.readers.names import Unfit, fit, is_batched, sizes_for
from numgemma.debug.readers.states import STACK, states, unstacked
from numgemma.debug.readers.torch_file import read_torch, stored
from numgemma.errors import InputError
from numgemma.incoming import by_library, open_regular
from numgemma.smallfloats import BFLOAT16, computable
from numgemma.weights.safetensors import MAX_TENSORS, open_safetensors

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
LONGEST_HEADER = 1 << 14  # bytes of a .npy file's; np.load reads no longer one
INFLATED = 1 << 31  # bytes that one compressed .npz may grow to
IDS = ("input_ids", "tokens", "token_ids", "prompt_input_ids", "prompt_tokens", "prompt_token_ids")
SGLANG = re.compile(r"(\w+?)=(.*?)(?:___|$)")
RANK = re.compile(r"(?:^|[_/])(?:rank|TP)[=_]?(\d+)", re.IGNORECASE)


def read_tensors(path, kind, table=None, config=None):
    """A Dump from a folder or a file of one kind: "pt", "npy", "npz" or "safetensors"."""
    named = list(LISTED[kind](path))
    named = list(unstacked(named)) if table is None else named
    ids = next((token_ids(x, path) for name, x in named if are_ids(name, x)), None)
    mapping = Mapping(table or by_itself(label for label, _ in named), path)
    listed = states({n: x for n, x in named if not are_ids(n, x)}, config, path) if table is None else {}
    found, unused = [], {}
    for label, x in named:
        for point, part in [(listed[label], x)] if label in listed else mapping.points(label, x, config):
            if point:
                found.append((point, label, part))
            elif not are_ids(label, x):
                unused[label] = "no point of ours"
    arrays, axes = fitted(found, unused, mapping, config, path)
    engine = {"pt": "torch dump", "npy": "NumPy files", "npz": "NumPy archive", "safetensors": "safetensors"}[kind]
    return make_dump(path, engine, Haul(arrays, axes, unused=unused), ids=ids)


def are_ids(name, x):
    """Whether a tensor is the prompt: by the last part of its name, and integers."""
    return name.rpartition(".")[2] in IDS and x.dtype.kind in "iu"


def fitted(found, unused, mapping, config, path):
    """arrays and axes; the first tensor of a name counts."""
    arrays, axes = {}, {}
    batched = is_batched([(point, x.shape) for point, _, x in found], path)
    for point, label, x in found:
        if point in arrays:
            unused[label] = f"a second {point}"
            continue
        try:
            arrays[point], axes[point] = fit(point, x, sizes_for(point, config), batched)
            axes[point] = mapping.axes.get(point, axes[point])
            if axes[point] and len(axes[point].split()) != arrays[point].ndim:
                shape = list(arrays[point].shape)
                raise InputError(f"{mapping.source}: axes '{axes[point]:.40}' do not fit '{label:.60}' of {shape}.")
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


def load_npy(path):
    """A memory-mapped array.  Objects are never unpickled."""
    with open_regular(path) as file, by_library(f"{path}: is no array of numbers", "write it with np.save"):
        return real(parse_npy(np.memmap(file, np.uint8, "r")), path)


def from_npz(path):
    """The arrays of an archive; compressed ones are inflated, within reason."""
    damaged = by_library(f"{path}: is damaged", "write it again with np.savez")
    with open_regular(path) as file, damaged, zipfile.ZipFile(file) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        inflated = sum(info.file_size for info in members if info.compress_type)
        if inflated > INFLATED or len(members) > MAX_TENSORS:
            raise InputError(f"{path}: would inflate to more than {INFLATED} bytes; write it with np.savez.")
        for info in members:
            raw = np.frombuffer(archive.read(info), np.uint8) if info.compress_type else stored(path, info)
            yield info.filename.removesuffix(".npy"), real(parse_npy(raw), path)


def parse_npy(raw):
    """The array that the bytes of a .npy file hold, as a view of them.  raw: n uint8

    Not np.load: that takes the header's word for the size, and room for it before it looks what is there.
    """
    header = BytesIO(raw[:LONGEST_HEADER].tobytes())
    version = np.lib.format.read_magic(header)
    if version not in HEADERS:
        raise ValueError(f"its version is {version}")
    shape, by_columns, dtype = HEADERS[version](header)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    data = raw[header.tell() :]
    if math.prod(shape) * dtype.itemsize != data.size or not dtype.itemsize:
        raise ValueError(f"{data.size} bytes are no {dtype} of shape {list(shape)!r:.60}")
    return data.view(dtype).reshape(shape, order="F" if by_columns else "C").view(np.ndarray)


def real(x, file):
    """The array, bfloat16 where NumPy knew only that a value has two bytes."""
    if x.dtype.str[1:] == "V2":
        x = computable(x.view(BFLOAT16))
    if x.dtype.kind not in "fiub" and x.dtype != BFLOAT16:
        raise InputError(f"{file}: holds values of type {x.dtype}, not numbers; write floats or integers.")
    return x


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
        if isinstance(x, list) and STACK.fullmatch(str(key)):
            yield from ((f"hidden_states.{i}", y) for i, y in enumerate(x) if isinstance(y, np.ndarray))
            continue
        if isinstance(x, dict):  # an entry of nnsight's cache
            x = x.get("output")
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
