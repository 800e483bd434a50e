"""Run a prompt and write every activation to a file."""

from pathlib import Path

from numgemma.cli.common import (
    Progress,
    add_adapter,
    add_backend,
    add_image_mask,
    add_points,
    add_prompt,
    check_kept,
    numbered,
    read_prompts,
    use_backend,
    warn_of_length,
)
from numgemma.cli.numbers import whole_number
from numgemma.debug.measure.precision import ROUNDINGS, dtype_of, in_full, rounding_of
from numgemma.debug.noise.rounding import rounded_as
from numgemma.dump import DumpWriter
from numgemma.model import PRECISIONS, load
from numgemma.prompt.named import with_inputs


def add_arguments(parser):
    parser.add_argument("ckpt", type=Path, metavar="CKPT")
    add_adapter(parser)
    add_prompt(parser)
    add_points(parser)
    add_image_mask(parser)
    add_backend(parser, "numpy, the definition")
    parser.add_argument(
        "--precision",
        choices=(*PRECISIONS, *ROUNDINGS),
        default="float32",
        help="llama.cpp: float32, and what enters a product rounded as that engine does it on the CPU; -f32: with a "
        "cache in float32; int8, fp8, nvfp4: bfloat16, and such weights multiplied as codes; mobile: Google's "
        "files in Transformers (default: float32)",
    )
    parser.add_argument(
        "--prefill",
        type=whole_number,
        metavar="K",
        help="run the first K tokens in one pass and the rest one at a time through the cache (default: all in one)",
    )


def run(args):
    use_backend(args)
    precision = in_full(args.precision)
    model = load(args.ckpt, str(dtype_of(precision)), args.image_mask, adapters=args.adapter)
    for prompt in read_prompts(args, model):
        out, points = numbered(args.out, prompt.suffix), with_inputs(args.points, prompt.media)
        warn_of_length(prompt.ids, model)
        meta = model.describe(prompt.ids, points, prompt.text, args.prefill, prompt.media) | {"precision": precision}
        with DumpWriter(out, meta) as writer, rounded_as(rounding_of(precision)):
            sink = Progress(writer, points, len(model.outline.layers))
            watched = [*points, "layers.*.out"]  # the latter for the progress bar
            model.record_into(sink, prompt.ids, watched, prefill=args.prefill, media=prompt.media)
            check_kept(writer, args.points)
        tokens = f" over {len(prompt.ids)} tokens" if prompt.ids else ""
        print(f"{out}: {len(writer.entries)} points{tokens}, {out.stat().st_size / 1e6:.1f} MB")
    return 0
