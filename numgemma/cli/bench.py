"""Measure how fast a checkpoint runs here, and how close that is to what the machine can do."""

import json
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from numgemma import generate, machine, ops
from numgemma.cli.common import add_backend, use_backend
from numgemma.cli.numbers import whole_number
from numgemma.errors import InputError
from numgemma.extras import package
from numgemma.model import load
from numgemma.ops import threads

SCHEMA = "numgemma.bench/1"
START = 16  # tokens before those that are decoded


def add_arguments(parser):
    parser.add_argument("ckpt", type=Path, metavar="CKPT")
    parser.add_argument("--against", choices=("hf",), help="run Transformers beside it, in turns (extra `hf`)")
    parser.add_argument(
        "--lengths", type=whole_number, nargs="+", default=[128, 512], metavar="T", help="default: 128 512"
    )
    parser.add_argument("--decode", type=whole_number, default=16, metavar="N", help="tokens to decode; default: 16")
    parser.add_argument(
        "--rounds", type=whole_number, default=3, metavar="N", help="medians are over so many; default: 3"
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_backend(parser, "numba where it is installed")


def run(args):
    if min(*args.lengths, args.decode, args.rounds) < 1:
        raise InputError("--lengths, --decode and --rounds should be 1 or more.")
    use_backend(args, ops.fastest())
    begun = time.perf_counter()
    model = load(args.ckpt, args.precision)
    found = {"schema": SCHEMA, "name": model.checkpoint.folder.name, "precision": args.precision}
    found |= {"load_s": time.perf_counter() - begun, "engine": machine.engine(), "warnings": machine.warnings()}
    found["machine"] = {
        "read_gb_per_s": machine.read_bandwidth(threads.allowed()),
        "gemm_gflop_per_s": machine.gemm_peak(),
    }
    engines = {"numgemma": numgemma_jobs(model)}
    if args.against:
        engines["transformers"] = transformers_jobs(model, args.precision)
    found["speed"] = in_turns(engines, args, model)
    found["bytes_per_token"] = machine.bytes_per_token(model)
    found["memory_gb"] = machine.peak_memory()
    print(json.dumps(found, indent=1) if args.json else render(found))
    return 0


def numgemma_jobs(model):
    """Seconds per token of ids, or of n that follow: prefill as generating needs it, prefill of all, decoding."""

    def whole(ids):
        x = generate.whole(ids, model.weights, model.family, model.run())
        model.family.part("head")(x[-1:], model.weights, model.run())

    return {
        "prefill": lambda ids, n: machine.seconds(lambda: model.generate(ids, 1)) / len(ids),
        "prefill, all layers": lambda ids, n: machine.seconds(lambda: whole(ids)) / len(ids),
        "decode": lambda ids, n: after_the_first(model.continued(ids, n + 1, ignore_eos=True)) / n,
    }


def after_the_first(new):
    next(new)
    return machine.seconds(lambda: list(new))


def transformers_jobs(model, precision):
    """The same of the oracle, on as many threads."""
    torch, transformers = package("torch", "hf"), package("transformers", "hf")
    torch.set_num_threads(threads.allowed())
    print("loading Transformers ...", file=sys.stderr)
    with torch.inference_mode():
        hf = transformers.AutoModelForCausalLM.from_pretrained(
            model.checkpoint.folder, dtype=getattr(torch, precision)
        ).eval()

    def one_token(ids):
        tokens = torch.tensor(ids[None])
        hf.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=1, do_sample=False)

    def whole(ids):
        with torch.inference_mode():
            return hf(torch.tensor(ids[None]), logits_to_keep=1)

    def onward(out, n):
        with torch.inference_mode():
            for _ in range(n):
                out = hf(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values)

    return {
        "prefill": lambda ids, n: machine.seconds(lambda: one_token(ids)) / len(ids),
        "prefill, all layers": lambda ids, n: machine.seconds(lambda: whole(ids)) / len(ids),
        "decode": lambda ids, n: machine.seconds(partial(onward, whole(ids), n)) / n,
    }


def in_turns(engines, args, model):
    """Rows of job, tokens and each engine's tokens a second: the median of rounds in which the engines take turns."""
    text = np.setdiff1d(np.arange(model.outline.vocabulary), list(model.family.placeholders(model.config).values()))
    rows = []
    for job, T in [(job, T) for T in args.lengths for job in ("prefill", "prefill, all layers")] + [("decode", START)]:
        ids = np.random.default_rng(T).choice(text, T)
        times: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(args.rounds + 1):
            for name, jobs in engines.items():
                taken = jobs[job](ids, args.decode)
                times[name] += [taken] if turn else []  # the first round warms up
        rows.append(
            {"job": job, "tokens": args.decode if job == "decode" else T}
            | {name: 1 / median(some) for name, some in times.items()}
            | ({} if job == "decode" else {"gflop_per_token": machine.flops_per_token(model, "all" in job, T) / 1e9})
        )
    return rows


def render(found):
    """The results as text, with the share of what the machine can do."""
    peers = [name for name in ("numgemma", "transformers") if name in found["speed"][0]]
    lines = [f"{found['name']}, {found['precision']}", found["engine"], *found["warnings"], ""]
    read, gemm = found["machine"]["read_gb_per_s"], found["machine"]["gemm_gflop_per_s"]
    lines += [f"{'':36}" + "".join(f"{name + ', tok/s':>22}" for name in peers) + "   of the machine's"]
    for row in found["speed"]:
        if row["job"] == "decode":
            share = f"{row['numgemma'] * found['bytes_per_token'] / 1e9 / read:6.0%} of {read:.1f} GB/s reading"
        else:
            share = f"{row['numgemma'] * row['gflop_per_token'] / gemm:6.0%} of {gemm:.0f} GFLOP/s in float32"
        what = f"{row['job']}, {row['tokens']} tokens"
        lines.append(f"{what:36}" + "".join(f"{row[name]:22.2f}" for name in peers) + f"   {share}")
    if len(peers) > 1:
        ratios = ", ".join(f"{row['numgemma'] / row['transformers']:.2f}" for row in found["speed"])
        lines.append(f"numgemma / transformers, row by row: {ratios}")
    memory = ", ".join(f"{what} {size:.2f} GB" for what, size in found["memory_gb"].items())
    lines += ["", f"load {found['load_s']:.2f} s; a decoded token reads {found['bytes_per_token'] / 1e9:.3f} GB"]
    return "\n".join([*lines, f"memory: {memory}"] if memory else lines)
