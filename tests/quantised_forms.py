"""A checkpoint of floats, its matrices packed as each format lays them out: plain loops, and no code of numgemma's.

`write(folder, form)` changes a checkpoint where it lies.  Matrices are packed in groups of 32, those of per-layer
inputs among them; the token embedding stays as it is, as in people's files.  tests/test_weights.py holds what is read
to the formats' own tools, matrix by matrix; here whole checkpoints are wanted.
"""

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

GROUP = 32
NF4 = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]


def symmetric(w, bits=4, group=GROUP):
    """O I -> codes O I from -2^(b-1) on, scales O G"""
    x, half = w.reshape(len(w), -1, group), 2 ** (bits - 1)
    scale = np.abs(x).max(-1) / (half - 0.5)
    scale = np.where(scale > 0, scale, 1).astype(np.float16).astype(np.float32)
    return np.clip(np.rint(x / scale[..., None]), -half, half - 1).astype(int).reshape(w.shape), scale


def words(codes, order=range(8)):
    """Rows of codes of four bits -> rows of words, of which nibble k holds code order[k] of eight."""
    eights = codes.reshape(len(codes), -1, 8)[:, :, list(order)].astype(np.uint64)
    whole = (eights << np.arange(0, 32, 4, dtype=np.uint64)).sum(-1)
    return np.ascontiguousarray(whole.astype(np.uint32)).view(np.int32)


def compressed(name, w):
    q, s = symmetric(w)
    shape = np.array(w.shape)
    return {"weight_packed": words(q + 8), "weight_scale": s.astype(ml_dtypes.bfloat16), "weight_shape": shape}


def fp8(name, w):
    """A scale for each block of 32 x 32; rows that fill no block have a smaller one."""
    tall, wide = -(-len(w) // GROUP), w.shape[1] // GROUP
    cut = [[w[r * GROUP : (r + 1) * GROUP, c * GROUP : (c + 1) * GROUP] for c in range(wide)] for r in range(tall)]
    scale = np.array([[np.abs(block).max() / 448 for block in row] for row in cut], np.float32)
    each = np.repeat(np.repeat(scale, GROUP, 0)[: len(w)], GROUP, 1)
    return {"weight": (w / each).astype(ml_dtypes.float8_e4m3fn), "weight_scale_inv": scale}


def mlx(name, w):
    x = w.reshape(len(w), -1, GROUP)
    low, scale = x.min(-1), (x.max(-1) - x.min(-1)) / 15
    codes = np.clip(np.rint((x - low[..., None]) / scale[..., None]), 0, 15).astype(int).reshape(w.shape)
    return {"weight": words(codes).view(np.uint32), "scales": scale.astype("f2"), "biases": low.astype("f2")}


def gptq(name, w):
    q, s = symmetric(w)
    zeros = words(np.full((s.shape[1], len(w)), 7))  # 8 less one, as the first version stores it
    packed = np.ascontiguousarray(words(q + 8).T)
    order = (np.arange(w.shape[1]) // GROUP).astype(np.int32)
    return {"qweight": packed, "qzeros": zeros, "scales": np.ascontiguousarray(s.T.astype("f2")), "g_idx": order}


def awq(name, w):
    q, s = symmetric(w)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    zeros = words(np.full((s.shape[1], len(w)), 8), order)
    return {"qweight": words(q.T + 8, order), "qzeros": zeros, "scales": np.ascontiguousarray(s.T.astype("f2"))}


def bnb(name, w):
    table, x = np.float32(NF4), w.reshape(-1, GROUP)
    absmax = np.abs(x).max(-1).astype(np.float32)
    codes = np.abs((x / absmax[:, None])[..., None] - table).argmin(-1).reshape(-1, 2).astype(np.uint8)
    state = {"quant_type": "nf4", "blocksize": GROUP, "dtype": "bfloat16", "shape": list(w.shape)}
    leaves = {"weight": (codes[:, :1] << 4 | codes[:, 1:]), "weight.absmax": absmax, "weight.quant_map": table}
    told = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return leaves | {"weight.quant_state.bitsandbytes__nf4": told}


def mobile(name, w):
    q, s = symmetric(w, 4, w.shape[1])
    codes = (q + 8).astype(np.uint8)
    return {"weight": codes[:, ::2] | codes[:, 1::2] << 4, "weight_scale": s, "input_activation_scale": s[0]}


SAID = {
    "compressed": {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": GROUP}}},
    },
    "fp8": {"quant_method": "fp8", "weight_block_size": [GROUP, GROUP]},
    "mlx": {"group_size": GROUP, "bits": 4},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP},
    "bnb": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "mobile": {"quant_method": "gemma", "num_bits": 4},
}
FORMS = {form.__name__: form for form in (compressed, fp8, mlx, gptq, awq, bnb, mobile)}
KINDS = {"compressed": "int4", "fp8": "float8_e4m3fn", "mlx": "mlx-4bit", "gptq": "gptq-int4", "awq": "awq-int4"}
KINDS |= {"bnb": "bnb-nf4", "mobile": "mobile-int4"}  # as the package calls them


def write(folder, form):
    """Pack the matrices of a checkpoint in that form.  Returns how many that were."""
    file, found, packed = folder / "model.safetensors", {}, 0
    for name, x in load_file(file).items():
        if x.ndim == 2 and not name.endswith("embed_tokens.weight") and not any(n % GROUP for n in x.shape):
            leaves, packed = FORMS[form](name, np.asarray(x, np.float32)), packed + 1
            found |= {f"{name.removesuffix('.weight')}.{leaf}": part for leaf, part in leaves.items()}
        else:
            found[name] = x
    save_file(found, file, {"format": "pt"})
    raw = json.loads((folder / "config.json").read_text()) | {"quantization_config": SAID[form]}
    if form == "mlx":
        raw["quantization"] = raw["quantization_config"]
    (folder / "config.json").write_text(json.dumps(raw))
    return packed
