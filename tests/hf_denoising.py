"""Transformers' sampler of DiffusionGemma, with everything that it draws and decides on record."""

from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import torch
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSampler


def recorded(hf, inputs, seed, mask=None, **settings):
    """One run of `generate`.  -> draws by name, what each step did, all tokens

    mask: the encoder's, in the place of the one that Transformers makes; kind of layer -> mask.
    """
    draws, steps = {}, []
    began, drew, accepted, renoised = (
        EntropyBoundSampler.initialize_canvas,
        torch.multinomial,
        EntropyBoundSampler.accept_canvas,
        EntropyBoundSampler.renoise_canvas,
    )
    state = {"block": -1, "step": 0, "renoising": False}

    def here():
        return f"{state['block']}.{state['step']}"

    def initialize_canvas(self, *args, **kwargs):
        y = began(self, *args, **kwargs)
        if state["renoising"]:
            draws[f"{here()}.random"] = y[0].numpy().copy()
        else:
            state["block"], state["step"] = state["block"] + 1, 0
            draws[f"{state['block']}.first_canvas"] = y[0].numpy().copy()
        return y

    def multinomial(*args, **kwargs):
        y = drew(*args, **kwargs)
        draws[f"{here()}.sampled"] = y[:, 0].numpy().copy()
        return y

    def accept_canvas(self, canvas, sampled, logits, left):
        y = accepted(self, canvas, sampled, logits, left)
        entropy = torch.distributions.Categorical(logits=logits).entropy()[0]
        told = {"canvas": canvas[0], "best": logits[0].argmax(-1), "entropy": entropy}
        told["accepted"] = self.accepted_token_mask[0]
        steps.append({"at": here()} | {name: x.numpy().copy() for name, x in told.items()})
        return y

    def renoise_canvas(self, *args, **kwargs):
        state["renoising"] = True
        y = renoised(self, *args, **kwargs)
        state["renoising"], state["step"] = False, state["step"] + 1
        steps[-1]["next_canvas"] = y[0].numpy().copy()
        return y

    torch.manual_seed(seed)
    with ExitStack() as stack:
        for change in (initialize_canvas, accept_canvas, renoise_canvas):
            stack.enter_context(patch.object(EntropyBoundSampler, change.__name__, change))
        stack.enter_context(patch.object(torch, "multinomial", multinomial))
        if mask is not None:
            encoder, own = type(hf.model.encoder), hf.model.encoder.create_masks_for_generate

            def masks(**given):  # of a block that follows there are no pictures
                return mask if given["mm_token_type_ids"] is not None else own(**given)

            stack.enter_context(patch.object(encoder, "create_masks_for_generate", staticmethod(masks)))
        out = hf.generate(**inputs, **settings)
    return draws, steps, np.asarray(out.sequences[0])
