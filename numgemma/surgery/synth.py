"""A checkpoint of any supported shape with plausible random weights: real names, real files, nothing to download.

Nothing is left at a value that a fault could hide behind: norms, scalars, scales and bounds are all away from 1, 0 and
infinity.  Each tensor has a generator of its own, seeded by its name and the config, so neither the order nor the size
of the pieces in which a checkpoint is written changes a bit of it, and models of two configs share no tensor.
"""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from numgemma.families import Family, find
from numgemma.families.family import as_stored
from numgemma.families.gemma4.shrink import SCALES
from numgemma.incoming import parse_object, read_object
from numgemma.official import official, unknown
from numgemma.opening import located
from numgemma.prompt.processor import released
from numgemma.smallfloats import BFLOAT16, cast
from numgemma.surgery.gemma3 import gemma3_shapes, read_gemma3, shrunk_gemma3
from numgemma.surgery.tokens import byte_tokenizer, tokenizer_config
from numgemma.surgery.writer import PIECE, Tensor, as_json, companions, write_checkpoint

DTYPES = {"bfloat16": BFLOAT16, "float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}

# What all released generation_config.json say.
GENERATION = {"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95, "bos_token_id": 2, "pad_token_id": 0}

PARTS = ("text_config", "vision_config", "audio_config")  # of a config.json, with a dtype of their own


Seed = int | str


def generator(name: str, seed: Seed) -> np.random.Generator:
    """The random numbers of one tensor."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))


def draw(name: str, shape: tuple[int, ...], per_layer: int | None):
    """What makes n numbers of that tensor: a function of a generator and n.  per_layer: width of a per-layer input

    Matrices are scaled by their fan-in, so that a stream of size 1 stays one; vectors lie around what training finds.
    """
    leaf = name.removesuffix(".weight").rpartition(".")[2]
    if leaf in ("input_min", "output_min", "input_max", "output_max"):
        sign = -1 if leaf.endswith("min") else 1
        return lambda rng, n: sign * rng.uniform(2, 4, n)  # normed values reach them now and then
    if leaf == "k_norm":  # stands in for the scale that attention lacks: 1/8 in released models, of width 256
        return lambda rng, n: rng.uniform(1, 3, n) * shape[0] ** -0.5
    if leaf in ("per_dim_scale", "std_bias", "bias", "position_embedding_table", "pos_embedding"):
        return lambda rng, n: 0.3 * normal(rng, n)
    if leaf == "layer_scalar":
        return lambda rng, n: rng.uniform(0.6, 0.95, n)
    if len(shape) <= 1:
        return lambda rng, n: rng.uniform(0.5, 1.5, n)
    if name.endswith("router.proj.weight"):
        return normal  # it reads a vector of length 1, so fan-in is taken care of
    if leaf == "modality_router":
        return lambda rng, n: np.float32(0.7 * shape[-1] ** 0.5) * normal(rng, n)  # it reads a D-th of a normed vector
    if leaf.endswith("tion_coefs"):
        return lambda rng, n: np.float32(0.15) * normal(rng, n)  # added to 1, in every layer
    if leaf == "embed_tokens_per_layer":
        return lambda rng, n: (per_layer or 1) ** -0.5 * normal(rng, n)  # multiplied by sqrt(P) when it is read
    fan_in = math.prod(shape[1:]) if "conv" in leaf or len(shape) == 4 else shape[-1]
    return lambda rng, n: np.float32(fan_in**-0.5) * normal(rng, n)


def normal(rng, n):
    return rng.standard_normal(n, np.float32)


def random_tensor(name: str, shape: tuple[int, ...], dtype: np.dtype, seed: Seed, per_layer: int | None) -> Tensor:
    """The tensor of that short name."""
    if name.endswith("token_ordering"):  # of a drafter: the tokens, cluster by cluster
        return Tensor(shape, np.dtype(np.int64), lambda: [generator(name, seed).permutation(shape[0])])
    make, size, step = draw(name, shape, per_layer), math.prod(shape), PIECE // 4

    def pieces():
        rng = generator(shared_bounds(name), seed)
        for start in range(0, size, step):
            yield cast(np.asarray(make(rng, min(step, size - start))), dtype)

    return Tensor(shape, dtype, pieces)


def shared_bounds(name: str) -> str:
    """One name for the bounds that several linears share because they clip the same input."""
    name = re.sub(r"\.[qkv]_proj\.(input_m\w+)$", r".qkv_proj.\1", name)
    return re.sub(r"\.(gate|up)_proj\.(input_m\w+)$", r".gate_up_proj.\2", name)


def random_tensors(family: Family, config: Any, dtype: np.dtype, seed: Seed, unread: bool = True) -> dict[str, Tensor]:
    """Short name -> Tensor for all that this config of the family calls for.

    unread: also the keys and values of layers that share, which released files hold and nobody reads.
    """
    shapes = dict(family.shapes(config))
    if unread:
        shapes |= {name: shape for name, shape in family.besides(config).items() if name != "lm_head.weight"}
    P = family.outline(config).per_layer
    return {name: random_tensor(name, shape, dtype, seed, P) for name, shape in shapes.items()}


def find_config(name: str) -> tuple[dict[str, Any], str, Path | None]:
    """A config.json: by its path, by the directory it is in, or an official one by its bare name.

    Returns the parsed file, its name for messages, and the directory whose other files belong to it.
    """
    path, known = located(name), official(name)
    if path.is_dir():
        return read_object(path / "config.json", "name a directory that has one"), str(path / "config.json"), path
    if path.exists():
        return read_object(path, "name a config.json"), name, None
    if known:
        return parse_object(known.read_bytes(), str(known)), known.name, None
    raise unknown(name, "config.json")


def synth(name: str, target: str | Path, scale="full", seed=0, dtype="bfloat16", unread=True, **how) -> dict[str, Any]:
    """Write a random checkpoint of that config; returns the config.json it has.

    name: of a config.json, its directory, or an official config.  how: shard, force, progress of `write_checkpoint`.
    """
    raw, where, folder = find_config(name)
    said: dict[str, Any] = {}
    if raw.get("model_type") == "gemma3_text":
        small = raw if scale == "full" else shrunk_gemma3(raw, SCALES[scale], where)
        tensors = gemma3_tensors(small, where, DTYPES[dtype], own(seed, small))
        stored = {as_stored(short, "gemma3_text"): tensor for short, tensor in tensors.items()}
    else:
        family = find(raw, where)
        small = raw if scale == "full" else family.shrunk(raw, SCALES[scale], where)
        config = family.read_config(small, where)
        said = family.generation(config)
        tensors = random_tensors(family, config, DTYPES[dtype], own(seed, small), unread)
        stored = {family.stored_name(short, small["model_type"]): tensor for short, tensor in tensors.items()}
    files = generation(small, said) | tokenizer(raw, small) | processor(small)
    if folder and scale == "full":
        files = {**files, **companions(folder)}
    small = with_dtype(small, dtype)
    write_checkpoint(target, small, stored, files, parents=[folder] if folder else [], **how)
    return small


def own(seed: int, raw: dict[str, Any]) -> str:
    """The seed of this config alone: at one seed, two models would share what they have of one name and shape."""
    return f"{seed}/{hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()}"


def vocabulary(raw: dict[str, Any]) -> int:
    return (raw.get("text_config") or raw)["vocab_size"]


def gemma3_tensors(raw, where, dtype, seed: Seed) -> dict[str, Tensor]:
    """A Gemma 3 text model's, as a parent for `transplant`."""
    shapes = gemma3_shapes(read_gemma3(raw, where))
    return {name: random_tensor(name, shape, dtype, seed, None) for name, shape in shapes.items()}


def with_dtype(raw: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config with its dtype told, in each of its parts."""
    parts = {key: with_dtype(part, dtype) for key, part in raw.items() if key in PARTS and part}
    return raw | parts | {"dtype": dtype}


def generation(small, said) -> dict[str, bytes | Path]:
    """generation_config.json with the stop tokens of the config, and what the family says of tokens."""
    eos = small.get("eos_token_id") or (small.get("text_config") or {}).get("eos_token_id") or 1
    whole = GENERATION | {"eos_token_id": eos} | said
    return {"generation_config.json": as_json({key: value for key, value in whole.items() if value is not None})}


def tokenizer(raw, small) -> dict[str, bytes | Path]:
    """A byte tokenizer where the vocabulary was shrunk; an unshrunk model takes Gemma's own."""
    size = vocabulary(small)
    if size == vocabulary(raw) or size < 512:
        return {}
    return {
        "tokenizer.json": as_json(byte_tokenizer(small, size)),
        "tokenizer_config.json": as_json(tokenizer_config(small)),
    }


def processor(small) -> dict[str, bytes | Path]:
    """The official processor_config.json, which fits every scale: a shrunk tower keeps its patches and its pooling."""
    return {"processor_config.json": released(small.get("model_type"))} if small.get("vision_config") else {}
