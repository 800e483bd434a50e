"""Compare each slot of a stack with the layer it came from, on the same prompts: where it leaves its parent's range."""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

from numgemma.cli.building import progress
from numgemma.cli.common import parse_ids
from numgemma.cli.report import write_json, written
from numgemma.errors import InputError
from numgemma.incoming import by_library, read_bytes
from numgemma.model import PRECISIONS, load
from numgemma.surgery.seam_fixes import RAW, fixes, ranked
from numgemma.surgery.seam_fixes import verdict as fixes_verdict
from numgemma.surgery.seams import TEXTS, Fix, as_it_is, compare_ways, origins

RANDOM = (6, 24)  # prompts, and tokens of each, where there is no tokenizer


def add_arguments(parser):
    parser.add_argument("child", type=Path, metavar="CHILD")
    parser.add_argument("parents", type=Path, metavar="PARENT", nargs="+")
    parser.add_argument(
        "--layer-map",
        metavar="MAP",
        default="auto",
        help="auto (default): by lineage; or slices as 0-17,10-25; or a file that `lineage --json` wrote",
    )
    parser.add_argument("--prompt", metavar="TEXT", action="append", default=[], help="a text; may stand several times")
    parser.add_argument(
        "--ids", metavar="2,105,9", action="append", default=[], help="token ids; may stand several times"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="texts, one a line; empty lines are passed over")
    parser.add_argument("--fixes", action="store_true", help="try the known fixes without training as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the four numbers against the slots")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="default: float32")


def run(args):
    child, parents = str(args.child), [str(parent) for parent in args.parents]
    map_ = origins(child, parents, args.layer_map, progress())
    ways: dict[str, Fix] = fixes(map_) if args.fixes else {RAW: as_it_is}
    tried = compare_ways(child, map_, prompts(args), ways, args.precision, shown)
    found = tried[RAW]
    print(render(found))
    if args.fixes:
        print("\n" + render_fixes(tried))
    if args.json:
        write_json(args.json, found)
    if args.plot:
        from numgemma.surgery.pictures import save, seam_picture

        save(seam_picture(found, tried=tried if args.fixes else None), args.plot)
        written(args.plot)
    return 0


def from_diff(args):
    """`numgemma diff CHILD PARENT --layer-map auto`: two checkpoints where two dumps could stand."""
    there = {
        "child": args.a,
        "parents": [args.b],
        "layer_map": args.layer_map,
        "prompt": [],
        "ids": [],
        "prompts": None,
    }
    return run(Namespace(**there, fixes=False, json=args.json, plot=args.plot, precision="float32"))


def prompts(args) -> list[list[int]]:
    """What was asked for; else texts of several kinds, or random tokens where there is no tokenizer."""
    model = load(args.child)
    readable = model.checkpoint.tokenizer or (model.checkpoint.folder / "tokenizer.json").exists()
    texts = args.prompt + lines_of(args.prompts) or (TEXTS if readable and not args.ids else ())
    found = [begun(model.tokenizer.encode(text), model) for text in texts] + [parse_ids(ids) for ids in args.ids]
    if found:
        return found
    count, length = RANDOM
    rng = np.random.default_rng(0)
    return [begun(rng.integers(3, model.outline.vocabulary, length).tolist(), model) for _ in range(count)]


MOST_TEXT = 10_000_000  # bytes of a file of prompts


def lines_of(path):
    """Texts of a file, one a line."""
    if path is None:
        return []
    with by_library(f"{path}: is no text in UTF-8", "write one prompt a line"):
        text = read_bytes(path, "name a file with one prompt a line", MOST_TEXT).decode("utf-8")
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise InputError(f"{path}: holds no prompt; write one a line.")
    return found


def begun(ids, model):
    """With <bos>, which an instruction-tuned tokenizer leaves to the chat template."""
    bos = model.outline.bos
    return list(ids) if bos is None or bos in ids else [bos, *ids]


def shown(done):
    if sys.stderr.isatty():
        print(f"\r{done} prompts ", end="\r", file=sys.stderr, flush=True)


def render(found):
    labels = {parent: f"P{i}" for i, parent in enumerate(found.parents, 1)}
    head = [f"{label} = {parent}" for parent, label in labels.items()]
    rows = [f"{'slot':<5}{'from':<7}{'rms':>8}{'cosine':>8}{'entropy':>8}{'':>6}{'share':>6}{'':>6}  seam"]
    rows += [row(slot, labels) for slot in found.slots]
    return "\n".join([*head, "", *rows, "", *verdict(found)])


MOST_RANKED = 5  # slots that are listed


def render_fixes(tried):
    """What is farthest beyond the parent's range, and what each fix makes of it."""
    rows = [f"{'fix':<33}{'beyond':>7}{'cosine at the end':>19}  farthest"]
    for name, found in tried.items():
        far = [f"{s.slot} ({' '.join(s.outside)}, {s.excess:.2g} widths)" for s in ranked(found)[:MOST_RANKED]]
        last = next((s.cosine for s in reversed(found.slots) if s.cosine is not None), float("nan"))
        rows.append(f"{name:<33}{len(ranked(found)):>7}{last:>19.3f}  {', '.join(far) or '-'}")
    return "\n".join([*rows, "", fixes_verdict(tried)])


def row(s, labels):
    if s.layer is None:
        return f"{s.slot:<5}{'-':<7}{'':>42}  {s.seam}"
    share = f"{s.per_layer[0]:>6.2f}{s.per_layer[1]:>6.2f}" if s.per_layer else f"{'-':>6}{'':>6}"
    marks = ", ".join(part for part in (s.seam, f"beyond: {' '.join(s.outside)}" if s.outside else "") if part)
    ratio = f"{s.ratio:>7.3g}x" if s.ratio is not None else f"{'-':>8}"
    numbers = f"{ratio}{s.cosine:>8.3f}{s.entropy[0]:>8.2f}{s.entropy[1]:>6.2f}{share}"
    return f"{s.slot:<5}{labels[s.parent] + ' ' + str(s.layer):<7}{numbers}  {marks}".rstrip()


def verdict(found):
    """What the table says, in a sentence or two; then what its columns are."""
    first = found.leaves
    if found.prompts < 2:
        said = "One prompt shows no range of the parent's; give two or more to see where the child leaves it."
    elif first is None:
        said = f"On {found.prompts} prompts no slot leaves the range of its source layer."
    else:
        said = f"First beyond its parent's range: slot {first.slot}, by {' and '.join(first.outside)}."
    legend = "rms and cosine: the child's stream against its parent's; entropy and share: the child's, the parent's."
    return [said, legend]
