"""What several verbs share: the prompt in its three forms, the points to keep, a progress bar."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from numgemma.checkpoint import open_safetensors
from numgemma.errors import InputError
from numgemma.model import Model
from numgemma.trace import EVERYTHING_BUT_MAPS, selects


@dataclass(frozen=True)
class Prompt:
    """One sequence to run, and where its dump goes among those of a batch ("" or ".3")."""

    ids: list[int]
    text: str | None = None
    suffix: str = ""


def add_prompt(parser, inputs=True):
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--prompt", metavar="TEXT", help="text, tokenised with the checkpoint's tokenizer.json")
    group.add_argument("--ids", metavar="2,105,9", help="token ids, separated by commas")
    if inputs:
        group.add_argument(
            "--inputs", metavar="FILE", help="a .safetensors file with what Transformers' processor returns"
        )


def add_points(parser):
    parser.add_argument(
        "--points",
        nargs="+",
        metavar="GLOB",
        default=list(EVERYTHING_BUT_MAPS),
        help="names to keep, as 'layers.3.*' or '*.out'; a leading ! excludes (default: all but *.scores and *.probs)",
    )
    parser.add_argument("-o", "--out", metavar="OUT.safetensors", required=True, type=Path, help="the dump to write")


def read_prompts(args, model: Model) -> list[Prompt]:
    """The sequences that --prompt, --ids or --inputs name."""
    if args.prompt is not None:
        return [encode(args.prompt, model)]
    if args.ids is not None:
        return [Prompt(parse_ids(args.ids))]
    return read_inputs(Path(args.inputs))


def encode(text, model) -> Prompt:
    ids = model.tokenizer.encode(text)
    bos = model.config.text.bos_token_id
    if not ids:
        raise InputError("The prompt is empty, and the tokenizer adds nothing to it; give some text.")
    if bos is not None and bos not in ids:
        print(f"numgemma: the tokenizer put no <bos> ({bos}) before the prompt; Gemma expects one.", file=sys.stderr)
    return Prompt(ids, text)


def parse_ids(text) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--ids '{text:.60}' should be integers separated by commas, as 2,105,9.") from None


def read_inputs(path) -> list[Prompt]:
    """One prompt per row of input_ids, without the tokens that attention_mask calls padding."""
    found, _, _ = open_safetensors(path)
    if "input_ids" not in found:
        raise InputError(f"{path}: has no input_ids; save what Transformers' processor or tokenizer returns.")
    others = sorted(found.keys() - {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})
    if others or any(found[name].any() for name in ("mm_token_type_ids",) if name in found):
        raise InputError(f"{path}: holds images or sound ({(others or ['mm_token_type_ids'])[0]}); give text alone.")
    rows = np.atleast_2d(found["input_ids"])
    keep = np.atleast_2d(found.get("attention_mask", np.ones_like(rows))).astype(bool)
    if rows.ndim != 2 or rows.dtype.kind not in "iu" or keep.shape != rows.shape:
        raise InputError(f"{path}: input_ids and attention_mask should be integers of one shape, [rows, tokens].")
    if (np.abs(np.diff(keep, axis=1)).sum(1) > 1).any() or not keep.any(1).all():
        raise InputError(f"{path}: attention_mask should leave one unbroken run of tokens in every row.")
    return [
        Prompt([int(i) for i in row[kept]], suffix=f".{n}" if len(rows) > 1 else "")
        for n, (row, kept) in enumerate(zip(rows, keep, strict=True))
    ]


def numbered(path: Path, suffix: str) -> Path:
    """OUT.safetensors -> OUT.3.safetensors, for a row of a batch."""
    return path.with_name(f"{path.name.removesuffix('.safetensors')}{suffix}.safetensors") if suffix else path


class Progress:
    """Passes points on to a sink, and shows on a terminal how far the run has come."""

    def __init__(self, sink, points, layers):
        self.sink, self.points, self.layers = sink, points, layers
        self.shown = sys.stderr.isatty()
        self.start = 0

    def keep(self, name, x, axes):
        if self.shown and name.endswith(".out") and name.startswith("layers."):
            self.show(int(name.split(".")[1]) + 1, self.start + len(x))
        if selects(self.points, name):
            self.sink.start = self.start
            self.sink.keep(name, x, axes)

    def show(self, layer, tokens):
        bar = "#" * round(30 * layer / self.layers)
        end = "\n" if layer == self.layers and tokens == self.sink.total else ""
        print(f"\r[{bar:30}] layer {layer}/{self.layers}, {tokens} tokens ", end=end, file=sys.stderr, flush=True)
