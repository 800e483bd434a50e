"""What a check of the course says of a blank, of a wrong answer and of a right one."""

import linecache

import pytest

from numgemma import exercise

BLANKS = (
    "def f(x):\n    return ...",
    "def f(x):\n    for i in x:\n        ...\n    return x",
    "def f(x):\n    y = ...\n    return x",
    "def f(x):\n    if ...:\n        return x",
    "f = ...",
)
FILLED = ("def f(x):\n    return x[..., 0]", "def f(x):\n    return 1", "f = 2")


@pytest.fixture(autouse=True)
def no_tries():
    exercise.TRIES.clear()


def made(source, name):
    """The f of a cell, whose source Python can find, as Jupyter sees to it."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    names = {}
    exec(compile(source, name, "exec"), names)
    return names["f"]


@pytest.mark.parametrize("source", BLANKS)
def test_a_blank_is_one_wherever_the_dots_stand(source):
    assert exercise.is_blank(made(source, f"<cell {source}>"))


@pytest.mark.parametrize("source", FILLED)
def test_an_ellipsis_that_indexes_is_no_blank(source):
    assert not exercise.is_blank(made(source, f"<cell {source}>"))


def test_a_returned_blank_is_known_even_where_python_keeps_no_source():
    names = {}
    exec("def f(x):\n    return ...", names)
    assert exercise.is_blank(names["f"])


def tried(answer):
    """The error of a check of this answer, or None."""
    try:
        with exercise.check("0.1", answer):
            assert answer == 2
    except AssertionError as error:
        return error
    return None


def test_the_hint_comes_on_the_second_try():
    first, second = tried(...), tried(...)
    assert isinstance(first, exercise.StillBlank)
    assert str(first) == "exercise 0.1 is still blank: write in place of the ..."
    assert not getattr(first, "__notes__", [])
    assert second.__notes__ == [f"a hint: {exercise.hints()['0.1']}"]


def test_a_wrong_answer_keeps_its_own_error_and_gets_the_hint_too():
    tried(...)
    error = tried(3)
    assert not isinstance(error, exercise.StillBlank)
    assert error.__notes__ == [f"a hint: {exercise.hints()['0.1']}"]
    assert tried(2) is None


def test_what_has_not_been_tried_gives_nothing_away():
    assert not getattr(tried(3), "__notes__", [])
