"""Stack layers of a checkpoint, or of several, into a deeper one, with all that Gemma 4 needs for it."""

from pathlib import Path
from typing import Any

from numgemma.cli.building import add_card, add_output, output, summary
from numgemma.cli.card import command, write_stack_card
from numgemma.cli.numbers import whole_number
from numgemma.errors import InputError
from numgemma.surgery.recipe import PRESETS, of_one, parse_slices, read_recipe
from numgemma.surgery.stack import plan, write


def add_arguments(parser):
    parser.add_argument(
        "parent",
        type=Path,
        metavar="PARENT",
        help="a checkpoint, or a recipe: a YAML file in mergekit's passthrough form",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--slices", metavar="0-17,10-25", help="layers from the bottom up, first and last included")
    which.add_argument("--preset", choices=tuple(PRESETS), help="the slices of a published stack")
    add_output(parser)
    add_card(parser)
    parser.add_argument(
        "--shared",
        type=whole_number,
        metavar="N",
        help="the last N slots share keys (default: the trailing run of slots whose source layers shared)",
    )
    parser.add_argument(
        "--kv-from-donor",
        action="store_true",
        help="a slot that must make keys, although its source layer shared, takes those of the layer that was read",
    )
    parser.add_argument("--plan", action="store_true", help="print the table of slots and write nothing")


def run(args):
    stack = plan(find_recipe(args), args.shared, args.kv_from_donor)
    print(render(stack))
    if not args.plan:
        card = None if args.no_card else lambda folder: write_stack_card(stack, folder, args.out.name, command(args))
        write(stack, card=card, **output(args))
        print(summary(args.out))
    return 0


def find_recipe(args):
    if args.parent.suffix in (".yaml", ".yml"):
        if args.slices or args.preset:
            raise InputError(f"{args.parent}: names its own slices; leave out --slices and --preset.")
        return read_recipe(args.parent)
    if not (args.slices or args.preset):
        raise InputError(f"{args.parent}: which layers? Name them with --slices or --preset; a recipe ends in .yaml.")
    return of_one(str(args.parent), parse_slices(args.slices) if args.slices else PRESETS[args.preset])


def render(stack):
    """The table of slots, a line for each run of one parent's layers in one role."""
    lines = [f"{'slots':<9}{'layers':<9}{'keys':<12}parent"]
    for run in runs(stack):
        (slot, spec), (last, _) = run[0], run[-1]
        keys = "shared" if spec.kv_from != spec.index else "made anew" if slot.shared else "own"
        slots, layers = f"{slot.index}-{last.index}", f"{slot.spec.index}-{last.spec.index}"
        lines.append(f"{slots:<9}{layers:<9}{keys:<12}{slot.parent}")
    shared = stack.config.text.num_kv_shared_layers
    donors = sorted({spec.kv_from for spec in stack.config.text.layers if spec.kv_from != spec.index})
    read = f", which read those of slots {' and '.join(map(str, donors))}" if donors else ""
    return "\n".join([*lines, f"{len(stack.slots)} layers; {shared} share keys{read}"])


def runs(stack):
    """Slots with their rows, grouped where parent, order and role go on."""
    found: list[tuple[Any, list[Any]]] = []
    for slot, spec in zip(stack.slots, stack.config.text.layers, strict=True):
        role = slot.parent, slot.index - slot.spec.index, slot.shared, spec.kv_from != spec.index
        if not found or found[-1][0] != role:
            found.append((role, []))
        found[-1][1].append((slot, spec))
    return [run for _, run in found]
