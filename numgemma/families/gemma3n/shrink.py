"""The same Gemma 3n, smaller; the smallest with the same points, that its graph is learned on, and a prompt for it.

Kept: the rhythm of sliding and full layers, which share keys and which are sparse, the number of streams, every kind of
block of the towers, and how many soft tokens a picture and a sound become: the released processor fits every scale.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np

from numgemma.families.gemma3n.config import Gemma3nConfig, read_config
from numgemma.families.gemma4.shrink import Scale, is_token_key, kept_layers, listed, move_tokens, width
from numgemma.layers.mobilenet import Row, SharedAttention, spelled
from numgemma.prompt.audio import MEL_BINS
from numgemma.prompt.media import NO_MEDIA, Media

NARROW = 8  # numbers of every width
VOCABULARY, HARD = 64, 8  # of the twin: ids in all, and those of each tower's table
SOUND = 2  # soft tokens of a sound: one of its own, one of what stands behind it


def twin(raw: dict[str, Any], where: str, shallow=False) -> dict[str, Any]:
    """A config.json of the same points.  shallow: with some layers of each kind alone"""
    whole = read_config(raw, where)
    raw = retold(raw, whole, VOCABULARY, HARD)
    text = narrow_text(whole.text, shallow)
    if raw["model_type"] != "gemma3n":
        return raw | text
    raw["text_config"] |= text
    raw |= {"vision_soft_tokens_per_image": 1, "audio_soft_tokens_per_image": SOUND}
    if whole.vision:
        net = {"block_args": narrowed(whole.vision.net), "stem_size": NARROW, "msfa_output_resolution": 1}
        raw["vision_config"]["model_args"] = net
    if whole.audio:
        raw["audio_config"] |= narrow_audio(whole.audio, shallow)
    return raw


def shrunk(raw: dict[str, Any], scale: Scale, where: str) -> dict[str, Any]:
    """A config.json like this one, for a model of that scale.  raw: of family gemma3n or gemma3n_text"""
    whole = read_config(raw, where)
    raw = retold(raw, whole, min(scale.vocab, whole.text.vocab_size), max(16, scale.vocab // 128))
    text = shrunk_text(whole.text, scale)
    if raw["model_type"] != "gemma3n":
        return raw | text
    raw["text_config"] |= text
    if whole.vision:
        raw["vision_config"]["model_args"] = shrunk_net(whole.vision.net, scale)
    if whole.audio:
        raw["audio_config"] |= shrunk_audio(whole.audio, scale)
    return raw


# ids: the text's first, those of each tower's table behind them


def retold(raw, whole: Gemma3nConfig, vocabulary, hard) -> dict[str, Any]:
    """The same config.json with a smaller vocabulary.  hard: ids of each tower's table"""
    raw, nested = deepcopy(raw), raw["model_type"] == "gemma3n"
    towers = {name: c for name, c in (("vision", whole.vision), ("audio", whole.audio)) if c}
    hard = min([hard, *(c.vocab_size for c in towers.values())])
    table = min(whole.text.vocab_size_per_layer_input, vocabulary - hard * len(towers))
    ids = {i for part in (raw, raw.get("text_config") or {}) for i in told(part)}
    moved: dict[int, int] = {}
    end = table
    for name, c in towers.items():
        moved |= {i: end + min(i - c.vocab_offset, hard - 1) for i in ids if 0 <= i - c.vocab_offset < c.vocab_size}
        raw[f"{name}_config"] |= {"vocab_size": hard, "vocab_offset": end}
        end += hard
    outside = sorted(i for i in ids - moved.keys() if i >= table)
    moved |= {i: table - len(outside) + place for place, i in enumerate(outside)}
    sizes = {"vocab_size": max(end, min(vocabulary, whole.text.vocab_size)), "vocab_size_per_layer_input": table}
    raw = move_tokens(raw, moved)
    if not nested:
        return raw | sizes
    return raw | {"text_config": move_tokens(raw["text_config"], moved) | sizes}


def told(part) -> list[int]:
    """The token ids that a part of config.json names."""
    return [i for key, value in part.items() if is_token_key(key) for i in listed(value)]


# the text


def narrow_text(c, shallow) -> dict[str, Any]:
    """The keys of a text config that change.  c: Gemma3nTextConfig"""
    kept = list(range(c.num_hidden_layers))
    if shallow:  # the first layer of each kind, sparse or not, that makes keys, and the first that shares
        kinds = {(s.kind, s.sparsity > 0, s.kv_from == s.index): s.index for s in reversed(c.layers)}
        kept = sorted(kinds.values())
    return of_layers(c, kept) | {
        "hidden_size": NARROW,
        "hidden_size_per_layer_input": 2,
        "intermediate_size": [NARROW] * len(kept),
        "num_attention_heads": c.num_attention_heads // c.num_key_value_heads,
        "num_key_value_heads": 1,
        "head_dim": NARROW,
        "sliding_window": 2,
        "laurel_rank": 2,
    }


def of_layers(c, kept) -> dict[str, Any]:
    """The keys that list layers, of those kept.  c: Gemma3nTextConfig"""
    return {
        "num_hidden_layers": len(kept),
        "layer_types": [c.layer_types[i] for i in kept],
        "activation_sparsity_pattern": [c.activation_sparsity_pattern[i] for i in kept],
        "num_kv_shared_layers": sum(c.layers[i].kv_from != i for i in kept),
    }


def shrunk_text(c, scale: Scale) -> dict[str, Any]:
    """The keys of a text config that change.  c: Gemma3nTextConfig"""
    ratio = min(1, scale.hidden / c.hidden_size)
    kept, shared = kept_layers(c, scale)
    return of_layers(c, range(kept)) | {
        "num_kv_shared_layers": shared,
        "hidden_size": width(c.hidden_size, ratio),
        "hidden_size_per_layer_input": min(c.hidden_size_per_layer_input, scale.per_layer),
        "intermediate_size": [width(F, ratio) for F in c.intermediate_size[:kept]],
        "head_dim": width(c.head_dim, min(1, scale.head / c.head_dim)),
        "sliding_window": min(c.sliding_window, scale.window),
        "laurel_rank": width(c.laurel_rank, ratio),
    }


# the towers


def narrowed(net) -> list[list[dict[str, Any]]]:
    """The same blocks of one width everywhere, and one head of that width, as timm spells them."""
    return [[spelled(narrow_block(row)) for row in rows] for rows in net.stages]


def narrow_block(row: Row) -> Row:
    if isinstance(row, SharedAttention):
        return replace(row, after=NARROW, N=1, H=NARROW)
    return replace(row, after=NARROW, expand=1)


def shrunk_net(net, scale: Scale) -> dict[str, Any]:
    """What timm is told of a net with fewer and narrower blocks, whose maps are of the same size."""
    ratio = min(1, scale.tower / net.width)
    stages = [[spelled(shrunk_block(row, ratio)) for row in fewer(rows, scale.tower_layers)] for rows in net.stages]
    return {"block_args": stages, "stem_size": width(net.stem, ratio), "msfa_output_resolution": net.side}


def fewer(rows, most):
    """At most so many blocks of each kind, in their order."""
    kinds = [replace(row, before=0) for row in rows]
    return [row for i, row in enumerate(rows) if kinds[:i].count(kinds[i]) < most]


def shrunk_block(row: Row, ratio) -> Row:
    if isinstance(row, SharedAttention):
        return replace(row, after=width(row.after, ratio), N=min(4, row.N), H=width(row.H, ratio))
    return replace(row, after=width(row.after, ratio))


def shrunk_audio(c, scale: Scale) -> dict[str, Any]:
    """The keys of an audio config that change.  c: Gemma3nAudioConfig"""
    first, second = c.sscp_conv_channel_size
    return {
        "hidden_size": width(c.hidden_size, min(1, scale.tower / c.hidden_size)),
        "conf_num_attention_heads": min(4, c.conf_num_attention_heads),
        "conf_num_hidden_layers": min(c.conf_num_hidden_layers, scale.tower_layers),
        "sscp_conv_channel_size": [min(first, 2 * scale.channels), min(second, scale.channels)],
    }


def narrow_audio(c, shallow) -> dict[str, Any]:
    """The keys of an audio config that change.  c: Gemma3nAudioConfig"""
    return {
        "hidden_size": NARROW,
        "conf_num_attention_heads": 1,
        "conf_num_hidden_layers": 1 if shallow else c.conf_num_hidden_layers,
        "sscp_conv_channel_size": [1, 1],
    }


def sample(config: Gemma3nConfig, pictures: int, sounds: int):
    """The shortest prompt with so many pictures and sounds.  -> ids, media"""
    c, media = config.vision, {}
    pictures, sounds = pictures if c else 0, sounds if config.audio else 0
    seen, heard = config.vision_soft_tokens_per_image * pictures, config.audio_soft_tokens_per_image * sounds
    ids = np.array([3, *[config.image_token_id] * seen, *[config.audio_token_id] * heard, 3])
    if c and pictures:
        side = c.net.shrinks * c.net.side
        media["pixel_values"] = np.full((pictures, 3, side, side), 0.5, np.float32)
    if sounds:
        media["input_features"] = np.ones((sounds, 1, MEL_BINS), np.float32)
        media["input_features_mask"] = np.ones((sounds, 1), bool)
    return ids, Media(**media) if media else NO_MEDIA
