"""A chat template and its variables -> text, as Transformers' render_jinja_template spells it.

A template is a program by whoever made the checkpoint.  It runs in a process of its own, sandbox.py, which the system
bounds in time and memory; this side sends plain values and takes back a text, a refusal or a failure.
"""

import atexit
import json
import marshal
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from numgemma.errors import InputError

MAX_SECONDS = 12  # of computing; a chat of seven hundred messages takes seven: templates look back and forth
MAX_SIZE = 10_000_000  # characters of the text; the longest context holds a tenth
ROOM, TIMES = 100_000, 20  # of them a template may write so many, and so many times what it is given
PATIENCE = 5  # times as long may it take by the clock, on a machine that has other work


@dataclass(frozen=True)
class Template:
    """A template's text, and the file it stands in."""

    text: str
    origin: str


def render(template: Template, variables: Mapping) -> str:
    """The text of a template.  Raises InputError with the line where it does not compile, or fails, or refuses."""
    try:
        job = {"source": template.text, "variables": plain(variables), "now": datetime.now().isoformat()}
        size = min(MAX_SIZE, ROOM + TIMES * len(marshal.dumps(job)))
        sent = marshal.dumps(job | {"seconds": MAX_SECONDS, "size": size})
    except (RecursionError, ValueError):
        raise InputError(f"{template.origin}: the messages are nested too deep for a template; flatten them.") from None
    answer = worker.asked(sent, MAX_SECONDS * PATIENCE)
    if answer is None:
        answer = {"failed": f"it takes more than {MAX_SECONDS} seconds", "place": "the template"}
    if "refused" in answer:
        raise InputError(f"{template.origin}: the template says: {answer['refused']}; change the messages.")
    if "failed" in answer:
        raise InputError(f"{template.origin}: {answer['place']}: {answer['failed']}; correct it, or the messages.")
    return answer["text"]


def plain(value):
    """The value rebuilt of JSON's types, so that a template can call no method of an image or an array."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # without what a subclass adds
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return f"<{type(value).__name__}>"


class Worker:
    """The process that renders: started when it is first needed, and again when a template was the end of it."""

    def __init__(self):
        self.process: subprocess.Popen | None = None
        self.owner, self.lock = 0, threading.Lock()

    def asked(self, sent: bytes, seconds: float) -> dict[str, Any] | None:
        """The answer to one job; None where the process did not live, or the time is over."""
        with self.lock:
            process = self.process
            if process is None or process.poll() is not None or self.owner != os.getpid():
                process = self.process = started()
                self.owner = os.getpid()
            into: Any = process.stdin
            try:
                into.write(len(sent).to_bytes(8, "little") + sent)
                into.flush()
                raw = received(process.stdout, time.monotonic() + seconds)
            except BrokenPipeError:
                raw = None
            except BaseException:  # Ctrl-C: the answer that is still to come is nobody's
                self.stop()
                raise
            answer = json.loads(raw) if raw else None
            if answer is None or answer.pop("spent", False):
                self.stop()
            return answer

    def stop(self):
        """End the process; one that another process of ours has started is not ours to end."""
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
            for pipe in filter(None, (self.process.stdin, self.process.stdout)):
                with suppress(OSError):
                    pipe.close()
        self.process = None


def started() -> subprocess.Popen:
    found = [find_spec(name) for name in ("jinja2", "markupsafe")]
    places = {str(Path(spec.origin).parents[1]) for spec in found if spec and spec.origin}
    command = [sys.executable, "-I", str(Path(__file__).with_name("sandbox.py")), *sorted(places)]
    pipe, gone = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=gone, start_new_session=True)


def received(pipe, end) -> bytes | None:
    """The bytes of an answer; None where there will be none, or not in time."""
    found = bytearray()
    with selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        while len(found) < 8 or len(found) < 8 + int.from_bytes(found[:8], "little"):
            if not ready.select(max(0.0, end - time.monotonic())):
                return None
            if not (part := os.read(pipe.fileno(), 1 << 20)):
                return None
            found += part
    return bytes(found[8:])


worker = Worker()
atexit.register(worker.stop)
