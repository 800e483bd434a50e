"""Another sequence that the engine ran: its keys and values, and how far rounding takes them.

A step that reads them errs by all that was rounded before they were made, so the noise of a single step is too small a
measure: it is measured anew, with the rows of several right runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np

from numgemma.debug.blame.one_step import RUNS, Local, Rerun, as_held, errors, widen
from numgemma.debug.blame.spans import in_parts
from numgemma.debug.faults.sequences import KNOWN, Other, beside, kept_by, known, shared
from numgemma.debug.measure.precision import TOLERANCES, dtype_of, rounding_of
from numgemma.debug.noise.perturb import perturbed
from numgemma.debug.noise.rounding import rounded_as
from numgemma.errors import InputError
from numgemma.prompt.media import NO_MEDIA


def alongside(subject: Rerun, ids):
    """A context in which faults may read another sequence's rows; one that does nothing where no ids are given."""
    return nullcontext() if ids is None else beside(of_other(subject, ids))


def of_other(subject: Rerun, ids) -> Other:
    """The other sequence, run by itself.  Raises InputError where it is no other, or the model keeps no rows."""
    model, precision = subject.model, subject.precision
    if "forget" not in model.family.parts:
        raise InputError(f"{model.family.name} keeps no keys and values from pass to pass: no other sequence is read.")
    ids = model.checked(np.asarray(ids), NO_MEDIA)
    begin = shared(list(subject.ids), list(ids))
    if begin == len(ids):
        raise InputError("The other sequence is the beginning of the dump's own: give one that goes on otherwise.")
    with np.errstate(all="ignore"):
        with as_held(precision):
            exact = kept_by(replace(model, dtype=np.dtype("float64")), ids)
        noisy = []
        for seed in range(RUNS):
            with perturbed(seed), rounded_as(rounding_of(precision)):
                noisy.append(kept_by(replace(model, dtype=dtype_of(precision)), ids))
    windows = {spec.index: spec.window for spec in model.outline.layers if spec.index in exact}
    return Other(len(ids), begin, windows, exact, noisy)


def reads_other(fault) -> bool:
    """Whether a fault is one of another sequence's rows."""
    return fault.at is known


@contextmanager
def drawn(run: int) -> Iterator[None]:
    """The rows of one of the runs that round."""
    KNOWN[-1].drawn = run
    try:
        yield
    finally:
        KNOWN[-1].drawn = None


def in_noisy_parts(subject: Rerun, base: Local, after: Local, passes, fault, under, layers=None) -> Local:
    """`in_parts`; of a fault that reads another sequence's rows it is judged by their noise too."""
    some = in_parts(subject, base, after, passes, under, layers)
    if not reads_other(fault):
        return some
    some.limits = dict(some.limits)
    channel_floor = TOLERANCES[subject.precision].channel_floor
    for run in range(len(KNOWN[-1].noisy)):
        with drawn(run):
            other = in_parts(subject, base, after, passes, under, layers)
        for name, x in some.truth.items():
            if x.dtype.kind not in "iub":
                widen(some, name, errors(x, other.truth[name], some.axes[name], channel_floor))
    return some
