"""A clip in a file -> the patches of some of its frames, and when they are seen: what Transformers' processor returns.

Frames are pictures but for one thing: Transformers resizes them with PyTorch, whose bicubic rounds its weights to 16
bits, where Pillow's keeps 22 (in noise, one number of 200 comes out one step of 255 different).  So that arithmetic is
here too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from numgemma.errors import InputError
from numgemma.extras import package
from numgemma.incoming import explained, open_regular
from numgemma.prompt.images import ImageSettings, pad, positions, target_size, to_patches

FORMATS = "mov,mp4,matroska,webm,avi,gif"  # FFmpeg's names; none opens further files, all find a time exactly
MAX_PIXELS = 1 << 26  # of a frame
MAX_FRAMES = 1 << 21  # ten hours at 60 a second
DEFAULT_FPS = 24.0  # where the file does not tell: Transformers' choice


class Clip(NamedTuple):
    patches: np.ndarray  # frames I X
    places: np.ndarray  # frames I 2
    seconds: list[float]  # when each frame is seen


class Index(NamedTuple):
    """What a clip holds, found without decoding it."""

    fps: float
    seconds: float  # how long it lasts
    times: list[int]  # of each frame in order of display, in ticks
    keys: list[int]  # frames that need no other frame to be decoded; empty where the file cannot tell


def video_arrays(path, s: ImageSettings, num_frames) -> Clip:
    """At most `num_frames` frames spread evenly over a clip, as patches; s holds for each.

    Equals Gemma4VideoProcessor on what PyAV decodes, to the last bit.  A clip that has fewer frames than num_frames
    gives all of them; Transformers refuses it.
    """
    return some_frames(path, s, lambda index: sampled(len(index.times), num_frames))


def some_frames(path, s: ImageSettings, choose: Callable[["Index"], list[int]]) -> Clip:
    """Those frames of a clip that choose(Index) wants, as patches; s holds for each."""
    with open_regular(path) as file, explained(path), opened(path, file) as container:
        index = read_index(path, container)
        wanted = choose(index)
        arrays = [frame_arrays(pixels, s) for pixels in decoded(path, container, index, wanted)]
    patches, places = zip(*arrays, strict=True)
    if any((xy != places[0]).any() for xy in places):
        raise InputError(f"{path}: has frames of several sizes; convert it to MP4.")
    return Clip(np.stack(patches), np.stack(places), [i / index.fps for i in wanted])


@contextmanager
def opened(path, file):
    """FFmpeg's reader of an open file; what goes wrong while it is used becomes one sentence."""
    av = package("av", "media")
    try:
        # titles are often not UTF-8, which would be an error by default
        with av.open(file, options={"format_whitelist": FORMATS}, metadata_errors="ignore") as container:
            yield container
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{path}: is no clip that FFmpeg reads ({error.strerror}); convert it to MP4.") from None


def sampled(total, count):
    """Which frames are looked at.  (equals default_sample_indices_fn)"""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def timestamps(seconds):
    """mm:ss of each frame, rounded down."""
    return [f"{int(t // 60):02d}:{int(t % 60):02d}" for t in seconds]


def read_index(path, container) -> Index:
    """Walk through the packets of the first video stream."""
    if not container.streams.video:
        raise InputError(f"{path}: has no pictures, only sound; give it as --audio.")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise InputError(f"{path}: has pictures in a coding that FFmpeg does not know; convert it to MP4.")
    if not 0 < stream.width * stream.height <= MAX_PIXELS:
        raise InputError(f"{path}: has frames of {stream.width} x {stream.height} pixels; scale it down.")
    packets = []
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard:
            packets.append((packet.pts, packet.is_keyframe))
        if len(packets) > MAX_FRAMES:
            raise InputError(f"{path}: has more than {MAX_FRAMES:,} frames; cut it.")
    if not packets:
        raise InputError(f"{path}: has no frames; give a clip that has some.")
    rate = stream.average_rate or DEFAULT_FPS
    fps, seconds = float(rate), float(len(packets) / rate)
    times = [pts for pts, _ in packets]
    if None in times or len(set(times)) < len(times):
        return Index(fps, seconds, list(range(len(times))), [])
    packets.sort()
    return Index(fps, seconds, sorted(times), [i for i, (_, is_key) in enumerate(packets) if is_key])


def decoded(path, container, index: Index, wanted):
    """The wanted frames in order, skipping where a key frame lies between.  -> pictures: height width 3, uint8"""
    stream = container.streams.video[0]
    place = {time: i for i, time in enumerate(index.times)}
    at = None  # the frame decoded last
    frames: Iterator[Any] = iter(())
    for i in wanted:
        key = max((k for k in index.keys if k <= i), default=0)
        if at is None or key > at + 1:
            container.seek(index.times[key] if index.keys else 0, stream=stream)
            frames, at = container.decode(stream), -1
        for frame in frames:
            at = place.get(frame.pts, at + 1) if index.keys else at + 1
            if at >= i:
                break
        if at != i:
            raise InputError(f"{path}: is damaged, frame {i} of {len(index.times)} is missing; convert it to MP4.")
        yield frame.to_ndarray(format="rgb24")


def frame_arrays(pixels, s: ImageSettings):
    """One frame as patches and their places, padded.  height width 3  ->  I X, I 2"""
    height, width = target_size(pixels.shape[0], pixels.shape[1], s)
    pixels = shrunk(pixels, height, width)
    rows, columns = height // s.patch_size, width // s.patch_size
    return pad(to_patches(rescale(pixels, s.rescale_factor), s.patch_size), positions(rows, columns), s.max_patches)


def rescale(pixels, factor):
    """Pixel values in [0, 1], by a division in float32.  (rescaling and normalising as Transformers fuses them)"""
    return pixels.astype(np.float32) / np.float32(1 / factor)


def shrunk(pixels, height, width):
    """A frame in another size.  height width 3, uint8"""
    return shrink(shrink(pixels, width, axis=1), height, axis=0)


def shrink(pixels, size, axis):
    """Bicubic, with antialias, along one axis.  (equals torch.nn.functional.interpolate on uint8, to the last bit)"""
    if pixels.shape[axis] == size:
        return pixels
    first, weights, bits = taps(pixels.shape[axis], size)
    lines = np.ascontiguousarray(np.moveaxis(pixels, axis, 0)).astype(np.int32)
    total = np.full((size, *lines.shape[1:]), 1 << (bits - 1), np.int32)  # one half: the shift below rounds
    for k in range(weights.shape[1]):
        source = np.minimum(first + k, len(lines) - 1)  # past the end the weight is 0
        total += weights[:, k, None, None] * lines[source]
    return np.moveaxis(np.clip(total >> bits, 0, 255).astype(np.uint8), 0, axis)


def taps(old, new):
    """For each new pixel the first old one that counts, the weights from there on; and their unit, 2**bits."""
    scale = old / new
    wide = max(scale, 1.0)
    centre = scale * (np.arange(new) + 0.5)
    first = np.maximum((centre - 2 * wide + 0.5).astype(int), 0)
    count = np.minimum((centre + 2 * wide + 0.5).astype(int), old) - first
    k = np.arange(count.max())
    weights = cubic((first[:, None] + k - centre[:, None] + 0.5) / wide) * (k < count[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    bits = next(b for b in range(23) if b == 22 or int(0.5 + weights.max() * 2 ** (b + 1)) >= 1 << 15)
    return first, np.trunc(weights * 2**bits + np.copysign(0.5, weights)).astype(np.int32), bits


def cubic(x, a=-0.5):
    """Keys' kernel.  (a: Pillow's and PyTorch's with antialias)"""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))
