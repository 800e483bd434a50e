"""The toy once more, called with arrays by name: embeddings, and what came before them, in the place of ids."""

from dataclasses import replace

import numpy as np

from numgemma.prompt.media import Media
from numgemma.prompt.named import Input, taken
from numgemma.trace import Tap
from toy import FAMILY as TOY
from toy import toy


def inputs(c):
    width = {"D": c.hidden_size}
    return {
        "inputs_embeds": Input("T D", sizes=width),
        "position_ids": Input("T", "integer", needed=False),
        "past.v": Input("S D", sizes=width),
    }


def sample(config, pictures, sounds):
    past, x = (np.full((rows, config.hidden_size), 0.5, np.float32) for rows in (2, 3))
    return np.zeros(0, int), Media(named={"inputs_embeds": x, "past.v": past})


def forward(ids, media, w, run, tap=Tap()):
    """-> T V; every layer finds the same past"""
    x, past = taken("inputs_embeds", "T D", media, run.dtype, tap), taken("past.v", "S D", media, run.dtype, tap)
    if "position_ids" in media.named:
        taken("position_ids", "T", media, run.dtype, tap)  # the toy has no use for them
    run = replace(run, kvs={spec.index: (past.sum(0), len(past)) for spec in run.config.layers})
    tokens = toy.layers(toy.Tokens(tap("entered", x, "T D")), run.config.layers, w, run, tap)
    return toy.head(toy.leave(tokens, w, run, tap), w, run, tap)


FAMILY = replace(
    TOY,
    name="Toy by name",
    model_types=("toy_by_name",),
    inputs=inputs,
    sample=sample,
    parts={"forward": forward, "block": toy.block, "mlp": toy.mlp, "head": toy.head},
)
