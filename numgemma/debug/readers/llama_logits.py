"""The logits that llama.cpp's `llama-debug --save-logits` keeps of the last token, and its PyTorch twin.

`llamacpp-NAME.bin` is float32, one number per token of the vocabulary; `llamacpp-NAME-tokens.bin` beside it holds the
token ids as int32.  The scripts that make `pytorch-NAME.bin` write the same.
"""

import numpy as np

from numgemma.debug.readers.common import Haul, make_dump, token_ids
from numgemma.errors import InputError
from numgemma.incoming import read_bytes

LARGEST = 1 << 26  # bytes; a vocabulary of 16 million


def is_logits(path):
    return path.suffix == ".bin" and path.name.startswith(("llamacpp-", "pytorch-")) and "-tokens" not in path.name


def read_llama_logits(path):
    """A Dump of one point, `logits`, of which the last token is known."""
    beside = path.with_name(f"{path.stem}-tokens.bin")
    ids = token_ids(load(beside, "<i4", "copy it from where the logits were written"), beside)
    logits = load(path, "<f4", "check the path")
    if path.stem.endswith("-embeddings"):
        raise InputError(f"{path}: holds embeddings, not logits; save logits, without --embedding.")
    part = {"shape": [len(ids), len(logits)], "at": [[len(ids) - 1], None], "slack": None}
    engine = "llama.cpp" if path.name.startswith("llamacpp-") else "transformers"
    precision = "float16" if engine == "llama.cpp" else "float32"
    haul = Haul({"logits": logits[None]}, {"logits": "T V"}, {"logits": part})
    return make_dump(path, engine, haul, ids=ids, precision=precision)


def load(path, code, advice):
    raw = read_bytes(path, advice, LARGEST)
    if len(raw) % 4 or not raw:
        raise InputError(f"{path}: has {len(raw)} bytes, not a list of 4-byte numbers; write it again.")
    return np.frombuffer(raw, code)
