"""The command line: `numgemma VERB PATH...`; one small module per verb, whose docstring is its help.

In reading order:

    files common report building                what several verbs share
    inspect generate preprocess dump            verbs that run a model
    capture precheck floor                      before two runs are compared
    seams diff replay whatif                    where they part, whose fault it is, which
    show bench demo                             pictures, speed, all of it on the bundled checkpoint
    synth stack transplant lint lineage         checkpoints made and examined
"""

import argparse
import os
import sys
from pathlib import Path

from numgemma import ops
from numgemma.atomic import target
from numgemma.cli import (
    bench,
    capture,
    demo,
    diff,
    dump,
    floor,
    generate,
    inspect,
    lineage,
    lint,
    precheck,
    preprocess,
    replay,
    seams,
    show,
    stack,
    synth,
    transplant,
    whatif,
)
from numgemma.errors import InputError, NonFiniteError, meant
from numgemma.version import __version__

RUN = (inspect, generate, preprocess, dump, capture, precheck, floor, diff, replay, whatif, show, bench, demo)
MAKE = (synth, stack, transplant, lint, lineage, seams)
VERBS = RUN + MAKE

EPILOG = """exit codes: 0 same or done, 1 they differ, or lint found an error, 2 wrong usage or input, 3 not comparable,
4 NaN or infinity

CKPT is a directory with config.json and safetensors, one .safetensors file beside its config.json, or `tiny`, the
checkpoint that comes with numgemma."""


def parser():
    top = argparse.ArgumentParser(
        prog="numgemma",
        description="Run Gemma 4 in NumPy, record every activation, and see where another implementation parts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"numgemma {__version__}")
    verbs = top.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        name = verb.__name__.rpartition(".")[2]
        summary = (verb.__doc__ or "").strip()
        sub = verbs.add_parser(name, help=summary.splitlines()[0], description=summary)
        verb.add_arguments(sub)
        sub.set_defaults(run=verb.run)
    return top


FILES_WRITTEN = ("json", "html", "plot", "emit", "out")


def check_verb(argv):
    """A word that is no verb is met with the one that was meant."""
    verbs = [verb.__name__.rpartition(".")[2] for verb in VERBS]
    if argv and not str(argv[0]).startswith("-") and argv[0] not in verbs:
        offered = meant(str(argv[0]), verbs) or f"; the verbs are {', '.join(verbs)}"
        raise InputError(f"{argv[0]:.60} is no verb{offered}.")


def check_outputs(args):
    """Before any work: what is to be written can be, and is not what is to be read."""
    read = [Path(value) for key, value in args.items() if key not in FILES_WRITTEN and isinstance(value, str)]
    for key in FILES_WRITTEN:
        path = args.get(key)
        if not isinstance(path, Path) or (key == "out" and not path.suffix):  # a flag; a folder has checks of its own
            continue
        path = target(path)
        if any(other.is_file() and path.exists() and other.samefile(path) for other in read):
            raise InputError(f"{path}: is read and would be overwritten; choose another --{key}.")


def main(argv=None) -> int:
    """Run one verb; returns the exit code."""
    try:
        check_verb(sys.argv[1:] if argv is None else argv)
        args = parser().parse_args(argv)
        check_outputs(vars(args))
        with ops.undone():
            return args.run(args)
    except InputError as error:
        print(f"numgemma: {error}", file=sys.stderr)
        return 4 if isinstance(error, NonFiniteError) else 2
    except KeyboardInterrupt:
        print("numgemma: interrupted; nothing half-written is left.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `numgemma ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
