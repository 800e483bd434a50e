"""A floor whose measuring was ended: its finished runs, in a file beside the cache's, from which it goes on."""

import contextlib
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from numgemma.atomic import write_whole
from numgemma.errors import InputError
from numgemma.incoming import parse_object, read_bytes

SCHEMA = "numgemma.floor-runs/1"
LISTS = ("clean", "rough", "free", "kl")


def path_of(cached: Path) -> Path:
    """Where the runs are while the floor is not whole."""
    return cached.with_suffix(".runs.json")


def keep(path: Path | None, collected, runs: int) -> None:
    """Write what `runs` runs have shown; a file that cannot be written only costs time."""
    if path is None:
        return
    gaps = {
        name: [[None if np.isnan(g) else float(g) for g in run] for run in all] for name, all in collected.gaps.items()
    }
    tree = {"schema": SCHEMA, "runs": runs, "gaps": gaps} | {key: getattr(collected, key) for key in LISTS}
    with contextlib.suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(tree, separators=(",", ":")))


def go_on(path: Path | None, collected, runs: int) -> int:
    """Take up what earlier runs have shown.  -> how many of them there were, at most all but the last"""
    try:
        tree = (
            parse_object(read_bytes(path, "measure again"), f"{path}", "measure again")
            if path and path.exists()
            else {}
        )
        if tree.get("schema") != SCHEMA or not 0 < tree["runs"] < runs:
            return 0
        for key in LISTS:
            setattr(collected, key, defaultdict(list, tree[key]))
        gaps = {name: [np.array(run, float) for run in all] for name, all in tree["gaps"].items()}
        collected.gaps = defaultdict(list, gaps)
        return int(tree["runs"])
    except (InputError, KeyError, TypeError, ValueError):
        return 0


def done(path: Path | None) -> None:
    """The floor is whole."""
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
