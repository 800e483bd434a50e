"""The score of `lineage`: children made by known recipes, and how many of the recipes it tells.

    python benchmarks/lineage_score.py [-n 200] [--seed 7] [-o benchmarks/lineage_score.md]

Every kind of recipe gets as many children as the others, each from parents of its own, by random numbers of its own.
A recipe is recovered where 97 % of its numbers are told right, its weights and angles to within 0.01, and the share of
differences that were kept to within 0.03 (those below their rounding cannot be counted).  A confident wrong answer is a
tensor of which something else is said and not marked as unexplained; a copy to within rounding is none, nor one that is
said to be likely and has its error beside it.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import merges  # noqa: E402


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=200, help="children")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("-o", type=Path, help="write the table there")
    parser.add_argument("kinds", nargs="*", help="only these recipes")
    args = parser.parse_args(argv)
    kinds = args.kinds or list(merges.RECIPES)
    rows, start = defaultdict(list), time.process_time()
    for i in range(args.n):
        kind = kinds[i % len(kinds)]
        verdict = one(kind, args.seed, i)
        rows[kind].append(verdict)
        if not verdict.recovered or verdict.wrong:
            print(f"{kind} {i}: recovered {verdict.recovered}, off by {verdict.off:.3f}", file=sys.stderr)
            for name, truth, r in verdict.wrong[:3]:
                print(f"    {name} {truth}: {r.kind} {r.how} {r.error:.2g} {r.floor:.2g}", file=sys.stderr)
    text = page(rows, args, time.process_time() - start)
    print(text)
    if args.o:
        args.o.write_text(text)


def one(kind, seed, i):
    rng = np.random.default_rng([seed, i])
    case = merges.RECIPES[kind](rng)
    with tempfile.TemporaryDirectory(prefix="lineage.") as folder:
        found, names = merges.traced(case, folder)
        return merges.judge(case, found, names)


def page(rows, args, seconds):
    every = [v for some in rows.values() for v in some]
    recovered, wrong = sum(v.recovered for v in every), sum(len(v.wrong) for v in every)
    kept = [v for v in every if v.recovered]
    about = " ".join(__doc__.split("\n\n")[2].split())
    lines = [
        "# The score of lineage",
        "",
        f"Remade by `python benchmarks/lineage_score.py -n {args.n} --seed {args.seed}`.  {about}",
        "",
        f"- {len(every)} children of {len(rows)} recipes; recovered: {recovered} ({recovered / len(every):.1%})",
        f"- the largest error among these of a weight or an angle: {max(v.off for v in kept):.4f}",
        f"- and of a density: {max(v.thin for v in kept):.4f}",
        f"- confident wrong answers: {wrong} tensors",
        f"- {1000 * seconds / len(every):.0f} ms of one core a child, made, written and traced",
        "",
        "| recipe | children | recovered | worst weight or angle | worst density | confident and wrong |",
        "|---|---|---|---|---|---|",
    ]
    for kind, some in rows.items():
        cells = [kind, len(some), sum(v.recovered for v in some), shown(max(v.off for v in some))]
        cells += [shown(max(v.thin for v in some)), sum(len(v.wrong) for v in some) or ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def shown(error):
    return f"{error:.4f}" if error else ""


if __name__ == "__main__":
    main()
