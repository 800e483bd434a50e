"""PyTorch, where it is installed, its tensors as NumPy arrays, and the modelling file that a model is of."""

import sys

from numgemma.errors import InputError
from numgemma.smallfloats import BFLOAT16


def import_hf():
    try:
        import torch
        import transformers
    except ImportError as error:
        raise InputError("Capturing needs torch and transformers: pip install 'numgemma[hf]'.") from error
    return torch, transformers


def to_numpy(x):
    """A copy as a NumPy array, from whatever device: Transformers goes on to overwrite some of its tensors."""
    x = x.detach().clone().contiguous().cpu()
    if str(x.dtype) == "torch.bfloat16":
        return x.view(dtype=import_hf()[0].int16).numpy().view(BFLOAT16)
    return x.numpy()


def in_a_band(blocked, R):
    """A map of scores that Transformers computes chunk by chunk, as one row of R for each frame.

    B N blocks chunk context  ->  B N U R.  Row r of a chunk sees columns r to r + R - 1 of its context, the farthest
    frame first.
    """
    rows = [[r] * R for r in range(blocked.shape[3])]
    columns = [[r + back for back in range(R)] for r in range(blocked.shape[3])]
    return blocked[:, :, :, rows, columns].flatten(2, 3)


def modelling_of(hf):
    """The file of Transformers that a model's class is written in; of a class derived from one, that one's."""
    names = [cls.__module__ for cls in type(hf).__mro__]
    return sys.modules[next(name for name in names if name.startswith("transformers.models."))]
