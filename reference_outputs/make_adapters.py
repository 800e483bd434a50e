"""Remakes tests/fixtures/adapters/: LoRA adapters as PEFT writes them, and the logits of PEFT's own unmerged run.

    pip install peft
    python reference_outputs/make_adapters.py

Needs the extra `hf` beside it.  The base is the tiny random checkpoint of tests/tiny.py that its folder is named for.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import save_file

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))
import tiny  # noqa: E402

OUT = TESTS / "fixtures/adapters"
IDS = [2, 17, 33, 4, 91, 150, 7, 64, 12, 101, 5, 88]
ALL = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "per_layer_input_gate"]
CASES = {
    "ple-lora": ("ple", {"r": 4, "lora_alpha": 12, "target_modules": ALL}),
    "ple-rslora": ("ple", {"r": 6, "lora_alpha": 9, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]}),
    "ple-dora": ("ple", {"r": 4, "lora_alpha": 6, "use_dora": True, "target_modules": ["k_proj", "down_proj"]}),
    "ple-patterns": (
        "ple",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "o_proj"],
            "rank_pattern": {"o_proj": 2},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 20},
        },
    ),
    "dense-embed": (
        "dense",
        {"r": 4, "lora_alpha": 4, "target_modules": ["embed_tokens", "o_proj"], "modules_to_save": ["norm"]},
    ),
    "moe-experts": (
        "moe",
        {
            "r": 3,
            "lora_alpha": 6,
            "target_modules": ["q_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        },
    ),
}


def randomised(model):
    """Every number of the adapter drawn anew: B is zero at first."""
    generator = torch.Generator().manual_seed(7)
    for name, p in model.named_parameters():
        if "lora_magnitude" in name or "modules_to_save" in name:
            p.data *= 1 + 0.2 * torch.rand(p.shape, generator=generator)
        elif "lora_" in name:
            p.data = 0.08 * torch.randn(p.shape, generator=generator)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    for name, (variant, settings) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            base = tiny.write(folder, tiny.VARIANTS[variant])
            hf = transformers.AutoModelForCausalLM.from_pretrained(
                base, dtype=torch.float32, attn_implementation="eager"
            )
            model = peft.get_peft_model(hf, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
            randomised(model)
            model.save_pretrained(OUT / name)
            with torch.no_grad():
                logits = model(torch.tensor([IDS]), use_cache=False).logits[0].float().numpy()
        config = json.loads((OUT / name / "adapter_config.json").read_text()) | {"base_model_name_or_path": variant}
        (OUT / name / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
        (OUT / name / "README.md").unlink(missing_ok=True)
        save_file({"ids": np.array(IDS), "logits": logits}, OUT / name / "logits.safetensors")
        print(name, sum(p.numel() for n, p in model.named_parameters() if "lora" in n))


if __name__ == "__main__":
    main()
