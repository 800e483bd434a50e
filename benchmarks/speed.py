"""numgemma against Transformers and llama.cpp on the same checkpoints, taking turns; medians, ratios and their spread.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/speed.py SHAPE_DIR ... --llama BUILD --json FILE
    python benchmarks/speed.py --show FILE [--markdown]

In each round every engine has one turn, in a process of its own (engines.py); the others are stopped meanwhile.  Where
they do not all fit in memory each is loaded for its turn alone.  A ratio compares two turns of one round, and says how
many times better numgemma is: faster, sooner, smaller.  What an engine lacks is left out and said.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import processes
from engines import DECODED, OURS, PEERS, can
from tables import show
from to_gguf import gguf_path

HERE = Path(__file__).parent
WHAT = ("decode", "prefill-512-gen", "prefill-512-all", "prefill-2048-gen", "start", "memory", "record")
PARTS = {"start": ("start-warm", "start-cold"), "memory": ("memory",)}  # what is seen from outside, by run
FORCED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # would choose a BLAS kernel for us

# What an engine holds besides the pages of the checkpoint, in sizes of the checkpoint.
HELD = {"numba": 0.1, "numpy": 0.1, "hf-f32": 2.2, "hf-bf16": 0.2, "llama-f32": 2.0, "llama-bf16": 1.0}


class Worker(NamedTuple):
    process: subprocess.Popen
    log: IO[bytes]  # what it said on standard error


class Failed(Exception):
    """An engine could not do a job; says why."""


def main():
    args = arguments()
    if args.show:
        found = json.loads(args.show.read_text())
    else:
        found = {"machine": machine(args), "samples": [], "left out": []}
        for folder in args.folders:
            engines = available(folder, args, found)
            measure(folder, engines, args, found)
    show(found, args.markdown)
    sys.exit(1 if any("failed" in line for line in found["left out"]) else 0)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="SHAPE_DIR", help="made by shapes.py")
    parser.add_argument("--ours", nargs="*", choices=OURS, default=OURS[:1], help=f"default: {OURS[0]}")
    parser.add_argument("--peer", nargs="*", choices=PEERS, default=PEERS, help="default: all")
    parser.add_argument("--what", nargs="+", default=WHAT, metavar="WHAT", help=f"default: {' '.join(WHAT)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama", type=Path, metavar="BUILD", help="a build folder of llama.cpp")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there, after each turn")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, print what a FILE of --json holds")
    args = parser.parse_args()
    for what in args.what:
        if what not in WHAT and not re.fullmatch(r"prefill-\d+-(gen|all)", what):
            parser.error(f"{what} is none of {', '.join(WHAT)}, nor another prefill-TOKENS-gen or prefill-TOKENS-all")
    if not args.folders and not args.show:
        parser.error("name a SHAPE_DIR, or a FILE to --show")
    return args


def available(folder, args, found):
    """The engines that can run that checkpoint; says which cannot."""
    reasons = {}
    for name in args.peer:
        if name.startswith("hf") and not importlib.util.find_spec("torch"):
            reasons[name] = "torch is not installed; see the extra hf"
        elif name.startswith("llama") and not args.llama:
            reasons[name] = "no --llama BUILD was given"
        elif name.startswith("llama") and not gguf_path(folder, name[6:]).exists():
            reasons[name] = f"{gguf_path(folder, name[6:])} is not there; to_gguf.py makes it"
    for name, reason in reasons.items():
        leave_out(found, folder, name, reason)
    return [name for name in (*args.ours, *args.peer) if name not in reasons]


def leave_out(found, folder, name, reason):
    found["left out"].append(f"{folder.name}, {name}: {reason}")
    print(found["left out"][-1], file=sys.stderr, flush=True)


def machine(args):
    """Where and with what this is measured."""
    packages = ("numgemma", "numpy", "numba", "torch", "transformers")
    have = {p: importlib.metadata.version(p) for p in packages if importlib.util.find_spec(p)}
    if args.llama:
        cache = (args.llama / "CMakeCache.txt").read_text()
        have["llama.cpp"] = "native build" if "GGML_NATIVE:BOOL=ON" in cache else "portable build"
    return {
        "processor": re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1],
        "cores": os.cpu_count(),
        "GiB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": platform.platform(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "threads": args.threads,
        "rounds": args.rounds,
        "versions": have,
    }


def measure(folder, engines, args, found):
    """All samples of one checkpoint, into found."""
    jobs = [what for what in args.what if what not in PARTS]
    together = jobs and fits(folder, engines)
    workers: dict = {}
    try:
        for number, name, some in turns(engines, jobs, args.rounds, together):
            with turn(folder, name, found, engines):
                worker = workers.pop(name, None) or start(name, folder, args)
                for job in some:
                    keep(found, args, folder, name, number, inside(worker, name, job))
                workers[name] = worker
            if not together and name in workers:
                stop(workers.pop(name))
    finally:
        for worker in workers.values():
            stop(worker)
    runs = [run for what in args.what for run in PARTS.get(what, ())]
    for number, name, some in turns(engines, runs, args.rounds, together=True):
        for run in some:
            with turn(folder, name, found, engines):
                sample = processes.measure(name, folder, args.threads, run, environment(args), args.llama)
                keep(found, args, folder, name, number, sample)


def turns(engines, jobs, rounds, together):
    """Who does what in which order: (round, engine, jobs).  Every second round goes backwards.

    engines may become shorter on the way.
    """
    for group in [[job] for job in jobs] if together else [jobs] * bool(jobs):
        for number in range(rounds):
            for name in engines[:: -1 if number % 2 else 1]:
                some = [job for job in group if can(name, job)]
                if some and name in engines:
                    yield number, name, some


@contextmanager
def turn(folder, name, found, engines):
    """An engine that fails is left out from there on."""
    try:
        yield
    except (Failed, RuntimeError) as error:
        engines.remove(name)
        leave_out(found, folder, name, f"failed: {error}")


def fits(folder, engines):
    """Whether all engines may stay loaded."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    needed = size * (1 + sum(HELD.get(name, HELD.get(name.split("-")[0], 0)) for name in engines))
    free = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    return needed < 0.85 * free


def environment(args):
    """Of every process that is measured: so many threads, and no kernel of BLAS but the one that it chooses itself."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in FORCED}
    return kept | dict.fromkeys(threads, str(args.threads))


def start(name, folder, args):
    """A worker of engines.py that is loaded, and stopped until it is asked."""
    command = [sys.executable, HERE / "engines.py", name, folder, str(args.threads)]
    log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the worker
    process = subprocess.Popen(
        [*command, *([args.llama] if args.llama else [])],
        env=environment(args),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    loaded = Worker(process, log)
    answer(loaded)
    return loaded


def ask(worker, job):
    worker.process.send_signal(signal.SIGCONT)
    with suppress(BrokenPipeError):  # `answer` says why
        print(job, file=worker.process.stdin, flush=True)
    return answer(worker)


def answer(worker):
    line = worker.process.stdout.readline()
    if not line:
        worker.process.wait()
        worker.log.seek(0)
        said = worker.log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise Failed(f"exit code {worker.process.returncode}: {said[-1]}")
    worker.process.send_signal(signal.SIGSTOP)  # its idle threads would spin in the others' time
    return json.loads(line)


def stop(worker):
    worker.process.send_signal(signal.SIGCONT)
    worker.process.stdin.close()
    worker.process.wait()


def inside(worker, name, job):
    """The samples of one job: name of the quantity -> value."""
    if job == "record":
        without, recorded = ask(worker, job)
        return {job: recorded / without}
    if name not in OURS:
        return {job: ask(worker, job)}
    kind, *size = job.split("-")
    limits = ask(worker, f"machine-{size[0] if size else DECODED}")
    products = {which: limits.pop(f"products per token, {which}") for which in ("gen", "all")}
    speed = ask(worker, job)
    if kind == "decode":
        read = speed * limits["bytes per token"] / 1e9
        return {job: speed, f"{job}: read bandwidth": read / limits["read GB/s"], **limits}
    asked = products[size[1]] / 1e9
    return {job: speed, f"{job}: sgemm": speed * asked / limits["gemm GFLOP/s"], f"{job}: GFLOP a token": asked}


def keep(found, args, folder, name, number, values):
    for what, value in values.items():
        sample = {"shape": folder.name, "engine": name, "round": number, "what": what, "value": value}
        found["samples"].append(sample)
        text = value if isinstance(value, str) else f"{value:.4g}"
        print(f"{folder.name:8} round {number + 1} {name:10} {what:18} {text}", file=sys.stderr, flush=True)
    if args.json:
        partial = args.json.with_name(args.json.name + ".partial")
        partial.write_text(json.dumps(found, indent=1))
        partial.replace(args.json)


if __name__ == "__main__":
    main()
