"""A matrix of numbers or of GGUF's codes times a few rows, by threads that stay awake for a moment after their work.

Decoding a token is a hundred such products, some shorter than the 100 us that it takes to wake a thread.  So a thread
that has done a share looks out for the next one, in compiled code and without the interpreter, for PATIENCE looks; who
has a product puts the next share into its box, a row of whole numbers.  Its state:

    away -> waiting -> claimed -> posted -> waiting -> ... -> away

Who has the product claims and posts; who waits does the rest.  Only who exchanges `waiting` for another state, in one
atomic step, goes on from there: two runs at once never have the same thread.  Who is away is woken as for any other
work (threads.py), and waits from then on; who waits goes away when any other work is handed out.
"""

import itertools
import os
from functools import partial

import numpy as np
from llvmlite import ir
from numba import carray, types

from numgemma.ops import blocks, cores, kernels, threads
from numgemma.ops.compiled import in_llvm, kernel
from numgemma.ops.kernels import PLAIN

AWAY, WAITING, CLAIMED, POSTED = range(4)
STATE, DONE = range(2)  # what is where in a box; done: how many shares so far
KIND, W, ROWS, ROW, X, TOKENS, INPUTS, SUMS, Y, FIRST, END = range(2, 13)  # what is asked for; ROW: how long one is
BOX = 32  # so long that no two share a line of the cache, wherever the first one begins
KINDS = {np.dtype(np.uint16): 0, np.dtype(np.int16): 1, np.dtype(np.float32): 2}  # of numbers, as kernels take them
KINDS |= {name: 3 + n for n, name in enumerate(blocks.KERNELS)}
ROUNDED = len(KINDS)  # bfloat16 for one token, and what comes of it is rounded to that
PATIENCE = 1 << 20  # looks, which are some milliseconds: longer than any step of a layer without products
SHARE = 1 << 15  # products of numbers that are worth a share of their own
WOKEN = 1 << 18  # the same where the thread must be woken

NOTHING = np.empty(0, np.float32)
boxes = np.zeros((256, BOX), np.int64)  # one for each thread that ever waits
next_box = itertools.count()


# atomic steps


@in_llvm
def address(typing, array, at):
    """Where array[at] lies."""

    def emit(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(builder.gep(data, [args[1]]), ir.IntType(64))

    return types.int64(array, types.intp), emit


@in_llvm
def pointer(typing, where):
    """An address as `carray` takes it."""

    def emit(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), emit


@in_llvm
def seen(typing, where):
    """The number there, and all that its writer had written before it."""

    def emit(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], ir.IntType(64).as_pointer()), "acquire", 8)

    return types.int64(types.int64), emit


@in_llvm
def put(typing, where, value):
    """That number there, after all that was written before it."""

    def emit(context, builder, signature, args):
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store_atomic(args[1], place, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@in_llvm
def exchanged(typing, where, old, new):
    """Whether the number there was the old one; it is the new one now."""

    def emit(context, builder, signature, args):
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.extract_value(builder.cmpxchg(place, args[1], args[2], "acq_rel", "acquire"), 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


# of a thread that helps


@kernel(PLAIN)
def look_out(box, handed_out, before, patience):
    """Do what is posted in this box, until other work has been handed out, or True: nothing came for so many looks."""
    state, looks = address(box, STATE), 0
    put(state, WAITING)
    while True:
        if seen(state) == POSTED:
            do(box)
            put(address(box, DONE), box[DONE] + 1)
            put(state, WAITING)
            looks = 0
        elif (looks > patience or seen(address(handed_out, 0)) != before) and exchanged(state, WAITING, AWAY):
            return looks > patience
        looks += 1


@kernel(PLAIN)
def do(box):
    """The share that a box asks for."""
    kind, w, shape, first, end = box[KIND], pointer(box[W]), (box[ROWS], box[ROW]), box[FIRST], box[END]
    x = carray(pointer(box[X]), (box[TOKENS], box[INPUTS]), np.float32)
    y = carray(pointer(box[Y]), (box[TOKENS], box[ROWS]), np.float32)
    if kind == 0:
        of_numbers(carray(w, shape, np.uint16), x, y, first, end)
    elif kind == 1:
        of_numbers(carray(w, shape, np.int16), x, y, first, end)
    elif kind == 2:
        of_numbers(carray(w, shape, np.float32), x, y, first, end)
    elif kind == ROUNDED:
        kernels.times_one(carray(w, shape, np.uint16), x[0], carray(pointer(box[Y]), box[ROWS], np.uint16), first, end)
    else:
        sums = carray(pointer(box[SUMS]), box[INPUTS] // blocks.SIXTEEN, np.float32)
        of_codes(kind, carray(w, shape, np.uint8), x[0], sums, y[0], first, end)


@kernel(PLAIN)
def of_numbers(w, x, y, first, end):
    if len(x) == 1:
        kernels.times_one(w, x[0], y[0], first, end)
    else:
        kernels.times_drafts(w, x, y, first, end)


@kernel(PLAIN)
def of_codes(kind, rows, x, sums, y, first, end):
    if kind == 3:
        blocks.q8_0(rows, x, sums, y, first, end)
    elif kind == 4:
        blocks.q4_0(rows, x, sums, y, first, end)
    elif kind == 5:
        blocks.q4_k(rows, x, sums, y, first, end)
    elif kind == 6:
        blocks.q5_k(rows, x, sums, y, first, end)
    elif kind == 7:
        blocks.q6_k(rows, x, sums, y, first, end)


# of the thread that has the product


@kernel(PLAIN)
def asked(kind, w, x, sums, y, shares):
    """What a box asks for where everything is wanted."""
    box = np.zeros(BOX, np.int64)
    box[KIND], box[W], (box[ROWS], box[ROW]) = kind, address(w.reshape(w.size), 0), w.shape
    box[X], (box[TOKENS], box[INPUTS]) = address(x.reshape(x.size), 0), x.shape
    box[SUMS], box[Y], box[END] = address(sums, 0), address(y.reshape(y.size), 0), shares
    return box


@kernel(PLAIN)
def passed_on(asked, boxes, helpers):
    """What is asked for, with at most so many of the threads that wait; where none does, nothing is done, and False."""
    chosen, tickets, found = np.empty(helpers, np.intp), np.empty(helpers, np.int64), 0
    for n in range(len(boxes)):
        state = address(boxes[n], STATE)
        if found < helpers and seen(state) == WAITING and exchanged(state, WAITING, CLAIMED):
            chosen[found], found = n, found + 1
    if not found:
        return False
    shares = asked[END]
    for i in range(found):
        box = boxes[chosen[i]]
        tickets[i] = box[DONE] + 1
        box[KIND:] = asked[KIND:]
        box[FIRST], box[END] = shares * (i + 1) // (found + 1), shares * (i + 2) // (found + 1)
        put(address(box, STATE), POSTED)
    asked[END] = shares // (found + 1)
    do(asked)
    for i in range(found):
        done = address(boxes[chosen[i]], DONE)
        while seen(done) < tickets[i]:
            pass
    return True


def times(w, x, stored=np.float32):
    """X W^T for one token, or for as many as a drafter guesses.  w: O I, as kernels take it   x: T I  ->  T O

    stored: of what the result is; for one token it may be bfloat16 as integers, to which it is rounded then.
    """
    y = np.empty((len(x), len(w)), stored)
    if len(x) == 1:
        kind = KINDS[w.dtype] if stored == np.float32 else ROUNDED
        share_out(kind, w, x, NOTHING, y, len(w), lambda first, end: kernels.times_one(w, x[0], y[0], first, end))
    else:
        share_out(KINDS[w.dtype], w, x, NOTHING, y, (len(w) + 1) // 2, partial(kernels.times_drafts, w, x, y))
    return y


def times_codes(name, rows, x, sums):
    """W x with blocks of codes of that name, and the sums of x by sixteens.  rows: O bytes   x: I  ->  O"""
    y = np.empty(len(rows), np.float32)
    share = partial(blocks.KERNELS[name], rows, x, sums, y)
    share_out(KINDS[name], rows, x[None], sums, y[None], len(rows), share)
    return y


def share_out(kind, w, x, sums, y, shares, share):
    """Everything that `share` computes, from 0 to `shares`, by as many threads as it is worth.

    Where there are more threads than processors nobody waits awake: it would be in another's time.
    """
    work = len(w) * x.size
    helpers = threads.shares(work, SHARE) - 1
    if not helpers:
        share(0, shares)
    elif threads.allowed() > cores.usable() or not w.flags.aligned:
        threads.in_shares(share, shares, least(work, shares))
    elif not passed_on(asked(kind, w, x, sums, y, shares), boxes, helpers):
        threads.in_shares(share, shares, least(work, shares), stay)


def least(work, shares):
    """How many of the shares are worth waking a thread for.  work: of all, in products of numbers"""
    return max(1, -(-WOKEN * shares // work))


def waited() -> bool:
    """Whether a thread waits at its box just now."""
    return bool((boxes[:, STATE] == WAITING).any())


def stay():
    """What a thread does after its share: wait at a box of its own, unless its crew has more to do."""
    busy, over = threads.busy, False
    if busy.box is None:
        busy.box = next(next_box)
    while busy.box < len(boxes) and not over:
        before = int(threads.handed_out[0])  # what is handed out later is seen from the box, earlier in the queue
        over = not busy.crew.empty() or look_out(boxes[busy.box], threads.handed_out, before, PATIENCE)


def forget() -> None:
    """A child process has none of its parent's threads."""
    global next_box
    next_box = itertools.count()
    boxes[:] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)
