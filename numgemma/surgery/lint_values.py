"""Lint: the values of the tensors: broken numbers, dead rows, and what was left as it was initialised.

Every tensor is read once, a piece at a time, as plain integers: without its sign bit a float is ordered as an integer
is, so one maximum per row finds zeros, infinities and NaN, in any float format.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from numgemma.smallfloats import BFLOAT16
from numgemma.surgery.findings import Finding, error, note, ranges, spelled, warning
from numgemma.surgery.sketch import PIECE, as_matrix, bits
from numgemma.weights.safetensors import release

# Without its sign: the bits from which on a number is infinite, and above which it is none.
INFINITE = {BFLOAT16: 0x7F80, np.dtype("<f2"): 0x7C00, np.dtype("<f4"): 0x7F800000}
INFINITE |= {np.dtype("<f8"): 0x7FF0000000000000}

FEW = 8  # dead rows that are named
SMALL = 1 << 16  # values, at most, of a tensor that is looked at number by number


@dataclass(frozen=True)
class Facts:
    """What one pass over a tensor tells."""

    name: str
    rows: int  # of a matrix; 1 for less
    broken: int  # rows with NaN or an infinity
    nan: bool
    dead: list[int]  # rows of zeros, the first few
    zeros: int  # how many there are
    values: np.ndarray | None  # all of them, of a small vector or a scalar


def examine(name: str, x: np.ndarray) -> Facts:
    """One pass; memory holds one piece."""
    limit = INFINITE.get(x.dtype) if isinstance(x, np.ndarray) else None  # quantised: `audit` judges it
    if limit is None or not x.size:
        return Facts(name, 0, 0, False, [], 0, None)
    m = as_matrix(x) if x.ndim > 1 else x.reshape(1, -1)
    magnitude = np.array((1 << 8 * x.dtype.itemsize - 1) - 1, f"u{x.dtype.itemsize}")
    step = max(1, PIECE // (m.shape[1] * x.dtype.itemsize))
    broken, nan, zeros = 0, False, 0
    dead: list[int] = []
    for start in range(0, len(m), step):
        piece = m[start : start + step]
        largest = (bits(piece) & magnitude).max(1)
        empty = np.flatnonzero(largest == 0)
        broken, zeros = broken + int((largest >= limit).sum()), zeros + len(empty)
        nan |= bool((largest > limit).any())
        dead += (start + empty[: FEW - len(dead)]).tolist()
        release(piece)
    values = x.astype(np.float64).reshape(-1) if x.ndim < 2 and x.size <= SMALL else None
    return Facts(name, len(m), broken, nan, dead, zeros, values)


def value_rules(
    tensors: Mapping[str, np.ndarray], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Finding]:
    """Everything that the numbers themselves tell."""
    total, done, facts = sum(x.nbytes for x in tensors.values()), 0, []
    for name, x in tensors.items():
        facts.append(examine(name, x))
        done += x.nbytes
        progress(done, total)
    found = [*broken_numbers(facts), *dead_rows(facts), *norm_rules(facts), *bounds(facts)]
    return found + initial(facts) + orderings(tensors)


def is_bound(name: str) -> bool:
    return name.endswith(("put_min", "put_max"))


def broken_numbers(facts: list[Facts]) -> list[Finding]:
    found = []
    for what, some in (
        ("NaN", [f for f in facts if f.nan]),
        ("infinities", [f for f in facts if f.broken and not f.nan and not is_bound(f.name)]),
    ):
        if some:
            names = [f.name for f in some]
            rows = sum(f.broken for f in some)
            found.append(error("nan", f"{spelled(names)}: {what}, in {rows} row{'s' * (rows > 1)}.", names))
    return found


def dead_rows(facts: list[Facts]) -> list[Finding]:
    found = []
    empty = [f.name for f in facts if f.rows and f.zeros == f.rows and not is_bound(f.name)]
    if empty:
        found.append(warning("zeros", f"{spelled(empty)}: nothing but zeros.", empty))
    for f in facts:
        if f.zeros == 1 < f.rows and f.name.startswith("embed_tokens"):
            text = f"{f.name}: row {f.dead[0]} is zeros, as that of a padding token may be."
            found.append(note("dead", text, [f.name]))
        elif 0 < f.zeros < f.rows:
            text = f"{f.name}: {f.zeros} of {f.rows} rows are zeros ({ranges(f.dead)}{', ...' * (f.zeros > FEW)})."
            found.append(warning("dead", text, [f.name]))
    return found


def norm_rules(facts: list[Facts]) -> list[Finding]:
    """Gemma 4 multiplies by w where Gemma 3 multiplied by 1 + w: weights around zero are of the old convention."""
    norms = [
        f for f in facts if "norm" in f.name and f.name.endswith(".weight") and f.values is not None and f.values.size
    ]
    found = []
    old = [f.name for f in norms if f.values is not None and (f.values < 0).mean() > 0.1]
    if old:
        text = f"{spelled(old)}: over a tenth of the weights is negative, as where 1 + w is meant; here w is."
        found.append(warning("norms", text, old))
    if len(norms) > 1 and all(f.values is not None and (f.values == 1).all() for f in norms):
        found.append(warning("initial", f"All {len(norms)} norms are all ones, as before any training."))
    return found


def bounds(facts: list[Facts]) -> list[Finding]:
    """Clip bounds that clip nothing, or everything."""
    values = {f.name: float(f.values[0]) for f in facts if is_bound(f.name) and f.values is not None and f.values.size}
    found = []
    open_ = [name for name, value in values.items() if np.isinf(value)]
    if open_:
        text = (
            f"{len(open_)} of {len(values)} clip bounds are infinite, as before calibration: these linears never clip."
        )
        found.append(warning("bounds", text, open_))
    crossed = [n for n, low in values.items() if n.endswith("_min") and values.get(n[:-3] + "max", np.inf) <= low]
    if crossed:
        found.append(error("bounds", f"{spelled(crossed)} is not below its _max, so all values become one.", crossed))
    return found


UNTRAINED = {  # what is 1 before training, and what it means where it still is
    r"layers\.\d+\.layer_scalar": "a loader that takes parameters and no buffers leaves it so",
    r"layers\.\d+\.router\.scale": "it was never trained",
    r"layers\.\d+\.altup\.correct_output_scale": "it was never trained",
    r"layers\.\d+\.router\.per_expert_scale": "it was never trained",
}


def initial(facts: list[Facts]) -> list[Finding]:
    """Scalars and scales at their initial value in every layer; scalars that silence a layer."""
    found = []
    for pattern, why in UNTRAINED.items():
        some = [f for f in facts if re.fullmatch(pattern, f.name) and f.values is not None]
        if some and all(f.values is not None and (f.values == 1).all() for f in some):
            names = [f.name for f in some]
            found.append(warning("initial", f"{spelled(names)} is 1 everywhere: {why}.", names))
    silent = [f.name for f in facts if f.name.endswith("layer_scalar") and f.values is not None and not f.values.any()]
    if silent:
        found.append(error("silent", f"{spelled(silent)} is 0: nothing passes these layers.", silent))
    return found


def orderings(tensors: Mapping[str, np.ndarray]) -> list[Finding]:
    """A drafter's tokens, cluster by cluster: each of them once."""
    found = []
    for name, x in tensors.items():
        if name.endswith("token_ordering") and not np.array_equal(np.sort(x, axis=None), np.arange(x.size)):
            text = f"{name} does not hold each of {x.size} tokens once, so some are never drafted; zeros are what a "
            found.append(error("ordering", text + "loader leaves that takes parameters and no buffers.", [name]))
    return found


def tied_head(tensors: Mapping[str, np.ndarray]) -> list[Finding]:
    """A stored head although the config ties it to the embeddings: harmless where it repeats them."""
    head, table = tensors.get("lm_head.weight"), tensors.get("embed_tokens.weight")
    if not (isinstance(head, np.ndarray) and isinstance(table, np.ndarray)):
        return []
    if head.shape == table.shape and head.dtype == table.dtype and same_bytes(head, table):
        return [note("head", "lm_head.weight repeats embed_tokens.weight, to which it is tied.", ["lm_head.weight"])]
    text = "lm_head.weight is not embed_tokens.weight, to which the config ties it: engines differ in which they read."
    return [warning("head", text, ["lm_head.weight"])]


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    step = max(1, PIECE // max(1, a[:1].nbytes))
    return all(np.array_equal(bits(a[i : i + step]), bits(b[i : i + step])) for i in range(0, len(a), step))
