"""Find which parent, and which layer of it, every tensor of a checkpoint came from, by what the tensors hold."""

from pathlib import Path

from numgemma.atomic import write_whole
from numgemma.cli.building import progress
from numgemma.cli.report import write_json, written
from numgemma.surgery.inventory import inventory, misplaced_inputs, slices, strangers, to_recipe
from numgemma.surgery.lineage import lineage
from numgemma.surgery.merge_yaml import is_merge, to_mergekit
from numgemma.surgery.summary import Account, summary


def add_arguments(parser):
    parser.add_argument("ckpt", type=Path, metavar="CKPT", help="the child: a checkpoint in safetensors or GGUF")
    parser.add_argument(
        "--parents",
        type=Path,
        metavar="P",
        nargs="+",
        required=True,
        help="what it may be made of; Gemma 3 and others too",
    )
    parser.add_argument(
        "--base", type=Path, metavar="P", help="what the parents were trained from: differences are told against it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write slots and tensors as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the layer matrix: slots against layers")
    parser.add_argument(
        "--emit", type=Path, metavar="FILE.yaml", help="write the recipe that remakes it: a stack's, or mergekit's"
    )


def run(args):
    found = lineage(args.ckpt, args.parents, progress(), args.base)
    print(render(found))
    if args.json:
        write_json(args.json, Account(found))
    if args.plot:
        from numgemma.surgery.pictures import layer_matrix, save

        save(layer_matrix(found), args.plot)
        written(args.plot)
    if args.emit:
        write_whole(args.emit, (to_mergekit if is_merge(found) else to_recipe)(found, args.emit.name))
        written(args.emit)
    return 0


def render(found):
    """Parents, the recipe, slices, components, and what is out of place."""
    labels = {parent: "base" if parent == found.base else f"P{i}" for i, parent in enumerate(found.parents, 1)}
    blocks = ["\n".join(f"{label} = {parent}" for parent, label in labels.items()), recipe(found, labels)]
    if found.slots:
        blocks.append(slice_table(found, labels))
    blocks.append(component_table(found, labels))
    blocks += ["\n".join(lines) for lines in (astray(found), foreign(found, labels), misplaced(found)) if lines]
    return "\n\n".join(blocks)


MOST_LINES = 12


def recipe(found, labels):
    """What was done, in a few lines, each with how certain it is."""
    lines = summary(found, labels)
    rows = [f"{line.text}  [{line.where}; {certainty(line)}]" for line in lines[:MOST_LINES]]
    more = [f"and {len(lines) - MOST_LINES} more ways, in --json"] if len(lines) > MOST_LINES else []
    return "\n".join(rows + more)


def certainty(line):
    return f"{line.confidence}, {line.error:.1e} left" if line.error else line.confidence


def astray(found):
    return [f"ERROR: {text}" for text in found.faults[:MOST_LINES]]


def slice_table(found, labels):
    rows = [("slots", "layers", "from", "relation")]
    for first, last, o in slices(found):
        layers = "-" if o.layer is None else span(o.layer, o.layer + last - first)
        rows.append((span(first, last), layers, labels.get(o.parent, "-"), o.relation))
    return table(rows)


def component_table(found, labels):
    rows = [("component", "tensors", "from", "relation", "error")]
    for component, count, parents, text, error in inventory(found):
        for parent, label in labels.items():
            parents = " + ".join(label if part == parent else part for part in parents.split(" + "))
        rows.append((component, str(count), parents, text, f"{error:.1e}" if error else ""))
    return table(rows)


def foreign(found, labels):
    """Tensors that are not from where the rest of their layer is."""
    names = strangers(found)
    lines = [f"{name}: {labels[found.tensors[name].parent]} {found.tensors[name].source}" for name in names[:12]]
    more = [f"and {len(names) - 12} more"] if len(names) > 12 else []
    return ["from another layer than the rest of theirs:", *lines, *more] if names else []


def misplaced(found):
    return [
        f"{name} does not follow the layers: slot {slots[0]} ({len(slots)} in all) gets another layer's input"
        for name, slots in misplaced_inputs(found).items()
    ]


def span(first, last):
    return f"{first}-{last}" if last > first else str(first)


def table(rows):
    """Rows of text in columns, the last one ragged."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
