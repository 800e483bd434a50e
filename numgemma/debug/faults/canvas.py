"""Faults of DiffusionGemma: its two sets of scalars, its self-conditioning, what a canvas sees and where it stands.

F06, an encoder that is causal over a picture, is V12-causal; F09, a router that reads the normed stream, is M01.  Those
of the sampler (F04, F05, F07, F08, F10, F11) leave every pass right: no dump of one shows them, so `whatif` does not
try them; `applied` runs the sampler with one.  Left out: accepted tokens that are kept (F12), and a text that is cut at
its budget (F16), which no function here alone decides.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from numgemma import ops
from numgemma.debug.faults.attending import slides
from numgemma.debug.faults.fault import Rewired, fault, swapped
from numgemma.denoise import temperature
from numgemma.families.diffusion.diffusion import CONDITION, encoder_weights
from numgemma.masks import Spans
from numgemma.prompt.named import named
from numgemma.smallfloats import COMPUTES

ENCODER, DECODER = "encoder.language_model", "decoder"
CONDITIONING = f"{DECODER}.self_conditioning"


def first_pass(given):
    return CONDITION not in named(given)


def in_the_sampler(given):
    """Of a fault that no single pass can show."""
    return False


def guesses(spec, model):
    return "guess" in model.family.parts


SAMPLER: dict[str, Any] = {"shows": "logits", "at": guesses, "media": in_the_sampler}


# -- scalars


@fault(
    "F01",
    "the encoder's layers end with the decoder's scalars",
    "load encoder.language_model.layers.*.layer_scalar: all other weights are shared, these are not",
    shows=f"{ENCODER}.layers.*.out",
    swaps="encoder weights",
)
def decoders_scalars(original, w):
    return w


@fault(
    "F15",
    "the decoder's layers end with the encoder's scalars",
    "end the decoder's layers with decoder.layers.*.layer_scalar",
    shows=f"{DECODER}.layers.*.out",
    swaps="guess",
)
def encoders_scalars(original, w, run):
    return original(w=encoder_weights(w, run.config))


# -- self-conditioning


@fault(
    "F02-logits",
    "the first pass of a block is told zero logits, which mean the average of all embeddings",
    "tell it nothing: a signal of zeros",
    shows=f"{CONDITIONING}.soft",
    swaps="thought",
    media=first_pass,
)
def zero_logits(original, x, w):
    return original(before=np.zeros((len(x), len(w["embed_tokens.weight"])), x.dtype))


@fault(
    "F02-skipped",
    "the first pass of a block leaves the self-conditioning out",
    "normalise the canvas all the same",
    shows=f"{CONDITIONING}.post_norm",
    swaps="self-conditioning",
    media=first_pass,
)
def not_conditioned(original, x, tap):
    return original(tap=Rewired(tap, {"post_norm": lambda y, seen: x}))


@fault(
    "F02-norm",
    "what the self-conditioning adds up is not normalised",
    "end it with an RMSNorm that has no weight",
    shows=f"{CONDITIONING}.post_norm",
    swaps="self-conditioning",
    media=lambda given: not first_pass(given),
)
def not_normed(original, x, tap):
    return original(tap=Rewired(tap, {"post_norm": lambda y, seen: x + seen["down_proj"]}))


@fault(
    "F02-best",
    "the decoder is told its likeliest tokens, not the mean under what it thought",
    "take softmax(logits) times the table of embeddings",
    shows=f"{CONDITIONING}.soft",
    swaps="thought",
    media=lambda given: not first_pass(given),
)
def best_alone(original, x, before, w):
    certain = np.full(before.shape, -1e4, before.dtype)
    np.put_along_axis(certain, before.argmax(-1)[:, None], 0, -1)
    return original(before=certain)


# -- where a canvas stands, and what it sees


@fault(
    "F03-advanced",
    "the canvas stands behind itself, as if the pass before had been cached",
    "leave the cache and its length alone: a canvas stands right behind the text in every pass",
    shows=f"{DECODER}.rotary_emb.*.cos",
    swaps="guess",
    by_kind=True,
)
def cursor_advanced(original, canvas, run):
    return original(run=replace(run, start=run.start + len(canvas)))


@fault(
    "F03-zero",
    "the positions of a canvas count from 0",
    "let them go on where the text ends",
    shows=f"{DECODER}.rotary_emb.*.cos",
    swaps="guess",
    by_kind=True,
)
def from_zero(original, run):
    return original(run=replace(run, start=0))


def hidden(change):
    """Canvas masks of sliding layers under a change: rows of the canvas and columns of keys -> what is seen."""

    def masks(original, T, kvs, c):
        found = original()
        for kind, spec in c.kinds.items():
            if spec.window is not None:
                found[kind] = change(found[kind], T, spec.window)
        return found

    return masks


@fault(
    "F13",
    "each token of a canvas has a window of its own over the text",
    "let all of them see the newest window - 1 tokens of the text",
    shows=f"{DECODER}.layers.*.self_attn.scores",
    swaps="canvas masks",
    at=slides,
    past_window=True,
    by_kind=True,
)
def window_of_each_row(original, T, kvs, c):
    def narrowed(mask, T, window):
        return Spans(np.maximum(0, np.arange(T) + mask.S - T + 1 - window), mask.end, mask.S)

    return hidden(narrowed)(original, T, kvs, c)


@fault(
    "F13-none",
    "a canvas does not see the text on sliding layers",
    "let it see the newest window - 1 tokens of the text there",
    shows=f"{DECODER}.layers.*.self_attn.scores",
    swaps="canvas masks",
    at=slides,
    by_kind=True,
)
def no_text(original, T, kvs, c):
    return hidden(lambda mask, T, window: Spans(np.full(T, mask.S - T), mask.end, mask.S))(original, T, kvs, c)


@fault(
    "F13-causal",
    "a token of the canvas does not see those behind it",
    "let every token of a canvas see all of it",
    shows=f"{DECODER}.layers.*.self_attn.scores",
    swaps="canvas masks",
)
def causal_canvas(original, T):
    return {kind: Spans(mask.first, mask.S - T + np.arange(T) + 1, mask.S) for kind, mask in original().items()}


# -- the head


@fault(
    "F14",
    "the logits are soft-capped in bfloat16, so that some of the best are tied",
    "make them float32 before the cap",
    shows="logits",
    swaps="head",
    at=lambda spec, model: COMPUTES and guesses(spec, model),
)
def narrow_cap(original, run, tap):
    def capped(y, seen):
        x = seen["lm_head"].astype("bfloat16")
        return ops.softcap(x, run.config.text.final_logit_softcapping).astype(y.dtype)

    return original(tap=Rewired(tap, {"logits": capped}))


# -- the sampler


@fault("F04", "a canvas begins with padding", "begin with random tokens", swaps="denoise.steps_of", **SAMPLER)
def padded_canvas(original, draw, run):
    T = run.config.canvas_length

    def padded(name, make):
        return np.zeros(T, np.int64) if name.endswith("first_canvas") else draw(name, make)

    return original(draw=padded)


@fault(
    "F05",
    "the next step is told the logits before the temperature",
    "tell it the logits as they were sampled from",
    swaps="denoise.fed_back",
    **SAMPLER,
)
def untempered(original, logits, dtype):
    return ops.narrow(logits, dtype)


@fault(
    "F07",
    "a block becomes its last canvas, random tokens and all",
    "take the likeliest tokens of the last pass",
    swaps="denoise.outcome",
    **SAMPLER,
)
def last_canvas(original, step):
    return original(step=replace(step, best=step.next_canvas))


@fault(
    "F08",
    "a place counts its own entropy against the bound, so that none may be accepted",
    "sum the entropies of the surer places alone",
    swaps="denoise.accepted_places",
    **SAMPLER,
)
def own_entropy_counted(original, entropy, bound):
    order = np.argsort(entropy, kind="stable")
    accepted = np.zeros(len(entropy), bool)
    accepted[order] = np.cumsum(entropy[order]) <= bound
    return accepted


@fault("F10", "the temperature rises", "let it fall from t_max", swaps="denoise.temperature", **SAMPLER)
def rising(original, number, how):
    return original(number=how.max_denoising_steps - 1 - number)


@fault(
    "F10-early",
    "the temperature is that of the next step, so that the last has t_min",
    "count the steps that are left, this one included",
    swaps="denoise.temperature",
    **SAMPLER,
)
def a_step_early(original, number):
    return original(number=number + 1)


@fault(
    "F11",
    "entropies are those of the logits before the temperature",
    "take them of the distribution that is sampled from",
    swaps="denoise.taken_step",
    **SAMPLER,
)
def entropy_of_raw_logits(original, number, how):
    t = temperature(number, how)
    with swapped("denoise.entropies", lambda entropies, z: entropies(z=z * z.dtype.type(t))):
        return original()
