"""Remakes tests/fixtures/quantised.safetensors: one matrix in every storage format, made and decoded by its own tool.

    pip install --no-deps compressed-tensors loguru mlx mlx-cpu bitsandbytes gguf
    python reference_outputs/make_quantised.py

Needs the extra `hf` beside these.  A case holds the leaves as the tool writes them, under `CASE/LEAF`, and what the
tool itself decodes them to, under `CASE/decoded`; the metadata hold what config.json would say.
"""

import json
from pathlib import Path

import bitsandbytes.functional as bnb
import gguf
import ml_dtypes
import mlx.core as mx
import numpy as np
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.numpy import save_file

OUT = Path(__file__).parents[1] / "tests/fixtures/quantised.safetensors"
O, I = 24, 128


def weight(seed):
    w = np.random.default_rng(seed).normal(0, 0.05, (O, I)).astype(np.float32)
    w[3] *= 40  # a row and a column that stand out
    w[:, 7] *= 9
    return torch.tensor(w).bfloat16()


def as_numpy(x):
    """A tensor with its bits, also of the dtypes that NumPy does not have."""
    odd = {torch.bfloat16: ml_dtypes.bfloat16, torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn}
    if x.dtype in odd:
        whole = torch.int16 if x.dtype == torch.bfloat16 else torch.uint8
        return x.contiguous().view(whole).numpy().view(odd[x.dtype])
    return x.numpy()


# compressed-tensors


def compressed(name, form, seed, order=False, **args):
    args = QuantizationArgs(**args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    w = weight(seed).float()
    size = args.group_size or I
    low, high = (f(w.reshape(O, -1, size), -1) for f in (torch.amin, torch.amax))
    state = {"weight": w}
    if args.strategy == "tensor_group":
        state["weight_global_scale"] = generate_gparam(w.min(), w.max())
        scale, zero = calculate_qparams(low, high, args, global_scale=state["weight_global_scale"])
    else:
        scale, zero = calculate_qparams(low, high, args)
    state |= {"weight_scale": scale} | ({} if args.symmetric else {"weight_zero_point": zero})
    tool = BaseCompressor.get_value_from_registry(form)
    leaves = tool.compress(state, scheme)
    decoded = tool.decompress(dict(leaves), scheme)["weight"]
    if args.strategy == "tensor_group":  # there the tool rounds each scale to bfloat16, up to 0.3 % off
        codes, scale = unpack_fp4_from_uint8(leaves["weight_packed"], O, I).float(), leaves["weight_scale"].float()
        decoded = dequantize(codes, scale, args=args, global_scale=leaves["weight_global_scale"], dtype=torch.float32)
    settings = {"config_groups": {"group_0": {"weights": {"num_bits": args.num_bits}}}}
    return name, {k: as_numpy(v.detach()) for k, v in leaves.items()}, as_numpy(decoded.float()), settings


def blocks_of_fp8(name, seed, size, inverse):
    """By hand: a scale for each block, as fine-grained FP8 files have it."""
    w = weight(seed).float().numpy()
    tall, wide = -(-O // size), -(-I // size)
    cut = [[w[r * size : (r + 1) * size, c * size : (c + 1) * size] for c in range(wide)] for r in range(tall)]
    scale = np.array([[abs(block).max() / 448 for block in row] for row in cut], np.float32)
    spread = np.repeat(np.repeat(scale, size, 0)[:O], size, 1)[:, :I]
    q = (w / spread).astype(ml_dtypes.float8_e4m3fn)
    leaf = "weight_scale_inv" if inverse else "weight_scale"
    blocks = {"config_groups": {"group_0": {"weights": {"num_bits": 8, "block_structure": [size, size]}}}}
    settings = {"weight_block_size": [size, size]} if inverse else blocks
    return name, {"weight": q, leaf: scale}, q.astype(np.float32) * spread, settings


# MLX, bitsandbytes


def mlx(name, seed, bits, group, mode):
    w = mx.array(weight(seed).float().numpy())
    parts = mx.quantize(w, group_size=group, bits=bits, mode=mode)
    decoded = mx.dequantize(*parts, group_size=group, bits=bits, mode=mode, dtype=mx.float32)
    leaves = dict(zip(("weight", "scales", "biases"), (np.array(x) for x in parts), strict=False))
    return name, leaves, np.array(decoded), {"group_size": group, "bits": bits, "mode": mode}


def four_bits(name, seed, kind, nested):
    w = weight(seed).float()
    codes, state = bnb.quantize_4bit(w, blocksize=64, quant_type=kind, compress_statistics=nested)
    leaves = {f"weight.{k}" if not k.startswith("weight") else k: v for k, v in state.as_dict(packed=True).items()}
    decoded = bnb.dequantize_4bit(codes, state)
    return name, {"weight": as_numpy(codes)} | {k: as_numpy(v) for k, v in leaves.items()}, as_numpy(decoded), {}


def eight_bits(name, seed):
    w = weight(seed).half()
    codes, scale, _ = bnb.int8_vectorwise_quant(w)
    decoded = bnb.int8_vectorwise_dequant(codes, scale)
    return name, {"weight": as_numpy(codes), "SCB": as_numpy(scale)}, as_numpy(decoded), {}


# GGUF: those types that the package itself quantises to


def gguf_block(name, seed):
    kind = gguf.GGMLQuantizationType[name]
    raw = gguf.quants.quantize(weight(seed).float().numpy(), kind)
    return f"gguf-{name}", {"raw": raw}, gguf.quants.dequantize(raw, kind), {"type": int(kind)}


def cases():
    group = {"strategy": "group", "group_size": 32}
    yield compressed("ct-w4a16", "pack-quantized", 1, num_bits=4, type="int", symmetric=True, **group)
    yield compressed("ct-w4a16-asym", "pack-quantized", 2, num_bits=4, type="int", symmetric=False, **group)
    yield compressed("ct-w3a16", "pack-quantized", 3, num_bits=3, type="int", symmetric=True, **group)
    yield compressed("ct-w8a16", "pack-quantized", 4, num_bits=8, type="int", symmetric=True, strategy="channel")
    yield compressed("ct-w8a8", "int-quantized", 5, num_bits=8, type="int", symmetric=True, strategy="channel")
    yield compressed("ct-fp8", "float-quantized", 6, num_bits=8, type="float", symmetric=True, strategy="channel")
    fp4 = {"num_bits": 4, "type": "float", "symmetric": True}
    yield compressed("ct-nvfp4", "nvfp4-pack-quantized", 7, strategy="tensor_group", group_size=16, **fp4)
    yield compressed("ct-mxfp4", "mxfp4-pack-quantized", 8, scale_dtype=torch.uint8, **fp4, **group)
    yield blocks_of_fp8("ct-fp8-block", 9, 16, inverse=False)
    yield blocks_of_fp8("fp8", 10, 16, inverse=True)
    for i, bits in enumerate((2, 3, 4, 5, 6, 8)):
        yield mlx(f"mlx-{bits}bit", 20 + i, bits, 32 if bits == 4 else 64, "affine")
    for i, (mode, bits, size) in enumerate((("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16))):
        yield mlx(f"mlx-{mode}", 30 + i, bits, size, mode)
    yield four_bits("bnb-nf4", 40, "nf4", False)
    yield four_bits("bnb-nf4-nested", 41, "nf4", True)
    yield four_bits("bnb-fp4", 42, "fp4", False)
    yield eight_bits("bnb-int8", 43)
    for i, name in enumerate(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16")):
        yield gguf_block(name, 50 + i)


def main():
    tensors, settings = {}, {}
    for name, leaves, decoded, said in cases():
        tensors |= {f"{name}/{leaf}": np.ascontiguousarray(x) for leaf, x in leaves.items()}
        tensors[f"{name}/decoded"] = np.ascontiguousarray(decoded)
        settings[name] = said
        print(name, {leaf: (str(x.dtype), x.shape) for leaf, x in leaves.items()})
    save_file(tensors, OUT, {"settings": json.dumps(settings)})


if __name__ == "__main__":
    main()
