"""The model card of a stack or a transplant: what it is made of, how, what is odd, and what healing would touch.

README.md as the hub shows it: front matter, the recipe, the layers as a figure, parameters by module, what lint says,
and the command that makes it again.  It says nothing of how good the model is: nobody has measured that here.
"""

import json
import re
import shlex
from dataclasses import replace
from math import prod
from pathlib import Path

from numgemma.atomic import write_whole
from numgemma.cli.inspect import parameter_table
from numgemma.surgery.findings import ranges
from numgemma.surgery.lineage import Lineage, Origin
from numgemma.surgery.lint import structure
from numgemma.surgery.pictures import layer_matrix, save
from numgemma.surgery.recipe import recipe_yaml

PICTURE = "layers.png"
FENCE = "```"


def write_stack_card(stack, folder: Path, name: str, command: list[str]) -> None:
    """README.md and the picture of a stack, into the folder that will have that name."""
    save(layer_matrix(as_lineage(stack, name)), folder / PICTURE)
    parents = list(dict.fromkeys([stack.recipe.trunk, *(part.parent for part in stack.recipe.slices)]))
    unread = {f"layers.{slot.index}.self_attn.{leaf}" for slot in stack.slots if not makes_keys(stack, slot)
              for leaf in ("k_proj.weight", "k_norm.weight", "v_proj.weight")}  # fmt: skip
    told = (
        f"{len(stack.slots)} layers, stacked from {named(parents)}. Every tensor is a copy, byte for byte; nothing was "
    )
    recipe = recipe_yaml(relative(stack.recipe))
    blocks = [
        front(parents, stack.folders[0], stack.raw, "passthrough"),
        f"# {name}\n\n{told}trained after it.",
        f"## Recipe\n\n{FENCE}yaml\n{recipe}{FENCE}",
        f"## Layers\n\n{FENCE}mermaid\n{mermaid(stack)}\n{FENCE}",
        f"![Slots of the child against layers of the parent]({PICTURE})",
        *shared_keys(stack),
        parameters({name: tensor.shape for name, tensor in stack.tensors.items()}, unread),
        checks(folder),
        healing(stack),
        made_by(command),
    ]
    write_whole(folder / "README.md", "\n\n".join(blocks) + "\n")


def write_transplant_card(child, parents: tuple[Path, Path], folder: Path, name: str, command: list[str]) -> None:
    """README.md of a transplant of a text model and a tower, into the folder that will have that name."""
    text, tower = parents
    rows: dict[tuple[str, str, str], list[int]] = {}
    for part in child.parts.values():
        row = rows.setdefault((part.component, part.source, part.method), [0, 0])
        row[0], row[1] = row[0] + 1, row[1] + prod(part.tensor.shape)
    names = {"text": hub_name(str(text)), "tower": hub_name(str(tower))}
    lines = [f"| {c} | {names.get(s, 'new')} | {m} | {n} | {size:,} |" for (c, s, m), (n, size) in rows.items()]
    blocks = [
        front([str(text), str(tower)], child.folders[0], child.raw, "transplant"),
        f"# {name}\n\n{NEWBORN.format(**names)}",
        "\n".join(
            ["## Recipe", "", "| component | from | how | tensors | numbers |", "|---|---|---|---:|---:|", *lines]
        ),
        "Left out: " + "; ".join(f"{what} ({why})" for what, why in child.left) + ".",
        f"## Layers\n\n{FENCE}mermaid\n{grafted(child, names, name)}\n{FENCE}",
        parameters({name: part.tensor.shape for name, part in child.parts.items()}, ()),
        checks(folder),
        f"## What healing would touch\n\n{FIRST}",
        made_by(command),
    ]
    write_whole(folder / "README.md", "\n\n".join(blocks) + "\n")


NEWBORN = """The text model of {text} as a Gemma 4, with the vision tower of {tower}. The projection between both is
random and the values of full layers are its raw keys: without training it makes no sense."""
FIRST = (
    """The projection first, everything else frozen; then the full layers, whose values are new, and layer_scalar."""
)


def grafted(child, names, name: str) -> str:
    layers = child.config.text.num_hidden_layers
    return "\n".join(
        [
            "flowchart BT",
            f'  a["{quoted(names["text"])}<br>layers 0-{layers - 1}"] --> c["{quoted(name)}"]',
            f'  b["{quoted(names["tower"])}<br>vision tower"] --> p["projection, random"] --> c',
        ]
    )


# front matter


def front(parents: list[str], folder: Path, raw, method: str) -> str:
    """What the hub reads.  folder: of the parent whose license it takes over"""
    sees = bool(raw.get("vision_config"))
    lines = [
        *license_of(folder),
        "library_name: transformers",
        f"pipeline_tag: {'image-text-to-text' if sees else 'text-generation'}",
        "base_model:",
        *(f"- {json.dumps(hub_name(parent), ensure_ascii=False)}" for parent in parents),
        "base_model_relation: merge",
        "tags:",
        *(f"- {tag}" for tag in ("merge", "frankenmerge", method, "numgemma")),
    ]
    return "\n".join(["---", *lines, "---"])


def license_of(folder: Path) -> list[str]:
    """The lines of the parent's own card, with the name and the address of a license that the hub does not know."""
    card = folder / "README.md"
    front = card.read_text(errors="replace")[:4000].split("\n---")[0] if card.is_file() else ""
    return re.findall(r"^license(?:_name|_link)?: *[^\s#].*$", front, re.M)


def hub_name(parent: str) -> str:
    """The id on the hub, where it was given or where the folder is one of its cache; else the folder's name."""
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)", parent)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return parent if re.fullmatch(r"[\w.-]+/[\w.-]+", parent) and not Path(parent).exists() else Path(parent).name


def named(parents: list[str]) -> str:
    return " and ".join(hub_name(parent) for parent in parents)


def relative(recipe):
    """The same with parents called as on the hub: nobody else has these folders."""
    slices = tuple(replace(part, parent=hub_name(part.parent)) for part in recipe.slices)
    return replace(recipe, slices=slices, trunk=hub_name(recipe.trunk))


# layers


def as_lineage(stack, name: str) -> Lineage:
    """What `lineage` would find, for its picture."""
    slots = tuple(Origin(s.index, hub_name(s.parent), s.spec.index, "copy") for s in stack.slots)
    layers = {hub_name(s.parent): len(s.model.outline.layers) for s in stack.slots}
    return Lineage(name, tuple(layers), {}, {}, slots, layers)


def runs(stack) -> list[list]:
    """Slots whose layers follow one another."""
    found: list[list] = []
    for slot in stack.slots:
        last = found[-1][-1] if found else None
        if last and (last.parent, last.spec.index + 1) == (slot.parent, slot.spec.index):
            found[-1].append(slot)
        else:
            found.append([slot])
    return found


def mermaid(stack) -> str:
    """A box for each run of layers, from the bottom up; an arrow between two says where the seam is."""
    lines, found = ["flowchart BT", '  in(["embeddings"]) --> r0'], runs(stack)
    for i, run in enumerate(found):
        first, last = run[0], run[-1]
        slots, layers = spans(s.index for s in run), spans(s.spec.index for s in run)
        lines.append(f'  r{i}["slots {slots}: layers {layers}<br>of {quoted(hub_name(first.parent))}"]')
        if i + 1 < len(found):
            lines.append(f'  r{i} -- "seam: layer {found[i + 1][0].spec.index} after {last.spec.index}" --> r{i + 1}')
    return "\n".join([*lines, f'  r{len(found) - 1} --> out(["head"])'])


def quoted(name: str) -> str:
    """A name within quotes of a figure."""
    return name.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;")


def shared_keys(stack) -> list[str]:
    """A sentence on the slots that read another's keys and values, where there are any."""
    rows = [spec for spec in stack.config.text.layers if spec.kv_from != spec.index]
    donors = " and ".join(map(str, sorted({spec.kv_from for spec in rows})))
    slots = spans(spec.index for spec in rows)
    return [f"Slots {slots} make no keys and values of their own: they read those of slots {donors}."] if rows else []


def makes_keys(stack, slot) -> bool:
    spec = stack.config.text.layers[slot.index]
    return spec.kv_from == spec.index


def healing(stack) -> str:
    """Where the stream leaves what the layers were trained on, and what a training run would have to move."""
    starts = [run[0] for run in runs(stack)[1:]]
    if not starts:
        return "## Seams\n\nThere are none: the layers follow one another as in the parent."
    before = [stack.slots[s.index - 1].spec.index for s in starts]
    seams = [f"{s.index} (layer {s.spec.index} after layer {j})" for s, j in zip(starts, before, strict=True)]
    sources = [(s.parent, s.spec.index) for s in stack.slots]
    twice = spans(s.index for s in stack.slots if (s.parent, s.spec.index) in sources[: s.index])
    P = stack.config.text.hidden_size_per_layer_input
    lines = [
        "## Seams, and what healing would touch",
        "",
        f"At slots {', '.join(seams)} a layer gets a stream that it never saw in training.",
        f"Up to slot {starts[0].index - 1} the child computes what its parent computes. Healing would touch:",
        "",
        f"- the layers from each seam on, most of all slots {spans(s.index for s in starts)};",
        f"- the layers that are there twice: slots {twice}{';' if P else '.'}",
    ]
    if P:
        lines += [
            f"- the per-layer inputs. Columns `{P} i` to `{P} i + {P - 1}` of the table, and these rows of the",
            f"  projection, belong to slot `i`; those of slots {twice} repeat another slot's, and would part from it.",
        ]
    return "\n".join(
        [*lines, "", "How far the streams leave their range is measured by `numgemma seams CHILD PARENT`."]
    )


def spans(numbers) -> str:
    return ranges(numbers).replace(",", ", ") or "none"


# numbers, checks, command


def parameters(shapes, unread) -> str:
    found = parameter_table(shapes, unread)
    rows = [f"| {module} | {numbers:,} |" for module, numbers in sorted(found["modules"].items())]
    total = f"| **total** | **{found['total']:,}** |"
    note = f"In {found['tensors']} tensors, with {found['buffers']:,} numbers more in buffers."
    return "\n".join(["## Parameters", "", "| module | parameters |", "|---|---:|", *rows, total, "", note])


def checks(folder: Path) -> str:
    """What lint says of names, shapes and files."""
    found = [f for f in structure(folder) if f.severity != "note"]
    lines = [f"- {f.severity}: {f.text.replace(f'{folder}/', '')}" for f in found] or [
        "Names, shapes and files: nothing wrong. The values are looked at by `numgemma lint`."
    ]
    return "\n".join(["## Lint", "", *lines])


def made_by(command: list[str]) -> str:
    return f"## Made by\n\n{FENCE}sh\n{shlex.join(command)}\n{FENCE}"


def command(args) -> list[str]:
    """The command as it was given, with parents as on the hub, and without where on this machine it wrote."""
    words = [word for word in args.words if word != "--force"]
    return ["numgemma", *(called(word, args.out) for word in words)]


def called(word: str, out: Path) -> str:
    if Path(word) == out:
        return out.name
    return hub_name(word) if Path(word).is_dir() else Path(word).name if Path(word).is_file() else word
