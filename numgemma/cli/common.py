"""What several verbs share: the prompt in its four forms, the points to keep, a progress bar."""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from numgemma import ops
from numgemma.cli import memory
from numgemma.cli.files import add_files, given_files, remark
from numgemma.cli.numbers import whole_number
from numgemma.errors import InputError
from numgemma.model import Model
from numgemma.opening import IMAGE_MASKS
from numgemma.prompt.chat import chat_files, read_chat, render_chat
from numgemma.prompt.media import NAMES, NO_MEDIA, Media, read_media
from numgemma.prompt.processor import place, processor_of
from numgemma.trace import EVERYTHING_BUT_MAPS, selects
from numgemma.weights.safetensors import open_safetensors

MOST_IDS = 2**31  # no vocabulary is larger


@dataclass(frozen=True)
class Prompt:
    """One sequence to run, and where its dump goes among those of a batch ("" or ".3")."""

    ids: list[int]
    text: str | None = None
    suffix: str = ""
    media: Media = NO_MEDIA


def add_prompt(parser, inputs=True, required=True):
    group = parser.add_mutually_exclusive_group(required=required)
    add_text(group, "text, tokenised with the checkpoint's tokenizer.json")
    group.add_argument(
        "--chat",
        type=Path,
        metavar="FILE.json",
        help='messages as [{"role": "user", "content": "Hello"}]; - is standard input',
    )
    add_ids(group, "token ids, separated by commas")
    if inputs:
        group.add_argument(
            "--inputs",
            type=Path,
            metavar="FILE",
            help="a .safetensors or .npz file with what Transformers' processor returns, or with what else this model "
            "is called with",
        )
    add_files(parser.add_argument_group("files, with --prompt or --chat"))
    add_chat(parser.add_argument_group("options of --chat"))


def add_text(group, text):
    group.add_argument("--prompt", metavar="TEXT", help=text)
    kept = "the same from a file, without its last line end; - is standard input"
    group.add_argument("--prompt-file", type=Path, metavar="FILE", help=kept)


def add_ids(group, text):
    group.add_argument("--ids", metavar="2,105,9", help=text)
    group.add_argument("--ids-file", type=Path, metavar="FILE", help="the same from a file; - is standard input")


def add_other(parser):
    parser.add_argument(
        "--other",
        metavar="2,105,7",
        help="ids of what else the engine ran, whose keys it may have read: a rejected draft with all before it, an "
        "earlier turn, another sequence of the batch",
    )


def add_chat(group):
    thinking = argparse.BooleanOptionalAction
    group.add_argument("--thinking", action=thinking, help="think first, or not (default: as the template decides)")
    group.add_argument(
        "--tools", type=Path, metavar="FILE.json", help="JSON schemas of the functions that the model may call"
    )
    group.add_argument("--template", metavar="NAME", help="one of the checkpoint's templates, or a .jinja file")


def add_adapter(parser):
    parser.add_argument(
        "--adapter",
        metavar="DIR",
        action="append",
        default=[],
        help="a LoRA adapter of this checkpoint, its folder or llama.cpp's .gguf, unmerged; may be repeated",
    )


def add_precision(parser, **more):
    """Of a run that somebody else made."""
    parser.add_argument(
        "--precision",
        metavar="P",
        help="what the dump's run computed in: float32, bfloat16, float16; llama.cpp, whose products round what enters "
        "them, or llama.cpp-f32, the same with a cache in float32; int8, fp8 or nvfp4, where such weights are "
        "multiplied as codes; mobile, Google's files in Transformers (default: what the dump says and shows; llama.cpp "
        "for its runs of quantised files)",
        **more,
    )


def add_points(parser):
    parser.add_argument(
        "--points",
        nargs="+",
        metavar="GLOB",
        default=list(EVERYTHING_BUT_MAPS),
        help="names to keep, as 'layers.3.*' or '*.out'; a leading ! excludes (default: all but maps of attention)",
    )
    parser.add_argument("-o", "--out", metavar="OUT.safetensors", required=True, type=Path, help="the dump to write")


def add_image_mask(parser):
    parser.add_argument(
        "--image-mask",
        choices=IMAGE_MASKS,
        default=IMAGE_MASKS[0],
        help="of 12B: what Transformers computes lets image tokens see each other on full layers and past the window "
        "too (default: intended)",
    )


def add_backend(parser, default):
    parser.add_argument("--backend", choices=ops.BACKENDS, help=f"what computes (default: {default})")
    parser.add_argument(
        "--threads",
        type=whole_number,
        metavar="N",
        help="those of BLAS too, with extra `fast`; default: as many as the machine has",
    )


def use_backend(args, default="numpy"):
    """Bind the operations as --backend and --threads say."""
    ops.use(args.backend or default, args.threads)
    if memory.ours:
        memory.keep_memory()


def read_prompts(args, model: Model) -> list[Prompt]:
    """The sequences that --prompt, --chat, --ids or --inputs name."""
    if args.chat is not None:
        return [encode_chat(args, model)]
    for option in ("thinking", "tools", "template"):
        if getattr(args, option) is not None:
            raise InputError(f"--{option} is an option of --chat; give the messages with --chat FILE.json.")
    if args.prompt is not None:
        return [encode(args, model)]
    for option in ("image", "audio", "video", "soft_tokens"):
        if getattr(args, option):
            raise InputError(f"--{option.replace('_', '-')} joins a text; give it with --prompt or --chat.")
    if args.ids is not None:
        return [Prompt(parse_ids(args.ids))]
    return read_inputs(Path(args.inputs), model)


def encode(args, model) -> Prompt:
    files = given_files(args)
    text = place(args.prompt, files, model.config, model.tokenizer)
    return joined(text, files, args, model, model.tokenizer.encode, "tokenizer")


def encode_chat(args, model) -> Prompt:
    chat = read_chat(args.chat, args.tools)
    files = chat_files(chat.messages, given_files(args), args.chat)
    text = render_chat(model.checkpoint.folder, **vars(chat), thinking=args.thinking, template=args.template)
    return joined(text, files, args, model, model.tokenizer.encode_rendered, "template")


def joined(text, files, args, model, encode, by) -> Prompt:
    """A text and the files that its placeholders stand for; both as they enter the model."""
    ids, media = model.joined(text, files, encode, args.soft_tokens)
    remark(files, lambda: processor_of(model.checkpoint))
    return prompt_of(ids, text, model, by, media)


def prompt_of(ids, text, model, by, media=NO_MEDIA) -> Prompt:
    """The prompt, with a word on the terminal where it does not begin as Gemma's should."""
    bos = model.outline.bos
    if not ids:
        raise InputError(f"The prompt is empty, and the {by} adds nothing to it; give some text.")
    if bos is not None and bos not in ids:
        print(f"numgemma: the {by} put no <bos> ({bos}) before the prompt; Gemma expects one.", file=sys.stderr)
    return Prompt(ids, text, media=media)


def parse_ids(text) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,10}", part) and int(part) < MOST_IDS for part in parts):
        raise InputError(f"--ids '{text:.60}' should be integers from 0 to 2^31, separated by commas, as 2,105,9.")
    return [int(part) for part in parts]


def read_arrays(path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors or .npz file."""
    if path.suffix != ".npz":
        return open_safetensors(path).tensors
    from numgemma.debug.readers.tensors import from_npz  # who gives no such file does not wait for the debugger

    return dict(from_npz(path))


def read_inputs(path, model) -> list[Prompt]:
    """The arrays that this model takes by name; else one prompt per row of input_ids, padding left out."""
    found = read_arrays(path)
    if model.given_by_name:
        ids, media = model.named_ids(found, str(path))
        return [Prompt(ids, media=media)]
    return rows_of(found, path)


def rows_of(found, path) -> list[Prompt]:
    """One prompt per row of input_ids, without the tokens that attention_mask calls padding."""
    if "input_ids" not in found:
        raise InputError(f"{path}: has no input_ids; save what Transformers' processor or tokenizer returns.")
    others = sorted(found.keys() - {"input_ids", "attention_mask", "token_type_ids", *NAMES})
    if others:
        raise InputError(f"{path}: holds '{others[0]}', which no processor of Gemma 4 returns; leave it out.")
    rows = np.atleast_2d(found["input_ids"])
    mask = np.atleast_2d(found.get("attention_mask", np.ones_like(rows)))
    keep = mask.astype(bool)
    if rows.ndim != 2 or not len(rows) or rows.dtype.kind not in "iu" or keep.shape != rows.shape:
        raise InputError(f"{path}: input_ids and attention_mask should be integers of one shape, [rows, tokens].")
    if (mask != keep).any():  # numbers of packed sequences, or what is added to scores
        raise InputError(f"{path}: attention_mask should hold 0 and 1 alone, and {mask[mask != keep][0]} is neither.")
    if (np.abs(np.diff(keep, axis=1)).sum(1) > 1).any() or not keep.any(1).all():
        raise InputError(f"{path}: attention_mask should leave one unbroken run of tokens in every row.")
    if len(rows) == 1:
        return [Prompt(rows[0][keep[0]].tolist(), media=read_media(unpadded(found, keep[0]), str(path)))]
    if found.keys() & set(NAMES) - {"mm_token_type_ids"} or np.any(found.get("mm_token_type_ids", 0)):
        raise InputError(f"{path}: holds {len(rows)} prompts with images or sound; save one at a time.")
    return [
        Prompt([int(i) for i in row[kept]], suffix=f".{n}")
        for n, (row, kept) in enumerate(zip(rows, keep, strict=True))
    ]


def unpadded(found, keep):
    """The arrays of one prompt, its token types without those of padding."""
    types = np.atleast_2d(found["mm_token_type_ids"]) if "mm_token_type_ids" in found else None
    if types is None or types.shape != (1, len(keep)):
        return found
    return found | {"mm_token_type_ids": types[0][keep]}


def check_kept(writer, points):
    """Globs that match nothing are a mistake: an empty dump would compare as missing everywhere."""
    if not writer.entries:
        raise InputError(f"--points {' '.join(points)[:60]}: selects no point of this model; dump once without it.")


def warn_of_length(ids, model, more=0):
    """Remarks where a run leaves the positions that the model was made for, or where a tower is not all there."""
    for kind, (there, due) in model.incomplete.items():
        print(f"numgemma: the {kind} tower has {there} of its {due} tensors; only text runs.", file=sys.stderr)
    longest = model.outline.longest
    if len(ids) + more > longest:
        print(f"numgemma: {len(ids) + more} tokens, but the model was made for {longest}.", file=sys.stderr)


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
            self.show(int(name.split(".")[1]) + 1, (self.start or 0) + len(x))
        if selects(self.points, name):
            self.sink.start = self.start
            self.sink.keep(name, x, axes)

    def show(self, layer, tokens):
        bar = "#" * round(30 * layer / self.layers)
        end = "\n" if layer == self.layers and tokens >= self.sink.total else ""
        print(f"\r[{bar:30}] layer {layer}/{self.layers}, {tokens} tokens ", end=end, file=sys.stderr, flush=True)
