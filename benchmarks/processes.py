"""What a whole process costs: seconds from its start to the first token, and its memory at the worst moment.

Everything is seen from outside, in /proc, so it is the same for every engine: `numgemma generate`, the same in
Transformers (hf_generate.py), and llama-bench, whose first word comes when the prompt is done.
"""

import os
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from disk import forget
from engines import PRECISIONS, llama_command, prompt, read_vocabulary
from to_gguf import gguf_path

HERE = Path(__file__).parent

FIRST = 128  # tokens of the prompt before the first token
MEMORY = (16, 32)  # tokens of the prompt and of its continuation
CACHED = 0.02  # at most this share of the files may still be in memory in a cold start
EVERY = 0.01  # seconds between two looks at the memory


def command(name, folder, threads, tokens, new, build=None):
    """The process that continues a prompt of so many tokens by `new`."""
    kind, precision = name.split("-")
    if kind == "llama":
        size = ["-p", str(tokens), "-n", str(new if new > 1 else 0), "--no-warmup"]
        return [*llama_command(folder, precision, threads, build), *size]
    ids = ",".join(map(str, prompt(tokens, read_vocabulary(folder))))
    if kind == "hf":
        return [sys.executable, HERE / "hf_generate.py", folder, precision, str(threads), ids, str(new)]
    how = ["--backend", kind, "--precision", PRECISIONS[precision], "--threads", str(threads)]
    how += ["--max-new-tokens", str(new), "--ignore-eos", "--print-ids"]
    return [sys.executable, "-m", "numgemma", "generate", folder, "--ids", ids, *how]


def watched(arguments, environment):
    """Seconds to the first word on standard output, most memory in GB, and of that what no file backs."""
    begun = time.perf_counter()
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    seen: list[tuple[int, int]] = []
    looking = threading.Thread(target=look, args=(process, seen))
    looking.start()
    first = process.stdout.read(1)
    seconds = time.perf_counter() - begun
    _, said = process.communicate()
    looking.join()
    if process.returncode or not first:
        raise RuntimeError((said.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1])
    whole, anonymous = (max(column) * 1024 / 1e9 for column in zip(*seen, strict=True))
    return {"seconds": seconds, "rss": whole, "anonymous": anonymous}


def look(process, seen):
    """Notes the most memory so far and the anonymous memory now, in kB, until the process ends."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        found = [re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmHWM", "RssAnon")]
        if all(found):  # a process that ends has none
            seen.append(tuple(int(match[1]) for match in found))
        time.sleep(EVERY)


def weights(name, folder):
    """The files that an engine reads."""
    kind, precision = name.split("-")
    return [gguf_path(folder, precision)] if kind == "llama" else sorted(folder.glob("*.safetensors"))


def warm(files):
    """Reads the files into the page cache."""
    buffer = memoryview(bytearray(1 << 24))
    for file in files:
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def cool(files):
    """Makes the system forget the files; raises RuntimeError where it does not: another process holds them."""
    forget(files)
    share = sum(map(cached, files)) / len(files)
    if share > CACHED:
        raise RuntimeError(f"{share:.0%} of {files[0].parent} stays in the page cache; who else has it open?")


def cached(file, probes=200):
    """The share of a file that can be read without the disk, from random places."""
    size, hits = file.stat().st_size, 0
    with open(file, "rb") as stream:
        for _ in range(probes):
            try:
                os.preadv(stream.fileno(), [bytearray(1)], random.randrange(size), os.RWF_NOWAIT)
                hits += 1
            except BlockingIOError:
                pass
    return hits / probes


def measure(name, folder, threads, what, environment, build=None):
    """The samples of one run: name of the quantity -> value.  what: start-warm, start-cold or memory"""
    (cool if what == "start-cold" else warm)(weights(name, folder))
    if what == "memory":
        run = watched(command(name, folder, threads, *MEMORY, build), environment)
        return {"memory-rss": run["rss"], "memory-anonymous": run["anonymous"]}
    return {what: watched(command(name, folder, threads, FIRST, 1, build), environment)["seconds"]}
