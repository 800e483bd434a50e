"""GPTQ and AWQ: matrices that lie transposed, [in, out], as words of small codes.  w[o, i] = (q - z) s

    GPTQ  qweight [I b/32, O] packed along I, qzeros [G, O b/32], scales [G, O], g_idx [I]
    AWQ   qweight [I, O/8] packed along O in an order of its own, qzeros [G, O/8], scales [G, O]

The first version of GPTQ stores z - 1.  Writers lie about the version: a symmetric file whose codes are all 2^(b-1)
stores z itself.
"""

import numpy as np

from numgemma.errors import InputError
from numgemma.weights.bits import stream
from numgemma.weights.packed import Packed, agree, is_order

UNREAD = ()
WORDS = (np.int32, np.uint32)
NIBBLE = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # of a word of AWQ's that holds column 8 j + n


def claims(leaves) -> bool:
    return "qweight" in leaves and "scales" in leaves and "qzeros" in leaves


def read(where, leaves, settings) -> Packed:
    """One module's weight, turned to [out, in]."""
    I, O = len(leaves["qweight"]), leaves["scales"].shape[1]
    words, zeros, scales = (leaves[name] for name in ("qweight", "qzeros", "scales"))
    agree(where, len(zeros) == len(scales), *(x.ndim == 2 for x in (words, zeros, scales)))
    agree(where, words.dtype in WORDS, zeros.dtype in WORDS)
    awq = words.shape[1] * 8 == O and "g_idx" not in leaves
    return read_awq(where, leaves, I, O) if awq else read_gptq(where, leaves, settings, O)


def read_awq(where, leaves, I, O):
    words, zeros, scales = (leaves[name] for name in ("qweight", "qzeros", "scales"))
    agree(where, zeros.shape[1] * 8 == O, len(scales) <= I)
    group = np.arange(I) // -(-I // len(scales))

    def codes(packed, columns):
        return packed[:, columns // 8] >> 4 * NIBBLE[columns % 8] & 15

    def decode(at):
        columns = np.arange(O)[at]
        centred = codes(words, columns) - codes(zeros, columns)[group]
        return np.ascontiguousarray((centred.astype(np.float32) * scales[:, at].astype(np.float32)[group]).T)

    def step(at):
        return np.abs(scales[:, np.arange(O)[at]].astype(np.float32)[group].T)

    raw = ("awq", words, scales, zeros) if I % (4 * len(scales)) == 0 else ()
    return Packed((O, I), "awq-int4", decode, (words, zeros, scales), step, raw=raw)


def read_gptq(where, leaves, settings, O):
    words, zeros, scales = (leaves[name] for name in ("qweight", "qzeros", "scales"))
    bits = settings.get("bits") or 32 * zeros.shape[1] // O
    if bits not in (2, 3, 4, 8) or len(words) * 32 % bits or -(-O * bits // 32) != zeros.shape[1]:
        raise InputError(f"{where}: {len(words)} words a column fit no code of {bits} bits; correct config.json.")
    I = len(words) * 32 // bits
    order = leaves["g_idx"] if "g_idx" in leaves else np.arange(I) // -(-I // len(scales))
    agree(where, words.shape[1] == O, is_order(order, I, len(scales)))
    z = zero_points(stream(zeros, bits, O), bits, settings)

    def decode(at):
        q = stream(np.ascontiguousarray(words[:, at].T), bits, I)
        return ((q - z[:, at].T[:, order]) * scales[:, at].astype(np.float32).T[:, order]).astype(np.float32)

    def step(at):
        return np.abs(scales[:, at].astype(np.float32).T[:, order])

    in_turn = I % (8 * len(scales)) == 0 and (order == np.arange(I) // (I // len(scales))).all()
    raw = ("gptq", words, scales, z.astype(np.float32)) if bits == 4 and in_turn else ()
    return Packed((O, I), f"gptq-int{bits}", decode, (words, zeros, scales), step, raw=raw)


def zero_points(codes, bits, settings):
    """What is subtracted, from what is stored."""
    itself = settings.get("checkpoint_format") == "gptq_v2"
    symmetric = settings.get("sym", True) and (codes == 2 ** (bits - 1)).all()
    return codes if itself or symmetric else (codes + 1) % 2**bits
