"""Faults of drafters: what enters a step, which keys it reads, how its head looks for a token; the loop around steps.

Those of the loop (D06, D07, D13, D14, D22) leave every step right: no dump of one shows them, so `whatif` does not try
them.  `applied` runs the loop with one; but for D07 and D22 the text stays the target's, and the drafts are worse.

Left out: keys of its own (D02), for which there are no weights; keys of another kind of layer (D18) and the other
model's table (D19), whose widths do not fit; coordinates of a rotating buffer (D17), which this cache does not have;
what is wrong before a step (D08 to D12, D16).
"""

import math

import numpy as np

from numgemma import ops
from numgemma.debug.faults.attending import slides
from numgemma.debug.faults.fault import Rewired, fault
from numgemma.generate import distribution
from numgemma.ops import definitions


def in_the_loop(given):
    """Of a fault that no single step can show."""
    return False


def clusters(spec, model):
    return model.config.clusters > 0


# -- one step


@fault(
    "D01",
    "the stream enters before the embedding",
    "join the target's embedding and its stream in that order",
    shows="pre_projection",
    swaps="draft",
)
def stream_first(original, x):
    return original(x=np.roll(x, x.shape[1] // 2, 1))


@fault(
    "D01-scale",
    "the embedding enters without its factor",
    "multiply the target's embedding by the root of its width, as the target does",
    shows="pre_projection",
    swaps="draft",
)
def unscaled(original, x):
    B = x.shape[1] // 2
    e = ops.scale(x[:, :B], x.dtype.type(1 / math.sqrt(B)))
    return original(x=np.concatenate([e, x[:, B:]], 1))


@fault(
    "D03",
    "the position is that of an empty cache, 0",
    "use the position of the newest token",
    shows="rotary_emb.*",
    swaps="draft",
)
def at_zero(original, position):
    return original(position=0 * position)


@fault(
    "D20",
    "the position goes on with each draft",
    "use the position of the newest token for all drafts of a round",
    shows="rotary_emb.*",
    swaps="draft",
)
def one_further(original, position):
    return original(position=position + 1)


@fault(
    "D04",
    "sliding layers see every key that is handed over",
    "let them see the newest keys alone, one more than the window",
    shows="layers.*.self_attn.scores",
    swaps="newest keys",
    at=slides,
    by_kind=True,
)
def no_window(original):
    return original(window=None)


@fault(
    "D04-narrow",
    "sliding layers see as many earlier keys as the target's own, one less than the window",
    "let them see one key more than the window, as Transformers does",
    shows="layers.*.self_attn.scores",
    swaps="newest keys",
    at=slides,
    by_kind=True,
)
def as_the_target(original, window):
    return original(window=window and window - 2)


@fault(
    "D05",
    "the tokens of a cluster are taken to lie side by side in the vocabulary",
    "look up the tokens of a cluster in token_ordering",
    shows="logits",
    swaps="clusters",
    at=clusters,
)
def unordered(original, ordering):
    return original(ordering=np.arange(len(ordering)))


@fault(
    "D21",
    "every token is scored, and not those of the best clusters alone",
    "give all other tokens the least of these logits, less 1",
    shows="logits",
    swaps="clustered head",
    at=clusters,
)
def dense(original, x, w):
    original()
    return ops.linear(x, w["embed_tokens.weight"])


@fault(
    "D05-one",
    "only the best cluster is looked at",
    "look at as many clusters as centroid_intermediate_top_k says",
    shows="logits",
    swaps="clustered head",
    at=clusters,
)
def best_alone(original):
    return original(J=1)


@fault(
    "D15",
    "the stream goes to post_projection without its norm",
    "project what the last norm returns",
    shows="post_projection",
    swaps="hand back",
)
def unnormed(original, x, w, tap):
    return original(tap=Rewired(tap, {"post_projection": lambda *_: ops.linear(x, w["post_projection.weight"])}))


# -- the loop around the steps


@fault(
    "D06",
    "tokens that are never to be sampled are drafted",
    "suppress them for the drafter too: they are refused",
    shows="logits",
    swaps="speculative.guess",
    media=in_the_loop,
)
def unsuppressed(original):
    return original(suppress=())


@fault(
    "D07",
    "keys of refused drafts stay in sliding layers",
    "take them back on every layer, before anything is forgotten",
    shows="logits",
    swaps="cache.rewind",
    media=in_the_loop,
)
def full_layers_alone(original, kvs):
    longest = max(map(len, kvs.values()))
    return original(kvs={layer: kept for layer, kept in kvs.items() if len(kept) == longest})


@fault(
    "D13",
    "keys of refused drafts are read in the next round, as in Transformers 5.23 and 5.24",
    "hand over the keys of accepted tokens alone",
    shows="logits",
    swaps="speculative.accepted_keys",
    media=in_the_loop,
)
def stale_keys(original, kvs, donors, refused):
    """Cut to the number of tokens: one refused key too many on full layers, all of them once a window is full."""
    tokens = max(len(kvs[layer]) for layer in donors.values()) - refused + 1
    return {kind: tuple(x[:tokens] for x in kvs[layer]) for kind, layer in donors.items()}


@fault(
    "D14",
    "the drafter is given the target's stream before its last norm",
    "give it the stream after that norm",
    shows="logits",
    swaps="speculative.ended",
    media=in_the_loop,
)
def before_the_norm(original, tokens):
    _, logits = original()
    return tokens.x, logits


@fault(
    "D22",
    "a draft is accepted by the ratio of both probabilities, though it was no sample, as in Transformers 5.23 and 5.24",
    "accept a fixed draft with the target's probability of it, and draw another from what is left",
    shows="logits",
    swaps="speculative.check",
    media=in_the_loop,
)
def by_ratio(original, drafted, guesses, logits, sampling, rng):
    """The rule of speculative sampling for drafts that were drawn from the drafter: these are its likeliest tokens."""
    if sampling.temperature == 0:
        return original()
    kept: list[int] = []
    for draft, guess, row in zip(drafted, guesses, logits, strict=False):
        p, q = distribution(row, sampling), definitions.softmax(guess.astype(np.float64))
        if rng.random() > p[draft] / q[draft]:
            rest = np.maximum(p - q, 0)
            return [*kept, int(rng.choice(len(rest), p=rest / rest.sum()))]
        kept.append(draft)
    p = distribution(logits[len(kept)], sampling)
    return [*kept, int(rng.choice(len(p), p=p))]
