"""Remakes the stored runs of Transformers that the tests and the demo compare with (needs the extra `hf`).

    python reference_outputs/make_reference.py [NAME...]

Writes one dump per run and manifest.json, which says what each was run on.  With names, as tiny_float32, only those:
where the weights of one checkpoint have changed, the other files stay as they are.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import numpy as np  # noqa: E402
import tiny  # noqa: E402

from numgemma import load  # noqa: E402
from numgemma.debug.capture.hooks import capture, describe  # noqa: E402
from numgemma.dump import Dump  # noqa: E402
from numgemma.prompt.media import NO_MEDIA, is_empty, read_media  # noqa: E402
from numgemma.trace import EVERYTHING_BUT_MAPS  # noqa: E402

WITH_MEDIA = (*EVERYTHING_BUT_MAPS, "!audio_tower*.layer0.*", "!layers.*.mlp.*")  # to keep the files small
STORY = "Once upon a time, a little fox named Ruby lived near a river. One day she found a"


def runs(folder):
    """(name, checkpoint, ids, text, dtype, media) of every stored run."""
    model = load("tiny")
    for dtype in ("float32", "bfloat16"):
        yield f"tiny_{dtype}", "tiny", model.tokenizer.encode(STORY), STORY, dtype, NO_MEDIA
    for name, raw in tiny.VARIANTS.items():
        checkpoint = tiny.write(Path(folder) / name, raw)
        yield f"{name}_float32", checkpoint, tiny.prompt(raw, 20), None, "float32", NO_MEDIA
    for name, raw in tiny.MULTIMODAL.items():
        checkpoint = tiny.write(Path(folder) / name, raw)
        ids, arrays = tiny.multimodal_prompt(name)
        yield f"{name}_float32", checkpoint, ids, None, "float32", read_media(arrays)
    checkpoint = tiny.write(Path(folder) / "12b", tiny.UNIFIED)
    ids, arrays = tiny.unified_prompt(tiny.UNIFIED_STORED)
    for name in ("12b_float32", "12b_own_mask_float32"):
        yield name, checkpoint, ids, None, "float32", read_media(arrays)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="of the runs to remake; all, if none is named")
    asked = parser.parse_args().names
    manifest = json.loads((HERE / "manifest.json").read_text()) if asked else {}
    with tempfile.TemporaryDirectory() as folder:
        for name, checkpoint, ids, text, dtype, media in runs(folder):
            if asked and name not in asked:
                continue
            model = load(checkpoint)
            points, mask = EVERYTHING_BUT_MAPS if is_empty(media) else WITH_MEDIA, "intended"
            if name.endswith("own_mask_float32"):  # what a forward pass of 12B computes when no mask is handed to it
                points, mask = ("layers.*.out", "logits"), "transformers"
            dump = Dump(describe(model, ids, dtype, points, text))
            capture(model, np.array(ids), dump, dtype, points, media, mask)
            dump.save(HERE / f"{name}.safetensors")
            manifest[name] = {
                "engine": dump.meta["engine"],
                "tokens": len(ids),
                "points": len(dump),
                "weights": digest(model),
            }
            print(name, manifest[name])
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def digest(model):
    """A hash of all weights: says whether a stored run is still of this checkpoint."""
    total = hashlib.sha256()
    for name in sorted(model.weights):
        total.update(name.encode() + model.weights[name].tobytes())
    return total.hexdigest()


if __name__ == "__main__":
    main()
