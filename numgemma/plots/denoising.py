"""A canvas over the steps of its block: what each place would say, how unsure of it the model is, what was accepted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from numgemma.colours import BLACK, HEAT, RED, WHITE
from numgemma.errors import InputError
from numgemma.incoming import read_object
from numgemma.plots.figures import axes

PLACES, STEPS = 24, 32  # that are drawn, at most: more would not be read
TITLE = "the likeliest token of each place\nframed: it takes a token drawn from this guess; others, a random one"
LONGEST = 9  # characters of a token in a cell


def read_blocks(path: Path) -> list[dict[str, Any]]:
    """The blocks that `numgemma generate --json` wrote of canvases.  Raises InputError where there are none."""
    again = "write one with `numgemma generate --json` of a DiffusionGemma"
    blocks = read_object(path, again).get("blocks")
    if not isinstance(blocks, list) or not blocks:
        raise InputError(f"{path}: holds no blocks of a canvas; {again}.")
    for block in blocks:
        check_block(block, f"{path}: is not a run of canvases; {again}.")
    return blocks


def check_block(block, sentence):
    steps = block.get("steps") if isinstance(block, dict) else None
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        raise InputError(sentence)
    lists = [step.get(name) for step in steps for name in ("best", "entropy", "accepted")]
    if not all(isinstance(x, list) and x and all(isinstance(n, int | float) for n in x) for x in lists):
        raise InputError(sentence)
    if len({len(x) for x in lists if isinstance(x, list)}) > 1:
        raise InputError(sentence)


def canvas_map(block: Mapping[str, Any], tokens: Mapping[int, str] | None = None, first: int = 0, ax=None):
    """One block: a row for each step, a column for each place.  tokens: id -> text  ->  Axes

    A cell shows the likeliest token; dark is sure, bright is not; a frame is around places that took a token drawn from
    the guess.  first: the place to begin with, where a canvas has more than fit.
    Raises InputError where there is no such place.
    """
    from matplotlib.patches import Rectangle

    steps: Sequence[Mapping[str, Any]] = block["steps"]
    rows = chosen(len(steps))
    entropy = np.array([steps[i]["entropy"] for i in rows], float)
    if not 0 <= first < entropy.shape[1]:
        raise InputError(f"Place {first} is not one of the {entropy.shape[1]} of the canvas; count from 0.")
    last = min(first + PLACES, entropy.shape[1])
    shown = entropy[:, first:last]
    ax = axes(ax, max(6.5, 2.6 + 0.62 * (last - first)), 1.9 + 0.3 * len(rows))
    image = ax.imshow(shown, cmap=HEAT, aspect="auto", vmin=0, vmax=max(float(entropy.max()), 1e-9))
    for y, i in enumerate(rows):
        for x, place in enumerate(range(first, last)):
            text_in(ax, x, y, spelled(steps[i]["best"][place], tokens), shown[y, x] < image.norm.vmax / 2)
            if steps[i]["accepted"][place]:
                ax.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, fill=False, edgecolor=RED, linewidth=1.5))
    ax.set_xticks(range(last - first), range(first, last))
    ax.set_yticks(range(len(rows)), [f"{i}   {np.mean(steps[i]['entropy']):.2f}" for i in rows])
    ax.set_xlabel("place on the canvas")
    ax.set_ylabel("step, and mean entropy")
    ax.set_title(TITLE, loc="left", fontsize=9)
    ax.figure.colorbar(image, ax=ax, label="entropy, in nats", pad=0.01)
    return ax


def chosen(count: int) -> list[int]:
    """The steps that are drawn: all, or some with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, STEPS))})


def spelled(i: int, tokens: Mapping[int, str] | None) -> str:
    """A token as a cell shows it: cut where it is long, its white space visible."""
    text = str(i) if tokens is None else tokens.get(i, str(i))
    text = text.replace("\n", "↵").replace("\t", "→").replace(" ", "·")
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def text_in(ax, x, y, text, dark):
    ax.text(x, y, text, ha="center", va="center", fontsize=7, color=WHITE if dark else BLACK, parse_math=False)
