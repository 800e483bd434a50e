"""Random configs, text and multimodal, against Transformers: `make test-hf-random`, or

    python tests/random_configs.py TEXT MULTIMODAL [SEED]

Of every family that runs: Gemma 4, 12B, Gemma 3n (with pictures and sound where timm is installed).
Logits of both are compared in float32. Where they are further apart than float32 explains, both are run in float64:
if they agree there, the difference is rounding, and it is counted; if not, it is a fault, and the config is printed.
"""

import json
import random
import sys
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import tiny  # noqa: E402
import tiny3n  # noqa: E402
from closeness import relative  # noqa: E402
from timm_here import make_importable  # noqa: E402

import numgemma  # noqa: E402
from numgemma.dump import Dump  # noqa: E402
from numgemma.prompt.media import NO_MEDIA, read_media  # noqa: E402

NEAR, EXACT = 1e-4, 1e-9  # relative RMS of the logits in float32, in float64


def text_config(rng, base):
    """A random text config near one of the tiny ones: widths, heads, windows, ropes, sharing, experts."""
    K = rng.choice([1, 2, 3])
    wide = rng.choice([None, 1, 2])
    raw = base | {
        "hidden_size": rng.choice([16, 24, 48, 56]),
        "intermediate_size": rng.choice([8, 33, 72]),
        "num_key_value_heads": K,
        "num_attention_heads": K * rng.choice([2, 4]) if wide is None or not base["attention_k_eq_v"] else 4 * K,
        "num_global_key_value_heads": wide if base["attention_k_eq_v"] else None,
        "head_dim": rng.choice([4, 8, 16, 18]),
        "global_head_dim": rng.choice([8, 16, 32, 64]),
        "sliding_window": rng.choice([1, 2, 3, 7, 50]),
        "final_logit_softcapping": rng.choice([None, 1.0, 30.0]),
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
    }
    raw["rope_parameters"] = {
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": rng.choice([100.0, 10_000.0, 1_000_000.0]),
            "partial_rotary_factor": rng.choice([0.25, 0.5, 1.0]),
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": rng.choice([100.0, 10_000.0])},
    }
    if raw["enable_moe_block"]:
        E = rng.choice([2, 5, 9])
        raw |= {"num_experts": E, "top_k_experts": rng.randint(1, E), "moe_intermediate_size": rng.choice([4, 20])}
    if raw["num_kv_shared_layers"]:
        raw |= {"num_kv_shared_layers": rng.choice([0, 2, 4]), "use_double_wide_mlp": rng.random() < 0.5}
        raw |= {"hidden_size_per_layer_input": rng.choice([8, 24])}
    return raw


def text_config_3n(rng):
    """A random Gemma 3n text config: streams, ranks, sparse gates, widths by layer, who shares whose keys."""
    K, L = rng.choice([1, 2, 3]), rng.choice([4, 6, 8])
    own = rng.randint(2, L)  # layers with keys of their own: one of each kind at least
    kinds = ["sliding_attention", "full_attention", *rng.choices(["sliding_attention", "full_attention"], k=L - 2)]
    streams, N = rng.choice([2, 3, 4, 5]), K * rng.choice([1, 2, 4])
    return tiny3n.TEXT | {
        "hidden_size": N * rng.choice([4, 6, 8]),  # Transformers wants a multiple
        "hidden_size_per_layer_input": rng.choice([8, 24]),
        "intermediate_size": [rng.choice([40, 72, 80]) for _ in range(L)],
        "num_hidden_layers": L,
        "layer_types": kinds,
        "num_kv_shared_layers": L - own,
        "num_key_value_heads": K,
        "num_attention_heads": N,
        "head_dim": rng.choice([4, 8, 16, 18]),
        "sliding_window": rng.choice([1, 2, 3, 7, 50]),
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        "rope_theta": rng.choice([100.0, 10_000.0, 1_000_000.0]),
        "rope_local_base_freq": rng.choice([100.0, 10_000.0]),
        "final_logit_softcapping": rng.choice([1.0, 30.0]),
        "altup_num_inputs": streams,
        "altup_coef_clip": rng.choice([0.1, 1.0, 120.0]),
        "laurel_rank": rng.choice([1, 6, 20]),
        "activation_sparsity_pattern": [rng.choice([0.0, 0.3, 0.5, 0.8, 0.95]) for _ in range(L)],
    }


class Case(NamedTuple):
    """A checkpoint to be written, and a prompt for it."""

    raw: dict
    ids: Any
    arrays: dict
    room: Any  # the module that writes its family: tiny, tiny3n


def text_case(rng):
    """Of a random family."""
    if rng.random() < 0.3:
        raw = text_config_3n(rng)
        return Case(raw, tiny3n.prompt(rng.choice([1, 2, 9, 40]), rng.randrange(1000)), {}, tiny3n)
    raw = text_config(rng, rng.choice([*tiny.VARIANTS.values(), tiny.UNIFIED_TEXT]))
    return Case(raw, tiny.prompt(raw, rng.choice([1, 2, 9, 40]), rng.randrange(1000)), {}, tiny)


def multimodal_case(rng):
    families = [gemma4_case, gemma4_case, unified_case]
    return rng.choice(families + [gemma3n_case] * (find_spec("timm") is not None))(rng)


def gemma4_case(rng):
    """E4B, 26B or 31B, with pictures and sound of random sizes."""
    name = rng.choice(list(tiny.MULTIMODAL))
    raw = dict(tiny.MULTIMODAL[name])
    raw["text_config"] = text_config(rng, raw["text_config"])
    heads = rng.choice([1, 2, 3])
    tower = {"num_hidden_layers": rng.choice([1, 2, 3]), "num_attention_heads": heads, "num_key_value_heads": heads}
    raw["vision_config"] = raw["vision_config"] | tower | {"head_dim": rng.choice([4, 8, 12])}
    sizes = [(3, 3), (6, 3), (3, 9), (9, 6), (12, 9)]
    content, mel = {"images": rng.sample(sizes, rng.choice([0, 1, 2]))}, 128
    if raw.get("audio_config"):
        mel = rng.choice([16, 64, 128])
        tower = {"num_hidden_layers": rng.choice([1, 2, 3]), "subsampling_conv_channels": [mel, rng.choice([1, 4, 6])]}
        raw["audio_config"] = raw["audio_config"] | tower
        content["clips"] = [rng.randint(6, 90) for _ in range(rng.choice([0, 1, 2]))]
    if not any(content.values()):
        content["images"] = [(6, 6)]
    return Case(raw, *tiny.multimodal_prompt(name, content, rng.randrange(1000), mel), tiny)


def unified_case(rng):
    """12B, whose pictures and sound need no tower."""
    raw = tiny.UNIFIED | {"text_config": text_config(rng, tiny.UNIFIED_TEXT)}
    wide = rng.choice([12, 36, 40])
    raw["vision_config"] = raw["vision_config"] | {"mm_embed_dim": wide, "output_proj_dims": wide}
    sizes = [(1, 2), (3, 2), (4, 5), (2, 2)]
    content = {"images": rng.sample(sizes, rng.choice([1, 2])), "clips": [rng.randint(1, 9) for _ in range(2)]}
    content |= {"videos": [[(2, 1)] * rng.choice([1, 2])]} if rng.random() < 0.3 else {}
    return Case(raw, *tiny.unified_prompt(content, seed=rng.randrange(1000)), tiny)


def gemma3n_case(rng):
    """Gemma 3n; Transformers builds its picture tower, which is timm's, for sound alone too."""
    heads = rng.choice([1, 2, 3])
    tower = {"conf_num_hidden_layers": rng.choice([1, 2, 3]), "conf_num_attention_heads": heads}
    chunk = rng.choice([2, 4, 8])
    tower |= {"hidden_size": 8 * heads, "conf_attention_chunk_size": chunk, "conf_attention_context_left": chunk + 1}
    raw = tiny3n.WHOLE | {"text_config": text_config_3n(rng), "audio_config": tiny3n.AUDIO | tower}
    clips = tuple(rng.randint(20, 100) for _ in range(rng.choice([0, 1, 2])))
    pictures = rng.choice([1, 2]) if not clips else rng.choice([0, 1])
    return Case(raw, *tiny3n.multimodal_prompt(pictures, clips, seed=rng.randrange(1000)), tiny3n)


def opened(folder, dtype):
    """With the image mask that Transformers makes, of those that a family has."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    return numgemma.load(folder, dtype, "transformers" if kind == "gemma4_unified" else "intended")


def logits(folder, ids, media, dtype):
    """Of Transformers and of ours."""
    from numgemma.debug.capture import hooks

    model = opened(folder, dtype)
    theirs = Dump(hooks.describe(model, ids, dtype, ["logits"]))
    hooks.capture(model, model.checked(ids, media), theirs, dtype, ["logits"], media, "transformers")
    return np.asarray(theirs["logits"], np.float64), np.asarray(model.logits(ids, media), np.float64)


def one(rng, multimodal):
    """ "same", "rounding" or "fault", and the config."""
    case = multimodal_case(rng) if multimodal else text_case(rng)
    media = read_media(case.arrays) if multimodal else NO_MEDIA
    with tempfile.TemporaryDirectory() as base:
        tensors = case.room.random_tensors(case.raw, rng.randrange(1000))
        folder = case.room.write(Path(base) / "ckpt", case.raw, tensors, "float32")
        theirs, ours = logits(folder, case.ids, media, "float32")
        if relative(theirs, ours) <= NEAR:
            return "same", case.raw
        return ("rounding" if is_rounding(folder, case.ids, media, theirs, ours) else "fault"), case.raw


def is_rounding(folder, ids, media, theirs, ours):
    """Whether two float32 runs differ by rounding alone: in float64 they agree, or are as far from ours in float64."""
    if relative(*logits(folder, ids, media, "float64")) <= EXACT:
        return True
    # Transformers' audio towers make float32 whatever they are given, so their truth cannot be asked
    truth = np.asarray(opened(folder, "float64").logits(ids, media))
    return "input_features" in media and relative(truth, theirs) <= 10 * max(relative(truth, ours), NEAR / 10)


def run(text, multimodal, seed):
    """-> what became of the configs, how many of each family, and those that are faults"""
    make_importable()
    counts, kinds, faults = {"same": 0, "rounding": 0, "fault": 0}, Counter(), []
    for n in range(text + multimodal):
        outcome, raw = one(random.Random(f"{seed} {n}"), n >= text)
        counts[outcome] += 1
        kinds[raw["model_type"]] += 1
        if outcome == "fault":
            faults.append((n, raw))
    return counts, kinds, faults


def main(words):
    text, multimodal = (int(word) for word in words[:2])
    seed = int(words[2]) if len(words) > 2 else random.randrange(10**6)
    print(f"{text} text configs and {multimodal} multimodal ones of seed {seed}", flush=True)
    counts, kinds, faults = run(text, multimodal, seed)
    for n, raw in faults:
        print(f"config {n} of seed {seed}: {json.dumps(raw)}")
    print(", ".join(f"{outcome}: {n}" for outcome, n in counts.items()))
    print(", ".join(f"{kind}: {n}" for kind, n in kinds.items()))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
