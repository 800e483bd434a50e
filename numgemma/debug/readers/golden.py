"""Golden results as JSON or JSONL: token ids with all logits, or with the log-probabilities of the likeliest tokens.

    {"tokens": [2, 7, 9], "logits": [[...], [...], [...]]}                                    as MaxText's golden data
    {"prompt_token_ids": [2, 7, 9], "prompt_logprobs": [null, {"7": {"logprob": -0.1}, ...}, ...]}    as vLLM's output

An entry of prompt_logprobs tells what was expected at its own place, which is what follows the token before it.
"""

import json
from typing import Any

import numpy as np

from numgemma.config import LARGEST_INT
from numgemma.debug.readers.common import Haul, make_dump, token_ids
from numgemma.errors import InputError
from numgemma.incoming import read_bytes

IDS = ("tokens", "input_ids", "prompt_token_ids", "token_ids", "ids")
LOGITS = ("logits", "prompt_logits")
PROBS = ("prompt_logprobs", "top_logprobs", "logprobs")
FORM = 'should be one object a line with "tokens" and "logits" or "prompt_logprobs"'


def read_golden(path):
    """A Dump with the ids, and logits or top_logprobs."""
    record = only(path, records(path))
    key = next((key for key in IDS if key in record), None)
    if key is None:
        raise InputError(f"{path}: has no token ids; {FORM}.")
    ids = token_ids(numbers(path, record[key], None), path)
    if found := next((name for name in LOGITS if record.get(name)), None):
        return make_dump(path, "golden logits", of_logits(path, numbers(path, record[found], np.float32), ids), ids=ids)
    if found := next((name for name in PROBS if record.get(name)), None):
        return make_dump(path, "golden log-probabilities", of_probs(path, record[found], ids), ids=ids)
    raise InputError(f"{path}: has token ids, and no logits or prompt_logprobs; {FORM}.")


def is_golden(path) -> bool:
    """Whether a .json holds such a record, and not the tree of Transformers' debugger."""
    head = read_bytes(path)[:4096]
    return b'"module_path"' not in head and any(f'"{name}"'.encode() in head for name in IDS)


def records(path) -> list[Any]:
    text = read_bytes(path).decode("utf-8", "replace").removeprefix("\ufeff")
    try:
        whole = json.loads(text) if path.suffix == ".json" else [json.loads(s) for s in text.splitlines() if s.strip()]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON ({error!s:.80}); it {FORM}.") from None
    return whole if isinstance(whole, list) else [whole]


def only(path, found) -> dict[str, Any]:
    if len(found) != 1:
        raise InputError(f"{path}: holds {len(found)} prompts; a dump is that of one, so give a file with one of them.")
    if not isinstance(found[0], dict):
        raise InputError(f"{path}: {FORM}.")
    return found[0]


def numbers(path, value, dtype):
    try:
        return np.asarray(value, dtype)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{path}: holds a list that is no array of numbers; {FORM}.") from None


def of_logits(path, x, ids) -> Haul:
    """All tokens' logits, or those of the last one.  x: T V, 1 T V or V"""
    x = x[0] if x.ndim == 3 and len(x) == 1 else x[None] if x.ndim == 1 else x
    if x.ndim != 2 or len(x) not in (1, len(ids)):
        raise InputError(f"{path}: has logits of the shape {list(x.shape)} for {len(ids)} tokens.")
    at = None if len(x) == len(ids) else [[len(ids) - 1], None]
    parts = {} if at is None else {"logits": {"shape": [len(ids), x.shape[1]], "at": at, "slack": None}}
    return Haul({"logits": x}, {"logits": "T V"}, parts)


def of_probs(path, rows, ids) -> Haul:
    """The likeliest tokens after each token, as far as every row knows some.  ->  top_logprobs, top_ids: T J"""
    given = [row for row in rows if row] if isinstance(rows, list) else []
    if given and not all(rows[1:-1]):  # what comes after a hole would be taken for another token's
        raise InputError(f"{path}: a row of log-probabilities amid the others is empty; write one for every token.")
    if not given or len(given) not in (len(ids) - 1, len(ids)):
        raise InputError(f"{path}: has {len(given)} rows of log-probabilities for {len(ids)} tokens.")
    pairs = [sorted(listed(path, row), key=lambda pair: -pair[1]) for row in given]
    J = min(map(len, pairs))
    table = np.array([row[:J] for row in pairs])
    part = {"shape": [len(ids), J], "at": [list(range(len(given))), None], "slack": None}
    arrays: dict[str, np.ndarray] = {
        "top_ids": table[..., 0].astype(np.int64),
        "top_logprobs": table[..., 1].astype(np.float32),
    }
    return Haul(arrays, dict.fromkeys(arrays, "T J"), dict.fromkeys(arrays, part))


def listed(path, row) -> list[tuple[int, float]]:
    """Token and log-probability, from {id: {"logprob": x}} or {id: x}."""
    try:
        found = [(int(i), float(x["logprob"] if isinstance(x, dict) else x)) for i, x in row.items()]
        if not all(0 <= i < LARGEST_INT for i, _ in found):
            raise ValueError
        return found
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"{path}: a row of log-probabilities should be an object, token id -> logprob.") from None
