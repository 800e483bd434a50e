"""A matrix times one row, by threads that stay awake for a moment after they have worked.

Decoding a token is a hundred such products, some shorter than the 100 us that it takes to wake a thread.  So a thread
that has done a share looks out for the next one, in compiled code and without the interpreter, for PATIENCE looks; who
has a product puts the next share into its box, a row of whole numbers:

    away -> waiting -> claimed -> posted -> waiting -> ... -> away

Only who exchanges `waiting` for another state, in one atomic step, goes on from there: two runs at once never have the
same thread.  Who is away is woken as for any other work (threads.py), and waits from then on.
"""

import itertools
import os
from functools import partial

import numpy as np
from llvmlite import ir
from numba import carray, types

from numgemma.ops import kernels, threads
from numgemma.ops.compiled import in_llvm, kernel
from numgemma.ops.kernels import PLAIN, SUMS

AWAY, WAITING, CLAIMED, POSTED = range(4)
STATE, DONE, W, X, Y, STORED, INPUTS, FIRST, END = range(9)  # what is where in a box; done: how many shares so far
KINDS = {np.dtype(np.uint16): 0, np.dtype(np.int16): 1, np.dtype(np.float32): 2}  # of W, as kernels are given it
PATIENCE = 1 << 20  # looks, at about a nanosecond each: some steps of a layer, not the time between two tokens
SHARE = 1 << 15  # numbers of a matrix that are worth a share of their own
WOKEN = 1 << 18  # the same where the thread must be woken

boxes = np.zeros((256, 16), np.int64)  # one for each thread that ever waits; no two share a line of the cache
free = itertools.count()


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
def look_out(box, patience):
    """Do what is posted in this box, until there was nothing for so many looks."""
    state, looks = address(box, STATE), 0
    put(state, WAITING)
    while looks < patience or not exchanged(state, WAITING, AWAY):
        looks += 1
        now = seen(state)
        if now == POSTED:
            do(box)
            put(address(box, DONE), box[DONE] + 1)
            put(state, WAITING)
            looks = 0
        elif now == AWAY:  # called to other work
            break


@kernel(SUMS)
def do(box):
    """The share of y = W x that a box asks for."""
    inputs, first, end = box[INPUTS], box[FIRST], box[END]
    w, x, y = pointer(box[W]), carray(pointer(box[X]), inputs, np.float32), carray(pointer(box[Y]), end, np.float32)
    if box[STORED] == 0:
        kernels.times_one(carray(w, (end, inputs), np.uint16), x, y, first, end)
    elif box[STORED] == 1:
        kernels.times_one(carray(w, (end, inputs), np.int16), x, y, first, end)
    else:
        kernels.times_one(carray(w, (end, inputs), np.float32), x, y, first, end)


# of the thread that has the product


@kernel(SUMS)
def passed_on(w, x, y, stored, boxes, helpers):
    """y = W x with so many of the threads that wait; where fewer do, nothing is done, and False."""
    chosen, tickets, found = np.empty(helpers, np.intp), np.empty(helpers, np.int64), 0
    for n in range(len(boxes)):
        if found < helpers and exchanged(address(boxes[n], STATE), WAITING, CLAIMED):
            chosen[found], found = n, found + 1
    if found < helpers:
        for n in chosen[:found]:
            put(address(boxes[n], STATE), WAITING)
        return False
    for i in range(helpers):
        box = boxes[chosen[i]]
        tickets[i] = box[DONE] + 1
        box[W], box[X], box[Y] = address(w.reshape(w.size), 0), address(x, 0), address(y, 0)
        box[STORED], box[INPUTS] = stored, w.shape[1]
        box[FIRST], box[END] = len(w) * (i + 1) // (helpers + 1), len(w) * (i + 2) // (helpers + 1)
        put(address(box, STATE), POSTED)
    kernels.times_one(w, x, y, 0, len(w) // (helpers + 1))
    for i in range(helpers):
        done = address(boxes[chosen[i]], DONE)
        while seen(done) < tickets[i]:
            pass
    return True


@kernel(PLAIN)
def call_all(boxes):
    """Whoever waits goes back to where other work is handed out."""
    for n in range(len(boxes)):
        state = address(boxes[n], STATE)
        if seen(state) == WAITING:
            exchanged(state, WAITING, AWAY)


def times_one(w, x, y):
    """y = W x, by as many threads as there are shares worth it.  w: O I, as kernels take it   x: I   y: O"""
    helpers = threads.shares(len(w), max(1, SHARE // w.shape[1])) - 1
    if not helpers or not passed_on(w, x, y, KINDS[w.dtype], boxes, helpers):
        threads.in_shares(partial(kernels.times_one, w, x, y), len(w), max(1, WOKEN // w.shape[1]), stay)


def waited() -> bool:
    """Whether a thread waits at its box just now."""
    return bool((boxes[:, STATE] == WAITING).any())


def stay():
    """What a thread does after its share: wait at a box of its own."""
    box = getattr(threads.busy, "box", None)
    if box is None:
        box = threads.busy.box = next(free)
    if box < len(boxes):
        look_out(boxes[box], PATIENCE)


def forget() -> None:
    """A child process has none of its parent's threads."""
    global free
    free = itertools.count()
    boxes[:] = 0


threads.called.append(partial(call_all, boxes))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)
