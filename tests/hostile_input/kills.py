"""Kills at random moments of every verb that writes: nothing half, nothing lost, nothing left after the next run.

python tests/hostile_input/kills.py [KILLS [SEED]] [VERB ...]     `make kills` does two hundred

Before each run its outputs stand there, old.  A run is killed (SIGKILL), ended (SIGTERM) or interrupted (SIGINT) at a
moment between its start and what a whole run took.  Then every file is old or new and whole, those that were told to
end have left no partial, and a run that is let alone leaves what it always leaves and nothing else.
"""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from hostile_input.writers import broken, environment, holds, prepare, there, words  # noqa: E402

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


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
        self.names, self.code = set(holds(self.out)), code

    def run(self, number=None, after=0.0):
        """A run, with a signal after so many seconds.  -> exit code, standard error"""
        command = [sys.executable, "-m", "numgemma", *words(self.verb, self.base / "in", self.out)]
        env = environment(self.base) | {"TMPDIR": str(self.passing)}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": env}
        process = subprocess.Popen(command, **pipes)
        if number is not None:
            time.sleep(after)
            process.send_signal(number)
        said = process.communicate()[1].decode(errors="replace")
        return process.returncode, said

    def killed(self, number, after):
        """What a kill did wrong, or nothing; and whether it came before the run had ended."""
        old = {name for name in holds(self.out) if not name.startswith(".")}  # a partial may be swept up
        code, said = self.run(number, after)
        now = set(holds(self.out))
        ended = code == self.code
        if "numgemma/" in said and "Traceback" in said:  # without a line of ours Python itself was starting
            return f"a traceback: {said[-800:]}", ended
        if found := broken(self.out):
            return f"half: {found}", ended
        if not old <= now:
            return f"lost {sorted(old - now)}", ended
        left = [path for path in self.out.rglob(".*") if number != signal.SIGKILL]
        return (f"{number.name} left {left}" if left else ""), ended

    def after(self):
        """What the next run, let alone, left wrong."""
        code, said = self.run()
        if code != self.code:
            return f"the next run ends with {code}: {said[-300:]}"
        if set(holds(self.out)) != self.names:
            return f"the next run leaves {sorted(set(holds(self.out)) ^ self.names)}"
        left = [str(path) for path in self.passing.iterdir() if not path.name.startswith("torchinductor")]
        return f"the next run leaves {left}" if left else ""


def run(kills, seed, chosen, told=lambda line: None):
    """-> verb -> how many kills hit a running program; and what went wrong"""
    hit, wrong = Counter(), []
    with tempfile.TemporaryDirectory() as base:
        prepare(Path(base) / "in")
        writers = {verb: Writer(verb, Path(base)) for verb in chosen}
        for n in range(kills):
            rng, writer = random.Random(f"{seed} {n}"), writers[chosen[n % len(chosen)]]
            if rng.random() < 0.25:  # nothing stood there before
                shutil.rmtree(writer.out)
                writer.out.mkdir()
            number, after = rng.choice(SIGNALS), rng.uniform(0, writer.seconds)
            bad, ended = writer.killed(number, after)
            hit[writer.verb] += not ended
            bad = bad or (writer.after() if rng.random() < 0.5 or n >= kills - len(chosen) else "")
            if bad:
                wrong.append(f"kill {n} of seed {seed}, {writer.verb}, {number.name} after {after:.2f} s: {bad}")
                told(wrong[-1])
    return hit, wrong


def main(asked):
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
