"""PyTorch, where it is installed, and its tensors as NumPy arrays."""

import ml_dtypes

from numgemma.errors import InputError


def import_hf():
    try:
        import torch
        import transformers
    except ImportError as error:
        raise InputError("Capturing needs torch and transformers: pip install 'numgemma[hf]'.") from error
    return torch, transformers


def to_numpy(x):
    """A copy as a NumPy array: Transformers goes on to overwrite some of its tensors."""
    x = x.detach().clone().contiguous()
    if str(x.dtype) == "torch.bfloat16":
        return x.view(dtype=import_hf()[0].int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()
