"""Draw what the model sees of a picture, or hears of a recording, that a dump was made with."""

from pathlib import Path

from numgemma.debug.overlay import Look, draw_picture, draw_sound, write_png
from numgemma.dump import read_dump
from numgemma.images import BUDGETS
from numgemma.processor import read_processor, with_budget


def add_arguments(parser):
    parser.add_argument("dump", metavar="DUMP", help="written with --image or --audio; the attention needs its *.probs")
    file = parser.add_mutually_exclusive_group(required=True)
    file.add_argument("--image", type=Path, metavar="FILE", help="a picture: its patches, soft tokens, attention")
    file.add_argument("--audio", type=Path, metavar="FILE", help="a recording: its spectrogram and soft tokens")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="OUT.png", help="the drawing to write")
    parser.add_argument(
        "--index", type=int, default=0, metavar="K", help="which, where several are as long (default: 0)"
    )
    parser.add_argument("--token", type=int, metavar="T", help="whose attention (default: the last token's)")
    parser.add_argument("--layer", type=int, metavar="L", help="default: the last full-attention layer with probs")
    parser.add_argument("--head", type=int, metavar="N", help="default: the mean of all")
    parser.add_argument(
        "--soft-tokens",
        type=int,
        choices=BUDGETS,
        help="the budget at which the dump was made (default: the one that fits its ids)",
    )
    parser.add_argument(
        "--ckpt", type=Path, metavar="CKPT", default=Path(), help="for its processor_config.json, where it has its own"
    )


def run(args):
    dump, settings = read_dump(args.dump), read_processor(args.ckpt)
    if args.soft_tokens is not None:
        settings = with_budget(settings, args.soft_tokens)
    look = Look(args.token, args.layer, args.head)
    draw = draw_sound if args.image is None else draw_picture
    write_png(draw(args.image or args.audio, dump, settings, args.index, look), args.out)
    print(f"{args.out}: drawn")
    return 0
