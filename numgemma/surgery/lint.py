"""What is wrong with a checkpoint: every rule of the family, and every fault named, not only the first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numgemma.errors import InputError
from numgemma.families import find
from numgemma.model import load
from numgemma.opening import resolve
from numgemma.prompt.tasks import tasks_refused
from numgemma.surgery.findings import ERROR, NOTE, WARNING, Finding, error, warning
from numgemma.surgery.lint_config import config_rules, is_plain, last_word, sections, skipped
from numgemma.surgery.lint_files import Parts, companions, read_parts
from numgemma.surgery.lint_tensors import depth, dtype_rules, placed, tensor_rules
from numgemma.surgery.lint_values import tied_head, value_rules

SCHEMA = "numgemma.lint/1"


def structure(path: str | Path) -> list[Finding]:
    """All that can be said without reading a value.  Raises InputError only where there is no such path."""
    parts, found = read_parts(resolve(path))
    if parts.config is None:
        return ordered([*found, *dtype_rules(parts.tensors, None), skipped()])
    found += by_record(parts) if is_plain(parts.config) else by_rules(parts)
    part = sections(parts.config)
    told = part.top.get("dtype") or part.top.get("torch_dtype") or part.text.get("dtype")
    found += dtype_rules(parts.tensors, told) + companions(parts, part.text, part.top)
    found += last_word(parts.config, found) + ends_in_vectors(parts)
    return ordered(found + refused(path, found))


def by_rules(parts: Parts) -> list[Finding]:
    """What is wrong with a decoder like Gemma 4's: every fault of its config, each with its rule."""
    assert parts.config is not None
    config, found = config_rules(parts.config, depth(parts.tensors))
    if config and parts.tensors:
        found += tensor_rules(parts.tensors, config, find(parts.config, "config.json"))
        found += names_of_transformers(parts)
    elif parts.tensors:
        found.append(skipped())
    return found


def by_record(parts: Parts) -> list[Finding]:
    """What is wrong with any other family: the first fault of its config; every tensor that is not in its place."""
    assert parts.config is not None
    family = find(parts.config, "config.json")
    try:
        config = family.read_config(parts.config, "config.json")
    except InputError as problem:
        return [error("config", str(problem)), skipped()]
    return placed(parts.tensors, family, config) + names_of_transformers(parts) if parts.tensors else []


def ends_in_vectors(parts: Parts) -> list[Finding]:
    """Where a model makes vectors: what its files of sentence-transformers say against it."""
    assert parts.config is not None
    try:
        family = find(parts.config, "config.json")
        config = family.read_config(parts.config, "config.json")
    except InputError:
        return []  # which is a finding already
    if "vector" not in family.parts:
        return []
    return [error("pooling", told) for told in tasks_refused(parts.folder, config.embedding_dim)]


def values(path: str | Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Finding]:
    """All that the numbers tell, in one pass; memory holds one piece of one tensor."""
    parts, _ = read_parts(resolve(path))
    found = value_rules(parts.tensors, progress)
    if (parts.config or {}).get("tie_word_embeddings", True) is not False:
        found += tied_head(parts.tensors)
    return ordered(found)


def lint(path: str | Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Finding]:
    """Both, the errors first."""
    return ordered(structure(path) + values(path, progress))


def names_of_transformers(parts: Parts) -> list[Finding]:
    """Transformers takes a tensor by its whole name, and draws at random what it does not find."""
    assert parts.config is not None
    family, kind = find(parts.config, "config.json"), parts.config["model_type"]
    due = {short: family.stored_name(short, kind) for short in parts.tensors if short in parts.stored}
    strange = [name for name, wanted in due.items() if looked_for(parts.stored[name], kind) != looked_for(wanted, kind)]
    if not strange:
        return []
    first = strange[0]
    text = (
        f"Transformers will not find {len(strange)} of {len(due)} tensors under model_type {kind}, and draws them at "
        f"random: it looks for {due[first]!r:.100}, not for {parts.stored[first]!r:.100}."
    )
    return [warning("names", text, strange)]


# What Transformers takes off the names in a file, beside a `model.`, where it makes the text model of a whole one.
ALSO_OFF = {"gemma3n_text": "model.language_model."}


def looked_for(stored: str, kind: str) -> str:
    """The part of a name that Transformers tells tensors by."""
    return stored.removeprefix(ALSO_OFF.get(kind, "")).removeprefix("model.")


def refused(path: str | Path, found: list[Finding]) -> list[Finding]:
    """Whatever keeps numgemma from opening it is an error, and there is one."""
    if any(finding.severity == ERROR for finding in found):
        return []
    try:
        load(path)
    except InputError as problem:
        return [error("load", str(problem))]
    return []


def ordered(found: list[Finding]) -> list[Finding]:
    return sorted(found, key=lambda finding: (ERROR, WARNING, NOTE).index(finding.severity))


def to_json(path: str | Path, found: list[Finding]) -> dict[str, Any]:
    counts = {severity: sum(f.severity == severity for f in found) for severity in (ERROR, WARNING, NOTE)}
    rows = [{"severity": f.severity, "rule": f.rule, "text": f.text, "tensors": list(f.tensors)} for f in found]
    return {"schema": SCHEMA, "checkpoint": str(path), "counts": counts, "findings": rows}
