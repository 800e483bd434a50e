"""LoRA adapters, unmerged: a stored tensor, and what an adapter adds to it.

    W' = W + s B A        s = alpha / r, or alpha / sqrt(r) with rsLoRA       (Hu et al. 2021, arXiv 2106.09685)
    W' = m (W + s B A) / |W + s B A|, row by row                              (DoRA, Liu et al. 2024, arXiv 2402.09353)

A product with it is two products more, in the order of operations that PEFT has, so that an adapter that runs beside
its base can be compared with one that was merged.  Files of PEFT (Unsloth's are such), MLX and llama.cpp are read.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from numgemma.config import section, typed
from numgemma.errors import InputError
from numgemma.incoming import NAME, pattern_of, read_object
from numgemma.weights.gguf import open_gguf
from numgemma.weights.gguf_adapter import read_gguf_adapter
from numgemma.weights.packed import parts_of
from numgemma.weights.safetensors import open_safetensors, read_header

PEFT, MLX = "adapter_model.safetensors", "adapters.safetensors"

# Settings of PEFT under which a layer computes something else; and beginnings that take from the base what A and B get.
MORE = ("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "use_bdlora", "use_qalora")
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

LEAF = re.compile(r"(.+?)\.(lora_(?:A|B|a|b|embedding_A|embedding_B|magnitude_vector))(?:\.default)?(?:\.weight)?")


@dataclass(frozen=True, eq=False)
class Adapted:
    """A stored tensor under an adapter.  A: r I   B: O r   magnitude: O, of DoRA; of a stack of experts E first

    table: of an embedding, whose rows are adapted; as a head that is tied to it, it stays as it is, as in PEFT.
    """

    base: Any
    A: np.ndarray
    B: np.ndarray
    factor: float
    magnitude: np.ndarray | None = None
    table: bool = False

    shape = property(lambda self: self.base.shape)
    ndim = property(lambda self: len(self.base.shape))
    size = property(lambda self: math.prod(self.base.shape))
    dtype = property(lambda self: self.base.dtype)
    enters = property(lambda self: self.base.enters)  # of codes alone
    nbytes = property(lambda self: sum(part.nbytes for part in self.parts))
    parts = property(lambda self: (*parts_of(self.base), self.A, self.B))

    def __len__(self):
        return self.base.shape[0]

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        """Rows as merged ones would be, float32; of a stack, one expert's matrix under its own adapter."""
        if self.ndim == 3:
            return replace(self, base=self.base[key], A=self.A[key], B=self.B[key])
        rows = np.asarray(self.base[key], np.float32) + np.float32(self.factor) * (wide(self.B[key]) @ wide(self.A))
        if self.magnitude is None:
            return rows
        return rows * (wide(self.magnitude[key]) / np.linalg.norm(rows, axis=-1))[..., None]

    def astype(self, dtype, copy=True):
        """The same, with all that is stored as that dtype holds it."""
        magnitude = None if self.magnitude is None else self.magnitude.astype(dtype)
        A, B = self.A.astype(dtype), self.B.astype(dtype)
        return replace(self, base=self.base.astype(dtype), A=A, B=B, magnitude=magnitude)

    def times(self, x, linear, scale):
        """x W'^T as PEFT computes it: the base's product, and beside it x through A, then B, then the factor."""
        if self.table:
            return linear(x, self.base)
        beside = scale(linear(linear(x, self.A), self.B), self.factor)
        if self.magnitude is None:
            return linear(x, self.base) + beside
        plain = linear(x, self.base)
        share = (wide(self.magnitude) / self.norms()).astype(x.dtype)
        return plain + (share - x.dtype.type(1)) * plain + share * beside

    def norms(self):
        """|W + s B A|, row by row, a block of rows at a time.  -> O"""
        merged, rows = replace(self, magnitude=None), max(1, (1 << 22) // self.shape[1])
        return np.concatenate(
            [np.linalg.norm(merged[i : i + rows], axis=-1) for i in range(0, len(self), rows)], dtype=np.float32
        )


def wide(x):
    return np.asarray(x, np.float32)


def adapted(tensors: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The tensors of a base, with one adapter laid over them.  Raises InputError where it does not fit the base."""
    config, modules, whole = read_adapter(Path(folder))
    found = dict(tensors)
    for name, tensor in whole.items():
        name = name.replace(".base_layer", "")
        target = name if name in found else name.replace(".weight", ".linear.weight")
        if target not in found or tuple(found[target].shape) != tensor.shape:
            raise InputError(f"{folder}: holds {name!r:.120} whole, and the base has no such tensor of its shape.")
        found[target] = tensor
    for module, leaves in modules.items():
        for target, layer in over(folder, module, leaves, found, config).items():
            found[target] = layer
    return found


def file_of(folder: Path) -> Path:
    """The file of an adapter's weights.  Raises InputError where there is none."""
    path = next((folder / name for name in (PEFT, MLX) if (folder / name).exists()), None)
    if path is not None:
        return path
    if (folder / "adapter_model.bin").exists():
        raise InputError(f"{folder}: adapter_model.bin is not unpickled, as that can run code; save as safetensors.")
    raise InputError(f"{folder}: has neither {PEFT} nor {MLX}; name the folder of a LoRA adapter.")


def header_hash(path: Path) -> str:
    """The hash of the header of an adapter's weights."""
    return open_gguf(path).header_hash if path.suffix == ".gguf" else read_header(file_of(path)).sha256


def read_adapter(folder: Path):
    """-> its settings, module as it was trained -> leaf -> array, and tensors that it replaces"""
    if folder.suffix == ".gguf":
        return read_gguf_adapter(folder)
    path = file_of(folder)
    config = read_object(folder / "adapter_config.json", "copy adapter_config.json beside the adapter's weights")
    check_kind(folder, config)
    modules: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    whole: dict[str, np.ndarray] = {}
    for stored, tensor in open_safetensors(path).tensors.items():
        split = LEAF.fullmatch(stored.removeprefix("base_model.model."))
        if split:
            modules[split[1]][split[2]] = tensor  # under the name that the patterns of adapter_config.json mean
        else:
            whole[bare(stored).replace(".modules_to_save", "").replace(".default", "")] = tensor
    return config, dict(modules), whole


def check_kind(folder, config):
    kind = config.get("peft_type", config.get("fine_tune_type", "LORA"))
    if str(kind).lower() not in ("lora", "dora"):
        raise InputError(f"{folder}: is an adapter of the kind {kind!r:.40}, and LoRA alone is read; merge it first.")
    if config.get("fan_in_fan_out"):
        raise InputError(f"{folder}: fan_in_fan_out is true, and no matrix of Gemma is stored so; correct its config.")
    if more := next((key for key in MORE if config.get(key)), None):
        raise InputError(f"{folder}: adapter_config.json sets {more}, which is more than W + s B A; merge it in PEFT.")
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.startswith(CHANGE_THE_BASE):
        raise InputError(
            f"{folder}: init_lora_weights is {begun!r:.40}, which changed the base before training; save it from PEFT "
            "as a plain LoRA (path_initial_model_for_weight_conversion)."
        )


def bare(stored):
    """Without the prefixes of PEFT and of the classes it was trained in."""
    name = stored.removeprefix("base_model.model.")
    return re.sub(r"^(model\.language_model|language_model\.model|language_model|model)\.", "", name)


def over(folder, module, leaves, tensors, config):
    """One module's adapter over the base's tensor: its name there -> what stands in its place."""
    if "lora_a" in leaves:  # MLX: transposed to PEFT's, and its scale is no alpha
        check_axes(folder, module, *(leaves.get(leaf, np.zeros(0)) for leaf in ("lora_a", "lora_b")))
        A, B = (np.ascontiguousarray(np.swapaxes(leaves[leaf], -1, -2)) for leaf in ("lora_a", "lora_b"))
        told = section(config, "lora_parameters", folder).get("scale", 20.0)
        scale = typed(told, float, f"{folder}: adapter_config.json: scale")
        return {target_of(folder, module, tensors, A, B): layered(folder, module, tensors, A, B, scale, None)}
    pair = [leaves.get(f"lora_{kind}{half}") for half in "AB" for kind in ("", "embedding_")]
    there = [x for x in pair if x is not None]
    if len(there) != 2:
        raise InputError(f"{folder}: {module!r:.120} lacks one of lora_A and lora_B; save the adapter again.")
    A, B = there
    check_axes(folder, module, A, B)
    if "lora_embedding_A" in leaves:
        A, B = B.T, A.T  # the table is [V, D], and a row is what A has of the token, times B
    target = target_of(folder, module, tensors, A, B)
    if len(tensors[target].shape) == 3 and A.ndim == 2:
        A, B = of_experts(folder, module, A, B, tensors[target].shape)
    rank = A.shape[-2]
    factor, magnitude = factor_of(folder, module, config, rank), leaves.get("lora_magnitude_vector")
    if config.get("use_dora") and magnitude is None:
        raise InputError(f"{folder}: use_dora is true, and {module!r:.120} has no magnitudes; save the adapter again.")
    found = layered(folder, module, tensors, A, B, factor, magnitude, target)
    return {target: replace(found, table="lora_embedding_A" in leaves)}


def check_axes(folder, module, *halves):
    """Both halves of an adapter are matrices of floats, or stacks of them."""
    if not all(x.ndim in (2, 3) and x.size and x.dtype.kind not in "iub" for x in halves):
        shapes = " and ".join(str(list(x.shape)) for x in halves)
        raise InputError(f"{folder}: {module!r:.120} has halves {shapes}, which are no two matrices; save it again.")


def layered(folder, module, tensors, A, B, factor, magnitude, target=None):
    target = target or target_of(folder, module, tensors, A, B)
    base = tensors[target]
    if (*B.shape[:-1], A.shape[-1]) != tuple(base.shape) or A.shape[-2] != B.shape[-1]:
        told = f"A {list(A.shape)} and B {list(B.shape)}"
        raise InputError(
            f"{folder}: {module!r:.120} has {told} for a tensor {list(base.shape)}; it is of another base."
        )
    if magnitude is not None and magnitude.shape != base.shape[:1]:
        raise InputError(f"{folder}: {module!r:.120} has magnitudes {list(magnitude.shape)}; save the adapter again.")
    return Adapted(base, A, B, float(factor), magnitude)


def target_of(folder, module, tensors, A, B):
    """The base's tensor that a module's adapter is for: of experts the first parameter is in base_layer."""
    plain = bare(re.sub(r"(\.base_layer)+$", "", module))
    names = [f"{plain}.weight", f"{plain}.linear.weight", plain]
    if plain.endswith("experts"):
        widths = {
            name: tensors[name].shape
            for leaf in ("gate_up_proj", "down_proj")
            if (name := f"{plain}.{leaf}") in tensors
        }
        names += [name for name, shape in widths.items() if B.shape[0] == shape[1] and A.shape[1] == shape[2]]
        names += [name for name, shape in widths.items() if B.shape[0] == shape[2] and A.shape[1] == shape[1]]
    for name in names:
        if name in tensors:
            return name
    raise InputError(
        f"{folder}: is for a module {module!r:.120} that the base does not have; check which base it is of."
    )


def of_experts(folder, module, A, B, shape):
    """PEFT's joined adapters of all experts, one by one.  A: E r, I by expert   B: O, r E by rank"""
    E, O, I = shape
    if A.shape[0] % E or A.shape[1] != I or B.shape[0] != O:
        told = f"A {list(A.shape)} and B {list(B.shape)}"
        raise InputError(f"{folder}: {module!r:.120} has {told} for experts {list(shape)}; save it with a newer PEFT.")
    r = A.shape[0] // E
    return A.reshape(E, r, I), np.ascontiguousarray(B.reshape(O, r, E).transpose(2, 0, 1))


def matches(folder, pattern, module) -> bool:
    """Whether a pattern of PEFT means that module, or the end of its name after a dot."""
    whole = pattern_of(pattern, f"{folder}: adapter_config.json's pattern")
    ends = [0, *(dot.end() for dot in re.finditer(r"\.", module))]
    return len(module) <= NAME and any(whole.fullmatch(module, end) for end in ends)


def factor_of(folder, module, config, rank) -> float:
    """alpha / r, or alpha / sqrt(r), with what the patterns say of this module."""
    said = patterned(folder, module, config, "rank_pattern", config.get("r", rank))
    alpha = patterned(folder, module, config, "alpha_pattern", config.get("lora_alpha", config.get("r", rank)))
    where = f"{folder}: adapter_config.json: the alpha of {module:.120}"
    if said != rank or rank < 1:
        raise InputError(f"{folder}: {module!r:.120} has rank {rank}, and adapter_config.json says {said}; correct it.")
    return typed(alpha, float, where) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def patterned(folder, module, config, patterns, usual):
    """What the first pattern that means the module says, as in PEFT; `usual` where none does."""
    said = section(config, patterns, folder).items()
    return next((value for pattern, value in said if matches(folder, pattern, module)), usual)
