"""Run a prompt in Transformers and write its activations to a file (needs the extra `hf`)."""

from pathlib import Path

from numgemma.cli.common import add_points, add_prompt, check_kept, numbered, read_prompts
from numgemma.debug.capture import hooks
from numgemma.dump import DumpWriter
from numgemma.model import load
from numgemma.opening import IMAGE_MASKS


def add_arguments(parser):
    parser.add_argument("ckpt", type=Path, metavar="CKPT")
    add_prompt(parser)
    add_points(parser)
    parser.add_argument(
        "--image-mask",
        choices=IMAGE_MASKS,
        default="transformers",
        help="intended: hand Transformers that mask, which it does not make itself for 12B (default: its own)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")


def run(args):
    hooks.import_hf()
    model = load(args.ckpt)
    for prompt in read_prompts(args, model):
        out = numbered(args.out, prompt.suffix)
        with DumpWriter(
            out, hooks.describe(model, prompt.ids, args.dtype, args.points, prompt.text, prompt.media)
        ) as writer:
            ids = model.checked(prompt.ids, prompt.media)
            hooks.capture(model, ids, writer, args.dtype, args.points, prompt.media, args.image_mask)
            check_kept(writer, args.points)
        print(f"{out}: {len(writer.entries)} points over {len(prompt.ids)} tokens, {out.stat().st_size / 1e6:.1f} MB")
    return 0
