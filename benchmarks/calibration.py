"""How large errors of correct runs become, and how small those of wrong ones stay: the data behind the bands.

    python benchmarks/calibration.py [--hf]

Pairs of runs that are both right, of every tiny checkpoint and precision, are compared under their floor; then runs
with one planted damage are.  Some checkpoints have tokens that vanish beside the others: their rounding is as large as
they are.  Writes calibration.json and calibration.md beside this file.  --hf adds live runs of
Transformers (needs the extra `hf`): float32, and bfloat16 with eager and with fused attention.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import tiny  # noqa: E402

from numgemma import load  # noqa: E402
from numgemma.debug.compare.diff import diff  # noqa: E402
from numgemma.debug.noise.floor import measure_floor  # noqa: E402
from numgemma.debug.noise.perturb import perturbed  # noqa: E402
from numgemma.dump import Dump  # noqa: E402

NARROW = ("bfloat16", "float16")
SEEDS = 7  # perturbed runs per kind of pair; 3 checkpoints and the bundled one, two prompts each


def subjects(folder):
    """(name, model, ids) of every checkpoint and prompt."""
    model = load("tiny")
    for i, text in enumerate(("Once upon a time, a little fox named Ruby lived near a river.", "The old bear was sad")):
        yield f"tiny {i}", model, model.tokenizer.encode(text)
    for name, raw in tiny.VARIANTS.items():
        for seed, tokens in enumerate((20, 33)):
            checkpoint = tiny.write(folder / f"{name}{seed}", raw, tiny.random_tensors(raw, seed=seed))
            yield f"{name} {seed}", load(checkpoint), tiny.prompt(raw, tokens, seed=seed)


VANISHING = ", of prompts with vanishing tokens"


def vanishing(folder):
    """The same of checkpoints in whose runs some tokens are next to nothing, at the embedding or within a layer."""
    for name, raw in tiny.VARIANTS.items():
        ids, tensors = tiny.prompt(raw, 20, seed=2), tiny.random_tensors(raw, seed=2)
        for table in ("embed_tokens.weight", "embed_tokens_per_layer.weight"):
            if table in tensors:
                tensors[table][ids[[4, -2]]] *= 1e-8
        yield f"{name}, vanishing rows", load(tiny.write(folder / f"{name} rows", raw, tensors)), ids
    raw = tiny.PLE | {"hidden_size_per_layer_input": 3}  # so few that all gates of a token may lie in GELU's tail
    tensors = tiny.random_tensors(raw, seed=2)
    for gate in (name for name in tensors if name.endswith("per_layer_input_gate.weight")):
        tensors[gate] *= 6
    yield "ple, vanishing gates", load(tiny.write(folder / "gates", raw, tensors)), tiny.prompt(raw, 33, seed=2)


def record(model, ids, precision, seed=None):
    """One run; seed: with perturbed rounding and summation."""
    run = replace(model, dtype=np.dtype(precision))
    if seed is None:
        return run.record(ids)
    with perturbed(seed):
        return run.record(ids)


def clean_pairs(model, ids, hf):
    """(kind, coarser precision, reference, candidate) of runs that are both right."""
    exact = record(model, ids, "float32")
    for seed in range(100, 100 + SEEDS):
        yield "float32, another order", "float32", exact, record(model, ids, "float32", seed)
        for precision in NARROW:
            yield f"{precision} against float32", precision, exact, record(model, ids, precision, seed)
        plain, other = record(model, ids, "bfloat16"), record(model, ids, "bfloat16", seed)
        yield "bfloat16, another rounding", "bfloat16", plain, other
    yield "through the cache", "float32", exact, replace(model, dtype=np.dtype("float32")).record(ids, prefill=5)
    if hf:
        for how, precision in (("eager", "float32"), ("eager", "bfloat16"), ("sdpa", "bfloat16")):
            theirs = transformers_run(model, ids, precision, how)
            yield f"Transformers {precision} {how}", precision, exact, theirs
            yield f"Transformers {precision} {how}, ours too", precision, theirs, record(model, ids, precision)


def transformers_run(model, ids, precision, how):
    """What Transformers computes, with that form of attention."""
    from numgemma.debug.capture import hooks as capture

    dump = Dump(capture.describe(model, ids, precision))
    with attention_form(how):
        capture.capture(model, np.asarray(ids), dump, precision)
    return dump


def attention_form(how):
    """For as long as this lasts, Transformers is loaded with that form of attention."""
    from unittest.mock import patch

    from numgemma.debug.capture import hooks as capture

    original = capture.load_hf

    def load_hf(*args):
        hf = original(*args)
        hf.set_attn_implementation(how)
        return hf

    return patch.object(capture, "load_hf", load_hf)


def damaged(dump):
    """(kind, dump) with one damage each, at a point in the middle."""
    name = sorted(n for n in dump if n.endswith(".mlp.down_proj"))[2]
    changes = {
        "one dead channel": lambda x: x.__setitem__((slice(None), x.shape[1] // 2), 0),
        "one garbage token": lambda x: x.__setitem__(len(x) // 2, x[0] * 0.3 + x[1][::-1]),
        "a lost factor of 1.05": lambda x: np.multiply(x, 1.05, out=x),
        "two lanes exchanged": lambda x: x.__setitem__((slice(None), [1, 2]), x[:, [2, 1]]),
        "one token late": lambda x: x.__setitem__(slice(1, None), x[:-1].copy()),
    }
    for kind, change in changes.items():
        wide = np.asarray(dump[name], np.float64).copy()
        change(wide)
        yield kind, name, Dump(dump.meta, dict(dump) | {name: wide.astype(dump[name].dtype)}, dump.axes)


class Tally:
    """States and sizes, by kind of pair."""

    def __init__(self):
        self.pairs, self.states, self.worst, self.sizes = Counter(), {}, {}, {}
        self.suspicious = Counter()

    def add(self, kind, found):
        self.pairs[kind] += 1
        self.states.setdefault(kind, Counter()).update(p.state for p in found.points)
        judged = [p.xfloor for p in found.points if p.xfloor is not None and p.state in ("NOISE", "SUSPECT", "FAULT")]
        self.worst.setdefault(kind, []).append(max(judged))
        self.sizes.setdefault(kind, []).extend(judged)
        self.suspicious[kind] += any(p.state in ("SUSPECT", "FAULT") for p in found.points)

    def row(self, kind):
        sizes = np.array(self.sizes[kind])
        return {
            "pairs": self.pairs[kind],
            "pairs with a SUSPECT or FAULT": self.suspicious[kind],
            "states": dict(self.states[kind]),
            "xfloor": {str(q): round(float(np.percentile(sizes, q)), 3) for q in (50, 95, 99, 99.9, 100)},
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hf", action="store_true", help="add live runs of Transformers")
    args = parser.parse_args()
    clean, faults = Tally(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model, ids in (*subjects(Path(folder)), *vanishing(Path(folder))):
            floors = {p: measure_floor(model, ids, p) for p in ("float32", *NARROW)}
            for kind, precision, a, b in clean_pairs(model, ids, args.hf):
                clean.add(kind + VANISHING * ("vanishing" in name), diff(a, b, floor=floors[precision]))
            for precision in ("float32", "bfloat16"):
                reference = record(model, ids, "float32")
                for kind, point, dump in damaged(record(model, ids, precision, seed=99)):
                    found = {p.name: p for p in diff(reference, dump, floor=floors[precision]).points}[point]
                    faults.setdefault(f"{kind}, {precision}", []).append((found.state, found.xfloor, found.by))
            print(name, dict(sum(clean.states.values(), Counter())), flush=True)
    write(clean, faults)


def write(clean, faults):
    """The two files."""
    total = sum(clean.states.values(), Counter())
    tree = {
        "clean": {kind: clean.row(kind) for kind in clean.pairs},
        "clean, all": {
            "pairs": sum(clean.pairs.values()),
            "pairs with a SUSPECT or FAULT": sum(clean.suspicious.values()),
            "states": dict(total),
        },
        "damaged": {
            kind: {
                "states": dict(Counter(state for state, *_ in rows)),
                "least xfloor": round(min(x for _, x, _ in rows), 2),
                "by": dict(Counter(by for *_, by in rows)),
            }
            for kind, rows in faults.items()
        },
    }
    (HERE / "calibration.json").write_text(json.dumps(tree, indent=1) + "\n")
    (HERE / "calibration.md").write_text(page(tree))


def page(tree):
    """The same for a reader."""
    total = tree["clean, all"]
    pairs, touched = total["pairs"], total["pairs with a SUSPECT or FAULT"]
    points, off = sum(total["states"].values()), [total["states"].get(state, 0) for state in ("FAULT", "SUSPECT")]
    lines = [
        "# Calibration of the bands",
        "",
        "Made by `python benchmarks/calibration.py --hf`. A point is NOISE up to 1.5 times its floor, SUSPECT up to 5,",
        "FAULT above. The floor is where the errors of eight runs with perturbed rounding and summing end: their 95th",
        "percentile, and once more its distance from their median, since eight runs hardly ever meet a tail. Of the",
        "best-fit scale, which errs to both sides of 1, it is twice the 95th percentile of its distance from 1.",
        "Where the reference rounds too, the error of the worst token is taken relative to the truth, as far as that",
        "is known: a token may have come out small in the reference by chance.",
        "",
        "**Runs that are right:**",
        "",
        f"- by points: of {points}, {off[0]} are FAULT and {off[1]} SUSPECT ({100 * off[1] / points:.2g} %).",
        f"- by pairs of runs: of {pairs}, none has a FAULT; {touched} have a SUSPECT ({100 * touched / pairs:.2g} %),"
        if off[0] == 0
        else f"- by pairs of runs: of {pairs}, {touched} have a SUSPECT or a FAULT ({100 * touched / pairs:.2g} %),",
        "  mostly a run of them: what one token lost to noise, all that is computed from it has lost.",
        "",
        "| pair | pairs | with a SUSPECT | points | SUSPECT | median | 99 % | 99.9 % | largest, times the floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, row in tree["clean"].items():
        x = row["xfloor"]
        sizes = f"{x['50']:.2f} | {x['99']:.2f} | {x['99.9']:.2f} | {x['100']:.2f}"
        states = row["states"]
        counts = (row["pairs"], row["pairs with a SUSPECT or FAULT"], sum(states.values()), states.get("SUSPECT", 0))
        lines.append(f"| {kind} | {' | '.join(map(str, counts))} | {sizes} |")
    lines += [
        "",
        "**Runs with one damage**, at `layers.N.mlp.down_proj` (INHERITED: in a token that had chosen other experts",
        "before that, for noise):",
        "",
        "| damage | states | least, times the floor | told by |",
        "|---|---|---|---|",
    ]
    for kind, row in tree["damaged"].items():
        states = ", ".join(f"{n} {state}" for state, n in row["states"].items())
        by = ", ".join(f"{n} {key}" for key, n in row["by"].items())
        lines.append(f"| {kind} | {states} | {row['least xfloor']} | {by} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
