"""What a dump holds of a picture, a clip or a recording: where its soft tokens stand, how large, how much looked at.

Which tokens stand for a file the dump says (its meta's `media`); where it does not, they are an unbroken run of one
id, as long as the file has soft tokens.
"""

import math
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.incoming import explained, open_regular
from numgemma.prompt import images, video
from numgemma.prompt.processor import with_budget
from numgemma.prompt.processors import Processor

KINDS = {"image": "pictures", "audio": "recordings", "video": "clips"}


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


# a file as it is seen


class Sight(NamedTuple):
    """A picture, or the frames of a clip, as the model sees them; and where their soft tokens begin."""

    frames: list[np.ndarray]  # height width 3, uint8
    times: list[str]  # of each frame; none of a picture
    s: Any  # of its pictures
    starts: list[int]

    @property
    def grid(self):
        """Rows and columns of soft tokens."""
        height, width = self.frames[0].shape[:2]
        return height // self.s.cell, width // self.s.cell

    @property
    def count(self):
        rows, columns = self.grid
        return rows * columns

    @property
    def size(self):
        """In words."""
        (height, width), (rows, columns), k = self.frames[0].shape[:2], self.grid, self.s.pooling_kernel_size
        return f"{width} x {height} pixels,\n{columns * k} x {rows * k} patches, {columns} x {rows} soft tokens"


def read_image(path, p: Processor) -> Sight:
    return Sight([p.cls.seen(path, p.image)], [], p.image, [])


def read_video(path, p: Processor) -> Sight:
    clip = video.video_arrays(path, p.frame, p.num_frames)
    frames = [whole_picture(*shot, p.frame) for shot in zip(clip.patches, clip.places, strict=True)]
    return Sight(frames, video.timestamps(clip.seconds), p.frame, [])


def image_size(path, p: Processor):
    """Height, width, and how many frames are looked at."""
    picture = images.open_image(path)
    return picture.height, picture.width, 1


def video_size(path, p: Processor):
    """The same of a clip, without decoding it."""
    with open_regular(path) as file, explained(path), video.opened(path, file) as clip:
        total, stream = len(video.read_index(path, clip).times), clip.streams.video[0]
        return stream.height, stream.width, min(total, p.num_frames)


def whole_picture(patches, places, s: images.ImageSettings):
    """Patches put together again.  I X, I 2  ->  height width 3, uint8"""
    real, size = places[:, 0] >= 0, s.patch_size
    columns, rows = places[real].max(axis=0) + 1
    squares = np.rint(patches[real] * 255).astype(np.uint8).reshape(rows, columns, size, size, 3)
    return squares.swapaxes(1, 2).reshape(rows * size, columns * size, 3)


READ = {"image": (image_size, read_image), "video": (video_size, read_video)}


# finding things in a dump


def runs(ids, count) -> list[int]:
    """Positions of the first tokens of all unbroken runs of exactly `count` equal ids."""
    starts, at = [], 0
    for _, run in groupby(ids):
        length = len(list(run))
        starts += [at] * (length == count)
        at += length
    return starts


def files(dump: Dump, kind, count, frames=1) -> list[list[int]]:
    """First tokens of each file of a kind that makes so many soft tokens for each of so many frames.

    By the dump's own word; where it does not say, by the runs of equal ids.
    """
    said = dump.meta.get("media")
    if said is None:
        starts = runs(dump.meta["ids"], count)
        alike = {i: [at for at in starts if dump.meta["ids"][at] == i] for i in {dump.meta["ids"][at] for at in starts}}
        return sorted(some[n : n + frames] for some in alike.values() for n in range(0, len(some) - frames + 1, frames))
    spans = [span for span in said if span["kind"] == kind]
    by_file = [[span for span in spans if span["file"] == n] for n in sorted({span["file"] for span in spans})]
    sized = [file for file in by_file if [span["count"] for span in file] == [count] * frames]
    return [[span["first"] for span in file] for file in sized if None not in [span["first"] for span in file]]


def chosen(found: list[list[int]], kind, count, index, path) -> list[int]:
    """First tokens of the index-th of the files that fit."""
    if not 0 <= index < len(found):
        fault = (
            f"makes {count} soft tokens{' a frame' * (kind == 'video')}, and the dump has {len(found)} {KINDS[kind]}"
        )
        raise InputError(f"{path}: {fault} of that size; give the file it was made with, and an --index below that.")
    return found[index]


def fitting(path, dump: Dump, p: Processor, kind, index) -> Sight:
    """The file at the budget at which it was dumped: the given one, or else another that fits the dump."""
    if kind not in p.cls.read:
        raise InputError(f"{path}: this model takes no {KINDS[kind]}; name the checkpoint that made the dump.")
    size_of, read = READ[kind]
    height, width, frames = size_of(path, p)
    tried = [p, *(with_budget(p, budget) for budget in p.cls.budgets)]
    counts = [math.prod(p.cls.grid(height, width, q.frame if kind == "video" else q.image)) for q in tried]
    found = [files(dump, kind, count, frames) for count in counts]
    fits = next((n for n, some in enumerate(found) if some), 0)
    starts = chosen(found[fits], kind, counts[fits], index, path)
    return read(path, tried[fits])._replace(starts=starts)


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
