"""Small random pairs of a target and its drafter, in Transformers' naming: a clustered head, raw keys as values."""

import numpy as np
import tiny

V = 208  # 16 clusters of 13
SIZES = {"vocab_size": V, "vocab_size_per_layer_input": V}
TEXT = tiny.TEXT | SIZES
# Four layers whose widths differ from the target's, but for what its keys decide.
OWN = {
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_attention_heads": 12,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 4,
    "layer_types": [tiny.KINDS[letter] for letter in "sssf"],
    "vocab_size_per_layer_input": 0,
    "final_logit_softcapping": None,
    "use_double_wide_mlp": False,
    "hidden_size_per_layer_input": 0,
    "enable_moe_block": False,
}
CLUSTERED = {"use_ordered_embeddings": True, "num_centroids": 16, "centroid_intermediate_top_k": 3}
TARGETS = {
    "clustered": tiny.PLE | SIZES,
    "k_eq_v": tiny.DENSE | SIZES,
    "unified": tiny.UNIFIED_TEXT | SIZES,
}


def drafter(name):
    """The drafter's config of one of TARGETS."""
    return of(TARGETS[name]) | (CLUSTERED if name == "clustered" else {})


def of(target):
    """The config of a drafter for a model with this text config; its head looks at every token."""
    unified = "Unified" * target["model_type"].startswith("gemma4_unified")
    return {
        "architectures": [f"Gemma4{unified}AssistantForCausalLM"],
        "model_type": f"gemma4_{'unified_' if unified else ''}assistant",
        "backbone_hidden_size": target["hidden_size"],
        "tie_word_embeddings": True,
        "text_config": {**target, **OWN, "architectures": None},
        "use_ordered_embeddings": False,
    }


def tensors(raw, seed):
    """Those of a drafter, each cluster in an order of its own."""
    found = tiny.random_tensors(raw, seed)
    if "masked_embedding.token_ordering" in found:
        found["masked_embedding.token_ordering"] = np.random.default_rng(seed).permutation(V)
    return found


def write(folder, name, seed=0, dtype="float32"):
    """A drafter's directory."""
    raw = drafter(name)
    return tiny.write(folder, raw, tensors(raw, seed), dtype, generation={"num_assistant_tokens": 4})


def write_pair(folder, name, seed=0, dtype="float32"):
    """Directories of a target and of its drafter."""
    target = TARGETS[name]
    return (
        tiny.write(folder / "target", target, tiny.random_tensors(target, seed), dtype),
        write(folder / "drafter", name, seed + 1000, dtype),
    )


def step(raw, seed=0, keys=12, kept=None):
    """What Transformers passes to one step of a drafter.  kept: keys of sliding layers, by default as of full ones"""
    from numgemma.families.drafter.config import read_config
    from numgemma.families.drafter.layout import inputs

    rng, config = np.random.default_rng(seed), read_config(raw, "the test")
    found = {}
    for name, due in inputs(config).items():
        S = kept or keys if "sliding" in name else keys
        shape = [(dict(due.sizes) | {"S": S})[letter] for letter in due.axes.split()]
        found[name] = rng.standard_normal((1, *shape)).astype(np.float32)
    return found | {"position_ids": np.array([[keys]]), "attention_mask": np.ones((1, keys + 1), np.int64)}


def agreeing_pair(folder, name, seed=0, loud=0.3):
    """A pair that agrees often.  loud: how much the layers add, and so how often the two part

    The target goes round a cycle of tokens; the drafter has its embeddings and its head in fewer dimensions.
    """
    rng = np.random.default_rng(seed)
    target, small = TARGETS[name] | {"tie_word_embeddings": False}, drafter(name)
    D, d = target["hidden_size"], OWN["hidden_size"]
    big, own = tiny.random_tensors(target, seed), tensors(small, seed + 1000)
    for part in (big, own):
        for branch in ("post_attention_layernorm", "post_feedforward_layernorm", "post_per_layer_input_norm"):
            part.update({n: loud * x for n, x in part.items() if branch in n})
        part.update({n: x / x for n, x in part.items() if n.endswith("layer_scalar")})
    table = rng.standard_normal((V, D))
    after = np.roll(table[order := rng.permutation(V)], 1, 0)[np.argsort(order)]  # row t: the token that t follows
    narrow = np.ascontiguousarray(np.linalg.qr(rng.standard_normal((D, d)))[0].T)
    big |= {"embed_tokens.weight": table / D**0.5, "lm_head.weight": after}
    own |= {"embed_tokens.weight": after @ narrow.T}
    own["pre_projection.weight"] = np.concatenate([narrow, 0 * narrow], 1)
    if "masked_embedding.token_ordering" in own:
        clusters = own["masked_embedding.token_ordering"].reshape(CLUSTERED["num_centroids"], -1)
        own["masked_embedding.centroids.weight"] = own["embed_tokens.weight"][clusters].mean(1)
    return (
        tiny.write(folder / "target", target, big, "float32"),
        tiny.write(folder / "drafter", small, own, "float32", generation={"num_assistant_tokens": 4}),
    )
