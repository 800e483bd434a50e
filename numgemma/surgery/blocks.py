"""Tensors made of other tensors' lines: rows or columns of them, re-sequenced, repeated, or with new ones added.

A line is known by its few sampled values (sketch.py), and told from others by the angle between them, so that neither
a factor nor rounding hides it.  Where a line is found, the lines after it are compared with those that follow there:
a table of 260,000 rows is one search and one run.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np

from numgemma.surgery.relations import FOR_BYTES, NEAR, Relation, Span, rms, rounded
from numgemma.surgery.sketch import Sketch, plain

ALIKE = 0.9995  # cosine of a line with itself after noise of 3 %; lines of other tensors stay below
STILL = 0.9  # cosine of a line with itself after a change that leaves it recognisable
TELLING = 16  # values that a line needs, to be known by
PROBES = 8  # lines of a tensor that are looked for before all are
BATCH = 64  # lines looked for at a time
CHUNK = 1 << 16  # lines compared at a time
PRODUCT = 1 << 25  # cosines held at a time


@dataclass(frozen=True, eq=False)
class Lines:
    """The rows or the columns of one tensor, each by its few values."""

    axis: str
    parent: str
    sketch: Sketch

    @cached_property
    def raw(self) -> np.ndarray:
        return self.sketch.rows if self.axis == "rows" else self.sketch.columns.T

    @property
    def across(self) -> int:
        """How long a line is: lines of other lengths are not compared."""
        return self.sketch.width if self.axis == "rows" else self.sketch.height

    @cached_property
    def blur(self) -> float:
        """How far a format of codes moves a number, against their size."""
        return self.sketch.moved / max(rms(self.sketch.values), 1e-300)

    def values(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        return plain(self.raw[start:stop:step]).astype(np.float32)

    @cached_property
    def weights(self) -> np.ndarray:
        """Makes all places count alike: a few large channels would make all lines look the same."""
        sizes = np.sqrt(np.mean(self.values(0, CHUNK).astype(np.float64) ** 2, axis=0))
        return (1 / np.maximum(sizes, 1e-3 * sizes.max() + 1e-30)).astype(np.float32)


def alike(child: Lines, source: Lines) -> float:
    """The least cosine of a line with itself: where its numbers are codes, 1 - e^2 / 2 for four times their blur."""
    return min(ALIKE, 1 - 8 * (child.blur**2 + source.blur**2))


def unit(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Lines as directions; a line of zeros stays one."""
    weighted = values * weights
    length = np.linalg.norm(weighted, axis=1, keepdims=True)
    return weighted / np.where(length > 0, length, 1)


def assembled(children: Iterable[Sketch], parents: dict[str, dict[str, Sketch]]) -> dict[str, Relation]:
    """Child name -> what it is made of, for those that hold lines of the parents' tensors."""
    left = {child.name: child for child in children}
    found: dict[str, Relation] = {}
    for axis in ("rows", "columns"):
        some = [Lines(axis, "", child) for child in left.values() if is_matrix(child)]
        pool = [Lines(axis, parent, one) for parent, held in parents.items() for one in held.values() if is_matrix(one)]
        for child, sources in probe(some, pool):
            if relation := together(child, list(trace(child, sources))):
                found[child.sketch.name] = relation
                left.pop(child.sketch.name)
    return found


def is_matrix(sketch: Sketch) -> bool:
    return min(sketch.height, sketch.width) > 1 and sketch.distinct >= FOR_BYTES


def probe(children: list[Lines], pool: list[Lines]) -> Iterator[tuple[Lines, list[Lines]]]:
    """Each child with the tensors that hold at least two of a few lines of it."""
    groups: dict[int, list[Lines]] = {}
    for child in children:
        if min(child.across, child.raw.shape[1]) >= TELLING:
            groups.setdefault(child.across, []).append(child)
    for across, group in groups.items():
        picked = [np.linspace(0, len(child.raw) - 1, PROBES).astype(int) for child in group]
        probes = np.stack([plain(child.raw[at]).astype(np.float32) for child, at in zip(group, picked, strict=True)])
        sources: list[list[Lines]] = [[] for _ in group]
        for source in pool:
            if source.across == across:
                likeness = best(probes.reshape(-1, probes.shape[-1]), source)[0].reshape(len(group), PROBES)
                hits = likeness >= np.array([[alike(child, source)] for child in group])
                for i in np.flatnonzero(hits.sum(1) >= 2):
                    sources[i].append(source)
        yield from ((child, some) for child, some in zip(group, sources, strict=True) if some)


def best(values: np.ndarray, source: Lines) -> tuple[np.ndarray, np.ndarray]:
    """For each of some lines: how alike its nearest line in the source is, and which that is."""
    wanted = unit(values, source.weights)
    likeness, place = np.zeros(len(values), np.float32), np.zeros(len(values), int)
    step = max(64, min(CHUNK, PRODUCT // max(1, len(values))))
    for start in range(0, len(source.raw), step):
        near = np.abs(wanted @ unit(source.values(start, start + step), source.weights).T)
        at = near.argmax(1)
        highest = near[np.arange(len(near)), at]
        better = highest > likeness
        likeness[better], place[better] = highest[better], start + at[better]
    return likeness, place


def trace(child: Lines, sources: list[Lines]) -> Iterator[tuple[int, int, Lines, int]]:
    """Runs of lines: (start, stop, source, place), those of no source left out."""
    n, at, known = len(child.raw), 0, {}
    expected = [(source, 0) for source in sources]
    while at < n:
        hit = next(((s, p) for s, p in expected if follow(child, at, s, p, 1)), None)
        if hit is None:
            if at not in known:
                known = search(child, at, sources)
            hit = known[at]
        if hit is None:
            at += 1
            continue
        source, place = hit
        length = max(1, follow(child, at, source, place, n))  # that line is alike, if only just
        yield at, at + length, source, place
        at += length
        expected = [(source, place + length), (source, at)]  # as if nothing, or only one line, had come between


def search(child: Lines, at: int, sources: list[Lines]) -> dict[int, tuple[Lines, int] | None]:
    """Where each of the next lines is, if anywhere."""
    values = child.values(at, at + BATCH)
    found: dict[int, tuple[Lines, int] | None] = {}
    ranked = [(source, *best(values, source)) for source in sources]
    for i in range(len(values)):
        source, likeness, place = max(ranked, key=lambda one: one[1][i])
        found[at + i] = (source, int(place[i])) if likeness[i] >= alike(child, source) else None
    return found


def follow(child: Lines, at: int, source: Lines, place: int, most: int) -> int:
    """How many lines from `at` on are those of the source from `place` on."""
    room, length = min(most, len(child.raw) - at, len(source.raw) - place), 0
    while length < room:
        step = min(CHUNK, room - length)
        a = unit(child.values(at + length, at + length + step), source.weights)
        b = unit(source.values(place + length, place + length + step), source.weights)
        same = (np.abs((a * b).sum(1)) >= alike(child, source)) | ~(a.any(1) | b.any(1))
        if not same.all():
            return length + int(same.argmin())
        length += step
    return max(0, length)


# what the runs are together


def together(child: Lines, runs: list) -> Relation | None:
    """One relation for all runs; None where they are too few to be more than an accident."""
    n = len(child.raw)
    spans, error = fitted(child, runs)
    held = sum(span.stop - span.start for span in spans)
    if 4 * held < n:
        return None
    first, scales = spans[0], {span.scale for span in spans}
    scale = scales.pop() if len(scales) == 1 else 1.0
    kind, times = manner(child, runs, spans, scale)
    if kind in ("copy", "scaled") and held == n:  # it would have been found as a whole: it differs across the lines
        return None
    how = ""
    if kind in ("copy", "scaled") and still_alike(child, runs[0][2], spans):
        how = "changed"
        if error > NEAR:  # so are the lines that were found, only less: it was changed as a whole
            return None
    return Relation(kind, first.parent, first.source, scale, False, times, child.axis, spans, n - held, error, how=how)


def still_alike(child: Lines, source: Lines, spans: tuple[Span, ...]) -> bool:
    """Whether most lines that are not the source's are like those in their places: changed, and not new."""
    held = np.zeros(len(child.raw), bool)
    for span in spans:
        held[span.start : span.stop] = True
    rest = np.flatnonzero(~held)[:CHUNK]
    a, b = (unit(plain(one.raw[rest]).astype(np.float32), source.weights) for one in (child, source))
    return bool(np.median(np.abs((a * b).sum(1))) >= STILL)


def manner(child: Lines, runs: list, spans: tuple[Span, ...], scale: float) -> tuple[str, int]:
    """What the runs are together, and how often each line of the source is there."""
    source, n = runs[0][2], len(child.raw)
    lines, held = len(source.raw), sum(span.stop - span.start for span in spans)
    if len({(span.parent, span.source) for span in spans}) > 1:
        return child.axis, 1
    if held < n and spans[-1].stop == lines == held and is_mean(child, source):
        return "resized", 1
    times = repeats(spans, lines) if held == n else 1
    if times > 1:
        return ("split" if abs(scale * times - 1) < 1e-3 else "tiled"), times
    if n == lines and all(span.start == span.place for span in spans):  # the same, but for some new lines
        return ("copy" if scale == 1 else "scaled"), 1
    return child.axis, 1


def fitted(child: Lines, runs) -> tuple[tuple[Span, ...], float]:
    """The runs with their factors, and how much of their lines these leave unexplained."""
    spans, left, power = [], 0.0, 0.0
    for start, stop, source, place in runs:
        step = 1 + (stop - start) // CHUNK
        y = child.values(start, stop, step).astype(np.float64).reshape(-1)
        x = source.values(place, place + stop - start, step).astype(np.float64).reshape(-1)
        scale = float(x @ y / max(x @ x, 1e-300))
        noise = rms(y - scale * x) / max(rms(x) * len(x) ** 0.5, 1e-300)
        scale = rounded(scale, 10 * noise)
        left, power = left + float(np.sum((y - scale * x) ** 2)), power + float(y @ y)
        spans.append(Span(start, stop, source.parent, source.sketch.name, place, scale))
    return tuple(spans), (left / power) ** 0.5 if power else 0.0


def repeats(spans, lines: int) -> int:
    """How often each line of the source is there, if all are equally often; else 1."""
    counts = np.zeros(lines + 1, int)
    for span in spans:
        counts[span.place] += 1
        counts[span.place + span.stop - span.start] -= 1
    counts = np.cumsum(counts)[:-1]
    return int(counts[0]) if counts.size and (counts == counts[0]).all() else 1


def block(relation: Relation) -> int:
    """The width of the blocks that lines were moved in."""
    return gcd(*(n for span in relation.spans for n in (span.start, span.stop, span.place)))


def is_mean(child: Lines, source: Lines) -> bool:
    """Whether the lines after the source's are the mean of those."""
    total = sum(source.values(i, i + CHUNK).sum(0, dtype=np.float64) for i in range(0, len(source.raw), CHUNK))
    mean = np.asarray(total) / len(source.raw)
    new = child.values(len(source.raw), len(child.raw))
    return bool(rms(new - mean) <= 0.02 * rms(mean))
