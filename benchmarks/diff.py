"""How fast two dumps are compared, beside how fast their files are only read.

    python benchmarks/diff.py [--gigabytes 2] [--kind other bits|equal|bfloat16] [--cold]

Two dumps of the shape of E2B's are written, point by point; B's numbers are A's with an error in the last bits, A's
own, or A's in bfloat16.  Then both files are read and thrown away, and compared with `numgemma diff`, each in turn and
several times: the best counts.  --cold has the system forget the files' pages before each, so the disk is measured.
Prints MB per second of both files together, and the comparison's peak memory.

Two cores of a Xeon at 2.5 GHz, files of 2 GB, from the system's memory (which gives 6 GB/s); the disk gives 1 GB/s:

    other bits   618 MB/s, 224 MB of memory
    equal       1289 MB/s, 206 MB
    bfloat16     474 MB/s, 175 MB
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from disk import forget

from numgemma.dump import DumpWriter, new_meta

D, F, N, K, H, V = 1536, 6144, 8, 1, 256, 262144
LAYER = {
    **dict.fromkeys(("input_layernorm", "self_attn.o_proj", "post_attention_layernorm", "after_attention"), "T D"),
    **dict.fromkeys(("self_attn.q_proj", "self_attn.q_norm", "self_attn.q_rope", "self_attn.context"), "T N H"),
    **dict.fromkeys(("self_attn.k_proj", "self_attn.k_norm", "self_attn.k_rope", "self_attn.v_norm"), "T K H"),
    "pre_feedforward_layernorm": "T D",
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), "T F"),
    **dict.fromkeys(("mlp.down_proj", "post_feedforward_layernorm", "after_mlp", "out"), "T D"),
}
SIZES = {"D": D, "F": F, "N": N, "K": K, "H": H, "V": V}
KINDS = ("other bits", "equal", "bfloat16")
LAYERS = 35


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of A's file (default: 2)")
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--cold", action="store_true", help="read from the disk, not from the system's memory")
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    for kind in args.kind:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in ("a.safetensors", "b.safetensors")]
            write(paths, kind, args.gigabytes)
            report(kind, paths, args)


def write(paths, kind, gigabytes):
    """Two dumps; the numbers of every point are a piece of the same long row, begun elsewhere."""
    T = tokens_of(gigabytes)
    row = np.random.default_rng(0).standard_normal(T * V + 65536).astype(np.float32)
    meta = new_meta("benchmark", "0", {"config": "c", "layer_kinds": ["full_attention"] * LAYERS}, range(T), "float32")
    with DumpWriter(paths[0], meta) as a, DumpWriter(paths[1], meta) as b:
        for i, (name, axes) in enumerate(points()):
            shape = tuple({"T": T, **SIZES}[letter] for letter in axes.split())
            x = row[(at := 997 * i % 65536) : at + int(np.prod(shape))].reshape(shape)
            a.put(name, shape, (slice(None),) * x.ndim, x, axes)
            b.put(name, shape, (slice(None),) * x.ndim, changed(x, kind), axes)


def points():
    yield "embed_tokens", "T D"
    for layer in range(LAYERS):
        yield from ((f"layers.{layer}.{leaf}", axes) for leaf, axes in LAYER.items())
    yield from (("norm", "T D"), ("lm_head", "T V"), ("logits", "T V"))


def tokens_of(gigabytes):
    each = sum(4 * np.prod([SIZES.get(letter, 1) for letter in axes.split()]) for _, axes in points())
    return max(1, round(gigabytes * 1e9 / float(each)))


def changed(x, kind):
    if kind == "bfloat16":
        return x.astype(ml_dtypes.bfloat16)
    return np.nextafter(x, np.float32(0)) if kind == "other bits" else x


def report(kind, paths, args):
    total = sum(path.stat().st_size for path in paths) / 1e6
    seconds: dict[str, list[float]] = {"read": [], "diff": []}
    peak = 0.0
    for _ in range(args.times):
        for what, work in (("read", read), ("diff", compare)):
            if args.cold:
                forget(paths)
            start = time.monotonic()
            peak = max(peak, work(paths))
            seconds[what].append(time.monotonic() - start)
    speed = {what: total / min(some) for what, some in seconds.items()}
    print(
        f"{kind}: {total:.0f} MB in two files; read {speed['read']:.0f} MB/s, diff {speed['diff']:.0f} MB/s "
        f"({speed['diff'] / speed['read']:.0%}), {peak:.0f} MB of memory",
        flush=True,
    )


def read(paths):
    """Both files, once, by a process of its own.  -> MB of memory at most"""
    return run(
        "buffer = bytearray(1 << 23)",
        "for path in sys.argv[1:]:",
        "    with open(path, 'rb', buffering=0) as file:",
        "        while file.readinto(buffer): pass",
        paths=paths,
    )


def compare(paths):
    return run("from numgemma.cli import main", "assert main(['diff', *sys.argv[1:]]) in (0, 1)", paths=paths)


def run(*lines, paths):
    """Some lines of Python, in a process of their own.  -> MB of memory at most (of its own, and pages of files)"""
    last = "print('', [line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1])"
    code = "\n".join(["import sys", *lines, last])
    done = subprocess.run([sys.executable, "-c", code, *paths], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1e3


if __name__ == "__main__":
    main()
