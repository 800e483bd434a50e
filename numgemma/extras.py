"""What not every Python has: packages that only some users need, and threads.

A package is imported where it is used, with one sentence where it is missing.
"""

import signal
import sys
import threading
from importlib import import_module

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
    if name in sys.modules or threading.current_thread() is not threading.main_thread():
        return
    numbers = [getattr(signal, number) for number in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, number)]
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    came: list[int] = []
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        import_module(name)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in came[:1]:
        signal.raise_signal(number)
