"""Packages that only some users need: imported where they are used, with one sentence where they are missing."""

from importlib import import_module

from numgemma.errors import InputError


def package(name: str, extra: str):
    """Import a package of one of the extras in setup.cfg.  Raises InputError with the install line."""
    try:
        return import_module(name)
    except ImportError as error:
        top = name.partition(".")[0]
        install = f"pip install 'numgemma[{extra}]'"
        raise InputError(f"{top} is needed here ({error}); install it with `{install}`.") from None
