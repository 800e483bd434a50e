"""What the verbs that write checkpoints share: where to, in what files, and how far it has come."""

import re
import sys
from pathlib import Path

from numgemma.checkpoint import open_checkpoint
from numgemma.errors import InputError


def add_output(parser):
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, help="the checkpoint to write")
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", default="5GB", help="most bytes of tensors per file (default: 5GB)"
    )
    parser.add_argument("--force", action="store_true", help="replace DIR if it is a checkpoint, once the new is whole")


def add_card(parser):
    parser.add_argument("--no-card", action="store_true", help="write no model card (README.md) into it")


def output(args):
    """Where to write, and the arguments of `write_checkpoint` that the command line gives."""
    if args.out is None:
        raise InputError("Where should the checkpoint go? Name a new directory with -o.")
    return {"target": args.out, "shard": parse_size(args.max_shard_size), "force": args.force, "progress": progress()}


def parse_size(text) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise InputError(f"--max-shard-size '{text:.60}' should be a size, as 5GB or 500MB.")
    return max(1, int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " ")))


def progress():
    """Shows on a terminal how many bytes are written, and nothing in a pipe."""
    if not sys.stderr.isatty():
        return lambda done, total: None

    def show(done, total):
        bar = "#" * round(30 * done / total)
        end = "\n" if done == total else ""
        print(f"\r[{bar:30}] {done / 1e9:.2f} of {total / 1e9:.2f} GB ", end=end, file=sys.stderr, flush=True)

    return show


def summary(folder) -> str:
    """What was written, in one line."""
    checkpoint = open_checkpoint(folder)
    tensors = checkpoint.weights.tensors
    numbers, size = sum(x.size for x in tensors.values()), sum(x.nbytes for x in tensors.values())
    files = len(checkpoint.header_hashes)
    return f"{folder}: {len(tensors)} tensors, {numbers:,} numbers, {size / 1e9:.3f} GB in {files} file(s)"
