"""Builds checkpoints at full size from random parents, traces them back, and measures time and memory.

    python benchmarks/surgery.py WHICH DIR [--scale tiny]

WHICH is `e6b` (E4B restacked to 66 layers, linted, and its lineage recovered; needs 40 GB in DIR), `blend` (0.6 and 0.4
of two E4B, and its lineage; 48 GB) or `transplant` (Gemma 3 1B and E2B to a dense 1B; 15 GB).  Prints seconds and peak
memory of each step, beside how long the same files take to be read once, out of the page cache; and of e6b and
transplant the count of every module beside the one on the model's card.  Exits with 1 where a count, a sampled tensor,
a recovered recipe or a bound does not hold: 2 GB of memory in any step, 4 GB in lineage, and at full size lint and
lineage together within twice the time of reading what they read.  Removes what it wrote.  --scale tries it out: smaller
models have no card to be held to, and no bound of time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import numpy as np
from disk import forget

from numgemma.checkpoint import open_checkpoint
from numgemma.families import find, read_config
from numgemma.families.gemma4 import layout
from numgemma.surgery.recipe import PRESETS
from numgemma.surgery.writer import by_rows, companions, in_one, write_checkpoint
from numgemma.weights.safetensors import release

LIMIT, OF_LINEAGE = 2e9, 4e9  # bytes of memory, at most
READINGS = 2  # times that lint and lineage may take of reading child and parents once
WEIGHT = 0.6  # of the first parent, in the blend
PIECE = 1 << 24
FAULTS = []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("e6b", "blend", "transplant"))
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--scale", choices=("tiny", "pilot", "full"), default="full")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="surgery.", dir=args.folder) as scratch:
        {"e6b": e6b, "blend": blend, "transplant": transplant}[args.which](Path(scratch), args.scale)
    print("\n".join(FAULTS) or "all as it should be")
    return 1 if FAULTS else 0


def step(*verb, limit=LIMIT):
    """Run a verb of numgemma; print its seconds and its peak memory, and return the seconds."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "numgemma", *map(str, verb)])
    _, status, used = os.wait4(process.pid, 0)
    seconds, peak = time.monotonic() - start, used.ru_maxrss * 1024
    print(f"{verb[0]}: {seconds:.1f} s, {peak / 1e9:.2f} GB of memory at most", flush=True)
    check(status == 0 and peak < limit, f"{verb[0]}: status {status}, {peak / 1e9:.2f} GB of memory")
    return seconds


def traced(child, parents, scale):
    """Lint and lineage of a child, with cold files each time; returns what lineage found."""
    found = child.with_suffix(".json")
    files = files_of([child, *parents])
    forget(files)
    once = reading(files)
    forget(files)
    spent = step("lint", child)
    forget(files)
    spent += step("lineage", child, "--parents", *parents, "--json", found, limit=OF_LINEAGE)
    print(f"lint and lineage {spent:.1f} s; reading child and parents once {once:.1f} s", flush=True)
    check(scale != "full" or spent <= READINGS * once, f"lint and lineage took {spent / once:.1f} times a reading")
    return json.loads(found.read_text())


def files_of(folders):
    return [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]


def reading(files):
    """Seconds to read them once, and their size printed."""
    start, size, buffer = time.monotonic(), 0, bytearray(PIECE)
    for file in files:
        with open(file, "rb", buffering=0) as opened:
            while n := opened.readinto(buffer):
                size += n
    seconds = time.monotonic() - start
    print(f"reading {size / 1e9:.2f} GB: {seconds:.1f} s", flush=True)
    return seconds


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


def e6b(folder, scale):
    step("synth", "gemma-4-E4B-it", "--scale", scale, "-o", folder / "e4b")
    depth = len(read_config(open_checkpoint(folder / "e4b").config, "parent").text.layers)
    # the published slices, or as much of a model of fewer layers
    spans = [(first * depth // 42, (last + 1) * depth // 42 - 1) for first, last in PRESETS["e6b"]]
    slices = ",".join(f"{first}-{last}" for first, last in spans)
    step("stack", folder / "e4b", "--slices", slices, "-o", folder / "e6b")
    source = [j for first, last in spans for j in range(first, last + 1)]
    found = traced(folder / "e6b", [folder / "e4b"], scale)
    check([slot["layer"] for slot in found["slots"]] == source, "lineage tells of other layers")
    check({slot["relation"] for slot in found["slots"]} == {"copy"}, "lineage tells of more than copies")
    if scale == "full":
        held_to_the_card(folder)
    sample_stack(open_checkpoint(folder / "e4b"), open_checkpoint(folder / "e6b"), source)


def held_to_the_card(folder):
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


def sample_stack(parent, child, source):
    """Every tensor of five slots, and their columns in a few rows of the table, are the source layers'."""
    P = read_config(child.config, "child").text.hidden_size_per_layer_input
    parent, child = parent.weights, child.weights
    table, projection = "embed_tokens_per_layer.weight", "per_layer_model_projection.weight"
    rows = np.random.default_rng(0).integers(0, len(parent[table]), 40)
    for slot in np.linspace(0, len(source) - 1, 5).astype(int):
        mine, theirs = child.at(f"layers.{slot}"), parent.at(f"layers.{source[slot]}")
        check(sorted(mine) == sorted(theirs), f"slot {slot}: other tensors than layer {source[slot]}")
        for name in mine:
            check(equal(mine[name], theirs[name]), f"slot {slot}: {name} is not that of layer {source[slot]}")
        new, old = (slice(P * i, P * i + P) for i in (slot, source[slot]))
        check(equal(child[table][rows, new], parent[table][rows, old]), f"slot {slot}: columns of the table")
        check(equal(child[projection][new], parent[projection][old]), f"slot {slot}: rows of the projection")


def equal(a, b):
    return np.array_equal(np.asarray(a).reshape(-1).view("u2"), np.asarray(b).reshape(-1).view("u2"))


def blend(folder, scale):
    """Two parents, a child that is WEIGHT of one and the rest of the other, and whether that is told."""
    for seed, name in enumerate("ab"):
        step("synth", "gemma-4-E4B-it", "--scale", scale, "--seed", seed, "-o", folder / name)
    start = time.monotonic()
    write_blend(folder / "a", folder / "b", folder / "child")
    print(f"blended in {time.monotonic() - start:.1f} s", flush=True)
    first = traced(folder / "child", [folder / "a", folder / "b"], scale)["recipe"][0]
    told = {Path(parent).name: weight for parent, weight in first["weights"].items()}
    print(f"{first['text']}  [{first['where']}; {first['confidence']}]")
    right = told.keys() == {"a", "b"} and abs(told["a"] - WEIGHT) < 0.01 and abs(told["b"] - 1 + WEIGHT) < 0.01
    check(right and first["confidence"] == "sure", f"the blend is told as {first['text']}")


def write_blend(a, b, target):
    """By streaming, computed in float32."""
    x, y = open_checkpoint(a), open_checkpoint(b)
    stored = find(x.config, str(a)).stored_name
    tensors = {stored(n, x.config["model_type"]): mixed(v, y.weights[n]) for n, v in x.weights.tensors.items()}
    write_checkpoint(target, x.config, tensors, companions(a))


def mixed(x, y):
    def rows(start, stop):
        part = WEIGHT * x[start:stop].astype(np.float32) + (1 - WEIGHT) * y[start:stop].astype(np.float32)
        release(x[start:stop])
        release(y[start:stop])
        return part.astype(x.dtype)

    return by_rows(x.shape, x.dtype, rows) if x.ndim else in_one(x)


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


def transplant(folder, scale):
    step("synth", "gemma-3-1b-it", "--scale", scale, "-o", folder / "g3")
    step("synth", "gemma-4-E2B-it", "--scale", scale, "-o", folder / "e2b")
    step("transplant", "--text", folder / "g3", "--tower", folder / "e2b", "-o", folder / "child")
    if scale != "full":
        return
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
    sys.exit(main())
