"""What the model sees of a picture or a clip, or hears of a recording: its soft tokens over the file they were made of.

Takes a dump and the file.  What the numbers are, seen.py says; here they are drawn.
"""

from pathlib import Path

import numpy as np

from numgemma.atomic import whole
from numgemma.colours import HEAT, RED, WHITE
from numgemma.dump import Dump
from numgemma.extras import drawing
from numgemma.plots.soft_tokens import USUAL, attention, chosen, files, fitting, strength
from numgemma.prompt import audio, images
from numgemma.prompt.processors import Processor, unified

MEL_TICKS = (100, 300, 1000, 2000, 4000, 8000)  # Hz


def draw_picture(path, dump: Dump, p: Processor, index=0, look=USUAL):
    """Three views of a picture: its patches, its soft tokens, and the attention over it.  -> a matplotlib Figure"""
    seen = fitting(path, dump, p, "image", index)
    (pixels,), (start,), (rows, columns) = seen.frames, seen.starts, seen.grid
    found = attention(dump, look, start, seen.count)
    values = strength(dump, start, seen.count)
    views = 1 + (values is not None) + (found is not None)
    figure, axes = canvas(views, columns / rows)
    show_patches(axes[0], pixels, seen.s)
    tokens = f"(tokens {start} to {start + seen.count - 1})"
    axes[0].set_title(f"{Path(path).name} as the model sees it: {seen.size} {tokens}", **TITLE)
    if values is not None:
        heat = show_heat(axes[1], pixels, values.reshape(rows, columns), HEAT)
        scale(figure, axes[1:2], heat)
        axes[1].set_title("soft tokens as they enter the decoder:\nroot mean square of inputs_embeds", **TITLE)
    if found is not None:
        heat = show_heat(axes[-1], pixels, found.weights.reshape(rows, columns), glow(), low=0)
        scale(figure, axes[-1:], heat)
        axes[-1].set_title(f"{found.said}:\n{found.weights.sum():.1%} of it falls on this picture", **TITLE)
    return figure


def draw_video(path, dump: Dump, p: Processor, index=0, look=USUAL):
    """The same views of every frame of a clip, each view in one scale for all frames.  -> a matplotlib Figure"""
    seen = fitting(path, dump, p, "video", index)
    found = [x for start in seen.starts if (x := attention(dump, look, start, seen.count)) is not None]
    values = [x for start in seen.starts if (x := strength(dump, start, seen.count)) is not None]
    figure, axes = sheet(len(seen.frames), 1 + bool(values) + bool(found), seen.grid)
    said = ["patches"]
    for ax, pixels, time, start in zip(axes, seen.frames, seen.times, seen.starts, strict=True):
        show_patches(ax[0], pixels, seen.s)
        ax[0].set_title(f"{time}, tokens {start} to {start + seen.count - 1}", **SMALL)
    if values:
        scale = min(x.min() for x in values), max(x.max() for x in values)
        said.append("root mean square of each soft token in inputs_embeds, dark {:.2g}, bright {:.2g}".format(*scale))
        for ax, pixels, x in zip(axes, seen.frames, values, strict=True):
            show_heat(ax[1], pixels, x.reshape(seen.grid), HEAT, *scale)
    if found:
        most = max(x.weights.max() for x in found)
        said.append(f"{found[0].said}, grey 0, red {most:.2g}")
        for ax, pixels, x in zip(axes, seen.frames, found, strict=True):
            show_heat(ax[-1], pixels, x.weights.reshape(seen.grid), glow(), 0, most or 1)  # 0: beyond the window
            ax[-1].set_title(f"{x.weights.sum():.1%} of the attention", **SMALL)
    head = f"{Path(path).name} as the model sees it: {len(seen.frames)} frames of {seen.size} each"
    figure.suptitle("\n".join([head, "of each frame: " + ";\n".join(said)]), x=0.01, ha="left", fontsize=9)
    return figure


def sheet(frames, views, grid):
    """A Figure with `views` panels beside each other for every frame, and its panels by frame."""
    rows, columns = grid
    tall = min(max(rows / columns, 0.2), 5)
    across = max(1, round((frames * (tall + 0.15) / views) ** 0.5))  # frames beside each other: it comes out square
    down = -(-frames // across)
    width = min(max(12 / (across * views), 1.5), 3.4)
    figure, axes = panels(down, across * views, across * views * width, down * (width * tall + 0.25) + 0.8)
    for ax in axes[frames * views :]:
        ax.set_axis_off()
    return figure, [axes[i * views : (i + 1) * views] for i in range(frames)]


SMALL = {"loc": "left", "fontsize": 7}
TITLE = {"loc": "left", "fontsize": 9}


def canvas(views, aspect):
    """A Figure with views side by side; one above the other where they are wide."""
    if aspect > 2:
        return panels(views, 1, 10, min(2.2 + 9 / aspect * views, 16))
    return panels(1, views, 4.6 * views, min(0.9 + 4.6 / max(aspect, 0.3), 16))


def panels(down, across, width, height, **more):
    """A Figure that belongs to no window, and its axes row by row; sizes in inches."""
    drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(down, across, squeeze=False, **more).ravel())


def show_patches(ax, pixels, s: images.ImageSettings):
    """The resized picture, patches in thin lines and soft tokens in thick ones."""
    height, width = pixels.shape[:2]
    ax.imshow(pixels)
    for step, line in ((s.patch_size, 0.25), (s.cell, 0.9)):
        ax.vlines(np.arange(0, width + 1, step) - 0.5, -0.5, height - 0.5, WHITE, linewidth=line, alpha=0.8)
        ax.hlines(np.arange(0, height + 1, step) - 0.5, -0.5, width - 0.5, WHITE, linewidth=line, alpha=0.8)
    ax.set_axis_off()


def show_heat(ax, pixels, values, cmap, low=None, high=None):
    """One number for each soft token, over the picture in grey; colours from `low` to `high`, or to the ends."""
    height, width = pixels.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(pixels.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    ax.set_axis_off()
    return ax.imshow(values, cmap=cmap, vmin=low, vmax=high, extent=extent, interpolation="nearest")


def scale(figure, axes, heat):
    """The colours of a view in numbers, beside its last panel."""
    figure.colorbar(heat, cax=axes[-1].inset_axes((1.01, 0, 0.02, 1))).ax.tick_params(labelsize=7)


def glow():
    """A colour map from nothing to red: what is looked at glows, the rest of the picture stays grey."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    return LinearSegmentedColormap.from_list("glow", [to_rgba(RED, 0), to_rgba(RED, 0.9)])


def draw_sound(path, dump: Dump, p: Processor, index=0, look=USUAL):
    """A recording as the model hears it with the borders of its soft tokens, and what the dump says of each.

    -> a matplotlib Figure
    """
    frames, count = p.cls.heard(path, p)
    (start,) = chosen(files(dump, "audio", count), "audio", count, index, path)
    seen, values = attention(dump, look, start, count), strength(dump, start, count)
    curves = [] if values is None else [(values, "rms of\ninputs_embeds")]
    curves += [] if seen is None else [(seen.weights, "attention")]
    figure, axes = lanes(len(curves))
    hop = p.sound.frame_seconds
    borders = np.arange(count + 1) * p.sound.frames_per_soft_token * hop
    VIEWS.get(type(p.sound), show_mel)(figure, axes[0], frames, hop, borders, p)
    tokens = f"{count} soft tokens (tokens {start} to {start + count - 1})"
    axes[0].set_title(f"{Path(path).name} as the model hears it: {len(frames)} frames, {tokens}", **TITLE)
    for ax, (numbers, label) in zip(axes[1:], curves, strict=True):
        ax.stairs(numbers, borders, color=RED, fill=True)
        ax.set_ylabel(label, fontsize=8)
        ax.set_xlim(0, len(frames) * hop)
    if seen is not None:
        axes[-1].set_title(f"{seen.said}: {seen.weights.sum():.1%} of it falls on this recording", **TITLE)
    axes[-1].set_xlabel("seconds")
    return figure


def lanes(curves):
    """A Figure of one tall view and `curves` low ones below it, which share the time axis."""
    ratios = {"height_ratios": [3.4] + [1.2] * curves}
    return panels(1 + curves, 1, 10, 3.6 + 1.4 * curves, sharex=True, gridspec_kw=ratios)


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


def show_samples(figure, ax, frames, hop, borders, p: Processor):
    """The wave itself, frame after frame."""
    wave = frames.ravel()
    ax.plot(np.arange(len(wave)) / p.sound.sampling_rate, wave, color=RED, linewidth=0.4)
    ax.vlines(borders, -1, 1, "0.8", linewidth=0.5 if len(borders) < 120 else 0.12, zorder=0)
    ax.set_ylabel("samples")
    ax.set_xlim(0, len(frames) * hop)


# What a recording is to a model, where it is not log-mel, by the settings that make it.
VIEWS = {unified.FrameSettings: show_samples}


def write_figure(figure, path) -> None:
    """The whole file or none: SVG where its name says so, else PNG.  Raises InputError where it cannot be written."""
    with whole(path) as partial:
        figure.savefig(partial, format="svg" if Path(path).suffix == ".svg" else "png", dpi=130)
