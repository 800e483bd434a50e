"""`generate` for a model that writes canvases: a terminal shows them settle, a pipe gets each block as it is done."""

import shutil
import sys
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from numgemma.denoise import (
    Denoising,
    DenoisingStep,
    Draw,
    checkpoint_settings,
    denoised,
    recorded_draws,
    seeded_draws,
    settings,
)
from numgemma.errors import InputError, visible
from numgemma.generate import Memory
from numgemma.incoming import read_object
from numgemma.model import Model
from numgemma.weights.safetensors import open_safetensors

SCHEMA = "numgemma.generate/1"
OF_TOKENS = ("temperature", "top_k", "top_p", "drafter", "draft_tokens")  # how a sampler of tokens chooses


def add_sampler(parser):
    group = parser.add_argument_group("options of DiffusionGemma")
    group.add_argument(
        "--sampler", type=Path, metavar="FILE.json", help="its settings (default: those of generation_config.json)"
    )
    group.add_argument(
        "--draws", type=Path, metavar="FILE", help="a .safetensors file with what chance decided in another run"
    )


def writes_canvases(model: Model) -> bool:
    return "guess" in model.family.parts


def refuse_sampler(args):
    """Raises InputError where options of a canvas are given for a model that writes tokens."""
    for option in ("sampler", "draws"):
        if getattr(args, option) is not None:
            raise InputError(f"--{option} is an option of DiffusionGemma, and this model writes tokens; leave it out.")


def write_canvases(args, model: Model, prompt, memory: Memory) -> list[DenoisingStep]:
    """Run it, and show what it writes.  -> every step"""
    for option in OF_TOKENS:
        if getattr(args, option):
            raise InputError(f"--{option.replace('_', '-')} is for models that write tokens; give --sampler FILE.json.")
    how, draw = given_settings(args, model), given_draws(args, model)
    texts = bool(model.checkpoint.tokenizer or (model.checkpoint.folder / "tokenizer.json").exists())
    if not (texts or args.print_ids or args.json):
        raise InputError(f"{model.checkpoint.folder}: has no tokenizer.json to write text with; add --print-ids.")
    if texts and args.chat is None:
        print(prompt.text or model.tokenizer.decode(prompt.ids), end="", flush=True)
    screen, steps, begun = Screen(model.config.canvas_length), [], time.perf_counter()
    for step in denoised(model, prompt.ids, how, draw, prompt.media, memory):
        steps.append(step)
        if texts and sys.stderr.isatty():
            if step.number == 0:
                print(flush=True)  # each block begins a line, over which its canvas is drawn
            screen.show(step, model.tokenizer.decode(step.best))
        if texts and step.ids is not None:
            screen.clear()
            print(model.tokenizer.decode(kept(step.ids, how), args.show_special), end="", flush=True)
    if texts:
        print(flush=True)
    seconds, new = time.perf_counter() - begun, len(ids_of(steps, how))
    each = f"{new / len(steps):.1f} tokens a step"
    print(f"{new} tokens in {len(steps)} steps, {seconds:.1f} s, {each}", file=sys.stderr)
    return steps


def given_settings(args, model: Model) -> Denoising:
    how = checkpoint_settings(model)
    if args.sampler is not None:
        how = settings(read_object(args.sampler, "name a file of settings"), str(args.sampler), how)
    if args.max_new_tokens is not None:
        how = replace(how, max_new_tokens=args.max_new_tokens)
    return replace(how, eos_token_id=()) if args.ignore_eos else how


def given_draws(args, model: Model) -> Draw:
    if args.draws is None:
        return seeded_draws(args.seed)
    arrays = open_safetensors(args.draws).tensors
    draws = {name: x for name, x in arrays.items() if name.endswith(("first_canvas", ".sampled", ".random"))}
    return recorded_draws(draws, model.config.canvas_length, model.outline.vocabulary, str(args.draws))


def kept(ids, how: Denoising) -> list[int]:
    """The tokens of a block up to a stop token, which stays."""
    stops = np.flatnonzero(np.isin(ids, how.eos_token_id))
    return [int(i) for i in ids[: stops[0] + 1 if len(stops) else None]]


def ids_of(steps, how: Denoising) -> list[int]:
    """All new tokens, the stop token included."""
    return [i for step in steps if step.ids is not None for i in kept(step.ids, how)]


@dataclass(frozen=True)
class Canvases:
    """What was written, for --json."""

    ids: list[int]
    steps: list[DenoisingStep]

    def to_json(self):
        blocks: list[dict] = []
        for step in self.steps:
            if step.number == 0:
                blocks.append({"steps": [], "ids": []})
            blocks[-1]["steps"].append(step_json(step))
            if step.ids is not None:
                blocks[-1]["ids"] = step.ids.tolist()
        return {"schema": SCHEMA, "ids": self.ids, "rounds": [], "blocks": blocks}


def step_json(step: DenoisingStep):
    arrays = ("canvas", "best", "entropy", "sampled", "accepted", "next_canvas")
    found = {"temperature": step.temperature, "mean_entropy": step.mean_entropy}
    return found | {name: getattr(step, name).tolist() for name in arrays}


class Screen:
    """A canvas on a terminal, drawn over the one before."""

    def __init__(self, places):
        self.places, self.rows = places, 0

    def show(self, step, text):
        columns, lines = shutil.get_terminal_size()
        head = f"block {step.block}, step {step.number}: {int(step.accepted.sum())} of {self.places} places accepted"
        rows = [f"{head}, mean entropy {step.mean_entropy:.3f}"]
        rows += textwrap.wrap(visible(text), columns - 1, replace_whitespace=True)
        self.draw([row[: columns - 1].ljust(columns - 1) for row in rows[: max(2, lines - 2)]], " " * (columns - 1))

    def clear(self):
        if self.rows:
            columns = shutil.get_terminal_size().columns
            self.draw([], " " * (columns - 1))
            self.back(self.rows)
            self.rows = 0

    def draw(self, rows, blank):
        """Over what is there, which may have had more rows."""
        self.back(self.rows)
        rows = [*rows, *[blank] * (self.rows - len(rows))]
        print("".join(f"{row}\n" for row in rows), end="", file=sys.stderr, flush=True)
        self.rows = len(rows)

    def back(self, rows):
        if rows:
            print(f"\x1b[{rows}A\r", end="", file=sys.stderr, flush=True)
