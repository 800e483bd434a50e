"""MLX: weight U32 as a stream of b bits, scales and biases by group along the row.

    affine      w = q s + b                     groups of 32, 64 or 128; b = 2 3 4 5 6 8
    mxfp4       w = e2m1(q) 2^(s - 127)         groups of 32
    mxfp8       w = e4m3(q) 2^(s - 127)         groups of 32
    nvfp4       w = e2m1(q) e4m3(s)             groups of 16

Convolutions lie channels last.  config.json names the group and the bits, module by module where they differ.  The
widths of the tensors are believed before it: bits = 32 words / (groups x group).
"""

import numpy as np

from numgemma.errors import InputError
from numgemma.weights.bits import E2M1, as_nibbles, grouped, nibbles, power_of_two, stream
from numgemma.weights.packed import Packed, agree, stacked

UNREAD = ()
MODES = {"mxfp4": 32, "mxfp8": 32, "nvfp4": 16}
BITS = (2, 3, 4, 5, 6, 8)


def claims(leaves) -> bool:
    return "scales" in leaves and "weight" in leaves and leaves["weight"].dtype == np.uint32


def read(where, leaves, settings):
    """One module's weight, or a stack of experts'."""
    words, scales, biases = leaves["weight"], leaves["scales"], leaves.get("biases")
    parts = {name: x for name, x in leaves.items() if name in ("weight", "scales", "biases")}
    agree(where, words.ndim in (2, 3), all(x.ndim == words.ndim and len(x) == len(words) for x in parts.values()))
    if words.ndim == 3:
        pick = [{name: x[e] for name, x in parts.items()} for e in range(len(words))]
        matrices = [read(where, some, settings) for some in pick]
        return stacked(matrices, matrices[0].dtype)
    if biases is not None:
        return affine(where, words, scales, biases, settings.get("group_size"))
    mode = settings.get("mode")
    if mode not in MODES:
        raise InputError(f"{where}: has scales without biases; correct config.json, which names no mode of MLX for it.")
    return floating(where, words, scales, mode)


def affine(where, words, scales, biases, said):
    groups = scales.shape[1]
    agree(where, scales.shape == biases.shape)
    for group in [g for g in (said, 64, 32, 128, 16) if type(g) is int and g > 0]:
        bits, rest = divmod(32 * words.shape[1], group * groups)
        if not rest and bits in BITS:
            break
    else:
        raise InputError(f"{where}: {words.shape[1]} words a row fit no code for {groups} groups; save it again.")
    width = group * groups

    def decode(at):
        s, b = scales[at].astype(np.float32), biases[at].astype(np.float32)
        return grouped(stream(words[at], bits, width).astype(np.float32), s) + np.repeat(b, group, 1)

    def step(at):
        return np.abs(np.repeat(scales[at].astype(np.float32), group, 1))

    raw = ("biased", as_nibbles(words, width), scales, biases) if bits == 4 and group % 2 == 0 else ()
    return Packed((len(words), width), f"mlx-{bits}bit", decode, (words, scales, biases), step, raw=raw)


def channels_first(tensors):
    """The tensors, their convolutions as O I k (k) where the file stores them channels last, O k (k) I, as MLX does.

    A square kernel tells where it stands, or one of a single channel.  One whose sides are all alike follows the rest.
    """
    axes = {name: axis for name, x in tensors.items() if "conv" in name and (axis := last_channel(name, x))}
    if not any(x.shape[axis] != x.shape[axis - 1] for name, axis in axes.items() for x in [tensors[name]]):
        return tensors
    return tensors | {name: np.moveaxis(tensors[name], axis, 1) for name, axis in axes.items()}


def last_channel(name, x):
    """The axis of the channels, where that may be the last one; else 0."""
    if x.ndim == 4 and x.shape[1] == x.shape[2]:
        return 3
    return 2 if x.ndim == 3 and "conv1d" in name and x.shape[2] == 1 else 0


def floating(where, words, scales, mode):
    width = MODES[mode] * scales.shape[1]
    agree(where, scales.dtype == np.uint8, 32 * words.shape[1] == width * (8 if mode == "mxfp8" else 4))

    def decode(at):
        raw = np.ascontiguousarray(words[at]).view(np.uint8)
        codes = raw.view("float8_e4m3fn").astype(np.float32) if mode == "mxfp8" else E2M1[nibbles(raw)]
        return grouped(codes, sizes(at))

    def sizes(at):
        if mode == "nvfp4":
            return scales[at].view("float8_e4m3fn").astype(np.float32)
        return power_of_two(scales[at])

    def step(at):
        return 2 * np.repeat(sizes(at), MODES[mode], 1)  # the widest gap of E2M1, from 4 to 6

    return Packed((len(words), width), f"mlx-{mode}", decode, (words, scales), step if mode != "mxfp8" else None)
