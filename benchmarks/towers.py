"""Both towers at their released sizes against Transformers, side by side: float32, random weights stored in bfloat16.

    python benchmarks/towers.py [--rounds 3] [--threads 2] [--backend numba] [CASE ...]

Each runs in a process of its own, and who has no turn is stopped, as idle threads that spin would take the processor
from the other; every second round goes backwards.  Times are medians, in brackets those of the processor, all threads
together: on a busy machine only these say anything, and only with --threads 1.  Transformers runs with the attention it
chooses itself, on weights already in float32; numgemma reads its bfloat16 weights from a file, as it would a
checkpoint's.  The peak memory is that of our process, pages of the weights' file included.  Needs the extra `hf`.
"""

import argparse
import json
import os
import re
import signal
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
    parser.add_argument("--serve", nargs=2, metavar=("WHO", "DIR"), help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    os.environ |= {name: str(args.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    if args.serve:
        who, folder = args.serve
        serve(ENGINES[who](args.cases[0], Path(folder) / WEIGHTS, args), Path(folder) / f"{who}.npy")
        return
    print(f"{'':16} {'transformers':>18} {'numgemma':>18} {'ratio':>14} {'peak':>8} {'difference':>11}")
    for case in args.cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            theirs, ours, off, memory = measure(case, folder, args)
        times = " ".join(f"{wall:8.2f} ({cpu:6.2f}) s" for wall, cpu in (theirs, ours))
        ratio = f"{theirs[0] / ours[0]:5.2f} ({theirs[1] / ours[1]:4.2f})"
        print(f"{case:16} {times} {ratio:>14} {memory:5.2f} GB {off:11.1e}", flush=True)


def measure(case, folder, args):
    """Median seconds of both by the clock and of the processor, their relative difference, our peak memory in GB."""
    import numpy as np

    children = {who: started(case, who, folder, args) for who in ENGINES}  # the first writes the weights
    seconds: dict = {who: [] for who in ENGINES}
    for turn in range(args.rounds + 1):  # the first warms up
        for who in list(ENGINES)[:: -1 if turn % 2 else 1]:
            seconds[who].append(asked(children[who]))
    memory = peak(children["ours"].pid)
    for child in children.values():
        child.kill()
        child.wait()
    a, b = (np.load(Path(folder) / f"{who}.npy") for who in ENGINES)
    off = np.sqrt(((a.reshape(b.shape) - b) ** 2).mean() / (a**2).mean())
    return *(np.median(s[1:], axis=0) for s in seconds.values()), off, memory


def started(case, who, folder, args):
    """The process of one of them, stopped when it is ready."""
    how = ["--threads", str(args.threads), "--backend", args.backend, "--serve", who, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen([sys.executable, __file__, case, *how], **pipes)
    answer(child)
    child.send_signal(signal.SIGSTOP)
    return child


def asked(child):
    """One turn.  -> seconds by the clock and of the processor"""
    child.send_signal(signal.SIGCONT)
    child.stdin.write("run\n")
    child.stdin.flush()
    found = answer(child)
    child.send_signal(signal.SIGSTOP)
    return found


def answer(child):
    if not (line := child.stdout.readline()):
        sys.exit(f"{' '.join(child.args)}: ended with {child.wait()}")
    return json.loads(line)


def serve(run, out):
    """Run once for each line that comes, and answer with the time it took; what came out goes into a file."""
    import numpy as np

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not pass for an answer
    print(json.dumps("ready"), file=answers, flush=True)
    for _ in sys.stdin:
        begun = clocks()
        y = run()
        seconds = (clocks() - begun).tolist()
        np.save(out, y)
        print(json.dumps(seconds), file=answers, flush=True)


def clocks():
    import numpy as np

    return np.array([time.perf_counter(), time.process_time()])


def their_run(case, path, args):
    """Transformers' tower, whose weights it writes into the file."""
    import torch

    torch.set_num_threads(args.threads)
    hf, given = build(case, path), {name: torch.tensor(x[None]) for name, x in inputs(case).items()}

    def run():
        with torch.no_grad():
            return hf(**given).last_hidden_state.numpy()

    return run


def our_run(case, path, args):
    from numgemma import ops
    from numgemma.cli.memory import keep_memory

    ops.use(args.backend, args.threads)
    keep_memory()  # as the command line does
    run, given = runner(case, path), inputs(case).values()
    return lambda: run(*given)


WEIGHTS = "tower.safetensors"
ENGINES = {"theirs": their_run, "ours": our_run}


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


def peak(pid):
    """Peak memory in GB of a process so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
