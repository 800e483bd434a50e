"""What a long prompt costs: time per token by kind of layer, and memory, as the prompt runs through in chunks.

    python benchmarks/length.py SHAPE_DIR [--tokens 65536] [--chunk 512] [--plot docs/length.png] [--json FILE]
    python benchmarks/length.py --show FILE --plot docs/length.png

Every layer runs for every token.  One run tells all lengths: when it has come to 4096 tokens, it has done what a prompt
of 4096 would do.  With --every N only each N-th chunk runs, and random keys stand for those of the others: what a chunk
costs depends on how many keys there are, not on their values.  Sliding layers should cost the same at every depth; a
full layer, and memory, a straight line.
"""

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from copy import copy
from pathlib import Path
from statistics import median

LENGTHS = (1024, 4096, 16384, 65536)
KINDS = {"sliding_attention": "sliding layer", "full_attention": "full layer"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, metavar="SHAPE_DIR")
    parser.add_argument("--tokens", type=int, default=LENGTHS[-1])
    parser.add_argument("--chunk", type=int, default=512, help="at most so many tokens at once; default: %(default)s")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="run each N-th chunk; default: %(default)s")
    parser.add_argument("--backend", choices=("numba", "numpy"), default="numba")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, show what a FILE of --json holds")
    args = parser.parse_args()
    if not (args.folder or args.show):
        parser.error("name a SHAPE_DIR, or a FILE to --show")
    parts = json.loads(args.show.read_text()) if args.show else measure(args)
    if args.json:
        args.json.write_text(json.dumps(parts))
    table(parts)
    if args.plot:
        plot(parts, args.plot)


def measure(args):
    """One dict per chunk: tokens so far, its own, its seconds in all and per layer of each kind, memory in bytes."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    os.environ |= dict.fromkeys(threads, str(args.threads))  # before NumPy is imported

    import numpy as np
    from engines import prompt

    from numgemma import cache, load, ops
    from numgemma.families.gemma4 import gemma4

    ops.use(args.backend, threads=args.threads)
    model = load(args.folder)
    c = model.config.text
    ids = prompt(args.tokens, c.vocab_size)
    gemma4.hidden(ids[: args.chunk], model.weights, model.run())  # compiles, and reads the weights
    kvs, layers, parts = cache.empty(c.layers, model.dtype), Counter(spec.kind for spec in c.layers), []
    for start in range(0, len(ids), args.chunk):
        if (start // args.chunk + 1) % args.every and start + args.chunk not in LENGTHS:
            stand_in(kvs, c, args.chunk)
            continue
        part, clock, begun = ids[start : start + args.chunk], Clock(c), time.perf_counter()
        with np.errstate(all="ignore"):
            gemma4.hidden(part, model.weights, model.run(kvs, start), clock)
        found = {"tokens": start + len(part), "own": len(part), "seconds": time.perf_counter() - begun}
        parts.append(found | {kind: clock.spent[kind] / n for kind, n in layers.items()} | memory())
        print(f"{start + len(part)} of {len(ids)}", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr)
    return parts


def stand_in(kvs, c, tokens):
    """Random keys and values in the place of those of some tokens."""
    import numpy as np

    from numgemma import cache
    from numgemma.families.gemma4 import gemma4

    rng = np.random.default_rng(0)
    for i, held in kvs.items():
        k, v = rng.standard_normal((2, tokens, *held.k.shape[1:]), np.float32)
        cache.append(kvs, i, k / 16, v)
    gemma4.forget(kvs, c)


class Clock:
    """A tap that adds up how long the layers of each kind take."""

    def __init__(self, config):
        self.config, self.scope, self.spent, self.now = config, "", Counter(), [time.perf_counter()]

    def at(self, scope):
        inner = copy(self)
        inner.scope = f"{self.scope}{scope}."
        return inner

    def watches(self, name):
        return False

    def __call__(self, name, x, axes=""):
        layer = re.fullmatch(r"layers\.(\d+)\.out", self.scope + name)
        if layer or not self.scope.startswith("layers."):  # what comes before the layers is in none of them
            begun, self.now[0] = self.now[0], time.perf_counter()
        if layer:
            self.spent[self.config.layers[int(layer[1])].kind] += self.now[0] - begun
        return x


def memory():
    """The most that this process has held so far, and how much of a file it holds now, in bytes."""
    status = Path("/proc/self/status").read_text()
    peak, pages = (int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024 for name in ("VmHWM", "RssFile"))
    return {"peak": peak, "pages": pages}


def table(parts):
    """Prints the cost at the lengths that were reached: of the chunks around each, and of all up to it."""
    import numpy as np
    from tables import table as in_columns

    weights = parts[-1]["pages"]
    names = [f"ms a token, {name}" for name in KINDS.values()]
    rows = [["tokens", "ms a token, all so far", *names, "peak GB", "but for weights"]]
    for length in LENGTHS:
        done = [p for p in parts if p["tokens"] <= length]
        if not done or done[-1]["tokens"] < length:
            continue
        last = done[-1]
        peaks = [f"{size / 1e9:.2f}" for size in (last["peak"], last["peak"] - weights)]
        here = [f"{median(1e3 * p[kind] / p['own'] for p in done[-5:]):.3f}" for kind in KINDS]
        each = [1e3 * p["seconds"] / p["own"] for p in done]
        whole = sum(np.interp(range(0, length, 256), [p["tokens"] for p in done], each)) / len(range(0, length, 256))
        rows.append([f"{length}", f"{whole:.2f}", *here, *peaks])
    in_columns(rows)


def plot(parts, path):
    """Time per token of a layer of each kind, and memory, against the tokens that have run."""
    from matplotlib.figure import Figure

    from numgemma.colours import BLUE, GREEN, RED

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    tokens = [p["tokens"] / 1024 for p in parts]
    for (kind, name), colour, marker in zip(KINDS.items(), (BLUE, RED), "os", strict=True):
        left.plot(
            tokens, [1e3 * p[kind] / p["own"] for p in parts], marker, color=colour, markersize=3, label=f"a {name}"
        )
    left.set_ylabel("ms per token")
    left.set_title("time", loc="left", fontsize=10)
    left.legend(frameon=False)
    right.plot(tokens, [(p["peak"] - parts[-1]["pages"]) / 1e9 for p in parts], "^", color=GREEN, markersize=3)
    right.set_ylabel("GB, the weights' pages apart")
    right.set_title("peak memory", loc="left", fontsize=10)
    for ax in (left, right):
        ax.set_xlabel("tokens so far, in thousands (1024)")
        ax.set_xlim(0)
        ax.set_ylim(0)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
