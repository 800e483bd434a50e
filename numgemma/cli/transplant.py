"""Build a dense Gemma 4 that sees, from a Gemma 3 text model and another Gemma 4's vision tower."""

from math import prod
from pathlib import Path

from numgemma.cli.building import add_card, add_output, output, summary
from numgemma.cli.card import command, write_transplant_card
from numgemma.cli.inspect import parameter_table
from numgemma.cli.numbers import finite, whole_number
from numgemma.surgery.transplant import ROPES, Choices, plan, write

HELP = "(default: %(default)s)"


def add_arguments(parser):
    usual = Choices()
    parser.add_argument(
        "--text", type=Path, metavar="GEMMA3", required=True, help="a Gemma 3 1B checkpoint: the text model"
    )
    parser.add_argument(
        "--tower",
        type=Path,
        metavar="GEMMA4",
        required=True,
        help="a Gemma 4: vision tower, tokenizer and processor (E2B)",
    )
    add_output(parser)
    add_card(parser)
    parser.add_argument("--plan", action="store_true", help="print what becomes of what and write nothing")
    recipe = parser.add_argument_group("the recipe", "the defaults are those of the published model where it says")
    number = {"metavar": "N", "type": whole_number}
    recipe.add_argument("--layers", default=usual.layers, help=f"layers taken, from the first {HELP}", **number)
    recipe.add_argument("--vocab", help="rows of the embedding; new ones are the mean (default: as many)", **number)
    recipe.add_argument("--window", default=usual.window, help=f"of sliding layers {HELP}", **number)
    recipe.add_argument("--positions", default=usual.positions, help=f"max_position_embeddings {HELP}", **number)
    recipe.add_argument("--softcap", type=finite, default=usual.softcap, help=f"of the logits, 0: none {HELP}")
    left_open = parser.add_argument_group("what the recipe leaves open")
    left_open.add_argument(
        "--full-scale",
        choices=("width", "exact"),
        default=usual.full_scale,
        help="factor in the q/k norms of full layers: 1/sqrt(their new width), or what leaves the scores of doubled "
        f"heads as they were {HELP}",
    )
    left_open.add_argument("--full-rope", choices=tuple(ROPES), default=usual.full_rope, help=f"of full layers {HELP}")
    left_open.add_argument(
        "--image-attention",
        choices=("vision", "causal"),
        default=usual.image_attention,
        help=f"vision: the tokens of an image see each other, as in 31B; causal: as in E2B {HELP}",
    )
    left_open.add_argument("--layer-scalar", type=finite, default=usual.layer_scalar, help=f"of every layer {HELP}")
    left_open.add_argument(
        "--projection-std", type=finite, default=usual.projection_std, help=f"of the fresh projection {HELP}"
    )
    left_open.add_argument("--seed", default=usual.seed, help=f"of the fresh projection {HELP}", **number)


def run(args):
    choices = Choices(**{name: getattr(args, name) for name in Choices.__annotations__})
    child = plan(args.text, args.tower, choices)
    print(inventory(child))
    if not args.plan:
        parents, told = (args.text, args.tower), command(args)
        card = None if args.no_card else lambda at: write_transplant_card(child, parents, at, args.out.name, told)
        write(child, card=card, **output(args))
        print(summary(args.out))
    return 0


def inventory(child) -> str:
    """The table of components: how many tensors and numbers, from which parent, by what method."""
    rows: dict[tuple[str, str, str], list[int]] = {}
    for part in child.parts.values():
        row = rows.setdefault((part.component, part.source, part.method), [0, 0])
        row[0] += 1
        row[1] += prod(part.tensor.shape)
    lines = [f"{'component':<20}{'tensors':>8}{'numbers':>13}  {'source':<7}method"]
    for (component, source, method), (tensors, numbers) in rows.items():
        lines.append(f"{component:<20}{tensors:>8}{numbers:>13,}  {source:<7}{method}")
    lines.append(f"{'tokenizer and so on':<20}{len(child.files):>8}{'files':>13}  {'tower':<7}copied")
    lines += ["", *(f"without {what}: {why}" for what, why in child.left), "", parameters(child)]
    return "\n".join(lines)


def parameters(child) -> str:
    found = parameter_table({name: part.tensor.shape for name, part in child.parts.items()}, unread=())
    return f"{found['total']:,} parameters, and {found['buffers']} numbers in buffers"
