"""Random configs, text and multimodal, against Transformers: `make test-hf-random`, or

    python tests/random_configs.py TEXT MULTIMODAL [SEED]

Of every family (random_cases.py).  What a run is for, logits or a vector, is compared in float64: what is apart there
is a fault, and the config is printed.  It is compared in float32 too: what is further apart there than most is
rounding, and counted.
"""

import json
import random
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import random_cases  # noqa: E402
import torch  # noqa: E402
from closeness import relative  # noqa: E402
from timm_here import make_importable  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

import numgemma  # noqa: E402
from numgemma.debug.capture import hooks  # noqa: E402
from numgemma.dump import Dump  # noqa: E402
from numgemma.prompt.media import NO_MEDIA, read_media  # noqa: E402

NEAR, EXACT = 1e-4, 1e-10  # relative RMS in float32, in float64
RESULTS = ("logits", "post_projection", "vector")  # what the forward pass of some family ends with


class Doubled(TorchFunctionMode):
    """Whatever asks for float32 gets float64: Transformers' norms, softmaxes and tables do, in a float64 run too."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        given = {name: wide(x) for name, x in (kwargs or {}).items()}
        y = function(*map(wide, args), **given)
        return y.double() if isinstance(y, torch.Tensor) and y.dtype is torch.float32 else y


@contextmanager
def doubled():
    """All that Transformers computes meanwhile, while it builds a model too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Doubled():
            yield
    finally:
        torch.set_default_dtype(before)


def wide(x):
    return torch.float64 if x is torch.float32 else x


def prompt_of(model, case):
    """-> ids, media"""
    if model.given_by_name:
        return model.named_ids(case.arrays)
    return case.ids, read_media(case.arrays) if case.arrays else NO_MEDIA


def results(folder, case, dtype):
    """Of Transformers and of ours, by point."""
    model = numgemma.load(folder, dtype, case.mask)
    ids, media = prompt_of(model, case)
    theirs = Dump(hooks.describe(model, ids, dtype, RESULTS))
    with doubled() if dtype == "float64" else nullcontext():
        hooks.capture(model, model.checked(ids, media), theirs, dtype, RESULTS, media, case.mask)
    ours = model.record(ids, RESULTS, media=media)
    return tuple({name: np.asarray(dump[name]) for name in RESULTS if name in theirs} for dump in (theirs, ours))


def apart(theirs, ours):
    """The furthest of the results."""
    return max(relative(theirs[name], ours[name]) for name in theirs)


def outcome_of(case, seed):
    """ "same", "rounding" or "fault", and how far the two are apart in float32 and in float64."""
    with tempfile.TemporaryDirectory() as base:
        folder = case.write(Path(base) / "ckpt", case.raw, case.tensors(case.raw, seed), "float32")
        far, exact = (apart(*results(folder, case, dtype)) for dtype in ("float32", "float64"))
    if not exact <= EXACT:
        return "fault", far, exact
    return ("same" if far <= NEAR else "rounding"), far, exact


def run(text, multimodal, seed, told=lambda line: None):
    """-> what became of the configs, how many of each family, and those that are faults"""
    make_importable()
    counts, kinds, faults = Counter(), Counter(), []
    for n in range(text + multimodal):
        case = random_cases.case(seed, n, n >= text)
        outcome, far, exact = outcome_of(case, n)
        counts[outcome] += 1
        kinds[case.raw["model_type"]] += 1
        if outcome != "same":
            told(f"config {n} of seed {seed}: {outcome}, float32 {far:.1e}, float64 {exact:.1e} apart")
        if outcome == "fault":
            faults.append((n, case.raw))
    return counts, kinds, faults


def main(words):
    text, multimodal = (int(word) for word in words[:2])
    seed = int(words[2]) if len(words) > 2 else random.randrange(10**6)
    print(f"{text} text configs and {multimodal} multimodal ones of seed {seed}", flush=True)
    counts, kinds, faults = run(text, multimodal, seed, lambda line: print(line, flush=True))
    for n, raw in faults:
        print(f"config {n} of seed {seed}: {json.dumps(raw)}")
    print(", ".join(f"{outcome}: {counts[outcome]}" for outcome in ("same", "rounding", "fault")))
    print(", ".join(f"{kind}: {n}" for kind, n in kinds.items()))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
