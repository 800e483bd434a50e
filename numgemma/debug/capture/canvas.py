"""What a DiffusionGemma in Transformers computes in one denoising pass, under our names.

It is two decoders over one set of modules' weights, each with hooks of its own; which of them runs is told by the one
that began last.  Transformers' forward pass makes a mask for pictures and does not use it, so it is handed one here.
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np

from numgemma.debug.capture.arrays import import_hf, modelling_of
from numgemma.debug.capture.towers import Towers
from numgemma.errors import InputError
from numgemma.families.diffusion.diffusion import CANVAS
from numgemma.families.gemma4.gemma4 import causal_masks
from numgemma.families.unified.unified import intended_masks
from numgemma.graph import Graph
from numgemma.prompt.media import is_empty, picture_blocks, placeholders
from numgemma.prompt.named import named
from numgemma.trace import selects

ENCODER, DECODER = "encoder.language_model.", "decoder."


@dataclass(frozen=True)
class Under:
    """A sink that puts a prefix before the names it is given, and keeps what `points` selects."""

    sink: Any
    prefix: str
    points: tuple

    def keep(self, name, x, axes):
        if selects(self.points, self.prefix + name):
            self.sink.keep(self.prefix + name, x, axes)


def below(graph: Graph, prefix: str) -> Graph:
    """The points whose names begin so, by what comes after."""
    found = {name.removeprefix(prefix): birth for name, birth in graph.points.items() if name.startswith(prefix)}
    return Graph(found)


class StacksCatcher:
    """Gives what flows through encoder, decoder and head the names of our points, and passes it on to a sink.

    catcher: what listens to one decoder of Gemma 4.
    """

    def __init__(self, catcher, config, graph, ids, sink, points, media):
        def of(prefix, tokens):
            return catcher(config, below(graph, prefix), tokens, Under(sink, prefix, tuple(points)), ("*",), media)

        if CANVAS not in named(media):
            raise InputError(f"This model takes {CANVAS} by name, which was not given; give it with --inputs FILE.")
        canvas = named(media)[CANVAS]
        self.stacks = {ENCODER: of(ENCODER, ids), DECODER: of(DECODER, canvas)}
        self.head = of("", canvas)
        self.running = self.stacks[ENCODER]
        pictures = of("encoder.", ids)
        self.towers = None if is_empty(media) else Towers(config, pictures.graph, media, pictures.keep_piece)
        self.stacks[ENCODER].towers = self.towers

    @property
    def looked_ahead(self):
        """Whether some token of the text saw a later one on a full layer."""
        return self.stacks[ENCODER].looked_ahead

    def keep(self, name, x):
        self.head.keep(name, x)

    @contextmanager
    def listening(self, hf):
        """Hooks on every module and functions of the modelling files replaced, for as long as this lasts."""
        modelling = modelling_of(hf)
        modules = {ENCODER: hf.model.encoder.language_model, DECODER: hf.model.decoder}
        with ExitStack() as stack:
            for prefix, module in modules.items():
                for handle in self.hook(prefix, module):
                    stack.callback(handle.remove)
            for handle in self.head.hook(hf.lm_head, "lm_head"):
                stack.callback(handle.remove)
            changes = [(modelling, name) for name in ("apply_rotary_pos_emb", "eager_attention_forward")]
            if self.towers is not None:
                stack.enter_context(self.towers.listening(hf.model.encoder))
                changes.append((modelling_of(hf.model.encoder.vision_tower), "eager_attention_forward"))
            for owner, name in changes:
                stack.enter_context(patch.object(owner, name, self.told(owner, name)))
            yield

    def hook(self, prefix, module):
        """Register what one stack calls for."""
        catcher = self.stacks[prefix]
        yield module.register_forward_pre_hook(lambda *_: self.begin(prefix))
        for name, part in module.named_modules():
            if name.startswith("self_conditioning"):
                yield from self.hook_conditioning(catcher, name, part)
            elif name:
                yield from catcher.hook(part, name)
        if prefix == ENCODER and self.towers is not None:
            yield module.register_forward_pre_hook(catcher.merged, with_kwargs=True)

    def hook_conditioning(self, catcher, name, part):
        if name == "self_conditioning":
            yield part.register_forward_pre_hook(lambda m, x: catcher.keep(f"{name}.soft", x[1]))
        else:
            yield from catcher.hook(part, name)

    def begin(self, prefix):
        self.running = self.stacks[prefix]

    def told(self, owner, name):
        """A function of a modelling file that tells the stack which runs."""
        make = {"apply_rotary_pos_emb": "rotary", "eager_attention_forward": "eager"}[name]
        each = {id(catcher): getattr(catcher, make)(owner) for catcher in self.stacks.values()}
        return lambda *args, **kwargs: each[id(self.running)](*args, **kwargs)


def masks_for(hf, model, ids, media, image_mask):
    """Kind of layer -> the encoder's mask, as it is added to the scores: intended, or what `generate` would make."""
    torch, _ = import_hf()
    if image_mask == "transformers":
        like = torch.empty(1, len(ids), 0, dtype=hf.dtype)
        types = np.isin(ids, list(placeholders(model.config).values()))[None]
        places = torch.arange(len(ids))[None]
        return hf.model.encoder.create_masks_for_generate(
            hf.config, like, None, None, places, mm_token_type_ids=torch.tensor(types).long()
        )
    blocks, c = picture_blocks(ids, media, placeholders(model.config)), model.config.text
    seen = causal_masks(len(ids), c) | intended_masks(blocks, c, 0)
    least = torch.finfo(hf.dtype).min
    return {
        kind: torch.zeros(1, 1, *mask.shape, dtype=hf.dtype).masked_fill(~torch.tensor(np.asarray(mask)), least)
        for kind, mask in seen.items()
    }
