"""What a denoising pass is given beside a text, checked: the canvas, and what was thought of it."""

import numpy as np

from numgemma.errors import InputError
from numgemma.families.diffusion.config import DiffusionConfig
from numgemma.families.diffusion.diffusion import CANVAS, CONDITION
from numgemma.prompt.media import Media, check_towers
from numgemma.prompt.named import IDS, Input, named

MASK = "attention_mask"  # a processor returns it; here it has to be all ones


def inputs(config: DiffusionConfig) -> dict[str, Input]:
    """The arrays that a pass takes by name: S tokens of the text, T of the canvas."""
    V = {"V": config.text.vocab_size}
    return {
        IDS: Input("S", "integer"),
        CANVAS: Input("T", "integer"),
        CONDITION: Input("T V", sizes=V, needed=False),
        MASK: Input("S", "integer", needed=False),
    }


def check_media(media: Media, w, config: DiffusionConfig):
    """Raises InputError where the model cannot take the pictures, or a token of the canvas is none of its own."""
    check_towers(media, w, config)
    if not np.all(named(media).get(MASK, 1)):
        raise InputError(f"{MASK} leaves tokens out; give a text without padding.")
    canvas, V = named(media).get(CANVAS), config.text.vocab_size
    if canvas is not None and (canvas.min() < 0 or canvas.max() >= V):
        wrong = canvas[(canvas < 0) | (canvas >= V)][0]
        raise InputError(f"{CANVAS} has the token {wrong}, which is outside the vocabulary of {V} tokens.")
