"""Kills at random moments of every verb that writes: nothing half, nothing lost, nothing left after the next run.

python tests/hostile_input/kills.py [KILLS [SEED]] [VERB ...]     `make kills` does two hundred

Before each run its outputs stand there, old.  A run is killed (SIGKILL), ended (SIGTERM) or interrupted (SIGINT) at a
moment between its start and what a whole run took.  Then every file is old or new and whole, those that were told to
end have left no partial, and a run that is let alone leaves what it always leaves and nothing else.  Of a run with
workers, every second kill is of a worker: then the run goes on and ends as it always does, or it says that
one died before it had started.  No process outlives a run.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from hostile_input.writers import broken, environment, holds, journal, prepare, there, words  # noqa: E402

GONE = 60  # seconds in which whatever a killed run has begun is to end
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def ours(said):
    """Whether a traceback has a line of the program.  Without one Python itself was starting; so it is, for some ten
    milliseconds, while the package is imported before `__main__`, whose lines can answer a signal.
    """
    return bool(set(re.findall(r"numgemma/([\w/]+)\.py", said)) - {"__init__", "errors", "version"})


class Writer:
    """One verb between its folders, and how long a whole run takes."""

    def __init__(self, verb, base):
        self.verb, self.base, self.out = verb, base, base / "out" / verb
        self.passing = base / "tmp" / verb
        for folder in (self.out, self.passing):
            folder.mkdir(parents=True)
        begun = time.perf_counter()
        code, said = self.run()
        self.seconds = time.perf_counter() - begun
        if code not in (0, 1):
            raise SystemExit(f"{verb}: fails when it is let alone: {said}")
        # a journal that is whole leaves nothing to do
        self.whole, self.code, self.journals = self.left(), code, bool(list(self.out.glob("*.jsonl")))

    def left(self):
        """The names of all files, and how many rows are in those that are journals."""
        rows = {f"{len(journal(path))} rows of {path.name}" for path in self.out.rglob("*.jsonl")}
        return set(holds(self.out)) | rows

    def run(self, number=None, after=0.0, worker=None):
        """A run, with a signal after so many seconds.  -> exit code, standard error

        worker: of those that there are, the one that is killed; None: the run itself.
        """
        command = [sys.executable, "-m", "numgemma", *words(self.verb, self.base / "in", self.out)]
        env = environment(self.base) | {"TMPDIR": str(self.passing)}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": env}
        process = subprocess.Popen(command, **pipes)
        if number is not None:
            time.sleep(after)
            victims = [process.pid] if worker is None else workers(process.pid)
            if victims and process.poll() is None:
                os.kill(victims[(worker or 0) % len(victims)], number)
        try:
            wait = GONE + 4 * self.seconds if number else None
            said = process.communicate(timeout=wait)[1]  # all that it has begun hold that pipe
        except subprocess.TimeoutExpired:
            for pid in (*workers(process.pid), process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return "no end", f"it, or what it has begun, does not end in {wait:.0f} s"
        return process.returncode, said.decode(errors="replace")

    def killed(self, number, after, worker=None):
        """What a kill did wrong, or nothing; and whether it came before the run had ended."""
        old = {name for name in holds(self.out) if not Path(name).name.startswith(".")}  # a partial may be swept up
        partial = set(self.out.rglob(".*"))  # of a run that was killed before
        code, said = self.run(number, after, worker)
        now = set(holds(self.out))
        ended = code == self.code and worker is None
        if worker is not None and code != self.code and "before it had started" not in said:
            return f"ends with {code} where a worker was killed: {said[-300:]}", ended
        if "Traceback" in said and ours(said):
            return f"a traceback: {said[-800:]}", ended
        if code == "no end":
            return said, ended
        if found := broken(self.out):
            return f"half: {found}", ended
        if not old <= now:
            return f"lost {sorted(old - now)}", ended
        left = [path for path in self.out.rglob(".*") if number != signal.SIGKILL and path not in partial]
        return (f"{number.name} left {left}" if left else ""), ended

    def after(self):
        """What the next run, let alone, left wrong."""
        code, said = self.run()
        if code != self.code:
            return f"the next run ends with {code}: {said[-300:]}"
        if found := broken(self.out):
            return f"half after the next run: {found}"
        if self.left() != self.whole:
            return f"the next run leaves {sorted(self.left() ^ self.whole)}"
        left = [str(path) for path in self.passing.iterdir() if not others(path)]
        return f"the next run leaves {left}" if left else ""


def others(path):
    """What PyTorch keeps in the folder for passing files, and what Dask does: its own locks."""
    locks = path.name == "dask-scratch-space" and {one.suffix for one in path.iterdir()} <= {".lock"}
    return path.name.startswith("torchinductor") or locks


def workers(pid):
    """The processes that a run has begun to compute for it."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # which have ended by now
        children = " ".join(thread.read_text() for thread in Path(f"/proc/{pid}/task").glob("*/children")).split()
        found += [int(one) for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]
    return found


def run(kills, seed, chosen, told=lambda line: None):
    """-> verb -> how many kills hit a running program; and what went wrong"""
    hit, wrong = Counter(), []
    with tempfile.TemporaryDirectory() as base:
        prepare(Path(base) / "in")
        writers = {verb: Writer(verb, Path(base)) for verb in chosen}
        for n in range(kills):
            rng, writer = random.Random(f"{seed} {n}"), writers[chosen[n % len(chosen)]]
            if rng.random() < (0.75 if writer.journals else 0.25):  # nothing stood there before
                shutil.rmtree(writer.out)
                writer.out.mkdir()
            number, after = rng.choice(SIGNALS), rng.uniform(0, writer.seconds)
            worker = rng.randrange(2) if "workers" in writer.verb and n // len(chosen) % 2 else None
            bad, ended = writer.killed(number, after, worker)
            hit[writer.verb] += not ended
            bad = bad or (writer.after() if rng.random() < 0.5 or n >= kills - len(chosen) else "")
            if bad:
                wrong.append(f"kill {n} of seed {seed}, {writer.verb}, {number.name} after {after:.2f} s: {bad}")
                told(wrong[-1])
    return hit, wrong


def main(asked):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has its background jobs ignore
    numbers = [int(word) for word in asked if word.isdigit()]
    kills = numbers[0] if numbers else 200
    seed = numbers[1] if len(numbers) > 1 else random.randrange(10**6)
    chosen = [word for word in asked if not word.isdigit()] or there()
    print(f"{kills} kills of seed {seed}: {' '.join(chosen)}", flush=True)
    hit, wrong = run(kills, seed, chosen, lambda line: print(line, flush=True))
    print(f"{sum(hit.values())} hit a running program, {len(wrong)} ended badly")
    print(", ".join(f"{verb} {hit[verb]}" for verb in chosen))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
