"""Every verb that writes, in a command that takes a second; what it leaves behind, and whether that is whole.

A verb that is not here fails test_full_disk.py: it enters by a line of COMMANDS.  IN stands for the folder of
`prepare`, OUT for an empty one.
"""

import hashlib
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import tiny
import tiny_drafter
import tiny_embedding
import tiny_tokenizer
from PIL import Image
from test_transplant import SMALL

import numgemma
from numgemma.cli import main
from numgemma.debug.faults import applied
from numgemma.surgery.synth import synth
from numgemma.weights.safetensors import open_safetensors

GGUF = Path(__file__).parents[1] / "fixtures/gguf"
IDS = "5,6,7"
SMALLEST = tiny.DENSE | {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}

# verb, and what tells its commands apart -> the command, and what it writes
COMMANDS = {
    "dump": (f"dump IN/ckpt --ids {IDS} -o OUT/a.safetensors", ["a.safetensors"]),
    "dump of a canvas": ("dump IN/canvases --inputs IN/canvas.npz -o OUT/a.safetensors", ["a.safetensors"]),
    "dump of a draft": ("dump IN/drafter --inputs IN/step.npz -o OUT/a.safetensors", ["a.safetensors"]),
    "generate": (
        f"generate IN/ckpt --ids {IDS} --max-new-tokens 2 --print-ids --backend numpy --json OUT/g.json",
        ["g.json"],
    ),
    "generate canvases": (
        (
            f"generate IN/canvases --ids {IDS} --max-new-tokens 6 --sampler IN/few.json --backend numpy"
            " --print-ids --json OUT/g.json"
        ),
        ["g.json"],
    ),
    "generate with a drafter": (
        (
            f"generate IN/target --drafter IN/drafter --ids {IDS} --max-new-tokens 6 --backend numpy"
            " --print-ids --json OUT/g.json"
        ),
        ["g.json"],
    ),
    "embed": ("embed IN/vectors --ids 2,5,1 -o OUT/a.npy", ["a.npy"]),
    "preprocess": ("preprocess tiny --prompt Once -o OUT/a.safetensors", ["a.safetensors"]),
    "precheck": ("precheck IN/a.safetensors IN/b.safetensors --json OUT/p.json", ["p.json"]),
    "floor": (f"floor IN/ckpt --ids {IDS} -o OUT/f.json", ["f.json"]),
    "diff": (
        "diff IN/a.safetensors IN/b.safetensors --json OUT/d.json --html OUT/d.html --plot OUT/d.png --png OUT/png",
        ["d.json", "d.html", "d.png", "png"],
    ),
    "replay": ("replay IN/ckpt IN/b.safetensors --json OUT/r.json --html OUT/r.html", ["r.json", "r.html"]),
    "whatif": ("whatif IN/ckpt IN/b.safetensors --json OUT/w.json", ["w.json"]),
    "emulate": (
        f"emulate {GGUF}/moe-Q4_0.gguf {GGUF}/llamacpp-moe-Q4_0.halves.bin --runs 1 --json OUT/e.json",
        ["e.json"],
    ),
    "seams": (f"seams IN/child IN/parent --ids {IDS} --json OUT/s.json --plot OUT/s.png", ["s.json", "s.png"]),
    "doctor": (
        "doctor IN/ckpt IN/b.safetensors --budget 3 --html OUT/d.html --json OUT/d.json",
        ["d.html", "d.json"],
    ),
    "show": ("show IN/m.safetensors --what attention -o OUT/a.png", ["a.png"]),
    "score": (f"score IN/ckpt --ids {IDS} --json OUT/s.json", ["s.json"]),
    "demo": ("demo --out OUT/demo", ["demo"]),
    "synth": ("synth IN/config.json -o OUT/m --max-shard-size 50KB", ["m"]),
    "stack": ("stack IN/parent --slices 0-3,2-7 -o OUT/m", ["m"]),
    "transplant": (
        "transplant --text IN/gemma3 --tower IN/e2b --layers 6 --window 8 -o OUT/m",
        ["m"],
    ),
    "lineage": (
        "lineage IN/child --parents IN/parent --json OUT/l.json --plot OUT/l.png --emit OUT/l.yaml",
        ["l.json", "l.png", "l.yaml"],
    ),
    "audit": ("audit IN/child --against IN/parent --json OUT/a.json --html OUT/a.html", ["a.json", "a.html"]),
    "sweep": (
        "sweep IN/ckpt --random 2 --longest 4 --workers 0 -o OUT/s.jsonl --html OUT/s.html --json OUT/s.json",
        ["s.jsonl", "s.html", "s.json"],
    ),
    "sweep with workers": (
        (
            "sweep IN/ckpt --random 6 --longest 4 --workers 2 --memory 1"
            " -o OUT/s.jsonl --html OUT/s.html --json OUT/s.json"
        ),
        ["s.jsonl", "s.html", "s.json"],
    ),
    "capture": (f"capture IN/ckpt --ids {IDS} -o OUT/a.safetensors", ["a.safetensors"]),
}
NEEDS = {"capture": "transformers", "emulate": "gguf", "sweep with workers": "distributed"}
FORCED = ("synth", "stack", "transplant")  # what stands there is replaced with --force alone


def prepare(folder: Path) -> Path:
    """The files that the commands read."""
    folder.mkdir(parents=True, exist_ok=True)
    model = numgemma.load(tiny.write(folder / "ckpt", SMALLEST))
    ids = [int(i) for i in IDS.split(",")]
    model.record(ids).save(folder / "a.safetensors")
    model.record(ids, ["*"]).save(folder / "m.safetensors")
    with applied(model, "T15-silu"):
        model.record(ids).save(folder / "b.safetensors")
    (folder / "config.json").write_text(json.dumps(tiny.DENSE))
    tiny_embedding.write(folder / "vectors", tiny_embedding.TEXT)
    tiny.write(folder / "canvases", tiny.DIFFUSION)
    np.savez(folder / "canvas.npz", **tiny.diffusion_inputs())
    tiny_drafter.write_pair(folder, "clustered")
    np.savez(folder / "step.npz", **tiny_drafter.step(tiny_drafter.drafter("clustered")))
    (folder / "few.json").write_text('{"max_denoising_steps": 3}')
    tiny.write(folder / "parent", tiny.PLE | {"use_double_wide_mlp": False})
    tiny_tokenizer.write(folder / "parent", "{{ bos_token }}")
    assert main(["stack", str(folder / "parent"), "--slices", "0-3,2-7", "-o", str(folder / "child")]) == 0
    (folder / "gemma3.json").write_text(json.dumps(SMALL))
    synth(str(folder / "gemma3.json"), target=folder / "gemma3", dtype="float32")
    synth("gemma-4-E2B-it", target=folder / "e2b", scale="tiny")
    return folder


def there() -> list[str]:
    """The verbs whose packages are installed."""
    return [verb for verb in COMMANDS if verb not in NEEDS or importlib.util.find_spec(NEEDS[verb])]


def alone() -> list[str]:
    """Those that compute in the process that writes."""
    return [verb for verb in there() if "workers" not in verb]


def words(verb: str, inputs: Path, out: Path) -> list[str]:
    """The command, of this verb, between these folders."""
    forced = ["--force"] if verb in FORCED else []
    command = COMMANDS[verb][0].split()
    return [word.replace("IN/", f"{inputs}/").replace("OUT/", f"{out}/") for word in command] + forced


def holds(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too -> a hash of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def broken(folder: Path) -> list[str]:
    """The files that stand under a name of their own and are not whole, each with what is wrong."""
    return [told for path in sorted(folder.rglob("*")) if path.is_file() and (told := not_whole(path))]


def not_whole(path: Path) -> str:
    if any(part.startswith(".") for part in path.parts):
        return ""  # a partial: nobody takes it for the file
    ends = {".html": b"</html>", ".yaml": b"", ".yml": b"", ".jinja": b"", ".md": b""}
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":  # a journal: rows stand in it as they come, and the last may be cut
            if len({*(keys := journal(path))}) != len(keys):
                return f"{path}: has a row twice"
        elif path.suffix == ".safetensors":
            open_safetensors(path)
        elif path.suffix == ".npy":
            np.load(path)
        elif path.suffix == ".png":
            Image.open(path).load()
        elif not path.read_bytes().rstrip().endswith(ends[path.suffix]) or not path.stat().st_size:
            return f"{path}: ends too early"
    except Exception as error:  # whatever it is: the file is none
        return f"{path}: {error}"
    return ""


def journal(path: Path) -> list[str]:
    """The keys of its rows."""
    return [json.loads(line)["key"] for line in path.read_text().split("\n")[:-1]]


def environment(base: Path) -> dict[str, str]:
    """For a program that runs them: caches of its own, no colours, no progress."""
    paths = {"NUMGEMMA_CACHE": str(base / "cache"), "MPLCONFIGDIR": str(base / "mpl")}
    return os.environ | paths | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
