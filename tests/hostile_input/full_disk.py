"""A full disk at every write of one verb: each file that it cannot create, each that has no room for its bytes.

python tests/hostile_input/full_disk.py VERB INPUTS WORK [MOST]
python tests/hostile_input/full_disk.py [VERB]                       that one, or all, at every write

INPUTS: what writers.prepare made; WORK: a folder that is not there yet; MOST: of the requests so many, spread evenly.

The system itself refuses: a limit on the size of files holds Python, C and Rust alike.  Files that are not created,
renamed or brought to the disk are refused with ENOSPC where Python asks for it.  After each the verb has ended with one
sentence, what stood there before stands there still or is new and whole, and nothing half is left.  Prints what was
tried, and what went wrong.
"""

import contextlib
import errno
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from hostile_input.writers import COMMANDS, FORCED, alone, broken, environment, holds, prepare, words  # noqa: E402
from numgemma.cli import main  # noqa: E402

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CREATES = ("os.mkdir", "os.rename", "shutil.copyfile")


class Disk:
    """What is asked of the disk below a folder, and the request that it refuses."""

    def __init__(self, folder: Path):
        self.folder, self.asked, self.refused, self.limit = str(folder), [], None, None
        _, self.most = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.sync = os.fsync
        os.fsync = lambda handle: (self.ask("sync", None), self.sync(handle))
        sys.addaudithook(self.hook)

    def hook(self, event, args):
        writes = event == "open" and args[2] & WRITES
        if (writes or event in CREATES) and str(args[0]).startswith(self.folder):
            self.ask("write" if writes and args[1] is not None else "create", args[0])

    def ask(self, what, path):
        self.asked.append(what)
        if len(self.asked) - 1 != self.refused:
            return
        if self.limit is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        self.room(self.limit)

    def room(self, limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most if limit is None else limit, self.most))

    @contextlib.contextmanager
    def full(self, at, limit):
        """The request of that number is refused (limit None), or from then on no file grows beyond so many bytes."""
        self.asked, self.refused, self.limit = [], at, limit
        try:
            yield
        finally:
            self.refused = None
            self.room(None)


def run(command):
    """Exit code and standard error; a traceback is one."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            code = main(command)
        except BaseException:
            code = "traceback"
            said.write(traceback.format_exc())
    return code, said.getvalue()


def before(verb, out, sound):
    """What stands there when a run begins: a checkpoint with something of the user's in it, or files of his."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    names = COMMANDS[verb][1]
    if verb in FORCED:
        shutil.copytree(sound / names[0], out / names[0])
        (out / names[0] / "thesis.json").write_text("{}")
    else:
        for name in names:
            if Path(name).suffix in (".json", ".yaml"):
                (out / name).write_text('{"mine": 1}')
    return holds(out)


def judged(verb, out, old, code, said, sound):
    """What is wrong with a run on a full disk, or nothing.  sound: exit code and files of one that had room"""
    now = holds(out)
    hidden = [str(path) for path in out.rglob(".*")]
    if "Traceback" in said or code == "traceback" or "Exception" in said:
        return f"a traceback: {said[-600:]}"
    if hidden:
        return f"left {hidden}"
    if found := broken(out):
        return f"half: {found}"
    if lost := [name for name in old if name not in now and verb not in FORCED]:
        return f"lost {lost}"
    if code == sound[0]:  # what could not be written is no more than a cache, or it was written by then
        stale = [name for name in sound[1] if name not in now or now[name] == old.get(name, "")]
        return f"says that all is well, and {stale} is not written" if stale and verb not in FORCED else ""
    if verb in FORCED and now != old:
        return "the old checkpoint is not what it was"
    line = said.strip().splitlines()[-1:] or [""]
    named = line[0].startswith("numgemma: ") and "/" in line[0] and len(line[0]) < 310
    good = code == 2 and named and ("free some space" in line[0] or "File too large" in line[0])
    return "" if good else f"code {code}, {said!r:.400}"


def places(asked, most):
    """At which requests the disk is full, and how many bytes of the file are written first; None: it is refused."""
    found = [(at, None) for at in range(len(asked))] + [(at, 0) for at, what in enumerate(asked) if what == "write"]
    return sorted({found[i * len(found) // most] for i in range(most)}, key=str) if most < len(found) else found


def trial(disk, verb, inputs, work, place, sound):
    out = work / "out"
    old = before(verb, out, work / "sound")
    if verb == "floor":  # which writes there; the others read
        shutil.rmtree(work / "cache", ignore_errors=True)
    with disk.full(*place):
        code, said = run(words(verb, inputs, out))
    return judged(verb, out, old, code, said, sound)


def examine(verb, inputs, work, most):
    """-> how many ways to be full were tried, and what went wrong"""
    os.environ["NUMGEMMA_CACHE"] = str(work / "cache")
    sound = work / "sound"
    sound.mkdir(parents=True)
    code, said = run(words(verb, inputs, sound))
    if code not in (0, 1):
        return 0, [f"{verb}: fails on an empty disk: {said}"]
    disk = Disk(work)
    before(verb, work / "out", sound)
    disk.asked = []
    run(words(verb, inputs, work / "out"))
    largest = max(path.stat().st_size for path in sound.rglob("*") if path.is_file())
    tries = [*places(disk.asked, most), (0, largest // 2), (0, largest - 1)]
    found = {place: trial(disk, verb, inputs, work, place, (code, holds(sound))) for place in tries}
    return len(tries), [f"{verb}, request {at}, room {room}: {told}" for (at, room), told in found.items() if told]


def every_verb(chosen):
    """Each in a process of its own.  -> the highest exit code"""
    with tempfile.TemporaryDirectory() as base:
        inputs, codes = prepare(Path(base) / "in"), [0]
        for verb in chosen:
            command = [sys.executable, __file__, verb, inputs, Path(base) / verb]
            codes.append(subprocess.run(command, env=environment(Path(base))).returncode)
    return max(codes)


def one_verb(verb, inputs, work, most=1000):
    tried, wrong = examine(verb, Path(inputs), Path(work), int(most))
    print(*wrong, sep="\n")
    print(f"{verb}: a disk that was full in {tried} ways, {len(wrong)} of them ended badly", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(one_verb(*sys.argv[1:]) if len(sys.argv) > 2 else every_verb(sys.argv[1:] or alone()))
