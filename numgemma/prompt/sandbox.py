"""Renders chat templates in a process of its own: this file is that process, started by template.py.

A template is a program by whoever made the checkpoint.  It runs in jinja2's sandbox and sees plain values only; but no
list of bounded operations would end: a filter, a sum, a comparison can take for ever or fill the memory.  So the system
bounds the process, in seconds of computing and in bytes, and the process that started it lives on whatever happens.

Read from standard input, one after another: the length in 8 bytes, then `marshal` of {source, variables, now, seconds,
size}.  Written to standard output: the length in 8 bytes, then JSON of {text}, {refused} or {failed, place}.
"""

import json
import marshal
import resource
import signal
import sys
import traceback
from datetime import datetime
from functools import lru_cache

MEMORY = 1 << 30  # bytes of address space; a long chat needs a tenth
LONGEST = 300  # characters of what is told of an error


def main():
    sys.path += sys.argv[1:]  # where jinja2 is
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while length := sys.stdin.buffer.read(8):
        job = marshal.loads(sys.stdin.buffer.read(int.from_bytes(length, "little")))
        signal.setitimer(signal.ITIMER_PROF, job["seconds"])  # of computing; the signal that ends them is not caught
        answer = json.dumps(answered(job)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(len(answer).to_bytes(8, "little") + answer)
        sys.stdout.buffer.flush()


def answered(job):
    import jinja2

    try:
        program = compiled(job["source"])
        program.globals["strftime_now"] = datetime.fromisoformat(job["now"]).strftime
        return {"text": text(program, job["variables"], job["size"])}
    except MemoryError:
        return {"failed": f"it needs more than {MEMORY >> 20} MB", "place": "the template", "spent": True}
    except RecursionError:
        return {"failed": "it is nested too deep", "place": "the template"}
    except jinja2.TemplateError as error:
        return {"refused": told(error)} if type(error).__name__ == "Refusal" else failure(error)
    except Exception as error:  # it is somebody's program: whatever Python can raise
        return failure(error)


def text(program, variables, most):
    parts, size = [], 0
    for part in program.generate(variables):
        parts.append(part)
        size += len(part)
        if size > most:
            raise ValueError(f"it writes more than {most:,} characters")
    return "".join(parts)


def failure(error):
    """Where in the template an error came up, as far as it is known, and what it says."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    lines = [getattr(error, "lineno", None) or lines[-1]] if lines or hasattr(error, "lineno") else []
    return {"failed": told(error), "place": f"line {lines[-1]} of the template" if lines else "the template"}


def told(error):
    """What an error says, on one line of bounded length."""
    said = " ".join(str(error)[:10_000].split()) or type(error).__name__
    return f"{said if len(said) < LONGEST else said[:LONGEST] + '...'}".rstrip(".")


@lru_cache(8)
def compiled(source):
    return environment().from_string(source)


@lru_cache(1)
def environment():
    """jinja2's sandbox with Transformers' settings and helpers."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Refusal(TemplateError):
        """What `raise_exception` in a template raises: these messages are not for it."""

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

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}: marks what the model wrote, for training; its text stays."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser):
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def check_name(name):
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace has no name with an underscore in front, as {name!r:.60}")

    def raise_exception(message):
        raise Refusal(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": raise_exception, "namespace": PlainNamespace}
    return made


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """JSON with < > & as they are: jinja2's own filter escapes them for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


if __name__ == "__main__":
    main()
