"""numgemma: every Gemma 4 as a readable forward pass in NumPy, with every activation on record.

Its files: each imports only what stands above it.  To read, begin with families/gemma4/gemma4.py:

    errors       what a user is told, in one sentence
    version      the version's number
    data         the bundled checkpoint, the official configs
    atomic       files written whole or not at all
    incoming     files that come in, opened with care, and JSON parsed
    extras       packages that only some users need
    smallfloats  bfloat16 and float8, which NumPy has not
    pieces       tokenizer.json, around what differs from file to file
    config       JSON to dataclasses: an unknown key is an error
    weights      files of weights, one module a storage format
    checkpoint   the files of a checkpoint as one tree of weights
    streaming    weights that stay on disk until they are needed
    prompt       messages, pictures, sound and clips to the arrays that enter the model
    trace        where every tensor passes by: watched, recorded, edited
    masks        who attends to whom
    cache        what a run keeps of earlier tokens
    ops          the operations: their names, their definitions in NumPy, their compiled twins
    layers       attention, feed-forward, towers: what families share
    families     each kind of model: a record of what may be asked of it, and its forward pass, wired top to bottom
    official     the official configs, by name
    notebook     what a notebook shows of a result
    generate     sampling, the loops
    speculative  tokens drafted by a small model, checked by the large one in one pass
    denoise      a canvas becomes text: DiffusionGemma's sampler
    dump         a recorded run, in memory or in a file
    marks        arrays that remember what they were computed from
    graph        which point comes from which, with which axes, from which line: learned from a run
    anatomy      one layer of it, as boxes and arrows
    opening      from a path to a checkpoint that its family knows, every tensor there
    model        what `load` returns
    score        how likely a model finds a given text
    machine      what this machine can do at most
    colours      the colours of all figures
    debug        capture, read other engines' dumps, compare, measure the noise, replay, name the fault, report
    plots        what a run looks like: the course's figures, what the model sees of a picture
    exercise     what the course answers to an exercise that was left blank
    surgery      checkpoints made (random, stacked, transplanted), checked and traced to their parents
    cli          the command line
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from numgemma.errors import InputError
from numgemma.version import __version__

if TYPE_CHECKING:
    from numgemma.debug.capture.live import capture
    from numgemma.debug.compare.result import Diff
    from numgemma.dump import Dump, read_dump
    from numgemma.generate import Sampling
    from numgemma.model import Model, load
    from numgemma.speculative import Draft
else:

    def __getattr__(name):
        """The rest of __all__, imported by whoever asks first: `numgemma --help` shall not wait for NumPy."""
        if name not in HOMES:
            raise AttributeError(f"module 'numgemma' has no attribute '{name}'")
        return getattr(import_module(f"numgemma.{HOMES[name]}"), name)

    def __dir__():
        return sorted({*globals(), *__all__})


HOMES = {"Dump": "dump", "read_dump": "dump", "Sampling": "generate", "Model": "model", "load": "model"}
HOMES |= {"capture": "debug.capture.live", "Draft": "speculative"}

__all__ = ["Draft", "Dump", "InputError", "Model", "Sampling", "__version__", "capture", "diff", "load", "read_dump"]


def diff(a: "Dump | str | Path", b: "Dump | str | Path", points: Sequence[str] = ("*",)) -> "Diff":
    """Compare two dumps, point by point; a is the reference.  All errors are relative to its RMS: 1e-2 is 1 %.

    a, b: dumps, or paths of whatever `numgemma.debug.readers` reads: another engine's dump too.  points: globs of
    names; one with a leading `!` excludes.  Raises InputError where nothing there can be read.
    """
    from numgemma.debug.compare.diff import diff as compare
    from numgemma.debug.readers import read_any
    from numgemma.dump import Dump

    a, b = (x if isinstance(x, Dump) else read_any(x) for x in (a, b))
    return compare(a, b, points)
