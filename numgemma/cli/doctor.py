"""Your port has a wrong number: precheck, floor, diff, replay and whatif in one, and one verdict.

DUMP is whatever your engine wrote; `--against hf` captures Transformers on the spot instead.
"""

import shlex
import sys
import textwrap
from pathlib import Path

from numgemma.cli.common import Prompt, add_backend, add_ids, add_other, add_precision, use_backend
from numgemma.cli.numbers import finite
from numgemma.cli.replay import progress, prompt_of
from numgemma.cli.report import command_of as typed
from numgemma.cli.report import spelled, words, write_json, written
from numgemma.cli.whatif import other_ids
from numgemma.debug.blame.doctor import Diagnosis, doctor
from numgemma.debug.noise.rounding import as_run
from numgemma.debug.readers import read_any, summary
from numgemma.debug.report import Subject, write_html
from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.model import load

WIDTH = 100


def add_arguments(parser):
    parser.add_argument("ckpt", type=Path, metavar="CKPT")
    parser.add_argument("dump", type=Path, metavar="DUMP", nargs="?", help="a dump, or what another engine wrote")
    parser.add_argument("--against", choices=("hf",), help="hf: capture Transformers on these ids, instead of a DUMP")
    group = parser.add_mutually_exclusive_group()
    add_ids(group, "token ids, where the dump has none")
    group.add_argument(
        "--inputs", type=Path, metavar="FILE", help="ids and media: what Transformers' processor returns"
    )
    parser.add_argument("--map", type=Path, metavar="FILE", help="names of another engine's dump -> ours")
    parser.add_argument("--budget", type=finite, metavar="SECONDS", help="for the whole; what was not tried is said")
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="write one report with all of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    add_precision(parser)
    add_other(parser)
    add_backend(parser, "numpy, the definition")


def run(args):
    use_backend(args)
    model = load(args.ckpt)
    dump, prompt = subject(args, model)
    given = {"ids": prompt.ids, "media": prompt.media, "budget": args.budget, "other": other_ids(args)}
    found = doctor(model, dump, **given, say=say, told=progress())
    print("\n" + render(found, command_of(found, args)))
    if args.html:
        write_html(args.html, report(found, args, model, dump))
        written(args.html)
    if args.json:
        write_json(args.json, found)
    return found.exit_code


def subject(args, model) -> tuple[Dump, Prompt]:
    """The dump and its prompt: read, or captured now."""
    if (args.dump is None) == (args.against is None):
        raise InputError("Give a DUMP, or --against hf to capture Transformers on the spot.")
    if args.dump is not None:
        dump = as_run(read_any(args.dump, args.map, model.outline), model, args.precision)
        if summary(dump):
            print(summary(dump))
        return dump, prompt_of(args, dump, model)
    from numgemma.debug.capture import hooks

    hooks.import_hf()
    prompt = prompt_of(args, Dump({}), model)
    dump = Dump(hooks.describe(model, prompt.ids, media=prompt.media))
    hooks.capture(model, model.checked(prompt.ids, prompt.media), dump, media=prompt.media)
    return dump, prompt


def say(step, outcome):
    """One line a step, as it is done."""
    if sys.stderr.isatty():
        print(f"\r{'':60}", end="\r", file=sys.stderr, flush=True)
    print(textwrap.fill(f"{step + ':':<13}{outcome}", WIDTH, subsequent_indent=" " * 13), flush=True)


def render(found: Diagnosis, command: str) -> str:
    """The verdict, and what it rests on."""
    lines = [found.says]
    lines += [f"Cause: {found.cause}"] if found.cause else []
    lines += [f"Confidence: {found.confidence}."] if found.confidence else []
    lines += [f"Not tried, for want of time: {', '.join(found.left_out)}."] if found.left_out else []
    lines += [f"It shows in: {command}"] if command else []
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines)


def command_of(found: Diagnosis, args) -> str:
    """The command that shows it, with these files."""
    if not found.command or args.dump is None:
        return ""
    files = f"{shlex.quote(str(args.ckpt))} {shlex.quote(str(args.dump))}"
    for option in ("ids", "map", "inputs", "precision", *(["other"] if found.command.startswith("whatif") else [])):
        value = getattr(args, option, None)
        files += f" --{option} {shlex.quote(str(value))}" if value is not None else ""
    return f"numgemma {found.command.replace('@', files)}"


def report(found: Diagnosis, args, model, dump) -> Subject:
    name = "Transformers" if args.dump is None else args.dump.name
    return Subject(
        diff=found.diff,
        a=found.truth,
        b=dump,
        replay=found.replay,
        words=words(model, found.truth, dump),
        spelled=spelled(model, found.diff),
        paths=(str(args.ckpt), str(args.dump or name)),
        title=f"{name} against numgemma",
        says=render(found, command_of(found, args)),
        cause=found.cause,
        command=typed(args),
    )
