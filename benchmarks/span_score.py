"""The mutation score by spans: known faults planted in some tokens of another engine, and what `whatif` makes of them.

    python benchmarks/span_score.py [-o benchmarks/span_score.md] [--jobs N] [--every N]

The other engine is numgemma through its cache, with rounding of its own; it makes the mistake in its cached steps, in
one chunk of its prefill or in its last chunk alone; or in one pass, in one layer alone, or in the second of two
pictures.  Its dump has only what modules return.  A case counts where the fault moves some step of a clean float64 run,
so where it can be seen at all.
"""

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

if __name__ == "__main__":  # each process has one thread, before NumPy counts them
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import tiny  # noqa: E402

import numgemma  # noqa: E402
from numgemma.atomic import write_whole  # noqa: E402
from numgemma.debug.blame.whatif import whatif  # noqa: E402
from numgemma.debug.faults import CATALOGUE, applied, swapped  # noqa: E402
from numgemma.debug.faults.fault import of_sort  # noqa: E402
from numgemma.debug.noise.perturb import perturbed  # noqa: E402
from numgemma.dump import Dump  # noqa: E402
from numgemma.prompt.media import NO_MEDIA, read_media  # noqa: E402
from numgemma.trace import Recorder  # noqa: E402

TOKENS, SEED = 18, 99
POINTS = ("*", *(f"!*.{name}" for name in ("scores", "probs", "context", "q_rope", "k_rope", "after_attention")))
SPANS = {
    "cached steps": [(11, False), *((end, True) for end in range(12, TOKENS + 1))],
    "middle chunk": [(6, False), (12, True), (TOKENS, False)],
    "last chunk": [(9, False), (TOKENS, True)],
}
LAYER, PICTURE = "one layer", "one picture"
MOVED = 1e-4  # a relative error that nobody overlooks


def record(model, ids, parts, fault, seed=None):
    """A run in parts through the cache.  parts: (where it ends, whether it makes the mistake)"""
    prefill = parts[0][0] if len(parts) == 1 + TOKENS - parts[0][0] else None  # then the others go one by one
    dump, kvs, start = Dump(model.describe(ids, POINTS, prefill=prefill)), {}, 0
    with perturbed(seed) if seed is not None else nullcontext():
        for end, wrong in parts:
            dump.start = start
            tap = Recorder(dump.keep, model.dtype, POINTS)
            with applied(model, fault) if wrong else nullcontext():
                model.forward(np.asarray(ids[start:end]), NO_MEDIA, model.run(kvs, start), tap)
            start = end
    return dump


def moved(right, wrong):
    """The first point that the fault moves, and the tokens that it moves anywhere; None where there is none."""
    first, tokens = None, set()
    for name, x in right.items():
        if x.dtype.kind in "iub" or not right.axes[name].startswith("T"):
            continue
        d = off(x, wrong[name])
        if d.max() > MOVED and first is None:
            first, tokens = name, {int(t) for t in np.flatnonzero(d > MOVED)}
    return first, tokens


def off(x, y):
    """The largest difference in each row, relative to the tensor's size."""
    return np.abs(y - x).reshape(len(x), -1).max(-1) / np.sqrt((x * x).mean())


def planned():
    """(variant, fault, span) of every case; each fault in the first checkpoint where it can act."""
    done: set[str] = set()
    for variant, raw in (tiny.VARIANTS | {"26b": tiny.MULTIMODAL["26b"]}).items():
        with tempfile.TemporaryDirectory() as folder:
            model = numgemma.load(tiny.write(folder, raw))
            media = media_of(variant)
            for fault in CATALOGUE.values():
                if fault.id in done or not fault.can_show(model, media):
                    continue
                done.add(fault.id)
                if fault.shows.startswith(("vision", "embed_vision")):
                    yield variant, fault.id, PICTURE
                elif variant in tiny.VARIANTS:
                    yield from ((variant, fault.id, span) for span in SPANS)
                    alone = not (fault.by_kind or fault.across or fault.later)
                    if fault.layered and alone and in_the_middle(fault, model):
                        yield variant, fault.id, LAYER


def media_of(variant):
    return NO_MEDIA if variant in tiny.VARIANTS else read_media(tiny.multimodal_prompt(variant)[1])


def in_the_middle(fault, model):
    """A layer among those where a fault can act; None where there is one alone."""
    places = fault.places(model)
    return places[len(places) // 2] if len(places) > 1 else None


def tried(case):
    """The row of one case; None where the fault cannot run so, or moves nothing."""
    variant, id, span = case
    raw = (tiny.VARIANTS | tiny.MULTIMODAL)[variant]
    with tempfile.TemporaryDirectory() as folder:
        tiny.write(folder, raw)
        exact, model = numgemma.load(folder, "float64"), numgemma.load(folder)
        way = {PICTURE: in_one_picture, LAYER: in_one_layer}.get(span, on_some_tokens)
        try:
            first, dump, right = way(variant, exact, model, CATALOGUE[id], span)
        except (ValueError, IndexError):
            return None  # its shapes are those of one pass
        if first is None:
            return None
        begun = time.perf_counter()
        found = whatif(model, dump, media=media_of(variant))
        return row(variant, CATALOGUE[id], span, first, right, found, time.perf_counter() - begun)


def on_some_tokens(variant, exact, model, fault, span):
    """-> the point that shows it first, the dump, and whether a candidate has the right span"""
    ids, parts = tiny.prompt(tiny.VARIANTS[variant], TOKENS).tolist(), SPANS[span]
    clean = record(exact, ids, [(end, False) for end, _ in parts], fault.id)
    first, tokens = moved(clean, record(exact, ids, parts, fault.id))
    dump = record(model, ids, parts, fault.id, SEED)
    begins = [0, *(end for end, _ in parts)]
    acts = {t for (end, wrong), begin in zip(parts, begins, strict=False) if wrong for t in range(begin, end)}
    return first, dump, lambda best: tokens & acts <= set(best.tokens) <= acts


def in_one_layer(variant, exact, model, fault, span):
    ids, layer = tiny.prompt(tiny.VARIANTS[variant], TOKENS).tolist(), in_the_middle(fault, exact)
    with applied(exact, fault.id, layers=[layer]):
        wrong = exact.record(ids, POINTS)
    first, _ = moved(exact.record(ids, POINTS), wrong)
    with perturbed(SEED), applied(model, fault.id, layers=[layer]):
        dump = model.record(ids, POINTS)
    there = set(fault.places(model))

    def right(best):
        hit = best.layers if not isinstance(best.layers, str) else of_sort(best.layers, model)
        return {*(hit or ())} & there == {layer}

    return first, dump, right


def in_one_picture(variant, exact, model, fault, span):
    """In the second of two."""
    ids, media = tiny.multimodal_prompt(variant)[0], media_of(variant)

    def run(model):
        def see(original, suffix):
            with applied(model, fault.id) if suffix == "@1" else nullcontext():
                return original()

        with swapped("families.gemma4.multimodal.see", see):
            return model.record(ids, POINTS, media=media)

    clean, wrong = exact.record(ids, POINTS, media=media), run(exact)
    first = next((n for n, x in clean.items() if n in wrong and off(x, wrong[n]).max() > MOVED), None)
    with perturbed(SEED):
        dump = run(model)
    picture = [span for span in dump.meta["media"] if span["kind"] == "image"][1]
    tokens = tuple(range(picture["first"], picture["first"] + picture["count"]))
    return first, dump, lambda best: best.tokens == tokens


def row(variant, fault, span, first, right, found, seconds):
    """right: whether a candidate acts where the fault was planted.  One that makes the same numbers is as good."""
    best, *others = found.candidates or [None]
    same = [c for c in others if c.explains == c.of and c.xfloor == best.xfloor]
    whole = best is not None and best.explains == best.of
    named = whole and fault.id in [c.faults[0] for c in (best, *same)]
    return {
        "variant": variant,
        "fault": fault.id,
        "span": span,
        "first": first,
        "localised": found.replay.first == first,
        "named": named,
        "span right": named and right(best),
        "said": " or ".join("; ".join(c.faults) for c in (best, *same)) if best else "none",
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--out", type=Path, default=HERE / "span_score.md")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes; default: %(default)s")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th case (1: all)")
    args = parser.parse_args()
    rows, cases = [], list(planned())[:: args.every]
    print(f"{len(cases)} cases", flush=True)
    with ProcessPoolExecutor(args.jobs) as pool:
        for found in filter(None, pool.map(tried, cases)):
            rows.append(found)
            marks = " ".join(f"{key}={found[key]}" for key in ("localised", "named", "span right", "said"))
            where = f"{found['variant']:6} {found['fault']:16} {found['span']:13} {found['first']:38}"
            print(f"{where} {marks} {found['seconds']:.1f} s", flush=True)
            write_whole(args.out, page(rows))


def page(rows):
    total = len(rows)
    counts = {key: sum(r[key] for r in rows) for key in ("localised", "named", "span right")}
    said = ", ".join(f"{key}: {n}" for key, n in counts.items())
    head = "| variant | fault | acts in | shows first at | localised | named first | span right | whatif says |"
    lines = [f"# Faults of some tokens\n\n{total} cases; {said}.  Written by span_score.py.\n", head, "|---" * 8 + "|"]
    for r in rows:
        marks = " | ".join("yes" if r[key] else "no" for key in ("localised", "named", "span right"))
        lines.append(f"| {r['variant']} | {r['fault']} | {r['span']} | {r['first']} | {marks} | {r['said']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
