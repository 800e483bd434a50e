"""What a checkpoint of the bundled shape has learned, asked through Transformers: the numbers that are shipped with it.

A name's second mention cannot be free: often the text does not say whether a name comes, or a pronoun, or another word.
`by_the_grammar` is what one would pay there who has the stories' own chances (`foreseen.py`), in its two parts, and
`which_name_of_those_given` its second part over those mentions that `..._given_a_name` is about. The shipped model pays
about as much in all, less for whether and more for which: facts that come again counted four times in its training, and
so it expects names more often than they come (`names_expected`).

python reference_outputs/evaluate_tiny.py numgemma/data/tiny
"""

import argparse
import json

import foreseen
import numpy as np
import torch
import tracking
from corpus import held_out
from tokenizers import Tokenizer
from transformers import Gemma4ForCausalLM

STORIES = 400
CUT = 100  # of them, the first, are told again without each head
FEW = 40  # of them, the first, are asked about by themselves too, so that a test can ask again in seconds
SOME = 12  # of them, the first, are searched for places where a name may come
PERIOD = 60  # said twice it fits the window of a sliding layer
FAR = 180  # here only a full layer sees the first time


class Examiner:
    """The questions, tokenised once; then `ask` as often as training likes."""

    def __init__(self, tokenizer, seed, count=STORIES):
        self.made_of = tokenizer, seed
        self.told = held_out(seed, count)
        self.texts = [text for text, _ in self.told]
        self.encodings = encodings = tokenizer.encode_batch(self.texts)
        self.ids = [[*encoding.ids, tokenizer.token_to_id("<eos>")] for encoding in encodings]
        self.said, self.owned = tracking.said(encodings, self.texts), tracking.owned(encodings, self.texts)
        self.mentions = tracking.mentions(encodings, self.texts)
        words = [f" {name}" for name in tracking.PEOPLE]
        self.names = [tokenizer.encode(word, add_special_tokens=False).ids[0] for word in words]
        self.special = [tokenizer.token_to_id(token) for token in ("<bos>", "<eos>", "<pad>")]
        self.vocabulary = tokenizer.get_vocab_size()
        assert len(set(self.names)) == len(self.names)

    def rows(self):
        """All stories in one padded array."""
        rows = torch.full((len(self.ids), max(map(len, self.ids))), self.special[2])
        for row, ids in zip(rows, self.ids, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return rows

    @torch.no_grad()
    def logits(self, model):
        """One T V a story."""
        parts = [
            model(input_ids=part, use_cache=False).logits.float() for part in self.rows().to(model.device).split(50)
        ]
        return torch.cat(parts).cpu().numpy()

    def ask(self, model):
        """The criteria, in numbers."""
        logits = self.logits(model)
        first, second = tracking.mention_losses(self.mentions, logits, self.ids)
        first_given, given = tracking.mention_losses(self.mentions, logits, self.ids, self.names)
        losses = [
            -tracking.log_softmax(row)[following]
            for story, ids in zip(logits[:50], self.ids, strict=False)
            for row, following in zip(story, ids[1:], strict=False)
        ]
        return {
            "held_out_loss": round(float(np.mean(losses)), 4),
            "said": round(tracking.share_right(self.said, logits), 4),
            "her": round(tracking.share_right(self.owned, logits), 4),
            "first_mention": round(first, 4),
            "second_mention": round(second, 4),
            "first_mention_given_a_name": round(first_given, 4),
            "second_mention_given_a_name": round(given, 4),
        }

    def tracked(self, model):
        """Of the questions of both kinds, the share answered right."""
        return tracking.share_right(self.said + self.owned, self.logits(model))

    def by_the_grammar(self):
        """What the second mentions cost one who has the stories' own chances, in nats."""
        places = [(story, spans[1][0]) for story, spans in tracking.named_again(self.texts)]
        whether, which = np.transpose(foreseen.losses(self.told, places))
        of_those = which[np.array(tracking.plain(self.mentions, self.ids, self.names))]
        parts = {"second_mention": whether + which, "whether_a_name_comes": whether, "which_name": which}
        parts |= {"which_name_of_those_given": of_those}
        return {name: round(float(part.mean()), 4) for name, part in parts.items()}

    def names_expected(self, model):
        """Where the grammar leaves open whether a name comes: how many it expects, the model does, and there were."""
        logits, found = self.logits(model), []
        for story, at, chance, came in foreseen.open_places(self.told):
            row = tracking.log_softmax(logits[story][self.encodings[story].char_to_token(at) - 1])
            found.append((chance, np.exp(row[self.names]).sum(), came))
        by_the_grammar, by_the_model, came = np.sum(found, axis=0).round(2).tolist()
        counts = {"stories": len(self.told), "places": len(found), "by_the_grammar": by_the_grammar}
        return counts | {"by_the_model": by_the_model, "came": came}

    @torch.no_grad()
    def heads(self, model, period):
        """For every layer, every head's induction and previous-token score.  -> L N, L N"""
        rows = tracking.repeated(16, period, 3, self.vocabulary, self.special[0])
        output = model(input_ids=torch.from_numpy(rows).to(model.device), use_cache=False, output_attentions=True)
        probs = [layer.float().cpu().numpy() for layer in output.attentions]  # B N T T
        mean = [np.mean([tracking.induction(row, period) for row in layer], axis=0) for layer in probs]
        back = [np.mean([tracking.previous(row) for row in layer], axis=0) for layer in probs]
        return np.array(mean), np.array(back)

    @torch.no_grad()
    def copied(self, model):
        """Of random tokens said twice, the share of the second time that comes out right."""
        rows = torch.from_numpy(tracking.repeated(16, PERIOD, 3, self.vocabulary, self.special[0])).to(model.device)
        best = model(input_ids=rows, use_cache=False).logits.argmax(-1)
        return (best[:, PERIOD + 1 : -1] == rows[:, PERIOD + 2 :]).float().mean().item()


@torch.no_grad()
def without(model, layer, head, ask):
    """What `ask` says when one head's way into the stream is cut."""
    weight = model.model.layers[layer].self_attn.o_proj.weight
    width = weight.shape[1] // model.config.num_attention_heads
    kept = weight[:, head * width : (head + 1) * width].clone()
    weight[:, head * width : (head + 1) * width] = 0
    answer = ask(model)
    weight[:, head * width : (head + 1) * width] = kept
    return answer


def rounded(table):
    """L N -> lists, to three digits"""
    return np.round(np.float64(table), 3).tolist()


def written(found):
    """The report as JSON: a line for each fact, and for each layer of a table."""
    return json.dumps(found, indent=1).replace("\n   ", " ").replace("\n  ]", " ]").replace("\n  }", " }") + "\n"


def report(examiner, model):
    """Everything.  model: HF's, eager -> a dictionary for evaluation.json"""
    near, back = examiner.heads(model, PERIOD)
    far, _ = examiner.heads(model, FAR)
    kinds = model.config.layer_types
    few, some = (Examiner(*examiner.made_of, count) for count in (FEW, CUT))
    cut = [[without(model, i, n, some.tracked) for n in range(near.shape[1])] for i in range(len(kinds))]
    return examiner.ask(model) | {
        "stories": len(examiner.ids),
        "of_the_first": {"stories": FEW} | few.ask(model) | {"by_the_grammar": few.by_the_grammar()},
        "questions": {"said": len(examiner.said), "her": len(examiner.owned), "mentions": len(examiner.mentions)},
        "by_the_grammar": examiner.by_the_grammar(),
        "names_expected": Examiner(*examiner.made_of, SOME).names_expected(model),
        "tracked": round(examiner.tracked(model), 4),
        "copied": round(examiner.copied(model), 4),
        "induction": rounded(near),
        "induction_far": rounded(far),
        "previous": rounded(back),
        "of_those_told_without_a_head": {"stories": CUT, "tracked": round(some.tracked(model), 4)},
        "tracked_without_head": rounded(cut),
        "layer_types": list(kinds),
    }


def tell(model, tokenizer, prompt="Once upon", count=80):
    """Greedy."""
    ids = torch.tensor([tokenizer.encode(prompt).ids]).to(model.device)
    told = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return tokenizer.decode(told[0].tolist())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stories", type=int, default=STORIES)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(f"{args.checkpoint}/tokenizer.json")
    model = Gemma4ForCausalLM.from_pretrained(args.checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    found = report(Examiner(tokenizer, args.seed, args.stories), model) | {"told": tell(model, tokenizer)}
    print(written(found), end="")


if __name__ == "__main__":
    main()
