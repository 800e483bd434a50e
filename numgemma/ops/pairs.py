"""Products of bfloat16 by pairs, where the processor has a fast instruction for them (avx512_bf16: vdpbf16ps).

Two neighbours of a row are one whole number of 32 bits.  A lane adds to its float32 sum first the product of the upper
two halves, then that of the lower two.  Products are exact, each sum is rounded once, to the nearest float32, and
numbers too small for a full fraction (below 1.2e-38) count as zero.  So Intel writes it down, and so AMD's Zen 4 does
it, to the bit; a processor that adds the two products first would come to other last bits.  PyTorch's bfloat16 products
(oneDNN) run on the same instruction or on AMX's, in blocks of its own choice: float32 sums there too, in another order.
Either result is rounded to bfloat16 in the end, which is 60,000 times as coarse.

One row, or a few, stay with relay.py: their speed is that of memory, whatever multiplies.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from numgemma.ops.compiled import FEATURES
from numgemma.smallfloats import BFLOAT16

# Intel's processors with AMX make four steps of the instruction: there it gains nothing
CAN = {"+avx512f", "+avx512bf16"} <= {*FEATURES} and "+amx-bf16" not in FEATURES
LANES = 16  # of the instruction

INT, FLOAT = ir.IntType(32), ir.FloatType()


def fit(x, w):
    """Whether X W^T can be multiplied by pairs here."""
    return CAN and x.dtype == w.dtype == BFLOAT16 and x.shape[-1] % 2 == 0


def paired(x):
    """bfloat16 with neighbours as one number.  x: T I  ->  T I/2"""
    return np.ascontiguousarray(x).view(np.uint32)


def given(x, w):
    """Both matrices as tiles.py multiplies them: by pairs where that is to be had, else X in float32."""
    return (paired(x), paired(w)) if fit(x, w) else (np.ascontiguousarray(x, np.float32), w)


def added(builder, sums, one, other):
    """sums + both products of two pairs, in 32 lanes of a kernel; where the instruction is wanting, spelled out."""
    if not CAN:
        return spelled_out(builder, sums, one, other)
    kinds = [ir.VectorType(FLOAT, LANES), *[ir.VectorType(INT, LANES)] * 2]
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    step = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kinds[0], kinds), name)
    places = [ir.Constant(kinds[1], [*range(first, first + LANES)]) for first in (0, LANES)]
    halves = [[builder.shuffle_vector(x, x, half) for x in (sums, one, other)] for half in places]
    low, high = (builder.call(step, half) for half in halves)
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(INT, 2 * LANES), [*range(2 * LANES)]))


def spelled_out(builder, sums, one, other):
    """The same by two multiplications that round with their sum; they keep numbers that are very small."""
    upper, half = (ir.Constant(one.type, [n] * one.type.count) for n in (0xFFFF0000, 16))
    kind = ir.FunctionType(sums.type, [sums.type] * 3)
    step = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{sums.type.count}f32")
    for part in (lambda x: builder.and_(x, upper), lambda x: builder.shl(x, half)):
        sums = builder.call(step, [*(builder.bitcast(part(x), sums.type) for x in (one, other)), sums])
    return sums
