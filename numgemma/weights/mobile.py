"""Google's QAT mobile files (quant_method "gemma"): codes of 8, 4 or 2 bits with a scale a row.  w = q s

weight I8 [O, I]; U8 [O, I/2], low nibble first, less 8; U8 [O, I/4], lowest pair first, less 2
weight_scale F32 [O, 1]; of an embedding embedding_quantized, and embedding_scale by row and block
"""

import numpy as np

from numgemma.config import section
from numgemma.errors import InputError
from numgemma.incoming import NAME, pattern_of
from numgemma.weights.bits import grouped, stream
from numgemma.weights.packed import Packed, agree

UNREAD = ("input_activation_scale", "output_activation_scale", "k_cache_scale", "v_cache_scale")


def claims(leaves) -> bool:
    """Whether a module's leaves are of this kind: compressed-tensors has no input_activation_scale."""
    coded = {"weight", "weight_scale", "input_activation_scale"} <= leaves.keys()
    return "embedding_quantized" in leaves or (coded and leaves["weight"].dtype in (np.uint8, np.int8))


def read(where, leaves, settings) -> Packed:
    """One module's weight; settings holds the module's name and the config's patterns."""
    kind = "embedding_quantized" if "embedding_quantized" in leaves else "weight"
    q, s = leaves[kind], leaves["embedding_scale" if kind == "embedding_quantized" else "weight_scale"]
    bits = 8 if q.dtype == np.int8 else bits_of(where, settings)
    width, half = q.shape[1] * 8 // bits, 2 ** (bits - 1)
    agree(where, q.dtype in (np.int8, np.uint8), q.ndim == 2, s.size and s.size % len(q) == 0, s.size <= len(q) * width)
    s = s.reshape(len(q), -1)
    if bits == 8:
        return Packed(q.shape, "mobile-int8", lambda at: grouped(q[at].astype(np.float32), s[at]), (q, s))

    def decode(at):
        return grouped((stream(q[at], bits, width) - half).astype(np.float32), s[at])

    return Packed((len(q), width), f"mobile-int{bits}", decode, (q, s))


def bits_of(where, settings):
    patterns = section(settings, "module_quant_configs", where)
    for pattern in patterns:
        bits = section(patterns, pattern, where).get("num_bits")
        if bits in (2, 4) and found(where, pattern, settings.get("module", "")):
            return bits
    if settings.get("num_bits") in (2, 4):
        return settings["num_bits"]
    raise InputError(f"{where}: holds packed codes, and config.json does not say of how many bits; correct it.")


def found(where, pattern, module) -> bool:
    """Whether a pattern of the config means that module."""
    return bool(pattern_of(pattern, f"{where}: config.json's pattern").search(module, 0, NAME))
