"""What not every Python has: packages that only some users need, and threads.

A package is imported where it is used, with one sentence where it is missing.
"""

import sys
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
