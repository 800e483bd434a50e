"""compressed-tensors and ModelOpt: what a module's leaves say, not what the config promises of its targets.

    weight_packed I32, weight_scale (, weight_zero_point, weight_g_idx)    w = (q - z) s     q, z codes of b bits
    weight I8, weight_scale                                                w = q s
    weight F8, weight_scale: one, a row, or a block                        w = q s
    weight_packed U8, weight_scale F8, weight_global_scale                 w = e2m1(q) (s / global)
    weight_packed U8, weight_scale U8                                      w = e2m1(q) 2^(s - 127)
    weight U8, weight_scale F8, weight_scale_2             (ModelOpt)      w = e2m1(q) (s scale_2)

Codes of b bits are stored with 2^(b-1) added.  The global scale divides in one and multiplies in the other.
"""

from dataclasses import replace

import numpy as np

from numgemma.config import section
from numgemma.errors import InputError
from numgemma.weights.bits import E2M1, as_nibbles, grouped, nibbles, power_of_two, stream
from numgemma.weights.packed import Packed, agree, is_order

WIDTHS = (4, 8, 2, 3, 5, 6, 7)  # bits of a code, the usual ones first
APART = "save the experts one by one"
UNREAD = ("weight_shape", "input_scale", "input_global_scale", "input_zero_point", "k_scale", "v_scale")


def claims(leaves) -> bool:
    """Whether a module's leaves are of this kind."""
    scaled = "weight_scale" in leaves and "weight" in leaves and leaves["weight"].dtype.itemsize == 1
    return "weight_packed" in leaves or scaled


def read(where, leaves, settings) -> Packed:
    """One module's weight.  leaves: leaf -> array; settings: the file's quantization_config"""
    packed = leaves.get("weight_packed", leaves.get("weight"))
    agree(where, "weight_scale" in leaves, packed.ndim == 2)
    if packed.dtype == np.uint8:
        return fp4(where, leaves, packed)
    if "weight_packed" in leaves:
        return integers(where, leaves, bits_of(where, leaves, settings))
    return scaled(where, packed, leaves["weight_scale"], block_of(where, settings, leaves["weight_scale"]))


def fused(where, leaves, settings) -> Packed:
    """A stack of experts whose codes have an axis for them, E O words; their width is told by its shape or the bits."""
    packed = leaves["weight_packed"]
    if packed.ndim != 3 or not packed.size or any(x.ndim == 3 and len(x) != len(packed) for x in leaves.values()):
        raise InputError(f"{where}: packed experts should have three axes, [experts, rows, words]; save it again.")
    (E, O, words), shape = packed.shape, leaves.get("weight_shape")
    bits = next((b for g in groups_of(where, settings) if (b := g.get("num_bits")) in WIDTHS), WIDTHS[0])
    if "weight_zero_point" in leaves and O * bits % 32:
        raise InputError(f"{where}: zero points of {O} rows share words between experts, which is not read; {APART}.")
    width = 32 * words // bits if shape is None or shape.size < 2 else int(shape.ravel()[-1])
    flat = {name: x.reshape(-1, x.shape[-1]) if x.ndim == 3 else x for name, x in leaves.items()}
    w = read(where, flat | {"weight_shape": np.array([E * O, width])}, settings)
    return replace(w, shape=(E, O, w.shape[1]))


def bits_of(where, leaves, settings):
    """Bits of a code: what the config's groups say, if the width of the rows agrees."""
    said = [group.get("num_bits") for group in groups_of(where, settings)]
    words, (_, width) = leaves["weight_packed"].shape[-1], shape_of(where, leaves)
    for bits in [b for b in said if b in WIDTHS] + list(WIDTHS):
        if -(-width * bits // 32) == words:
            return bits
    raise InputError(f"{where}: rows of {words} words fit no width of code for {width} weights; download it again.")


def shape_of(where, leaves):
    if "weight_shape" not in leaves or leaves["weight_shape"].size < 2:
        raise InputError(f"{where}: has no weight_shape beside weight_packed; save it with a newer compressed-tensors.")
    return tuple(int(n) for n in leaves["weight_shape"].ravel()[-2:])


def integers(where, leaves, bits):
    """Codes of a few bits, their scales by group, and perhaps their zero points and an order of the groups."""
    (O, I), packed, scale = shape_of(where, leaves), leaves["weight_packed"], leaves["weight_scale"]
    if len(packed) != O or len(scale) != O:
        raise InputError(
            f"{where}: has {len(packed)} rows of codes and {len(scale)} of scales for {O}; download it again."
        )
    half, zeros, order = 2 ** (bits - 1), leaves.get("weight_zero_point"), leaves.get("weight_g_idx")
    groups = scale.shape[-1]
    agree(where, packed.dtype in (np.int32, np.uint32), scale.ndim == 2, order is None or is_order(order, I, groups))
    if zeros is not None:
        agree(where, zeros.dtype in (np.int32, np.uint32), zeros.shape == (-(-O * bits // 32), groups))
    z = None if zeros is None else (stream(zeros.T, bits, O).T - half).astype(np.float32)  # packed along O

    def decode(at):
        q = (stream(packed[at], bits, I) - half).astype(np.float32)
        s = scale[at].astype(np.float32)
        if order is not None:
            return (q - (0 if z is None else z[at][:, order])) * s[:, order]
        return grouped(q if z is None else q - spread(z[at], I), s)

    def step(at):
        s = np.abs(scale[at].astype(np.float32))
        return s[:, order] if order is not None else spread(s, I)

    parts = tuple(leaves[name] for name in ("weight_packed", "weight_scale", "weight_zero_point") if name in leaves)
    raw: tuple = ()
    if bits == 4 and order is None and I % (2 * groups) == 0:
        centre = np.broadcast_to(np.float32(half), scale.shape) if z is None else z + half
        raw = ("zeroed", as_nibbles(packed, I), scale, centre)
    return Packed((O, I), f"int{bits}", decode, parts, step, raw=raw)


def spread(values, width):
    """One value for each group of a row -> one for each weight."""
    return np.repeat(values, -(-width // values.shape[1]), 1)[:, :width]


def scaled(where, q, scale, block) -> Packed:
    """Numbers of eight bits under one scale, one for each row, or one for each block of rows and columns.

    block: rows and columns that share a scale, where somebody says so; else what the shapes imply.
    """
    agree(where, q.ndim == 2)
    (O, I), s = q.shape, scale.reshape(len(scale) if scale.ndim else 1, -1)
    tall, wide = block or (-(-O // len(s)), -(-I // s.shape[1]))
    rows_alone = s.shape[1] == 1 and len(s) in (1, O)
    if (-(-O // tall), -(-I // wide)) != s.shape or not (block or s.shape[1] > 1 or rows_alone):
        raise InputError(
            f"{where}: has scales {list(s.shape)} for weights {[O, I]}; correct its block size in config.json."
        )
    rows, columns = np.arange(O) // tall, np.arange(I) // wide

    def decode(at):
        return q[at].astype(np.float32) * s[rows[at]].astype(np.float32)[:, columns]

    def step(at):
        gaps = np.float32(1) if q.dtype == np.int8 else gaps_of(q[at])
        return gaps * np.abs(s[rows[at]].astype(np.float32)[:, columns])

    return Packed((O, I), "int8" if q.dtype == np.int8 else str(q.dtype), decode, (q, scale), step)


def gaps_of(q):
    """How far a small float lies from its neighbours: three bits behind the point, two in E5M2."""
    bits, least = (3, -6) if "e4m3" in str(q.dtype) else (2, -14)
    _, exponents = np.frexp(q.astype(np.float32))
    return np.exp2(np.maximum(exponents - 1, least) - bits).astype(np.float32)


def groups_of(where, settings):
    """What the config says of the weights of each of its groups."""
    groups = section(settings, "config_groups", where)
    return [section(section(groups, name, where), "weights", where) for name in groups]


def block_of(where, settings, scale):
    """The block that the config names, where there are scales for blocks at all."""
    said = [group.get("block_structure") for group in groups_of(where, settings)]
    return next((size for size in said if is_block(size) and scale.ndim == 2 and scale.shape[1] > 1), None)


def is_block(size) -> bool:
    """Whether that is a number of rows and one of columns."""
    return isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)


def fp4(where, leaves, packed):
    """Pairs of four-bit floats, low nibble first, with a scale for every 16 or 32."""
    scale, (O, half) = leaves["weight_scale"], packed.shape
    exponents = scale.dtype == np.uint8
    if scale.ndim != 2 or len(scale) != O or (2 * half) % scale.shape[1]:
        raise InputError(f"{where}: has scales {list(scale.shape)} for weights {[O, 2 * half]}; download it again.")
    divides, times = (leaves.get(name) for name in ("weight_global_scale", "weight_scale_2"))
    agree(where, *(x is None or x.size for x in (divides, times)))
    if not exponents and divides is None and times is None:
        raise InputError(f"{where}: has NVFP4 codes without their global scale; download it again.")

    def scales(at):
        s = power_of_two(scale[at]) if exponents else scale[at].astype(np.float32)
        if exponents:
            return s
        return s / divides.astype(np.float32).ravel()[0] if divides is not None else s * np.float32(times.ravel()[0])

    def decode(at):
        return grouped(E2M1[nibbles(packed[at])], scales(at))

    def step(at):
        return 2 * np.abs(spread(scales(at), 2 * half))  # the widest gap, from 4 to 6

    return Packed((O, 2 * half), "mxfp4" if exponents else "nvfp4", decode, (packed, scale), step)
