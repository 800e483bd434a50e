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
from importlib import import_module
from pathlib import Path

from numgemma.atomic import target
from numgemma.errors import InputError, NonFiniteError, meant
from numgemma.version import __version__

RUN_A_MODEL = ("inspect", "generate", "preprocess", "dump", "capture", "show", "bench", "demo")
COMPARE = ("precheck", "floor", "diff", "replay", "whatif", "seams")
MAKE = ("synth", "stack", "transplant", "lint", "lineage")
VERBS = (*RUN_A_MODEL, *COMPARE, *MAKE)  # modules, each imported only where it is named: help does not wait for them

EPILOG = """exit codes: 0 same or done, 1 they differ, or lint found an error, 2 wrong usage or input, 3 not comparable,
4 NaN or infinity

CKPT is a directory with config.json and safetensors, one .safetensors file beside its config.json, or `tiny`, the
checkpoint that comes with numgemma."""


def parser(words):
    """Of the verbs that are none of these words only a line is known."""
    top = argparse.ArgumentParser(
        prog="numgemma",
        description="Run Gemma 4 in NumPy, record every activation, and see where another implementation parts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"numgemma {__version__}")
    verbs = top.add_subparsers(metavar="VERB", required=True)
    for name in VERBS:
        sub = verbs.add_parser(name, help=first_line(name))
        if name in words:
            verb = import_module(f"numgemma.cli.{name}")
            sub.description = (verb.__doc__ or "").strip()
            verb.add_arguments(sub)
            sub.set_defaults(run=verb.run)
    return top


def first_line(verb):
    """Of what the module says of itself, read without running it."""
    with Path(__file__).with_name(f"{verb}.py").open(encoding="utf-8") as file:
        return file.readline().strip().strip('"')


FILES_WRITTEN = ("json", "html", "plot", "emit", "out")


def check_verb(words):
    """A word that is no verb is met with the one that was meant."""
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        offered = meant(words[0], VERBS) or f"; the verbs are {', '.join(VERBS)}"
        raise InputError(f"{words[0]:.60} is no verb{offered}.")


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
    words = sys.argv[1:] if argv is None else [str(word) for word in argv]
    try:
        check_verb(words)
        args = parser(words).parse_args(words)
        check_outputs(vars(args))
        from numgemma import ops

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
