"""Builds two published checkpoints at full size from random parents, and measures: benchmarks/surgery.py WHICH DIR

WHICH is `e6b` (E4B restacked to 66 layers; needs 40 GB in DIR) or `transplant` (Gemma 3 1B and E2B to a dense 1B; needs
15 GB).  Prints time and peak memory of each step and the count of every module beside the one on the model's card, and
exits with 1 where a count, a sampled tensor or the limit of 2 GB does not hold.  Removes what it wrote.
"""

import os
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import numpy as np

from numgemma.checkpoint import open_checkpoint
from numgemma.families import read_config
from numgemma.families.gemma4 import layout
from numgemma.surgery.recipe import PRESETS

LIMIT = 2e9  # bytes of memory, at most, in any step
FAULTS = []


def main(which, folder):
    with tempfile.TemporaryDirectory(prefix="surgery.", dir=folder) as scratch:
        {"e6b": e6b, "transplant": transplant}[which](Path(scratch))
    print("\n".join(FAULTS) or "all as it should be")
    return 1 if FAULTS else 0


def step(*verb):
    """Run a verb of numgemma; print its seconds and its peak memory."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "numgemma", *map(str, verb)])
    _, status, used = os.wait4(process.pid, 0)
    peak = used.ru_maxrss * 1024
    print(f"{verb[0]}: {time.monotonic() - start:.0f} s, {peak / 1e9:.2f} GB of memory at most", flush=True)
    check(status == 0 and peak < LIMIT, f"{verb[0]}: status {status}, {peak / 1e9:.2f} GB of memory")


def check(holds, complaint):
    if not holds:
        FAULTS.append(complaint)


def compare(what, found, card):
    """A number beside the card's: a whole number has to be equal, billions to the digits given."""
    digits = len(str(card).partition(".")[2])
    same = found == card if isinstance(card, int) else round(found / 1e9, digits) == card
    print(f"{what:<44}{found:>16,}  {card:>13,}{'' if same else '   DIFFERS'}")
    check(same, f"{what}: {found}, not {card}")


def total(shapes, *starts, without=()):
    """Numbers in the tensors whose names start so."""
    return sum(prod(s) for n, s in shapes.items() if n.startswith(starts) and not any(part in n for part in without))


def shapes_of(checkpoint):
    return {name: x.shape for name, x in checkpoint.weights.tensors.items()}


def e6b(folder):
    step("synth", "gemma-4-E4B-it", "-o", folder / "e4b")
    step("stack", folder / "e4b", "--preset", "e6b", "-o", folder / "e6b")
    parent, child = open_checkpoint(folder / "e4b"), open_checkpoint(folder / "e6b")
    shapes = shapes_of(child)
    print(f"{'':<44}{'found':>16}  {'card':>13}")
    compare("numbers of the parent, unread keys included", total(shapes_of(parent), ""), 7_996_157_418)
    compare("numbers", total(shapes, ""), 11.9)
    compare("per-layer embeddings", total(shapes, "embed_tokens_per_layer"), 4.43)
    compare("embeddings", total(shapes, "embed_tokens."), 0.67)
    # the text model's layers alone are 6.29 billion; the card's number is that of all layers without their PLE riders
    layers = {name: shape for name, shape in shapes.items() if "layers." in name}
    compare("layers of text and towers, PLE riders aside", total(layers, "", without=["per_layer"]), 6.65)
    print(f"{'  of these, layers of the text model':<44}{total(shapes, 'layers.', without=['per_layer']):>16,}")
    config = read_config(child.config, "child")
    unread = layout.count(layout.unread_by_sharing_layers(config.text))
    print(f"{'  of these, keys and values that nobody reads':<44}{unread:>16,}")
    compare("layers", config.text.num_hidden_layers, 66)
    compare("layers that share keys", config.text.num_kv_shared_layers, 26)
    sample_stack(parent.weights, child.weights)


def sample_stack(parent, child):
    """Every tensor of five slots, and their columns in a few rows of the table, are the source layers'."""
    source = [j for first, last in PRESETS["e6b"] for j in range(first, last + 1)]
    rows = np.random.default_rng(0).integers(0, 262144, 40)
    table, projection = "embed_tokens_per_layer.weight", "per_layer_model_projection.weight"
    for slot in (0, 18, 33, 49, 65):
        mine, theirs = child.at(f"layers.{slot}"), parent.at(f"layers.{source[slot]}")
        check(sorted(mine) == sorted(theirs), f"slot {slot}: other tensors than layer {source[slot]}")
        for name in mine:
            check(equal(mine[name], theirs[name]), f"slot {slot}: {name} is not that of layer {source[slot]}")
        new, old = (slice(256 * i, 256 * i + 256) for i in (slot, source[slot]))
        check(equal(child[table][rows, new], parent[table][rows, old]), f"slot {slot}: columns of the table")
        check(equal(child[projection][new], parent[projection][old]), f"slot {slot}: rows of the projection")


def equal(a, b):
    return np.array_equal(np.asarray(a).reshape(-1).view("u2"), np.asarray(b).reshape(-1).view("u2"))


# module -> parameters on the card
CARD = {
    "embed_tokens.": 301_989_888,
    "layers.": 490_237_440,
    "norm.": 1_152,
    "vision_tower.patch_embedder.": 16_318_464,
    "vision_tower.encoder.": 151_046_144,
    "vision_tower.": 167_364_608,
    "embed_vision.": 884_736,
    "": 960_477_824,
}
BUFFERS = ("layer_scalar", "put_min", "put_max")


def transplant(folder):
    step("synth", "gemma-3-1b-it", "-o", folder / "g3")
    step("synth", "gemma-4-E2B-it", "-o", folder / "e2b")
    step("transplant", "--text", folder / "g3", "--tower", folder / "e2b", "-o", folder / "child")
    parent, child = open_checkpoint(folder / "g3"), open_checkpoint(folder / "child")
    shapes = shapes_of(child)
    print(f"{'parameters':<44}{'found':>16}  {'card':>13}")
    for start, card in CARD.items():
        compare(start or "all", total(shapes, start, without=BUFFERS), card)
    for layer in (5, 11, 17):
        scope = f"layers.{layer}.self_attn"
        error = value_error(parent.weights.at(scope), child.weights.at(scope))
        print(f"layer {layer}: O V of doubled values differs by {error:.1e} from O_old V_old")
        check(error < 1e-6, f"layer {layer}: O V differs by {error}")


def value_error(old, new, heads=4):
    """Relative error of O V against O_old V_old, on random values.  H = 256, and twice that in the child"""
    h = np.random.default_rng(0).standard_normal((1152, 8))
    v = old["v_proj.weight"].astype(np.float64) @ h
    wanted = old["o_proj.weight"].astype(np.float64) @ np.tile(v, (heads, 1))
    found = new["o_proj.weight"].astype(np.float64) @ np.tile(v, (2 * heads, 1))
    return np.abs(found - wanted).max() / np.abs(wanted).max()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
