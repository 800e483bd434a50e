"""The mutation score by spans: known faults planted in some tokens of another engine, and what `whatif` makes of them.

    python benchmarks/span_score.py [-o benchmarks/span_score.md]

The other engine is numgemma through its cache, with rounding of its own; it makes the mistake in its cached steps, in
one chunk of its prefill or in its last chunk alone.  Its dump has only what modules return.  A case counts where the
fault moves some step of a clean float64 run, so where it can be seen at all.
"""

import argparse
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import tiny  # noqa: E402

import numgemma  # noqa: E402
from numgemma.atomic import write_whole  # noqa: E402
from numgemma.debug.blame.whatif import whatif  # noqa: E402
from numgemma.debug.faults import CATALOGUE, applied  # noqa: E402
from numgemma.debug.noise.perturb import perturbed  # noqa: E402
from numgemma.dump import Dump  # noqa: E402
from numgemma.prompt.media import NO_MEDIA  # noqa: E402
from numgemma.trace import Recorder  # noqa: E402

TOKENS, SEED = 18, 99
POINTS = ("*", *(f"!*.{name}" for name in ("scores", "probs", "context", "q_rope", "k_rope", "after_attention")))
SPANS = {
    "cached steps": [(11, False), *((end, True) for end in range(12, TOKENS + 1))],
    "middle chunk": [(6, False), (12, True), (TOKENS, False)],
    "last chunk": [(9, False), (TOKENS, True)],
}
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
        d = np.abs(wrong[name] - x).reshape(len(x), -1).max(-1) / np.sqrt((x * x).mean())
        if d.max() > MOVED and first is None:
            first, tokens = name, {int(t) for t in np.flatnonzero(d > MOVED)}
    return first, tokens


def cases():
    """Each fault in the first checkpoint where it can act."""
    done: set[str] = set()
    for variant, raw in tiny.VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            tiny.write(folder, raw)
            exact, model = numgemma.load(folder, "float64"), numgemma.load(folder)
            ids = tiny.prompt(raw, TOKENS).tolist()
            for fault in CATALOGUE.values():
                of_text = not fault.shows.startswith(("vision", "audio", "embed_vision", "embed_audio"))
                if of_text and fault.id not in done and fault.places(model):
                    done.add(fault.id)
                    yield from tried(variant, exact, model, ids, fault)


def tried(variant, exact, model, ids, fault):
    for span, parts in SPANS.items():
        clean = record(exact, ids, [(end, False) for end, _ in parts], fault.id)
        try:
            first, tokens = moved(clean, record(exact, ids, parts, fault.id))
            dump = record(model, ids, parts, fault.id, SEED)
        except (ValueError, IndexError):
            continue  # it cannot run so: its shapes are those of one pass
        if first is None:
            continue
        begun = time.perf_counter()
        found = whatif(model, dump)
        acts = {
            t
            for (end, wrong), (begin, _) in zip(parts, [(0, 0), *parts], strict=False)
            if wrong
            for t in range(begin, end)
        }
        yield row(variant, fault, span, first, tokens & acts, acts, found, time.perf_counter() - begun)


def row(variant, fault, span, first, tokens, acts, found, seconds):
    """tokens: that the fault moves at the first point; acts: on which it acts"""
    best = found.candidates[0] if found.candidates else None
    named = best is not None and best.explains == best.of and best.faults[0] == fault.id
    return {
        "variant": variant,
        "fault": fault.id,
        "span": span,
        "first": first,
        "localised": found.replay.first == first,
        "named": named,
        "span right": named and tokens <= set(best.tokens) <= acts,
        "said": "; ".join(best.faults) if best else "none",
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--out", type=Path, default=HERE / "span_score.md")
    out = parser.parse_args().out
    rows = []
    for found in cases():
        rows.append(found)
        marks = " ".join(f"{key}={found[key]}" for key in ("localised", "named", "span right", "said"))
        print(f"{found['variant']:6} {found['fault']:16} {found['span']:13} {found['first']:38} {marks}", flush=True)
        write_whole(out, page(rows))


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
