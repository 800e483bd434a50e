"""Transformers' `output_hidden_states`, as people save them: a list in a .pt, a stack in an .npz, a file a layer.

Entry 0 holds the embeddings, entry i the output of layer i - 1; the last one has gone through the last norm.
"""

import re

from numgemma.errors import InputError

ENTRY = re.compile(r"(?:(?:\w+\.)*(?:all_)?(?:hidden_states?|hiddens?|hs|states?|arr)[._\[-]?)?0*(\d{1,4})\]?")
STACK = re.compile(r"(?:\w+\.)*(?:(?:all_)?(?:hidden_states?|hiddens?|hs|states?)|arr_0)")


def unstacked(named):
    """(label, tensor) pairs; a stack of all states, L+1 1 T D or L+1 T D, becomes one pair for each."""
    for label, x in named:
        stack = STACK.fullmatch(label) and x.dtype.kind not in "iub"
        if stack and (x.ndim == 4 or (x.ndim == 3 and len(x) > 1)):
            yield from ((f"hidden_states.{i}", state) for i, state in enumerate(x))
        else:
            yield label, x


def states(named, config, path) -> dict[str, str]:
    """Label -> point, of the entries of such a list; nothing where there is none.  named: label -> tensor

    config: the outline of the model, or None.  Raises InputError where the list is not as long as the model is deep.
    """
    entries = {int(match[1]): label for label in named if (match := ENTRY.fullmatch(label))}
    first = min(entries, default=2)
    shapes = {named[label].shape for label in entries.values()}
    unbroken = sorted(entries) == list(range(first, first + len(entries)))
    streams = len(shapes) == 1 and len(next(iter(shapes))) in (2, 3)
    if len(entries) < 2 or first > 1 or not (unbroken and streams):
        return {}
    last = max(entries)
    if config is not None and last != len(config.layers):
        raise InputError(length(path, len(entries), first, len(config.layers)))
    points = {i: "embed_tokens" if i == 0 else "norm" if i == last else f"layers.{i - 1}.out" for i in entries}
    return {entries[i]: point for i, point in points.items()}


def length(path, entries, first, layers):
    """What is wrong with a list of the wrong length."""
    due = f"{layers} layers make {layers + 1}: 0 the embeddings, i the output of layer i - 1, the last one normed"
    off = first == 0 and entries == layers
    what = "your list is off by one" if off else "it is of another model, or of a part of one"
    return f"{path}: holds {entries} hidden states, and {due}; {what}, so name its entries with --map."
