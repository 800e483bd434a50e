"""A chat -> text: messages from a file, checked, and spelled out by the checkpoint's own template.

    [{"role": "user", "content": "Hello"}]  ->  <bos><|turn>user\\nHello<turn|>\\n<|turn>model\\n

The text holds its own <bos>: it is tokenised without another (Tokenizer.encode_chat).  Equals Transformers'
apply_chat_template, which the tests compare.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numgemma.errors import InputError
from numgemma.incoming import STANDARD, parse_json, read_object, read_text
from numgemma.prompt.template import Template, render

FORM = '[{"role": "user", "content": "Hello"}]'
KINDS = ("image", "audio", "video")
READ = ("text", *KINDS, "image_url")  # types of the items of a content list
COPY = "copy it again from the model's repository"

# Names under which a message carries its thoughts.  Templates read the first; gpt-oss's reads the second.
REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Chat:
    """What one prompt is made of: the messages, and the tools and documents that the model may use."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Attachment:
    """An image, recording or video that a message names; source None: it is given elsewhere, in the same order."""

    kind: str  # of KINDS
    source: Any  # a path; or whatever a caller from Python put there: an array, a Pillow image


def render_chat(
    folder,
    messages: Sequence[Mapping],
    tools: Sequence[Mapping] | None = None,
    documents: Sequence[Mapping] | None = None,
    thinking: bool | None = None,
    template: str | None = None,
    add_generation_prompt: bool = True,
    **variables,
) -> str:
    """The text of a chat, <bos> and turn marks included.

    folder                   of the checkpoint, whose template and special tokens are used
    messages                 as {"role": "user", "content": text, or a list of {"type": "text", "text": ...} and others}
    tools                    JSON schemas, as {"type": "function", "function": {"name": ..., "parameters": ...}}
    thinking                 the template's `enable_thinking`; None leaves it undefined
    template                 one of several by name, or a .jinja file; None is "tool_use" with tools, else "default"
    add_generation_prompt    end with the beginning of the model's turn
    variables                more variables of the template

    Raises InputError where there is no template, or it fails or refuses the messages (`raise_exception`).
    Equals transformers.PreTrainedTokenizerBase.apply_chat_template(tokenize=False), where the generation prompt is off
    unless asked for.
    """
    check_messages(messages, "the messages")
    check_dicts(tools, "the tools")
    check_dicts(documents, "the documents")
    if thinking is not None:
        variables["enable_thinking"] = thinking
    values = special_tokens(Path(folder)) | variables
    values |= {"messages": [as_read(message) for message in messages], "tools": tools, "documents": documents}
    chosen = choose(Path(folder), template, tools)
    check_items(messages, chosen)
    return render(chosen, values | {"add_generation_prompt": add_generation_prompt})


def check_items(messages, template: Template):
    """No item of a content list is of a type that the template does not know: it would be left out without a word."""
    for i, message in enumerate(messages):
        items = message.get("content")
        for kind in [item["type"] for item in items] if isinstance(items, (list, tuple)) else ():
            if kind not in READ and kind not in template.text:
                raise InputError(
                    f"{template.origin}: knows no item of type {kind!r:.40}, which message {i} has, and would leave it "
                    f"out; write it as {', '.join(READ[:3])} or {READ[3]}, a file as its path."
                )


def as_read(message):
    """A message as templates read it: without what is None, its thoughts and image links under the usual names."""
    message = {key: value for key, value in message.items() if value is not None}
    thoughts = next((message[name] for name in REASONING if name in message), None)
    if thoughts is not None:
        message = {"thinking": thoughts} | message | {"reasoning_content": thoughts}
    if isinstance(message.get("content"), (list, tuple)):
        message["content"] = [as_image(item) for item in message["content"]]
    return message


def as_image(item):
    """OpenAI's {"type": "image_url", "image_url": {"url": ...}} -> {"type": "image", "url": ...}."""
    if item["type"] != "image_url" or "image_url" not in item:
        return item
    link = item["image_url"]
    return {"type": "image", "url": link.get("url", "") if isinstance(link, Mapping) else link}


# what the messages name


def attachments(messages: Sequence[Mapping], where="the messages") -> list[Attachment]:
    """The images, recordings and videos of a chat, in the order of their placeholders.

    Raises InputError for what is not on this machine: nothing is fetched.
    """
    check_messages(messages, where)
    contents = [as_read(message).get("content") for message in messages]
    items = [item for content in contents if isinstance(content, list) for item in content]
    return [Attachment(item["type"], source(item, where)) for item in items if item["type"] in KINDS]


def source(item, where):
    """Where an item of a content list has its file, under one of the keys that Transformers knows."""
    kind = item["type"]
    found = {key: item[key] for key in (kind, "path", "url", "base64") if item.get(key) is not None}
    if len(found) > 1:
        raise InputError(f"{where}: an item of type {kind} has {' and '.join(found)}; give one path.")
    for key, value in found.items():
        if key == "base64" or (isinstance(value, str) and ("://" in value or value.startswith("data:"))):
            raise InputError(
                f"{where}: an item of type {kind} names '{value:.60}'; save it as a file and give its path."
            )
        return Path(value) if isinstance(value, str) else value
    return None


def chat_files(messages: Sequence[Mapping], given: Mapping[str, Sequence[Path]], where="the messages"):
    """Kind -> files, in the order of a chat's items: the one that an item names, or else the next of those given.

    Raises InputError where an item has no file, or a file no item.
    """
    queues = {kind: iter(given.get(kind, ())) for kind in KINDS}
    files: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for item in attachments(messages, where):
        path = next(queues[item.kind], None) if item.source is None else item.source
        if not isinstance(path, Path):
            raise InputError(f'{where}: an item of type {item.kind} names no file; add its "path", or --{item.kind}.')
        files[item.kind].append(path)
    for kind, queue in queues.items():
        if left := len(list(queue)):
            raise InputError(f'{where}: has no item for {left} --{kind}; add {{"type": "{kind}"}} to a content list.')
    return files


# the template and what it may name


def choose(folder: Path, name: str | None, tools) -> Template:
    """One of the checkpoint's templates by name, or a .jinja file."""
    if name is not None and name.endswith(".jinja"):
        return read_template(Path(name))
    found = read_templates(folder)
    if not found:
        raise InputError(
            f"{folder}: has no chat_template.jinja, and none in tokenizer_config.json; copy it from the "
            "repository of an instruction-tuned model, or name a .jinja file as the template."
        )
    if name is None:
        name = "tool_use" if tools is not None and "tool_use" in found else "default"
    if name not in found:
        raise InputError(f"{folder}: has no template called '{name}'; it has {', '.join(sorted(found))}.")
    return found[name]


def read_templates(folder: Path) -> dict[str, Template]:
    """Name -> template, from the first place that has any; the files first, as Transformers does it."""
    files = [(path.stem, path) for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    files += [("default", path) for path in [folder / "chat_template.jinja"] if path.exists()]
    if files:
        return {name: read_template(path) for name, path in files}
    for path in (folder / name for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json")):
        found = read_object(path, COPY).get("chat_template") if path.exists() else None
        if found is not None:
            return named_templates(found, path)
    return {}


def named_templates(found, path) -> dict[str, Template]:
    """A template in a JSON file: one text, or a list of {"name": ..., "template": ...}."""
    rows = [{"name": "default", "template": found}] if isinstance(found, str) else found
    try:
        pairs = {row["name"]: row["template"] for row in rows}
        return {str(name): Template(text + "", str(path)) for name, text in pairs.items()}
    except (TypeError, KeyError):
        raise InputError(f"{path}: chat_template is neither a text nor a list of named texts; {COPY}.") from None


def read_template(path: Path) -> Template:
    return Template(read_text(path), str(path))


def special_tokens(folder: Path) -> dict[str, str]:
    """Variables such as bos_token, from tokenizer_config.json; special_tokens_map.json where old files have them."""
    found: dict[str, Any] = {}
    for path in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        if path.exists() and "added_tokens_decoder" not in found:
            found |= read_object(path, COPY)
    extra = found.get("extra_special_tokens")
    named = {key: value for key, value in found.items() if key.endswith("_token")}
    named |= extra if isinstance(extra, dict) else {}
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


# chat files


def read_chat(path: str | Path, tools: str | Path | None = None) -> Chat:
    """A chat from a JSON file, or from standard input where the path is "-"; tools: a second file.

    The file holds the list of messages, or an object of messages, tools and documents.
    """
    found = read_json(path)
    found = {"messages": found} if isinstance(found, list) else found
    where = "standard input" if Path(path) == STANDARD else str(path)
    if not isinstance(found, dict) or "messages" not in found:
        raise InputError(f"{where}: should hold a list of messages as {FORM}, or an object with such `messages`.")
    unknown = found.keys() - {"messages", "tools", "documents"}
    if unknown:
        raise InputError(f"{where}: '{min(unknown):.60}' is not known; give messages, tools and documents alone.")
    if tools is not None:
        if found.get("tools") is not None:
            raise InputError(f"{where}: has tools already; leave them out there, or the file {tools}.")
        found["tools"] = read_json(tools)
        check_dicts(found["tools"], str(tools))
    check_messages(found["messages"], where)
    check_dicts(found.get("tools"), f"{where}: tools")
    check_dicts(found.get("documents"), f"{where}: documents")
    return Chat(**found)


def read_json(path):
    where = "standard input" if Path(path) == STANDARD else path
    text = read_text(path)
    found = parse_json(text, f"{where}:", f"it should hold messages as {FORM}")
    if "\\u" in text:  # the one way by which half a character comes in
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InputError(f"{where}: holds half of a surrogate pair, as \\ud83d; write a whole one.") from None
    return found


def check_messages(messages, where):
    """The form that every template relies on; what lies beyond it is for the template to refuse."""
    check_dicts(messages, where)
    if not messages:
        raise InputError(f"{where}: there is no message; give at least one, as {FORM}.")
    for i, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise InputError(f"{where}: message {i} has no role; write it as {FORM[1:-1]}.")
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            for item in content:
                if not (isinstance(item, Mapping) and isinstance(item.get("type"), str)):
                    raise InputError(
                        f'{where}: the content of message {i} should hold items as {{"type": "text", ...}}.'
                    )
                if item["type"] == "text" and not isinstance(item.get("text", ""), str):
                    raise InputError(f"{where}: message {i} has an item whose text is no text; write it in quotes.")
        elif content is not None and not isinstance(content, str):
            raise InputError(f"{where}: the content of message {i} is neither a text nor a list; see {FORM}.")


def check_dicts(items, where):
    """None, or a list of objects."""
    items = [] if items is None else items
    if not (isinstance(items, (list, tuple)) and all(isinstance(item, Mapping) for item in items)):
        raise InputError(f"{where}: should be a list of JSON objects.")
