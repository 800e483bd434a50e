"""Runs mutants of every kind, and counts what became of them.

python tests/hostile_input/harness.py [mutants] [seed] [kind ...]
"""

import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from hostile_input.kinds import KINDS  # noqa: E402
from hostile_input.mutants import mutated_json  # noqa: E402
from numgemma.errors import InputError  # noqa: E402

SECONDS = 20  # after which a mutant hangs
OUTCOMES = ("refused well", "accepted and right", "traceback", "hang")


class Hang(BaseException):
    """The clock ran out."""


def late(number, frame):
    raise Hang


def run(mutants: int, seed: int, kinds=tuple(KINDS), told=None):
    """As many mutants, dealt to the kinds in turn.  -> outcome -> how many, and the text of each that went wrong"""
    counts, wrong = Counter(dict.fromkeys(OUTCOMES, 0)), []
    slowest = (0.0, "")
    with tempfile.TemporaryDirectory() as base:
        sound = {kind: Path(base) / kind for kind in kinds}
        for kind, folder in sound.items():
            folder.mkdir()
            KINDS[kind][0](folder)
        before = signal.signal(signal.SIGALRM, late)
        try:
            for n in range(mutants):
                kind = kinds[n % len(kinds)]
                begun = time.perf_counter()
                outcome, text = one(kind, sound[kind], random.Random(f"{seed} {n}"))
                slowest = max(slowest, (time.perf_counter() - begun, f"{kind} {n}"))
                counts[outcome] += 1
                if outcome in OUTCOMES[2:]:
                    wrong.append(f"{kind}, mutant {n} of seed {seed}: {outcome}: {text}")
                if told:
                    told(n, kind, outcome, text)
        finally:
            signal.signal(signal.SIGALRM, before)
    return counts, wrong, slowest


def one(kind, folder, rng):
    """What becomes of one mutant: an outcome and its text.  The sound file is put back."""
    _, name, mutate, read = KINDS[kind]
    path = folder / name
    kept = path.read_bytes()
    path.unlink()  # what is mapped still keeps what it had
    path.write_bytes(mutant(kept, mutate, rng))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(folder)
        return "accepted and right", ""
    except InputError as error:
        return judged(str(error))
    except Hang:
        return "hang", f"more than {SECONDS} s"
    except Exception:
        return "traceback", " | ".join(traceback.format_exc().splitlines()[-5:])[:600]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        path.unlink()
        path.write_bytes(kept)


def judged(text):
    """A refusal is one line under 300 characters without a control character, or it is no better than a traceback."""
    if len(text) < 300 and all(c.isprintable() or c == " " for c in text if not c.isalnum()):
        return "refused well", text
    return "traceback", f"a message that is none: {text!r}"


def mutant(raw: bytes, mutate, rng) -> bytes:
    if mutate == "metadata":
        return with_metadata(raw, rng)
    if mutate is mutated_json:
        return mutate(json.loads(raw), rng)
    if mutate.__name__ == "mutated_text":
        return mutate(raw.decode(), rng).encode("utf-8", "surrogatepass")
    return mutate(raw, rng)


def with_metadata(raw: bytes, rng) -> bytes:
    """A dump whose description is mutated, in a file that is sound."""
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    changed = mutated_json(json.loads(header["__metadata__"]["numgemma"]), rng).decode("utf-8", "replace")
    header["__metadata__"]["numgemma"] = changed
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + size :]


def main(words):
    mutants = int(words[0]) if words else 20_000
    seed = int(words[1]) if len(words) > 1 else random.randrange(10**6)
    kinds = tuple(words[2:]) or tuple(KINDS)
    print(f"{mutants} mutants of seed {seed}: {' '.join(kinds)}", flush=True)
    counts, wrong, slowest = run(mutants, seed, kinds)
    for text in wrong:
        print(text)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(", ".join(f"{outcome}: {counts[outcome]}" for outcome in OUTCOMES))
    print(f"slowest: {slowest[1]}, {slowest[0]:.1f} s; at most {peak:.2f} GB")
    return 1 if wrong or peak > 2 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
