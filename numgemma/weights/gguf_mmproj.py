"""What lies beside a text model's GGUF file for pictures and sound: which file, and who reads it."""

import os
import re
from pathlib import Path
from types import ModuleType

from numgemma.errors import InputError
from numgemma.incoming import explained
from numgemma.weights import gguf_towers, gguf_unified
from numgemma.weights.gguf import Gguf, open_gguf

READERS = (gguf_towers, gguf_unified)


def beside(path: Path, width: int) -> tuple[Path, Gguf, ModuleType] | None:
    """The mmproj that lies beside a text model's file, and what reads it: the largest that projects to that width.

    Of several in one folder the largest has the most bits.  One of another model is not this model's, and left alone.
    Raises InputError where none is this model's, and one that might be is damaged, or is of a kind not known here.
    """
    with explained(path.parent):
        names = [name for name in os.listdir(path.parent) if re.fullmatch(r"(?i).*mmproj.*\.gguf", name)]
    refused = None
    for file in sorted((path.parent / name for name in names), key=lambda file: (-size(file), file.name)):
        try:
            opened = open_gguf(file)
            reader = reader_of(file, opened) if of_both(opened, "projection_dim") == {width} else None
        except InputError as error:
            refused = refused or error
            continue
        if reader:
            return file, opened, reader
    if refused:
        raise InputError(f"{refused}".removesuffix(".") + ", or move it away to read the text model alone.")
    return None


def reader_of(path, file: Gguf) -> ModuleType | None:
    """Who reads it, by the projectors that it says; None where they are another family's."""
    said = of_both(file, "projector_type")
    for reader in READERS:
        if said and said <= reader.KINDS:
            return reader
    if any(str(kind).startswith("gemma4") for kind in said):
        kinds = " and ".join(sorted(f"'{kind!s:.40}'" for kind in said))
        raise InputError(f"{path}: has the projector {kinds}, which is not read here; use the model's safetensors.")
    return None


def of_both(file: Gguf, key) -> set[str | int]:
    """What a file says of its pictures and of its sound."""
    said = (file.keys.get(f"clip.{side}.{key}") for side in ("vision", "audio"))
    return {one for one in said if isinstance(one, str | int)}


def size(file: Path) -> int:
    """Of a file, in bytes; of a link that leads nowhere none."""
    return file.stat().st_size if file.exists() else 0
