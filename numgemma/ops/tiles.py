"""A matrix times many rows, as BLAS does it, but from numbers as they lie in the file.

Sums of six rows of X with as many rows of W as make twelve registers are held in these while both are read along: of W
a panel, turned so that what is needed next lies next, and float32.  A number of the result is a sum in one order,
whichever rows are computed beside it: by DEPTH products at a time, one after another, each rounded once where the
processor can.  So it has the same bits in any cut, on any number of threads, and for any WIDTH.

Where both matrices are pairs of bfloat16, by pairs.py, a number above is a pair, and its product those two.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from numgemma.ops import pairs
from numgemma.ops.compiled import FEATURES, in_llvm, kernel
from numgemma.ops.kernels import PLAIN, number

ROWS = 6  # of X at once, or four
FOURS = (1, 2, 3, 4, 7, 8)  # rows that are left where four are next: so no more than one is computed for nothing
WIDTH = 32 if "+avx512f" in FEATURES else 16  # rows of W: two registers, or four of ARM
DEPTH = 512  # numbers of a row in one chain of additions: the longer, the fewer steps between, and the less exact
EIGHT = 8  # numbers of a row that are turned at once
SEEN = 768  # rows of X that are gone over for each panel: a multiple of ROWS

FLOAT, INT = ir.FloatType(), ir.IntType(32)
FLOATS = ir.VectorType(FLOAT, WIDTH)


class TileRow(types.Type):
    """Of one row of X with WIDTH rows of W, in registers."""


TILE_ROW = TileRow("TileRow")


@register_model(TileRow)
class InRegisters(models.PrimitiveModel):
    """What they are to the compiler."""

    def __init__(self, manager, kind):
        super().__init__(manager, kind, FLOATS)


def place(context, builder, array, data, at):
    """Where data[at] lies; at is not negative, so that nothing needs to be asked of it."""
    return builder.gep(context.make_array(array)(context, builder, data).data, [at])


@in_llvm
def turn_eight(typing, w, at, row, eight):
    """Eight numbers of WIDTH rows, from w[at] on, one row so far from the next: column after column into `eight`.

    Eight rows at a time are laid into each other three times, as the halves of a pack of cards are.
    """

    def emit(context, builder, signature, args):
        of_w, _, _, of_eight = signature.args
        first = place(context, builder, of_w, *args[:2])
        some = ir.VectorType(context.get_data_type(of_w.dtype), EIGHT).as_pointer()
        for n in range(0, WIDTH, EIGHT):
            far = [builder.mul(args[2], args[2].type(n + i)) for i in range(EIGHT)]
            cards = [builder.load(builder.bitcast(builder.gep(first, [at]), some), align=1) for at in far]
            for _ in range(3):
                cards = [card for pair in zip(cards[:4], cards[4:], strict=True) for card in laid(builder, *pair)]
            for i, card in enumerate(cards):
                there = place(context, builder, of_eight, args[3], args[2].type(i * WIDTH + n))
                builder.store(card, builder.bitcast(there, some), align=1)
        return context.get_dummy_value()

    return types.void(w, types.intp, types.intp, eight), emit


def laid(builder, one, other):
    """Two vectors into each other, number by number: the first half of both, and the second."""
    for half in (range(EIGHT // 2), range(EIGHT // 2, EIGHT)):
        turns = [at for i in half for at in (i, i + EIGHT)]
        yield builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(INT, EIGHT), turns))


@in_llvm
def none(typing):
    def emit(context, builder, signature, args):
        return ir.Constant(FLOATS, [0.0] * WIDTH)

    return TILE_ROW(), emit


@in_llvm
def plus(typing, sums, x, at, panel, row):
    """sums + x[at] panel[row : row + WIDTH]"""

    def emit(context, builder, signature, args):
        _, of_x, _, of_panel, _ = signature.args
        one = builder.load(place(context, builder, of_x, *args[1:3]))
        many = ir.VectorType(one.type, WIDTH)
        some = builder.load(builder.bitcast(place(context, builder, of_panel, *args[3:5]), many.as_pointer()))
        some.align = 4
        alone = builder.insert_element(ir.Constant(many, ir.Undefined), one, INT(0))
        everywhere = ir.Constant(ir.VectorType(INT, WIDTH), [0] * WIDTH)
        one = builder.shuffle_vector(alone, ir.Constant(many, ir.Undefined), everywhere)
        if of_x.dtype == types.uint32:
            return pairs.added(builder, args[0], one, some)
        once = ("contract",)  # the sum and the product are rounded together
        return builder.fadd(args[0], builder.fmul(one, some, flags=once), flags=once)

    return TILE_ROW(sums, x, types.intp, panel, types.intp), emit


@in_llvm
def put(typing, y, at, sums, more):
    """y[at : at + WIDTH] = sums; more: += sums"""

    def emit(context, builder, signature, args):
        there = builder.bitcast(place(context, builder, signature.args[0], *args[:2]), FLOATS.as_pointer())
        before = builder.load(there)
        whole = builder.select(args[3], builder.fadd(before, args[2]), args[2])
        stored = builder.store(whole, there)
        before.align = stored.align = 4
        return context.get_dummy_value()

    return types.void(y, types.intp, sums, types.boolean), emit


@kernel(PLAIN)
def times_many(w, x, y, column):
    """X W^T into columns of Y, from that one on.  x: T I   w: O I   y: T and no fewer than column + O"""
    T, width = len(x), y.shape[1]
    numbers, into, panel = x.reshape(x.size), y.reshape(y.size), np.empty(x.shape[1] * WIDTH, x.dtype)
    tile = np.empty(ROWS * WIDTH, np.float32)
    for start in range(0, T, SEEN):
        for o in range(0, len(w), WIDTH):
            rows, at = min(WIDTH, len(w) - o), column + o
            turn(w, o, panel)
            t, stop = start, min(start + SEEN, T)
            while t < stop:
                some = 4 if stop - t in FOURS else ROWS
                if rows < WIDTH or t + some > T:
                    some_rows(some, numbers, t, T - 1, panel, tile)
                    y[t : t + some, at : at + rows] = tile.reshape(ROWS, WIDTH)[: min(some, T - t), :rows]
                elif some == ROWS:
                    six_rows(numbers, t, T - 1, panel, into, t * width + at, width)
                else:
                    four_rows(numbers, t, T - 1, panel, into, t * width + at, width)
                t += some


@kernel(PLAIN)
def turn(w, o, panel):
    """WIDTH rows of W, from one on: what is beside each other in a column is so in the panel."""
    I, rows = w.shape[1], min(WIDTH, len(w) - o)
    numbers, eight, turned = w.reshape(w.size), np.empty(EIGHT * WIDTH, w.dtype), 0
    if rows == WIDTH:
        turned = I // EIGHT * EIGHT
        for i in range(0, turned, EIGHT):
            turn_eight(numbers, o * I + i, I, eight)
            for n in range(EIGHT * WIDTH):
                panel[i * WIDTH + n] = number(eight[n])
    for i in range(turned, I):
        for n in range(rows):
            panel[i * WIDTH + n] = number(w[o + n, i])


@kernel(PLAIN)
def some_rows(some, x, t, last, panel, tile):
    """Six or four rows into a tile of their own, at an edge."""
    if some == ROWS:
        six_rows(x, t, last, panel, tile, 0, WIDTH)
    else:
        four_rows(x, t, last, panel, tile, 0, WIDTH)


@kernel(PLAIN)
def six_rows(x, t, last, panel, y, at, width):
    """Rows from t on times a panel, into rows of Y of that width.  Behind the last row it stands for those missing."""
    I = len(panel) // WIDTH
    at_a, at_b, at_c = t * I, min(t + 1, last) * I, min(t + 2, last) * I
    at_d, at_e, at_f = min(t + 3, last) * I, min(t + 4, last) * I, min(t + 5, last) * I
    for i in range(0, I, DEPTH):
        a = b = c = d = e = f = none()
        for k in range(i, min(i + DEPTH, I)):
            row = WIDTH * k
            a, b = plus(a, x, at_a + k, panel, row), plus(b, x, at_b + k, panel, row)
            c, d = plus(c, x, at_c + k, panel, row), plus(d, x, at_d + k, panel, row)
            e, f = plus(e, x, at_e + k, panel, row), plus(f, x, at_f + k, panel, row)
        for n, sums in enumerate((a, b, c, d, e, f)):
            put(y, at + n * width, sums, i > 0)


@kernel(PLAIN)
def four_rows(x, t, last, panel, y, at, width):
    """The same for four."""
    I = len(panel) // WIDTH
    at_a, at_b, at_c, at_d = t * I, min(t + 1, last) * I, min(t + 2, last) * I, min(t + 3, last) * I
    for i in range(0, I, DEPTH):
        a = b = c = d = none()
        for k in range(i, min(i + DEPTH, I)):
            row = WIDTH * k
            a, b = plus(a, x, at_a + k, panel, row), plus(b, x, at_b + k, panel, row)
            c, d = plus(c, x, at_c + k, panel, row), plus(d, x, at_d + k, panel, row)
        for n, sums in enumerate((a, b, c, d)):
            put(y, at + n * width, sums, i > 0)
