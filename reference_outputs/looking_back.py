"""Three heads are shown where to look, so that copying is learned in minutes: what comes before the stories.

A head that continues what was said before (an induction head) pays only where an earlier layer has a head that says
which token came just before, and the other way round. Left alone, a model waits on that plateau for longer than two
cores care to (Olsson et al. 2022, "In-context learning and induction heads", call the end of it a phase change). Here
the loss of some hundred steps over random tokens that repeat holds a second term, the cross-entropy between what three
heads attend to and what they should; afterwards it is never used again, and what a head does then it does for its own
good. No answer is given away: how to tell a token by what it follows, and how to say what was found, is learned.
"""

import time

import corpus
import numpy as np
import torch
from torch.nn import functional

LENGTH = 160
BATCH = 24
LONGEST = 64  # so that the first time is within a sliding layer's window
WARMUP = 40
HINT = 0.3
PREVIOUS = (1, 0)  # layer and head that are to look at the token before
INDUCTION = ((2, 0), (4, 0))  # at the token after this one's last occurrence: one in a full, one in a sliding layer


def masks(window):
    """What `eager` adds to the scores, by kind of layer."""
    back = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    hidden = {"full_attention": back < 0, "sliding_attention": (back < 0) | (back >= window)}
    return {kind: torch.zeros(LENGTH, LENGTH).masked_fill(cut, -1e9)[None, None] for kind, cut in hidden.items()}


def rows(seed, steps, vocabulary, bos):
    """Random tokens said again and again.  -> steps B T+1, steps B"""
    tokens, periods = corpus.repeats(seed, steps * BATCH, LENGTH, 3, vocabulary, LONGEST)
    tokens = np.pad(tokens, ((0, 0), (1, 0)), constant_values=bos)
    return torch.from_numpy(tokens).unflatten(0, (steps, BATCH)), torch.from_numpy(periods).unflatten(0, (steps, BATCH))


def misses(probs, target, counted):
    """Cross-entropy between what a head attends to and the one place it should.  probs: B T T; the others: B T -> 0"""
    found = probs.gather(-1, target.clamp(min=0)[..., None])[..., 0]
    return -(torch.log(found + 1e-6) * counted).sum() / counted.sum()


def loss(model, tokens, periods, mask, cap):
    """tokens: B T+1, periods: B -> cross-entropy of what was said before, and of the three heads"""
    output = model.model(input_ids=tokens[:, :-1], attention_mask=mask, use_cache=False, output_attentions=True)
    logits = cap * torch.tanh(model.lm_head(output.last_hidden_state) / cap)
    losses = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    at = torch.arange(LENGTH, device=tokens.device).expand(len(tokens), LENGTH)
    again = at >= periods[:, None]  # what comes next has been said
    told = (losses.unflatten(0, again.shape) * again).sum() / again.sum()
    layer, head = PREVIOUS
    hints = [misses(output.attentions[layer][:, head], at - 1, at >= 1)]
    for layer, head in INDUCTION:
        after = at - periods[:, None] + 1
        hints.append(misses(output.attentions[layer][:, head], after, after >= 2))
    return told, torch.stack(hints)


def teach(model, optimizer, args, config):
    """Some hundred steps at the full rate, and HF's attention as it was before."""
    started = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the others keep no probabilities
    loss_of = torch.compile(loss, dynamic=False) if args.compile else loss
    mask = {kind: added.to(args.device) for kind, added in masks(config["sliding_window"]).items()}
    start = time.time()
    drawn = rows(args.seed, args.look_back, config["vocab_size"], config["bos_token_id"])
    for step, (tokens, periods) in enumerate(zip(*drawn, strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = args.rate * group["pace"] * min(1, (step + 1) / WARMUP)
        tokens, periods = tokens.to(args.device), periods.to(args.device)
        told, hints = loss_of(model, tokens, periods, mask, config["final_logit_softcapping"])
        (told + HINT * hints.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 49:
            heads = " ".join(f"{hint:.2f}" for hint in hints.tolist())
            print(f"looking back: step {step + 1}, {time.time() - start:.0f} s, {told.item():.3f}; {heads}", flush=True)
    model.set_attn_implementation(started)
