"""Faults of the decoder's trunk: norms, residual adds, the layer's scalar, the gated MLP, embeddings and head.

Left out because no number comes of them: one MLP width for all layers (T16), which does not fit the weights; float16
that overflows (T26).
"""

import math
from dataclasses import replace

import numpy as np

from numgemma import ops
from numgemma.debug.faults.fault import Rewired, fault, has_key, with_weights
from numgemma.smallfloats import BFLOAT16, COMPUTES, kept


def has_ple(spec, model):
    return "per_layer_model_projection.weight" in model.weights


# -- norms


@fault(
    "T01",
    "RMSNorm multiplies by 1 + weight, as Gemma 3 does",
    "multiply by the weight as stored",
    shows="*norm *norm_? layers.*.input_layernorm",
    swaps="ops.rms_norm",
)
def one_plus_weight(original, w):
    return original(w=None if w is None else w.astype(np.float32) + 1)


@fault(
    "T02",
    "RMSNorm is computed in bfloat16, its sum of squares too",
    "compute it in float32, the product with the weight included, then round once",
    shows="*norm *norm_? layers.*.input_layernorm",
    swaps="ops.rms_norm",
    at=lambda spec, model: COMPUTES,
)
def narrow_norm(original, x, w, eps):
    y = x.astype("bfloat16")
    mean = np.add.accumulate(y * y, -1)[..., -1:] / y.dtype.type(y.shape[-1])
    y = y / np.sqrt(mean + y.dtype.type(eps))
    return (y if w is None else y * w.astype(y.dtype)).astype(x.dtype)


@fault(
    "T25",
    "the post-norms come after the residual adds",
    "normalise a branch's output, then add it to the stream",
    shows="layers.*.post_attention_layernorm",
    swaps="block",
    at=lambda spec, model: "stream gains" not in model.family.parts,  # one stream, to which the branches are added
)
def post_norm_after_add(original, x, w, spec, tap):
    def normed(name, stream, branch):
        return ops.rms_norm(stream + branch, w[f"{name}.weight"], spec.eps)

    def branches(seen):
        if not spec.E:
            return seen["mlp.down_proj"]
        return seen["post_feedforward_layernorm_1"] + seen["post_feedforward_layernorm_2"]

    first, second = "post_attention_layernorm", "post_feedforward_layernorm"
    equations = {
        first: lambda y, seen: normed(first, x, seen["self_attn.o_proj"]),
        "after_attention": lambda y, seen: seen[first],
        second: lambda y, seen: normed(second, seen["after_attention"], branches(seen)),
        "after_mlp": lambda y, seen: seen[second],
    }
    return original(tap=Rewired(tap, equations))


# -- the layer's scalar


def has_scalar(spec, model):
    return f"layers.{spec.index}.layer_scalar" in model.weights


def no_scalar(w):
    return with_weights(w, {"layer_scalar": np.ones(1, np.float32)})


@fault(
    "T12",
    "layer_scalar is left at 1",
    "load the buffers of the checkpoint too, not only its parameters",
    shows="layers.*.out",
    swaps="block",
    at=has_scalar,
)
def scalar_dropped(original, w):
    return original(w=no_scalar(w))


@fault(
    "T11-branch",
    "layer_scalar multiplies what the layer adds, not the stream",
    "multiply the whole stream at the very end of the layer",
    shows="layers.*.out",
    swaps="block",
    at=has_scalar,
)
def scalar_on_branch(original, x, w, tap):
    equation = {"out": lambda y, seen: x + ops.scale(y - x, w["layer_scalar"])}
    return original(w=no_scalar(w), tap=Rewired(tap, equation))


@fault(
    "T11-before-ple",
    "layer_scalar comes before the per-layer input is added",
    "multiply the whole stream after the last addition",
    shows="layers.*.after_mlp",
    swaps="block",
    at=lambda spec, model: has_scalar(spec, model) and model.outline.per_layer > 0,
)
def scalar_before_ple(original, w, tap):
    equation = {"after_mlp": lambda y, seen: ops.scale(y, w["layer_scalar"])}
    return original(w=no_scalar(w), tap=Rewired(tap, equation))


# -- the MLP


def gelu_erf(original, gate, up):
    y = gate.astype(np.promote_types(gate.dtype, np.float32))
    return (y / 2 * (1 + np.vectorize(math.erf, [float])(y / math.sqrt(2)))).astype(gate.dtype) * up


def sigmoid_gate(slope):
    """x sigmoid(slope x): SiLU for 1, the quick approximation of GELU for 1.702."""

    def change(original, gate, up):
        y = gate.astype(np.promote_types(gate.dtype, np.float32))
        return (y / (1 + np.exp(-slope * y))).astype(gate.dtype) * up

    return change


for form, name, change in (("T15-erf", "the exact GELU", gelu_erf), ("T15-silu", "SiLU", sigmoid_gate(1))):
    fault(
        form,
        f"the MLP uses {name}",
        "use the tanh approximation of GELU",
        shows="layers.*.mlp.down_proj",
        swaps="ops.gated_gelu",
        within="mlp",
    )(change)


# -- embeddings and head


@fault(
    "T13",
    "the embeddings are not scaled",
    "multiply them by sqrt(hidden_size)",
    shows="embed_tokens",
    swaps="ops.scale",
    within="embed",
)
def embeddings_unscaled(original, x):
    return x


def rounds_the_scale(model):
    root = math.sqrt(model.outline.width)
    return in_bfloat16(root) != root


def in_bfloat16(number):
    return float(kept(np.array(number), BFLOAT16))


@fault(
    "T13-rounded",
    "the embedding scale is rounded to bfloat16, though the run is of another precision",
    "round sqrt(hidden_size) to the precision of the run",
    shows="embed_tokens",
    swaps="ops.scale",
    within="embed",
    at=lambda spec, model: rounds_the_scale(model) and model.dtype != BFLOAT16,
)
def embedding_scale_rounded(original, x):
    return original(factor=in_bfloat16(math.sqrt(x.shape[-1])))


@fault(
    "T13-exact",
    "the embedding scale is not rounded to bfloat16, though the run is",
    "round sqrt(hidden_size) to the precision of the run",
    shows="embed_tokens",
    swaps="ops.scale",
    within="embed",
    at=lambda spec, model: rounds_the_scale(model) and model.dtype == BFLOAT16,
)
def embedding_scale_exact(original, x):
    return original(factor=math.sqrt(x.shape[-1]))


@fault(
    "T14",
    "the head uses the scaled embedding table",
    "scale the embeddings where they are looked up, never the table",
    shows="lm_head",
    swaps="ops.linear",
    within="head",
    at=lambda spec, model: "lm_head.weight" not in model.weights,
)
def head_scaled(original, w):
    return ops.scale(original(), math.sqrt(w.shape[1]))


CAP = "final_logit_softcapping"


def capped(spec, model):
    return has_key(model, CAP) and bool(model.config.text.final_logit_softcapping)


def with_cap(run, cap):
    text = replace(run.config.text, final_logit_softcapping=cap)
    return replace(run, config=replace(run.config, text=text))


fault(
    "T17-missing",
    "the logits are not soft-capped",
    "end with cap tanh(logits / cap)",
    shows="logits",
    swaps="ops.softcap",
    at=capped,
)(lambda original, x: x)

fault(
    "T17-product",
    "the soft cap is x tanh(x / cap)",
    "multiply the tanh by the cap, not by x",
    shows="logits",
    swaps="ops.softcap",
    at=capped,
)(lambda original, x, cap: x * np.tanh(x / x.dtype.type(cap)))

fault(
    "T17-extra",
    "the logits are soft-capped at 30 although the config has no cap",
    "follow final_logit_softcapping: null means none",
    shows="logits",
    swaps="head",
    at=lambda spec, model: has_key(model, CAP) and not capped(spec, model),
)(lambda original, run: original(run=with_cap(run, 30.0)))
