"""Transformers' fine-grained FP8: weight F8_E4M3, weight_scale_inv for each block of 128 x 128.  w = q scale_inv

The scale multiplies, whatever its name says.
"""

from numgemma.weights.compressed import is_block, scaled
from numgemma.weights.packed import Packed

UNREAD = ("activation_scale", "input_scale")


def claims(leaves) -> bool:
    """Whether a module's leaves are of this kind."""
    return "weight_scale_inv" in leaves and "weight" in leaves and leaves["weight"].dtype.itemsize == 1


def read(where, leaves, settings) -> Packed:
    """One module's weight: blocks as large as the config says."""
    scale = leaves["weight_scale_inv"]
    blocks = scale.ndim == 2 and (scale.shape[1] > 1 or len(scale) not in (1, len(leaves["weight"])))
    size = settings.get("weight_block_size", (128, 128))
    return scaled(where, leaves["weight"], scale, size if blocks and is_block(size) else None)
