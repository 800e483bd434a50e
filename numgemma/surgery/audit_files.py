"""The two sides of an audit, opened: whatever formats they are in, their tensors by the same names."""

from collections.abc import Callable
from pathlib import Path

from numgemma.checkpoint import Checkpoint, open_checkpoint
from numgemma.errors import InputError
from numgemma.families import find
from numgemma.opening import resolve
from numgemma.surgery.audit import MISSING, WRONG, Audit, audit
from numgemma.weights.adapters import adapted


def audit_files(file, original, adapters=(), told: Callable[[int, int], object] = lambda done, of: None) -> Audit:
    """Judge one checkpoint by another.  file, original: paths, of any format that is read

    adapters: folders of LoRA adapters that should be merged into the file.  Raises InputError where something cannot
    be opened.
    """
    a, b = open_checkpoint(resolve(file)), open_checkpoint(resolve(original))
    tensors = dict(b.weights.tensors)
    for folder in adapters:
        tensors = adapted(tensors, Path(folder))
    found = audit(a.weights.tensors, tensors, (file, original), optional(a, b), told)
    return Audit(found.file, found.original, found.tensors, tuple(notes(found, a, b)))


def optional(a: Checkpoint, b: Checkpoint) -> Callable[[str], bool]:
    """Whether a file may lack a tensor: keys that nobody reads, a tied head, towers where it has none of them."""
    try:
        family = find(b.config, str(b.folder))
        config = family.read_config(b.config, str(b.folder))
    except InputError:
        return lambda name: False
    unread = set(family.besides(config))
    for part in family.optional(config).values():
        if not any(name in a.weights for name in part):
            unread |= set(part)
    return lambda name: name in unread


def notes(found: Audit, a: Checkpoint, b: Checkpoint):
    """What is to be known before the table is read."""
    towers = [kind for kind in ("vision", "audio") if lacks(a, b, kind)]
    if towers:
        yield f"without the {' and the '.join(towers)} tower, which the original has"
    floats = [v for v in found.tensors if v.cost is None and v.rel is not None and v.state != MISSING]
    if len(floats) > 4 and all(v.state == WRONG for v in floats):
        yield "every tensor of floats differs: this is the file of another checkpoint, not a damaged one of this"


def lacks(a, b, kind):
    return any(n.startswith(f"{kind}_tower") for n in b.weights) and not any(
        n.startswith(f"{kind}_tower") for n in a.weights
    )
