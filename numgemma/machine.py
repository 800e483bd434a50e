"""What this machine can do at most, measured, and what a token asks of it: so that "fast" is a number."""

import os
import platform
import time
from pathlib import Path
from statistics import median

import numpy as np

from numgemma import ops
from numgemma.ops import blas, threads

READ = 1 << 29  # bytes, many times what any cache holds


def read_bandwidth(number: int) -> float:
    """GB/s at which so many threads read memory, each a share of its own; the median of nine."""
    shares = np.array_split(np.ones(READ // 4, np.float32), number)
    with ops.using(ops.current(), number):
        return READ / 1e9 / median(seconds(lambda: threads.in_parallel(np.max, shares)) for _ in range(9))


def gemm_peak() -> float:
    """GFLOP/s of a float32 product of matrices in this process's BLAS; the median of nine."""
    x, w = np.ones((512, 1536), np.float32), np.ones((6144, 1536), np.float32)
    with ops.using("numpy"):  # which leaves BLAS as many threads as the run may have
        took = median(seconds(lambda: x @ w.T) for _ in range(9))
    time.sleep(0.2)  # so long BLAS's threads look out for more, in the time of whatever is measured next
    return 2e-9 * x.size * len(w) / took


def seconds(call) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def blas_kernel() -> str:
    """The library that multiplies matrices, and which processor it takes this one for."""
    found = blas.libraries()
    if found is None:
        return "unknown (threadpoolctl is not installed)"
    names = [f"{lib['internal_api']} {lib['version']} ({lib.get('architecture', 'unknown')})" for lib in found.info()]
    return ", ".join(names) or "unknown (one that threadpoolctl does not know)"


def engine() -> str:
    """In one line: what computes, on how many threads."""
    return f"{ops.current()}, {threads.allowed()} threads of numgemma's own, BLAS {blas_kernel()}"


def warnings() -> list[str]:
    """What makes this process slower than its processor is."""
    forced = os.environ.get("OPENBLAS_CORETYPE")
    if not forced or "avx512f" not in processor_flags() or forced.lower().startswith(("sky", "cooper", "sapphire")):
        return []
    fault = f"OPENBLAS_CORETYPE={forced} in the environment keeps BLAS from this processor's AVX-512"
    return [f"{fault}; run with `env -u OPENBLAS_CORETYPE`."]


def processor_flags() -> str:
    return Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""


def bytes_per_token(model) -> float:
    """Bytes of weights that a decoded token reads: of a table one row, unless it is the head; of experts the chosen."""
    rows, w = model.outline.layers, model.weights
    tied = "lm_head.weight" not in w
    total = 0.0
    for name in model.family.text_shapes(model.config).keys() - {"lm_head.weight"}:
        share = 1.0
        if name == "embed_tokens_per_layer.weight" or (name == "embed_tokens.weight" and not tied):
            share = 1 / len(w[name])
        elif ".experts." in name:
            spec = rows[int(name.split(".")[1])]
            share = spec.J / spec.E
        total += share * w[name].nbytes
    return total if tied else total + w["lm_head.weight"].nbytes


def flops_per_token(model, whole: bool, tokens: int) -> float:
    """Multiplications and additions for a token of a prompt of so many: its products with weights, and in attention
    its scores and the mean of the values that it sees.  whole: in layers that share keys too
    """
    rows = model.outline.layers
    last_maker, total = max(spec.kv_from for spec in rows), 0.0
    for name, shape in model.family.text_shapes(model.config).items():
        layer = int(name.split(".")[1]) if name.startswith("layers.") else -1
        if len(shape) < 2 or name.startswith(("embed_tokens", "lm_head")) or (layer > last_maker and not whole):
            continue
        share = rows[layer].J / rows[layer].E if ".experts." in name else 1.0
        total += 2 * share * float(np.prod(shape))
    return total + sum(4 * s.N * s.H * keys_seen(s, tokens) for s in rows if whole or s.index <= last_maker)


def keys_seen(spec, tokens: int) -> float:
    """Keys that a token of a prompt sees, on average."""
    return float(np.minimum(np.arange(1, tokens + 1), spec.window or tokens).mean())


def peak_memory() -> dict[str, float]:
    """GB that this process has held at most, pages of mapped files included, and what it holds now without them."""
    try:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    except OSError:
        return {}
    told = {"peak": status.get("VmHWM"), "anonymous": status.get("RssAnon")}
    return {name: int(size.split()[0]) * 1024 / 1e9 for name, size in told.items() if size}
