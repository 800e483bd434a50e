"""All the text the bundled checkpoint is trained on: the stories, stories of two owners, and tokens that come twice.

The first part is `stories.stories`, told as ever: the tokenizer is trained on it, so its ids stay. The parts after it
mix in stories in which two friends own two things, told in either order: only who looks back knows whose kite it was.
Some rows are no story at all but random tokens said again and again: whoever is to guess them has to find
what came before and copy what followed it.
"""

import random

import numpy as np
from stories import (
    COLOURS,
    ELDERS,
    FOODS,
    NAMES,
    NUMBERS,
    OPENING,
    PLOTS,
    SPOTS,
    THINGS,
    WEATHER,
    draw_facts,
    polish,
    tell,
)

FIRST = 32_000  # what the tokenizer is trained on
PART = 8_000  # every further part has a seed of its own, so that many cores can tell at once

OWNERS = [
    # each keeps to his own
    """
[{hero} had a {colour} {thing}, and {friend} had a {colour2} {thing2}.|{friend} had a {colour2} {thing2}, and {hero} \
had a {colour} {thing}.]
one day, they [walked|ran] to the {spot}. [{hero} carried {his} {thing}, and {friend} carried {friend_his} \
{thing2}.|{friend} carried {friend_his} {thing2}, and {hero} carried {his} {thing}.]
? they [played|sat down] there until noon.
["My {thing} is the best," said {hero}. "No, my {thing2} is," said {friend}.|"My {thing2} is the best," said {friend}. \
"No, my {thing} is," said {hero}.]
? [{hero} looked at {his} {thing}.|{friend} looked at {friend_his} {thing2}.]
"Both are [good|fine]," said {elder}[.|, who came by.] so [{hero} took {his} {thing}, {friend} took {friend_his} \
{thing2}|{friend} took {friend_his} {thing2}, {hero} took {his} {thing}], and they went home.
""",
    # whose is this?
    """
[{friend} found a {colour2} {thing2} by the {spot2}, and {hero} found a {colour} {thing} by the {spot}.|{hero} found a \
{colour} {thing} by the {spot}, and {friend} found a {colour2} {thing2} by the {spot2}.]
in the evening, they left [them|both things] outside, and it [rained|snowed] all night.
["Whose {thing} is this?" asked {elder}. "It is mine," said {hero}. "And whose {thing2} is this?" asked {elder}. "It \
is mine," said {friend}.|"Whose {thing2} is this?" asked {elder}. "It is mine," said {friend}. "And whose {thing} is \
this?" asked {elder}. "It is mine," said {hero}.]
[{hero} dried {his} {thing} by the fire.|{friend} dried {friend_his} {thing2} by the fire.]
? "Take better care of it," {elder_he} said.
[from that day on, {friend} kept {friend_his} {thing2} inside, and {hero} kept {his} {thing} inside.|from that day on, \
{hero} kept {his} {thing} inside, and {friend} kept {friend_his} {thing2} inside.]
""",
    # two gifts
    """
[one day|in the spring], {elder} gave [{hero} a {colour} {thing} and {friend} a {colour2} {thing2}|{friend} a \
{colour2} {thing2} and {hero} a {colour} {thing}].
["Thank you for the {thing}!" said {hero}. "Thank you for the {thing2}!" said {friend}.|"Thank you for the {thing2}!" \
said {friend}. "Thank you for the {thing}!" said {hero}.]
? [{hero} showed everyone {his} {thing}.|{friend} showed everyone {friend_his} {thing2}.]
all day, [{friend} played with {friend_his} {thing2}, and {hero} played with {his} {thing}|{hero} played with {his} \
{thing}, and {friend} played with {friend_his} {thing2}].
that night, [{hero} put {his} {thing} next to {his} bed|{friend} put {friend_his} {thing2} next to {friend_his} bed].
"[Sleep well|Good night]," said {elder}.
""",
    # a game of looking and remembering
    """
it [rained|was cold], so they played a game with {elder}. "I see a {colour} {thing}," said {hero}. "I see a {colour2} \
{thing2}," said {friend}.
? "[Good|Very good]," said {elder}, "now close your eyes."
["What did {hero} see?" asked {elder}. "A {thing}," said {friend}. "And what did {friend} see?" asked {elder}. "A \
{thing2}," said {hero}.|"What did {friend} see?" asked {elder}. "A {thing2}," said {hero}. "And what did {hero} see?" \
asked {elder}. "A {thing}," said {friend}.]
["Who saw a {thing}?" asked {elder}. "{hero} did," said {friend}.|"Who saw a {thing2}?" asked {elder}. "{friend} did," \
said {hero}.]
? "[You remember well|Nothing is forgotten]," {elder_he} said.
they [laughed|drank tea] and played until [it was dark|bedtime].
""",
    # hidden in two places
    """
[{hero} hid {his} {colour} {thing} by the {spot}, and {friend} hid {friend_his} {colour2} {thing2} by the \
{spot2}.|{friend} hid {friend_his} {colour2} {thing2} by the {spot2}, and {hero} hid {his} {colour} {thing} by the \
{spot}.]
? "[Nobody will find them|They are safe there]," they thought.
the next day, [{hero} went to the {spot} to get {his} {thing}|{friend} went to the {spot2} to get {friend_his} \
{thing2}], but it was not there.
["Who took my {thing}?" cried {hero}. "My {thing2} is gone too!" said {friend}.|"Who took my {thing2}?" cried \
{friend}. "My {thing} is gone too!" said {hero}.]
? they looked by the {spot} and by the {spot2}.
then {elder} came [by|along the path]. "[I have|I found] a {colour} {thing} and a {colour2} {thing2}," {elder_he} said.
[{friend} got back {friend_his} {thing2}, and {hero} got back {his} {thing}.|{hero} got back {his} {thing}, and \
{friend} got back {friend_his} {thing2}.]
""",
    # one is lost, the other helps
    """
[{friend} never went out without {friend_his} {thing2}, and {hero} never went out without {his} {thing}.|{hero} never \
went out without {his} {thing}, and {friend} never went out without {friend_his} {thing2}.]
one [day|morning], [a crow|the wind] took [{his} {thing}. "My {thing} is gone!" cried {hero}. "We will find it. I \
still have my {thing2}," said {friend}.|{friend_his} {thing2}. "My {thing2} is gone!" cried {friend}. "We will find \
it. I still have my {thing}," said {hero}.]
they looked by the {spot} [and by the {spot2}|for a long time], and [{elder}|{guest} the {guest_kind}] helped them.
? [{hero} held {his} {thing} again|{friend} held {friend_his} {thing2} again] in the evening.
[{hero} had {his} {thing}, {friend} had {friend_his} {thing2}|{friend} had {friend_his} {thing2}, {hero} had {his} \
{thing}], and all was well.
""",
]


def told(rng, plots):
    """One story, and the facts it was told from.  -> text, {"hero": "Mia"...}"""
    facts = draw_facts(rng)
    scripts = OPENING, WEATHER, rng.choice(plots)
    return polish(" ".join(line for script in scripts for line in tell(script, facts, rng))), facts


def mixed(rng, owners=1):
    """Of three further stories, one has two owners, or as many as are asked for."""
    return told(rng, rng.choice((*[PLOTS] * (3 - owners), *[OWNERS] * owners)))


def part(seed, number, owners=1, count=PART):
    """One further part of the text.  -> stories"""
    rng = random.Random(f"{seed} {number}")
    return [mixed(rng, owners)[0] for _ in range(count)]


def held_out(seed, count):
    """Stories that no part holds, with their facts.  -> [(text, facts)]"""
    rng = random.Random(f"{seed} held out")
    return [mixed(rng) for _ in range(count)]


def repeats(seed, count, length, first, vocabulary, longest=256):
    """Rows of random tokens that come again after 8 to 256 tokens.  -> rows, and length; the length of each period"""
    rng = np.random.default_rng(seed)
    periods = np.exp(rng.uniform(np.log(8), np.log(longest), count)).astype(int)
    once = rng.integers(first, vocabulary, (count, length))
    return np.take_along_axis(once, np.arange(length) % periods[:, None], axis=1), periods


def fact_ids(tokenizer):
    """The first tokens of all that a story fixes before it begins: names, things, colours, places, food, numbers."""
    words = [*NAMES["she"], *NAMES["he"], *ELDERS, *THINGS, *COLOURS, *FOODS, *SPOTS, *NUMBERS[2:]]
    return {tokenizer.encode(f" {word}", add_special_tokens=False).ids[0] for word in words}
