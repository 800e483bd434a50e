"""Every whole number of a family's config, of a processor and of a sampler, made as large as it may be spelled.

python tests/hostile_input/bounds.py [WHAT ...]     WHAT: a family, its processor, or sampler

It is refused in a sentence, or what is run then takes no more than a sound file's: 10 seconds, and memory that a
limit of the system's holds it to.  So a new count needs no line here: it is found where it stands in the file.
"""

import copy
import json
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
import tiny  # noqa: E402
import tiny3n  # noqa: E402
import tiny_drafter  # noqa: E402
import tiny_embedding  # noqa: E402

import numgemma  # noqa: E402
from hostile_input.harness import judged, late  # noqa: E402
from numgemma.denoise import settings  # noqa: E402
from numgemma.errors import InputError  # noqa: E402
from numgemma.prompt.media import NO_MEDIA, read_media  # noqa: E402
from numgemma.prompt.processor import read_processor  # noqa: E402
from numgemma.prompt.processors import Marks  # noqa: E402
from numgemma.surgery.lint import structure  # noqa: E402

HUGE = 2**31 - 1  # the largest that a config may hold at all
SECONDS, MEMORY = 10, 4 << 30  # address space: what Python, NumPy and their libraries map is in it
FILES = Path(__file__).parents[1] / "hostile"
MEDIA = {"image": "picture_rgb.png", "audio": "sound_16k.wav", "video": "clip_5_frames.mp4"}
PROCESSORS = {
    f"{path.stem}'s processor": path for path in (Path(numgemma.__file__).parent / "data/processor").glob("*.json")
}
SAMPLER = {"max_new_tokens": 256, "max_denoising_steps": 48, "stability_threshold": 1, "pad_token_id": 0}

# family -> its config, what writes a checkpoint of it, and what one run takes: ids and arrays
FAMILIES = {
    "gemma4": (tiny.E4B, tiny.write, lambda raw: tiny.multimodal_prompt("e4b")),
    "experts": (tiny.A4B, tiny.write, lambda raw: tiny.multimodal_prompt("26b")),
    "unified": (tiny.UNIFIED, tiny.write, lambda raw: tiny.unified_prompt(tiny.UNIFIED_STORED)),
    "gemma3n": (tiny3n.WHOLE, tiny3n.write, lambda raw: tiny3n.multimodal_prompt(1, (35,))),
    "drafter": (tiny_drafter.drafter("clustered"), tiny.write, lambda raw: ((), tiny_drafter.step(raw))),
    "diffusion": (tiny.DIFFUSION, tiny.write, lambda raw: ((), tiny.diffusion_inputs("pictures"))),
    "embedding": (tiny_embedding.WHOLE, tiny_embedding.write, lambda raw: tiny.multimodal_prompt("e4b")),
}


def numbers(value, path=(), kinds=(int,)) -> Iterator[tuple]:
    """Where whole numbers stand, or numbers of these kinds; of a list, the first two."""
    if type(value) in kinds:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from numbers(inner, (*path, key), kinds)


def changed(value, path, number):
    value = copy.deepcopy(value)
    above = value
    for key in path[:-1]:
        above = above[key]
    above[path[-1]] = number
    return value


def run_family(name, folder):
    """-> the sound JSON, and what reads and runs it"""
    raw, write, prompt = FAMILIES[name]
    write(folder, raw)
    ids, arrays = prompt(raw)

    def run(changed):
        (folder / "config.json").write_text(json.dumps(changed))
        structure(folder)
        model = numgemma.load(folder)
        if model.given_by_name:
            model.record(inputs=arrays, points=["layers.*.out"])
        else:
            model.record(ids, ["layers.*.out"], media=read_media(arrays) if arrays else NO_MEDIA)

    return raw, run


def run_processor(name, folder):
    folder.mkdir()

    def run(changed):
        (folder / "processor_config.json").write_text(json.dumps(changed))
        processor = read_processor(folder)
        for kind, read in processor.cls.read.items():
            read([FILES / MEDIA[kind]], processor, Marks("<a>", "<b>", "<c>", 5, 1))

    return json.loads(PROCESSORS[name].read_bytes()), run


def run_sampler(name, folder):
    """A run of so many steps is not waited for: what is accepted is at most some hours of them."""

    def run(changed):
        how = settings(changed, "generation_config.json")
        assert how.max_denoising_steps * how.max_new_tokens < 1e11

    return SAMPLER, run


WHAT = dict.fromkeys(FAMILIES, run_family) | dict.fromkeys(PROCESSORS, run_processor) | {"sampler": run_sampler}
CLOCK = signal.ITIMER_PROF, signal.SIGPROF  # of computing: the machine may have other work


def outcome(run, raw):
    """What went wrong, or nothing."""
    signal.setitimer(CLOCK[0], SECONDS)
    try:
        run(raw)
    except InputError as error:
        verdict, text = judged(str(error))
        return "" if verdict == "refused well" else text
    except BaseException as error:
        return f"{type(error).__name__}: {error!s:.200}"
    finally:
        signal.setitimer(CLOCK[0], 0)
    return ""


def examine(name, folder):
    """-> how many numbers there are, and what went wrong"""
    raw, run = WHAT[name](name, folder)
    if bad := outcome(run, raw):
        return 0, [f"{name}: fails as it is: {bad}"]
    found = {path: outcome(run, changed(raw, path, HUGE)) for path in numbers(raw)}
    return len(found), [f"{name}, {'.'.join(map(str, path))}: {bad}" for path, bad in found.items() if bad]


def main(words):
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(CLOCK[1], late)
    np.seterr(all="ignore")
    wrong = []
    for name in words or WHAT:
        with tempfile.TemporaryDirectory() as base:
            tried, bad = examine(name, Path(base) / "x")
        print(*bad, f"{name}: {tried} whole numbers made huge, {len(bad)} of them ended badly", sep="\n", flush=True)
        wrong += bad
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
