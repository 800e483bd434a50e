"""Thirty-two numbers at once, added in an order that is written down: for codes in short blocks, and for scores.

The compiler puts a loop in lanes by itself, but one over the 32 weights under a scale is over before that has paid, as
its sums are folded for each block.  Here a lane is a place in a block, and the sums are folded once, at the end of a
row.  Over scores the compiler has too few in hand to fill the time that each step of an exponential takes.  In a kernel
32 float32 and 32 bytes are values, as a float is.  A processor takes 4, 8 or 16 lanes in one step, and comes to the
same bits.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from numgemma.ops.compiled import in_llvm

WIDTH = 32

BYTE, INT, FLOAT = ir.IntType(8), ir.IntType(32), ir.FloatType()
BYTES, INTS, FLOATS = (ir.VectorType(kind, WIDTH) for kind in (BYTE, INT, FLOAT))


class Lanes(types.Type):
    """32 of a kind, in registers."""


NUMBERS, CODES = Lanes("Numbers"), Lanes("Codes")
IN_MEMORY = {NUMBERS: FLOATS, CODES: BYTES}


@register_model(Lanes)
class Held(models.PrimitiveModel):
    """What they are to the compiler."""

    def __init__(self, manager, kind):
        super().__init__(manager, kind, IN_MEMORY[kind])


def taken(context, builder, signature, args, lanes):
    """32 numbers of an array, from a place on, which need not be a multiple of anything."""
    first = context.make_array(signature.args[0])(context, builder, args[0]).data
    found = builder.load(builder.bitcast(builder.gep(first, [args[1]]), lanes.as_pointer()))
    found.align = 1
    return found


def in_all(builder, value):
    """The same number in every lane."""
    alone = builder.insert_element(ir.Constant(ir.VectorType(value.type, WIDTH), ir.Undefined), value, INT(0))
    return builder.shuffle_vector(alone, ir.Constant(alone.type, ir.Undefined), ir.Constant(INTS, [0] * WIDTH))


def part(builder, lanes, places):
    chosen = ir.Constant(ir.VectorType(INT, len(places)), list(places))
    return builder.shuffle_vector(lanes, ir.Constant(lanes.type, ir.Undefined), chosen)


@in_llvm
def zeros(typing):
    def emit(context, builder, signature, args):
        return ir.Constant(FLOATS, [0.0] * WIDTH)

    return NUMBERS(), emit


@in_llvm
def numbers(typing, x, at):
    """x[at : at + 32]"""

    def emit(context, builder, signature, args):
        return taken(context, builder, signature, args, FLOATS)

    return NUMBERS(x, types.intp), emit


@in_llvm
def codes(typing, row, at):
    """row[at : at + 32]"""

    def emit(context, builder, signature, args):
        return taken(context, builder, signature, args, BYTES)

    return CODES(row, types.intp), emit


@in_llvm
def halves(typing, row, at):
    """The low four bits of row[at : at + 16], and then the high four."""

    def emit(context, builder, signature, args):
        both = taken(context, builder, signature, args, ir.VectorType(BYTE, WIDTH // 2))
        low = builder.and_(both, ir.Constant(both.type, [15] * (WIDTH // 2)))
        high = builder.lshr(both, ir.Constant(both.type, [4] * (WIDTH // 2)))
        return builder.shuffle_vector(low, high, ir.Constant(INTS, list(range(WIDTH))))

    return CODES(row, types.intp), emit


@in_llvm
def bits(typing, codes, first, mask):
    """Of each byte the bits from the first on that the mask has."""

    def emit(context, builder, signature, args):
        return builder.and_(builder.lshr(args[0], in_all(builder, args[1])), in_all(builder, args[2]))

    return CODES(CODES, types.uint8, types.uint8), emit


@in_llvm
def above(typing, low, high, first):
    """Each byte of the one with those of the other above it, from a bit on."""

    def emit(context, builder, signature, args):
        return builder.or_(args[0], builder.shl(args[1], in_all(builder, args[2])))

    return CODES(CODES, CODES, types.uint8), emit


@in_llvm
def unsigned(typing, codes):
    """Bytes as numbers from 0 to 255."""

    def emit(context, builder, signature, args):
        return builder.sitofp(builder.zext(args[0], INTS), FLOATS)

    return NUMBERS(CODES), emit


@in_llvm
def signed(typing, codes):
    """Bytes as numbers from -128 to 127."""

    def emit(context, builder, signature, args):
        return builder.sitofp(builder.sext(args[0], INTS), FLOATS)

    return NUMBERS(CODES), emit


@in_llvm
def everywhere(typing, value):
    """The same number in every lane."""

    def emit(context, builder, signature, args):
        return in_all(builder, args[0])

    return NUMBERS(types.float32), emit


@in_llvm
def split(typing, one, two):
    """One number in the first sixteen lanes, another in the last."""

    def emit(context, builder, signature, args):
        pair = [in_all(builder, value) for value in args]
        chosen = ir.Constant(INTS, [*range(WIDTH // 2), *range(3 * WIDTH // 2, 2 * WIDTH)])
        return builder.shuffle_vector(*pair, chosen)

    return NUMBERS(types.float32, types.float32), emit


@in_llvm
def added(typing, sums, scales, codes, x):
    """sums + scales (codes x), lane by lane; the second product and the sum are rounded once."""

    def emit(context, builder, signature, args):
        sums, scales, codes, x = args
        once = ir.FunctionType(FLOATS, [FLOATS] * 3)
        multiply_add = cgutils.get_or_insert_function(builder.module, once, f"llvm.fma.v{WIDTH}f32")
        return builder.call(multiply_add, [builder.fmul(codes, x), scales, sums])

    return NUMBERS(NUMBERS, NUMBERS, NUMBERS, NUMBERS), emit


@in_llvm
def total(typing, sums):
    """The sum of all lanes: halves onto halves until one is left."""

    def emit(context, builder, signature, args):
        (left,), width = args, WIDTH
        while width > 1:
            width //= 2
            left = builder.fadd(part(builder, left, range(width)), part(builder, left, range(width, 2 * width)))
        return builder.extract_element(left, INT(0))

    return types.float32(NUMBERS), emit


# of floats alone


@in_llvm
def put(typing, x, at, lanes):
    """x[at : at + 32] = lanes"""

    def emit(context, builder, signature, args):
        first = context.make_array(signature.args[0])(context, builder, args[0]).data
        stored = builder.store(args[2], builder.bitcast(builder.gep(first, [args[1]]), FLOATS.as_pointer()))
        stored.align = 4
        return context.get_dummy_value()

    return types.void(x, types.intp, NUMBERS), emit


@in_llvm
def plus(typing, a, b):
    def emit(context, builder, signature, args):
        return builder.fadd(*args)

    return NUMBERS(NUMBERS, NUMBERS), emit


@in_llvm
def over(typing, lanes, value):
    """Each divided by the same number."""

    def emit(context, builder, signature, args):
        return builder.fdiv(args[0], in_all(builder, args[1]))

    return NUMBERS(NUMBERS, types.float32), emit


@in_llvm
def rounded(typing, lanes):
    """The nearest bfloat16 of each, as kernels.to_bfloat16."""

    def emit(context, builder, signature, args):
        def constant(c):
            return ir.Constant(INTS, [c] * WIDTH)

        whole = builder.bitcast(args[0], INTS)
        odd = builder.and_(builder.lshr(whole, constant(16)), constant(1))
        nearest = builder.add(whole, builder.add(odd, constant(0x7FFF)))
        nan = builder.or_(whole, constant(1 << 22))  # whose upper half is not infinity's
        chosen = builder.select(builder.fcmp_ordered("ord", args[0], args[0]), nearest, nan)
        return builder.bitcast(builder.and_(chosen, constant(0xFFFF0000)), FLOATS)

    return NUMBERS(NUMBERS), emit


@in_llvm
def larger(typing, a, b):
    """Of each two the larger; b where one is NaN."""

    def emit(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return NUMBERS(NUMBERS, NUMBERS), emit


@in_llvm
def largest(typing, lanes):
    """The largest in any lane, of which none is NaN."""

    def emit(context, builder, signature, args):
        (left,), width = args, WIDTH
        while width > 1:
            width //= 2
            pair = part(builder, left, range(width)), part(builder, left, range(width, 2 * width))
            left = builder.select(builder.fcmp_ordered(">", *pair), *pair)
        return builder.extract_element(left, INT(0))

    return types.float32(NUMBERS), emit


@in_llvm
def exp_below(typing, x, top):
    """e^(x - top), of which no x is larger than top, to one unit in the last place.

    As kernels.exp.  Below -87 it is 0, and where either is NaN, NaN.
    """

    def emit(context, builder, signature, args):
        def constant(c, kind=FLOATS):
            return ir.Constant(kind, [c] * WIDTH)

        def plus_product(a, b, c):
            return builder.fadd(builder.fmul(a, b, flags=once), c, flags=once)

        once = ("contract",)
        x = builder.fsub(args[0], in_all(builder, args[1]))
        x = builder.select(builder.fcmp_ordered("<", x, constant(-87.0)), constant(-88.0), x)
        shift = constant(1.5 * 2**23)  # numbers so large have no fraction: the sum is rounded, and in its last bits
        shifted = plus_product(x, constant(1.44269504), shift)
        n = builder.fsub(shifted, shift)
        r = plus_product(n, constant(2.12194440e-4), plus_product(n, constant(-0.693359375), x))
        p = constant(1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = plus_product(p, r, constant(c))
        p = builder.fadd(plus_product(p, builder.fmul(r, r), r), constant(1.0))
        bits = builder.shl(builder.bitcast(shifted, INTS), constant(23, INTS))
        power = builder.add(bits, constant(127 << 23, INTS))  # of 2; 0 for n = -127
        return builder.fmul(p, builder.bitcast(power, FLOATS))

    return NUMBERS(NUMBERS, types.float32), emit
