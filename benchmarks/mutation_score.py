"""The mutation score of the debugger: every known fault, planted in another engine, and what `whatif` makes of it.

    python benchmarks/mutation_score.py [-o benchmarks/mutation_score.md] [--jobs N] [FAULT ...]

The other engine is numgemma with the fault and with rounding of its own, in float32 and in bfloat16; its dump has only
what modules return.  What should be found is known without the debugger's verdict: the fault's effect on each step of a
clean float64 run says where it shows first, and whether it is above the noise at all.

Gemma 4 and 12B are given every fault that can act there; the other families their own, each in a table of its own.
What no single pass can show (a drafter's loop, a canvas's sampler) is left to the tests of those loops.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # each process has one thread, before NumPy counts them
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import tiny  # noqa: E402
import tiny3n  # noqa: E402
import tiny_drafter  # noqa: E402
import tiny_embedding  # noqa: E402

import numgemma  # noqa: E402
from numgemma.debug.blame.alone import HEAD, again  # noqa: E402
from numgemma.debug.blame.limits import size_of  # noqa: E402
from numgemma.debug.blame.one_step import TOWERS, Rerun, as_held, local  # noqa: E402
from numgemma.debug.blame.whatif import whatif  # noqa: E402
from numgemma.debug.compare.scoring import SUSPECT_TO  # noqa: E402
from numgemma.debug.faults import CATALOGUE, applied  # noqa: E402
from numgemma.debug.noise.perturb import perturbed  # noqa: E402
from numgemma.dump import Dump  # noqa: E402
from numgemma.prompt.media import NO_MEDIA, Media, read_media  # noqa: E402

PRECISIONS = ("float32", "bfloat16")
TOKENS = 20  # the windows are 7
KEYS = 23  # that a drafter is handed; more than its window and one
CUT = 24  # numbers of a vector that is cut
SEED = 99  # of the other engine's rounding

# A table, and what its faults' ids begin with; Gemma 4's has all that can act.
OWN = {
    "": ("",),
    "Gemma 3n's own faults": ("N", "G"),
    "a drafter's own faults": ("D",),
    "DiffusionGemma's own faults": ("F",),
    "EmbeddingGemma 2's own faults": ("E", "P06"),
}
GEMMA_4, GEMMA_3N, DRAFTER, DIFFUSION, EMBEDDING = OWN

# Points that no module of Transformers returns.
INTERIOR = ("q_rope", "k_rope", "scores", "probs", "context", "after_attention", "after_mlp", "per_layer_inputs")
INTERIOR += ("cos", "sin", "router.weights", "router.ids", "placed")
INTERIOR += ("altup.predict", "altup.correct", "modalities", "modalities#1", "streams")


@dataclass(frozen=True)
class Case:
    """One fault in one checkpoint and precision, and what became of it."""

    fault: str
    table: str
    variant: str
    precision: str
    expected: str | None  # the point that shows it first; None where its effect is within the noise
    found: str | None  # the point that replay names
    named: tuple[str, ...] | None  # the faults that whatif names first
    others: tuple[tuple[str, ...], ...]  # further ones that reproduce the dump as well

    @property
    def localised(self):
        return self.found == self.expected

    @property
    def first(self):
        return self.named == (self.fault,)


@dataclass(frozen=True, eq=False)
class Content:
    """What is run of one checkpoint.  besides: less of it, to which those faults are left that show there too"""

    table: str
    variant: str
    folder: Any
    ids: Any
    media: Media = NO_MEDIA
    besides: Media | None = None
    dim: int | None = None  # of the vector, where it is cut

    def opened(self, precision):
        model = numgemma.load(self.folder, precision)
        return model if self.dim is None else replace(model, config=replace(model.config, dim=self.dim))

    def faults(self, precision, ids=()):
        """Those that are this table's, or of them those that are named, and can show in this run."""
        whole, model = numgemma.load(self.folder, precision), self.opened(precision)
        for fault in CATALOGUE.values():
            asked = fault.id.startswith(OWN[self.table]) and not fault.later and (not ids or fault.id in ids)
            if asked and self.past(fault, model) and fault.can_show(model, self.media):
                less = self.besides is not None and fault.can_show(whole, self.besides)
                if not less:
                    yield fault

    def past(self, fault, model):
        """Whether the prompt is long enough; a drafter's step, which has none, has the keys for it."""
        return not fault.past_window or not len(self.ids) or len(self.ids) > model.outline.window


def contents(folder):
    """All that is run.  Sharing layers keep the keys and values that nobody should read."""
    folder = Path(folder)
    for name, raw in tiny.VARIANTS.items():
        tensors = tiny.random_tensors(raw) | tiny.leftover_tensors(raw)
        yield Content(GEMMA_4, name, tiny.write(folder / name, raw, tensors), tiny.prompt(raw, TOKENS))
    yield Content(GEMMA_4, "tiny", "tiny", tiny.prompt({"vocab_size": 1024}, TOKENS))
    for name, raw in tiny.MULTIMODAL.items():
        yield with_media(GEMMA_4, name, tiny.write(folder / name, raw), *tiny.multimodal_prompt(name))
    prompt = tiny.unified_prompt(tiny.UNIFIED_STORED)
    yield with_media(GEMMA_4, "12b", tiny.write(folder / "12b", tiny.UNIFIED), *prompt)
    tensors = tiny3n.random_tensors(tiny3n.WHOLE, leftovers=True)
    whole = tiny3n.write(folder / "3n", tiny3n.WHOLE, tensors)
    yield Content(GEMMA_3N, "3n", whole, tiny3n.prompt(TOKENS))  # with ids that only the towers' tables know
    yield with_media(GEMMA_3N, "3n with media", whole, *tiny3n.multimodal_prompt(1, (35,)))
    for name in ("clustered", "k_eq_v"):
        given = tiny_drafter.step(tiny_drafter.drafter(name), keys=KEYS)
        del given["attention_mask"]
        yield by_name(DRAFTER, name, tiny_drafter.write(folder / f"drafter {name}", name), given)
    whole = tiny.write(folder / "diffusion", tiny.DIFFUSION)
    later, first = (tiny.diffusion_inputs("text", condition) for condition in (True, False))
    yield (told := by_name(DIFFUSION, "a later pass", whole, later))
    yield replace(by_name(DIFFUSION, "the first pass", whole, first), besides=told.media)
    whole, ids = tiny_embedding.write(folder / "embedding", tiny_embedding.WHOLE), tiny_embedding.prompt(30)
    yield Content(EMBEDDING, "text", whole, ids)
    yield with_media(EMBEDDING, "media", whole, *tiny_embedding.multimodal_prompt(tiny_embedding.STORED))
    yield Content(EMBEDDING, "a vector cut", whole, ids, besides=NO_MEDIA, dim=CUT)


def with_media(table, variant, folder, ids, arrays):
    return Content(table, variant, folder, ids, read_media(arrays), besides=NO_MEDIA)


def by_name(table, variant, folder, arrays):
    return Content(table, variant, folder, *numgemma.load(folder).named_ids(arrays))


def modules_only(dump):
    return Dump(dump.meta, {name: dump[name] for name in dump if not name.endswith(INTERIOR)}, dump.axes)


def clean_steps(model, ids, media):
    """A float64 run with the weights of a precision, and the noise of that precision in each of its steps."""
    precision = str(model.dtype)
    with as_held(precision):
        dump = modules_only(replace(model, dtype=np.dtype("float64")).record(ids, ["*"], media=media))
    subject = Rerun(model, dump, np.asarray(ids), precision, media)
    return subject, local(subject)


def expected_point(fault, subject, base):
    """The first step that the fault moves by more than noise could be, or None."""
    everything = {spec.index for spec in subject.model.outline.layers} | {HEAD, TOWERS}
    moved = again(subject, base, everything, lambda: applied(subject.model, fault.id))
    for name in base.errors:  # in the order of a right run
        if name in moved.errors and size_of(subject, moved, name)[0] > SUSPECT_TO:
            return name
    return None


def case(fault, content, subject, base) -> Case:
    """The fault in another engine, and what is made of its dump.  subject: the clean steps"""
    model, media = subject.model, subject.media
    with perturbed(SEED), applied(model, fault.id):
        dump = modules_only(model.record(subject.ids, ["*"], media=media))
    result = whatif(model, dump, media=media)
    named, *others = [c.faults for c in result.candidates] or [None]
    where = expected_point(fault, subject, base)
    of = (content.table, content.variant, subject.precision)
    return Case(fault.id, *of, where, result.replay.first, named, tuple(others))


def cases(ids=(), mapped=map):
    """Every fault, or those that are named, wherever it can act.  mapped: as `map`, in other processes too"""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(content, precision, ids) for content, precision in product(contents(folder), PRECISIONS)]
        for found in mapped(cases_of, *zip(*jobs, strict=True)):
            yield from found


def cases_of(content, precision, ids) -> list[Case]:
    """Those of one checkpoint, in one precision."""
    faults = list(content.faults(precision, ids))
    if not faults:
        return []
    subject, base = clean_steps(content.opened(precision), content.ids, content.media)
    return [case(fault, content, subject, base) for fault in faults]


# -- the table


def share(part, whole):
    return f"{len(part)} of {len(whole)} ({len(part) / max(1, len(whole)):.0%})"


def page(found):
    """The score as Markdown."""
    lines = [
        "# Mutation score",
        "",
        "Remade by `python benchmarks/mutation_score.py`.  Every known fault, in every small checkpoint where it can",
        "act, as a float32 and as a bfloat16 engine that dumps what its modules return.  Other families than Gemma 4",
        "and 12B, at the end, have the faults that they alone can have.",
    ]
    for title in OWN:
        some = [c for c in found if c.table == title]
        lines += ["", *([f"## {title}", ""] if title else []), *(table(some) if some else ["No case was run."])]
    return "\n".join(lines) + "\n"


def table(found) -> list[str]:
    """The lines of one table, its sums before it."""
    above = [c for c in found if c.expected]
    below = [c for c in found if not c.expected]
    loud = [c for c in below if c.found]
    shared = [c for c in above if c.others]
    lines = [
        f"- {len(found)} cases of {len({c.fault for c in found})} faults; {len(above)} have an effect above the noise.",
        f"- localised to the right layer and module: {share([c for c in above if c.localised], above)}",
        f"- named first by `whatif`: {share([c for c in above if c.first], above)}",
        f"- reproduced by another fault as well, which ranks after it: {len([c for c in shared if c.first])}",
        f"- effect within the noise: {len(below)}, of which a fault is reported in {len(loud)}",
        "",
        "| fault | what it is | above the noise | localised | named first | also fits | within the noise |",
        "|---|---|---|---|---|---|---|",
    ]
    by_fault = defaultdict(list)
    for c in found:
        by_fault[c.fault].append(c)
    return [*lines, *(row(CATALOGUE[id], by_fault[id]) for id in sorted(by_fault))]


def row(fault, some):
    above, below = [c for c in some if c.expected], [c for c in some if not c.expected]
    also = sorted({" + ".join(other) for c in above for other in c.others})
    quiet = ", ".join(f"{c.variant} {c.precision}" for c in below)
    counts = (len(above), sum(c.localised for c in above), sum(c.first for c in above))
    return f"| {fault.id} | {fault.says} | {' | '.join(map(str, counts))} | {', '.join(also)} | {quiet} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="only these, by id")
    parser.add_argument("-o", "--out", type=Path, default=HERE / "mutation_score.md")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes; default: %(default)s")
    args = parser.parse_args()
    begun, found = time.perf_counter(), []
    with ProcessPoolExecutor(args.jobs) as pool:
        for c in cases(args.faults, pool.map):
            found.append(c)
            if c.expected and not (c.localised and c.first):
                print(c, flush=True)
    args.out.write_text(page(found))
    print("\n".join(line for line in page(found).splitlines() if line.startswith(("## ", "- "))))
    print(f"{args.out}, {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
