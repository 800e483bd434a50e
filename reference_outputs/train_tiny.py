"""Make the bundled checkpoint from a seed: stories, tokenizer, weights, and the five files of `numgemma/data/tiny/`.

Everything in it is ours, so it may be shipped, and it is small enough to be made again on two cores in a quarter of
an hour:

    python reference_outputs/train_tiny.py --out DIR --seed 0 --compile

The model is HF's own `Gemma4ForCausalLM`, so the checkpoint is what another implementation is compared with. Same seed,
same text and tokenizer to the byte; the weights agree up to the order in which threads add.
"""

import argparse
import json
import math
import time
from pathlib import Path

import safetensors.torch
import torch
from stories import stories
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma4ForCausalLM, Gemma4TextConfig

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
PARAMETERS = 2_597_624
STORIES, HELD_OUT = 32_000, 200
BATCH, LENGTH = 8, 512  # four windows: most queries have keys that a sliding layer no longer sees
RATE, WARMUP = 3e-3, 100

# the spelling of the released config.json files, shape aside
CONFIG = {
    "architectures": ["Gemma4ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_k_eq_v": False,
    "bos_token_id": 0,
    "dtype": "bfloat16",
    "enable_moe_block": False,
    "eos_token_id": 1,
    "expert_intermediate_size": None,
    "final_logit_softcapping": 30.0,
    "global_head_dim": 32,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 160,
    "hidden_size_per_layer_input": 24,
    "initializer_range": 0.02,
    "intermediate_size": 640,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 1024,
    "model_type": "gemma4_text",
    "num_attention_heads": 5,
    "num_experts": None,
    "num_global_key_value_heads": None,
    "num_hidden_layers": 6,
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 0,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "sliding_window": 128,
    "tie_word_embeddings": True,
    "top_k_experts": None,
    "use_bidirectional_attention": None,
    "use_cache": True,
    "use_double_wide_mlp": False,
    "vocab_size": 1024,
    "vocab_size_per_layer_input": 1024,
}
GENERATION = {
    "bos_token_id": 0,
    "do_sample": True,
    "eos_token_id": [1],
    "pad_token_id": 2,
    "temperature": 1.0,
    "top_k": 64,
    "top_p": 0.95,
}
TOKENIZER = {
    "bos_token": BOS,
    "clean_up_tokenization_spaces": False,
    "eos_token": EOS,
    "model_max_length": CONFIG["max_position_embeddings"],
    "pad_token": PAD,
    "padding_side": "left",
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def write(path, content):
    """Under a temporary name first: whoever reads the folder meanwhile sees the old file or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def train_tokenizer(texts):
    """Byte-level BPE: all 256 bytes are in it, so any text comes back as it was."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == CONFIG["vocab_size"], "the text has too few words for the vocabulary"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, CONFIG["bos_token_id"])]
    )
    return tokenizer


def pack(tokenizer, texts):
    """As many whole stories to a row as fit, each from <bos> to <eos>, then padding.  -> rows, and LENGTH + 1"""
    rows = []
    for encoding in tokenizer.encode_batch(texts):
        ids = [*encoding.ids, CONFIG["eos_token_id"]]
        open_row = next((row for row in rows[-64:] if len(row) + len(ids) <= LENGTH + 1), None)
        if open_row is None:
            rows.append(ids)
        else:
            open_row += ids
    return torch.tensor([row + [CONFIG["pad_token_id"]] * (LENGTH + 1 - len(row)) for row in rows])


def build_model(seed):
    """HF's model, made ready to be trained from nothing."""
    torch.manual_seed(seed)
    config = Gemma4TextConfig(**{key: value for key, value in CONFIG.items() if key != "dtype"})
    model = Gemma4ForCausalLM._from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):  # jitter: no two channels may stay alike, or a swapped axis would not show
            nn.init.normal_(weight, mean=1.0, std=0.1)
        if name.endswith(("q_norm.weight", "k_norm.weight")):  # attention has scale 1; H ** -0.5 must come from here
            weight.data *= config.head_dim**-0.25
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS
    for layer in model.model.layers:  # a buffer upstream, where it is frozen; here it has to learn
        del layer.layer_scalar
        layer.layer_scalar = nn.Parameter(torch.ones(1))
    return model


def build_optimizer(model):
    """AdamW.  Scales are not drawn to zero, and go faster: they start near 1, the matrices near 0.02."""
    scales = [weight for weight in model.parameters() if weight.ndim == 1]
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    groups = [
        {"params": matrices, "weight_decay": 0.05, "pace": 1.0},
        {"params": scales, "weight_decay": 0.0, "pace": 3.0},
    ]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), fused=True)


def story_loss(model, rows):
    """Mean cross-entropy of the next token.  rows: batch T+1 -> scalar"""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), ignore_index=CONFIG["pad_token_id"])


@torch.no_grad()
def held_out_loss(model, rows):
    """The mean over all held-out rows, in batches of the training size."""
    return sum(story_loss(model, part).item() * len(part) for part in rows.split(BATCH)) / len(rows)


def batches(rows, seed):
    """Epoch after epoch, each in its own order; a short last batch is left out, since it would be compiled again."""
    order = torch.Generator().manual_seed(seed)
    while True:
        shuffled = rows[torch.randperm(len(rows), generator=order)]
        yield from shuffled[: len(rows) // BATCH * BATCH].split(BATCH)


def rate(done):
    """Cosine to a twentieth.  done: the share of the training behind us."""
    return RATE * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def save_weights(model, folder):
    """BF16, under the names `save_pretrained` gives; the tied head is not stored twice."""
    tensors = {name: weight.to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    del tensors["lm_head.weight"]
    write(folder / "model.safetensors", safetensors.torch.save(tensors, metadata={"format": "pt"}))


def train(model, rows, held_out, folder, args):
    """Until --steps (or --minutes) is used up, with a usable checkpoint on the way every --save-every steps."""
    loss_of = torch.compile(story_loss) if args.compile else story_loss
    optimizer, start, seen, step = build_optimizer(model), time.time(), 0, 0
    for batch in batches(rows, args.seed):
        elapsed = time.time() - start
        done = elapsed / (60 * args.minutes) if args.minutes else step / args.steps
        if done >= 1:
            break
        if step and step % args.save_every == 0:
            save_weights(model, folder)
            print(f"held-out loss {held_out_loss(model, held_out):.4f}; saved", flush=True)
        for group in optimizer.param_groups:
            group["lr"] = group["pace"] * rate(done) * min(1, (step + 1) / WARMUP)
        loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, seen = step + 1, seen + batch[:, 1:].numel()
        if step % 50 == 0:
            print(f"step {step}  {elapsed / 60:5.1f} min  {seen / elapsed:6.0f} tokens/s  loss {loss:.4f}", flush=True)
    save_weights(model, folder)
    loss = held_out_loss(model, held_out)
    print(f"trained {step} steps, {seen} tokens, {(time.time() - start) / 60:.1f} min; held-out loss {loss:.4f}")


def check_movement(before, after):
    """Every tensor must have learned: one left at its start would hide an implementation that forgets it."""
    ratios = {}
    print(f"{'tensor':52} {'started':>9} {'moved':>9} {'ratio':>7}")
    for name, start in before.items():
        moved = (after[name].float() - start).square().mean().sqrt().item()
        size = start.square().mean().sqrt().item()
        ratios[name] = moved / size
        print(f"{name:52} {size:9.4f} {moved:9.4f} {ratios[name]:7.1%}")
    scalars = [value.item() for name, value in after.items() if name.endswith("layer_scalar")]
    print("layer_scalar", " ".join(f"{value:.4f}" for value in scalars))
    assert min(ratios.values()) > 0.02, f"{min(ratios, key=ratios.get)} has hardly moved"
    assert len(set(scalars)) == len(scalars), "two layers share a layer_scalar"


def tell_some(folder):
    """What the saved files say when transformers loads them, as any user would."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    model = model.float().eval()
    for prompt in ("Once upon", "Once upon a time, there was a shy fox", "Tom was a", "One night, a storm came."):
        ids = tokenizer(prompt, return_tensors="pt")
        told = model.generate(**ids, max_new_tokens=300, do_sample=False)[0]
        print(f"\n[{len(told) - ids.input_ids.shape[1]} new tokens] {tokenizer.decode(told, skip_special_tokens=True)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=800, help="2000 would be one epoch: every story read once")
    parser.add_argument("--minutes", type=float, help="train for this long instead, whatever number of steps it gives")
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler; about 1.6 times as fast")
    parser.add_argument("--save-every", type=int, default=250)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    texts = stories(STORIES + HELD_OUT, args.seed)
    tokenizer = train_tokenizer(texts[:STORIES])
    write(args.out / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    for name, content in (("config", CONFIG), ("generation_config", GENERATION), ("tokenizer_config", TOKENIZER)):
        write(args.out / f"{name}.json", f"{json.dumps(content, indent=2)}\n".encode())
    rows, held_out = pack(tokenizer, texts[:STORIES]), pack(tokenizer, texts[STORIES:])
    tokens = (rows != CONFIG["pad_token_id"]).sum()
    print(f"{STORIES} stories, {tokens} tokens, {tokens / STORIES:.0f} each, in {len(rows)} rows", flush=True)

    model = build_model(args.seed)
    before = {name: weight.clone().float() for name, weight in model.state_dict().items()}
    train(model, rows, held_out, args.out, args)
    tell_some(args.out)
    check_movement(before, model.state_dict())


if __name__ == "__main__":
    main()
