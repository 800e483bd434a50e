"""A dump that is not what was run: a buffer used again before it was written out holds another point's numbers.

Two things betray it: the tensor is another point's, and what was computed from the true one is right.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

MOST = 64  # wrong points, beyond which no buffer is to blame


def overwritten(
    wrong: Mapping[str, np.ndarray],
    right: Iterable[str],
    points: Iterable[tuple[str, np.ndarray]],
    tolerance: float,
    hands_on: Callable[[str, str], bool],
) -> dict[str, str]:
    """Wrong point -> the point whose numbers it holds; nothing unless that explains all of them.

    right: points that are as they should be.  points: what every point should be.  hands_on: of a graph.
    """
    right = list(right)
    if not 0 < len(wrong) <= MOST:
        return {}
    if not all(any(hands_on(name, later) for later in right) for name in wrong):
        return {}
    found: dict[str, str] = {}
    for other, x in points:
        for name in wrong.keys() - found.keys() - {other}:
            if equal(np.asarray(x), np.asarray(wrong[name]), tolerance):
                found[name] = other
    return {name: found[name] for name in wrong} if len(found) == len(wrong) else {}


def equal(x, y, tolerance):
    """Whether two tensors are the same but for rounding; zeros are nobody's numbers."""
    if x.size != y.size or x.dtype.kind in "iub" or y.dtype.kind in "iub" or not y.any():
        return False
    x, y = x.reshape(-1), y.reshape(-1)
    scale = float(np.abs(y[:64]).max()) or 1.0
    if not np.allclose(x[:64], y[:64], rtol=0, atol=max(100 * tolerance, 1e-6) * scale):
        return False
    d = x.astype(np.float64) - y
    return float(np.vdot(d, d)) <= tolerance**2 * float(np.vdot(y.astype(np.float64), y))


def told(found: Mapping[str, str], right: int, total: int, side: str = "") -> str:
    """One sentence.  side: whose dump it is, as "B's "."""
    (name, other), *more = found.items()
    rest = f", and so {len(more)} more" if more else ""
    return (
        f"THE DUMP, NOT THE RUN: {side}{name} holds the numbers of {other}{rest}: a buffer that was overwritten before "
        f"it was written out; what was computed from it is right ({right} of {total} points); copy each tensor "
        "where it is made"
    )
