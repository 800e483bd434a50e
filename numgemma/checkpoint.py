"""A checkpoint: config.json beside one file of weights, or beside shards that an index lists, as a tree of weights."""

import hashlib
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from numgemma.errors import InputError
from numgemma.incoming import AGAIN, explained, read_object
from numgemma.smallfloats import BFLOAT16, cast
from numgemma.weights import gguf_gemma, gguf_gemma3n, gguf_mmproj
from numgemma.weights.gguf import open_gguf
from numgemma.weights.gguf_gemma import check_architecture
from numgemma.weights.gguf_tokenizer import holds_tokenizer, tokenizer_of
from numgemma.weights.quantised import unpacked
from numgemma.weights.safetensors import TensorFile, open_safetensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FITS = "check that config.json belongs to these weights"


# Before the names of a decoder's weights; before those of what it shares with an encoder, and of that one's tower.
PREFIX = re.compile(
    r"(model\.language_model|language_model\.model|language_model|(model\.)?decoder"
    r"|(model\.)?encoder(?=\.(vision_tower|embed_vision)\.)|model)\."
)


def short_name(stored: str) -> str:
    """The name without its prefix: model.language_model.norm.weight -> norm.weight."""
    found = PREFIX.match(stored)
    return stored[found.end() :] if found else stored


@dataclass(frozen=True, eq=False)
class Weights:
    """A read-only tree: w.at("layers.3").at("self_attn")["q_proj.weight"]; iterates over the names below its scope."""

    tensors: Mapping[str, np.ndarray]
    source: str | Path = "these weights"
    scope: str = ""  # ends in a dot when not empty
    entered: Callable[[str], object] = str  # is told of each scope that is entered; `streaming` listens

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self:
            raise InputError(f"{self.source}: has no tensor {self.scope + name!r}; {FITS}.")
        return self.tensors[self.scope + name]

    def __contains__(self, name: str) -> bool:
        return self.scope + name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self.scope) for name in self.tensors if name.startswith(self.scope))

    def at(self, scope: str) -> "Weights":
        self.entered(self.scope + scope)
        return replace(self, scope=f"{self.scope}{scope}.")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What the files of a model say, before anybody asks what kind of model it is."""

    folder: Path  # of config.json
    config: dict[str, Any]
    weights: Weights
    header_hashes: dict[str, str]  # file name -> sha256 of its header
    generation_config: dict[str, Any] | None = None
    tokenizer: Callable[[], dict[str, Any]] | None = None  # a tokenizer.json that comes with the weights

    @property
    def told_by(self) -> str:
        """The file that says the config: config.json, or a GGUF itself."""
        source = Path(self.weights.source)
        return str(source if source.suffix == ".gguf" else self.folder / "config.json")

    @cached_property
    def samples(self) -> dict[str, str]:
        """Of every weight a hash of a few numbers: headers of two checkpoints of one shape are equal."""
        return {name: sampled(tensor) for name, tensor in sorted(self.weights.tensors.items())}


def sampled(tensor) -> str:
    """A hash of a few numbers of a weight."""
    return hashlib.sha256(few(tensor).tobytes()).hexdigest()[:16]


def few(tensor) -> np.ndarray:
    """The first, the middle and the last row of a weight, of the middle matrix of a stack; all numbers of a vector.

    In bfloat16, in which most copies of a weight are equal.
    """
    while len(tensor.shape) > 2:
        tensor = tensor[len(tensor) // 2]
    if len(tensor.shape) == 2 and len(tensor):
        tensor = np.stack([np.asarray(tensor[i], np.float32) for i in (0, len(tensor) // 2, len(tensor) - 1)])
    with np.errstate(all="ignore"):
        return cast(np.asarray(tensor, np.float32), BFLOAT16)


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor -> shard, from model.safetensors.index.json.  Raises InputError for a shard that lies elsewhere."""
    weight_map = read_object(index, AGAIN).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no weight_map of tensor names to shards; {AGAIN}.")
    for shard in weight_map.values():
        # a plain file name: an index must not make us open files elsewhere
        if not isinstance(shard, str) or not re.fullmatch(r"[\w .-]+\.safetensors", shard):
            raise InputError(
                f"{index}: {reprlib.repr(shard)} is not the name of a .safetensors file beside it; {AGAIN}."
            )
    return weight_map


def open_shards(index: Path) -> dict[str, TensorFile]:
    """Name of a shard -> its file.  Raises InputError where index and shards do not list the same tensors."""
    weight_map = read_weight_map(index)
    files = {shard: open_safetensors(index.parent / shard) for shard in sorted(set(weight_map.values()))}
    listed = set(weight_map.items())
    found = {(name, shard) for shard, file in files.items() for name in file.tensors}
    for name, shard in sorted(listed ^ found):
        fault = "is listed for, but not in," if (name, shard) in listed else "is in, but not listed for,"
        raise InputError(f"{index}: tensor {name!r:.120} {fault} {shard}; download both again.")
    return files


def open_files(path: Path) -> dict[str, TensorFile]:
    """All tensor files of a checkpoint by name; a single file wins over an index, as in Transformers."""
    if gguf_file(path):
        raise InputError(f"{path}: is a GGUF file, which runs and is audited, and is not built from; name safetensors.")
    if not os.path.isdir(path):
        return {path.name: open_safetensors(path)}
    with explained(path):
        names = sorted(os.listdir(path))
    if SINGLE in names:
        return {SINGLE: open_safetensors(path / SINGLE)}
    if INDEX in names:
        return open_shards(path / INDEX)
    for name in ("adapter_model.safetensors", "adapters.safetensors"):
        if name in names:
            raise InputError(f"{path}: is a LoRA adapter; name its base model, and this folder with --adapter.")
    for name in names:
        if name.endswith((".bin", ".pt", ".pth", ".ckpt")):
            raise InputError(f"{path}: {name} is not unpickled, as that can run any code; convert it to safetensors.")
    raise InputError(f"{path}: has neither {SINGLE} nor {INDEX}; name the .safetensors file or its directory.")


def join_files(path: Path, files: dict[str, TensorFile]) -> Weights:
    """All their tensors, by short name.  Raises InputError where two have the same."""
    stored: dict[str, str] = {}
    tensors: dict[str, np.ndarray] = {}
    for file in files.values():
        for name, tensor in file.tensors.items():
            short = short_name(name)
            if short in stored:
                raise InputError(f"{path}: {stored[short]!r} and {name!r} are both {short!r}; remove one of them.")
            stored[short], tensors[short] = name, tensor
    return Weights(MappingProxyType(tensors), path)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A directory, one .safetensors file with its config.json beside it, or a .gguf file, which has all in itself."""
    path = Path(path)
    file = gguf_file(path)
    return open_folder(path) if file is None else open_gguf_file(file)


def gguf_file(path: Path) -> Path | None:
    """The path, if it is of a GGUF file, or the one such file of a text model in a folder without safetensors."""
    if path.suffix == ".gguf":
        return path
    if not path.is_dir() or any((path / name).exists() for name in (SINGLE, INDEX)):
        return None
    with explained(path):
        found = sorted(name for name in os.listdir(path) if re.fullmatch(r"(?!.*mmproj).+\.gguf", name, re.IGNORECASE))
    first = [name for name in found if not re.search(r"-0000[2-9]-of-|-000[1-9]\d-of-", name)]
    if len(first) > 1:
        raise InputError(f"{path}: holds {len(first)} GGUF files; name one of them.")
    return path / first[0] if first else None


def open_gguf_file(path: Path) -> Checkpoint:
    """A .gguf file as a checkpoint, with the towers in the mmproj file beside it."""
    file = open_gguf(path)
    check_architecture(path, file)
    family = gguf_gemma3n if file.keys["general.architecture"] == "gemma3n" else gguf_gemma
    tensors, config, hashes = family.weights_of(path, file), family.config_of(path, file), {path.name: file.header_hash}
    found = gguf_mmproj.beside(path, config["hidden_size"]) if family is gguf_gemma else None
    if found is not None:
        where, more, reader = found
        tensors |= reader.weights_of(where, more)
        config = reader.config_of(where, more, config, file.keys.get("tokenizer.ggml.tokens"))
        hashes[where.name] = more.header_hash
    weights, generation = Weights(MappingProxyType(tensors), path), gguf_gemma.generation_of(file)
    tokenizer = (lambda: tokenizer_of(file)) if holds_tokenizer(file) else None
    return Checkpoint(path.parent, config, weights, hashes, generation, tokenizer)


def open_folder(path: Path) -> Checkpoint:
    """A folder with config.json and .safetensors files, or one such file in it."""
    files = open_files(path)
    folder = path if path.is_dir() else path.parent
    config = read_object(folder / "config.json", "copy config.json from the model's repository, beside the weights")
    generation = folder / "generation_config.json"
    generation_config = read_object(generation, "check its permissions") if generation.exists() else None
    hashes = {name: file.header_hash for name, file in files.items()}
    tensors = unpacked(path, join_files(path, files).tensors, config)
    return Checkpoint(folder, config, Weights(MappingProxyType(tensors), path), hashes, generation_config)


def check_tensors(weights: Weights, expected: Mapping[str, tuple[int, ...]], ignored: Iterable[str] = ()) -> None:
    """Every tensor is there in its shape and read, or matches one of the regular expressions in `ignored`."""
    pattern = re.compile("|".join(f"(?:{one})" for one in ignored) or r"(?!)")
    found = {name: weights[name].shape for name in weights}
    wrong = [name for name in expected if name in found and found[name] != tuple(expected[name])]
    faults = {
        "missing": [repr(name) for name in expected if name not in found],
        "of the wrong shape": [f"{name!r} is {list(found[name])}, not {list(expected[name])}" for name in wrong],
        "read by nobody": [repr(name) for name in found if name not in expected and not pattern.fullmatch(name)],
    }
    lines = [
        f"tensors {fault}: {len(some)} ({', '.join(some[:3])}{', ...' if len(some) > 3 else ''})"
        for fault, some in faults.items()
        if some
    ]
    if lines:
        raise InputError(f"{weights.source}: {'; '.join(lines)}; {FITS}.")
