"""The command line: `numgemma VERB PATH...`; one small module per verb, whose docstring is its help.

In reading order:

    terminal numbers memory files common report building denoising  what prints, and what several verbs share
    inspect generate embed preprocess dump          verbs that run a model
    capture precheck floor                          before two runs are compared
    seams diff replay whatif emulate                where they part, whose fault it is, which
    doctor                                          all of that in one
    sweep                                           for many prompts at once
    show score bench demo                           pictures, speed, all of it on the bundled checkpoint
    synth card stack transplant lint lineage audit  checkpoints made and examined; card is no verb, stack writes it
"""

import argparse
import contextlib
import os
import sys
from importlib import import_module
from pathlib import Path

from numgemma.atomic import remedy, target
from numgemma.cli import terminal
from numgemma.errors import InputError, NonFiniteError, meant
from numgemma.incoming import STANDARD, read_text
from numgemma.version import __version__

RUN_A_MODEL = ("inspect", "generate", "embed", "preprocess", "dump", "capture", "show", "score", "bench", "demo")
COMPARE = ("doctor", "precheck", "floor", "diff", "replay", "whatif", "emulate", "seams", "sweep")
MAKE = ("synth", "stack", "transplant", "lint", "lineage", "audit")
VERBS = (*RUN_A_MODEL, *COMPARE, *MAKE)  # modules, each imported only where it is named: help does not wait for them

EPILOG = """exit codes: 0 same or done, 1 they differ, or lint found an error, 2 wrong usage or input, 3 not comparable,
4 NaN or infinity

CKPT is a directory with config.json and safetensors, one .safetensors file beside its config.json, a .gguf file, the id
of a model that the cache of huggingface_hub holds, or `tiny`, the checkpoint that comes with numgemma."""


class Parser(argparse.ArgumentParser):
    """argparse's, which says in one line what is wrong."""

    def error(self, message):
        raise InputError(f"{message}; see `{self.prog} --help`.")


def parser(words):
    """Of the verbs that are none of these words only a line is known."""
    top = Parser(
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
DRAWN = (".html", ".svg", ".png", ".pdf")  # of which no checkpoint is made, and no dump
BESIDE = {"config.json", "generation_config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"}
BESIDE |= {"processor_config.json", "preprocessor_config.json", "model.safetensors.index.json"}  # beside the weights


def check_verb(words):
    """A word that is no verb is met with the one that was meant."""
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        offered = meant(words[0], VERBS) or f"; the verbs are {', '.join(VERBS)}"
        raise InputError(f"{words[0]:.60} is no verb{offered}.")


def check_outputs(args):
    """Before any work: what is to be written can be, and is not what is to be read.

    Only what is declared as a path (type=Path) is one: a prompt is no name of a file, however it reads.
    """
    read = [path for key, value in args.items() if key not in FILES_WRITTEN for path in paths_of(value)]
    for key in FILES_WRITTEN:
        path = args.get(key)
        if not isinstance(path, Path) or path == STANDARD or (key == "out" and not path.suffix):
            continue  # a flag; a folder has checks of its own
        given, path = path, target(path)
        if any(same_file(path, other) for other in read):
            raise InputError(f"{path}: is read and would be overwritten; choose another --{key}.")
        if path.is_file() and (path.name in BESIDE or any(holds(folder, given) for folder in read)):
            raise InputError(f"{path}: may be part of a checkpoint or dump that is read; choose another --{key}.")


def check_values(words):
    """argparse, before Python 3.13, makes an empty list of an option's value that is two dashes."""
    for word in words:
        option, _, value = word.partition("=")
        if option.startswith("-") and value == "--":
            raise InputError(f"{option:.40} is given -- alone, which is no value; put a text of that kind in a file.")


def paths_of(value):
    return [path for path in (value if isinstance(value, list) else [value]) if isinstance(path, Path)]


def holds(folder: Path, path: Path):
    """Whether a file, or a link to one, lies in a folder that is read, and is of a kind that is read there."""
    from numgemma.opening import located

    if path.suffix in DRAWN or "\0" in str(folder):
        return False
    folder = located(folder)
    return folder.is_dir() and path.parent.resolve().is_relative_to(folder.resolve())


def same_file(a: Path, b: Path):
    try:
        return a.samefile(b) and a.is_file()
    except (OSError, ValueError):
        return False  # one of them is not there


def read_long_prompts(args):
    """What --prompt-file and --ids-file hold takes the place of what --prompt and --ids would say."""
    if getattr(args, "prompt_file", None) is not None:
        args.prompt = read_text(args.prompt_file).removesuffix("\n").removesuffix("\r")
    if getattr(args, "ids_file", None) is not None:
        args.ids = ",".join(read_text(args.ids_file).replace(",", " ").split())


def main(argv=None) -> int:
    """Run one verb; returns the exit code."""
    words = sys.argv[1:] if argv is None else [str(word) for word in argv]
    with terminal.standard_streams(), terminal.signals():
        try:
            code = run(words)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:  # the reader of our output has gone, as in `numgemma ... | head`
            code = 0
        except InputError as error:
            code = said(error, 4 if isinstance(error, NonFiniteError) else 2)
        except OSError as error:
            name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
            step = remedy(error, otherwise="check the path and its permissions")
            code = said(InputError(f"{name}{error.strerror or error}; {step}."), 2)
        except MemoryError:
            code = said("there is not enough memory for this; use a smaller checkpoint, or a shorter prompt.", 2)
        except KeyboardInterrupt:
            code = said("interrupted; nothing half-written is left.", 130)
        except terminal.Terminated as error:
            code = said("ended from outside; nothing half-written is left.", 128 + int(error.args[0]))
        finally:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.finish()
    return code


def said(text, code):
    """The one line that an error prints."""
    with contextlib.suppress(BrokenPipeError):
        print(f"numgemma: {text}", file=sys.stderr)
    return code


def complete():
    """Answer a shell that asks how a line may go on (extra `complete`): argcomplete prints it, and ends the process."""
    from numgemma.extras import package

    package("argcomplete", "complete").autocomplete(parser(os.environ.get("COMP_LINE", "").split()))


def run(words):
    if "_ARGCOMPLETE" in os.environ:
        complete()
    check_verb(words)
    check_values(words)
    with terminal.imports():
        args = parser(words).parse_args(words)
        from numgemma import ops
    check_outputs(vars(args))
    read_long_prompts(args)
    args.words = words
    with ops.undone(), terminal.set_aside(getattr(args, "json", None) == STANDARD):
        return args.run(args)
