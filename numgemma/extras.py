"""What not every Python has: packages that only some users need, and threads.

A package is imported where it is used, with one sentence where it is missing.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from numgemma.errors import InputError

BROWSER = sys.platform == "emscripten"  # Pyodide: no threads can be started, nor processes


def package(name: str, extra: str):
    """Import a package of one of the extras in setup.cfg.  Raises InputError with the install line."""
    try:
        return import_module(name)
    except ImportError as error:
        top = name.partition(".")[0]
        install = f"pip install 'numgemma[{extra}]'"
        raise InputError(f"{top} is needed here ({error}); install it with `{install}`.") from None


def drawing() -> None:
    """Import what draws, whole: a signal waits for that, as a module that is interrupted can raise anything."""
    name = "matplotlib.backends.backend_agg"
    if name in sys.modules:
        return
    came: list[int] = []
    with handled(lambda number, frame: came.append(number)):
        import_module(name)
    for number in came[:1]:
        signal.raise_signal(number)


@contextmanager
def handled(handler: Callable[[int, Any], Any] | signal.Handlers) -> Iterator[None]:
    """What would interrupt Python goes to another handler meanwhile; in the main thread, which alone has handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: known for number in numbers if callable(known := signal.getsignal(number))}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)
