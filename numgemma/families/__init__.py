"""The kinds of model.  `find` is the only place that knows which there are.

A family is a folder: `__init__.py` is its record (family.py says what one holds), config.py reads its config.json,
layout.py names its tensors, and the forward pass is written out in files of its own.

    family     what the rest of the package may ask of a kind of model
    gemma4     E2B, E4B, 26B-A4B and 31B
    unified    the encoder-free 12B
    gemma3n    Gemma 3n: E2B and E4B
    embedding  EmbeddingGemma 2
    drafter    the drafters of Gemma 4, that read their target's keys
    diffusion  DiffusionGemma 26B-A4B
"""

from importlib import import_module

from numgemma.errors import InputError
from numgemma.families.family import Family, Outline, Run

__all__ = ["Family", "Outline", "Run", "find", "read_config", "register"]

# model_type -> the folder here whose FAMILY it is
FOLDERS = {
    **dict.fromkeys(("gemma4", "gemma4_text"), "gemma4"),
    **dict.fromkeys(("gemma4_unified", "gemma4_unified_text"), "unified"),
    **dict.fromkeys(("gemma3n", "gemma3n_text"), "gemma3n"),
    **dict.fromkeys(("embedding_gemma2", "embedding_gemma2_text"), "embedding"),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "drafter"),
    "diffusion_gemma": "diffusion",
}

LATER = {
    "gemma3": "Gemma 3",
    "gemma3_text": "Gemma 3",
}

REGISTERED: dict[str, Family] = {}  # those from elsewhere


def register(family: Family):
    """Makes a family from outside this package known, for as long as the process lasts."""
    REGISTERED.update(dict.fromkeys(family.model_types, family))


def find(raw: dict, where: str) -> Family:
    """The family of a parsed config.json; `where` names the file in errors."""
    kind = raw["model_type"] if isinstance(raw.get("model_type"), str) else "absent"
    if kind in REGISTERED:
        return REGISTERED[kind]
    if kind in FOLDERS:
        return import_module(f"{__name__}.{FOLDERS[kind]}").FAMILY
    whole = (known for known in (*FOLDERS, *REGISTERED) if not known.endswith("_text"))
    *others, last = (f"'{known}'" for known in whole)
    runs = f"{', '.join(others)} and {last}"
    if kind in LATER:
        raise InputError(
            f"{where}: model_type '{kind}' is {LATER[kind]}, which numgemma does not run yet; it runs {runs}."
        )
    raise InputError(f"{where}: model_type is {kind}; numgemma runs {runs}.")


def read_config(raw: dict, where: str):
    """A parsed config.json as its family's dataclasses; `where` names the file in errors."""
    return find(raw, where).read_config(raw, where)
