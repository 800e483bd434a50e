"""Make the bundled checkpoint from a seed: text, tokenizer, weights, and the five files of `numgemma/data/tiny/`.

Everything in it is ours, so it may be shipped, and it is small enough to be made again on two idle cores in 70 minutes.
What is shipped, as it was made:

    HOW="--out DIR --seed 0 --compile --repeats 0.1 --weight 4 --floor 0.02"
    python reference_outputs/train_tiny.py $HOW --look-back 300 --parts 4 --steps 2200
    python reference_outputs/train_tiny.py $HOW --resume --parts 8 --owners 2 --steps 3400 --rate 4e-3

First some hundred steps over tokens that come again (`looking_back.py`), then stories; at the end more of those in
which two friends own two things, since who said what of his own is the last that it learns. A fact that comes again
counts four times, and a tenth of the rows is repeated tokens to the end.

The model is HF's own `Gemma4ForCausalLM`, so the checkpoint is what another implementation is compared with. Same seed,
same text and tokenizer to the byte; the weights agree up to the order in which threads add. `training.json` in DIR is
the curve, `evaluation.json` what the model can do at the end, `state.pt` what `--resume` goes on from.
"""

import argparse
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import corpus
import looking_back
import numpy as np
import safetensors.torch
import torch
from evaluate_tiny import STORIES, Examiner, report, tell, written
from stories import stories
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
PARAMETERS = 2_597_624
LENGTH = 512  # four windows: most queries have keys that a sliding layer no longer sees
WARMUP = 100

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
    padded = [row + [CONFIG["pad_token_id"]] * (LENGTH + 1 - len(row)) for row in rows]
    return np.array(padded, np.int16)


def mark_facts(rows, facts):
    """Where a fact of a story stands that stood in it before: what only looking back can tell.  rows: B S -> B S"""
    marks = np.zeros(rows.shape, bool)
    for row, mark in zip(rows.tolist(), marks, strict=True):
        seen = set()
        for t, token in enumerate(row):
            if token == CONFIG["bos_token_id"]:
                seen.clear()
            elif token in facts:
                mark[t] = token in seen
                seen.add(token)
    return marks


def packed_part(tokenizer, seed, number, owners):
    """What one worker makes.  -> rows, marks"""
    tokenizer = Tokenizer.from_str(tokenizer)
    return packed(tokenizer, corpus.part(seed, number, owners))


def packed(tokenizer, texts):
    """Rows, and where in them a fact stands again."""
    rows = pack(tokenizer, texts)
    return rows, mark_facts(rows, corpus.fact_ids(tokenizer))


def make_rows(tokenizer, first, args):
    """All rows to train on, and how much each of their tokens counts.  -> B T+1, B T+1"""
    with ProcessPoolExecutor() as pool:
        given = tokenizer.to_str(), args.seed
        jobs = [pool.submit(packed_part, *given, number, args.owners) for number in range(args.parts)]
        pairs = [packed(tokenizer, first), *[job.result() for job in jobs]]
    rows, marks = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    again, periods = corpus.repeats(args.seed, int(len(rows) * args.repeats), LENGTH, 3, CONFIG["vocab_size"])
    again = np.pad(again.astype(np.int16), ((0, 0), (1, 0)), constant_values=CONFIG["bos_token_id"])
    weights = np.where(marks, args.weight, 1).astype(np.float16) * (rows != CONFIG["pad_token_id"])
    second = np.arange(LENGTH + 1) > periods[:, None]
    return torch.from_numpy(np.concatenate([rows, again])), torch.from_numpy(np.concatenate([weights, second])).half()


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


def build_optimizer(model, pace):
    """AdamW.  Scales are not drawn to zero, and go faster: they start near 1, the matrices near 0.02."""
    scales = [weight for weight in model.parameters() if weight.ndim == 1]
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    groups = [
        {"params": matrices, "weight_decay": 0.05, "pace": 1.0},
        {"params": scales, "weight_decay": 0.0, "pace": 3.0},
    ]
    return torch.optim.AdamW(groups, lr=pace, betas=(0.9, 0.98), fused=True)


def masks(device):
    """Who may look at whom in a row, by kind of layer: what HF would make anew at every step."""
    back = torch.arange(LENGTH, device=device)[:, None] - torch.arange(LENGTH, device=device)
    return {"full_attention": None, "sliding_attention": ((back >= 0) & (back < CONFIG["sliding_window"]))[None, None]}


def story_loss(model, rows, weights, mask, precision):
    """Cross-entropy of the next token, a mean by weight; logits in float32.  rows, weights: batch T+1 -> scalar"""
    rows, weights = rows.long(), weights[:, 1:].float().flatten()
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        x = model.model(input_ids=rows[:, :-1], attention_mask=mask, use_cache=False).last_hidden_state
    logits = model.lm_head(x.float())
    cap = CONFIG["final_logit_softcapping"]
    logits = cap * torch.tanh(logits / cap)
    losses = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    return (losses * weights).sum() / weights.sum()


def batches(rows, weights, size, seed):
    """Epoch after epoch, each in its own order; a short last batch is left out, since it would be compiled again."""
    order = torch.Generator().manual_seed(seed)
    while True:
        shuffled = torch.randperm(len(rows), generator=order).to(rows.device)
        for chosen in shuffled[: len(rows) // size * size].split(size):
            yield rows[chosen], weights[chosen]


def rate(done, floor):
    """Cosine from 1 to the floor.  done: the share of the training behind us."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def stored(model):
    """BF16, under the names `save_pretrained` gives; the tied head is not stored twice."""
    tensors = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in model.state_dict().items()
    }
    del tensors["lm_head.weight"]
    for name in [name for name in tensors if name.endswith(("q_norm.weight", "k_norm.weight"))]:
        turn(tensors[name.replace("_norm", "_proj")], tensors[name])
    return tensors


def turn(rows, norm):
    """Where a norm became negative, the sign goes to the rows that it scales: the same numbers come out, to the bit.

    So that nobody takes the weights for those of a norm that means 1 + w.  rows: NH D, norm: H; both are changed
    """
    sign = torch.where(norm < 0, -1, 1).to(norm.dtype)
    rows.view(-1, len(sign), rows.shape[1]).mul_(sign[:, None])
    norm.mul_(sign)


def examined(model):
    """The model as whoever loads the file gets it: weights rounded to bfloat16, arithmetic in float32."""
    config = Gemma4TextConfig(**{key: value for key, value in CONFIG.items() if key != "dtype"})
    twin = Gemma4ForCausalLM._from_config(config, dtype=torch.float32, attn_implementation="eager").to(model.device)
    left_out = twin.load_state_dict(stored(model), strict=False)
    assert left_out == (["lm_head.weight"], []), left_out
    twin.tie_weights()
    return twin.eval()


def train(model, data, examiner, args):
    """Until --steps or --minutes are used up; examined on the way, and saved each time."""
    loss_of = torch.compile(story_loss, dynamic=False) if args.compile else story_loss
    optimizer, mask = build_optimizer(model, args.rate), masks(args.device)
    first, curve = resume(model, optimizer, args)
    start, total = time.time(), torch.zeros((), device=args.device)
    for step, (rows, weights) in enumerate(batches(*data, args.batch, args.seed)):
        if step < first:  # the order of the rows is part of the recipe: an interrupted run goes on within it
            continue
        minutes = (time.time() - start) / 60
        done = minutes / args.minutes if args.minutes else step / args.steps
        if step > first and (step % args.log_every == 0 or done >= 1):
            point = {"step": step, "minutes": round(minutes, 3), "loss": round(total.item() / args.log_every, 4)}
            total.zero_()
            if step % args.examine_every == 0 or done >= 1:
                point |= examiner.ask(examined(model))
            curve.append(point)
            print(json.dumps(point), flush=True)
            if step % args.examine_every == 0 or done >= 1:
                save(model, optimizer, step, curve, args.out)
        if done >= 1:
            return
        for group in optimizer.param_groups:
            group["lr"] = args.rate * group["pace"] * rate(done, args.floor) * min(1, (step + 1) / WARMUP)
        loss = loss_of(model, rows, weights, mask, args.precision)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.detach()


def save(model, optimizer, step, curve, folder):
    """A usable checkpoint, the curve so far, and all that is needed to go on."""
    write(folder / "model.safetensors", safetensors.torch.save(stored(model), metadata={"format": "pt"}))
    write(folder / "training.json", f"{json.dumps(curve, indent=1)}\n".encode())
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, folder / "state.pt")


def resume(model, optimizer, args):
    """Where an interrupted run of the same recipe stopped.  -> the step, the curve so far"""
    if not args.resume:
        return 0, []
    state = torch.load(args.out / "state.pt", map_location=args.device)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], json.loads((args.out / "training.json").read_text())


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--minutes", type=float, help="train for this long instead, whatever number of steps it gives")
    parser.add_argument("--first", type=int, default=corpus.FIRST, help="stories the tokenizer is trained on")
    parser.add_argument("--parts", type=int, default=0, help=f"further parts of {corpus.PART} stories each")
    parser.add_argument("--owners", type=int, default=1, help="of three further stories, those of two owners")
    parser.add_argument("--batch", type=int, default=8, help=f"rows of {LENGTH} tokens at a step")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--floor", type=float, default=0.05, help="what the rate falls to, as a share of it")
    parser.add_argument("--repeats", type=float, default=0, help="rows of repeated tokens for every row of stories")
    parser.add_argument("--weight", type=float, default=1, help="how much a fact counts where it comes again")
    parser.add_argument("--look-back", type=int, default=0, help="steps over repeated tokens before the stories")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of the products")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler; faster")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json made before, to save half a minute")
    parser.add_argument("--resume", action="store_true", help="go on from state.pt in --out")
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--examine-every", type=int, default=400)
    parser.add_argument("--examine", type=int, default=STORIES, help="held-out stories to ask about")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    start = time.time()
    first = stories(args.first, args.seed)
    tokenizer = Tokenizer.from_file(str(args.tokenizer)) if args.tokenizer else train_tokenizer(first)
    write(args.out / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    for name, content in (("config", CONFIG), ("generation_config", GENERATION), ("tokenizer_config", TOKENIZER)):
        write(args.out / f"{name}.json", f"{json.dumps(content, indent=2)}\n".encode())
    rows, weights = make_rows(tokenizer, first, args)
    tokens = (rows != CONFIG["pad_token_id"]).sum().item()
    count = args.first + args.parts * corpus.PART
    print(f"{count} stories, {tokens} tokens, {len(rows)} rows, {time.time() - start:.0f} s", flush=True)
    model = build_model(args.seed).to(args.device)
    torch.backends.cuda.matmul.allow_tf32 = True
    before = {name: weight.clone().float().cpu() for name, weight in model.state_dict().items()}
    examiner = Examiner(tokenizer, args.seed, args.examine)
    if args.look_back and not args.resume:
        looking_back.teach(model, build_optimizer(model, args.rate), args, CONFIG)
    train(model, (rows.to(args.device), weights.to(args.device)), examiner, args)
    torch.backends.cuda.matmul.allow_tf32 = False
    after = examined(model)
    found = report(examiner, after) | {"told": tell(after, tokenizer)}
    write(args.out / "evaluation.json", written(found).encode())
    print(written(found), flush=True)
    check_movement(before, {name: weight.float().cpu() for name, weight in model.state_dict().items()})


if __name__ == "__main__":
    main()
