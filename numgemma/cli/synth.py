"""Write a checkpoint with plausible random weights, of any supported config, shrunk if asked."""

from pathlib import Path

from numgemma.cli.building import add_output, output, summary
from numgemma.cli.numbers import whole_number
from numgemma.families.gemma4.shrink import SCALES
from numgemma.surgery.synth import DTYPES, synth


def add_arguments(parser):
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a config.json, its directory, or an official name")
    add_output(parser)
    parser.add_argument(
        "--scale",
        choices=(*SCALES, "full"),
        default="full",
        help="tiny: about a million numbers; pilot: about a hundred million; full: as in the config (default)",
    )
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help="same seed, same bytes (default: 0)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16", help="default: bfloat16")
    parser.add_argument(
        "--resaved",
        action="store_true",
        help="leave out the keys and values that sharing layers do not read, as files saved by Transformers do",
    )


def run(args):
    synth(str(args.config), scale=args.scale, seed=args.seed, dtype=args.dtype, unread=not args.resaved, **output(args))
    print(summary(args.out))
    return 0
