"""Which weights a model of Transformers holds in memory: of each a few numbers, hashed as a checkpoint's own are.

What was read from a file may since have been quantised, merged with an adapter, edited, or never found there.
"""

from itertools import chain

from numgemma.checkpoint import sampled, short_name
from numgemma.debug.capture.arrays import import_hf, to_numpy

# From these dtypes bfloat16, in which weights are compared, comes out as it does from the file.
WIDE = ("float64", "float32", "bfloat16", "int64")


def held(hf, shapes) -> dict[str, str | None]:
    """Of every weight that a model should have the hash of what it holds; None where that cannot be compared.

    So it is with one that is quantised, wrapped, in float16, or not in this process.  shapes: name -> shape, of the
    family; what belongs to modules that the model was built without is left out.
    """
    tensors = chain(hf.named_parameters(remove_duplicate=False), hf.named_buffers(remove_duplicate=False))
    there = {short_name(name): x for name, x in tensors}
    scopes = {short_name(f"{name}.") for name, _ in hf.named_modules()}
    due = {name: shape for name, shape in shapes.items() if f"{name.rpartition('.')[0]}." in scopes}
    return {name: hash_of(there.get(name), shape) for name, shape in sorted(due.items())}


def hash_of(x, shape) -> str | None:
    torch, _ = import_hf()
    plain = type(x) in (torch.Tensor, torch.nn.Parameter) and not x.is_meta
    if not plain or str(x.dtype).removeprefix("torch.") not in WIDE or tuple(x.shape) != tuple(shape):
        return None
    while x.dim() > 2:
        x = x[len(x) // 2]
    if x.dim() == 2 and len(x):
        x = x[[0, len(x) // 2, len(x) - 1]]  # the rows that `few` takes: the rest stays where it is
    return sampled(to_numpy(x))
