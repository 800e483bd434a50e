"""What a template may do, and what it does wrong: leave the sandbox, fail, go on for ever, fill the memory."""

import types
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


@pytest.mark.parametrize("source", LOOPS.values(), ids=LOOPS)
def test_a_template_that_would_not_end_is_ended(monkeypatch, source):
    monkeypatch.setattr(template, "MAX_SECONDS", 0.2)
    assert "it runs for more than 0.2 seconds" in complaint(spelled, source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 12 }}",
        "{{ 10 ** 12 * [1] }}",
        "{{ 10 ** 10 ** 8 }}{{ (10 ** 9) ** (10 ** 9) }}",
        "{% set ns = namespace(a='a') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
        "{% set ns = namespace(a=1) %}{% for i in range(60) %}{% set ns.a %}{{ ns.a ~ ns.a }}{% endset %}{% endfor %}",
        "{% macro two(x) %}{{ x }}{{ x }}{% endmacro %}{{ " + "two(" * 30 + "'a'" + ")" * 30 + " }}",
        "{% for i in range(100000) %}{{ 'abcdefg' * 1000 }}{% endfor %}",
    ],
)
def test_a_template_that_would_fill_the_memory_is_ended(source):
    assert "it makes a value of more than 10,000,000 characters or items" in complaint(spelled, source)


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(10 ** 9) | list }}",
        "{" * 100_000,
        "{{ " + "(" * 5000,
        "{% if a %}" * 200 + "{% endif %}" * 200,
    ],
)
def test_a_template_that_breaks_python_is_one_sentence(source):
    assert complaint(spelled, source).startswith("x.jinja: ")


def test_a_rendering_after_a_long_one_has_the_whole_time(monkeypatch):
    monkeypatch.setattr(template, "MAX_SECONDS", 0.0)
    source = "{% for x in [1] %}{{ x }}{% endfor %}"
    assert "it runs for more than" in complaint(spelled, source)
    monkeypatch.undo()
    assert spelled(source) == "1"
