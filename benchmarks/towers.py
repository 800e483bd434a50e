"""Both towers at their released sizes against Transformers, side by side: float32, random weights stored in bfloat16.

    python benchmarks/towers.py [--rounds 3] [--threads 2] [--backend numba] [CASE ...]

The two take turns in one process; times are medians, in brackets those of the processor, all threads together: on a
busy machine only these say anything, and only with --threads 1.  Transformers runs with the attention it chooses
itself, on weights already in float32; numgemma reads its bfloat16 weights from a file, as it would a checkpoint's.  The
peak memory is that of a process that does nothing but our run, pages of the weights' file included.  Needs the extra
`hf`.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "numgemma" / "data" / "configs"

# name: released config, tower, soft tokens (vision) or seconds (audio)
CASES = {
    "vision-e4b-280": ("gemma-4-E4B-it", "vision", (20, 14)),
    "vision-e4b-1120": ("gemma-4-E4B-it", "vision", (40, 28)),
    "vision-26b-280": ("gemma-4-26B-A4B-it", "vision", (20, 14)),
    "vision-26b-1120": ("gemma-4-26B-A4B-it", "vision", (40, 28)),
    "audio-30s": ("gemma-4-E4B-it", "audio", 30),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backend", choices=("numpy", "numba"), default="numba")
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # the weights to run on, alone in this process
    args = parser.parse_args()
    os.environ |= {name: str(args.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    from numgemma import ops

    ops.use(args.backend, args.threads)
    if args.peak:
        print(peak(args.cases[0], Path(args.peak)))
        return
    print(f"{'':16} {'transformers':>18} {'numgemma':>18} {'ratio':>14} {'peak':>8} {'difference':>11}")
    for case in args.cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            theirs, ours, off, memory = measure(case, Path(folder) / "tower.safetensors", args)
        times = " ".join(f"{wall:8.2f} ({cpu:6.2f}) s" for wall, cpu in (theirs, ours))
        ratio = f"{theirs[0] / ours[0]:5.2f} ({theirs[1] / ours[1]:4.2f})"
        print(f"{case:16} {times} {ratio:>14} {memory:5.2f} GB {off:11.1e}", flush=True)


def measure(case, path, args):
    """Median seconds of both by the clock and of the processor, their relative difference, our peak memory in GB."""
    import numpy as np
    import torch

    torch.set_num_threads(args.threads)
    hf = build(case, path)
    given, run = inputs(case), runner(case, path)
    seconds: dict = {"theirs": [], "ours": []}
    for _ in range(args.rounds + 1):  # the first warms up
        begun = clocks()
        with torch.no_grad():
            a = hf(**{name: torch.tensor(x[None]) for name, x in given.items()}).last_hidden_state.numpy()
        between = clocks()
        b = run(*given.values())
        seconds["theirs"].append(between - begun)
        seconds["ours"].append(clocks() - between)
    off = np.sqrt(((a.reshape(b.shape) - b) ** 2).mean() / (a**2).mean())
    del hf
    how = ["--threads", str(args.threads), "--backend", args.backend]
    command = [sys.executable, __file__, case, *how, "--peak", str(path)]
    memory = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    theirs, ours = (np.median(s[1:], axis=0) for s in seconds.values())
    return theirs, ours, off, memory


def clocks():
    import numpy as np

    return np.array([time.perf_counter(), time.process_time()])


def build(case, path):
    """A tower of Transformers with random weights and bounds; the same in bfloat16 in a file."""
    import torch
    import transformers
    from safetensors.torch import save_file

    config, tower, _ = CASES[case]
    raw = json.loads((CONFIGS / f"{config}.json").read_text())[f"{tower}_config"]
    kind = {"vision": transformers.Gemma4VisionModel, "audio": transformers.Gemma4AudioModel}[tower]
    hf = kind(kind.config_class(**raw)).eval()
    generator = torch.Generator().manual_seed(0)
    tensors = hf.state_dict()
    for name, x in tensors.items():
        x.copy_(random(name, x, generator).to(torch.bfloat16))
    save_file({name: x.to(torch.bfloat16) for name, x in tensors.items()}, path)
    return hf


def random(name, x, generator):
    import torch

    if name.endswith(("put_min", "put_max")):
        return torch.full((), -3.0 if name.endswith("min") else 3.0)
    noise = torch.randn(x.shape, generator=generator)
    if x.dim() == 1:
        return (0.3 if "k_norm" in name else 1) + 0.1 * noise
    return noise * x[0].numel() ** -0.5


def inputs(case):
    """What the tower is called with, by Transformers' names."""
    import numpy as np

    _, tower, size = CASES[case]
    rng = np.random.default_rng(0)
    if tower == "audio":
        features = rng.normal(-3, 2, (100 * size, 128)).astype(np.float32)
        return {"input_features": features, "attention_mask": np.ones(100 * size, bool)}
    across, down = (3 * side for side in size)
    positions = np.stack(np.meshgrid(range(across), range(down)), -1).reshape(-1, 2)
    pixels = rng.integers(0, 256, (across * down, 768)) / np.float32(255)
    return {"pixel_values": pixels.astype(np.float32), "pixel_position_ids": positions}


def runner(case, path):
    """Our tower as a function of the same."""
    import numpy as np

    from numgemma.checkpoint import Weights
    from numgemma.families import read_config
    from numgemma.layers.conformer import audio_tower
    from numgemma.layers.vision import vision_tower
    from numgemma.weights.safetensors import open_safetensors

    config, tower, _ = CASES[case]
    c = read_config(json.loads((CONFIGS / f"{config}.json").read_text()), config)
    w = Weights(open_safetensors(path).tensors)
    if tower == "audio":
        return lambda features, mask: audio_tower(features[mask], w, c.audio, np.dtype("float32"))
    return lambda pixels, positions: vision_tower(pixels, positions, w, c.vision, np.dtype("float32"))


def peak(case, path):
    """Peak memory in GB of this process, which runs nothing else."""
    runner(case, path)(*inputs(case).values())
    status = Path("/proc/self/status").read_text()  # getrusage would count the process that started this one
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
