"""From a path to a checkpoint that its family knows: every tensor there, an adapter over it, what may enter."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from numgemma.checkpoint import Checkpoint, check_tensors
from numgemma.config import typed
from numgemma.errors import InputError
from numgemma.families import Family, Outline
from numgemma.prompt.media import Media, clips, has_pictures
from numgemma.weights.adapters import adapted, header_hash

DATA = Path(__file__).parent / "data"
IMAGE_MASKS = ("intended", "transformers")
HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}(@[\w./-]{1,200})?")


def fingerprint(checkpoint: Checkpoint, outline: Outline):
    """Which model this is, with a few numbers of each weight read."""
    return {
        "name": name_of(checkpoint.folder),
        "config": hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode()).hexdigest(),
        "shards": checkpoint.header_hashes,
        "samples": checkpoint.samples,
        "layer_kinds": outline.layer_kinds,
        "config_json": checkpoint.config,
    }


def with_adapter(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint under a LoRA adapter, which its fingerprint names too."""
    weights = replace(checkpoint.weights, tensors=adapted(checkpoint.weights.tensors, folder))
    hashes = checkpoint.header_hashes | {str(folder / "adapter"): header_hash(folder)}
    return replace(checkpoint, weights=weights, header_hashes=hashes)


def masked(config, image_mask, family: Family, where):
    """The config with another image mask than the intended one."""
    if image_mask not in IMAGE_MASKS:
        raise InputError(f"Image mask '{image_mask}' is neither 'intended' nor 'transformers'.")
    if image_mask == family.image_masks[0]:
        return config
    if image_mask not in family.image_masks:
        raise InputError(f"{where}: Transformers runs {family.name} with the intended image mask; choose no other.")
    return replace(config, image_mask=image_mask)


def located(path: str | Path) -> Path:
    """A path; the bundled checkpoint by its bare name; or a model of the Hugging Face hub that its cache holds.

    Such a model is named by its id, as google/gemma-4-E4B-it, or ID@REVISION.  Nothing is downloaded.
    """
    path = Path(path)
    if path.exists() or path == Path():
        return path
    if str(path) == "tiny":
        return DATA / "tiny"
    return cached(str(path)) or path


def resolve(path: str | Path) -> Path:
    """`located`.  Raises InputError for what looks like an id of the hub and is neither there nor in its cache."""
    found = located(path)
    if HUB_ID.fullmatch(str(path)) and not found.exists() and not found.parent.exists():
        name = str(path)
        what = f"{name}: no such file, and the cache of huggingface_hub holds no model of that id"
        raise InputError(f"{what}; name a checkpoint's folder, or fetch it with `hf download {name}`.")
    return found


def cached(name: str) -> Path | None:
    """The folder of a model in the cache of huggingface_hub, where that is installed; $HF_HOME says where it lies."""
    if not HUB_ID.fullmatch(name):
        return None
    try:
        import huggingface_hub
    except ImportError:
        return None
    repository, _, revision = name.partition("@")
    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (OSError, ValueError):  # it is not there; or no name that the hub allows
        return None


def name_of(folder: Path) -> str:
    """What a checkpoint's folder is called; in the hub's cache, that is the model's name and not a commit's."""
    parts = folder.resolve().parts
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].rpartition("--")[2]
    return parts[-1]


def check_model_tensors(weights, config, family: Family):
    """Every tensor of the model is there in its shape, and nothing is there that nobody knows."""
    expected, ignored = family.shapes(config), list(family.ignored(config))
    for part in family.optional(config).values():
        if not all(name in weights for name in part):  # text runs without a tower that is absent, or is not all there
            expected = {name: shape for name, shape in expected.items() if name not in part}
            ignored += map(re.escape, part)
    expected |= {name: shape for name, shape in family.besides(config).items() if name in weights}
    check_tensors(weights, expected, ignored)


def incomplete(weights, config, family: Family) -> dict[str, tuple[int, int]]:
    """Parts of which some tensors are there and some are not: name -> how many are, of how many."""
    parts = {kind: (sum(name in weights for name in part), len(part)) for kind, part in family.optional(config).items()}
    return {kind: (there, due) for kind, (there, due) in parts.items() if 0 < there < due}


def check_whole(media: Media, incomplete: Mapping[str, tuple[int, int]], source: str | Path) -> None:
    """Raises InputError where something is to go through a tower that is not all there.  incomplete: see above"""
    for kind, given in (("vision", has_pictures(media)), ("audio", clips(media))):
        if given and kind in incomplete:
            there, due = incomplete[kind]
            raise InputError(f"{source}: has {there} of {due} tensors of its {kind} tower; download it.")


def told_ids(checkpoint: Checkpoint, key: str, vocabulary: int) -> tuple[int, ...]:
    """The token ids that generation_config.json names under a key: one, several or none."""
    where = f"{checkpoint.folder / 'generation_config.json'}: {key}"
    found = typed((checkpoint.generation_config or {}).get(key), int | tuple[int, ...] | None, where)
    ids = () if found is None else (found,) if isinstance(found, int) else found
    if outside := [i for i in ids if not 0 <= i < vocabulary]:
        raise InputError(f"{where} has {outside[0]}, no token of this vocabulary; correct the file.")
    return ids
