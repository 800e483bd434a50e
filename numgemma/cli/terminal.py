"""The one place that prints: standard output and error, safe for a terminal whatever the text came from.

Names in a dump, keys of a config, generated tokens and refusals of a template may hold what sets a window's title or
turns the screen blue.  All that is printed goes through `shown`, where control characters become visible escapes, as do
characters that the terminal's encoding lacks.  The escapes are JSON's, so that printed JSON stays JSON.
"""

import contextlib
import os
import re
import signal
import sys
import threading

from numgemma.errors import InputError, visible
from numgemma.extras import handled

BACK = re.compile(r"(\x1b\[\d{1,3}A)?\r")  # of a progress bar to its beginning, of a canvas to its first line


class Shown:
    """A text stream that shows control characters instead of sending them.

    lost: what is done where the stream cannot be written.
    """

    def __init__(self, stream, kept, lost):
        self.stream, self.kept, self.lost = stream, kept, lost

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        back = BACK.match(text) if "\r" in self.kept else None
        start = back[0] if back else ""
        shown = start + encodable(visible(text.removeprefix(start), "\n\t"), self.stream.encoding)
        try:
            self.stream.write(shown)
        except BrokenPipeError:
            raise
        except (OSError, ValueError) as error:  # the latter: it is closed
            self.lost(error)
        return len(text)

    def flush(self):
        try:
            self.stream.flush()
        except BrokenPipeError:
            raise
        except (OSError, ValueError) as error:
            self.lost(error)

    def finish(self):
        """Send what is left; a stream that does not take it is let go, so that Python's end does not fail once more."""
        try:
            self.stream.flush()
        except (OSError, ValueError):
            let_go(self.stream)


def encodable(text, encoding):
    """The text, with JSON's escapes for what the encoding lacks."""
    try:
        text.encode(encoding or "utf-8")
        return text
    except (UnicodeEncodeError, LookupError):
        return "".join(c if c.isascii() else escaped(c) for c in text)


def escaped(character):
    """\\u00e9; a pair where one unit of UTF-16 does not hold it."""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def cannot_print(error):
    reason = getattr(error, "strerror", None) or error
    raise InputError(f"standard output: cannot be written ({reason}); free some space, or send it elsewhere.")


@contextlib.contextmanager
def standard_streams():
    """What is printed meanwhile is shown safely."""
    before = sys.stdout, sys.stderr
    if sys.stdout is not None:
        sys.stdout = Shown(sys.stdout, "\n\t", cannot_print)
    with contextlib.ExitStack() as stack:
        # closed before the start: print would send what is meant for it to standard output
        error = sys.stderr or stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        sys.stderr = Shown(error, "\n\t\r", lambda error: None)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def let_go(stream):
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def set_aside(wanted=True):
    """What is printed meanwhile goes to standard error: standard output is for what `print_alone` is given."""
    with contextlib.redirect_stdout(Aside(sys.stdout)) if wanted else contextlib.nullcontext():
        yield


class Aside:
    """Standard output's place, taken by standard error."""

    def __init__(self, output):
        self.output = output

    def __getattr__(self, name):
        return getattr(sys.stderr, name)


def print_alone(text):
    """To standard output, beside what was set aside."""
    print(text, file=getattr(sys.stdout, "output", sys.stdout))


class Terminated(BaseException):
    """SIGTERM or SIGHUP: unwinds as Ctrl-C does, so that nothing half-written is left."""


@contextlib.contextmanager
def signals():
    """SIGTERM and SIGHUP end the run in order, where this is the main thread of a program of ours."""

    def stop(number, frame):
        raise Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = signal.SIGTERM, signal.SIGHUP
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:  # nohup
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def imports():
    """While modules are imported, before anything is written, a signal ends the program as it ends any other.

    A module whose import is interrupted half-way can raise anything: NumPy says that it is badly installed.
    """
    return handled(signal.SIG_DFL)
