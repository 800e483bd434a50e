"""Faults of what some variants have beside the trunk: shared keys and values, per-layer embeddings, experts.

Left out: the missing 1/sqrt(D) of the per-layer projection (of P02), which the norm after it cancels; sharing tied to a
cache (K02), whose numbers are those of K03; what concerns only caches (K07, K08), chunks (P07) or quantisation (P08).
"""

from dataclasses import replace

import numpy as np

from numgemma import ops
from numgemma.cache import append
from numgemma.debug.faults.attending import ATTENTION, counts_tokens, shares_keys, slides, trimmed
from numgemma.debug.faults.fault import Rewired, fault, row_fault, swapped, with_weights
from numgemma.debug.faults.trunk import gelu_erf, has_ple, sigmoid_gate
from numgemma.layers import attention
from numgemma.layers.per_layer import per_layer_residual

# -- shared keys and values


def donors(spec, model):
    """Other layers whose keys and values would fit, before the one that is right."""
    rows = model.outline.layers
    return [s.index for s in rows if s.index == s.kv_from < spec.kv_from and (s.K, s.H) == (spec.K, spec.H)]


row_fault(
    "K01",
    "shared keys and values come from one donor too early",
    "take them from the last layer of the same kind that makes its own",
    shows=f"{ATTENTION}.scores",
    at=lambda spec, model: shares_keys(spec, model) and bool(donors(spec, model)),
)(lambda spec, model: replace(spec, kv_from=donors(spec, model)[-1]))


def has_own_keys(spec, model):
    return shares_keys(spec, model) and f"layers.{spec.index}.self_attn.k_proj.weight" in model.weights


row_fault(
    "K03",
    "sharing layers compute keys and values of their own",
    "share without any condition, and leave the k_proj, v_proj and k_norm of these layers unread",
    shows=f"{ATTENTION}.k_proj {ATTENTION}.scores",
    at=has_own_keys,
)(lambda spec, model: replace(spec, kv_from=spec.index))

fault(
    "K04",
    "sharing layers see the donor's trimmed cache",
    "let them see all keys of this pass, and trim the cache after the whole pass",
    shows=f"{ATTENTION}.scores",
    swaps="layers.attention.attention",
    at=lambda spec, model: shares_keys(spec, model) and slides(spec, model),
    past_window=True,
)(trimmed)


@fault(
    "K05",
    "sharing layers overwrite the donor's keys and values with their own",
    "let sharing layers read the cache and never write it",
    shows=f"{ATTENTION}.scores",
    swaps="layers.attention.attention",
    at=has_own_keys,
    across=True,
)
def donor_overwritten(original, x, w, spec, rope, kvs):
    y = original()
    del kvs[spec.kv_from]
    append(kvs, spec.kv_from, *attention.keys_and_values(x, w, spec, rope))
    return y


def skipping(point, before):
    """Attention in which that point of Q is the one before it."""
    equation = {point: lambda y, seen: seen[before]}

    return lambda original, tap: original(tap=Rewired(tap, equation))


def shares_keys_and_counts(spec, model):
    """A drafter's Q, not turned, is one at position 0, and D03 is about that."""
    return shares_keys(spec, model) and counts_tokens(spec, model)


for form, what, point, before, where in (
    ("K06-norm", "q_norm", "q_norm", "q_proj", shares_keys),
    ("K06-rope", "the rope of Q", "q_rope", "q_norm", shares_keys_and_counts),
):
    fault(
        form,
        f"sharing layers skip {what}",
        "share keys and values only: Q keeps its projection, norm and rope",
        shows=f"{ATTENTION}.{point}",
        swaps="layers.attention.attention",
        at=where,
    )(skipping(point, before))


# -- per-layer embeddings


@fault(
    "P01",
    "the per-layer embeddings are not scaled",
    "multiply the table's rows by sqrt(hidden_size_per_layer_input)",
    shows="embed_tokens_per_layer",
    swaps="per-layer inputs",
)
def ple_unscaled(original, ids, x, w, tap):
    table = w["embed_tokens_per_layer.weight"]
    known = np.where(ids < len(table), ids, 0)
    equation = {"embed_tokens_per_layer": lambda y, seen: ops.embed(known, table, x.dtype)}
    return original(tap=Rewired(tap, equation))


@fault(
    "P02-unscaled",
    "the per-layer projection reads the unscaled embeddings",
    "project the embeddings after their scale",
    shows="per_layer_model_projection ple.per_layer_model_projection",
    swaps="ops.linear",
    within="per-layer context",
)
def ple_of_unscaled(original, x):
    return original(x=ops.scale(x, x.shape[-1] ** -0.5))


@fault(
    "P02-joint",
    "the norm of the per-layer projection runs over all layers together",
    "normalise each layer's slice by itself",
    shows="per_layer_projection_norm ple.per_layer_projection_norm",
    swaps="ops.rms_norm",
    within="per-layer context",
)
def ple_joint_norm(original, x, w):
    return original(x=x.reshape(len(x), -1), w=np.tile(w, x.shape[1])).reshape(x.shape)


@fault(
    "P02-sum",
    "the sum of both halves of the per-layer input is not scaled",
    "multiply the sum by 1/sqrt(2)",
    shows="per_layer_inputs",
    swaps="per-layer inputs",
)
def ple_sum_unscaled(original, tap):
    def equation(y, seen):
        context = seen["per_layer_projection_norm"]
        return context + seen["embed_tokens_per_layer"].reshape(context.shape)

    return original(tap=Rewired(tap, {"per_layer_inputs": equation}))


def unpacked(token, T, L, P):
    return token.reshape(T, P, L).swapaxes(1, 2)


def packed_again(token, T, L, P):
    return token.reshape(T, L, P).swapaxes(1, 2).reshape(T, L, P)


def ple_transposed(order):
    """The per-layer inputs of a table whose columns are taken in another order.  order: T LP, T, L, P -> T L P"""

    def change(original, tap):
        def equation(y, seen):
            context = seen["per_layer_projection_norm"]
            token = order(seen["embed_tokens_per_layer"], *context.shape)
            return ops.scale(context + token, 2**-0.5)

        return original(tap=Rewired(tap, {"per_layer_inputs": equation}))

    return change


for form, says, order in (
    ("P05", "the per-layer table is unpacked the wrong way round", unpacked),
    ("P05-inverse", "the per-layer table is packed the wrong way round, by number before layer", packed_again),
):
    fault(
        form,
        says,
        "give layer i the columns i P to (i + 1) P",
        shows="per_layer_inputs",
        swaps="per-layer inputs",
    )(ple_transposed(order))


@fault(
    "P03",
    "the per-layer input is added before the MLP",
    "add it after the MLP, and multiply by layer_scalar after that",
    shows="layers.*.after_attention",
    swaps="block",
    at=lambda spec, model: has_ple(spec, model) and f"layers.{spec.index}.layer_scalar" in model.weights,
)
def ple_before_mlp(original, own, w, spec, tap):
    def equation(y, seen):
        return y + per_layer_residual(y, own, w, spec, tap)

    return original(own=None, tap=Rewired(tap, {"after_attention": equation}))


for form, name, activation in (("P03-erf", "the exact GELU", gelu_erf), ("P03-silu", "SiLU", sigmoid_gate(1))):
    fault(
        form,
        f"the per-layer gate uses {name}",
        "use the tanh approximation of GELU",
        shows="layers.*.per_layer_projection",
        swaps="ops.gated_gelu",
        within="layers.per_layer.per_layer_residual",
    )(activation)


# -- experts


def has_experts(spec, model):
    return f"layers.{spec.index}.router.proj.weight" in model.weights


@fault(
    "M01",
    "the router reads the experts' normed input",
    "let it read the raw stream: it has a norm of its own",
    shows="layers.*.router.norm",
    swaps="experts beside",
)
def router_reads_normed(original, w, spec):
    def router(plain, x):
        return plain(x=ops.rms_norm(x, w["pre_feedforward_layernorm_2.weight"], spec.eps))

    with swapped("layers.feedforward.router", router):
        return original()


def chosen(change):
    """choose_experts with other weights: change(probs of the chosen, their scales) -> weights."""

    def choose(original, probs, per_expert_scale, dtype):
        _, ids = original()
        scales = per_expert_scale.astype(dtype).astype(probs.dtype)[ids]
        return change(np.take_along_axis(probs, ids, -1), scales), ids

    return choose


for form, says, weights in (
    ("M02-order", "per_expert_scale comes before the renormalisation", lambda p, s: p * s / (p * s).sum(-1)[:, None]),
    ("M02-dropped", "per_expert_scale is dropped", lambda p, s: p / p.sum(-1)[:, None]),
    ("M02-sum", "the chosen probabilities are not renormalised", lambda p, s: p * s),
):
    fault(
        form,
        says,
        "make the chosen probabilities sum to 1, then multiply by per_expert_scale",
        shows="layers.*.router.weights",
        swaps="ops.choose_experts",
    )(chosen(weights))


@fault(
    "M03",
    "the experts read the dense MLP's normed input",
    "give them pre_feedforward_layernorm_2 of the stream",
    shows="layers.*.pre_feedforward_layernorm_2",
    swaps="norm",
)
def one_pre_norm(original, name, x, w, eps, tap):
    if name != "pre_feedforward_layernorm_2":
        return original()
    return tap(name, ops.rms_norm(x, w["pre_feedforward_layernorm.weight"], eps), "T D")


@fault(
    "M04-sum",
    "MLP and experts are added before their norms",
    "normalise each by its own post-norm, add, then normalise the sum",
    shows="layers.*.post_feedforward_layernorm_1",
    swaps="experts beside",
)
def sum_before_norms(original, h, tap):
    equations = {
        "post_feedforward_layernorm_1": lambda y, seen: h,
        "post_feedforward_layernorm_2": lambda y, seen: seen["experts"],
    }
    return original(tap=Rewired(tap, equations))


@fault(
    "M04-dense",
    "the dense MLP is left out beside the experts",
    "add it to them: it is always on",
    shows="layers.*.post_feedforward_layernorm",
    swaps="experts beside",
    at=has_experts,
)
def experts_alone(original, tap):
    tap = Rewired(tap, {})
    original(tap=tap)
    return tap.seen["post_feedforward_layernorm_2"]


@fault(
    "M05-halves",
    "gate and up of the experts are swapped",
    "the first half of gate_up_proj's rows is the gate",
    shows="layers.*.experts",
    swaps="layers.feedforward.experts",
)
def swapped_halves(original, w):
    both = w["gate_up_proj"]

    def linear(plain, w):
        y = plain()
        return np.roll(y, y.shape[-1] // 2, -1) if np.may_share_memory(w, both) else y

    with swapped("ops.linear", linear):
        return original()


for form, name, activation in (
    ("M05-silu", "SiLU", sigmoid_gate(1)),
    ("M05-quick", "x sigmoid(1.702 x)", sigmoid_gate(1.702)),
    ("M05-erf", "the exact GELU", gelu_erf),
):
    fault(
        form,
        f"the experts use {name}",
        "use the tanh approximation of GELU",
        shows="layers.*.experts",
        swaps="ops.gated_gelu",
        within="layers.feedforward.experts",
    )(activation)


@fault(
    "M06",
    "per_expert_scale is applied twice: folded into down_proj, and to the weights",
    "apply it once",
    shows="layers.*.experts",
    swaps="layers.feedforward.experts",
)
def scale_twice(original, weights, ids, w):
    router = replace(w, scope=w.scope.removesuffix("experts.") + "router.")
    return original(weights=weights * router["per_expert_scale"].astype(weights.dtype)[ids])


@fault(
    "M07",
    "the norms of the dense MLP and of the experts are swapped",
    "names that end in _1, or in nothing before the MLP, are the dense MLP's; _2 are the experts'",
    shows="layers.*.pre_feedforward_layernorm",
    swaps="block",
    at=has_experts,
)
def norms_swapped(original, w):
    before, after = "pre_feedforward_layernorm{}.weight", "post_feedforward_layernorm_{}.weight"
    pairs = ((before.format(""), before.format("_2")), (after.format("1"), after.format("2")))
    other = {a: w[b] for pair in pairs for a, b in (pair, pair[::-1])}
    return original(w=with_weights(w, other))
