"""The figures that the course shares: each takes a dump and draws one fact about the run into a matplotlib Axes.

Without `ax` a new pyplot figure is made, which a notebook shows by itself.  Colours stay apart for every kind of colour
vision, and lines differ in their markers as well.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from numgemma import ops
from numgemma.colours import BLUE, GREEN, GREY, HEAT, ORANGE, RED
from numgemma.debug.blame.replay import Replay
from numgemma.debug.compare.result import FAULT
from numgemma.debug.compare.scoring import NOISE_TO
from numgemma.debug.measure.metrics import measure
from numgemma.dump import Dump
from numgemma.errors import InputError, meant
from numgemma.ops import definitions

SERIES = ((BLUE, "o"), (RED, "s"), (GREEN, "^"), (ORANGE, "D"), (GREY, "v"))
LABELLED = 64  # tokens that fit along an axis with their text; of longer runs the positions are shown


def attention_map(dump: Dump, layer: int, head: int | None = None, tokens: Sequence[str] | None = None, ax=None):
    """How much each token attends to each earlier one.  head None: the mean of all.  tokens: T texts  ->  Axes

    Raises InputError where the dump lacks the layer's probs, which `numgemma dump` keeps only when asked.
    """
    maps = point(dump, f"layers.{layer}.self_attn.probs").astype(np.float32)
    if head is not None and not 0 <= head < len(maps):
        raise InputError(f"Head {head} is not one of the {len(maps)} heads of layer {layer}; count from 0.")
    probs, who = (maps.mean(0), f"mean of {len(maps)} heads") if head is None else (maps[head], f"head {head}")
    T, S = probs.shape
    labels = texts(dump, tokens)
    side = min(9.0, 2.5 + 0.15 * T)
    ax = axes(ax, side + 0.8, side)
    hidden = np.arange(S) > np.arange(S - T, S)[:, None]
    image = ax.imshow(np.ma.masked_where(hidden, probs), cmap=HEAT, vmin=0, vmax=1, interpolation="nearest")
    ax.set_facecolor("#F2F2F2")
    name_ticks(ax.xaxis, labels[:S], rotation=90)
    name_ticks(ax.yaxis, labels[S - T :])
    ax.set_xlabel("key: the token that is read")
    ax.set_ylabel("query: the token that reads")
    ax.set_title(f"{kind_of(dump, layer)}layer {layer}, {who}", loc="left", fontsize=10)
    ax.figure.colorbar(image, ax=ax, label="share of attention (a row sums to 1)", shrink=0.7)
    return ax


def surprise(dump: Dump, tokens: Sequence[str] | None = None, ax=None):
    """How unexpected each token was, given those before it.  tokens: T texts for the axis  ->  Axes"""
    logits, ids = point(dump, "logits").astype(np.float64), np.array(token_ids(dump))
    labels = texts(dump, tokens)
    ax = axes(ax, min(14.0, 3 + 0.14 * len(ids)), 3)
    with np.errstate(divide="ignore"):
        chances = np.take_along_axis(definitions.softmax(logits[:-1]), ids[1:, None], -1)[:, 0]
        ax.bar(range(1, len(ids)), -np.log(chances), color=BLUE)
    name_ticks(ax.xaxis, labels, rotation=90)
    ax.set_xlim(-1, len(ids))
    ax.set_xlabel("token")
    ax.set_ylabel("surprise, in nats")
    return ax


def cosine_map(dump: Dump, name: str, tokens: Sequence[str] | None = None, ax=None):
    """How far the rows of a point with axes "T D" point the same way, each with each.  tokens: T texts  ->  Axes"""
    rows = point(dump, name).astype(np.float64)
    rows = rows / np.maximum(rms(rows, -1), 1e-300)[:, None]
    side = min(9.0, 2.5 + 0.15 * len(rows))
    ax = axes(ax, side + 0.8, side)
    image = ax.imshow(rows @ rows.T / rows.shape[1], cmap=HEAT, vmin=-1, vmax=1, interpolation="nearest")
    name_ticks(ax.xaxis, texts(dump, tokens), rotation=90)
    name_ticks(ax.yaxis, texts(dump, tokens))
    ax.set_xlabel("token")
    ax.set_ylabel("token")
    ax.set_title(name, loc="left", fontsize=10)
    ax.figure.colorbar(image, ax=ax, label="cosine of two rows (1: same direction)", shrink=0.7)
    return ax


def residual_norms(dump: Dump, ax=None):
    """Size of the stream after each layer, and of what each branch adds to it.  -> Axes"""
    layers = depth(dump)
    branches = {
        "added by attention": "post_attention_layernorm",
        "added by the feed-forward": "post_feedforward_layernorm",
        "added by the per-layer input": "post_per_layer_input_norm",
    }
    stream = [rms(point(dump, "embed_tokens")), *(rms(point(dump, f"layers.{i}.out")) for i in layers)]
    ax = axes(ax, 7, 4)
    ax.plot(range(-1, len(layers)), stream, color=BLUE, marker="o", label="the stream x, after the layer")
    for (label, name), (colour, marker) in zip(branches.items(), SERIES[1:], strict=False):
        if f"layers.0.{name}" in dump:
            sizes = [rms(point(dump, f"layers.{i}.{name}")) for i in layers]
            ax.plot(layers, sizes, color=colour, marker=marker, linestyle="--", label=label)
    ax.set_ylim(bottom=0)
    layer_axis(ax, layers)
    ax.set_ylabel("root mean square over tokens and channels")
    ax.legend(fontsize=8, frameon=False)
    return ax


def channel_norms(dump: Dump, names: Sequence[str], ax=None):
    """Size of every channel of points with axes "T D", over all tokens; the largest is named.  -> Axes"""
    channels = {name: rms(point(dump, name), 0) for name in names}
    ax = axes(ax, 8, 3.5)
    for (name, sizes), (colour, marker) in zip(channels.items(), SERIES, strict=False):
        top = int(sizes.argmax())
        ax.plot(sizes, color=colour, linewidth=1, label=f"{name}: largest {sizes[top]:.1f} in channel {top}")
        ax.plot(top, sizes[top], color=colour, marker=marker)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("channel, of D")
    ax.set_ylabel("root mean square over tokens")
    ax.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return ax


def rope_frequencies(dump: Dump, ax=None):
    """How many tokens each pair of lanes takes for a full turn, for each kind of layer.  -> Axes"""
    kinds = [match[1] for name in dump if (match := re.fullmatch(r"rotary_emb\.(\w+)\.cos", name))]
    if not kinds or len(point(dump, f"rotary_emb.{kinds[0]}.cos")) < 2:
        raise InputError("The dump shows no turn: it needs the points 'rotary_emb.*' of a run over two tokens or more.")
    spans = {kind: turns(dump, kind) for kind in kinds}
    ax = axes(ax, 7, 4)
    ceiling = 10 * max(tokens[np.isfinite(tokens)].max() for tokens in spans.values())
    for (kind, tokens), (colour, marker) in zip(spans.items(), SERIES, strict=False):
        pairs, label = np.arange(len(tokens)), kind.replace("_", " ")
        ends = np.isfinite(tokens)
        ax.plot(pairs[ends], tokens[ends], color=colour, marker=marker, label=label)
        if not ends.all():
            hollow = {"color": colour, "marker": marker, "markerfacecolor": "white", "linestyle": ""}
            ax.plot(pairs[~ends], np.full((~ends).sum(), ceiling), label=f"{label}: never turns", **hollow)
    ax.set_yscale("log")
    ax.set_xlabel("pair of lanes, i of (i, i + H/2)")
    ax.set_ylabel("tokens for one full turn")
    ax.locator_params(axis="x", integer=True)
    ax.legend(fontsize=8, frameon=False)
    return ax


def pair_strengths(dump: Dump, layers: Sequence[int], ax=None):
    """How much each pair of lanes moves the scores of a layer: their spread over keys by that pair alone.  -> Axes"""
    turned = [[point(dump, f"layers.{i}.self_attn.{x}_rope").astype(np.float64) for x in "qk"] for i in layers]
    ax = axes(ax, 7, 4)
    for layer, (q, k), (colour, marker) in zip(layers, turned, SERIES, strict=False):
        label = f"layer {layer}, {kind_of(dump, layer)}".removesuffix(", ")
        ax.plot(spread_by_pair(q, k), color=colour, marker=marker, label=label)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("pair of lanes, i of (i, i + H/2)")
    ax.set_ylabel("spread of scores, RMS over keys")
    ax.locator_params(axis="x", integer=True)
    ax.legend(fontsize=8, frameon=False)
    return ax


def gate_strengths(dump: Dump, tokens: Sequence[str] | None = None, ax=None):
    """How far each token opens the gate of each layer's own input.  tokens: T texts for the axis  ->  Axes"""
    layers = depth(dump)
    gates = [point(dump, f"layers.{i}.per_layer_input_gate") for i in layers]
    opened = np.stack([rms(ops.gelu_tanh(gate), -1) for gate in gates])
    ax = axes(ax, min(12, 3 + 0.2 * opened.shape[1]), 1.8 + 0.3 * len(layers))
    image = ax.imshow(opened, cmap=HEAT, aspect="auto", vmin=0, interpolation="nearest")
    name_ticks(ax.xaxis, texts(dump, tokens), rotation=90)
    ax.set_yticks(layers[:: 1 + len(layers) // 20])
    ax.set_xlabel("token")
    ax.set_ylabel("layer")
    ax.figure.colorbar(image, ax=ax, label="gate, root mean\nsquare over P")
    return ax


def routing_histogram(dump: Dump, layer: int, ax=None):
    """How many tokens each expert of a layer gets, beside an even share.  -> Axes"""
    ids, probs = (point(dump, f"layers.{layer}.router.{name}") for name in ("ids", "probs"))
    experts = probs.shape[1]
    ax = axes(ax, min(12, 4 + 0.12 * experts), 3.5)
    ax.bar(range(experts), np.bincount(ids.ravel(), minlength=experts), color=BLUE, label=f"layer {layer}")
    ax.axhline(ids.size / experts, color=RED, linestyle="--", label=f"an even share, {ids.size / experts:.1f}")
    ax.set_xlabel("expert")
    ax.set_ylabel(f"tokens, of {len(ids)}")
    ax.locator_params(integer=True)
    ax.legend(fontsize=8, frameon=False)
    return ax


def error_against_depth(truth: Dump, runs: Mapping[str, Dump], ax=None):
    """Relative error of the stream after each layer, for each of several runs of the same tokens.  -> Axes"""
    layers = depth(truth)
    names = ["embed_tokens", *(f"layers.{i}.out" for i in layers)]
    errors = {
        label: [measure(point(truth, n), point(run, n), truth.axes[n]).rel for n in names]
        for label, run in runs.items()
    }
    ax = axes(ax, 7, 4)
    for (label, found), (colour, marker) in zip(errors.items(), SERIES, strict=False):
        ax.plot(range(-1, len(layers)), found, color=colour, marker=marker, label=label)
    if any(map(any, errors.values())):  # a logarithm cannot show runs that are all equal
        ax.set_yscale("log")
    layer_axis(ax, layers)
    ax.set_ylabel("relative error of the stream (1e-2 is 1 %)")
    ax.legend(fontsize=8, frameon=False)
    return ax


def local_errors(found: Replay, ax=None):
    """Each step's own error, and all that is wrong with what it returns, in units of the noise.  -> Axes"""
    steps = [step for step in found.points if step.xfloor is not None]
    ax = axes(ax, 9, 4)
    own = [max(step.xfloor or 0, 1e-2) for step in steps]
    whole = [max(step.global_xfloor or step.xfloor or 0, 1e-2) for step in steps]
    ax.plot(whole, color=ORANGE, linewidth=1, label="the tensor, with what it inherited")
    wrong = [i for i, step in enumerate(steps) if step.state == FAULT]
    right = [i for i in range(len(steps)) if i not in wrong]
    ax.plot(right, [own[i] for i in right], "o", markersize=3, color=BLUE, label="the step alone")
    ax.plot(wrong, [own[i] for i in wrong], "X", markersize=8, color=RED, label="the step alone: at fault")
    ax.axhline(NOISE_TO, color=GREY, linestyle="--", linewidth=1)
    ax.set_yscale("log")
    ends = [i for i, step in enumerate(steps) if re.fullmatch(r"layers\.\d+\.out", step.name)]
    every = 1 + len(ends) // 20
    ax.set_xticks(ends[::every], [steps[i].name.removesuffix(".out") for i in ends[::every]], fontsize=8)
    ax.set_xlabel("points in order of execution; a layer ends at its name")
    ax.set_ylabel("error, in units of the noise")
    ax.legend(fontsize=8, frameon=False)
    return ax


# what they share


def axes(ax, width, height):
    """The given Axes, or those of a new figure of that size in inches."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def point(dump: Dump, name: str):
    """One point of the dump.  Raises InputError where it was not recorded."""
    if name not in dump:
        near = meant(name, dump)
        step = "if the model has it, dump again with it among the --points"
        raise InputError(f"The dump has no point '{name}'{near}; {step}.")
    return dump[name]


def depth(dump: Dump) -> range:
    """The layers that a dump has points of."""
    found = [int(match[1]) for name in dump if (match := re.match(r"layers\.(\d+)\.", name))]
    if not found:
        raise InputError("The dump has no point of any layer; record it again with --points 'layers.*' '*'.")
    return range(max(found) + 1)


def last_map(dump: Dump) -> int:
    """The last full-attention layer with probs, or the last layer with probs."""
    maps = [i for i in depth(dump) if f"layers.{i}.self_attn.probs" in dump]
    if not maps:
        raise InputError("The dump has no *.self_attn.probs; dump again with --points '*.probs' among the globs.")
    return max((i for i in maps if kind_of(dump, i).startswith("full")), default=maps[-1])


def rms(x, axis=None):
    """Root mean square, in float64."""
    return np.sqrt((x.astype(np.float64) ** 2).mean(axis))


def turns(dump, kind):
    """Tokens that each pair of lanes takes for a full turn; infinite where it never turns.  -> H/2"""
    cos, sin = (point(dump, f"rotary_emb.{kind}.{name}")[1].astype(np.float64) for name in ("cos", "sin"))
    with np.errstate(divide="ignore"):
        return (2 * np.pi / np.abs(np.arctan2(sin, cos)))[: len(cos) // 2]


def spread_by_pair(q, k):
    """RMS over heads, queries and earlier keys of a pair's part of the scores, less its mean over the keys of a query.

    A softmax does not see that mean.  q: T N H   k: T K H  ->  H/2
    """
    T, N, H = q.shape
    k = np.repeat(k, N // k.shape[1], axis=1)
    seen = np.tri(T, dtype=bool)
    found = []
    for i in range(H // 2):
        scores = np.einsum("tnh,snh->nts", q[..., [i, i + H // 2]], k[..., [i, i + H // 2]])
        mean = (scores * seen).sum(-1, keepdims=True) / seen.sum(-1, keepdims=True)
        found.append(np.sqrt((((scores - mean) * seen) ** 2).sum() / (N * seen.sum())))
    return np.array(found)


def kind_of(dump, layer) -> str:
    kinds = (dump.meta.get("model") or {}).get("layer_kinds") or ()
    return f"{kinds[layer].replace('_', ' ')}, " if layer < len(kinds) else ""


def token_ids(dump) -> list[int]:
    if dump.meta.get("ids") is None:
        raise InputError("The dump does not say which token ids were run; dump again with an engine that does.")
    return dump.meta["ids"]


def texts(dump, tokens) -> list[str]:
    """A label for each token: its text where that is given, or else its id."""
    ids = token_ids(dump)
    if tokens is not None and len(tokens) != len(ids):
        raise InputError(f"There are {len(tokens)} texts for the {len(ids)} tokens of the dump; give one for each.")
    plain = [str(token).strip(" ") or "␣" for token in (ids if tokens is None else tokens)]
    return [token.replace("\n", "\\n").replace("$", r"\$") for token in plain]


def name_ticks(axis, labels, **style):
    """One tick per token with its text, or where they are too many, positions."""
    if len(labels) > LABELLED:
        return
    axis.set_ticks(range(len(labels)), labels, fontsize=8, **style)


def layer_axis(ax, layers):
    """Layers along x, and before the first the embedding."""
    step = 1 + len(layers) // 20
    ax.set_xticks([-1, *layers[::step]], ["embedding", *map(str, layers[::step])])
    ax.set_xlabel("layer")
