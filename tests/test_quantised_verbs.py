"""Every verb that takes a checkpoint takes one of codes, and those that build from numbers say why they do not."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from hostile_input import kinds
from safetensors.numpy import load_file, save_file

from numgemma.cli import main

GGUF = Path(__file__).parent / "fixtures/gguf"
IDS = ["--ids", "5,6,7,8"]


def in_mlx(folder):
    """A checkpoint as mlx-lm writes it: affine codes of four bits in groups of 32, under its own names."""
    tiny.write(folder, tiny.DENSE | {"hidden_size": 64, "intermediate_size": 64})
    found = {}
    for name, x in load_file(folder / "model.safetensors").items():
        module = "language_model." + name.removesuffix(".weight")
        if x.ndim != 2 or x.shape[1] % 32:
            found[f"language_model.{name}"] = x
            continue
        w = np.asarray(x, np.float32).reshape(len(x), -1, 32)
        low, scale = w.min(-1), (w.max(-1) - w.min(-1)) / 15
        codes = np.clip(np.rint((w - low[..., None]) / scale[..., None]), 0, 15).astype(np.uint8).reshape(x.shape)
        found[f"{module}.weight"] = (codes[:, ::2] | codes[:, 1::2] << 4).view(np.uint32)
        found |= {f"{module}.scales": scale.astype(np.float16), f"{module}.biases": low.astype(np.float16)}
    save_file(found, folder / "model.safetensors")
    said = {"group_size": 32, "bits": 4}
    raw = json.loads((folder / "config.json").read_text()) | {"quantization": said, "quantization_config": said}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    base = tmp_path_factory.mktemp("quantised")
    (base / "compressed").mkdir()
    kinds.quantised(base / "compressed")
    in_mlx(base / "mlx")
    files = {"gguf": GGUF / "ple-Q4_K_M.gguf", "gguf of 3n": GGUF / "3n-Q4_0.gguf"}
    return files | {name: base / name for name in ("compressed", "mlx")}


FORMATS = ("compressed", "mlx", "gguf", "gguf of 3n")


@pytest.mark.parametrize("form", FORMATS)
def test_verbs_that_run_or_examine_take_it(checkpoints, form, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path / "cache"))
    ckpt, dump = str(checkpoints[form]), str(tmp_path / "a.safetensors")
    for words in (
        ["inspect", ckpt],
        ["generate", ckpt, *IDS, "--max-new-tokens", "2", "--print-ids"],
        ["dump", ckpt, *IDS, "-o", dump],
        ["floor", ckpt, *IDS],
        ["replay", ckpt, dump],
        ["whatif", ckpt, dump],
        ["doctor", ckpt, dump],
        ["score", ckpt, *IDS],
        ["lint", ckpt],
        ["audit", ckpt, "--against", ckpt],
        [
            "show",
            dump,
            "--what",
            "surprise",
            "-o",
            str(tmp_path / "a.png"),
            *(["--ckpt", ckpt] if "gguf" in form else []),
        ],
    ):
        assert main(words) == 0, (words, capsys.readouterr())
    capsys.readouterr()


@pytest.mark.parametrize("form", FORMATS)
def test_what_builds_from_numbers_says_that_it_needs_them(checkpoints, form, tmp_path, capsys):
    ckpt = str(checkpoints[form])
    layers = "0-3" if "gguf" in form else "0-7" if form == "compressed" else "0-5"
    assert main(["stack", ckpt, "--slices", layers, "-o", str(tmp_path / "m")]) == 2
    said = capsys.readouterr().err
    assert "checkpoints are built from floats; name the unquantised original" in said
    assert not (tmp_path / "m").exists()
