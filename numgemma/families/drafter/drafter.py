"""A drafter: four layers without keys of their own, that guess a token from the target's keys and its last stream.

    x      = pre_projection [ e ; h ]   e: the target's embedding of the newest token; h: the target's stream, after
    layers = Gemma 4's                  its last norm, of the token before, and in later steps the drafter's own
    y      = norm(x)
    h      = post_projection(y)         what the next step of the round begins with, in the target's width
    logits = the drafter's own table . y     of all tokens, or of those in the best clusters

Axes beside the key in layers/attention.py: B the target's width, W = 2 B, E clusters of tokens, J of them looked at.
"""

from dataclasses import replace

import numpy as np

from numgemma import ops
from numgemma.errors import InputError
from numgemma.families.drafter.layout import SHARED
from numgemma.families.gemma4.gemma4 import block, norm, rope_table
from numgemma.masks import Spans, everything
from numgemma.prompt.named import named, taken
from numgemma.trace import Tap


def forward(ids, media, w, run, tap=Tap()):
    """One step on what Transformers passes; there are no token ids.  -> logits 1 V   (Gemma4AssistantForCausalLM)"""
    x = taken("inputs_embeds", "T W", media, run.dtype, tap)
    position = taken("position_ids", "T", media, run.dtype, tap)
    kvs = {kind: handed_over(kind, media, run, tap) for kind in run.config.kinds}
    if "attention_mask" in named(media):
        kvs = unpadded(kvs, taken("attention_mask", "S", media, run.dtype, tap))
    return draft(x, position, w, replace(run, kvs=kvs), tap)[0]


def handed_over(kind, media, run, tap):
    """The target's keys and values of one kind of layer, as Transformers passes them.  -> k, v: S K H"""
    k, v = (taken(f"{SHARED}.{kind}.{x}", "K S H", media, run.dtype, tap) for x in "kv")
    return k.swapaxes(0, 1), v.swapaxes(0, 1)


def unpadded(kvs, mask):
    """Without the keys of padding.

    mask: an entry for each token so far, also for those whose keys a sliding layer has forgotten.
    """
    longest = max(len(k) for k, _ in kvs.values())
    if len(mask) < longest:
        raise InputError(f"attention_mask has {len(mask)} entries for {longest} keys; it should have as many, or more.")
    real = np.asarray(mask[:longest]) != 0
    return {kind: (k[real[-len(k) :]], v[real[-len(k) :]]) for kind, (k, v) in kvs.items()}


def draft(x, position, w, run, tap=Tap()):
    """One step.  x: 1 W, [e ; h]   position: 1, of the newest token through a whole round  ->  logits 1 V, h 1 B

    run: its kvs are the target's keys and values, kind of layer: (S K H, S K H).
    """
    x = tap("pre_projection", ops.linear(x, w["pre_projection.weight"]), "T D")
    kinds = run.config.kinds.items()
    ropes = {kind: rope_table(position, spec, x.dtype, tap) for kind, spec in kinds}
    masks = {kind: newest(len(run.kvs[kind][0]), spec.window) for kind, spec in kinds}
    for spec in run.config.layers:
        scope, rope, mask = f"layers.{spec.index}", ropes[spec.kind], masks[spec.kind]
        x = block(x, None, w.at(scope), spec, rope, mask, run.kvs, tap.at(scope))
    x, h = hand_back(x, w, run, tap)
    return head(x, w, run, tap), h


def hand_back(x, w, run, tap=Tap()):
    """The last norm: what the head reads, and from it what the next step begins with.  x: 1 D  ->  1 D, 1 B"""
    x = norm("norm", x, w, run.config.text.rms_norm_eps, tap)
    return x, tap("post_projection", ops.linear(x, w["post_projection.weight"]), "T B")


def newest(S, window):
    """Who is seen: all keys, or the newest window + 1 of them; the query itself stands behind them all.

    One key more than the target's own layers see, as Transformers has it: its mask reaches `window` back from the
    newest key, which is the one before the query.
    """
    return everything(1, S) if window is None else Spans(np.array([max(0, S - window - 1)]), np.array([S]), S)


def head(x, w, run, tap=Tap()):
    """Logits from the drafter's own table.  x: 1 D  ->  1 V"""
    if run.config.clusters:
        return tap("logits", clustered(x, w, run.config.centroid_intermediate_top_k, tap.at("masked_embedding")), "T V")
    return tap("logits", tap("lm_head", ops.linear(x, w["embed_tokens.weight"]), "T V"), "T V")


def clustered(x, w, J, tap=Tap()):
    """Logits of the tokens in the J best clusters; any other token's is the least of them, less 1.  x: 1 D  ->  1 V

    Equals Gemma4AssistantMaskedEmbedder.
    """
    scores = tap("centroids", ops.linear(x, w["masked_embedding.centroids.weight"]), "T E")
    ids = in_clusters(w["masked_embedding.token_ordering"], len(scores[0]), np.argsort(-scores[0], kind="stable")[:J])
    table = w["embed_tokens.weight"]
    found = ops.linear(x, ops.embed(ids, table, x.dtype))
    logits = np.full_like(found, found.min() - found.dtype.type(1), shape=(1, len(table)))
    logits[:, ids] = found
    return logits


def in_clusters(ordering, clusters, best):
    """The token ids of the best clusters.  ordering: V, the tokens cluster by cluster"""
    tokens = ordering.astype(np.int64, copy=False).reshape(clusters, -1)
    ids = np.take_along_axis(tokens, best[:, None], 0).reshape(-1)
    if ids.min() < 0 or ids.max() >= ordering.size:
        raise InputError("masked_embedding.token_ordering names a token outside the vocabulary; run `numgemma lint`.")
    return ids
