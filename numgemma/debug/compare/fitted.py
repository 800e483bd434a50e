"""Two dumps of one run brought to what both can be asked: the last token alone, the likeliest tokens alone."""

import numpy as np

from numgemma.dump import Dump

TOP, TOP_IDS = "top_logprobs", "top_ids"


def fitted(a: Dump, b: Dump) -> tuple[Dump, Dump]:
    """Both, with what the other lacks where it can be told."""
    a, b = with_top(a, b), with_top(b, a)
    return last_token(a, rows_of(b)), last_token(b, rows_of(a))


def rows_of(dump: Dump) -> int:
    """How many tokens were run: as the dump says, or as most of its tensors show."""
    ids = dump.meta.get("ids")
    if ids is not None:
        return len(ids)
    sizes = [len(dump[name]) for name in dump if dump.axes.get(name, "").startswith("T ")]
    return max(sizes, default=0)


def last_token(dump: Dump, tokens: int) -> Dump:
    """A dump of one row a point, of a run over more tokens: that row is known as the last one."""
    parts = dict(dump.meta.get("parts") or {})
    for name, x in dump.items():
        if x.ndim > 1 and dump.axes.get(name, "").startswith("T ") and len(x) == 1 < tokens and name not in parts:
            parts[name] = {"shape": [tokens, *x.shape[1:]], "at": [[tokens - 1], *[None] * (x.ndim - 1)], "slack": None}
    return Dump(dump.meta | {"parts": parts}, dump.arrays, dump.axes) if parts else dump


def with_top(dump: Dump, other: Dump) -> Dump:
    """A dump with logits, beside one that knows the likeliest tokens alone: the same of it."""
    if TOP not in other or TOP in dump or "logits" not in dump:
        return dump
    x = np.asarray(dump["logits"], np.float64)
    part = (other.meta.get("parts") or {}).get(TOP)
    rows = part["at"][0] if part else range(len(other[TOP]))
    if max(rows, default=0) >= len(x):
        return dump
    x = x[list(rows)]
    top = x.max(-1, keepdims=True)
    logprobs = x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))
    found = np.take_along_axis(logprobs, np.asarray(other[TOP_IDS]), -1)
    arrays = {**dump.arrays, TOP_IDS: other[TOP_IDS], TOP: found.astype(np.float32)}
    parts = dict(dump.meta.get("parts") or {}) | ({TOP: part, TOP_IDS: part} if part else {})
    return Dump(dump.meta | {"parts": parts}, arrays, dump.axes | dict.fromkeys((TOP, TOP_IDS), "T J"))
