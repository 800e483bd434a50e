"""Names of one dump in terms of the other: a layer map for stacked models, a map file for foreign names."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from numgemma.debug.measure.discrete import layer_of
from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.incoming import read_text


@dataclass(frozen=True)
class NameMap:
    """layers: A's layer -> B's layer, and no other layers are compared; names: (A's, B's), with `*` for the same text.

    Empty: all names are equal.
    """

    layers: dict[int, int] = field(default_factory=dict)
    names: tuple[tuple[str, str], ...] = ()

    def __bool__(self):
        return bool(self.layers or self.names)

    def compares(self, name) -> bool:
        """Whether a point of A is compared at all."""
        return not self.layers or layer_of(name) is None or layer_of(name) in self.layers

    def in_b(self, name) -> str:
        """What B calls a point of A."""
        for ours, theirs in self.names:
            found = re.fullmatch(re.escape(ours).replace(r"\*", "(.*)"), name)
            if found:
                return theirs.replace("*", found[1]) if found.groups() else theirs
        layer = layer_of(name)
        if layer in self.layers:
            return re.sub(r"^layers\.\d+\.", f"layers.{self.layers[layer]}.", name)
        return name


def parse_map(text) -> NameMap:
    """18:10,20-22:11-13 (A's layers : B's layers), or the path of a map file.  Raises InputError where it is neither.

    A map file has one pair of names per line, A's and then B's; `*` stands for the same text in both.
    """
    if not re.fullmatch(r"[\d\s,:-]+", text):
        return read_map(Path(text))
    layers: dict[int, int] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?:(\d{1,4})(?:-(\d{1,4}))?\s*", part)  # no model is deeper
        if not found:
            raise InputError(f"--layer-map '{text:.60}' is no file and no list as 18:10,20-22:11-13 (A's:B's layers).")
        a, b = (range(int(x), int(y or x) + 1) for x, y in (found.group(1, 2), found.group(3, 4)))
        if len(a) != len(b) or not a:
            raise InputError(f"--layer-map '{part.strip()}' has {len(a)} layers of A and {len(b)} of B; give as many.")
        if twice := layers.keys() & set(a):
            raise InputError(f"--layer-map '{text:.60}' names layer {min(twice)} of A twice; name each of them once.")
        layers |= dict(zip(a, b, strict=True))
    return NameMap(layers=layers)


def read_map(path) -> NameMap:
    pairs = []
    lines = read_text(
        path, "give --layer-map a file with a pair of names per line, or layers as 18:10,20-22:11-13"
    ).splitlines()
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or any(word.count("*") > 1 for word in words) or ("*" in words[1] and "*" not in words[0]):
            raise InputError(f"{path}, line {number}: should be A's name and B's name, with at most one * in each.")
        pairs.append((words[0], words[1]))
    return NameMap(names=tuple(pairs))


def check_layers(side, dump: Dump, layers):
    """A map names no layer that a dump has not: of that one nothing would be compared, and no word said."""
    told = (dump.meta.get("model") or {}).get("layer_kinds")
    depth = len(told) if told else 1 + max((i for name in dump if (i := layer_of(name)) is not None), default=-1)
    if layers and max(layers) >= depth:
        raise InputError(f"--layer-map names layer {max(layers)} of {side}, which has {depth} layers; correct the map.")


def aligned(a, b, mapping: NameMap):
    """Dump b under A's names, and how many points of both have no partner in the map."""
    check_layers("A", a, mapping.layers)
    check_layers("B", b, mapping.layers.values())
    wanted = {name: mapping.in_b(name) for name in a if mapping.compares(name)}
    taken = set(wanted.values())
    extra = [name for name in b if name not in taken and layer_of(name) is None and not mapping.names]
    found = {name: other for name, other in wanted.items() if other in b} | {name: name for name in extra}
    meta = dict(b.meta)
    if "parts" in meta:
        meta["parts"] = {name: meta["parts"][other] for name, other in found.items() if other in meta["parts"]}
    renamed = Dump(meta, {n: b[o] for n, o in found.items()}, {n: b.axes.get(o, "") for n, o in found.items()})
    left_out = sum(not mapping.compares(name) for name in a) + len(b) - len(set(found.values()))
    return renamed, left_out
