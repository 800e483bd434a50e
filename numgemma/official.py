"""The official configs that come with the package, by name: gemma-4-E4B-it, or google/gemma-4-E4B-it."""

from pathlib import Path

from numgemma.errors import InputError, meant
from numgemma.families import find
from numgemma.incoming import parse_object

CONFIGS = Path(__file__).parent / "data" / "configs"


def official(name: str) -> Path | None:
    """The file of that name, with or without the organisation before it; None where there is none."""
    known = {path.stem: path for path in CONFIGS.glob("*.json")}
    return known.get(name.removeprefix("google/"))


def unknown(name: str, what: str) -> InputError:
    """What to raise where a name is neither a path nor official.  what: "checkpoint", "config.json" """
    names = runnable()
    offered = meant(name.removeprefix("google/"), names) or f"; known are: {', '.join(names)}"
    return InputError(f"{name:.200}: no such {what}, and no official config of that name{offered}.")


def runnable() -> list[str]:
    """The names of the models that this version runs."""
    return [path.stem for path in sorted(CONFIGS.glob("*.json")) if runs(path)]


def runs(path):
    try:
        find(parse_object(path.read_bytes(), str(path)), str(path))
    except InputError:
        return False
    return True
