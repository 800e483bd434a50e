"""Does a model keep its names straight?  Questions cut out of held-out stories, and what a run's numbers say to them.

Needs no torch: a run is any function that gives logits, so the same questions are asked on a GPU while the model
trains and through `numgemma` when the tests hold it to the numbers.

- said: after `said`, the name of the speaker must beat every other name that stands in the story so far;
- her: after `her` or `his`, the right object must beat every other object so far;
- mentions: how much a name costs where it comes up first, and where it comes up the second time.
"""

import re
from dataclasses import dataclass

import numpy as np
from stories import ELDERS, NAMES, THINGS

PEOPLE = [*NAMES["she"], *NAMES["he"], *ELDERS]


@dataclass(frozen=True)
class Question:
    """After `at` tokens of a story, id `right` must come before every id in `others`."""

    story: int
    at: int
    right: int
    others: tuple


def pattern(words):
    """Matches any of these words, whole."""
    return r"\b(" + "|".join(map(re.escape, words)) + r")\b"


def questions(encodings, texts, cue, words):
    """Where one of `words` follows the cue, was there before, and was not alone.  -> questions, in reading order"""
    asked = []
    for number, (encoding, text) in enumerate(zip(encodings, texts, strict=True)):
        after_a_space = re.finditer(f"(?<= ){pattern(words)}", text)  # at the start of a quotation it is other tokens
        id_of = {found[1]: encoding.ids[encoding.char_to_token(found.start())] for found in after_a_space}
        for found in re.finditer(f"(?<={cue} ){pattern(words)}", text):
            before = {other[1] for other in re.finditer(pattern(words), text[: found.start()])}
            others = tuple(sorted(id_of[word] for word in (before - {found[1]}) & id_of.keys()))
            if found[1] in before and others:
                asked.append(Question(number, encoding.char_to_token(found.start()), id_of[found[1]], others))
    return asked


def said(encodings, texts):
    """The name after `said`."""
    return questions(encodings, texts, "said", PEOPLE)


def owned(encodings, texts):
    """The object after `her` and after `his`."""
    return [question for cue in (" her", " his") for question in questions(encodings, texts, cue, THINGS)]


def named_again(texts):
    """Every name that a story says more than once.  -> [(story, where each mention begins and ends, in signs)]"""
    found = []
    for number, text in enumerate(texts):
        places = {}
        for name in re.finditer(pattern(PEOPLE), text):
            places.setdefault(name[1], []).append(name.span())
        found += [(number, spans) for spans in places.values() if len(spans) > 1]
    return found


def mentions(encodings, texts):
    """The tokens of every name's first and second mention.  -> [(story, tokens of the first, tokens of the second)]"""

    def tokens(number, start, end):
        found = encodings[number].char_to_token
        return list(range(found(start), found(end - 1) + 1))

    return [(number, *(tokens(number, *span) for span in spans[:2])) for number, spans in named_again(texts)]


def share_right(asked, logits):
    """logits: one T V a story -> the share of questions whose right answer comes first"""
    wins = [logits[q.story][q.at - 1, q.right] > logits[q.story][q.at - 1, list(q.others)].max() for q in asked]
    return float(np.mean(wins))


def log_softmax(x):
    """x: V -> V"""
    x = np.float64(x) - np.max(x)
    return x - np.log(np.exp(x).sum())


def plain(pairs, ids, names):
    """Those mentions whose first tokens are names' own: after a quotation mark, or at the start, it is other tokens."""
    return [{ids[story][first[0]], ids[story][second[0]]} <= set(names) for story, first, second in pairs]


def mention_losses(pairs, logits, ids, names=None):
    """Mean loss of a name at its first and at its second mention, in nats; with `names`, given that a name comes."""

    def loss(story, tokens):
        row, right = logits[story][tokens[0] - 1], ids[story][tokens[0]]
        if names is not None:  # a name's first token tells it from the others
            return -log_softmax(row[names])[names.index(right)]
        following = [-log_softmax(logits[story][token - 1])[ids[story][token]] for token in tokens[1:]]
        return sum(following, -log_softmax(row)[right])

    if names is not None:
        pairs = [pair for pair, this in zip(pairs, plain(pairs, ids, names), strict=True) if this]
    return tuple(float(np.mean([loss(pair[0], pair[which]) for pair in pairs])) for which in (1, 2))


def repeated(count, period, first, vocabulary, bos, seed=0):
    """Random tokens said twice, after <bos>.  -> count, 1 + 2 period"""
    once = np.random.default_rng(seed).integers(first, vocabulary, (count, period))
    return np.concatenate([np.full((count, 1), bos), once, once], axis=1)


def induction(probs, period):
    """How much of its attention each head puts on the token after the previous occurrence.  probs: N T T -> N

    Over the second half of `repeated`: the token at t stood at t - period, and what followed it at t - period + 1.
    """
    second = np.arange(1 + period, probs.shape[-1])
    return probs[:, second, second - period + 1].mean(axis=1)


def previous(probs):
    """How much of its attention each head puts on the token just before.  probs: N T T -> N"""
    later = np.arange(1, probs.shape[-1])
    return probs[:, later, later - 1].mean(axis=1)
