"""Print what a checkpoint is: its layers, parameters, sizes, and the memory that a run needs."""

import json
from collections.abc import Callable
from dataclasses import asdict
from math import prod
from pathlib import Path

from numgemma.checkpoint import open_checkpoint
from numgemma.cli.numbers import whole_number
from numgemma.config import passed_over
from numgemma.errors import InputError
from numgemma.families import Family, find
from numgemma.incoming import parse_object
from numgemma.official import official, unknown
from numgemma.opening import check_model_tensors, located
from numgemma.weights.packed import format_of

LEGEND = """\
N query heads, K key/value heads, H head width, F feed-forward width
keys of: a layer that shares reads the keys and values of that earlier layer; values, where they are the raw keys
window: tokens that a layer sees back, itself included; where it sees both ways, how far to either side
turning: pairs of lanes that the rotary embedding turns
buffers, in the table below: numbers that training does not change"""


def add_arguments(parser):
    parser.add_argument("ckpt", type=Path, metavar="CKPT", help="a checkpoint, or the bare name of an official config")
    parser.add_argument(
        "--context", type=whole_number, metavar="T", default=1024, help="tokens that a run's cache holds; default: 1024"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args):
    if args.context < 1:
        raise InputError(f"--context is {args.context}; it should be at least 1.")
    found = describe(args.ckpt, args.context)
    print(json.dumps(found, indent=1) if args.json else render(found))
    return 0


def describe(name, context=1024):
    """Everything that `inspect` tells, as plain values."""
    path = located(name)
    known = official(str(name))
    if path.exists():
        checkpoint = open_checkpoint(path)
        where = checkpoint.told_by
        raw, family = checkpoint.config, find(checkpoint.config, where)
        config = family.read_config(raw, where)
        check_model_tensors(checkpoint.weights, config, family)
        tensors = checkpoint.weights.tensors
        shapes = in_order({name: x.shape for name, x in tensors.items()}, family.shapes(config))
        sizes = total((format_of(x), x.nbytes) for x in tensors.values())
        formats = by_format(tensors)
    elif known:
        raw = parse_object(known.read_bytes(), str(known))
        family = find(raw, str(known))
        config = family.read_config(raw, str(known))
        shapes = family.shapes(config)
        sizes = {"bfloat16": 2 * sum(map(prod, shapes.values()))}
        formats = {"bfloat16": {"tensors": len(shapes), "bits": 16.0}}
    else:
        raise unknown(str(name), "checkpoint")
    return {
        "schema": "numgemma.inspect/1",
        "name": Path(name).name,
        "layers": [asdict(spec) for spec in family.outline(config).layers],
        "parameters": parameter_table(shapes, unread(family, config)),
        "bytes": sizes,
        "formats": formats,
        "passed_over": passed_over(raw),
        "memory": family.memory(config, context),
    }


def by_format(tensors):
    """Storage format -> how many tensors are in it, and how many bits a number takes, scales counted in."""
    found = {}
    for form in dict.fromkeys(map(format_of, tensors.values())):
        some = [x for x in tensors.values() if format_of(x) == form]
        bits = 8 * sum(x.nbytes for x in some) / max(1, sum(x.size for x in some))
        found[form] = {"tensors": len(some), "bits": round(bits, 2)}
    return found


def total(pairs):
    """Sum of the numbers under each key."""
    sums: dict[str, int] = {}
    for key, number in pairs:
        sums[key] = sums.get(key, 0) + number
    return sums


def in_order(shapes, used):
    """The tensors of a file in the order in which the model uses them, those it does not use last."""
    places = {name: i for i, name in enumerate(used)}
    return dict(sorted(shapes.items(), key=lambda item: places.get(item[0], len(places))))


def unread(family: Family, config):
    """Names of keys and values that a file may hold and that nobody reads."""
    return {name for name in family.besides(config) if ".self_attn." in name}


def parameter_table(shapes, unread):
    """Module -> numbers in its parameters.  Buffers, which no optimiser would change, are counted apart."""
    table = total(
        ("unread keys and values" if name in unread else module_of(name), prod(shape)) for name, shape in shapes.items()
    )
    buffers = table.pop("buffers", 0)
    return {"modules": table, "total": sum(table.values()), "buffers": buffers, "tensors": len(shapes)}


BUFFERS = ("layer_scalar", "std_bias", "std_scale", "token_ordering")


def module_of(name):
    """The row of the parameter table that a tensor belongs to: decoder layers by branch, all else by module."""
    parts = name.split(".")
    if parts[-1] in BUFFERS or parts[-1].endswith(("put_min", "put_max")):
        return "buffers"
    if parts[0] != "layers":
        return parts[0]
    branch = parts[2]
    if branch.endswith(("norm", "norm_1", "norm_2")) and not branch.startswith("post_per_layer"):
        return "layers: norms"
    return f"layers: {'per-layer input' if 'per_layer' in branch else branch}"


def render(found):
    blocks = [found["name"], layer_table_text(found["layers"]), LEGEND, parameters_text(found["parameters"])]
    blocks.append("\n".join(format_line(kind, size, found["formats"][kind]) for kind, size in found["bytes"].items()))
    width = max([38, *map(len, found["memory"])])
    lines = [f"{what:<{width}}{human(size):>12}" for what, size in found["memory"].items()]
    blocks.append("\n".join(["memory of a float32 run, beside the checkpoint's pages", *lines]))
    if found["passed_over"]:
        blocks.append(f"keys that are passed over, since they change nothing: {', '.join(found['passed_over'])}")
    return "\n\n".join(blocks)


def format_line(kind, size, form):
    return f"{kind:<12}{human(size):>12} on disk in {form['tensors']} tensors, {form['bits']:g} bits a number"


def layer_table_text(layers):
    """The layer table as aligned text, without the columns of what these layers do not have."""
    cells = {name: cell for name, (keys, cell) in COLUMNS.items() if layers[0].keys() >= set(keys.split())}
    columns = {name: [cell(s) for s in layers] for name, cell in cells.items()}
    if columns.get("values") == columns.get("keys of"):
        columns.pop("values", None)
    told = [[name, *column] for name, column in columns.items() if {*column} != {"-"}]
    widths = [max(map(len, column)) for column in told]
    rows = zip(*told, strict=True)
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def donor(s):
    own, maker = s["kv_from"] == s["index"], s["kv_from"]
    return "own" if own else str(maker) if isinstance(maker, int) else "the target"


# Column -> the fields of a row that it tells, and how.
COLUMNS: dict[str, tuple[str, Callable]] = {
    "layer": ("index", lambda s: str(s["index"])),
    "attention": ("kind", lambda s: s["kind"].removesuffix("_attention")),
    "window": ("window", lambda s: str(s["window"] or "all")),
    "N": ("N", lambda s: str(s["N"])),
    "K": ("K", lambda s: str(s["K"])),
    "H": ("H", lambda s: str(s["H"])),
    "F": ("F", lambda s: str(s["F"])),
    "keys of": ("kv_from", donor),
    "values": ("k_eq_v", lambda s: "raw keys" if s["k_eq_v"] else donor(s)),
    "rope base": ("theta", lambda s: f"{s['theta']:g}"),
    "turning": ("angles H", lambda s: f"{s['angles']} of {s['H'] // 2}"),
    "sparse": ("sparsity", lambda s: f"{s['sparsity']:g}" if s["sparsity"] else "-"),
    "experts": ("J E", lambda s: f"{s['J']} of {s['E']}" if s["E"] else "-"),
}


def parameters_text(table):
    rows = [
        *table["modules"].items(),
        ("total", table["total"]),
        ("buffers", table["buffers"]),
        ("total with buffers", table["total"] + table["buffers"]),
        ("tensors", table["tensors"]),
    ]
    return "\n".join([f"{'module':<30}{'parameters':>16}", *(f"{name:<30}{number:>16,}" for name, number in rows)])


def human(size):
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3f} GB"
