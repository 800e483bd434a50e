"""Speculative decoding on the shape of E2B: tokens a second with a drafter that agrees often, beside plain decoding.

    python benchmarks/speculative.py [--out DIR] [--scale full] [--agree 0.8] [--draft-tokens 2 4 6] [--rounds 5]

Both models are random but for what makes them agree, and have the released shapes: a round costs what it would cost
with released weights.  The tokens stand in one cycle, in an order drawn by chance:

    target    the embedding of a token is the head's row of the next one.  Its layers compute all that they would, but
              the norms behind them let little through (QUIET): the text goes round the cycle.  The head is a table of
              its own, which is as large as the tied one that a released model reads.
    drafter   the same two tables in the dimensions that it has: what it reads of the target's embedding, and its head.
              Tokens of one cluster have a common part, which is their centroid.  A share of its rows, 1 - agree, stand
              at each other's tokens: there it guesses wrong.

Plain decoding and each number of drafts take turns in one process, in every second round backwards; printed are the
medians over the rounds.  Seconds count from the first new token, so the prompt is not in them.  The text is the same in
all turns, or the script fails.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

NAME = "gemma-4-E2B-it"
PROMPT = 16
QUIET = 0.05  # what a branch of a layer adds to a stream of size 1
COMMON = 0.6  # of a row of the tables, the part that its cluster shares
BRANCHES = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight", "post_per_layer_input_norm.weight")
ROWS = 4096  # of a table that are made at once


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "speculative", help="%(default)s")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there (10 GB)")
    parser.add_argument("--scale", choices=("tiny", "pilot", "full"), default="full", help="of both models")
    parser.add_argument("--agree", type=float, default=0.8, help="share of tokens drafted right; default: %(default)s")
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[2, 4, 6], metavar="K")
    parser.add_argument("--tokens", type=int, default=96, help="new ones, in each turn; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(args.threads))  # before NumPy
    folder = args.out / f"{args.scale}-{args.agree:g}"
    if not (folder / "drafter").exists():  # written last
        write_pair(folder, args.scale, args.agree)
    show(measure(folder, args), args)
    if not args.keep:
        shutil.rmtree(folder)


# the pair


def write_pair(folder, scale, agree):
    import numpy as np

    from numgemma.families import find
    from numgemma.families.gemma4.shrink import SCALES
    from numgemma.surgery.synth import find_config

    target = find_config(NAME)[0]["text_config"] | {"architectures": ["Gemma4ForCausalLM"]}
    drafter = find_config(f"{NAME}-assistant")[0]
    if scale != "full":
        target, drafter = (find(raw, NAME).shrunk(raw, SCALES[scale], NAME) for raw in (target, drafter))
    rng, V, D = np.random.default_rng(0), target["vocab_size"], target["hidden_size"]
    E, d = drafter["num_centroids"], drafter["text_config"]["hidden_size"]
    ordering, cycle, right = rng.permutation(V), rng.permutation(V), np.arange(V)
    cluster, follows, guessed = np.empty_like(right), np.empty_like(right), right.copy()
    cluster[ordering] = np.repeat(np.arange(E), V // E)
    follows[cycle] = np.roll(cycle, -1)
    wrong = rng.permutation(V)[: round((1 - agree) * V)]
    guessed[wrong] = np.roll(wrong, 1)
    centres = rng.standard_normal((E, D), np.float32)
    rows = correlated(rng, centres, cluster)
    narrow = np.linalg.qr(rng.standard_normal((D, d)))[0].T.astype(np.float32)
    heads = {"embed_tokens.weight": table(rows, follows), "lm_head.weight": table(rows, right)}
    write(folder / "target", target | {"tie_word_embeddings": False}, heads)
    own = {
        "embed_tokens.weight": table(rows, guessed, narrow),
        "masked_embedding.centroids.weight": given((centres @ narrow.T).astype(rows.dtype)),
        "masked_embedding.token_ordering": given(ordering),
        "pre_projection.weight": given(np.concatenate([narrow, 0 * narrow], 1).astype(rows.dtype)),
    }
    write(folder / "drafter", drafter, own)


def correlated(rng, centres, cluster):
    """A row of length 1, about, for each token; those of one cluster have a part in common.  ->  V D"""
    import ml_dtypes
    import numpy as np

    V, D = len(cluster), centres.shape[1]
    rows = np.empty((V, D), ml_dtypes.bfloat16)
    for at in range(0, V, ROWS):
        part = cluster[at : at + ROWS]
        alone = rng.standard_normal((len(part), D), np.float32)
        rows[at : at + ROWS] = (COMMON * centres[part] + (1 - COMMON**2) ** 0.5 * alone) / D**0.5
    return rows


def table(rows, order, narrow=None):
    """Those rows in that order, in fewer dimensions where `narrow` leads there, as a Tensor that is made as written."""
    import numpy as np

    from numgemma.surgery.writer import Tensor

    def pieces():
        for at in range(0, len(order), ROWS):
            part = rows[order[at : at + ROWS]]
            yield part if narrow is None else (part.astype(np.float32) @ narrow.T).astype(rows.dtype)

    return Tensor((len(order), rows.shape[1] if narrow is None else len(narrow)), rows.dtype, pieces)


def given(array):
    from numgemma.surgery.writer import Tensor

    return Tensor(array.shape, array.dtype, lambda: [array])


def write(folder, raw, tables):
    """A random checkpoint of that config, with these tables, and branches that add little."""
    import numpy as np

    from numgemma.families import find
    from numgemma.surgery.synth import random_tensors
    from numgemma.surgery.writer import write_checkpoint

    family = find(raw, NAME)
    tensors = random_tensors(family, family.read_config(raw, NAME), tables["embed_tokens.weight"].dtype, 0, False)
    for name, tensor in tensors.items():
        if name.endswith(("layer_scalar", *BRANCHES)):
            value = 1 if name.endswith("layer_scalar") else QUIET
            tensors[name] = given(np.full(tensor.shape, value, tensor.dtype))
    tensors |= tables
    stored = {family.stored_name(name, raw["model_type"]): tensor for name, tensor in tensors.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder, raw, stored, {}, force=True)


# the turns


def measure(folder, args):
    """Drafts a pass, 0 for plain decoding -> (seconds, passes) of each of its turns."""
    import numpy as np

    from numgemma import load, machine, ops
    from numgemma.speculative import Draft

    ops.use(ops.fastest(), args.threads)
    target, drafter = load(folder / "target"), load(folder / "drafter")
    ids = np.random.default_rng(0).integers(0, target.outline.vocabulary, PROMPT)
    drafts = {0: None} | {K: Draft(drafter, K) for K in args.draft_tokens}
    print(machine.engine(), flush=True)
    for draft in drafts.values():  # compiles, and reads the weights
        turn(target, draft, ids, 12)
    found, text = {K: [] for K in drafts}, None
    for number in range(args.rounds):
        for K in list(drafts)[:: -1 if number % 2 else 1]:
            seconds, passes, new = turn(target, drafts[K], ids, args.tokens)
            found[K].append((seconds, passes))
            text = text or new
            if new != text:
                sys.exit(f"With {K} drafts a pass the text is another one.")
    return found


def turn(target, draft, ids, tokens):
    """-> seconds since the first new token, passes of the target in them, all new tokens"""
    if draft is None:
        steps = ((i,) for i in target.continued(ids, tokens, ignore_eos=True))
    else:
        steps = (one.kept for one in target.rounds(ids, draft, tokens, ignore_eos=True))
    new = list(next(steps))
    passes, begun = 0, time.perf_counter()
    for kept in steps:
        new += kept
        passes += 1
    return time.perf_counter() - begun, passes, new


def show(found, args):
    """A row for plain decoding and for each number of drafts; a pass with its drafts is counted in plain tokens."""
    print(
        f"{args.scale} {NAME}, {args.agree:.0%} of tokens drafted right, {args.tokens} new tokens, {args.rounds} rounds"
    )
    print("| drafts a pass | tokens a pass | tokens a second | times plain (least to most) | a pass costs |")
    print("|---|---|---|---|---|")
    plain = [seconds for seconds, _ in found[0]]
    for K, turns in found.items():
        seconds, (_, passes) = median(s for s, _ in turns), turns[0]
        ratios = [a / b for a, (b, _) in zip(plain, turns, strict=True)]
        each = (args.tokens - 1) / passes
        faster = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        cost = f"{each / median(ratios):.2f} tokens"
        print(f"| {K} | {each:.2f} | {(args.tokens - 1) / seconds:.2f} | {faster} | {cost} |")


if __name__ == "__main__":
    main()
