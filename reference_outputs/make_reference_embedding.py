"""Remakes the stored runs of EmbeddingGemma 2 in Transformers that the tests compare with (needs the extra `hf`).

    python reference_outputs/make_reference_embedding.py

Writes one dump per run and manifest_embedding.json, which says what each was run on.
"""

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from reference_3n import digest  # noqa: E402
from tiny_embedding import stored_runs  # noqa: E402

from numgemma import load  # noqa: E402
from numgemma.debug.capture.hooks import capture, describe  # noqa: E402
from numgemma.dump import Dump  # noqa: E402


def main():
    manifest = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (checkpoint, ids, media, dtype, points) in stored_runs(Path(folder)).items():
            model = load(checkpoint)
            dump = Dump(describe(model, ids, dtype, points))
            capture(model, ids, dump, dtype, points, media)
            dump.save(HERE / f"{name}.safetensors")
            told = {"engine": dump.meta["engine"], "tokens": len(ids), "points": len(dump), "weights": digest(model)}
            manifest[name] = told
            print(name, told)
    (HERE / "manifest_embedding.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
