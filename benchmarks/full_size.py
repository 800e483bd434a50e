"""The released shapes at full size on this machine, whether they fit its memory or not: one pass over 16 tokens.

    python benchmarks/full_size.py [--out DIR] [--keep] [gemma-4-E4B-it gemma-4-26B-A4B-it gemma-4-31B-it]
    .venv-hf/bin/python benchmarks/full_size.py --text --hf gemma-3n-E4B-it

Writes each checkpoint with random weights by streaming (16, 52 and 62 GB: DIR must have room for the largest; the text
of Gemma 3n's E4B takes 14), takes its files out of the page cache, and runs `logits` of 16 tokens in a process of its
own, then three tokens of `generate`.  Printed are seconds, bytes read from disk, the rate of both, the peak of
anonymous memory (what no file backs) and of all.  The normal numbers come from a pool of four million, so that writing
is bound by the disk.  With --hf Transformers does the same in bfloat16 after it, in a process of its own too.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from disk import forget

NAMES = ("gemma-4-E4B-it", "gemma-4-26B-A4B-it", "gemma-4-31B-it")
TOKENS = 16


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all three")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "full", help="default: %(default)s")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there")
    parser.add_argument("--text", action="store_true", help="the text alone, without towers")
    parser.add_argument("--hf", action="store_true", help="Transformers too, in bfloat16; needs the extra hf")
    parser.add_argument("--scale", default="full", help="of synth: a smaller one, to try this out")
    parser.add_argument("--run", nargs=2, metavar=("ENGINE", "DIR"), help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    if args.run:
        engine, folder = args.run
        print(json.dumps(ENGINES[engine](Path(folder))))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or NAMES:
        folder = args.out / name
        if not folder.exists():
            write(name, folder, args.scale, args.text)
        print(f"{name}: {size(folder) / 1e9:.1f} GB of weights, {memory() / 1e9:.1f} GB of memory", flush=True)
        for engine in ("numgemma", "transformers")[: 1 + args.hf]:
            forget(folder.glob("*.safetensors"))
            command = [sys.executable, __file__, "--run", engine, folder]
            out = subprocess.run(command, capture_output=True, text=True, check=True)
            for row in json.loads(out.stdout.splitlines()[-1]):
                print(f"  {engine:<12}  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if not args.keep:
            shutil.rmtree(folder)


def write(name, folder, scale, text):
    """A random checkpoint, as `numgemma synth` writes it, with normal numbers out of a pool."""
    import numpy as np

    from numgemma.surgery import synth

    pool = np.random.default_rng(0).standard_normal(1 << 22, np.float32)

    def normal(rng, n):
        start = int(rng.integers(len(pool)))
        return np.resize(np.roll(pool, -start), n)

    synth.normal = normal
    begun = time.perf_counter()
    if text:
        whole, _, _ = synth.find_config(name)
        folder.mkdir()
        alone = folder / "config.json"
        alone.write_text(json.dumps(whole["text_config"]))
        name = str(alone)
    synth.synth(name, folder, scale=scale, unread=False, force=True)
    print(f"{folder}: written in {time.perf_counter() - begun:.0f} s", flush=True)


def size(folder):
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def run(folder):
    """A row for the pass over the prompt, and one for tokens through the cache."""
    import numpy as np

    import numgemma
    from numgemma import ops

    ops.use(ops.fastest())
    peak = Peak()
    model = numgemma.load(folder)
    ids = np.random.default_rng(0).integers(*between(model.outline.vocabulary), TOKENS)
    rows = [measured(f"logits of {TOKENS} tokens", lambda: model.logits(ids), peak)]
    new = model.continued(ids, 4, ignore_eos=True)
    rows.append(measured("the first token", lambda: next(new), peak))
    return [*rows, measured("three more, each", lambda: list(new), peak, 3)]


def run_transformers(folder):
    """The same by Transformers, its text model in bfloat16."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    peak = Peak()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    vocab = model.config.get_text_config().vocab_size
    ids = torch.tensor(np.random.default_rng(0).integers(*between(vocab), TOKENS))[None]

    def new(count):
        return model.generate(ids, max_new_tokens=count, do_sample=False, eos_token_id=None)

    with torch.no_grad():
        rows = [measured(f"logits of {TOKENS} tokens", lambda: model(ids), peak)]
        rows.append(measured("the first token", lambda: new(1), peak))
        return [*rows, measured("four tokens, the prompt again", lambda: new(4), peak)]


def between(vocab):
    """Ids of text, none special."""
    return min(1000, vocab // 8), vocab - min(8192, vocab // 4)


ENGINES = {"numgemma": run, "transformers": run_transformers}


def measured(what, call, peak, count=1):
    before, begun = read_from_disk(), time.perf_counter()
    call()
    seconds, read = time.perf_counter() - begun, read_from_disk() - before
    return {
        what: f"{seconds / count:.1f} s",
        "read": f"{read / count / 1e9:.1f} GB",
        "at": f"{read / seconds / 1e9:.2f} GB/s",
        "anonymous at most": f"{peak.anonymous / 1e9:.2f} GB",
        "all at most": f"{status('VmHWM') / 1e9:.1f} GB",
    }


def read_from_disk():
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def status(key):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


class Peak:
    """Watches the anonymous memory of this process from a thread."""

    def __init__(self):
        self.anonymous = 0
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        while True:
            self.anonymous = max(self.anonymous, status("RssAnon"))
            time.sleep(0.02)


if __name__ == "__main__":
    main()
