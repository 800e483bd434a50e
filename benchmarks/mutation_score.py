"""The mutation score of the debugger: every known fault, planted in another engine, and what `whatif` makes of it.

    python benchmarks/mutation_score.py [-o benchmarks/mutation_score.md] [FAULT ...]

The other engine is numgemma with the fault and with rounding of its own, in float32 and in bfloat16; its dump has only
what modules return.  What should be found is known without the debugger's verdict: the fault's effect on each step of a
clean float64 run says where it shows first, and whether it is above the noise at all.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import tiny  # noqa: E402
import tiny3n  # noqa: E402

import numgemma  # noqa: E402
from numgemma.debug.blame.limits import size_of  # noqa: E402
from numgemma.debug.blame.one_step import HEAD, TOWERS, Rerun, again, as_held, local  # noqa: E402
from numgemma.debug.blame.whatif import whatif  # noqa: E402
from numgemma.debug.compare.scoring import SUSPECT_TO  # noqa: E402
from numgemma.debug.faults import CATALOGUE, applied  # noqa: E402
from numgemma.debug.noise.perturb import perturbed  # noqa: E402
from numgemma.dump import Dump  # noqa: E402
from numgemma.prompt.media import NO_MEDIA, read_media  # noqa: E402

PRECISIONS = ("float32", "bfloat16")
TOKENS = 20  # the windows are 7
SEED = 99  # of the other engine's rounding

# Points that no module of Transformers returns.
INTERIOR = ("q_rope", "k_rope", "scores", "probs", "context", "after_attention", "after_mlp", "per_layer_inputs")
INTERIOR += ("cos", "sin", "router.weights", "router.ids", "placed")
INTERIOR += ("altup.predict", "altup.correct", "modalities", "modalities#1", "streams")


@dataclass(frozen=True)
class Case:
    """One fault in one checkpoint and precision, and what became of it."""

    fault: str
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


def checkpoints(folder):
    """(name, directory, ids, media).  Sharing layers keep the keys and values that nobody should read."""
    for name, raw in tiny.VARIANTS.items():
        tensors = tiny.random_tensors(raw) | tiny.leftover_tensors(raw)
        yield name, tiny.write(Path(folder) / name, raw, tensors), tiny.prompt(raw, TOKENS), NO_MEDIA
    yield "tiny", "tiny", tiny.prompt({"vocab_size": 1024}, TOKENS), NO_MEDIA
    for name, raw in tiny.MULTIMODAL.items():
        ids, arrays = tiny.multimodal_prompt(name)
        yield name, tiny.write(Path(folder) / name, raw), ids, read_media(arrays)
    ids, arrays = tiny.unified_prompt(tiny.UNIFIED_STORED)
    yield "12b", tiny.write(Path(folder) / "12b", tiny.UNIFIED), ids, read_media(arrays)
    tensors = tiny3n.random_tensors(tiny3n.WHOLE, leftovers=True)
    whole = tiny3n.write(Path(folder) / "3n", tiny3n.WHOLE, tensors)
    yield "3n", whole, tiny3n.prompt(TOKENS), NO_MEDIA  # with ids that only the towers' tables know
    ids, arrays = tiny3n.multimodal_prompt(1, (35,))
    yield "3n with media", whole, ids, read_media(arrays)


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


def case(fault, variant, subject, base) -> Case:
    """The fault in another engine, and what is made of its dump.  subject: the clean steps"""
    model, media = subject.model, subject.media
    with perturbed(SEED), applied(model, fault.id):
        dump = modules_only(model.record(subject.ids, ["*"], media=media))
    result = whatif(model, dump, media=media)
    named, *others = [c.faults for c in result.candidates] or [None]
    where = expected_point(fault, subject, base)
    return Case(fault.id, variant, subject.precision, where, result.replay.first, named, tuple(others))


def can_show(fault, subject):
    """Whether a fault can act here.  With media, only those that need them: the rest is shown without."""
    past = len(subject.ids) > subject.model.outline.window or not fault.past_window
    plain = subject.media is NO_MEDIA or not fault.can_show(subject.model, NO_MEDIA)
    return past and plain and not fault.later and fault.can_show(subject.model, subject.media)


def cases(ids=()):
    """Every fault, or those that are named, in every checkpoint where it can act."""
    with tempfile.TemporaryDirectory() as folder:
        for variant, checkpoint, tokens, media in checkpoints(folder):
            for precision in PRECISIONS:
                subject, base = clean_steps(numgemma.load(checkpoint, precision), tokens, media)
                for fault in CATALOGUE.values():
                    if (not ids or fault.id in ids) and can_show(fault, subject):
                        yield case(fault, variant, subject, base)


# -- the table


def share(part, whole):
    return f"{len(part)} of {len(whole)} ({len(part) / max(1, len(whole)):.0%})"


def table(found):
    """The score as Markdown."""
    above = [c for c in found if c.expected]
    below = [c for c in found if not c.expected]
    loud = [c for c in below if c.found]
    shared = [c for c in above if c.others]
    lines = [
        "# Mutation score",
        "",
        "Remade by `python benchmarks/mutation_score.py`.  Every known fault, in every small checkpoint where it can",
        "act, as a float32 and as a bfloat16 engine that dumps what its modules return.",
        "",
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
    return "\n".join([*lines, *(row(CATALOGUE[id], by_fault[id]) for id in sorted(by_fault))]) + "\n"


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
    args = parser.parse_args()
    begun, found = time.process_time(), []
    for c in cases(args.faults):
        found.append(c)
        if c.expected and not (c.localised and c.first):
            print(c, flush=True)
    args.out.write_text(table(found))
    print("\n".join(line for line in table(found).splitlines() if line.startswith("- ")))
    print(f"{args.out}, {time.process_time() - begun:.0f} s of processor time")


if __name__ == "__main__":
    main()
