"""Faults of EmbeddingGemma 2: who sees whom, what is projected, how tokens become one vector.

Left out: what is wrong at loading (E05) or in a config (E02, E04), since another number of heads does not fit and the
rest is a radius; what only pads show, of which a run has none (of E10).
"""

from dataclasses import replace

import numpy as np

from numgemma import ops
from numgemma.debug.faults.attending import ATTENTION, slides, with_mask
from numgemma.debug.faults.fault import Rewired, fault, row_fault
from numgemma.prompt.media import is_empty

PROJECTION = "per_layer_model_projection"


def in_vectors(spec, model):
    return "vector" in model.family.parts


def with_radius(change):
    """A row of the layer table with another radius."""
    return lambda spec, model: replace(spec, window=change(spec.window))


# -- who sees whom

for form, says, change in (
    ("E01-half", "half the radius is used on either side, as in Gemma 3's encoders", lambda r: max(1, r // 2)),
    ("E01-strict", "the ends of the radius are left out", lambda r: r - 1),
    ("E11", "the radius is twice as long, as if sliding_window were the whole window's half", lambda r: 2 * r),
):
    row_fault(
        form,
        f"of sliding layers {says}",
        "let a token see all others up to sliding_window places away, before it and after it, the ends included",
        shows=f"{ATTENTION}.scores",
        at=lambda spec, model: in_vectors(spec, model) and slides(spec, model),
        past_window=True,
        by_kind=True,
    )(with_radius(change))


fault(
    "E01-causal",
    "tokens see only those before them, as in Gemma 4",
    "let them see later ones too: nothing is continued",
    shows=f"{ATTENTION}.scores",
    swaps="layers.attention.attention",
    at=in_vectors,
)(with_mask(lambda mask: np.tril(mask)))


@fault(
    "E09",
    "the prompt runs in chunks of sliding_window tokens, which do not see the next chunk",
    "turn chunked prefill and prefix caching off: a token needs all that comes after it",
    shows=f"{ATTENTION}.scores",
    swaps="masks",
    at=in_vectors,
    past_window=True,
)
def in_chunks(original, count, config):
    chunk = np.arange(count) // config.sliding_window
    return {kind: np.asarray(mask) & (chunk[:, None] >= chunk) for kind, mask in original().items()}


row_fault(
    "E06",
    "of full layers a quarter of the lanes turn, as in Gemma 4",
    "turn all lanes on full layers too: rope_type is default",
    shows="rotary_emb.*.cos",
    at=lambda spec, model: in_vectors(spec, model) and not slides(spec, model) and spec.angles == spec.H // 2,
    by_kind=True,
)(lambda spec, model: replace(spec, angles=spec.angles // 4))


# -- per-layer inputs


@fault(
    "E12",
    "the per-layer inputs are projected from the token embeddings, before soft tokens stand there",
    "project them from the stream that enters the first layer, soft tokens and all",
    shows=f"ple.{PROJECTION}",
    swaps="forward",
    at=in_vectors,
    media=lambda given: not is_empty(given),
)
def projected_too_soon(original, w, tap):
    def equation(y, seen):
        return ops.linear(seen["embed_tokens"], w[f"ple.{PROJECTION}.weight"])

    return original(tap=Rewired(tap, {f"ple.{PROJECTION}": equation}))


@fault(
    "P06",
    "the per-layer inputs are multiplied by 1/sqrt(2), as where there are two halves",
    "leave them as their norm makes them: there is no table to add",
    shows="ple.per_layer_projection_norm",
    swaps="layers.per_layer.projected_inputs",
    at=in_vectors,
)
def halved(original, tap):
    return original(tap=Rewired(tap, {"per_layer_projection_norm": lambda y, seen: ops.scale(y, 2**-0.5)}))


# -- one vector


@fault(
    "E03",
    "the mean is taken before the last norm",
    "normalise and project each token, and take the mean then",
    shows="pooled",
    swaps="pool",
)
def pooled_before_norm(original, x, w, config, tap):
    def equation(y, seen):
        mean = ops.rms_norm(ops.mean_of_tokens(x)[None], w["norm.weight"], config.rms_norm_eps)
        return ops.linear(mean, w["embedding_projection.weight"])[0]

    return original(tap=Rewired(tap, {"pooled": equation}))


def mean_of(some):
    """The end of a run whose mean is over some of the tokens."""

    def equation(y, seen):
        return ops.mean_of_tokens(seen["embedding_projection"][some])

    return lambda original, tap: original(tap=Rewired(tap, {"pooled": equation}))


for form, says, some in (
    ("E07", "the <eos> is left out of the mean", slice(None, -1)),
    ("E10-first", "the vector is that of the first token, as with pooling_mode cls", slice(1)),
    ("E10-last", "the vector is that of the last token", slice(-1, None)),
    ("E10-bos", "the <bos> is left out of the mean", slice(1, None)),
):
    fault(
        form,
        says,
        "take the mean over all tokens, <bos>, prompt and <eos> too",
        shows="pooled",
        swaps="pool",
    )(mean_of(some))


@fault(
    "E08",
    "the vector is brought to length 1 before it is cut",
    "cut it first: its length is 1 at the end",
    shows="vector",
    swaps="vector",
    at=lambda spec, model: (model.config.dim or model.config.embedding_dim) < model.config.embedding_dim,
)
def cut_last(original, x, dim, tap):
    return tap("vector", ops.unit(x)[:dim], "C")
