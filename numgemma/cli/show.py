"""Draw a run: who attends to whom, how the stream grows; or what the model sees of a picture, hears of a recording."""

from pathlib import Path

from numgemma import plots
from numgemma.checkpoint import open_checkpoint
from numgemma.cli.denoising import Canvases
from numgemma.cli.numbers import whole_number
from numgemma.denoise import denoised
from numgemma.dump import read_dump
from numgemma.errors import InputError
from numgemma.extras import drawing
from numgemma.graph import Graph, graph_of, graph_of_dumps
from numgemma.incoming import parse_object
from numgemma.model import load
from numgemma.official import official
from numgemma.opening import located, resolve
from numgemma.plots.denoising import read_blocks
from numgemma.plots.overlay import draw_picture, draw_sound, draw_video, write_figure
from numgemma.plots.soft_tokens import Look
from numgemma.prompt.images import BUDGETS
from numgemma.prompt.processor import read_processor, with_budget
from numgemma.prompt.tokenizer import tokenizer_of

# What --what draws, and which options it takes.
WHAT = {
    "attention": ("layer", "head"),
    "surprise": (),
    "residual": (),
    "rope": (),
    "gates": (),
    "routing": ("layer",),
    "layer": ("layer",),
    "denoising": ("token", "prompt"),
}

DRAW = {"image": draw_picture, "video": draw_video, "audio": draw_sound}


def add_arguments(parser):
    parser.add_argument(
        "dump",
        type=Path,
        metavar="DUMP",
        help="written with --image, --audio, ...; the attention needs its *.probs; for --what layer also "
        "a checkpoint's folder, or the name of an official config; for --what denoising what `generate --json` wrote, "
        "or the folder of a DiffusionGemma, with --prompt",
    )
    file = parser.add_mutually_exclusive_group(required=True)
    file.add_argument("--image", type=Path, metavar="FILE", help="a picture: its patches, soft tokens, attention")
    file.add_argument("--video", type=Path, metavar="FILE", help="a clip: the same of each frame that is looked at")
    file.add_argument("--audio", type=Path, metavar="FILE", help="a recording: its spectrogram and soft tokens")
    file.add_argument(
        "--what",
        choices=WHAT,
        help="attention: the map of a layer; surprise at each token; residual: sizes of the stream; rope: its "
        "frequencies; gates of the per-layer inputs; routing: tokens of each expert; layer: what it computes from "
        "what; denoising: a canvas over its steps",
    )
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="OUT", help="the drawing, .png or .svg")
    parser.add_argument(
        "--index", type=whole_number, default=0, metavar="K", help="which, where several are as long (default: 0)"
    )
    parser.add_argument(
        "--token",
        type=whole_number,
        metavar="T",
        help="whose attention (default: the last token's); of a canvas, the place to begin with (default: 0)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="of --what denoising, the text that a canvas is to continue")
    parser.add_argument(
        "--layer",
        type=whole_number,
        metavar="L",
        help="default: the last full-attention layer with probs; of routing, the last; of --what layer, the first",
    )
    parser.add_argument("--head", type=whole_number, metavar="N", help="default: the mean of all")
    parser.add_argument(
        "--soft-tokens",
        type=whole_number,
        choices=BUDGETS,
        help="the budget at which the dump was made (default: the one that fits its ids)",
    )
    parser.add_argument(
        "--ckpt",
        type=Path,
        metavar="CKPT",
        default=Path(),
        help="for its processor_config.json, where it has its own; with --what, to write tokens as text, not as ids",
    )


def run(args):
    if args.what is not None:
        draw_run(args)
        print(f"{args.out}: drawn")
        return 0
    dump, settings = read_dump(args.dump), read_processor(args.ckpt)
    if args.soft_tokens is not None:
        settings = with_budget(settings, args.soft_tokens)
    look = Look(args.token, args.layer, args.head)
    kind = next(kind for kind in DRAW if getattr(args, kind) is not None)
    write_figure(DRAW[kind](getattr(args, kind), dump, settings, args.index, look), args.out)
    print(f"{args.out}: drawn")
    return 0


def draw_run(args):
    """One of the figures of numgemma.plots, to a file."""
    drawing()
    import matplotlib

    matplotlib.use("agg")  # a file, whatever windows there could be
    from matplotlib import pyplot

    for option in ("layer", "head", "token", "soft_tokens", "prompt"):
        if getattr(args, option) is not None and option not in WHAT[args.what]:
            raise InputError(f"--{option.replace('_', '-')} is no option of --what {args.what}; leave it out.")
    of_none = {"layer": layer_of, "denoising": canvas_of}  # which need no dump
    ax = of_none[args.what](args) if args.what in of_none else plot_of(args.what, read_dump(args.dump), args)
    try:
        write_figure(ax.figure, args.out)
    finally:
        pyplot.close(ax.figure)


def layer_of(args):
    """-> matplotlib Axes"""
    return plots.layer(graph_told(args.dump), args.layer or 0)


def canvas_of(args):
    """-> matplotlib Axes"""
    if located(args.dump).is_dir():
        blocks, tokenizer = blocks_of(load(args.dump), args.prompt)
    else:
        blocks = read_blocks(args.dump)
        tokenizer = None if args.ckpt == Path() else tokenizer_of(open_checkpoint(resolve(args.ckpt)))
    if args.index >= len(blocks):
        raise InputError(f"--index {args.index}: there are {len(blocks)} blocks, counted from 0.")
    block = blocks[args.index]
    ids = sorted({i for step in block["steps"] for i in step["best"]})
    texts = None if tokenizer is None else dict(zip(ids, tokenizer.pieces(ids), strict=True))
    return plots.canvas_map(block, texts, args.token or 0)


def blocks_of(model, prompt):
    """What a model writes after a prompt, and the tokenizer that spells it."""
    if prompt is None:
        raise InputError("--what denoising of a checkpoint needs a text that its canvas continues; give --prompt TEXT.")
    ids, _ = model.prompt_ids(prompt)
    return Canvases([], list(denoised(model, ids))).to_json()["blocks"], model.tokenizer


def graph_told(path) -> Graph:
    """The graph of the model that a dump is of, a checkpoint's folder, or an official config by its name."""
    known, path = official(str(path)), located(path)
    if path.is_dir():
        return graph_of(open_checkpoint(path).config)
    if known and not path.exists():
        return graph_of(parse_object(known.read_bytes(), str(known)))
    return graph_of_dumps(read_dump(path))


def plot_of(what, dump, args):
    """-> matplotlib Axes"""
    tokens = token_texts(dump, args.ckpt)
    if what == "attention":
        layer = plots.last_map(dump) if args.layer is None else args.layer
        return plots.attention_map(dump, layer, args.head, tokens)
    if what == "routing":
        return plots.routing_histogram(dump, plots.depth(dump)[-1] if args.layer is None else args.layer)
    if what in ("residual", "rope"):
        return {"residual": plots.residual_norms, "rope": plots.rope_frequencies}[what](dump)
    return {"surprise": plots.surprise, "gates": plots.gate_strengths}[what](dump, tokens)


def token_texts(dump, ckpt):
    """The text of each token, where a checkpoint was named whose tokenizer knows it; else None."""
    if ckpt == Path():
        return None
    return tokenizer_of(open_checkpoint(resolve(ckpt))).pieces(plots.token_ids(dump))
