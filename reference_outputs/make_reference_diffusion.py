"""Remakes the stored runs of DiffusionGemma: one denoising pass, and a text written in blocks (needs the extra `hf`).

python reference_outputs/make_reference_diffusion.py
"""

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE)]

import hf_denoising  # noqa: E402
import numpy as np  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
from make_reference import digest  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig  # noqa: E402

from numgemma import load  # noqa: E402
from numgemma.debug.capture.canvas import masks_for  # noqa: E402
from numgemma.debug.capture.hooks import capture, describe, hf_inputs, load_hf  # noqa: E402
from numgemma.dump import Dump  # noqa: E402
from numgemma.prompt.media import read_media  # noqa: E402

POINTS = ("*", "!*.self_attn.scores", "!*.self_attn.probs", "!*vision_tower*", "!*.mlp.*", "!*.context")
POINTS += ("!*_rope", "!*.q_norm", "!*layers.1.*", "!*layers.3.*", "!*layers.4.*")  # to keep the file small
SETTINGS = {"max_new_tokens": 20, "max_denoising_steps": 12, "confidence_threshold": 0.6, "pad_token_id": 0}
SETTINGS |= {"eos_token_id": [1, 106], "entropy_bound": 0.5}
RUNS = {"transformers": 7, "intended": 12}  # which image mask, under which seed


def one_pass(folder, manifest):
    model = load(tiny.write(folder / "pass", tiny.DIFFUSION))
    ids, media = model.named_ids(tiny.diffusion_inputs("pictures"))
    dump = Dump(describe(model, ids, "float32", POINTS, media=media))
    capture(model, np.array(ids), dump, "float32", POINTS, media, "intended")
    dump.save(HERE / "diffusion_float32.safetensors")
    manifest["diffusion_float32"] = {"engine": dump.meta["engine"], "points": len(dump), "weights": digest(model)}


def blocks(folder, manifest, mask, seed):
    """With a picture: blocks that stop early, and one that a stop token ends."""
    model = load(tiny.write(folder / "blocks", tiny.DIFFUSION, tiny.calm()))
    ids, arrays = tiny.multimodal_prompt("26b")
    given = hf_inputs(ids, read_media(arrays), model.family.placeholders(model.config))
    told = {name: value for name, value in SETTINGS.items() if name != "entropy_bound"}
    told["sampler_config"] = EntropyBoundSamplerConfig(entropy_bound=SETTINGS["entropy_bound"])
    inputs = {name: torch.tensor(x) for name, x in given.items()}
    hf = load_hf(folder / "blocks", torch.float32)
    masks = masks_for(hf, model, ids, read_media(arrays), mask) if mask == "intended" else None
    draws, steps, tokens = hf_denoising.recorded(hf, inputs, seed, masks, **told)
    found = {f"{step['at']}.{name}": x for step in steps for name, x in step.items() if name != "at"}
    save_file(draws | found | {"tokens": tokens}, HERE / f"diffusion_{mask}.safetensors")
    manifest[f"diffusion_{mask}"] = {"settings": SETTINGS, "steps": len(steps), "weights": digest(model)}


def main():
    manifest: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        one_pass(Path(folder), manifest)
        for mask, seed in RUNS.items():
            blocks(Path(folder), manifest, mask, seed)
    (HERE / "manifest_diffusion.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(json.dumps(manifest, indent=1))


if __name__ == "__main__":
    main()
