"""Random configs, text and multimodal, against Transformers: `make test-hf-random`, or

    python tests/random_configs.py TEXT MULTIMODAL [SEED]

Logits of both are compared in float32. Where they are further apart than float32 explains, both are run in float64:
if they agree there, the difference is rounding, and it is counted; if not, it is a fault, and the config is printed.
"""

import json
import random
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import tiny  # noqa: E402
from closeness import relative  # noqa: E402

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


def multimodal_config(rng):
    """A random multimodal config, and what its prompt holds.  -> name, config, content"""
    name = rng.choice(list(tiny.MULTIMODAL))
    raw = dict(tiny.MULTIMODAL[name])
    raw["text_config"] = text_config(rng, raw["text_config"])
    heads = rng.choice([1, 2, 3])
    tower = {"num_hidden_layers": rng.choice([1, 2, 3]), "num_attention_heads": heads, "num_key_value_heads": heads}
    raw["vision_config"] = raw["vision_config"] | tower | {"head_dim": rng.choice([4, 8, 12])}
    sizes = [(3, 3), (6, 3), (3, 9), (9, 6), (12, 9)]
    content = {"images": rng.sample(sizes, rng.choice([0, 1, 2]))}
    if raw.get("audio_config"):
        raw["audio_config"] = raw["audio_config"] | {"num_hidden_layers": rng.choice([1, 2, 3])}
        content["clips"] = [rng.randint(6, 90) for _ in range(rng.choice([0, 1, 2]))]
    if not any(content.values()):
        content["images"] = [(6, 6)]
    return name, raw, content


def logits(folder, ids, media, dtype):
    """Of Transformers and of ours."""
    from numgemma.debug.capture import hooks

    model = numgemma.load(folder, dtype)
    theirs = Dump(hooks.describe(model, ids, dtype, ["logits"]))
    hooks.capture(model, model.checked(ids, media), theirs, dtype, ["logits"], media)
    return np.asarray(theirs["logits"], np.float64), np.asarray(model.logits(ids, media), np.float64)


def one(rng, multimodal):
    """ "same", "rounding" or "fault", and the config."""
    if multimodal:
        name, raw, content = multimodal_config(rng)
        ids, arrays = tiny.multimodal_prompt(name, content, seed=rng.randrange(1000))
        media = read_media(arrays)
    else:
        raw = text_config(rng, tiny.VARIANTS[rng.choice(list(tiny.VARIANTS))])
        ids, media = tiny.prompt(raw, rng.choice([1, 2, 9, 40]), rng.randrange(1000)), NO_MEDIA
    with tempfile.TemporaryDirectory() as base:
        folder = tiny.write(Path(base) / "ckpt", raw, tiny.random_tensors(raw, rng.randrange(1000)), "float32")
        theirs, ours = logits(folder, ids, media, "float32")
        if relative(theirs, ours) <= NEAR:
            return "same", raw
        return ("rounding" if is_rounding(folder, ids, media, theirs, ours) else "fault"), raw


def is_rounding(folder, ids, media, theirs, ours):
    """Whether two float32 runs differ by rounding alone: in float64 they agree, or are as far from ours in float64."""
    if media is NO_MEDIA:
        return relative(*logits(folder, ids, media, "float64")) <= EXACT
    # Transformers' audio tower makes float32 whatever it is given, so its truth cannot be asked
    truth = np.asarray(numgemma.load(folder, "float64").logits(ids, media))
    return relative(truth, theirs) <= 10 * max(relative(truth, ours), NEAR / 10)


def run(text, multimodal, seed):
    counts, faults = {"same": 0, "rounding": 0, "fault": 0}, []
    for n in range(text + multimodal):
        outcome, raw = one(random.Random(f"{seed} {n}"), n >= text)
        counts[outcome] += 1
        if outcome == "fault":
            faults.append((n, raw))
    return counts, faults


def main(words):
    text, multimodal = (int(word) for word in words[:2])
    seed = int(words[2]) if len(words) > 2 else random.randrange(10**6)
    print(f"{text} text configs and {multimodal} multimodal ones of seed {seed}", flush=True)
    counts, faults = run(text, multimodal, seed)
    for n, raw in faults:
        print(f"config {n} of seed {seed}: {json.dumps(raw)}")
    print(", ".join(f"{outcome}: {n}" for outcome, n in counts.items()))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
