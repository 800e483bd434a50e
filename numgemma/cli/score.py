"""Score a given text: nats by token, perplexity, and against another checkpoint the divergence at every place."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from numgemma.cli.common import add_adapter, parse_ids
from numgemma.cli.numbers import whole_number
from numgemma.cli.report import write_json
from numgemma.errors import InputError
from numgemma.incoming import read_text
from numgemma.model import load
from numgemma.score import score

WORST = 8  # tokens that suffer most


def add_arguments(parser):
    parser.add_argument("ckpt", type=Path, metavar="CKPT")
    add_adapter(parser)
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--text-file", type=Path, metavar="FILE", help="the text, as UTF-8")
    text.add_argument("--ids", metavar="1,2,...", help="the text as token ids")
    parser.add_argument("--against", metavar="CKPT2", help="another checkpoint with the same tokens, e.g. the original")
    parser.add_argument(
        "--window", type=whole_number, default=2048, metavar="N", help="tokens that run together (2048)"
    )
    parser.add_argument("--stride", type=whole_number, metavar="N", help="from window to window (half a window)")
    parser.add_argument("--precision", default="float32", choices=("float32", "float64", "bfloat16"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers of every token as JSON")


def run(args):
    model = load(args.ckpt, args.precision, adapters=args.adapter)
    other = load(args.against, args.precision) if args.against else None
    found = score(model, text_ids(args, model), other, args.window, args.stride, progress())
    print(render(found, model))
    if args.json:
        write_json(args.json, found)
    return 0


def text_ids(args, model):
    if args.ids is not None:
        return parse_ids(args.ids)
    return model.tokenizer.encode(read_text(args.text_file))


def progress():
    """Shows on a terminal how many tokens are scored, and nothing in a pipe."""
    if not sys.stderr.isatty():
        return lambda done, of: None

    def show(done, of):
        print(f"\r{done} of {of} tokens ", end="\n" if done == of else "", file=sys.stderr, flush=True)

    return show


def render(found, model):
    """The numbers in a few lines, and the tokens that cost most, or that the other model spoils most."""
    lines = [f"{np.isfinite(found.nll).sum()} tokens: {found.mean:.4f} nats each, perplexity {found.perplexity:.4g}"]
    suffer = found.nll
    if found.kl is not None:
        theirs = replace(found, nll=found.other)
        lines.append(f"against: {theirs.mean:.4f} nats each, perplexity {theirs.perplexity:.4g}")
        lines.append(f"divergence: {np.nanmean(found.kl):.4g} nats a token, at most {np.nanmax(found.kl):.4g}")
        suffer = found.kl
    lines.append("tokens that " + ("cost most:" if found.kl is None else "suffer most:"))
    for t in np.argsort(-np.nan_to_num(suffer, nan=-np.inf))[: min(WORST, len(suffer) - 1)]:
        lines.append(f"  {t:>6}  {suffer[t]:9.4f}  {piece(model, int(found.ids[t]))}")
    return "\n".join(lines)


def piece(model, token):
    """A token's text, or its id where there is no tokenizer."""
    try:
        return repr(model.tokenizer.pieces([token])[0])
    except InputError:
        return str(token)
