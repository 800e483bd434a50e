"""What speed.py measures: numgemma and its peers, each in a process of its own that does one job at a time.

    python benchmarks/engines.py ENGINE SHAPE_DIR THREADS [BUILD]

Reads one job per line (decode, prefill-512-gen, prefill-512-all, record, machine-512) and answers each with a line of
JSON: tokens per second; for `record` the seconds of a pass without and with it; for `machine` its measured limits, and
what a token of a prompt of so many asks of it.  The first time that a job is asked, a smaller one runs before it,
unmeasured.

Prefill "gen" is what generating needs: layers that share keys run only for the last token, and the head too.  "all" is
every layer for every token, and the head for the last.  llama.cpp has only "all"; its numbers are llama-bench's.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from to_gguf import gguf_path

OURS = ("numba-f32", "numba-bf16", "numpy-f32")
PEERS = ("hf-f32", "hf-bf16", "llama-f32", "llama-bf16")
PRECISIONS = {"f32": "float32", "bf16": "bfloat16"}

PROMPT = 16  # tokens before those that are decoded
DECODED = 32
RECORDED = 256  # tokens of the pass whose block outputs are kept
WARM = {"decode": 4, "prefill": 512}  # at most so many tokens in the unmeasured run


class Engine(NamedTuple):
    prefill: Callable  # (ids, whole) -> seconds
    decode: Callable  # (ids, n) -> seconds of n tokens after the first
    record: Callable | None = None  # (ids) -> seconds without and with recording
    machine: Callable | None = None  # (tokens) -> limits of the machine


def main():
    name, folder, threads, *build = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not pass for an answer
    engine = opened(name, Path(folder), int(threads), *build)
    vocabulary = read_vocabulary(Path(folder))
    asked = set()
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        job = line.strip()
        if job not in asked:
            do(engine, job, vocabulary, most=WARM)
        asked.add(job)
        print(json.dumps(do(engine, job, vocabulary)), file=answers, flush=True)


def opened(name, folder, threads, build=None) -> Engine:
    kind, precision = name.split("-")
    if kind == "hf":
        return transformers_engine(folder, precision, threads)
    if kind == "llama":
        return llama_engine(folder, precision, threads, build)
    return numgemma_engine(folder, kind, precision, threads)


def read_vocabulary(folder):
    raw = json.loads((folder / "config.json").read_text())
    return (raw.get("text_config") or raw)["vocab_size"]


def prompt(tokens, vocabulary):
    """The same token ids for every engine, none of them special.  -> T"""
    import numpy as np

    return np.random.default_rng(tokens).integers(1000, vocabulary - 8192, tokens)


def do(engine, job, vocabulary, most=None):
    """The answer to one job; with `most` of a smaller one."""
    kind, *size = job.split("-")
    if kind == "machine":
        return most or engine.machine(int(size[0]))
    if kind == "record":
        return engine.record(prompt(RECORDED, vocabulary))
    if kind == "decode":
        tokens = most[kind] if most else DECODED
        return tokens / engine.decode(prompt(PROMPT, vocabulary), tokens)
    tokens = min(int(size[0]), most[kind]) if most else int(size[0])
    return tokens / engine.prefill(prompt(tokens, vocabulary), size[1] == "all")


def timed(call):
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def numgemma_engine(folder, backend, precision, threads):
    from numgemma import generate, load, ops
    from numgemma.cli.memory import keep_memory

    ops.use(backend, threads=threads)
    keep_memory()  # as the command line does
    model = load(folder, PRECISIONS[precision])

    def whole_pass(ids):
        x = generate.whole(model.checked(ids), model.weights, model.family, model.run())
        model.family.part("head")(x[-1:], model.weights, model.run())

    def prefill(ids, whole):
        return timed(lambda: whole_pass(ids) if whole else model.generate(ids, 1))

    def decode(ids, n):
        new = model.continued(ids, n + 1, ignore_eos=True)
        next(new)
        return timed(lambda: list(new))

    def record(ids):
        passes = [lambda: model.logits(ids), lambda: model.record(ids, points=["layers.*.out"])]
        a, b, c, d = (timed(passes[i]) for i in (0, 1, 1, 0))  # so that a machine that slows down favours neither
        return [a + d, b + c]

    return Engine(prefill, decode, record, lambda tokens: limits(model, threads, tokens))


def limits(model, threads, tokens):
    """What bounds the speed: this machine's reading and multiplying, and what one token has to read and to multiply.

    tokens: of the prompt, which attention sees
    """
    from numgemma import machine

    return {
        "read GB/s": machine.read_bandwidth(threads),
        "gemm GFLOP/s": machine.gemm_peak(),
        "blas": machine.blas_kernel(),
        "bytes per token": machine.bytes_per_token(model),
        "products per token, gen": machine.flops_per_token(model, False, tokens),
        "products per token, all": machine.flops_per_token(model, True, tokens),
    }


def transformers_engine(folder, precision, threads):
    import torch

    torch.set_num_threads(threads)
    hf = load_transformers(folder, precision)

    def whole_pass(ids):
        hf.lm_head(hf.model(ids, use_cache=True).last_hidden_state[:, -1:])

    def prefill(ids, whole):
        ids = torch.tensor(ids)[None]
        with torch.inference_mode():
            return timed(lambda: whole_pass(ids) if whole else hf(ids, use_cache=True, logits_to_keep=1))

    def decode(ids, n):
        with torch.inference_mode():
            new = continued(hf, torch.tensor(ids)[None])
            next(new)
            return timed(lambda: [next(new) for _ in range(n)])

    return Engine(prefill, decode)


def load_transformers(folder, precision):
    """The text model alone; of a checkpoint with towers, its part."""
    import torch
    from transformers import Gemma4ForCausalLM

    dtype = getattr(torch, PRECISIONS[precision])
    renamed = {r"^model\.language_model": "model"}
    return Gemma4ForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", key_mapping=renamed
    ).eval()


def continued(hf, ids):
    """Greedy new token ids, one at a time: the bare loop, without what `generate` does around it."""
    out = hf(ids, use_cache=True, logits_to_keep=1)
    while True:
        ids = out.logits[:, -1:].argmax(-1)
        yield int(ids)
        out = hf(ids, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)


def llama_engine(folder, precision, threads, build):
    """llama-bench opens the model anew for each job, and warms up by itself.  It decodes without a prompt."""
    command = llama_command(folder, precision, threads, build)

    def seconds(p, n):
        out = subprocess.run([*command, "-p", str(p), "-n", str(n)], check=True, capture_output=True, text=True).stdout
        return json.loads(out)["avg_ns"] / 1e9

    return Engine(lambda ids, whole: seconds(len(ids), 0), lambda ids, n: seconds(0, n))


def llama_command(folder, precision, threads, build):
    command = [str(Path(build) / "bin" / "llama-bench"), "-m", str(gguf_path(folder, precision))]
    return [*command, "-t", str(threads), "-r", "1", "-o", "jsonl"]


def can(name, job):
    """Whether an engine has that job."""
    if job == "record" or job.startswith("machine"):
        return name in OURS
    return not (name.startswith("llama") and re.fullmatch(r"prefill-\d+-gen", job))


if __name__ == "__main__":
    main()
