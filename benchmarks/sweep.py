"""What a second worker is worth: the wall time of a sweep on two workers against the same sweep on one.

    python benchmarks/sweep.py [--prompts 200] [--rounds 1] [--json FILE]

Two random checkpoints, the same random prompts; each turn is `numgemma sweep` as a process of its own, from its start
to its end, on one worker and on two in turns, in every second round the other way round.  BLAS has one thread in each
worker, so that one worker cannot use the processor of the second.  The rows of every turn are counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from numgemma.surgery.synth import synth

CHECKPOINTS = ("gemma-4-E2B-it", "gemma-4-26B-A4B-it")
ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def turn(folder, workers, args):
    """One sweep from the beginning.  -> seconds"""
    out = Path(folder) / "rows.jsonl"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "numgemma", "sweep", *(str(Path(folder) / name) for name in CHECKPOINTS)]
    command += ["--random", str(args.prompts), "--longest", str(args.longest), "--engines", "float32"]
    command += ["--workers", str(workers), "--memory", "4", "-o", str(out)]
    begun = time.perf_counter()
    done = subprocess.run(command, env=os.environ | ALONE, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    if done.returncode not in (0, 1):  # 1: some pair differs by more than a table of tolerances allows
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    keys = [json.loads(line)["key"] for line in out.read_text().splitlines()]
    if len(set(keys)) != len(keys) or len(keys) != len(CHECKPOINTS) * args.prompts:
        raise SystemExit(f"{len(keys)} rows with {len(set(keys))} keys, of {len(CHECKPOINTS) * args.prompts} pairs")
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200, help="random prompts for each of two checkpoints (200)")
    parser.add_argument("--longest", type=int, default=64, help="tokens of the longest (64)")
    parser.add_argument("--scale", default="pilot", help="of the checkpoints, as `synth` has it (pilot)")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each number of workers (1)")
    parser.add_argument("--json", type=Path, help="write the seconds of every turn")
    args = parser.parse_args()
    found = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for name in CHECKPOINTS:
            synth(name, Path(folder) / name, scale=args.scale)
        for number in range(args.rounds):
            for workers in (1, 2) if number % 2 == 0 else (2, 1):
                found[workers].append(turn(folder, workers, args))
                print(f"round {number + 1}, workers {workers}: {found[workers][-1]:.1f} s", flush=True)
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    print(f"two workers take {median(ratios):.2f} of one worker's time ({min(ratios):.2f} to {max(ratios):.2f})")
    if args.json:
        args.json.write_text(json.dumps({"seconds": found, "ratios": ratios, "cores": os.cpu_count()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
