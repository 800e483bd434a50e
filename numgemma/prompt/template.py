"""A chat template and its variables -> text, as Transformers' render_jinja_template spells it.

A template is a program by whoever made the checkpoint.  It runs in jinja2's sandbox, sees plain values only, and ends:
the time of its loops and the size of what it assigns, multiplies and writes are bounded, which the sandbox leaves open.
"""

import json
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

import numpy as np
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from numgemma.errors import InputError

MAX_SECONDS = 60  # a chat of seven hundred messages takes seven: templates look back and forth
MAX_SIZE = 10_000_000  # characters or items of one value, and of the text; the longest context holds a tenth


@dataclass(frozen=True)
class Template:
    """A template's text, and the file it stands in."""

    text: str
    origin: str


class Refusal(TemplateError):
    """What `raise_exception` in a template raises: these messages are not for it."""


def render(template: Template, variables: Mapping) -> str:
    """The text of a template.  Raises InputError with the line where it does not compile, or fails, or refuses."""
    try:
        return text(compiled(template.text), plain(variables))
    except Refusal as error:
        raise InputError(f"{template.origin}: the template says: {told(error)}; change the messages.") from None
    except Exception as error:  # it is somebody's program: whatever Python can raise
        raise InputError(f"{template.origin}: {place(error)}: {told(error)}; correct it, or the messages.") from None


@lru_cache(8)
def compiled(source):
    return Sandbox().from_string(source)


def text(program, variables):
    program.environment.end = time.monotonic() + MAX_SECONDS
    parts, size = [], 0
    for part in program.generate(variables):
        parts.append(part)
        size += len(part)
        check_size(size)
    return "".join(parts)


def told(error):
    """What an error says, on one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text if len(text) < 300 else text[:300] + '...'}".rstrip(".")


def place(error):
    """Where in the template an error came up, as far as it is known."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    if isinstance(error, TemplateSyntaxError):
        lines = [error.lineno]
    return f"line {lines[-1]} of the template" if lines else "the template"


def plain(value):
    """The value rebuilt of JSON's types, so that a template can call no method of an image or an array."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # without what a subclass adds
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return f"<{type(value).__name__}>"


# what a template may call


def raise_exception(message):
    raise Refusal(message)


def strftime_now(pattern):
    return datetime.now().strftime(pattern)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """JSON with < > & as they are: jinja2's own filter escapes them for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class PlainNamespace(Namespace):
    """`namespace` of a template, without names that reach into Python."""

    def __init__(self, /, *args, **named):
        attributes = dict(*args, **named)
        for name in attributes:
            check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        check_name(name)
        Namespace.__setitem__(self, name, value)


def check_name(name):
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no name with an underscore in front, as {name!r:.60}")


class Generation(Extension):
    """{% generation %} ... {% endgeneration %}: marks what the model wrote, for training.  Its text stays as it is."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser):
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


# the sandbox.  jinja2 lets its environment be changed by subclasses only.


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with Transformers' settings and helpers, and with bounds of time and size."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        self.filters |= {"tojson": tojson, "in_time": self.in_time, "sized": self.sized}
        self.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now, "namespace": PlainNamespace}
        self.end = 0.0  # when the rendering now under way should be done

    def _generate(self, source, *args, **named):  # jinja2's hook between parsing and compiling
        for loop in [*source.find_all((nodes.For, nodes.Macro, nodes.CallBlock))]:
            loop.body.insert(0, nodes.ExprStmt(through("in_time", nodes.Const(True)), lineno=loop.lineno))
        for assignment in [*source.find_all(nodes.Assign)]:
            assignment.node = through("sized", assignment.node)
        for block in [*source.find_all(nodes.AssignBlock)]:
            block.filter = through("sized", block.filter)
        return super()._generate(source, *args, **named)

    @pass_context  # which keeps jinja2 from calling it once, while it compiles
    def in_time(self, context, value):
        """Every turn of a loop goes through this."""
        if time.monotonic() > self.end:
            raise SecurityError(f"it runs for more than {MAX_SECONDS} seconds")
        return value

    @pass_context
    def sized(self, context, value):
        """Every value that is assigned, or that a call returns, goes through this."""
        if isinstance(value, (str, list, tuple, dict)):
            check_size(len(value))
        return value

    def call(self, context, function, /, *args, **named):
        return self.sized(context, super().call(context, function, *args, **named))

    def call_binop(self, context, operator, left, right):
        check_size(grown(operator, left, right))
        return super().call_binop(context, operator, left, right)


def through(name, node):
    """The node of an expression that a filter passes on."""
    return nodes.Filter(node, name, [], [], None, None)


def check_size(size):
    if size > MAX_SIZE:
        raise SecurityError(f"it makes a value of more than {MAX_SIZE:,} characters or items")


def grown(operator, left, right):
    """Items of `left * right`, or bits where both are numbers; bits of `left ** right`."""
    bits = [abs(x).bit_length() if isinstance(x, int) else 0 for x in (left, right)]
    if operator == "**":
        return bits[0] * right if isinstance(right, int) else 0
    for items, times in ((left, right), (right, left)):
        if isinstance(items, (str, list, tuple)) and isinstance(times, int):
            return len(items) * times
    return sum(bits)
