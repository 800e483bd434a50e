"""Which layers of which parents a stack is made of: as text (0-17,10-25), by name, or as mergekit's passthrough YAML.

In text, a slice names its first and its last layer.  In YAML `layer_range` names the first layer and the one after the
last, as mergekit does.
"""

import json
import re
import reprlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numgemma.errors import InputError
from numgemma.extras import package
from numgemma.incoming import by_library, read_bytes

# Published stacks, by name: the first and the last layer of each slice.
MOST_YAML = 1_000_000  # bytes; a recipe of a slice per layer has some ten thousand

PRESETS = {"e6b": ((0, 17), (10, 25), (18, 33), (26, 41))}  # Gemma-4-E6B: E4B, 42 layers -> 66

ELEMENTWISE = (  # mergekit's methods that `stack` leaves to it
    *("linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "ties", "dare_linear", "dare_ties"),
    *("della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "model_stock", "sce", "nearswap", "arcee_fusion"),
)

READ = {"merge_method", "slices", "base_model", "dtype"}  # keys of a recipe; any other could mean another model


@dataclass(frozen=True)
class Slice:
    """Consecutive layers of one parent."""

    parent: str  # path of a checkpoint
    first: int
    last: int  # inclusive


@dataclass(frozen=True)
class Recipe:
    """A stack: its slices from the bottom up, and the parent of all that is not a layer."""

    slices: tuple[Slice, ...]
    trunk: str
    dtype: str | None = None


def of_one(parent: str, spans) -> Recipe:
    """A stack of a parent's own layers.  spans: (first, last) of each slice"""
    return Recipe(tuple(Slice(parent, first, last) for first, last in spans), parent)


def parse_slices(text: str) -> tuple[tuple[int, int], ...]:
    """0-17,10-25 -> ((0, 17), (10, 25)); a single layer may stand alone."""
    spans = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if not found:
            raise InputError(f"--slices '{text:.60}' should be first-last, ... with both included, as 0-17,10-25.")
        spans.append((int(found[1]), int(found[2] or found[1])))
    return tuple(spans)


def read_recipe(path: Path) -> Recipe:
    """A recipe in mergekit's form.  Raises InputError for a key or a merge that is not a plain stack."""
    yaml = package("yaml", "merge")
    raw = read_bytes(path, "name a YAML file", MOST_YAML)
    with by_library(f"{path}: is not YAML", "correct it"):
        loader = yaml.SafeLoader(raw)
        root = loader.get_single_node()
        check_keys(yaml, root, path)
        found = loader.construct_document(root) if root else None
    if isinstance(found, dict) and found.get("merge_method") in ELEMENTWISE:
        raise InputError(
            f"{path}: merge_method {found['merge_method']} mixes weights number by number, which mergekit does: run "
            f"`mergekit-yaml {path.name} DIR`, then `numgemma lint DIR` and `numgemma lineage DIR --parents ...`."
        )
    if not isinstance(found, dict) or found.get("merge_method") != "passthrough":
        raise InputError(f"{path}: merge_method is not passthrough; `stack` builds no other merge.")
    unknown = sorted(str(key) for key in found.keys() - READ)
    if unknown:
        raise InputError(f"{path}: key '{unknown[0]:.60}' is not built by `stack`; remove it if it has no effect.")
    slices = found.get("slices")
    if not isinstance(slices, list) or not slices:
        raise InputError(f"{path}: has no list of slices; write one per run of layers.")
    parts = tuple(parse_slice(part, f"{path}: slice {i}") for i, part in enumerate(slices))
    parts = tuple(replace(part, parent=beside(part.parent, path)) for part in parts)
    trunk, dtype = found.get("base_model"), found.get("dtype")
    trunk = beside(parent_of(trunk, f"{path}: base_model"), path) if trunk else parts[0].parent
    return Recipe(parts, trunk, dtype and str(dtype))


def check_keys(yaml, root, path: Path):
    """No mapping has a key twice: YAML's reader would silently keep the last.  root: the node of the whole document"""
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if node is None or id(node) in seen:
            continue  # an alias
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := next((key for key, times in Counter(keys).items() if times > 1), None):
                line = node.start_mark.line + 1
                raise InputError(f"{path}: key '{twice:.60}' stands twice in what begins in line {line}; remove one.")
            nodes += [value for _, value in node.value]


def beside(parent: str, path: Path) -> str:
    """A relative path as mergekit takes it, from where one stands; where nothing is there, from beside the recipe."""
    found = path.parent / parent
    return str(found) if not Path(parent).exists() and found.exists() else parent


def parse_slice(part: Any, what: str) -> Slice:
    sources = part.get("sources") if isinstance(part, dict) and part.keys() == {"sources"} else None
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
        raise InputError(f"{what} should hold `sources` with one model, as passthrough mixes nothing; correct it.")
    source = sources[0]
    if source.keys() != {"model", "layer_range"}:
        raise InputError(f"{what} should hold model and layer_range and nothing else; correct it.")
    span = source["layer_range"]
    if not (
        isinstance(span, list)
        and len(span) == 2
        and all(type(n) is int for n in span)
        and 0 <= span[0] < span[1] < 10_000
    ):
        raise InputError(f"{what} has layer_range {reprlib.repr(span)}, not [first, one after the last]; correct it.")
    return Slice(parent_of(source["model"], what), span[0], span[1] - 1)


def parent_of(model: Any, what: str) -> str:
    """A model in either of mergekit's spellings: a path, or {model: {path: ...}}."""
    if isinstance(model, dict) and model.keys() == {"model"}:
        model = model["model"]
    if isinstance(model, dict) and model.keys() == {"path"}:
        model = model["path"]
    if not isinstance(model, str):
        raise InputError(f"{what} names its model as {reprlib.repr(model)}, not as a path; correct it.")
    return model


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe in mergekit's form; `read_recipe` gives it back."""
    lines = ["merge_method: passthrough", f"base_model: {quoted(recipe.trunk)}"]
    if recipe.dtype:
        lines.append(f"dtype: {recipe.dtype}")
    lines.append("slices:")
    for part in recipe.slices:
        lines += [
            "- sources:",
            f"  - model: {quoted(part.parent)}",
            f"    layer_range: [{part.first}, {part.last + 1}]",
        ]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """A YAML string: JSON's form is one, once what YAML calls unprintable is escaped."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in json.dumps(text, ensure_ascii=False))
