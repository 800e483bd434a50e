"""The prompts of a sweep: a file with one JSON value a line, or random token ids."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from numgemma.errors import InputError
from numgemma.incoming import STANDARD, parse_json, read_text
from numgemma.model import Model
from numgemma.prompt.chat import check_messages
from numgemma.prompt.media import NO_MEDIA, Media

KEYS = {  # of a line that is an object -> what its value is
    **dict.fromkeys(("text", "prompt"), "text"),
    **dict.fromkeys(("ids", "input_ids", "tokens"), "ids"),
    **dict.fromkeys(("messages", "chat"), "chat"),
}
FORM = '"some text", [2, 105, 9], {"text": ...}, {"ids": [...]} or {"messages": [...]}, with a "name" if you like'
SHORTEST = 4  # tokens of a random prompt


@dataclass(frozen=True)
class Question:
    """One prompt, before a checkpoint's tokenizer has seen it.  kind: "text", "ids" or "chat" """

    name: str
    kind: str
    value: Any

    def encoded(self, model: Model) -> tuple[list[int], Media]:
        """Raises InputError where the model cannot take it."""
        if self.kind == "ids":
            return model.checked(self.value).tolist(), NO_MEDIA
        if self.kind == "chat":
            return model.chat_ids(self.value)
        return model.prompt_ids(self.value)


def read_questions(path: Path) -> list[Question]:
    """The lines of a file, or of standard input where the path is "-"; a line without a name is called by its number.

    Raises InputError where a line is none of what is read, or two have one name.
    """
    where = "standard input" if path == STANDARD else str(path)
    lines = read_text(path).splitlines()
    found = [question(line, f"{where}, line {i}", str(i)) for i, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"{where}: holds no prompt; write one a line, as {FORM}.")
    names = [q.name for q in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{where}: two prompts are called {twice!r:.60}; give each a name of its own.")
    return found


def question(line: str, where: str, number: str) -> Question:
    value = parse_json(line, f"{where}: the line", f"it should be {FORM}")
    name = number
    if isinstance(value, dict):
        name = str(value.get("name", number))
        key = next((key for key in KEYS if key in value), None)
        if key is None:
            raise InputError(f"{where}: has none of {', '.join(KEYS)}; write it as {FORM}.")
        return checked(name, KEYS[key], value[key], where)
    if isinstance(value, str):
        return checked(name, "text", value, where)
    chat = isinstance(value, list) and any(isinstance(item, dict) for item in value)
    return checked(name, "chat" if chat else "ids", value, where)


def checked(name, kind, value, where) -> Question:
    if kind == "text" and not (isinstance(value, str) and value):
        raise InputError(f"{where}: its text is {json.dumps(value):.60}; write it as {FORM}.")
    if kind == "ids" and not (isinstance(value, list) and value and all(type(i) is int and i >= 0 for i in value)):
        raise InputError(f"{where}: its token ids should be one or more integers from 0; write it as {FORM}.")
    if kind == "chat":
        check_messages(value, where)
    return Question(name, kind, value)


def random_questions(models: list[Model], number: int, longest: int, seed: int) -> Iterator[Question]:
    """Prompts of random ids that all models know, as many short ones as long ones: every doubling has its share.

    Each begins with the token that begins a text; none holds a placeholder of a picture or a sound.
    """
    rng = np.random.default_rng(seed)
    bos = models[0].outline.bos
    special = {i for model in models for i in model.family.placeholders(model.config).values()}
    known = min(model.outline.vocabulary for model in models)
    allowed = np.array([i for i in range(known) if i not in special])
    lengths = np.geomspace(min(SHORTEST, longest), longest, number).round().astype(int)
    for i, length in enumerate(lengths, 1):
        ids = rng.choice(allowed, length).tolist()
        if bos is not None and bos < known:
            ids[0] = bos
        yield Question(f"random {i}", "ids", ids)
