"""Make a vector of each text, or of pictures, sound and clips (EmbeddingGemma 2)."""

import shutil
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from numgemma import ops
from numgemma.atomic import whole
from numgemma.cli.common import (
    Prompt,
    add_adapter,
    add_backend,
    parse_ids,
    prompt_of,
    read_inputs,
    use_backend,
    warn_of_length,
)
from numgemma.cli.files import add_files, given_files, remark
from numgemma.cli.numbers import whole_number
from numgemma.errors import InputError
from numgemma.incoming import STANDARD, read_text
from numgemma.model import PRECISIONS, load
from numgemma.prompt.processor import place, processor_of

ADVISED = 8192  # tokens of a text: what the model was trained for
CELL = 8  # characters of a cosine, with the space before it
TENSOR = "vectors"  # its name in a .safetensors file


def add_arguments(parser):
    parser.add_argument("ckpt", type=Path, metavar="CKPT")
    add_adapter(parser)
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--text", nargs="+", metavar="TEXT", help="one text or more, a row for each")
    given.add_argument(
        "--text-file", type=Path, metavar="FILE", help="one text a line, a row for each; - is standard input"
    )
    given.add_argument(
        "--ids", nargs="+", metavar="2,105,1", help="token ids, separated by commas; a row for each list"
    )
    given.add_argument(
        "--inputs",
        type=Path,
        metavar="FILE",
        help="what Transformers' processor returns; a row for each of its prompts",
    )
    parser.add_argument(
        "--prompt",
        metavar="NAME",
        help="the task, as query or document: the checkpoint has words for each (default: none)",
    )
    parser.add_argument("--title", metavar="T", help="of the document, with --prompt document")
    parser.add_argument(
        "--dim",
        type=whole_number,
        metavar="N",
        help="numbers of a vector that are kept (default: all; trained for: 768, 512, 256, 128)",
    )
    add_files(parser.add_argument_group("files, with one --text or without any"))
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="a .npy or .safetensors file to write the rows to"
    )
    parser.add_argument("--similarity", action="store_true", help="print the cosine of each row with each")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="default: float32")
    add_backend(parser, "numba where it is installed")


def run(args):
    if args.out is None and not args.similarity:
        raise InputError("Nothing is asked for; give -o FILE.npy for the vectors, or --similarity for their cosines.")
    if args.out is not None and args.out.suffix not in (".npy", ".safetensors"):
        raise InputError(f"{args.out}: is neither a .npy nor a .safetensors file; give -o such a name.")
    use_backend(args, ops.fastest(PRECISIONS[args.precision]))
    model = load(args.ckpt, args.precision, adapters=args.adapter)
    prompts = read_prompts(args, model)
    rows = np.stack([*vectors(model, prompts, args.dim)])
    if args.out is not None:
        write(args.out, rows)
        print(f"{args.out}: {len(rows)} x {rows.shape[1]}")
    if args.similarity:
        print(table(rows.astype(np.float64) @ rows.astype(np.float64).T, shutil.get_terminal_size().columns))
    return 0


# what comes in


def read_prompts(args, model) -> list[Prompt]:
    """The rows that the options name."""
    files = given_files(args)
    if args.ids is not None or args.inputs is not None:
        for option in ("prompt", "title", "image", "audio", "video", "soft_tokens"):
            if getattr(args, option):
                raise InputError(f"--{option.replace('_', '-')} joins a text; give it with --text.")
        return [Prompt(parse_ids(one)) for one in args.ids] if args.ids else read_inputs(args.inputs, model)
    texts = read_texts(args)
    words = model.task_words(args.prompt, args.title)
    if any(files.values()):
        if len(texts) > 1:
            raise InputError(f"Files join one text, here are {len(texts)}; run each with its own.")
        return [with_files(words, texts[0] if texts else "", files, args.soft_tokens, model)]
    if not texts:
        raise InputError("There is nothing to embed; give --text, --text-file, --ids, --inputs or --image.")
    return [prompt_of(model.tokenizer.encode(words + text), words + text, model, "tokenizer") for text in texts]


def read_texts(args) -> list[str]:
    """Those of --text, or the lines of --text-file."""
    if args.text_file is None:
        if "" in (args.text or ()):
            raise InputError("A --text is empty, and has no vector; leave it out.")
        return args.text or []
    lines = [line.removesuffix("\r") for line in read_text(args.text_file).removesuffix("\n").split("\n")]
    where = "standard input" if args.text_file == STANDARD else args.text_file
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise InputError(f"{where}: line {number} is empty, and each line is a text; remove it.")
    return lines


def with_files(words, text, files, soft_tokens, model) -> Prompt:
    """One text and its files: those without a placeholder stand before all words, as the model's template has them."""
    spelled = place(words + text if text else "", files, model.config, model.tokenizer)
    ids, media = model.joined(spelled, files, model.tokenizer.encode, soft_tokens)
    remark(files, lambda: processor_of(model.checkpoint))
    return prompt_of(ids, spelled, model, "tokenizer", media)


# what goes out


def vectors(model, prompts, dim):
    """Row after row: each runs alone, so that its bits depend on no other.  Shows on a terminal how far it has come."""
    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    if len(longest.ids) > ADVISED:
        print(f"numgemma: a text of {len(longest.ids)} tokens; the model was trained for {ADVISED}.", file=sys.stderr)
    warn_of_length(longest.ids, model)
    for number, prompt in enumerate(prompts, start=1):
        yield model.vector(prompt.ids, prompt.media, dim)
        if sys.stderr.isatty() and len(prompts) > 1:
            end = "\n" if number == len(prompts) else ""
            print(f"\r{number} of {len(prompts)} rows ", end=end, file=sys.stderr, flush=True)


def write(path, rows):
    """The rows, in one file: whole, or not at all.  A .npy file has no bfloat16, so it holds those as float32."""
    if path.suffix == ".safetensors":
        content = save({TENSOR: rows})
    else:
        file = BytesIO()
        np.save(file, rows.astype(np.float32) if rows.dtype.itemsize < 4 else rows)
        content = file.getvalue()
    with whole(path) as partial:
        partial.write_bytes(content)


def table(cosines, columns):
    """The cosines of all pairs, rows by number, in as many blocks of columns as the terminal calls for."""
    count, edge = len(cosines), len(str(len(cosines)))
    wide = max(1, (columns - edge) // CELL)
    blocks = []
    for first in range(0, count, wide):
        some = range(first, min(first + wide, count))
        lines = [" " * edge + "".join(f"{j + 1:>{CELL}}" for j in some)]
        lines += [f"{i + 1:>{edge}}" + "".join(f"{cosines[i, j]:>{CELL}.4f}" for j in some) for i in range(count)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
