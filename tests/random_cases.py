"""Random checkpoints of every family, and a prompt for each: configs near the small ones of the other tests.

A family enters by a function in TEXT or MULTIMODAL: random.Random -> Case.  All are drawn from equally often.
"""

import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import tiny
import tiny3n
import tiny_drafter
import tiny_embedding

PICTURES = [(3, 3), (6, 3), (3, 9), (9, 6), (12, 9)]  # patches across and down


class Case(NamedTuple):
    """A checkpoint to be written, and what one run of it takes."""

    raw: dict  # config.json
    ids: Any  # of no tokens where all that a run takes has a name
    arrays: dict  # by name: a processor's, and others
    tensors: Callable[[dict, int], dict] = tiny.random_tensors  # config, seed -> every tensor
    write: Callable[..., Path] = tiny.write  # folder, config, tensors, dtype -> the folder
    mask: str = "intended"  # of pictures


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


def kinds(rng, most):
    """Of each layer: some slide, and the last does not."""
    return [tiny.KINDS[letter] for letter in ["s", *rng.choices("sf", k=rng.randint(0, most - 2)), "f"]]


def picture_tower(rng):
    heads = rng.choice([1, 2, 3])
    layers = rng.choice([1, 2, 3])
    tower = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads}
    return tower | {"head_dim": rng.choice([4, 8, 12])}


def sound_tower(rng):
    mel = rng.choice([16, 64, 128])
    return {"num_hidden_layers": rng.choice([1, 2, 3]), "subsampling_conv_channels": [mel, rng.choice([1, 4, 6])]}


def clips(rng):
    """Frames of each."""
    return [rng.randint(6, 90) for _ in range(rng.choice([0, 1, 2]))]


def text_length(rng):
    return rng.choice([1, 2, 9, 40])


# -- Gemma 4 and 12B


def gemma4_text(rng):
    raw = text_config(rng, rng.choice([*tiny.VARIANTS.values(), tiny.UNIFIED_TEXT]))
    return Case(raw, tiny.prompt(raw, text_length(rng), rng.randrange(1000)), {})


def gemma4_case(rng):
    """E4B, 26B or 31B, with pictures and sound of random sizes."""
    name = rng.choice(list(tiny.MULTIMODAL))
    raw = dict(tiny.MULTIMODAL[name])
    raw["text_config"] = text_config(rng, raw["text_config"])
    raw["vision_config"] = raw["vision_config"] | picture_tower(rng)
    content, mel = {"images": rng.sample(PICTURES, rng.choice([0, 1, 2]))}, 128
    if raw.get("audio_config"):
        raw["audio_config"] = raw["audio_config"] | sound_tower(rng)
        content["clips"], mel = clips(rng), raw["audio_config"]["subsampling_conv_channels"][0]
    if not any(content.values()):
        content["images"] = [(6, 6)]
    return Case(raw, *tiny.multimodal_prompt(name, content, rng.randrange(1000), mel))


def unified_case(rng):
    """12B, whose pictures and sound need no tower."""
    raw = tiny.UNIFIED | {"text_config": text_config(rng, tiny.UNIFIED_TEXT)}
    wide = rng.choice([12, 36, 40])
    raw["vision_config"] = raw["vision_config"] | {"mm_embed_dim": wide, "output_proj_dims": wide}
    sizes = [(1, 2), (3, 2), (4, 5), (2, 2)]
    content = {"images": rng.sample(sizes, rng.choice([1, 2])), "clips": [rng.randint(1, 9) for _ in range(2)]}
    content |= {"videos": [[(2, 1)] * rng.choice([1, 2])]} if rng.random() < 0.3 else {}
    return Case(raw, *tiny.unified_prompt(content, seed=rng.randrange(1000)), mask=mask(rng))


def mask(rng):
    """Of the two that there are."""
    return rng.choice(["intended", "transformers"])


# -- Gemma 3n


def text_config_3n(rng):
    """A random Gemma 3n text config: streams, ranks, sparse gates, widths by layer, who shares whose keys."""
    K, L = rng.choice([1, 2, 3]), rng.choice([4, 6, 8])
    own = rng.randint(2, L)  # layers with keys of their own: one of each kind at least
    layers = [tiny.KINDS[letter] for letter in ["s", "f", *rng.choices("sf", k=L - 2)]]
    streams, N = rng.choice([2, 3, 4, 5]), K * rng.choice([1, 2, 4])
    return tiny3n.TEXT | {
        "hidden_size": N * rng.choice([4, 6, 8]),  # Transformers wants a multiple
        "hidden_size_per_layer_input": rng.choice([8, 24]),
        "intermediate_size": [rng.choice([40, 72, 80]) for _ in range(L)],
        "num_hidden_layers": L,
        "layer_types": layers,
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


def of_3n(raw, ids, arrays):
    return Case(raw, ids, arrays, tiny3n.random_tensors, tiny3n.write)


def gemma3n_text(rng):
    return of_3n(text_config_3n(rng), tiny3n.prompt(text_length(rng), rng.randrange(1000)), {})


def gemma3n_case(rng):
    """Transformers builds its picture tower, which is timm's, for sound alone too."""
    heads = rng.choice([1, 2, 3])
    tower = {"conf_num_hidden_layers": rng.choice([1, 2, 3]), "conf_num_attention_heads": heads}
    chunk = rng.choice([2, 4, 8])
    tower |= {"hidden_size": 8 * heads, "conf_attention_chunk_size": chunk, "conf_attention_context_left": chunk + 1}
    raw = tiny3n.WHOLE | {"text_config": text_config_3n(rng), "audio_config": tiny3n.AUDIO | tower}
    sounds = tuple(rng.randint(20, 100) for _ in range(rng.choice([0, 1, 2])))
    pictures = rng.choice([1, 2]) if not sounds else rng.choice([0, 1])
    return of_3n(raw, *tiny3n.multimodal_prompt(pictures, sounds, seed=rng.randrange(1000)))


# -- drafters


def drafter_case(rng):
    """One step: any layers of its own, a head in clusters or whole, keys that the window hides, padding."""
    target = text_config(rng, rng.choice(list(tiny_drafter.TARGETS.values())))
    layers = kinds(rng, 5)
    E = rng.choice([None, 1, 13, 16, 52, 208])  # clusters, which divide the vocabulary
    raw = tiny_drafter.of(target) | {"backbone_hidden_size": rng.choice([12, 48, 80])}
    raw["text_config"] = raw["text_config"] | {
        "hidden_size": rng.choice([16, 40, 56]),
        "intermediate_size": rng.choice([8, 33, 56]),
        "num_attention_heads": 12 * rng.choice([1, 2]),
        "num_hidden_layers": len(layers),
        "num_kv_shared_layers": len(layers),
        "layer_types": layers,
    }
    if E is not None:
        raw |= {"use_ordered_embeddings": True, "num_centroids": E, "centroid_intermediate_top_k": rng.randint(1, E)}
    keys = rng.choice([1, 2, 9, 60])
    given = tiny_drafter.step(raw, rng.randrange(1000), keys, kept=rng.randint(1, keys))
    given["attention_mask"][:, : rng.choice([0, 0, rng.randrange(keys)])] = 0  # the newest key is never padding
    return Case(raw, (), given, tiny_drafter.tensors)


# -- DiffusionGemma


def diffusion_text(rng):
    return diffusion(rng, {})


def diffusion_pictures(rng):
    return diffusion(rng, {"images": rng.sample(PICTURES, rng.choice([1, 2]))})


def diffusion(rng, content):
    """One pass: a text before it, a canvas of any length, with or without what was thought of it.

    No window of 1: there Transformers' cache keeps all of the text, for [-1 + 1:] is the whole, and means to keep none.
    """
    text = text_config(rng, tiny.MOE) | {"model_type": "diffusion_gemma_text", "use_bidirectional_attention": "vision"}
    text |= {"final_logit_softcapping": rng.choice([1.0, 30.0]), "sliding_window": max(2, text["sliding_window"])}
    canvas = rng.choice([1, 2, 6, 20])
    raw = tiny.DIFFUSION | {
        "canvas_length": canvas,
        "text_config": {key: value for key, value in text.items() if key not in tiny.LEFT_OUT},
        "vision_config": tiny.DIFFUSION["vision_config"] | picture_tower(rng),
    }
    given = tiny.diffusion_inputs(content, rng.random() < 0.7, rng.randrange(1000), canvas)
    return Case(raw, (), given, mask=mask(rng))


# -- EmbeddingGemma 2


def text_config_embedding(rng):
    """Both spellings of what full layers have; vectors narrower and wider than the stream."""
    layers, N = kinds(rng, 7), 12
    full = {"head_dim": rng.choice([8, 16, 32, 64]), "num_key_value_heads": rng.choice([1, 2, 3, 12])}
    raw = tiny_embedding.TEXT | {
        "hidden_size": rng.choice([16, 24, 48, 56]),
        "hidden_size_per_layer_input": rng.choice([8, 24]),
        "embedding_dim": rng.choice([3, 8, 60]),
        "intermediate_size": rng.choice([8, 33, 72]),
        "num_hidden_layers": len(layers),
        "layer_types": layers,
        "num_attention_heads": N,
        "num_key_value_heads": rng.choice([1, 2, 3, 12]),
        "head_dim": rng.choice([4, 8, 16, 18]),
        "per_layer_config": {str(i): full for i, kind in enumerate(layers) if kind == "full_attention"},
        "sliding_window": rng.choice([1, 2, 3, 7, 50]),
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": rng.choice([100.0, 10_000.0, 1_000_000.0])}
            for kind in tiny.KINDS.values()
        },
    }
    if rng.random() < 0.3:
        del raw["per_layer_config"]
        raw |= {"global_head_dim": full["head_dim"], "num_global_key_value_heads": full["num_key_value_heads"]}
    return raw


def embedding_text(rng):
    raw = text_config_embedding(rng)
    ids = tiny_embedding.prompt(rng.choice([2, 3, 9, 40]), rng.randrange(1000))
    return Case(raw, ids, {}, write=tiny_embedding.write)


def embedding_case(rng):
    """Pictures, clips of frames and sound of random sizes."""
    raw = tiny_embedding.WHOLE | {"text_config": text_config_embedding(rng)}
    raw["vision_config"] = raw["vision_config"] | picture_tower(rng)
    raw["audio_config"] = raw["audio_config"] | sound_tower(rng)
    content = {"images": rng.sample(PICTURES, rng.choice([0, 1, 2])), "clips": clips(rng)}
    content["videos"] = [[rng.choice(PICTURES)] * rng.choice([1, 2]) for _ in range(rng.choice([0, 0, 1]))]
    mel = raw["audio_config"]["subsampling_conv_channels"][0]
    prompt = tiny.multimodal_prompt("e4b", content, rng.randrange(1000), mel)
    return Case(raw, *prompt, write=tiny_embedding.write)


TEXT = (gemma4_text, gemma4_text, gemma3n_text, drafter_case, diffusion_text, embedding_text)
TIMM = (gemma3n_case,) if find_spec("timm") else ()
MULTIMODAL = (gemma4_case, gemma4_case, unified_case, diffusion_pictures, embedding_case, *TIMM)


def case(seed, n, multimodal) -> Case:
    """The n-th of this seed."""
    families = MULTIMODAL if multimodal else TEXT
    return families[n % len(families)](random.Random(f"{seed} {n}"))
