"""What a template may do, and what it does wrong: leave the sandbox, fail, go on for ever, fill the memory."""

import resource
import types
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import numpy as np
import pytest

from numgemma.errors import InputError
from numgemma.prompt import template
from numgemma.prompt.template import Template, render


def spelled(source, **variables):
    return render(Template(source, "x.jinja"), variables)


def complaint(function, *args, **named):
    """The one sentence with which something is refused."""
    with pytest.raises(InputError) as caught:
        function(*args, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- what a template may use ------------------------------------------------------------------------------------------


def test_today_is_the_clocks(monkeypatch):
    monkeypatch.setattr(template, "datetime", types.SimpleNamespace(now=lambda: datetime(2026, 7, 4)))
    assert spelled("{{ strftime_now('%d %b %Y') }}") == "04 Jul 2026"


def test_json_keeps_its_letters_and_marks():
    assert spelled("{{ x | tojson }}", x={"a": "é<b>&'\""}) == """{"a": "é<b>&'\\""}"""


def test_values_lose_what_a_template_could_call():
    class Text(str):
        def delete(self):
            raise AssertionError

    values = {"text": Text("t"), "flag": np.bool_(False), "n": np.int64(3), "image": np.zeros(3), "pair": (1, 2.5)}
    seen = template.plain(values)
    assert seen == {"text": "t", "flag": False, "n": 3, "image": "<ndarray>", "pair": [1, 2.5]}
    assert [type(value) for value in seen.values()] == [str, bool, int, str, list]


def test_a_template_may_write_many_times_what_it_is_given_and_no_more():
    assert len(spelled("{{ said * 10 }}", said="word " * 50_000)) == 2_500_000
    for source in ("{{ strftime_now('%Y' * 10**6) }}", "{{ said * 10**6 }}"):
        assert "writes more than" in complaint(spelled, source, said="word")


# -- what a template does wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("a\n{% for %}", 2),
        ("a\n\n{{ x | nosuch }}", 3),
        ("{% if x %}", 1),
        ("\n{{ x.y.z }}", 2),
        ("\n\n{{ 1 / 0 }}", 3),
    ],
)
def test_a_template_that_fails_is_told_with_its_line(source, line):
    assert f"x.jinja: line {line} of the template: " in complaint(spelled, source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ strftime_now.__self__.now() }}",
        "{{ strftime_now.__code__.co_code }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ dict.mro() }}",
        "{% include 'chat_template.jinja' %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source):
    assert complaint(spelled, source, messages=[]).startswith("x.jinja: ")


def test_a_format_cannot_leave_the_sandbox_either():
    assert spelled("{{ '{0.__class__}'.format(1) }}|{{ '%s' % raise_exception.__class__ }}") == "|"


LOOPS = {
    "loops": "{% set l = range(100000) | list %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for a in range(100000) %}{% for b in range(100000) if not b %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
}


# one call each, whose time or room no look at a clock between two steps would bound
CALLS = {
    "a sum": "{{ ([[1]*9000]*9000) | sum(start=[]) | length }}",
    "striptags": "{{ ('<'*4000000) | striptags }}",
    "wordwrap": "{{ ('a '*4000000) | wordwrap(1) }}",
    "urlize": "{{ ('a@'*200000) | urlize }}",
    "joined": "{% set x='a'*9999999 %}{{ x" + "~x" * 300 + " }}",
    "a product": "{{ 'a' * 10 ** 12 }}",
    "a list": "{{ 10 ** 12 * [1] }}",
    "a power": "{{ 10 ** 10 ** 8 }}{{ (10 ** 9) ** (10 ** 9) }}",
    "doubled": "{% set ns = namespace(a='a') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    "a block": "{% set n=namespace(a=1) %}{% for i in range(60) %}{% set n.a %}{{ n.a~n.a }}{% endset %}{% endfor %}",
    "nested": "{% set n=namespace(v=[]) %}{% for i in range(100) %}{% set n.v=[n.v,n.v] %}{% endfor %}{{ n.v }}",
    "compared": "{% set n=namespace(a=[],b=[]) %}{% for i in range(100) %}{% set n.a=[n.a,n.a] %}"
    "{% set n.b=[n.b,n.b] %}{% endfor %}{{ n.a == n.b }}",
    "macros that double": "{% macro two(x) %}{{ x }}{{ x }}{% endmacro %}{{ " + "two(" * 30 + "'a'" + ")" * 30 + " }}",
    "json": "{% set n=namespace(v=[]) %}{% for i in range(60) %}{% set n.v=[n.v,n.v] %}{% endfor %}{{ n.v | tojson }}",
    "sliced": "{{ 'a' | slice(10 ** 9) | list | length }}",
    "batches": "{{ 'a' | batch(10 ** 9, 'b') | list | length }}",
    "padded": "{{ 'a' | center(10 ** 10) }}{{ '%1000000000d' % 1 }}",
    "the clock": "{{ strftime_now('%Y' * 10 ** 7) | length }}{{ strftime_now('%c' * 10 ** 8) }}",
    "latin": "{{ lipsum(n=10 ** 9) }}",
    "much text": "{% for i in range(100000) %}{{ 'abcdefg' * 1000 }}{% endfor %}",
}


@pytest.mark.parametrize("source", (LOOPS | CALLS).values(), ids=LOOPS | CALLS)
def test_a_template_ends_in_time_and_in_memory_with_a_text_or_a_sentence(monkeypatch, source):
    monkeypatch.setattr(template, "MAX_SECONDS", 0.5)
    monkeypatch.setattr(template, "PATIENCE", 30)  # the machine may have other work
    try:
        assert len(spelled(source)) <= template.MAX_SIZE
    except InputError as error:
        assert any(bound in str(error) for bound in ("seconds", "MB", "characters", "digits", "ange"))  # noqa: PT017
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 1.5e6  # kilobytes
    assert spelled("{{ 1 }}") == "1"


@pytest.mark.parametrize("source", [LOOPS["loops"], CALLS["a sum"], CALLS["doubled"], CALLS["nested"]])
def test_what_would_never_end_is_refused(monkeypatch, source):
    monkeypatch.setattr(template, "MAX_SECONDS", 0.5)
    assert "takes more than 0.5 seconds" in (said := complaint(spelled, source)) or "it needs more than" in said


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(10 ** 9) | list }}",
        "{" * 100_000,
        "{{ " + "(" * 5000,
        "{% if a %}" * 200 + "{% endif %}" * 200,
        "{{ " + "-" * 100_000 + "1 }}",
    ],
)
def test_a_template_that_breaks_python_is_one_sentence(source):
    assert complaint(spelled, source).startswith("x.jinja: ")


def test_messages_nested_too_deep_are_one_sentence():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested too deep" in complaint(spelled, "{{ x }}", x=deep)
    for _ in range(99_000):
        deep = deep[0]
    assert complaint(spelled, "{{ x }}", x=deep).startswith("x.jinja: ")


def test_threads_and_processes_that_fork_each_get_their_own_answer():
    def ask(number):
        return spelled("{{ x * 1000 }}", x=str(number)) == str(number) * 1000

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(100)))


def test_a_render_that_is_interrupted_leaves_no_answer_to_the_next(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    spelled("{{ 1 }}")
    with monkeypatch.context() as patch:
        patch.setattr(template, "received", interrupted)
        with pytest.raises(KeyboardInterrupt):
            spelled("{{ 'the first' }}")
    assert spelled("{{ 'the second' }}") == "the second"


def test_what_is_no_ascii_arrives_as_it_was_sent():
    odd = "".join(map(chr, [*range(0x250), 0x2028, 0xDFFF, 0x1F600, 0xD800, 0x10FFFF]))
    assert spelled("{{ x }}", x=odd) == odd
    assert (
        spelled("{{ x.a }}|{{ x.b }}|{{ x.c }}", x={"a": 10**30, "b": 1e308, "c": float("inf")})
        == f"{10**30}|1e+308|inf"
    )
