"""How well the grammar of the stories itself foresees a name: the measure for a model that was trained on them.

Whether a name comes next, or a pronoun, or another word, is drawn when a story is told, and the text before does not
say. Here that chance is computed: every way to tell a story that begins with the same words is followed, with its
chance, and those that go on with the name are added up. The one who foresees knows the facts of the story from its
beginning (who, which thing, which colour), but neither the plot nor any choice; and his chances are true, so over all
words nobody's loss is lower. Where a name did come it can be: whoever expects names more often than they come pays less
there, and more elsewhere.
"""

import math
import re
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from corpus import OWNERS
from stories import ELDERS, NAMES, OPENING, PLOTS, WEATHER

MARK, END = "@", "~"  # before a name, so that Sam does not begin "same"; after a story
PEOPLE = sorted([*NAMES["she"], *NAMES["he"], *ELDERS])
PERSON = re.compile(r"\b(" + "|".join(PEOPLE) + r")\b")
COMMON = (*OPENING.strip().splitlines(), *WEATHER.strip().splitlines())
SHARES = ((PLOTS, 2 / 3), (OWNERS, 1 / 3))  # as corpus.mixed draws
SCRIPTS = [(tuple(plot.strip().splitlines()), share / len(plots)) for plots, share in SHARES for plot in plots]


class Place(NamedTuple):
    """Somewhere in the telling of a story."""

    line: str  # what is left of this line
    lines: tuple | None  # those after it; None: the plot is not drawn yet, and comes next
    at: int  # how much of the text is told
    chance: float
    facts: dict


def bare(text):
    """Without what `stories.polish` puts in order: spaces, articles, capitals.  Names are marked."""
    marked = re.sub(r"\b[Aa]n?\b", "a", PERSON.sub(lambda found: MARK + found[1], text))
    return "".join(marked.split()).lower()


MARKED = re.compile("|".join(map(re.escape, map(bare, PEOPLE))))


def following(before, facts):
    """What comes after a text: a name, as `bare` spells it, or "" for all other words -> its chance."""
    told, found = bare(before), Counter()
    agenda = [Place("", COMMON, 0, 1.0, facts)]
    while agenda:
        place = agenda.pop()
        literal, options, rest = parts(place.line)
        said, due = bare(literal.format_map(place.facts)), told[place.at :]
        if len(said) > len(due):
            if said.startswith(due):
                name = MARKED.match(said, len(due))
                found[name[0] if name else ""] += place.chance
        elif due.startswith(said):
            place = place._replace(at=place.at + len(said))
            share = place.chance / max(1, len(options))
            agenda += [place._replace(line=option + rest, chance=share) for option in options] or next_lines(place)
    return {name: chance / found.total() for name, chance in found.items()}


def parts(line):
    """What stands before the first choice, its options, and what stands behind it."""
    start, depth, cuts = line.find("["), 0, []
    if start < 0:
        return line, [], ""
    for i in range(start, len(line)):
        depth += {"[": 1, "]": -1}.get(line[i], 0)
        if (depth, line[i]) in ((1, "|"), (0, "]")) or i == start:
            cuts.append(i)
        if depth == 0:
            break
    return line[:start], [line[a + 1 : b] for a, b in pairwise(cuts)], line[cuts[-1] + 1 :]


def next_lines(place):
    """Where a finished line leads to, as `stories.tell` goes on."""
    if place.lines is None:
        return [place._replace(line="", lines=script, chance=place.chance * share) for script, share in SCRIPTS]
    if not place.lines:
        return [place._replace(line=END)]
    line, rest = place.lines[0], place.lines[1:]
    place = place._replace(lines=None if not rest and place.lines[-1] is COMMON[-1] else rest)
    if " = " in line:
        keys, drawn = line.split(" = ")
        drawn = [zip(keys.split(", "), option.split(" / "), strict=True) for option in drawn.split(" | ")]
        more = [{key: value.format_map(place.facts).strip() for key, value in one} for one in drawn]
        return [place._replace(line="", chance=place.chance / len(more), facts=place.facts | one) for one in more]
    if line.startswith("? "):
        half = place._replace(line="", chance=place.chance / 2)
        return [half, half._replace(line=line.removeprefix("? "))]
    return [place._replace(line=line)]


def losses(told, places):
    """What a name costs at each place: whether a name comes at all, and which one, in nats.

    told: text and facts of each story   places: (story, where in its text a name begins) ...
    """
    found = []
    for story, at in places:
        text, facts = told[story]
        chances = following(text[:at], facts)
        right, some = chances[MARKED.match(bare(text[at:]))[0]], 1 - chances.get("", 0.0)
        found.append((-math.log(some), math.log(some / right)))
    return found


def open_places(told):
    """Words after a space at which the grammar leaves it open whether a name comes.

    -> [(story, where the word begins, the chance of a name, whether one came)]
    """
    found = []
    for story, (text, facts) in enumerate(told):
        for word in re.finditer(r"(?<= )\w", text):
            chance = 1 - following(text[: word.start()], facts).get("", 0.0)
            if 0.01 < chance < 0.99:
                found.append((story, word.start(), chance, bool(PERSON.match(text, word.start()))))
    return found
