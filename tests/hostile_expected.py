"""What Transformers made of the readable files of tests/hostile, stored by `make_hostile.py expected`."""

from pathlib import Path

from numgemma.weights.safetensors import open_safetensors

STRIDE = 97  # every so many numbers are stored: enough to show any other order
EXPECTED = open_safetensors(Path(__file__).parent / "hostile" / "expected.safetensors").tensors
