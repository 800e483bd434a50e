"""Remakes the stored runs of Gemma 3n in Transformers that the tests compare with (needs the extras `hf` and `timm`).

    make reference-3n

Writes one dump per run and manifest_3n.json, which says what each was run on.
"""

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from timm_here import make_importable  # noqa: E402

make_importable()

from reference_3n import TEXT_POINTS, WHOLE_POINTS, digest, runs  # noqa: E402

from numgemma import load  # noqa: E402
from numgemma.debug.capture.hooks import capture, describe  # noqa: E402
from numgemma.dump import Dump  # noqa: E402
from numgemma.prompt.media import is_empty  # noqa: E402


def main():
    manifest = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in runs().items():
            checkpoint, ids, media, dtype = make(Path(folder))
            model = load(checkpoint)
            points = TEXT_POINTS if is_empty(media) else WHOLE_POINTS
            dump = Dump(describe(model, ids, dtype, points))
            capture(model, ids, dump, dtype, points, media)
            dump.save(HERE / f"{name}.safetensors")
            told = {"engine": dump.meta["engine"], "tokens": len(ids), "points": len(dump), "weights": digest(model)}
            manifest[name] = told
            print(name, told)
    (HERE / "manifest_3n.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
