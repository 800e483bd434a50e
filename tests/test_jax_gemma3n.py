"""A second witness: Gemma 3n as Google's own package computes it, in JAX; and where it and Transformers part.

Its class takes one width of feed-forwards and one height of tables, so this checkpoint has that.
"""

from dataclasses import replace

import jax_here
import numpy as np
import pytest
import tiny3n
from closeness import relative, worst_token

import numgemma
from numgemma.debug.faults import applied

pytestmark = pytest.mark.jax
pytest.importorskip("jax")
pytest.importorskip("gemma")

L, A = 8, 4  # layers, streams
V = tiny3n.TEXT["vocab_size"]
RAW = tiny3n.TEXT | {"vocab_size_per_layer_input": V, "intermediate_size": 72}
ENDS = {"pre_attention_norm": "input_layernorm", "pre_ffw_norm": "pre_feedforward_layernorm"}
ENDS |= {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny3n.write(tmp_path_factory.mktemp("jax") / "m", RAW, tiny3n.random_tensors(RAW, 7), "float32")


def configured(gm):
    """Its configuration of E4B with the sizes of ours, and the soft cap that its definition leaves out."""
    from gemma.gm.nn.gemma3n import _config, _modules

    whole = gm.nn.Gemma3n_E4B.config
    kinds = {"full_attention": _modules.AttentionType.GLOBAL, "sliding_attention": _modules.AttentionType.LOCAL_SLIDING}
    shared = RAW["num_kv_shared_layers"] / L
    return replace(
        whole,
        num_embed=V,
        embed_dim=RAW["hidden_size"],
        hidden_dim=RAW["intermediate_size"],
        num_heads=RAW["num_attention_heads"],
        num_kv_heads=RAW["num_key_value_heads"],
        head_dim=RAW["head_dim"],
        final_logit_softcap=RAW["final_logit_softcapping"],
        attention_types=tuple(kinds[kind] for kind in RAW["layer_types"]),
        sliding_window_size=RAW["sliding_window"],
        activation_sparsity_pattern=tuple(RAW["activation_sparsity_pattern"]),
        per_layer_input_dim=RAW["hidden_size_per_layer_input"],
        laurel_rank=RAW["laurel_rank"],
        kv_cache_sharing_config=_config.KVCacheSharingConfig(shared, share_global=True, share_local=True),
    )


def params(w):
    """Our weights in the order of its axes, as its tree."""
    N, K, H, D = (RAW[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size"))
    P = RAW["hidden_size_per_layer_input"]
    tree = {
        "embedder": {
            "input_embedding": w["embed_tokens.weight"],
            "per_layer_input_embedding": w["embed_tokens_per_layer.weight"].reshape(V, L, P),
            "per_layer_input_projection": {"w": w["per_layer_model_projection.weight"].T.reshape(D, L, P)},
            "per_layer_projection_norm": scale(w, "per_layer_projection_norm"),
        },
        "final_norm": scale(w, "norm"),
    }
    for a in range(A - 1):
        for name in ("altup_projection", "altup_unembed_projection"):
            tree[f"{name}_{a}"] = {f"{name}_{a}": w[f"{name}s.{a}.weight"].T}
    for i in range(L):
        tree[f"layer_{i}"] = layer(w.at(f"layers.{i}"), N, K, H, D)
    return tree


def scale(w, name):
    return {"scale": w[f"{name}.weight"]}


def einsum(x):
    return {"w": x}


def layer(w, N, K, H, D):
    attention, altup = w.at("self_attn"), w.at("altup")
    attn = {
        "q_einsum": einsum(attention["q_proj.weight"].reshape(N, H, D).swapaxes(1, 2)),
        "attn_vec_einsum": einsum(attention["o_proj.weight"].T.reshape(N, H, D)),
        "query_norm": scale(attention, "q_norm"),
    }
    if "k_proj.weight" in attention:
        made = np.stack([attention[f"{x}_proj.weight"].reshape(K, H, D).swapaxes(1, 2) for x in "kv"])
        attn |= {"kv_einsum": einsum(made), "key_norm": scale(attention, "k_norm")}
    mlp = w.at("mlp")
    return {
        "attn": attn,
        "mlp": {
            "gating_einsum": np.stack([mlp["gate_proj.weight"], mlp["up_proj.weight"]]),
            "linear": mlp["down_proj.weight"].T,
        },
        "altup": {
            "correction_coefs": altup["correction_coefs.weight"].T,
            "prediction_coefs": altup["prediction_coefs.weight"].T.reshape(A, A, A),
            "correct_output_scale": altup["correct_output_scale"],
            "modality_router": einsum(altup["modality_router.weight"].T),
            "router_norm_layer": scale(altup, "router_norm"),
        },
        "laurel": {f"linear_{x}": einsum(w[f"laurel.linear_{x}.weight"].T) for x in ("left", "right")},
        "post_laurel_norm": scale(w.at("laurel"), "post_laurel_norm"),
        "per_layer_mapping": {
            "per_layer_input_gate": einsum(w["per_layer_input_gate.weight"].T),
            "per_layer_projection": einsum(w["per_layer_projection.weight"].T),
            "post_per_layer_input_norm": scale(w, "post_per_layer_input_norm"),
        },
        **{theirs: scale(w, ours) for theirs, ours in ENDS.items()},
    }


def theirs(folder, ids, **changes):
    """Its points under our names, and its logits."""
    jax_here.make_importable()
    import jax
    from gemma import gm

    model = gm.nn.Gemma3n_E4B(config=replace(configured(gm), **changes), text_only=True, dtype=np.float32)
    tokens = jax.numpy.asarray(ids, np.int32)[None]
    filled = params(numgemma.load(folder).weights)
    due = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    assert jax.tree.map(np.shape, filled) == jax.tree.map(np.shape, due)
    with jax.default_matmul_precision("float32"):
        out, state = model.apply({"params": filled}, tokens, capture_intermediates=True, mutable=["intermediates"])
    return points(state["intermediates"]) | {"logits": np.asarray(out.logits[0])}


def points(kept):
    found = {"norm": kept["final_norm"]["__call__"][0][0]}
    for i in range(L):
        mine, scope = kept[f"layer_{i}"], f"layers.{i}"
        streams = [x[0] for x in mine["__call__"][0][1]]
        found[f"{scope}.out"] = np.stack(streams if i < L - 1 else streams[:1])  # the last are rescaled in place
        found[f"{scope}.self_attn.o_proj"] = mine["attn"]["__call__"][0][1][0]
        found[f"{scope}.mlp.down_proj"] = mine["mlp"]["__call__"][-1][0]  # its linears share its name
        found[f"{scope}.laurel.linear_right"] = mine["laurel"]["__call__"][0][0]
        found[f"{scope}.post_per_layer_input_norm"] = mine["per_layer_mapping"]["__call__"][0][0]
        found |= {f"{scope}.{ours}": mine[name]["__call__"][0][0] for name, ours in ENDS.items()}
    return {name: np.asarray(x) for name, x in found.items()}


def assert_same_points(google, ours):
    assert len(google) == 2 + 9 * L
    for name, x in google.items():
        y = ours[name][: len(x)]
        assert relative(x, y) <= 2e-5, name
        assert worst_token(x, y) <= 1e-4, name


def test_every_point_that_googles_package_returns_equals_ours(folder):
    ids = tiny3n.prompt(40, vocabulary=V)
    assert_same_points(theirs(folder, ids), numgemma.load(folder).record(ids, ["*"]))


CHANGED = {  # what lets a fault act: a part of a name, and a factor
    "G01": ("layers.7.altup.correction_coefs", 2000.0),  # beyond the limit of 120
    "G02": ("altup_projections.", 1e-4),
}


@pytest.mark.parametrize("id", CHANGED)
def test_where_googles_package_and_transformers_part_a_fault_says_so(tmp_path, id):
    tensors, (part, factor) = tiny3n.random_tensors(RAW, 7), CHANGED[id]
    tensors = {name: x * factor if part in name else x for name, x in tensors.items()}
    folder, ids = tiny3n.write(tmp_path / "m", RAW, tensors, "float32"), tiny3n.prompt(12, vocabulary=V)
    model, google = numgemma.load(folder), theirs(folder, ids)
    assert relative(google["logits"], model.logits(ids)) > 1e-3
    with applied(model, id):
        assert_same_points(google, model.record(ids, ["*"]))


def test_its_own_definition_has_no_soft_cap(folder):
    ids = tiny3n.prompt(12, vocabulary=V)
    model, google = numgemma.load(folder), theirs(folder, ids, final_logit_softcap=None)
    with applied(model, "T17-missing"):
        assert_same_points(google, model.record(ids, ["*"]))
