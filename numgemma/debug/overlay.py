"""What the model sees of a picture, or hears of a recording: its soft tokens laid over the file they were made of.

Takes a dump and the file.  Which tokens stand for the file is found in the dump's ids: an unbroken run of one id, as
long as the file has soft tokens.
"""

from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from numgemma import audio, images
from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.processor import Processor, with_budget
from numgemma.whole import whole

WHITE, ORANGE = "#FFFFFF", "#D55E00"
HEAT = "cividis"  # even for every kind of colour vision
MEL_TICKS = (100, 300, 1000, 2000, 4000, 8000)  # Hz


class Look(NamedTuple):
    """Whose attention is drawn.  None: of the last token; in the last full-attention layer; the mean of all heads."""

    token: int | None = None
    layer: int | None = None
    head: int | None = None


USUAL = Look()


class Attention(NamedTuple):
    """How much one token attends to each soft token."""

    weights: np.ndarray  # O
    said: str  # whose they are


# finding things in a dump


def runs(ids, count) -> list[int]:
    """Positions of the first tokens of all unbroken runs of exactly `count` equal ids."""
    starts, at = [], 0
    for _, run in groupby(ids):
        length = len(list(run))
        starts += [at] * (length == count)
        at += length
    return starts


def soft_run(ids, count, index, path) -> int:
    """Position of the first token of the index-th such run."""
    starts = runs(ids, count)
    if not 0 <= index < len(starts):
        fault = f"makes {count} soft tokens, and the dump has {len(starts)} runs of so many equal ids"
        raise InputError(f"{path}: {fault}; give the file it was made with, and an --index below that number.")
    return starts[index]


def fitting(path, dump: Dump, p: Processor, index):
    """Settings of the budget at which the picture was dumped: the given one, or else another that fits the ids."""
    given = p.image.max_soft_tokens
    counts = {}
    for budget in dict.fromkeys((given, *images.BUDGETS)):
        s = with_budget(p, budget).image
        counts[budget] = images.soft_tokens(images.image_arrays(path, s)[1], s)
        if runs(dump.meta["ids"], counts[budget]):
            return s, soft_run(dump.meta["ids"], counts[budget], index, path)
    return p.image, soft_run(dump.meta["ids"], counts[given], index, path)


def attention(dump: Dump, look: Look, start, count) -> Attention | None:
    """From the dump's *.probs; None where it has none and none was asked for."""
    kinds = dump.meta["model"].get("layer_kinds", ())
    layers = [i for i in range(len(kinds)) if f"layers.{i}.self_attn.probs" in dump]
    layer = look.layer
    if layer is None:
        layer = max((i for i in layers if kinds[i] == "full_attention"), default=max(layers, default=None))
    if layer not in layers:
        if look == USUAL:
            return None
        name = "*.self_attn.probs" if layer is None else f"layers.{layer}.self_attn.probs"
        raise InputError(f"The dump has no {name}; dump again with --points '*.probs' beside what you need.")
    probs = dump[f"layers.{layer}.self_attn.probs"]
    heads, tokens = probs.shape[:2]
    token = tokens - 1 if look.token is None else look.token
    if not -tokens <= token < tokens:
        raise InputError(f"--token {token} is not one of the {tokens} tokens of the dump.")
    if look.head is not None and not 0 <= look.head < heads:
        raise InputError(f"--head {look.head} is not one of the {heads} heads of layer {layer}.")
    chosen = slice(None) if look.head is None else slice(look.head, look.head + 1)
    weights = np.asarray(probs[chosen, token, start : start + count], np.float64).mean(axis=0)
    who = f"mean of {heads} heads" if look.head is None else f"head {look.head}"
    return Attention(weights, f"attention of token {token % tokens}, layer {layer} ({kinds[layer]}), {who}")


def strength(dump: Dump, start, count):
    """Root mean square of each soft token as it enters the decoder; None where the dump has no inputs_embeds.  -> O"""
    if "inputs_embeds" not in dump:
        return None
    return np.sqrt((np.asarray(dump["inputs_embeds"][start : start + count], np.float64) ** 2).mean(axis=-1))


# drawing


def draw_picture(path, dump: Dump, p: Processor, index=0, look=USUAL):
    """Three views of a picture: its patches, its soft tokens, and the attention over it.  -> a matplotlib Figure"""
    s, start = fitting(path, dump, p, index)
    pixels = images.resized(images.open_image(path), s)
    rows, columns = pixels.shape[0] // s.cell, pixels.shape[1] // s.cell
    seen = attention(dump, look, start, rows * columns)
    values = strength(dump, start, rows * columns)
    views = 1 + (values is not None) + (seen is not None)
    figure, axes = canvas(views, columns / rows)
    last, k = start + rows * columns - 1, s.pooling_kernel_size
    show_patches(axes[0], pixels, s)
    axes[0].set_title(
        f"{Path(path).name} as the model sees it: {pixels.shape[1]} x {pixels.shape[0]} pixels,\n"
        f"{columns * k} x {rows * k} patches, {columns} x {rows} soft tokens (tokens {start} to {last})",
        **TITLE,
    )
    if values is not None:
        show_heat(figure, axes[1], pixels, values.reshape(rows, columns), HEAT)
        axes[1].set_title("soft tokens as they enter the decoder:\nroot mean square of inputs_embeds", **TITLE)
    if seen is not None:
        show_heat(figure, axes[-1], pixels, seen.weights.reshape(rows, columns), glow(), low=0)
        axes[-1].set_title(f"{seen.said}:\n{seen.weights.sum():.1%} of it falls on this picture", **TITLE)
    return figure


TITLE = {"loc": "left", "fontsize": 9}


def canvas(views, aspect):
    """A Figure that belongs to no window, views side by side; one above the other where they are wide."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stacked = aspect > 2
    width, height = (10, 2.2 + 9 / aspect * views) if stacked else (4.6 * views, 0.9 + 4.6 / max(aspect, 0.3))
    figure = Figure(figsize=(width, min(height, 16)), layout="constrained")
    FigureCanvasAgg(figure)
    shape = (views, 1) if stacked else (1, views)
    return figure, list(figure.subplots(*shape, squeeze=False).ravel())


def show_patches(ax, pixels, s: images.ImageSettings):
    """The resized picture, patches in thin lines and soft tokens in thick ones."""
    height, width = pixels.shape[:2]
    ax.imshow(pixels)
    for step, line in ((s.patch_size, 0.25), (s.cell, 0.9)):
        ax.vlines(np.arange(0, width + 1, step) - 0.5, -0.5, height - 0.5, WHITE, linewidth=line, alpha=0.8)
        ax.hlines(np.arange(0, height + 1, step) - 0.5, -0.5, width - 0.5, WHITE, linewidth=line, alpha=0.8)
    ax.set_axis_off()


def show_heat(figure, ax, pixels, values, cmap, low=None):
    """One number for each soft token, over the picture in grey; the colours begin at `low`, or at the smallest."""
    height, width = pixels.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(pixels.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    heat = ax.imshow(values, cmap=cmap, vmin=low, extent=extent, interpolation="nearest")
    figure.colorbar(heat, cax=ax.inset_axes((1.01, 0, 0.02, 1))).ax.tick_params(labelsize=7)
    ax.set_axis_off()


def glow():
    """A colour map from nothing to orange: what is looked at glows, the rest of the picture stays grey."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    return LinearSegmentedColormap.from_list("glow", [to_rgba(ORANGE, 0), to_rgba(ORANGE, 0.9)])


def draw_sound(path, dump: Dump, p: Processor, index=0, look=USUAL):
    """The log-mel spectrogram of a recording with the borders of its soft tokens, and what the dump says of each.

    -> a matplotlib Figure
    """
    mel, mask = (x[0] for x in audio.sound_arrays([path], p.sound))
    count = audio.soft_tokens(mask)
    start = soft_run(dump.meta["ids"], count, index, path)
    seen, values = attention(dump, look, start, count), strength(dump, start, count)
    curves = [] if values is None else [(values, "rms of\ninputs_embeds")]
    curves += [] if seen is None else [(seen.weights, "attention")]
    figure, axes = lanes(len(curves))
    hop = p.sound.hop_length / p.sound.sampling_rate
    borders = np.arange(count + 1) * audio.FRAMES_PER_SOFT_TOKEN * hop
    show_mel(figure, axes[0], mel[mask], hop, borders, p)
    tokens = f"{count} soft tokens (tokens {start} to {start + count - 1})"
    axes[0].set_title(f"{Path(path).name} as the model hears it: {mask.sum()} frames, {tokens}", **TITLE)
    for ax, (numbers, label) in zip(axes[1:], curves, strict=True):
        ax.stairs(numbers, borders, color=ORANGE, fill=True)
        ax.set_ylabel(label, fontsize=8)
        ax.set_xlim(0, mask.sum() * hop)
    if seen is not None:
        axes[-1].set_title(f"{seen.said}: {seen.weights.sum():.1%} of it falls on this recording", **TITLE)
    axes[-1].set_xlabel("seconds")
    return figure


def lanes(curves):
    """A Figure of one tall view and `curves` low ones below it, which share the time axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6 + 1.4 * curves), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        1 + curves, 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": [3.4] + [1.2] * curves}
    )
    return figure, list(grid.ravel())


def show_mel(figure, ax, mel, hop, borders, p: Processor):
    """Frames from left to right, mel bins from low to high."""
    s = p.sound
    heat = ax.imshow(
        mel.T, cmap=HEAT, origin="lower", aspect="auto", extent=(0, len(mel) * hop, -0.5, s.feature_size - 0.5)
    )
    ax.vlines(borders, -0.5, s.feature_size - 0.5, WHITE, linewidth=0.5 if len(borders) < 120 else 0.12, alpha=0.8)
    centres = audio.mel_filters(s).argmax(axis=0) * s.sampling_rate / s.fft_length
    ticks = [hertz for hertz in MEL_TICKS if s.min_frequency <= hertz <= s.max_frequency]
    ax.set_yticks([int(np.abs(centres - hertz).argmin()) for hertz in ticks], [f"{hertz:,}" for hertz in ticks])
    ax.set_ylabel("Hz")
    ax.set_xlim(0, len(mel) * hop)
    figure.colorbar(heat, ax=ax, pad=0.01, label="log mel")


def write_png(figure, path) -> None:
    """The whole PNG file or none.  Raises InputError where it cannot be written."""
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=130)
