"""One thing that is wrong, or odd, with a checkpoint; and lists of tensors said in few words."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclass(frozen=True)
class Finding:
    """severity: error (it does not run, or computes something else), warning (it runs, and is odd), note."""

    severity: str
    rule: str  # short name of the rule, for machines
    text: str  # one sentence
    tensors: tuple[str, ...] = ()  # those it is about, by short name


def error(rule: str, text: str, tensors: Iterable[str] = ()) -> Finding:
    return Finding(ERROR, rule, text, tuple(tensors))


def warning(rule: str, text: str, tensors: Iterable[str] = ()) -> Finding:
    return Finding(WARNING, rule, text, tuple(tensors))


def note(rule: str, text: str, tensors: Iterable[str] = ()) -> Finding:
    return Finding(NOTE, rule, text, tuple(tensors))


def leaf(name: str) -> str:
    """A name without the number of its layer: layers.*.mlp.up_proj.weight."""
    return re.sub(r"(?<=layers\.)\d+(?=\.)", "*", name)


def spelled(names: Iterable[str], most: int = 3) -> str:
    """Names in few words: layers.{0-3,7}.mlp.up_proj.weight, ...; of more than `most` kinds, how many more."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(leaf(name), []).append(name)
    said = [together(pattern, some) for pattern, some in list(groups.items())[:most]]
    more = [f"and {len(groups) - most} more kinds"] if len(groups) > most else []
    return ", ".join(said + more)


def together(pattern: str, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    numbers = [int(re.search(r"layers\.(\d+)\.", name)[1]) for name in names if "*" in pattern]  # type: ignore[index]
    return pattern.replace("*", f"{{{ranges(numbers)}}}", 1)


def ranges(numbers: Iterable[int]) -> str:
    """0,1,2,5 -> 0-2,5"""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
