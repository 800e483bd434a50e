"""Remakes tests/fixtures/entering.safetensors: what compressed-tensors itself makes of what enters a product.

    pip install --no-deps compressed-tensors loguru
    python reference_outputs/make_entering.py

Needs the extra `hf` beside these.  A case holds `CASE/x`, the leaves that a file would have for it, as `CASE/LEAF`, and
`CASE/rounded`: x in codes and out of them again, by the tool's own forward pass.
"""

from pathlib import Path

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStatus
from compressed_tensors.quantization.lifecycle.forward import forward_quantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.numpy import save_file

OUT = Path(__file__).parents[1] / "tests/fixtures/entering.safetensors"
T, I = 24, 64


def inputs(seed, shift=0.0):
    """Some of each size: a token of nothing, one that is loud, one that is nearly nothing, exact halves of codes."""
    x = np.random.default_rng(seed).normal(shift, 2, (T, I)).astype(np.float32)
    x[2], x[3], x[4] = 0, x[3] * 300, x[4] * 1e-5
    x[5] = np.arange(I) / 8 - 4
    return torch.tensor(x)


def rounded(x, leaves, args):
    module = torch.nn.Linear(I, 1)
    module.quantization_scheme = QuantizationScheme(targets=["Linear"], input_activations=args)
    module.quantization_status = QuantizationStatus.FROZEN
    for leaf, value in leaves.items():
        setattr(module, leaf, value)
    found = {"x": x, "rounded": forward_quantize(module, x.clone(), "input", args).float()} | leaves
    return {leaf: value.numpy() for leaf, value in found.items()}


def nvfp4(seed):
    args = QuantizationArgs(
        num_bits=4,
        type="float",
        strategy="tensor_group",
        group_size=16,
        dynamic="local",
        scale_dtype=torch.float8_e4m3fn,
    )
    x = inputs(seed)
    usual = torch.cat([x[:3], x[4:]])  # the scale was measured on other tokens: the loud one is beyond it
    return rounded(x, {"input_global_scale": generate_gparam(usual.min(), usual.max())}, args)


def int8(seed, symmetric):
    args = QuantizationArgs(num_bits=8, type="int", strategy="tensor", symmetric=symmetric)
    x = inputs(seed, 0.0 if symmetric else 1.5)
    usual = torch.cat([x[:3], x[4:]])
    scale, zero = calculate_qparams(usual.min(), usual.max(), args)
    return rounded(x, {"input_scale": scale} | ({} if symmetric else {"input_zero_point": zero}), args)


def main():
    cases = {"nvfp4": nvfp4(1), "int8": int8(2, True), "int8-zeroed": int8(3, False)}
    save_file({f"{case}/{leaf}": x for case, leaves in cases.items() for leaf, x in leaves.items()}, OUT)
    for case, leaves in cases.items():
        print(case, {leaf: (str(x.dtype), x.shape) for leaf, x in leaves.items()})


if __name__ == "__main__":
    main()
