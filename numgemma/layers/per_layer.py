"""Per-layer embeddings (PLE): every layer gets a small vector of its own for every token.

It has two halves, which know nothing of other tokens: a row of a second embedding table, L slices of width P, and a
projection of the stream as it enters the first layer to all layers at once, which Transformers calls its context.
"""

import math

from numgemma import ops
from numgemma.errors import InputError
from numgemma.trace import Tap


def per_layer_inputs(ids, x, w, config, tap=Tap()):
    """One input per token and layer.  ids: T   x: T D, as it enters the first layer  ->  T L P

    Equals get_per_layer_inputs followed by project_per_layer_inputs of Gemma4TextModel.
    """
    T, L, P = len(x), config.num_hidden_layers, config.hidden_size_per_layer_input
    table = w["embed_tokens_per_layer.weight"]
    check_rows(ids, table)
    token = ops.embed(ids, table, x.dtype)
    # only this factor is rounded to the run's precision, as in every table of embeddings
    token = tap("embed_tokens_per_layer", ops.scale(token, x.dtype.type(math.sqrt(P))), "T LP").reshape(T, L, P)
    projected = projected_inputs(x, w, config, tap)
    return tap("per_layer_inputs", ops.scale(projected + token, 2**-0.5), "T L P")  # two terms of equal variance


def projected_inputs(x, w, config, tap=Tap()):
    """The half that is projected from the stream; EmbeddingGemma 2 has no other.  x: T D  ->  T L P

    Equals EmbeddingGemma2TextPLE.
    """
    (T, D), L, P = x.shape, config.num_hidden_layers, config.hidden_size_per_layer_input
    h = tap("per_layer_model_projection", ops.linear(x, w["per_layer_model_projection.weight"]), "T LP")
    h = ops.scale(h, D**-0.5).reshape(T, L, P)
    norm = w["per_layer_projection_norm.weight"]
    return tap("per_layer_projection_norm", ops.rms_norm(h, norm, config.rms_norm_eps), "T L P")


def check_rows(ids, table):
    """Raises InputError for a token past the end of the table, which may be shorter than the vocabulary.  ids: T"""
    if ids.max() >= len(table):
        raise InputError(
            f"Token {ids[ids >= len(table)][0]} has a row in embed_tokens and none in embed_tokens_per_layer, which "
            f"has {len(table)}: leave it out of the prompt, or give the checkpoint the whole table."
        )


def per_layer_residual(x, own, w, spec, tap=Tap()):
    """What a layer adds for its per-layer input: gated by the stream, projected back.  x: T D   own: T P  ->  T D"""
    gate = tap("per_layer_input_gate", ops.linear(x, w["per_layer_input_gate.weight"]), "T P")
    h = tap("per_layer_projection", ops.linear(ops.gated_gelu(gate, own), w["per_layer_projection.weight"]), "T D")
    norm = w["post_per_layer_input_norm.weight"]
    return tap("post_per_layer_input_norm", ops.rms_norm(h, norm, spec.eps), "T D")
