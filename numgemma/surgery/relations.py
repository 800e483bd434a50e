"""What one tensor is to another: a copy, a multiple, the same norm in the other convention, parts of it, or nothing.

Everything is decided on sketches.  A tensor is taken for another's descendant when what is left after the best fit is
small against its own spread (not its size: two norms whose values all lie near 1 are not each other's copies), and
when it holds enough different values for that to be no accident.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from numgemma.surgery import rounding
from numgemma.surgery.sketch import Sketch

# How much of a tensor's spread may be left unexplained, as noise is; unrelated tensors leave all of it.  Vectors may
# leave more than matrices: the rounding of values near 1 is large against a spread of a few hundredths.
LEFT, LEFT_OF_VECTOR = 0.03, 0.2
LOOSE = 0.25  # of a matrix that no blocks of lines explain either: a copy that was trained on, or is noisy
CODES = 2.0  # times what a format moves numbers by may be left, where one of both is stored as codes
WORTH = 0.9  # correlation from which on a fit is tried
ENOUGH = 8  # different values, at least, before a likeness is looked for
FOR_BYTES = 4  # different values that make equal bytes no accident
NEAR = 5e-3  # how far one number may be from the one it was: bfloat16 rounds by up to 4e-3, noise of 1e-3 reaches 4e-3


@dataclass(frozen=True)
class Span:
    """Lines start to stop of a tensor are those of a source from `place` on, times `scale`."""

    start: int
    stop: int
    parent: str
    source: str
    place: int
    scale: float = 1.0


@dataclass(frozen=True)
class Share:
    """One tensor in a mixture: how much of it, give or take `give`, and how many of its differences were kept."""

    parent: str
    source: str
    weight: float
    give: float = 0.0
    density: float = 1.0


@dataclass(frozen=True)
class Relation:
    """Where a tensor is from.

    kind: copy, scaled, converted (s times 1 + w), tiled, split (tiled and divided by the number of times, so that a
    product with it stays), rows, columns (blocks of the source's), resized (new rows are the mean), blend (a sum of
    several, in `shares`), thinned (differences to a base of which some were dropped), edited (a difference of few
    directions), experts (those of the source, chosen, reordered or merged), changed (like the source, and nothing that
    can be named), fresh.
    """

    kind: str
    parent: str | None = None
    source: str | None = None  # short name of the tensor it is from; of the first, where there are several
    scale: float = 1.0
    plus_one: bool = False  # the source's values plus one, before the scale
    times: int = 1  # how often each of the source's lines is there
    axis: str = ""  # "rows" or "columns": what the blocks are made of; of an edit "experts": its rank is that of each
    spans: tuple[Span, ...] = ()
    new: int = 0  # lines that are in no source; of a copy in which `how` is changed: that are not as they were
    error: float = 0.0  # RMS of what the fit leaves, against the tensor's own
    exact: bool = False  # byte for byte, by hash
    constant: float | None = None  # a fresh tensor whose values are all this one
    floor: float = 0.0  # what rounding alone would leave, in the measure of `error`; 0: not judged
    shares: tuple[Share, ...] = ()  # of a mixture
    how: str = ""  # of a blend: linear, slerp, rows; of thinned: dare, ties, ...; of an edit: where its directions are
    t: float | None = None  # of a slerp: how far from the first share to the second
    rank: int = 0  # of an edit: how many directions
    size: float = 0.0  # of an edit: its RMS over the tensor's
    removed: float | None = None  # of an edit of one direction: how much of the source along it is gone
    experts: tuple[tuple[int, ...], ...] = ()  # of each expert, those of the source that it is made of
    also: tuple[str, ...] = ()  # other parents that would do as well


FRESH = Relation("fresh")


def fresh(sketch: Sketch) -> Relation:
    constant = sketch.distinct == 1 and sketch.values.size == sketch.size and np.isfinite(float(sketch.rows[0, 0]))
    return Relation("fresh", constant=float(sketch.values[0]) if constant else None)


# whole tensors


def byte_copies(child: Sketch, index: dict[bytes, list[tuple[str, Sketch]]]) -> list[Relation]:
    """Every parent tensor with the same bytes."""
    found = index.get(child.digest, []) if child.size else []
    return [Relation("copy", parent, s.name, exact=True) for parent, s in found if s.dtype == child.dtype]


def by_digest(parents: dict[str, dict[str, Sketch]]) -> dict[bytes, list[tuple[str, Sketch]]]:
    index = defaultdict(list)
    for parent, sketches in parents.items():
        for one in sketches.values():
            index[one.digest].append((parent, one))
    return dict(index)


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def likenesses(
    children: Iterable[Sketch], parents: dict[str, dict[str, Sketch]], left: float = LEFT
) -> dict[str, list[Relation]]:
    """Child name -> what it may be made of, among the parents' tensors of its shape.

    left: how much of a matrix may remain unexplained.
    """
    groups = defaultdict(list)
    for parent, sketches in parents.items():
        for one in sketches.values():
            groups[squeezed(one.shape)].append((parent, one))
    wanted = defaultdict(list)
    for child in children:
        if child.distinct >= ENOUGH:
            wanted[squeezed(child.shape)].append(child)
    found = {}
    for shape, some in wanted.items():
        if shape in groups:
            for child, closest in closest_of(some, groups[shape]):
                found[child.name] = [r for parent, source in closest if (r := relate(child, parent, source, left))]
    return found


def closest_of(children: list[Sketch], candidates: list[tuple[str, Sketch]]) -> Iterator:
    """Each child with the candidates whose values go up and down most nearly as its own do."""
    pool = np.stack([standard(one.values) for _, one in candidates])
    for child in children:
        likeness = np.abs(pool @ standard(child.values))
        nearest = np.flatnonzero(likeness >= max(WORTH, likeness.max() - 1e-6))
        yield child, [candidates[i] for i in nearest]


def standard(values: np.ndarray) -> np.ndarray:
    """Centred, and of length one; zeros where all are the same."""
    centred = values - values.mean()
    length = np.linalg.norm(centred)
    return (centred / length if length > 1e-9 * np.linalg.norm(values) else 0 * centred).astype(np.float32)


def relate(child: Sketch, parent: str, source: Sketch, most: float) -> Relation | None:
    """The child as s times the source, or s times one plus it; None where neither explains it."""
    y, x = child.values, source.values
    scale, plus_one, left = fit(y, x)
    moved = math.hypot(child.moved, scale * source.moved)
    if left > max(allowed(child, most) * y.std(), CODES * moved):
        return None
    kind = "converted" if plus_one else "copy" if scale == 1 else "scaled"
    bits = min(rounding.digits(child), rounding.digits(source))
    least = math.hypot(rounding.floor(y, (x + plus_one)[:, None], np.array([scale]), bits), moved)
    return Relation(kind, parent, source.name, scale, plus_one, error=left / rms(y), floor=least / rms(y))


def allowed(child: Sketch, most: float) -> float:
    """What may be left over: as noise leaves it, and less where there are so few values that chance could do as well.

    Of n random values a fit leaves the share d with a probability of about d ** (n - 2); that is held below 1e-12.
    """
    usual = LEFT_OF_VECTOR if min(child.height, child.width) <= 1 else most
    return min(usual, 10 ** (-12 / max(1, child.distinct - 2)))


def fit(y: np.ndarray, x: np.ndarray) -> tuple[float, bool, float]:
    """The best of y = s x and y = s (1 + x): s, whether one is added, and the RMS of what is left.

    s is told to ten times its standard error: the noise need not be of one size, nor without a bias.
    """
    found = []
    for plus_one in (False, True):
        base = x + plus_one
        power = base @ base
        scale = float(y @ base / power) if power else 0.0
        left = rms(y - scale * base)
        scale = rounded(scale, 10 * left / (rms(base) * math.sqrt(len(y))) if power else 0.0)
        found.append((rms(y - scale * base), plus_one, scale))
    left, plus_one, scale = min(found)
    return scale, plus_one, left


def rounded(scale: float, error: float) -> float:
    """The number with the fewest digits within its error: 0.5, not 0.499987."""
    for digits in range(7):
        short = float(f"{scale:.{digits}e}")
        if abs(short - scale) <= max(error, 1e-6 * abs(scale)):
            return short
    return scale


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x * x))) if x.size else 0.0


def tiled_vectors(child: Sketch, parents: dict[str, dict[str, Sketch]]) -> list[Relation]:
    """A vector that is a shorter one several times over, as the norm of heads that were widened by tiling."""
    n, found = child.size, []
    if child.width != 1 or child.distinct < ENOUGH or n != len(child.values):
        return []
    for parent, sketches in parents.items():
        for one in sketches.values():
            if one.width == 1 and 1 < one.size < n and n % one.size == 0 and one.distinct > 1:
                tile = np.tile(one.values, n // one.size)
                if abs(standard(tile) @ standard(child.values)) >= WORTH:
                    found += tiling(child, tile, parent, one)
    return sorted(found, key=lambda relation: relation.error)


def tiling(child: Sketch, tile: np.ndarray, parent: str, source: Sketch) -> list[Relation]:
    scale, plus_one, left = fit(child.values, tile)
    if left > allowed(child, LEFT) * child.values.std():
        return []
    times = child.size // source.size
    return [Relation("tiled", parent, source.name, scale, plus_one, times, "rows", error=left / rms(child.values))]


# one number, or many equal ones: too little to speak for itself


def supported(child: Sketch, parent: str, source: Sketch) -> Relation | None:
    """A copy, of which only its place among others says that it is one: layer 3's scalar beside layer 3's matrices."""
    if squeezed(child.shape) != squeezed(source.shape):
        return None
    if child.dtype == source.dtype and child.digest == source.digest:
        return Relation("copy", parent, source.name, exact=True)
    y, x = child.values, source.values
    for kind, plus_one in (("copy", False), ("converted", True))[: min(2, y.size)]:
        left = rms(y - (x + plus_one))
        if left <= NEAR * rms(y) and (y.size == 1 or np.abs(y - x - plus_one).max() <= 4 * NEAR * rms(y)):
            return Relation(kind, parent, source.name, plus_one=plus_one, error=left / rms(y) if left else 0.0)
    return None
